"""What a run is asked to do (torch-free).

A `Request` holds names, files and numbers as a user gives them. It resolves to `Settings`:
everything that decides the weights, and so must agree when the run is resumed. `check_settings`
refuses, before hours of training, what would fail late.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kdmri_edge.bring.network import (
    bring,
    bring_trained,
    check_not_brought,
    is_brought,
    tried,
)
from kdmri_edge.distillation.recipe import (
    DistillRecipe,
    Imitation,
    Masks,
    Quantize,
    Transfer,
    default_recipe,
    former_key,
    load_recipe,
    overridden,
)
from kdmri_edge.distillation.run_folder import open_run
from kdmri_edge.distillation.start_weights import check_start_weights
from kdmri_edge.errors import DataError, MaskError, ModelError, RecipeError, RunError
from kdmri_edge.models.checkpoint import is_checkpoint, load_checkpoint
from kdmri_edge.models.code import CODE, CodeSpec, is_module
from kdmri_edge.models.protocol import InputKind, NetworkSpec, reads_coils, same_input
from kdmri_edge.models.shipped import is_reference, named_mask, refusal, resolve
from kdmri_edge.models.specs import NETWORKS, PRESETS, preset, spec_from_dict
from kdmri_edge.physics.espirit import CALIBRATION
from kdmri_edge.physics.masks import MASK_FAMILIES, Mask
from kdmri_edge.utils.config import plain
from kdmri_edge.utils.files import sha256_bytes

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "PHANTOM",
    "Request",
    "Settings",
    "check_settings",
    "check_sharding",
    "checkpoint_path",
]

# How often a run reports or saves does not change its weights, so it may differ when resuming. Nor
# does it change the float networks that a copy of the student is tuned for int8.
_FREE = (
    "validate_every", "checkpoint_every", "qat.quantize", "qat.steps", "qat.rate",
    "qat.alpha", "qat.float_layers", "qat.fine_layers",
)  # fmt: skip

# Value of --data that stands for the embedded phantom.
PHANTOM = "phantom"


def checkpoint_path(name: str) -> Path | None:
    """Return the checkpoint that a path or the name of a shipped network means; None for presets.

    Raises:
        ModelError: No such network is shipped.
    """
    if is_reference(name):
        return resolve(name)
    return Path(name) if is_checkpoint(Path(name)) else None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Resolved request of a distillation.

    Attributes:
        data: Folder of volumes as given, or "phantom".
        contrast: Only volumes of this contrast; None for all.
        split: Name or file of the split, None to recognise the folder's.
        matrix: Side of the square matrix.
        mask: Sampling pattern.
        teacher: Preset name, path of a checkpoint, or name of a trained network of the package.
        teacher_spec: Its architecture.
        student: Preset name; or, where it is only to be tuned for int8, a checkpoint's path or
            the name of a trained network of the package.
        student_spec: Architecture of the distilled student, with the recipe's dilation (a
            checkpoint's own).
        baseline: Whether the plain student is trained too.
        distilled: Whether the student is distilled; without it and without the baseline, only the
            teacher is trained.
        recipe: Training settings.
        start_from: Path of a checkpoint, or name of a trained network of the package, with whose
            weights the student starts; None for weights that the recipe draws or takes from the
            teacher.
    """

    data: str
    contrast: str | None
    split: str | None
    matrix: int
    mask: Mask
    teacher: str
    teacher_spec: NetworkSpec
    student: str
    student_spec: NetworkSpec
    baseline: bool
    recipe: DistillRecipe
    distilled: bool = True
    start_from: str | None = None

    def __post_init__(self) -> None:
        """Give the distilled student the dilation of the recipe.

        Raises:
            RecipeError: It does not suit the student's number of convolutions.
        """
        dilation = self.recipe.distillation.dilation
        if dilation and self.student_checkpoint is None:
            try:
                spec = self.student_spec.with_dilation(dilation)
            except ModelError as error:
                usual = default_recipe(self.student_spec)
                raise RecipeError(
                    f"The dilation of recipe {self.recipe.name!r} does not suit {self.student}:"
                    f" {error.what[0].lower()}{error.what[1:]}",
                    f"{error.remedy} Or use recipe {usual!r}.",
                ) from error
            object.__setattr__(self, "student_spec", spec)

    @property
    def teacher_checkpoint(self) -> Path | None:
        """The pretrained teacher's checkpoint; None where a preset is trained."""
        return checkpoint_path(self.teacher)

    @property
    def student_checkpoint(self) -> Path | None:
        """The pretrained student's checkpoint; None where a preset is trained."""
        return checkpoint_path(self.student)

    @property
    def start_checkpoint(self) -> Path | None:
        """The checkpoint of the student's first weights; None where there is none."""
        return None if self.start_from is None else checkpoint_path(self.start_from)

    @property
    def plain_spec(self) -> NetworkSpec:
        """Architecture of the plain student: the preset's own, or that of the student's code.

        Without a teacher the recipe's dilation makes it worse, and a weak baseline would flatter
        the distilled student.
        """
        if self.student_spec.kind == CODE:
            return self.student_spec
        return preset(self.student)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "data": self.data,
            "contrast": self.contrast,
            "split": self.split,
            "matrix": self.matrix,
            "mask": self.mask.to_dict(),
            "teacher": self.teacher,
            "teacher_spec": self.teacher_spec.to_dict(),
            "student": self.student,
            "student_spec": self.student_spec.to_dict(),
            "baseline": self.baseline,
            "recipe": self.recipe.to_dict(),
            "distilled": self.distilled,
            **({} if self.start_from is None else {"start_from": self.start_from}),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Settings:
        """Rebuild settings from `to_dict`.

        Raises:
            RunError: Keys are missing or damaged.
        """
        try:
            return cls(
                **{
                    **value,
                    "mask": Mask.from_dict(value["mask"]),
                    "teacher_spec": spec_from_dict(value["teacher_spec"]),
                    "student_spec": spec_from_dict(value["student_spec"]),
                    "recipe": DistillRecipe.from_dict(value["recipe"], "run.json"),
                }
            )
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise RunError(
                f"The settings in run.json are damaged ({error!r}).", "Start a new run."
            ) from error

    def fingerprint(self, hashes: list[str], pretrained: Mapping[str, str] | None = None) -> str:
        """Return a hash of the settings that decide the weights, and of the data they met.

        Keys of the recipe that have their default are left out, so that a version with a new key
        goes on with the runs of an older one.

        Args:
            hashes: SHA-256 of the volumes.
            pretrained: SHA-256 of the weights of pretrained networks, by role; they stand for the
                files' paths. Without them, the paths themselves, as earlier versions had it.
        """
        value = self.to_dict()
        value.pop("data")  # the volumes' own hashes stand for it: a folder may move
        value |= pretrained or {}
        if pretrained:
            value.pop("start_from", None)  # its weights are among these
        value.pop("distilled")  # which networks come to be does not change the others' weights
        first_weights = NETWORKS.named(self.student_spec.kind).first_weights
        if first_weights is not None:  # earlier versions drew other ones
            value["first_weights"] = first_weights
        usual = DistillRecipe(name="").flat()
        free = {former_key(key) for key in _FREE}
        value["recipe"] = {
            key: setting
            for key, setting in self.recipe.flat().items()
            if key not in free and (key == "name" or setting != usual[key])
        }
        return sha256_bytes(json.dumps([value, sorted(hashes)], sort_keys=True).encode())

    def difference(self, other: Settings) -> str | None:
        """Return the first setting in which two requests differ that decides the weights.

        Not the paths of the data and of pretrained networks: they may move. `fingerprint` compares
        the volumes and the weights themselves.
        """
        mine, others = (
            {**s.to_dict(), **plain(s.recipe), "recipe": s.recipe.name} for s in (self, other)
        )
        free = {"data", "name", "distilled", *_FREE}
        if self.teacher_checkpoint is not None and other.teacher_checkpoint is not None:
            free.add("teacher")
        if self.student_checkpoint is not None and other.student_checkpoint is not None:
            free.add("student")
        if self.start_from is not None and other.start_from is not None:
            free.add("start_from")
        decisive = [key for key in {**mine, **others} if key not in free]
        # What the user named comes before what follows from it.
        decisive.sort(key=lambda key: key.endswith("_spec"))
        return next((key for key in decisive if mine.get(key) != others.get(key)), None)


# Matrix and nominal acceleration of a mask that is drawn where nothing is said about it.
_MATRIX: Final = 240
_ACCELERATION: Final = 4.0
# Networks of a new run where nothing is said about them. The paper's student is that of recipes by
# which the other cannot be taught: it starts as its teacher, or compares feature maps with it.
_TEACHER: Final = "dccnn-d5c5"
_STUDENT: Final = "dccnn-edge"
_PAPER_STUDENT: Final = "dccnn-d3c5"


@dataclass(frozen=True, kw_only=True)
class Request:
    """A distillation as a user asks for it; None stands for what was not said.

    For a new run that takes the default, for one that is resumed what the run was begun with.

    Attributes:
        data: Folder of volumes in any readable format, or "phantom" [phantom].
        contrast: Use only volumes of this contrast [all].
        split: "brain", "cardiac", or a TOML or JSON file with train, validation and test
            [the folder's known split, else an automatic one by subject].
        matrix: Side of the square matrix [the mask's].
        mask: A mask; a file (.npy, or FILE.json:KEY); or a trained network of the package, or a
            checkpoint, whose mask is taken [one is drawn].
        mask_family: Draw a mask of this family, see `MASK_FAMILIES` [variable-density].
        mask_seed: Seed of the draw [0].
        acceleration: Nominal acceleration of a drawn mask [4].
        teacher: Preset to train; or a .safetensors checkpoint, or a trained network of the package,
            to learn from; or code that makes a network, "FILE.py:factory", or a
            `torch.nn.Module`, which is learned from as it is [dccnn-d5c5].
        student: Preset to train; or code or a module, likewise; or a trained student, to be tuned
            for int8 [dccnn-edge; dccnn-d3c5 with a recipe of attention transfer, dilation, or of
            convolutions that start as the teacher's: edge, kd-mri, quickstart].
        teacher_weights: File of the weights of a teacher that is named as code; without it such a
            teacher is trained [None].
        student_weights: The same of a student that is to be tuned for int8 [None].
        convention: What `forward` of networks that are named as code takes, where its signature
            does not tell: the name of a `models.code.Convention` [found].
        start_from: Checkpoint, or trained network of the package, of the student's architecture,
            for this mask or another, with whose weights the student starts: it is trained further.
            There is no plain student then, which would have fewer steps behind it [weights that
            are drawn, or the teacher's].
        baseline: Also train the student without a teacher, for as many steps [True].
        recipe: A recipe, the name of a shipped one, or a TOML file [the student's family's:
            carried for dccnn-edge, carried-half for dccnn-edge-half, edge for dccnn-d3c5, edge-sr
            for VDSR, edge-sr-half for vdsr-half; imitation where the teacher is of a family that
            this one does not learn from, or reads another input].
        assignments: Changes of single keys of the recipe, each "KEY=VALUE".
        quantize: "int8" or "int8-signed": also tune a copy of the student for that int8 export.
    """

    data: str | Path | None = None
    contrast: str | None = None
    split: str | Path | None = None
    matrix: int | None = None
    mask: Mask | str | Path | None = None
    mask_family: str | None = None
    mask_seed: int | None = None
    acceleration: float | None = None
    teacher: str | Path | nn.Module | None = None
    student: str | Path | nn.Module | None = None
    teacher_weights: str | Path | None = None
    student_weights: str | Path | None = None
    convention: str | None = None
    start_from: str | Path | None = None
    baseline: bool | None = None
    recipe: DistillRecipe | str | Path | None = None
    assignments: tuple[str, ...] = ()
    quantize: str | None = None

    def __post_init__(self) -> None:
        """Refuse a convention where no network is code.

        Raises:
            ModelError: It would be ignored: other networks have their own.
        """
        if not (is_brought(self.teacher) or is_brought(self.student)):
            check_not_brought({"convention": self.convention}, ModelError)

    def settings(self) -> Settings:
        """Resolve the request of a new run.

        Raises:
            KdmriError: Anything that does not exist, or does not fit together.
        """
        teacher, teacher_spec = self._network("teacher")
        student, student_spec = self._network("student")
        return self._resolved(
            teacher=teacher,
            teacher_spec=teacher_spec,
            student=student,
            student_spec=student_spec,
            recipe=self.chosen_recipe(),
            mask=self._mask(coils=reads_coils(student_spec) or reads_coils(teacher_spec)),
        )

    def chosen_recipe(self) -> DistillRecipe:
        """Return the recipe of a new run, with what was said about its keys.

        Raises:
            RecipeError: No such recipe, unknown key or bad value.
            ModelError: The student, on which the default depends, does not exist.
        """
        if self.recipe is not None:
            return self._recipe(self.recipe)
        student = self._network("student")[1]
        if student.kind == CODE:
            return self._recipe(default_recipe(student))
        teacher = self._network("teacher")[1]
        # A family's own recipe is for pairs that it knows: the student may start as its teacher.
        known = {student.kind, *NETWORKS.named(student.kind).teachers}
        strangers = teacher.kind not in known or not same_input(teacher, student)
        return self._recipe("imitation" if strangers else default_recipe(student))

    def resumed(self, out: Path) -> Settings:
        """Take the settings of the run in a folder; refuse what contradicts them.

        The data folder may have moved (its volumes are compared by hash), and how often the run
        reports and saves may change: neither has an influence on the weights.

        Raises:
            RunError: The folder holds no run, or one of other settings.
            KdmriError: What is said anew does not exist, or does not fit together.
        """
        stored = Settings.from_dict(open_run(out).meta.get("settings", {}))
        if self == Request():
            return stored
        named = {f.name for f in fields(self) if getattr(self, f.name) not in (None, ())}
        # The run has copies of its pretrained networks: the originals may be gone.
        teacher, teacher_spec = stored.teacher, stored.teacher_spec
        student, student_spec = stored.student, stored.student_spec
        if self.teacher is not None or self.teacher_weights is not None:
            teacher, teacher_spec = self._network("teacher")
        if self.student is not None or self.student_weights is not None:
            student, student_spec = self._network("student")
        same = {"data", "contrast", "split", "matrix", "start_from", "baseline"} - named
        merged = replace(self, **{name: getattr(stored, name) for name in same})
        masks = {"mask", "mask_family", "mask_seed", "acceleration"}
        coils = reads_coils(student_spec) or reads_coils(teacher_spec)
        asked = merged._resolved(
            teacher=teacher,
            teacher_spec=teacher_spec,
            student=student,
            student_spec=student_spec,
            recipe=self._recipe(stored.recipe if self.recipe is None else self.recipe),
            mask=merged._mask(coils=coils) if named & masks else stored.mask,
        )
        difference = stored.difference(asked)
        if difference:
            raise RunError(
                f"{out} was started with another {difference!r}.",
                "Leave that option out when resuming, or start a new run with another --out.",
            )
        return replace(stored, data=asked.data, recipe=asked.recipe)

    def _resolved(
        self,
        *,
        teacher: str,
        teacher_spec: NetworkSpec,
        student: str,
        student_spec: NetworkSpec,
        recipe: DistillRecipe,
        mask: Mask,
    ) -> Settings:
        """Check that the parts fit together, and put them together."""
        data = PHANTOM if self.data is None else str(self.data)
        if data != PHANTOM and not Path(data).exists():
            raise DataError(f"{data} does not exist.", "Check the path given to --data.")
        matrix = self.matrix or mask.height
        try:
            mask.check_matrix(matrix, matrix)
        except MaskError as error:
            raise MaskError(
                error.what, f"Train at its matrix (--matrix {mask.height}), or give another mask."
            ) from None
        teacher, teacher_spec = self._tried("teacher", teacher, teacher_spec, mask, matrix)
        student, student_spec = self._tried("student", student, student_spec, mask, matrix)
        settings = Settings(
            data=data,
            contrast=self.contrast,
            split=None if self.split is None else str(self.split),
            matrix=matrix,
            mask=mask,
            teacher=teacher,
            teacher_spec=teacher_spec,
            student=student,
            student_spec=student_spec,
            # A finished student is not trained again, so there is nothing to compare it with.
            baseline=self.baseline is not False
            and checkpoint_path(student) is None
            and self.start_from is None,
            recipe=recipe,
            start_from=None if self.start_from is None else str(self.start_from),
        )
        _check_tuning(settings)
        return settings

    def _network(self, role: str) -> tuple[str, NetworkSpec]:
        """Return what a network is called in settings, and its architecture."""
        given = getattr(self, role)
        if is_brought(given):
            brought = bring(given, convention=self.convention)
            return brought.reference, brought
        if getattr(self, f"{role}_weights") is not None:
            raise ModelError(
                f"--{role}-weights are for a {role} that is named as code.",
                f"Name it with --{role} FILE.py:factory, or give a checkpoint as --{role}.",
            )
        if given is None:
            given = _TEACHER if role == "teacher" else self._default_student()
        return str(given), _spec(role, str(given))

    def _default_student(self) -> str:
        named = default_recipe(preset(_STUDENT)) if self.recipe is None else self.recipe
        recipe = self._recipe(named)  # with the keys that --set changes
        wanted = recipe.distillation
        papers = wanted.inherit or wanted.bridge or wanted.dilation or recipe.attention_steps
        return _PAPER_STUDENT if papers else _STUDENT

    def _tried(
        self, role: str, name: str, spec: NetworkSpec, mask: Mask, matrix: int
    ) -> tuple[str, NetworkSpec]:
        """Run a network that was brought as code once; with its weights it is a checkpoint."""
        if not isinstance(spec, CodeSpec) or spec.counted_at != (0, 0):
            return name, spec
        weights = getattr(self, f"{role}_weights")
        if weights is None and not (role == "teacher" and is_module(self.teacher)):
            return name, tried(spec, mask, matrix)
        place = None if weights is None else Path(weights)
        checkpoint = bring_trained(spec, place, mask, matrix)
        return str(checkpoint), _spec(role, str(checkpoint))

    def _recipe(self, chosen: DistillRecipe | str | Path) -> DistillRecipe:
        """Return a recipe with what was said about its keys."""
        changes = self.assignments
        if self.quantize is not None:
            changes = (*changes, f"qat.quantize={self.quantize}")
        if isinstance(chosen, DistillRecipe):
            return overridden(chosen, changes)
        return load_recipe(str(chosen), changes)

    def _mask(self, *, coils: bool) -> Mask:
        """Load or draw the mask; with coils its centre is wide enough to estimate them from."""
        wanted = self.acceleration
        if wanted is not None and not 1 <= wanted < math.inf:
            raise MaskError(
                f"Acceleration {wanted:g} is below 1 or not a number.",
                "Give --acceleration 1 (fully sampled) or more.",
            )
        if self.mask is not None:
            mask = self.mask if isinstance(self.mask, Mask) else named_mask(str(self.mask))
            if wanted is not None and abs(mask.nominal_acceleration / wanted - 1) > 0.1:
                raise MaskError(
                    f"Mask {mask.name!r} accelerates {mask.nominal_acceleration:.2f}x,"
                    f" --acceleration says {wanted:g}.",
                    "Leave --acceleration out, or give the matching mask.",
                )
            return mask
        family = MASK_FAMILIES.named(self.mask_family or "variable-density")
        size = self.matrix or _MATRIX
        acceleration = _ACCELERATION if wanted is None else wanted
        # Coil sensitivities are estimated from so many lines around zero frequency.
        centre = CALIBRATION if coils else 0
        return family.draw(size, acceleration, self.mask_seed or 0, centre)


def _spec(option: str, name: str) -> NetworkSpec:
    """Return the architecture of a preset, a checkpoint or a trained network of the package."""
    path = checkpoint_path(name)
    if path is not None:
        return load_checkpoint(path).spec
    if name.partition("?")[0] in PRESETS:
        return preset(name)  # before the test for a path: a field's value may hold a full stop
    if Path(name).suffix or "/" in name or Path(name).exists():
        takes = (
            f"As {option} give an architecture or a network of `kdmri-edge models`, or a"
            " .safetensors checkpoint."
        )
        raise refusal(Path(name), ModelError, takes)
    return preset(name)


def _check_tuning(settings: Settings) -> None:
    """Refuse a finished student with which nothing, or too much, would be done."""
    qat = settings.recipe.qat
    for named in ("float_layers", "fine_layers"):
        if getattr(qat, named) and qat.quantize is Quantize.NONE:
            raise RecipeError(
                f"qat.{named} names layers of a copy for int8, and none is made.",
                "Add --quantize int8 (or int8-signed), or leave them out.",
            )
    if settings.student_checkpoint is None:
        return
    if settings.recipe.qat.quantize is Quantize.NONE:
        raise ModelError(
            f"--student {settings.student} is trained already.",
            "Give a preset to train one, or --quantize int8 to tune this one.",
        )
    if settings.teacher_checkpoint is None:
        raise ModelError(
            f"--student {settings.student} would be tuned by a teacher that is not trained yet.",
            "Give its teacher's weights, e.g. --teacher RUN/teacher.safetensors.",
        )


def check_sharding(settings: Settings, processes: int) -> None:
    """Refuse what cannot be trained as it is asked for: it would silently be something else.

    Args:
        settings: The request.
        processes: How many will share each batch.

    Raises:
        RecipeError: Batches that the processes cannot share evenly.
    """
    # PyTorch is imported late: what only reads a request does without it
    from kdmri_edge.distillation.batches import batch_size, strips_allowed

    recipe = settings.recipe
    strips = strips_allowed(settings.mask, settings.student_spec, settings.teacher_spec)
    shards = max(recipe.batches.shards, processes)
    if shards % processes:
        raise RecipeError(
            f"{recipe.batches.shards} shards cannot be shared evenly by {processes} processes.",
            f"Use --set batches.shards={recipe.batches.shards * processes}, or fewer processes.",
        )
    kinds = {"strips": False} if strips else {}
    if recipe.batches.whole_slices > 0 or not strips or recipe.qat.quantize is not Quantize.NONE:
        kinds["whole slices"] = True
    for kind, whole in kinds.items():
        for width in _widths(settings):
            batch = batch_size(recipe, width, whole=whole)
            if batch % shards:
                raise RecipeError(
                    f"A step on {batch} {kind} cannot be shared evenly by {processes} processes"
                    f" in {shards} shard(s).",
                    f"Use --set batches.size={_fitting(settings, kinds.values(), shards)}"
                    + (", or fewer processes." if processes > 1 else ", or fewer shards."),
                )


def _widths(settings: Settings) -> list[int]:
    """Return the readout columns of the slices that steps see."""
    mixed = {matrix.width for matrix in settings.recipe.batches.matrices}
    return sorted({settings.matrix} | mixed)


def _fitting(settings: Settings, kinds: Collection[bool], shards: int) -> int:
    """Return the smallest multiple of the batch whose steps of all kinds can be shared."""
    from kdmri_edge.distillation.batches import batch_size

    recipe = settings.recipe
    # a batch of slices is a rounded part of one of strips: common multiples may lie far off
    most = shards * max(_widths(settings)) ** len(_widths(settings))
    batches = (recipe.batches.size * n for n in range(1, most + 1))
    return next(
        batch
        for batch in batches
        if not any(
            batch_size(_with_batch(recipe, batch), width, whole=whole) % shards
            for whole in kinds
            for width in _widths(settings)
        )
    )


def _with_batch(recipe: DistillRecipe, size: int) -> DistillRecipe:
    return replace(recipe, batches=replace(recipe.batches, size=size))


def check_settings(settings: Settings, processes: int) -> None:
    """Refuse what would fail late, or silently be something else.

    Args:
        settings: The request.
        processes: How many will share each batch.

    Raises:
        RecipeError: Masks that the networks cannot be trained over, a pair of networks of which one
            cannot learn from the other as it is asked to, or batches that the processes cannot
            share evenly.
        ModelError: A student that cannot take over its teacher's convolutions, or cannot start from
            the weights that are named.
        CheckpointError: The weights that the student would start with are damaged, or not finite.
    """
    _check_masks(settings)
    if settings.start_from is not None:
        check_start_weights(
            settings.start_from,
            settings.start_checkpoint,
            student=settings.student,
            spec=settings.student_spec,
            trained=settings.student_checkpoint is not None,
        )
    if settings.student_checkpoint is None and settings.distilled:
        _check_pair(settings)
    check_sharding(settings, processes)


def _check_masks(settings: Settings) -> None:
    from kdmri_edge.distillation.batches import ACCELERATIONS, SMALLEST

    recipe = settings.recipe
    both = settings.student_spec, settings.teacher_spec
    of_kspace = any(spec.reads is InputKind.KSPACE for spec in both)
    consistent = all(spec.has_data_consistency for spec in both)
    lines = settings.mask.is_lines and consistent and not of_kspace
    if recipe.batches.noise > 0 and not lines:
        raise RecipeError(
            f"Noise (batches.noise={recipe.batches.noise:g}) is added to lines that a mask samples,"
            " which this run has none of.",
            "Use --set batches.noise=0, or networks with data consistency (DC-CNN) and a line"
            " mask.",
        )
    if recipe.insertion.share > 0 and not lines:
        raise RecipeError(
            f"Structures (insertion.share={recipe.insertion.share:g}) are inserted before a mask of"
            " lines samples the images again, and this run has none.",
            "Use --set insertion.share=0, or networks with data consistency (DC-CNN) and a line"
            " mask.",
        )
    if recipe.insertion.contrast_weight > 0 and not recipe.insertion.share:
        raise RecipeError(
            f"The contrast of inserted structures is weighted (insertion.contrast_weight="
            f"{recipe.insertion.contrast_weight:g}), and none are inserted.",
            "Use --set insertion.share=0.5, say, or --set insertion.contrast_weight=0.",
        )
    if recipe.batches.masks is Masks.LINES:
        key, without = "batches.masks=lines", "batches.masks=own"
    elif recipe.batches.other_masks > 0:
        key = f"batches.other_masks={recipe.batches.other_masks:g}"
        without = "batches.other_masks=0"
    else:
        return
    if of_kspace:
        raise RecipeError(
            f"Networks of k-space are trained with the run's own mask alone ({key}).",
            f"Use --set {without}.",
        )
    if not consistent:
        raise RecipeError(
            f"A network without data consistency takes no mask, so it cannot be trained over line"
            f" masks ({key}).",
            f"Use --set {without}.",
        )
    if not settings.mask.is_lines:
        raise RecipeError(
            f"Training over line masks ({key}) needs a run whose own mask samples lines.",
            f"Give such a mask, or --set {without}.",
        )
    smallest = min([settings.matrix, *(one.height for one in recipe.batches.matrices)])
    if smallest < SMALLEST:
        raise RecipeError(
            f"A matrix of {smallest} is too small for masks of up to"
            f" {ACCELERATIONS[1]:g}x ({key}), which leave it no centre.",
            f"Train at {SMALLEST} or more, or use --set {without}.",
        )


def _check_pair(settings: Settings) -> None:
    from kdmri_edge.models.initialisation import check_bridge, check_inherit

    recipe, teacher, student = settings.recipe, settings.teacher_spec, settings.student_spec
    ours, theirs = student.attention_widths, teacher.attention_widths
    wanted = recipe.distillation
    if wanted.taps:
        _check_taps(recipe)
    elif recipe.attention_steps and not (ours and theirs):
        raise RecipeError(
            f"Attention is transferred cascade by cascade, and the teacher shows {len(theirs)}"
            f" tensors for it, the student {len(ours)}.",
            "Name modules of both in distillation.taps, use --set attention_steps=0, or a recipe of"
            " imitation alone (--recipe imitation).",
        )
    elif recipe.attention_steps and wanted.transfer is not Transfer.ATTENTION:
        widths = {*ours, *theirs}
        if len(widths) > 1:
            what = "relations" if wanted.transfer is Transfer.RELATION else "features"
            raise RecipeError(
                f"The teacher has {theirs[0]} feature maps, the student {ours[0]}; their {what}"
                " cannot be compared.",
                "Pair networks of equal width, use --set distillation.transfer=attention, or name"
                " modules in distillation.taps, whose maps are projected.",
            )
    cascades = {teacher.cascades, student.cascades}
    if wanted.imitation is Imitation.CASCADES and len(cascades) > 1 and 1 in cascades:
        raise RecipeError(
            f"The teacher has {teacher.cascades} cascade{'s' * (teacher.cascades > 1)}, the student"
            f" {student.cascades}; there is no image between to imitate.",
            "Use --set distillation.imitation=final.",
        )
    for key in ("bridge", "inherit"):
        if getattr(wanted, key) and not same_input(student, teacher):
            raise RecipeError(
                f"The teacher reads {_reads(teacher)}, the student {_reads(student)}; its"
                " convolutions cannot start as the teacher's.",
                f"Use --set distillation.{key}=false, or --recipe imitation.",
            )
    if recipe.distillation.bridge:
        check_bridge(student, teacher)
    elif recipe.distillation.inherit:
        check_inherit(student, teacher)
    if not recipe.joint_steps:
        return
    remedy = "Use --set joint_steps=0."
    if settings.teacher_checkpoint is not None:
        raise RecipeError(
            "A finished teacher cannot be trained jointly with its student.",
            f"{remedy[:-1]}, or let this run train the teacher.",
        )
    if not same_input(teacher, student):
        raise RecipeError(
            f"Joint training mixes cascades, and the teacher reads {_reads(teacher)}, the student"
            f" {_reads(student)}.",
            remedy,
        )
    mixed = teacher.has_features_from and student.has_features_from
    if not mixed or teacher.cascades != student.cascades:
        raise RecipeError(
            "Joint training mixes the cascades of networks with data consistency (DC-CNN), equally"
            " many of both.",
            remedy,
        )
    if recipe.joint_steps > recipe.teacher_steps:
        raise RecipeError(
            f"{recipe.joint_steps} joint steps are more than the teacher's"
            f" {recipe.teacher_steps} in all.",
            f"Use --set joint_steps={recipe.teacher_steps}, or fewer.",
        )


def _reads(spec: NetworkSpec) -> str:
    consistency = "with" if spec.has_data_consistency else "without"
    return f"{spec.reads} images {consistency} data consistency"


def _check_taps(recipe: DistillRecipe) -> None:
    from kdmri_edge.distillation.taps import Tap

    for name in (*recipe.distillation.taps, *recipe.distillation.taps.values()):
        Tap.parse(name)
    if not recipe.attention_steps and not recipe.distillation.taps_weight:
        raise RecipeError(
            "What distillation.taps name is compared nowhere: attention_steps and"
            " distillation.taps_weight are 0.",
            "Use --set distillation.taps_weight=0.01, or --set distillation.taps={}.",
        )
    if not recipe.attention_steps and not recipe.distillation.imitation_until:
        raise RecipeError(
            "What distillation.taps name is compared while the student imitates, and it never does"
            " (distillation.imitation_until=0).",
            "Use --set distillation.imitation_until=1, or --set distillation.taps={}.",
        )
