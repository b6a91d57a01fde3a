"""What the rest of the library asks of a network's specification, and the table of families.

A network is known by its specification, a small immutable object without PyTorch: what it reads,
whether it has data consistency, what it costs. Nobody asks for its class. The module itself is
described in `models.network`.

A package brings a family of its own by an entry point of the group `kdmri_edge.networks`:

    SPEC = MySpec(width=16)
    FAMILY = NetworkFamily(
        name="my-network",
        from_dict=MySpec.from_dict,
        build="my_package.module:build",
        presets={"my-network-16": SPEC},
    )
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from kdmri_edge.errors import ModelError

__all__ = [
    "InputKind",
    "NetworkFamily",
    "NetworkSpec",
    "SpecDefaults",
    "consistency_macs",
    "holds_mask",
    "reads_coils",
    "same_input",
]


class InputKind(StrEnum):
    """What a network reads.

    Attributes:
        MAGNITUDE: Images of one channel: the real part of the zero-filled image where the network
            has data consistency (`physics.operators` says why), else its magnitude, as
            super-resolution takes it.
        COMPLEX: Zero-filled images of two channels, real and imaginary part.
        SENSE: Such images combined over coils, and the coils' sensitivities.
        KSPACE: What the coils measured, [B, coils, 2, H, W] (real and imaginary part): phase encode
            along H, zero frequency at index 0 of both axes, orthonormal, zero where not sampled,
            divided by the maximum of the root sum of squares of the coils' zero-filled images. The
            network gives magnitude images [B, 1, H, W] of that scale.
    """

    MAGNITUDE = "magnitude"
    COMPLEX = "complex"
    SENSE = "sense"
    KSPACE = "kspace"


@runtime_checkable
class NetworkSpec(Protocol):
    """The specification of a network. `SpecDefaults` derives the latter half of it."""

    @property
    def kind(self) -> str:
        """Name of its family, a key of `models.specs.NETWORKS`."""

    @property
    def reads(self) -> InputKind:
        """What its module is given."""

    @property
    def has_data_consistency(self) -> bool:
        """Whether its module uses the operator of data consistency that it is given."""

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""

    @property
    def receptive_radius(self) -> int | None:
        """How many pixels away a pixel of the input can act, but for data consistency.

        None for the whole image: it is then never trained on strips.
        """

    def macs(
        self,
        height: int,
        width: int,
        *,
        lines: bool = True,
        sampled: int | None = None,
        coils: int = 1,
    ) -> dict[str, int]:
        """Count multiply-accumulates for one image.

        Args:
            height: Phase-encode lines H.
            width: Readout samples W.
            lines: Count data consistency in projection form (line masks); otherwise as products
                with DFT matrices along both axes.
            sampled: Lines of the mask, by which SENSE chooses its form; None for any mask.
            coils: Coils, for SENSE.

        Returns:
            `{"convolutions": ..., "data_consistency": ...}`.
        """

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values of which the family's `from_dict` makes the specification.

        The key "kind" holds the family's name.
        """

    @property
    def channels(self) -> int:
        """Channels of its images: 1 (magnitude) or 2 (real and imaginary part)."""

    @property
    def coils(self) -> bool:
        """Whether it is given coil sensitivities."""

    @property
    def magnitude_input(self) -> bool:
        """Whether it reads |x_u|, as networks of one channel without data consistency do."""

    @property
    def cascades(self) -> int:
        """Number of images that its module's `features` shows, the last one being the output."""

    @property
    def noise_weight(self) -> float | None:
        """Noise weight lambda of its data consistency; None enforces acquired samples."""

    @property
    def attention_widths(self) -> tuple[int, ...]:
        """Feature maps of each tensor that its module shows for attention transfer; () for none."""

    @property
    def has_features_from(self) -> bool:
        """Whether its module has `features_from`, which goes on from the image of any cascade."""

    def layer_values(self, height: int, width: int) -> int:
        """Count the values that all its convolutions read and write for one image; 0: unknown."""

    def with_dilation(self, dilation: tuple[int, ...]) -> NetworkSpec:
        """Return the same architecture with dilated convolutions.

        Raises:
            ModelError: It has no such setting, or it does not take so many numbers.
        """


def same_input(one: NetworkSpec, other: NetworkSpec) -> bool:
    """Tell whether two networks are given the same of a scan, so that one can stand for both."""
    return (one.reads, one.magnitude_input) == (other.reads, other.magnitude_input)


def reads_coils(spec: NetworkSpec) -> bool:
    """Tell whether a network is given several coils: their sensitivities, or their k-space."""
    return spec.reads in (InputKind.SENSE, InputKind.KSPACE)


def holds_mask(spec: NetworkSpec) -> bool:
    """Tell whether the operator that a network is given is the mask itself, [H, 1] or [H, W].

    It then has data consistency of its own, and a graph of it is for that mask alone. Networks of
    k-space do, and others whose specification has a true attribute `holds_mask`.
    """
    return spec.reads is InputKind.KSPACE or bool(getattr(spec, "holds_mask", False))


class SpecDefaults:
    """The members of `NetworkSpec` that follow from the others, or rarely differ.

    Nothing of it may be repeated as a field of a dataclass, but as a property of one.
    """

    @property
    def channels(self) -> int:
        """Channels of its images, by what it reads."""
        return 1 if self._reads in (InputKind.MAGNITUDE, InputKind.KSPACE) else 2

    @property
    def coils(self) -> bool:
        """Whether it is given coil sensitivities, by what it reads."""
        return self._reads is InputKind.SENSE

    @property
    def magnitude_input(self) -> bool:
        """Whether it reads |x_u|."""
        has = bool(getattr(self, "has_data_consistency"))  # noqa: B009 - the class that mixes it in
        return self._reads is InputKind.MAGNITUDE and not has

    @property
    def cascades(self) -> int:
        """One image: the output."""
        return 1

    @property
    def noise_weight(self) -> float | None:
        """Acquired samples are enforced."""
        return None

    @property
    def attention_widths(self) -> tuple[int, ...]:
        """No tensors for attention transfer."""
        return ()

    @property
    def has_features_from(self) -> bool:
        """There is one image, so there is none to go on from."""
        return False

    def layer_values(self, height: int, width: int) -> int:
        """Nothing is known of its convolutions."""
        return 0

    def with_dilation(self, dilation: tuple[int, ...]) -> NetworkSpec:
        """Refuse: it has no dilation to set.

        Raises:
            ModelError: Always.
        """
        raise ModelError(
            f"A network of the family {getattr(self, 'kind', '')!r} takes no dilation.",
            "Use --set distillation.dilation=[].",
        )

    @property
    def _reads(self) -> InputKind:
        return InputKind(getattr(self, "reads"))  # noqa: B009 - of the class that mixes it in


def consistency_macs(
    height: int,
    width: int,
    channels: int,
    *,
    lines: bool,
    sampled: int | None = None,
    coils: int | None = None,
) -> int:
    """Count the multiply-accumulates of data consistency, once, for one image.

    Args:
        height: Phase-encode lines H.
        width: Readout samples W.
        channels: 1 or 2.
        lines: In projection form (line masks); otherwise products with DFT matrices, both axes.
        sampled: Lines m of the mask, by which SENSE chooses between P and its factor; None
            counts P.
        coils: Coils C, for SENSE; None for one image.
    """
    along_h = height * height * width
    along_w = height * width * width
    c = channels
    # forward and inverse, real and imaginary; a real image spares half of one each way
    separable = (2 * c + 2 * c) * along_h + 8 * along_w
    count = c * c * along_h if lines else separable
    if coils is None:
        return count
    if lines and sampled is not None:  # F_m and F_m^H, where that is cheaper than P
        count = min(count, 2 * c * c * sampled * height * width)
    # beside the products, one complex multiplication by s and one by its conjugate
    return coils * (count + 8 * height * width)


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkFamily:
    """Networks whose specifications are of one kind: a row of the table of networks.

    Attributes:
        name: The `kind` of its specifications.
        from_dict: Makes a specification of what its `to_dict` gave.
        build: Import string "module:function" of what makes the module, a `torch.nn.Module` with
            freshly drawn weights, of a specification.
        presets: Architectures by the name that a user gives.
        recipe: Recipe of a distillation where the user names none.
        recipe_of: Names the recipe for one specification, where they differ within the family.
        teachers: Other families whose networks that recipe learns from.
        first_weights: Name of the way in which weights are drawn, once that has changed: runs that
            were begun otherwise are not resumed. None for the first way.
    """

    name: str
    from_dict: Callable[[Mapping[str, Any]], NetworkSpec]
    build: str
    presets: Mapping[str, NetworkSpec] = field(default_factory=dict)
    recipe: str = "edge"
    recipe_of: Callable[[Any], str] | None = None
    teachers: frozenset[str] = frozenset()
    first_weights: str | None = None
