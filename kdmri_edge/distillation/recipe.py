"""What a distillation does: a typed recipe, shipped ones by name, others from a TOML file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Any, Final

from kdmri_edge.errors import RecipeError
from kdmri_edge.models.specs import Kind
from kdmri_edge.registry import Registry
from kdmri_edge.utils.config import build, override, read_toml

__all__ = [
    "LOSSES",
    "DistillRecipe",
    "ImageLoss",
    "Imitation",
    "Masks",
    "Precision",
    "Quantise",
    "Schedule",
    "Transfer",
    "default_recipe",
    "load_recipe",
    "overridden",
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


class Quantise(StrEnum):
    """Whether the student is tuned with the rounding of its int8 export, and of which one.

    INT8 is that of CPUs (unsigned behind ReLUs), INT8_SIGNED that of TensorRT.
    """

    NONE = "none"
    INT8 = "int8"
    INT8_SIGNED = "int8-signed"


class Transfer(StrEnum):
    """What of the tapped activations is transferred before imitation.

    ATTENTION is where they are large (KD-MRI), RELATION which of them go together: the products of
    all pairs of feature maps (Yim et al., CVPR 2017, within one layer).
    """

    ATTENTION = "attention"
    RELATION = "relation"


class Imitation(StrEnum):
    """Which images of the teacher the student imitates: the last, or each cascade's."""

    FINAL = "final"
    CASCADES = "cascades"


def _range(default: Any, minimum: float | None = None, maximum: float | None = None) -> Any:
    return field(default=default, metadata={"minimum": minimum, "maximum": maximum})


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillRecipe:
    """Settings of a distillation.

    The plain student gets as many optimiser steps as the distilled one in all its stages.

    Attributes:
        name: What to call it.
        teacher_steps: Optimiser steps of the teacher.
        joint_steps: Steps in which teacher and student are trained together before the rest of
            either's steps: chains that begin with cascades of the teacher and end with the
            student's, each taught by the image and by the teacher
            (`distillation.losses`; SFT-KD-Recon, MIDL 2023). They count as steps of both, and
            the student goes on from them, whatever `inherit` and `bridge` say.
        attention_steps: Steps of attention transfer.
        transfer: What that transfers.
        imitation_steps: Steps of reconstruction and imitation.
        batch: Strips per step, over all processes.
        shards: Equal parts of the batch whose gradients are computed one after the other and
            averaged. The result does not depend on how many processes share them, to the last bit
            where their number is a power of two; it also bounds memory. With 1, as many as there
            are processes.
        strip: Readout columns of a strip; data consistency on it is exact.
        whole_slices: Last fraction of each stage that sees whole slices instead of strips (as many
            pixels per step), since the convolutions see a false edge at a strip's border.
        learning_rate: Peak rate of Adam.
        schedule: Course of the rate after the warm-up.
        warmup: Steps of linear warm-up.
        final_rate: Rate at the end of a cosine, as a fraction of the peak.
        clip: Largest norm of the gradient.
        ema: Decay of the running average of the weights that each network ends with; 0 keeps the
            last weights.
        loss: Distance used for reconstruction and imitation, a name of `LOSSES`.
        alpha: Weight of reconstruction; 1 - alpha is imitation's.
        imitation: Which images are imitated.
        imitation_until: First part of the stage of imitation in which the student imitates; then it
            learns from the reconstruction loss alone. A small network that must follow its teacher
            to the end is held back from what it could reach by itself.
        other_masks: Part of the steps of the stage of imitation that see another line mask each;
            while the student imitates, also with the teacher's images of what that samples.
        noise: Largest standard deviation of the noise that is added to what the stage of imitation
            samples, relative to a slice's scale, drawn anew at every step (`distillation.batches`);
            while the student imitates, with the teacher's images of that. The targets stay clean.
        dilation: Dilation of the student's convolutions, for all cascades alike or cascade by
            cascade; empty leaves the preset's.
        inherit: Start the student with the teacher's first and last convolutions of each cascade.
        bridge: Start it with all but its middle convolution from the teacher, and that one fitted
            to what it replaces (`models.initialisation`); it takes seconds, and no optimiser step.
        reparameterise: Train both students with parallel branches that are folded into their
            convolutions when they are saved (`models.reparameterisation`).
        reparameterise_teacher: The same for the teacher.
        quantise: Tune a copy of the finished student with int8 rounding
            (`quantisation.fake_quantisation`).
        quantise_steps: Optimiser steps of that, on whole slices, against the float student.
        quantise_rate: Its peak learning rate, as a fraction of `learning_rate`.
        masks: Which masks the networks are trained for (`distillation.batches`).
        flip: Mirror strips along readout at random (line masks only).
        precision: Arithmetic of the convolutions.
        seed: Seed of weights and batches.
        validate_every: Steps between validations.
        checkpoint_every: Steps between checkpoints to resume from.
        phantom_volumes: Training volumes that are made when the data is the phantom.
        phantom_slices: Slices of each of these.
    """

    name: str
    teacher_steps: int = _range(4000, 0)
    joint_steps: int = _range(0, 0)
    attention_steps: int = _range(1000, 0)
    transfer: Transfer = Transfer.ATTENTION
    imitation_steps: int = _range(3000, 1)
    batch: int = _range(8, 1)
    shards: int = _range(1, 1)
    strip: int = _range(60, 8)
    whole_slices: float = _range(0.25, 0.0, 1.0)
    learning_rate: float = _range(2e-3, 1e-8, 1.0)
    schedule: Schedule = Schedule.COSINE
    warmup: int = _range(100, 0)
    final_rate: float = _range(0.01, 0.0, 1.0)
    clip: float = _range(1.0, 1e-6)
    ema: float = _range(0.0, 0.0, 0.99999)
    loss: str = "l1"
    alpha: float = _range(0.5, 0.0, 1.0)
    imitation: Imitation = Imitation.FINAL
    imitation_until: float = _range(1.0, 0.0, 1.0)
    other_masks: float = _range(0.0, 0.0, 1.0)
    noise: float = _range(0.0, 0.0, 1.0)
    dilation: tuple[int, ...] = ()
    inherit: bool = False
    bridge: bool = False
    reparameterise: bool = False
    reparameterise_teacher: bool = False
    quantise: Quantise = Quantise.NONE
    quantise_steps: int = _range(100, 1)
    quantise_rate: float = _range(0.2, 1e-6, 1.0)
    masks: Masks = Masks.OWN
    flip: bool = True
    precision: Precision = Precision.AUTO
    seed: int = _range(0, 0)
    validate_every: int = _range(500, 1)
    checkpoint_every: int = _range(250, 1)
    phantom_volumes: int = _range(24, 3)
    phantom_slices: int = _range(16, 1)

    def __post_init__(self) -> None:
        """Check the loss, which may be another package's.

        Raises:
            RecipeError: There is none of that name.
        """
        LOSSES.named(self.loss)

    @property
    def student_steps(self) -> int:
        """Optimiser steps of the distilled student, and so of the plain one."""
        return self.joint_steps + self.attention_steps + self.imitation_steps

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {k: _plain(v) for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str) -> DistillRecipe:
        """Build and check a recipe.

        Raises:
            RecipeError: Unknown key, wrong type or value out of range.
        """
        return build(cls, values, source)


def _plain(value: Any) -> Any:
    if isinstance(value, StrEnum):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def shipped() -> list[str]:
    """Return the names of the recipes inside the package."""
    folder = resources.files("kdmri_edge.distillation") / "recipes"
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".toml"))


def default_recipe(kind: Kind) -> str:
    """Return the name of the recipe for a family of networks where the user names none."""
    return "edge-sr" if kind is Kind.VDSR else "edge"


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
        values = {"name": path.stem, **read_toml(path)}
        source = str(path)
    return DistillRecipe.from_dict(override(values, assignments), source)


def overridden(recipe: DistillRecipe, assignments: Iterable[str]) -> DistillRecipe:
    """Apply `key=value` assignments to a recipe.

    Raises:
        RecipeError: Unknown key or bad value.
    """
    return DistillRecipe.from_dict(override(recipe.to_dict(), assignments), "--set")
