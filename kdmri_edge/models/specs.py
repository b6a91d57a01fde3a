"""What a network is: one typed specification and the named presets (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from kdmri_edge.errors import ModelError
from kdmri_edge.utils.suggest import nearest

__all__ = ["PRESETS", "Kind", "ModelSpec", "preset"]


class Kind(StrEnum):
    """Family of a network.

    Attributes:
        DCCNN: Cascades of convolutions, each followed by data consistency (Schlemper et al., TMI
            2018).
        VDSR: One stack of convolutions with a global residual (Kim et al., CVPR 2016), for
            super-resolution; no data consistency.
    """

    DCCNN = "dccnn"
    VDSR = "vdsr"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """The architecture of a network.

    Attributes:
        kind: Family.
        cascades: Number of cascades (1 for VDSR).
        convs: Convolutions per cascade.
        width: Feature maps of the hidden convolutions.
        kernel: Side of the square kernels, odd.
        dilation: Dilation of each convolution of a cascade, `convs` values for all cascades alike
            or `convs * cascades`, cascade by cascade.
        channels: 1 (magnitude) or 2 (real and imaginary parts).
        residual: Whether a cascade adds its input to its output before data consistency.
        attention_tap: The convolution (counted from 1) whose activations attention transfer reads.
        noise_weight: lambda of the data consistency; None enforces acquired samples exactly (with
            one channel half of a line whose mirror was not taken: `physics.operators`).
        coils: Whether data consistency is SENSE's (`physics.coils`), with coil sensitivities as
            a further input. It takes two channels, and enforces no sample exactly.
    """

    kind: Kind
    cascades: int
    convs: int
    width: int
    attention_tap: int
    kernel: int = 3
    dilation: tuple[int, ...] = ()
    channels: int = 1
    residual: bool = True
    noise_weight: float | None = None
    coils: bool = False

    def __post_init__(self) -> None:
        """Fill in the dilation and check every field.

        Raises:
            ModelError: A field is out of range; the message names it.
        """
        if not self.dilation:
            object.__setattr__(self, "dilation", (1,) * self.convs)
        object.__setattr__(self, "kind", Kind(self.kind))
        object.__setattr__(self, "dilation", tuple(self.dilation))
        checks = {
            "cascades": self.cascades >= 1,
            "convs": self.convs >= 2,
            "width": self.width >= 1,
            "kernel": self.kernel >= 1 and self.kernel % 2 == 1,
            "dilation": len(self.dilation) in (self.convs, self.convs * self.cascades)
            and min(self.dilation) >= 1,
            "channels": self.channels in (1, 2),
            "attention_tap": 1 <= self.attention_tap < self.convs,
            "noise_weight": self.noise_weight is None or self.noise_weight > 0,
            "coils": not self.coils or (self.channels == 2 and self.kind is Kind.DCCNN),
        }
        wrong = [name for name, good in checks.items() if not good]
        if wrong:
            raise ModelError(
                f"Model field {wrong[0]} = {getattr(self, wrong[0])!r} is out of range.",
                "See the fields of ModelSpec.",
            )

    @property
    def widths(self) -> list[tuple[int, int]]:
        """Input and output channels of each convolution of a cascade."""
        inner = [self.width] * (self.convs - 1)
        return list(zip([self.channels, *inner], [*inner, self.channels], strict=True))

    @property
    def magnitude_input(self) -> bool:
        """Whether it reads |x_u|: a magnitude network without data consistency (VDSR of KD-MRI).

        With data consistency it must be the real part of x_u, see `physics.operators`.
        """
        return self.kind is Kind.VDSR and self.channels == 1

    @property
    def parameters(self) -> int:
        """Number of trainable parameters, biases included."""
        per = sum(i * o * self.kernel**2 + o for i, o in self.widths)
        return per * self.cascades

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
            sampled: Lines m of the mask, by which SENSE chooses between P and its factor; None
                counts P.
            coils: Coils C, for SENSE.

        Returns:
            `{"convolutions": ..., "data_consistency": ...}`.
        """
        convolutions = sum(i * o for i, o in self.widths) * self.kernel**2 * height * width
        consistency = 0
        if self.kind is Kind.DCCNN:
            along_h = height * height * width
            along_w = height * width * width
            c = self.channels
            # forward and inverse, real and imaginary; a real image spares half of one each way
            separable = (2 * c + 2 * c) * along_h + 8 * along_w
            consistency = c * c * along_h if lines else separable
            if self.coils:
                if lines and sampled is not None:  # F_m and F_m^H, where that is cheaper than P
                    consistency = min(consistency, 2 * c * c * sampled * height * width)
                # beside the products, one complex multiplication by s and one by its conjugate
                consistency = coils * (consistency + 8 * height * width)
        return {
            "convolutions": convolutions * self.cascades,
            "data_consistency": consistency * self.cascades,
        }

    @property
    def receptive_radius(self) -> int:
        """How many pixels away a pixel of the input can act, convolutions alone."""
        every = (d for number in range(self.cascades) for d in self.dilation_of(number))
        return sum(d * (self.kernel // 2) for d in every)

    def dilation_of(self, cascade: int) -> tuple[int, ...]:
        """Return the dilation of each convolution of a cascade, counted from 0."""
        begin = 0 if len(self.dilation) == self.convs else cascade * self.convs
        return self.dilation[begin : begin + self.convs]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values.

        Without coils that key is left out, so that single-coil networks stay readable for older
        versions, and runs that these began go on.
        """
        value = {**asdict(self), "kind": str(self.kind), "dilation": list(self.dilation)}
        if not self.coils:
            del value["coils"]
        return value

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ModelSpec:
        """Rebuild a specification from `to_dict`.

        Raises:
            ModelError: Unknown or missing keys, or values out of range.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(value) - known)
        if unknown:
            raise ModelError(
                f"Model specification has the unknown key {unknown[0]!r}.",
                "It may come from a newer version: update kdmri-edge.",
            )
        try:
            return cls(**{**value, "dilation": tuple(value.get("dilation", ()))})
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"A model specification is damaged ({error}).", "Make the file again."
            ) from error


def _dccnn(convs: int, tap: int, *, channels: int = 1, coils: bool = False) -> ModelSpec:
    return ModelSpec(
        kind=Kind.DCCNN,
        cascades=5,
        convs=convs,
        width=32,
        attention_tap=tap,
        channels=channels,
        coils=coils,
    )


def _vdsr(convs: int, tap: int) -> ModelSpec:
    return ModelSpec(kind=Kind.VDSR, cascades=1, convs=convs, width=64, attention_tap=tap)


# Attention taps as in KD-MRI: conv 3 of 5 against conv 2 of 3; conv 6 of 11 against conv 4 of 7.
PRESETS: dict[str, ModelSpec] = {
    "dccnn-d5c5": _dccnn(5, 3),
    "dccnn-d3c5": _dccnn(3, 2),
    "dccnn-d5c5-complex": _dccnn(5, 3, channels=2),
    "dccnn-d3c5-complex": _dccnn(3, 2, channels=2),
    "dccnn-d5c5-sense": _dccnn(5, 3, channels=2, coils=True),
    "dccnn-d3c5-sense": _dccnn(3, 2, channels=2, coils=True),
    "vdsr-11": _vdsr(11, 6),
    "vdsr-7": _vdsr(7, 4),
}


def preset(name: str) -> ModelSpec:
    """Return a named architecture.

    Raises:
        ModelError: No preset has that name; the message suggests the nearest.
    """
    if name in PRESETS:
        return PRESETS[name]
    near = nearest(name, PRESETS)
    raise ModelError(
        f"There is no preset {name!r}; did you mean {near!r}?",
        f"Presets: {', '.join(PRESETS)}.",
    )
