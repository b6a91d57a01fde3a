"""What a distillation does: a typed recipe, shipped ones by name, others from a TOML file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Final

from kdmri_edge.errors import RecipeError
from kdmri_edge.models.protocol import NetworkSpec
from kdmri_edge.models.specs import NETWORKS
from kdmri_edge.registry import Registry
from kdmri_edge.utils.config import build, nested, override, plain, read_toml, rename
from kdmri_edge.utils.console import say

__all__ = [
    "ACCELERATIONS",
    "FORMER_KEYS",
    "LOSSES",
    "Batches",
    "DistillRecipe",
    "Distillation",
    "ImageLoss",
    "Imitation",
    "Insertion",
    "Masks",
    "Matrix",
    "Optim",
    "Precision",
    "Qat",
    "Quantize",
    "Schedule",
    "Transfer",
    "default_recipe",
    "former_key",
    "load_recipe",
    "overridden",
    "recipe_value",
    "shipped",
]


class Precision(StrEnum):
    """Arithmetic of the convolutions in training; data consistency is always float32."""

    AUTO = "auto"
    BF16 = "bf16"
    F32 = "f32"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLoss:
    """A distance between images that a recipe can name.

    Attributes:
        name: What recipes call it.
        distance: Import string "module:function" of the distance: from two float32 tensors
            [B, C, H, W] (image, target) to their distance, the mean over images.
    """

    name: str
    distance: str


LOSSES: Final = Registry(
    "kdmri_edge.losses",
    ImageLoss,
    "loss",
    {
        name: ImageLoss(name=name, distance=f"kdmri_edge.distillation.losses:{function}")
        for name, function in {
            "l1": "absolute_difference",
            "mse": "squared_difference",
            "l1-ssim": "absolute_difference_and_ssim",
        }.items()
    },
    error=RecipeError,
)
"""Mean absolute and squared difference, the first one with SSIM, and those of other packages."""


ACCELERATIONS: Final = (3.0, 9.0)
"""Nominal accelerations that training over line masks draws from, uniformly."""


class Optimizer(StrEnum):
    """What moves the weights.

    ADAM moves every weight by about the same amount (Kingma and Ba, ICLR 2015), MUON every
    direction of a layer's weights (Jordan et al., 2024; `distillation.optimizers`). For
    dccnn-edge-half Muon takes a rate of 3e-3 where Adam takes 1e-3.
    """

    ADAM = "adam"
    MUON = "muon"


class Schedule(StrEnum):
    """Course of the learning rate within a stage, after the warm-up.

    STEP is that of KD-MRI's published code: divided by ten after 40, 80 and 120 of 150 epochs.
    """

    CONSTANT = "constant"
    COSINE = "cosine"
    STEP = "step"


class Masks(StrEnum):
    """Which masks a training sees: the run's own, or another line mask at every step."""

    OWN = "own"
    LINES = "lines"


class Quantize(StrEnum):
    """Whether the student is tuned with the rounding of its int8 export, and of which one.

    INT8 is that of CPUs (unsigned behind ReLUs), INT8_SIGNED that of TensorRT.
    """

    NONE = "none"
    INT8 = "int8"
    INT8_SIGNED = "int8-signed"


class Transfer(StrEnum):
    """What of the tapped activations is transferred.

    ATTENTION is where they are large (KD-MRI), RELATION which of them go together: the products of
    all pairs of feature maps (Yim et al., CVPR 2017, within one layer), FEATURES the maps
    themselves (Romero et al., FitNets, ICLR 2015, at unit norm per image).
    """

    ATTENTION = "attention"
    RELATION = "relation"
    FEATURES = "features"


class Imitation(StrEnum):
    """Which images of the teacher the student imitates: the last, or those of the cascades.

    Where the two have different numbers of cascades, the fewer are spread evenly over the more, the
    last one upon the last.
    """

    FINAL = "final"
    CASCADES = "cascades"


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix that a training sees: a number for a square, or [H, W].

    Attributes:
        height: Phase-encode lines H.
        width: Readout samples W.
    """

    height: int
    width: int

    words: ClassVar[str] = "whole numbers or pairs [H, W]"

    @classmethod
    def read(cls, value: object) -> Matrix:
        """Make one of what a recipe holds.

        Raises:
            ValueError: It is neither a number nor a pair of numbers, or below 16.
        """
        if isinstance(value, Matrix):
            return value
        pair = value if isinstance(value, list | tuple) else [value, value]
        whole = all(isinstance(side, int) and not isinstance(side, bool) for side in pair)
        if len(pair) != 2 or not whole or min(pair) < _SMALLEST_SIDE:
            raise ValueError(f"Give numbers from {_SMALLEST_SIDE} on, e.g. [192, 240, [256, 208]].")
        return cls(*pair)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.height, self.width

    def plain(self) -> int | list[int]:
        """Return what a recipe holds."""
        return self.height if self.height == self.width else [self.height, self.width]

    def __str__(self) -> str:
        return f"{self.height} x {self.width}"


_SMALLEST_SIDE: Final = 16


def _range(default: Any, minimum: float | None = None, maximum: float | None = None) -> Any:
    return field(default=default, metadata={"minimum": minimum, "maximum": maximum})


@dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    """How weights are optimised, of teacher and students alike.

    Attributes:
        optimizer: What moves the weights.
        learning_rate: Peak learning rate of the optimizer.
        schedule: Course of the learning rate after the warm-up.
        warmup: Steps of linear warm-up.
        final_rate: Learning rate at the end of a cosine, as a fraction of the peak.
        clip: Largest norm of the gradient; a longer one is scaled to it.
        ema: Decay per step of the running average of the weights that each network ends with; 0
            keeps the last weights.
        loss: Distance between images that is minimised, of reconstruction and of imitation; a
            name of `LOSSES`.
        reparameterise: Train both students with parallel branches that are fused into their
            convolutions when they are saved (`models.reparameterisation`).
        reparameterise_teacher: The same for the teacher.
    """

    optimizer: Optimizer = Optimizer.ADAM
    learning_rate: float = _range(2e-3, 1e-8, 1.0)
    schedule: Schedule = Schedule.COSINE
    warmup: int = _range(100, 0)
    final_rate: float = _range(0.01, 0.0, 1.0)
    clip: float = _range(1.0, 1e-6)
    ema: float = _range(0.0, 0.0, 0.99999)
    loss: str = "l1"
    reparameterise: bool = False
    reparameterise_teacher: bool = False

    def __post_init__(self) -> None:
        """Check the loss, which may be another package's.

        Raises:
            RecipeError: There is none of that name.
        """
        LOSSES.named(self.loss)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batches:
    """What a step trains on.

    Attributes:
        size: Strips per step, over all processes.
        shards: Equal parts of the batch whose gradients are computed one after the other and
            averaged. The result does not depend on how many processes share them, to the last bit
            where their number is a power of two; more shards need less memory. With 1, as many as
            there are processes.
        strip: Readout columns of a strip; data consistency on it is exact.
        whole_slices: Last fraction of each stage that sees whole slices instead of strips (as many
            pixels per step), since the convolutions see a false edge at a strip's border.
        flip: Mirror strips along readout at random (line masks only).
        matrices: Matrices that the training volumes are resampled to, of which every step sees
            one: numbers, or pairs [H, W]; empty for the run's own alone. Volumes that are smaller
            than one of them are left out there. With the run's own mask, others are drawn like it.
        masks: Which masks the networks are trained for: the run's own, or another line mask at
            every step.
        other_masks: Fraction of the steps of the imitation stage that see another line mask each;
            while the student imitates, also with the teacher's images of what that samples.
        noise: Largest standard deviation of the noise that is added to what the imitation stage
            samples, relative to a slice's scale, with a new strength at every step; the targets
            stay clean.
    """

    size: int = _range(8, 1)
    shards: int = _range(1, 1)
    strip: int = _range(60, 8)
    whole_slices: float = _range(0.25, 0.0, 1.0)
    flip: bool = True
    matrices: tuple[Matrix, ...] = ()
    masks: Masks = Masks.OWN
    other_masks: float = _range(0.0, 0.0, 1.0)
    noise: float = _range(0.0, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Insertion:
    """Small structures that training images are given, so that networks learn to keep such things.

    A mean over pixels hardly sees a lesion of ten of them, and a network that has met few flattens
    them. Teacher, plain and distilled student are given the same ones at the same step. The images
    are undersampled with them, so they take a line mask and networks with data consistency; copies
    that are tuned for int8 see the images as they are.

    Attributes:
        share: Part of the images of a step that are given structures; 0 leaves all as they are.
        most: Largest number of structures in a strip, drawn uniformly from 1 on; in a whole slice
            as many times more as it is wider.
        smallest: Smallest diameter, in pixels; diameters are drawn uniformly in their logarithm.
        largest: Largest diameter, in pixels.
        contrast: Largest contrast, as a fraction of the intensity that is there: uniformly drawn
            from darker by it to brighter by it.
        contrast_weight: Weight of the mean error in contrast of the inserted structures, each
            against a ring around it, beside the distance between images.
    """

    share: float = _range(0.0, 0.0, 1.0)
    most: int = _range(4, 1, 64)
    smallest: float = _range(2.0, 1.0, 64.0)
    largest: float = _range(10.0, 1.0, 64.0)
    contrast: float = _range(0.6, 0.0, 1.0)
    contrast_weight: float = _range(0.0, 0.0)

    def __post_init__(self) -> None:
        """Compare the diameters.

        Raises:
            RecipeError: The smallest is above the largest.
        """
        if self.smallest > self.largest:
            raise RecipeError(
                f"The smallest structure that is inserted ({self.smallest:g} pixels) is larger than"
                f" the largest ({self.largest:g}).",
                "Set insertion.smallest to insertion.largest at most.",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Distillation:
    """How the student learns from its teacher, and what it starts from.

    Attributes:
        transfer: What attention_steps transfer of the activations, and taps compare.
        taps: Modules whose outputs are compared, the student's name = the teacher's, as
            `kdmri-edge models NETWORK` lists them; with NAME#2 the second call of one that is
            called several times, else the last. Given, attention_steps transfer these. A learned
            1x1 projection fits the student's width to the teacher's, where transfer is not
            attention and they differ; it is not part of the finished student.
        taps_weight: Weight of what transfer compares at the taps, beside reconstruction and
            imitation while the student imitates.
        alpha: Weight of the reconstruction loss; 1 - alpha is that of the imitation loss.
        imitation: Which images of the teacher are imitated: the last, or each cascade's. As
            magnitudes, where one of the two networks gives magnitudes.
        imitation_until: First fraction of the imitation stage in which the student imitates; then
            it learns from the reconstruction loss alone. A small network that must follow its
            teacher to the end is held back from what it could reach by itself.
        dilation: Dilation of the student's convolutions in pixels, for all cascades alike or
            cascade by cascade; empty leaves the preset's.
        inherit: Start the student with the teacher's first and last convolutions of each cascade.
        bridge: Start it with all but its middle convolution from the teacher, and that one fitted
            to the convolutions that it replaces (`models.initialisation`), in seconds.
    """

    transfer: Transfer = Transfer.ATTENTION
    taps: dict[str, str] = field(default_factory=dict)
    taps_weight: float = _range(0.01, 0.0)
    alpha: float = _range(0.5, 0.0, 1.0)
    imitation: Imitation = Imitation.FINAL
    imitation_until: float = _range(1.0, 0.0, 1.0)
    dilation: tuple[int, ...] = ()
    inherit: bool = False
    bridge: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Qat:
    """Quantisation-aware training of a copy of the finished student (`quantisation.tuning`).

    Attributes:
        quantize: Rounding that the copy is tuned with: that of int8 exports for CPUs, or of those
            for TensorRT (int8-signed).
        steps: Optimiser steps, on whole slices.
        rate: Peak learning rate, as a fraction of optim.learning_rate.
        alpha: Weight of the reconstruction loss (as optim.loss has it, of which "mse" is a square
            and so hardly counts); 1 - alpha is that of what the copy is off from the float student,
            as the root of the mean square. Before there was alpha, copies imitated alone, by the
            mean absolute difference.
        float_layers: Layers of the copy that are not rounded, and stay in float32 in its exports:
            their names, or patterns of them as in a shell (`kdmri-edge models NETWORK` lists the
            names).
        fine_layers: Convolutions of the copy that are given all that they read in two parts, as an
            image is (`quantisation.scheme`): twelve bits for eight, and twice the products, and the
            convolution before computes in float in some runtimes; named in the same way. Copies for
            TensorRT are given feature maps beside an image so in any case.
    """

    quantize: Quantize = Quantize.NONE
    steps: int = _range(500, 1)
    rate: float = _range(0.3, 1e-6, 1.0)
    alpha: float = _range(0.35, 0.0, 1.0)
    float_layers: tuple[str, ...] = ()
    fine_layers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillRecipe:
    """Settings of a distillation.

    The plain student gets as many optimiser steps as the distilled one in all its stages.

    Attributes:
        name: What to call the recipe.
        teacher_steps: Optimiser steps of the teacher.
        joint_steps: Optimiser steps in which teacher and student are trained together first
            (SFT-KD-Recon, MIDL 2023; `distillation.losses`). They count as steps of both, and the
            student goes on from them, whatever `inherit` and `bridge` say.
        attention_steps: Optimiser steps of attention transfer.
        imitation_steps: Optimiser steps of reconstruction and imitation.
        precision: Arithmetic of the convolutions; auto is bf16 where the device has it.
        seed: Seed of weights and batches.
        validate_every: Steps between validations.
        checkpoint_every: Steps between checkpoints to resume from.
        phantom_volumes: Volumes that are made when the data is the phantom.
        phantom_slices: Slices of each of these.
        optim: How weights are optimised.
        batches: What a step trains on.
        insertion: Small structures that training images are given.
        distillation: How the student learns from its teacher.
        qat: Quantisation-aware training of a copy of the student.
    """

    name: str
    teacher_steps: int = _range(4000, 0)
    joint_steps: int = _range(0, 0)
    attention_steps: int = _range(1000, 0)
    imitation_steps: int = _range(3000, 1)
    precision: Precision = Precision.AUTO
    seed: int = _range(0, 0)
    validate_every: int = _range(500, 1)
    checkpoint_every: int = _range(250, 1)
    phantom_volumes: int = _range(24, 3)
    phantom_slices: int = _range(16, 1)
    optim: Optim = field(default_factory=Optim)
    batches: Batches = field(default_factory=Batches)
    insertion: Insertion = field(default_factory=Insertion)
    distillation: Distillation = field(default_factory=Distillation)
    qat: Qat = field(default_factory=Qat)

    @property
    def student_steps(self) -> int:
        """Optimiser steps of the distilled student, and so of the plain one."""
        return self.joint_steps + self.attention_steps + self.imitation_steps

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, a table for each group."""
        return nested(plain(self))

    def flat(self) -> dict[str, Any]:
        """Return plain JSON values by the keys of version 0.1, which had no groups.

        Fingerprints of runs are made of these, so that runs of that version can be resumed.
        """
        return {former_key(key): value for key, value in plain(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str) -> DistillRecipe:
        """Build and check a recipe.

        Args:
            values: By key, in tables or flat, by today's names or those of version 0.1.
            source: What to call their origin in messages.

        Raises:
            RecipeError: Unknown key, wrong type or value out of range.
        """
        renamed, _ = rename(cls, values, FORMER_KEYS, source)
        return build(cls, renamed, source, other_words=_OTHER_WORDS, listing=LISTING)


FORMER_KEYS: Final = {
    **{
        key: f"optim.{key}"
        for key in (
            "learning_rate",
            "schedule",
            "warmup",
            "final_rate",
            "clip",
            "ema",
            "loss",
            "reparameterise",
            "reparameterise_teacher",
        )
    },
    "batch": "batches.size",
    **{
        key: f"batches.{key}"
        for key in ("shards", "strip", "whole_slices", "flip", "masks", "other_masks", "noise")
    },
    **{
        key: f"distillation.{key}"
        for key in (
            "transfer",
            "alpha",
            "imitation",
            "imitation_until",
            "dilation",
            "inherit",
            "bridge",
        )
    },
    "quantise": "qat.quantize",
    "quantise_steps": "qat.steps",
    "quantise_rate": "qat.rate",
}
"""Today's keys by those of version 0.1."""

_TODAYS_KEYS: Final = {today: former for former, today in FORMER_KEYS.items()}


def former_key(key: str) -> str:
    """Return what version 0.1 calls a key."""
    return _TODAYS_KEYS.get(key, key)


# Keys that are tables, whose entries are keys of their own after --set.
_TABLES: Final = ("distillation.taps",)

LISTING: Final = "kdmri-edge distill --list-keys"
"""Command that shows all keys of a recipe."""

# What other programs call them.
_OTHER_WORDS: Final = {
    "optimiser": "optim.optimizer",
    "optimizer": "optim.optimizer",
    "lr": "optim.learning_rate",
    "lr_scheduler": "optim.schedule",
    "scheduler": "optim.schedule",
    "warmup_steps": "optim.warmup",
    "grad_clip": "optim.clip",
    "gradient_clip_val": "optim.clip",
    "criterion": "optim.loss",
    "bs": "batches.size",
    "batch_size": "batches.size",
    "grad_accum": "batches.shards",
    "patch_size": "batches.strip",
    "crop": "batches.strip",
    "augment": "batches.flip",
    "epochs": "imitation_steps",
    "steps": "imitation_steps",
    "max_steps": "imitation_steps",
    "iterations": "imitation_steps",
    "teacher_epochs": "teacher_steps",
    "dtype": "precision",
    "amp": "precision",
    "random_seed": "seed",
    "val_every": "validate_every",
    "save_every": "checkpoint_every",
    "quantize": "qat.quantize",
    "quantization": "qat.quantize",
    "quantize_steps": "qat.steps",
    "quantize_rate": "qat.rate",
}


def recipe_value(stored: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """Return one value of a recipe as a file holds it, of this version or of 0.1.

    Args:
        stored: The recipe of a run.json or of a checkpoint.
        key: Today's key, e.g. "qat.quantize".
        default: What to return where the file says nothing.
    """
    group, _, name = key.rpartition(".")
    table = stored.get(group, {}) if group else stored
    if isinstance(table, Mapping) and name in table:
        return table[name]
    return stored.get(former_key(key), default)


def shipped() -> list[str]:
    """Return the names of the recipes inside the package."""
    folder = resources.files("kdmri_edge.distillation") / "recipes"
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".toml"))


def default_recipe(student: NetworkSpec) -> str:
    """Return the name of the recipe for a student where the user names none."""
    family = NETWORKS.named(student.kind)
    return family.recipe if family.recipe_of is None else family.recipe_of(student)


def load_recipe(name_or_file: str, assignments: Iterable[str] = ()) -> DistillRecipe:
    """Load a shipped recipe by name, or any TOML file, and apply `key=value` assignments.

    Raises:
        RecipeError: No such recipe, invalid TOML, unknown key or bad value.
    """
    if name_or_file in shipped():
        with resources.as_file(
            resources.files("kdmri_edge.distillation") / "recipes" / f"{name_or_file}.toml"
        ) as path:
            values = read_toml(path)
        source = f"recipe {name_or_file!r}"
    else:
        path = Path(name_or_file)
        if not path.is_file():
            raise RecipeError(
                f"There is no recipe {name_or_file!r}.",
                f"Shipped ones are {', '.join(shipped())}; or give a TOML file.",
            )
        values = {"name": path.stem, **_todays(read_toml(path), str(path))}
        source = str(path)
    return overridden(DistillRecipe.from_dict(values, source), assignments)


def overridden(recipe: DistillRecipe, assignments: Iterable[str]) -> DistillRecipe:
    """Apply `key=value` assignments to a recipe.

    Raises:
        RecipeError: Unknown key or bad value.
    """
    changes = _todays(override({}, assignments, tables=_TABLES), "--set")
    return DistillRecipe.from_dict({**plain(recipe), **changes}, "--set")


def _todays(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return what a user wrote by today's keys; say so where others were used."""
    renamed, used = rename(DistillRecipe, values, FORMER_KEYS, source)
    if used:
        pairs = ", ".join(f"{old} is now {new}" for old, new in used.items())
        say(f"Note: keys of {source} have new names, and still work: {pairs}.")
    return renamed
