"""What a run was asked to do, and whether it can be trained as it is asked for (torch-free).

What a run was asked to do: everything that must agree when it is resumed (torch-free).

Whether a request can be trained by the processes that are to share it.

Whether a request can be trained as it is asked for; looked at before hours of training.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdmri_edge.distillation.recipe import DistillRecipe, Masks, Quantise, Transfer, default_recipe
from kdmri_edge.errors import RecipeError, RunError
from kdmri_edge.models.shipped import resolve_weights
from kdmri_edge.models.specs import Kind, ModelSpec, preset
from kdmri_edge.physics.masks import Mask
from kdmri_edge.utils.files import sha256_bytes

__all__ = ["PHANTOM", "Settings", "check_settings", "check_sharding", "checkpoint_place"]

# How often a run reports or saves does not change its weights, so it may differ when resuming. Nor
# does it change the float networks that a copy of the student is tuned for int8.
_FREE = ("validate_every", "checkpoint_every", "quantise", "quantise_steps", "quantise_rate")

# Value of --data that stands for the embedded phantom.
PHANTOM = "phantom"


def checkpoint_place(name: str) -> Path | None:
    """Return the checkpoint that a path or the name of a shipped network means; None for presets.

    Raises:
        ModelError: No such network is shipped.
    """
    place = resolve_weights(Path(name))
    return place if place.suffix == ".safetensors" else None


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
    """

    data: str
    contrast: str | None
    split: str | None
    matrix: int
    mask: Mask
    teacher: str
    teacher_spec: ModelSpec
    student: str
    student_spec: ModelSpec
    baseline: bool
    recipe: DistillRecipe
    distilled: bool = True

    def __post_init__(self) -> None:
        """Give the distilled student the dilation of the recipe.

        Raises:
            RecipeError: It does not suit the student's number of convolutions.
        """
        dilation, convs = self.recipe.dilation, self.student_spec.convs
        if dilation and self.student_place is None:
            if len(dilation) not in (convs, convs * self.student_spec.cascades):
                raise RecipeError(
                    f"Recipe {self.recipe.name!r} names the dilation of {len(dilation)}"
                    f" convolutions, {self.student} has {convs}.",
                    f"Give {convs} numbers, or {convs * self.student_spec.cascades} for each"
                    " cascade its own, or use recipe"
                    f" {default_recipe(self.student_spec.kind)!r}.",
                )
            spec = replace(self.student_spec, dilation=self.recipe.dilation)
            object.__setattr__(self, "student_spec", spec)

    @property
    def teacher_place(self) -> Path | None:
        """The given teacher's checkpoint; None where a preset is trained."""
        return checkpoint_place(self.teacher)

    @property
    def student_place(self) -> Path | None:
        """The given student's checkpoint; None where a preset is trained."""
        return checkpoint_place(self.student)

    @property
    def plain_spec(self) -> ModelSpec:
        """Architecture of the plain student: the preset's own.

        Without a teacher the recipe's dilation makes it worse, and a weak baseline would flatter
        the distilled student.
        """
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
                    "teacher_spec": ModelSpec.from_dict(value["teacher_spec"]),
                    "student_spec": ModelSpec.from_dict(value["student_spec"]),
                    "recipe": DistillRecipe.from_dict(value["recipe"], "run.json"),
                }
            )
        except (KeyError, TypeError) as error:
            raise RunError(
                f"The settings in run.json are damaged ({error!r}).", "Start a new run."
            ) from error

    def fingerprint(self, hashes: list[str], given: Mapping[str, str] | None = None) -> str:
        """Return a hash of the settings that decide the weights, and of the data they met.

        Keys of the recipe that have their default are left out, so that a version with a new key
        goes on with the runs of an older one.

        Args:
            hashes: SHA-256 of the volumes.
            given: SHA-256 of the weights of the networks that are given, by role; they stand for
                the files' places. Without them, the places themselves, as earlier versions had it.
        """
        value = self.to_dict()
        value.pop("data")  # the volumes' own hashes stand for it: a folder may move
        value |= given or {}
        value.pop("distilled")  # which networks come to be does not change the others' weights
        if self.student_spec.kind is Kind.VDSR:  # earlier versions drew other first weights
            value["first_weights"] = "He"
        usual = DistillRecipe(name="").to_dict()
        value["recipe"] = {
            key: setting
            for key, setting in self.recipe.to_dict().items()
            if key not in _FREE and (key == "name" or setting != usual[key])
        }
        return sha256_bytes(json.dumps([value, sorted(hashes)], sort_keys=True).encode())

    def difference(self, other: Settings) -> str | None:
        """Return the first setting in which two requests differ that decides the weights.

        Not the places of the data and of given networks: they may move. `fingerprint` compares the
        volumes and the weights themselves.
        """
        mine, others = (
            {**s.to_dict(), **s.recipe.to_dict(), "recipe": s.recipe.name} for s in (self, other)
        )
        free = {"data", "name", "distilled", *_FREE}
        if self.teacher_place is not None and other.teacher_place is not None:
            free.add("teacher")
        if self.student_place is not None and other.student_place is not None:
            free.add("student")
        decisive = [key for key in mine if key not in free]
        # What the user named comes before what follows from it.
        decisive.sort(key=lambda key: key.endswith("_spec"))
        return next((key for key in decisive if mine[key] != others.get(key)), None)


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

    recipe, strips = settings.recipe, strips_allowed(settings.mask, settings.student_spec)
    shards = max(recipe.shards, processes)
    if shards % processes:
        raise RecipeError(
            f"{recipe.shards} shards cannot be shared evenly by {processes} processes.",
            f"Use --set shards={recipe.shards * processes}, or fewer processes.",
        )
    kinds = {"strips": False} if strips else {}
    if recipe.whole_slices > 0 or not strips or recipe.quantise is not Quantise.NONE:
        kinds["whole slices"] = True
    for kind, whole in kinds.items():
        batch = batch_size(recipe, settings.matrix, whole=whole)
        if batch % shards:
            raise RecipeError(
                f"A step on {batch} {kind} cannot be shared evenly by {processes} processes"
                f" in {shards} shard(s).",
                f"Use --set batch={_fitting(settings, kinds.values(), shards)}"
                + (", or fewer processes." if processes > 1 else ", or fewer shards."),
            )


def _fitting(settings: Settings, kinds: Collection[bool], shards: int) -> int:
    """Return the smallest multiple of the batch whose steps of all kinds can be shared."""
    from kdmri_edge.distillation.batches import batch_size

    recipe = settings.recipe
    batches = (recipe.batch * n for n in range(1, shards * settings.matrix + 1))
    return next(
        batch
        for batch in batches
        if not any(
            batch_size(replace(recipe, batch=batch), settings.matrix, whole=whole) % shards
            for whole in kinds
        )
    )


def check_settings(settings: Settings, processes: int) -> None:
    """Refuse what would fail late, or silently be something else.

    Args:
        settings: The request.
        processes: How many will share each batch.

    Raises:
        RecipeError: Masks that the networks cannot be trained over, a pair of networks of which one
            cannot learn from the other as it is asked to, or batches that the processes cannot
            share evenly.
        ModelError: A student that cannot take over its teacher's convolutions.
    """
    _check_masks(settings)
    if settings.student_place is None and settings.distilled:
        _check_pair(settings)
    check_sharding(settings, processes)


def _check_masks(settings: Settings) -> None:
    from kdmri_edge.distillation.batches import ACCELERATIONS, SMALLEST

    recipe = settings.recipe
    lines = settings.mask.is_lines and settings.student_spec.kind is Kind.DCCNN
    if recipe.noise > 0 and not lines:
        raise RecipeError(
            f"Noise (noise={recipe.noise:g}) is added to lines that a mask samples, which this run"
            " has none of.",
            "Use --set noise=0, or a network with data consistency (DC-CNN) and a line mask.",
        )
    if recipe.masks is Masks.LINES:
        key, without = "masks=lines", "masks=own"
    elif recipe.other_masks > 0:
        key, without = f"other_masks={recipe.other_masks:g}", "other_masks=0"
    else:
        return
    if settings.student_spec.kind is Kind.VDSR:
        raise RecipeError(
            f"Super-resolution takes no mask, so it cannot be trained over line masks ({key}).",
            f"Use --set {without}.",
        )
    if not settings.mask.is_lines:
        raise RecipeError(
            f"Training over line masks ({key}) needs a run whose own mask samples lines.",
            f"Give such a mask, or --set {without}.",
        )
    if settings.matrix < SMALLEST:
        raise RecipeError(
            f"A matrix of {settings.matrix} is too small for masks of up to"
            f" {ACCELERATIONS[1]:g}x ({key}), which leave it no centre.",
            f"Train at {SMALLEST} or more, or use --set {without}.",
        )


def _check_pair(settings: Settings) -> None:
    from kdmri_edge.models.initialisation import check_bridge, check_inherit

    recipe, teacher, student = settings.recipe, settings.teacher_spec, settings.student_spec
    relates = recipe.attention_steps and recipe.transfer is Transfer.RELATION
    if relates and teacher.width != student.width:
        raise RecipeError(
            f"The teacher has {teacher.width} feature maps, the student {student.width}; their"
            " relations cannot be compared.",
            "Pair networks of equal width, or use --set transfer=attention.",
        )
    if recipe.bridge:
        check_bridge(student, teacher)
    elif recipe.inherit:
        check_inherit(student, teacher)
    if not recipe.joint_steps:
        return
    remedy = "Use --set joint_steps=0."
    if settings.teacher_place is not None:
        raise RecipeError(
            "A finished teacher cannot be trained jointly with its student.",
            f"{remedy[:-1]}, or let this run train the teacher.",
        )
    if teacher.kind is not Kind.DCCNN or teacher.cascades != student.cascades:
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
