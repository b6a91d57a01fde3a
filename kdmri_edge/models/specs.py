"""The specification of DC-CNN and VDSR, and the table of all families with their presets.

Everything here is free of PyTorch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral
from typing import Any, Final

from kdmri_edge.errors import ModelError
from kdmri_edge.models.code import CODE, CodeSpec, read_arguments
from kdmri_edge.models.protocol import (
    InputKind,
    NetworkFamily,
    NetworkSpec,
    SpecDefaults,
    consistency_macs,
)
from kdmri_edge.registry import Registry
from kdmri_edge.utils.suggest import nearest

__all__ = [
    "CARRYING",
    "DCCNN",
    "NETWORKS",
    "PRESETS",
    "VDSR",
    "ModelSpec",
    "describe_spec",
    "described_spec",
    "preset",
    "preset_of",
    "spec_from_dict",
]


DCCNN: Final = "dccnn"
"""Cascades of convolutions, each followed by data consistency (Schlemper et al., TMI 2018)."""

CARRYING: Final = "dccnn-carrying"
"""DC-CNN whose cascades hand feature maps on past data consistency, and read the zero-filled image.

They may compute at a lower resolution than the image's.
"""

VDSR: Final = "vdsr"
"""One stack of convolutions with a global residual, for super-resolution; no data consistency.

Kim et al., CVPR 2016.
"""


_LATER: Final = {
    "coils": False,
    "carried": 0,
    "shows_zero_filled": False,
    "shuffle": 1,
    "solver_steps": 0,
    "solver_weight": 0.1,
}
"""Fields that came after version 1 of the format, and their values where they are not used."""

_MANY, _WIDE, _SOLVED = 256, 1 << 16, 16
_LIGHTEST, _HEAVIEST = 1e-3, 10  # below, more steps of a solver would be needed than are allowed

_OF_CARRYING: Final = f"only networks of kind {CARRYING!r} have another"
_OF_COILS: Final = "only networks of several coils (coils true) have another"

_RANGES: Final = {
    "kind": f"one of {DCCNN}, {CARRYING} and {VDSR}",
    "cascades": f"a number from 1 to {_MANY}",
    "convs": f"a number from 2 to {_MANY}",
    "width": f"a number from 1 to {_WIDE}",
    "kernel": f"an odd number from 1 to {_MANY - 1}",
    "dilation": f"from 1 to {_WIDE} for each convolution, of one cascade or of all cascades",
    "channels": "1 or 2",
    "attention_tap": "a convolution, counted from 1, before the last one",
    "residual": "true or false",
    "noise_weight": "above 0, or none",
    "coils": f"false, save for networks of 2 channels whose kind is not {VDSR!r}",
    "carried": f"0, or a number up to {_WIDE}: {_OF_CARRYING}",
    "shows_zero_filled": f"false: {_OF_CARRYING}",
    "shuffle": f"1, or a number up to {_MANY}: networks of kind {DCCNN!r} have no other",
    "solver_steps": f"0, or a number up to {_SOLVED}: {_OF_COILS}",
    "solver_weight": f"from {_LIGHTEST} to {_HEAVIEST}; only networks of several coils read it",
}
"""What each field may be, as a message says it."""


def _is_whole(value: object, least: int, most: int) -> bool:
    """Tell whether a value that a file may have brought is a whole number within bounds."""
    return (
        isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) <= most
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """The architecture of a network made of equal stacks of convolutions: DC-CNN or VDSR.

    Attributes:
        kind: Family, "dccnn", "dccnn-carrying" or "vdsr".
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
        carried: Feature maps that each cascade hands to the next one beside its image, past data
            consistency.
        shows_zero_filled: Whether every cascade reads the zero-filled image as well.
        shuffle: Factor f by which images become smaller, with f^2 times the channels, before the
            convolutions of a cascade or of VDSR (pixel unshuffle, Shi et al., CVPR 2016), and
            larger after them.
        solver_steps: Steps by which SENSE's data consistency is solved after the last cascade
            (`models.dccnn.DCCNN`), where one step of a gradient leaves much of the aliasing of
            low frequencies; 0 for none. Networks with `coils` alone.
        solver_weight: What the image of the cascades weighs there against the acquired samples.
            Networks without `coils` do not read it.
    """

    kind: str
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
    carried: int = 0
    shows_zero_filled: bool = False
    shuffle: int = 1
    solver_steps: int = 0
    solver_weight: float = 0.1

    def __post_init__(self) -> None:
        """Fill in the dilation and check every field.

        Raises:
            ModelError: A field is out of range; the message names it and what it may be.
        """
        if not self.dilation:
            object.__setattr__(self, "dilation", (1,) * self.convs)
        object.__setattr__(self, "dilation", tuple(self.dilation))
        checks = {
            "kind": self.kind in (DCCNN, CARRYING, VDSR),
            # the upper ends are far above any network: a damaged file may name any number
            "cascades": _is_whole(self.cascades, 1, _MANY),
            "convs": _is_whole(self.convs, 2, _MANY),
            "width": _is_whole(self.width, 1, _WIDE),
            "kernel": _is_whole(self.kernel, 1, _MANY - 1) and self.kernel % 2 == 1,
            "dilation": len(self.dilation) in (self.convs, self.convs * self.cascades)
            and all(_is_whole(one, 1, _WIDE) for one in self.dilation),
            "channels": _is_whole(self.channels, 1, 2),
            "attention_tap": _is_whole(self.attention_tap, 1, self.convs - 1),
            "residual": isinstance(self.residual, bool),
            "noise_weight": self.noise_weight is None or self.noise_weight > 0,
            "coils": isinstance(self.coils, bool)
            and (not self.coils or (self.channels == 2 and self.kind != VDSR)),
            "carried": _is_whole(self.carried, 0, _WIDE if self.kind == CARRYING else 0),
            "shows_zero_filled": isinstance(self.shows_zero_filled, bool)
            and (not self.shows_zero_filled or self.kind == CARRYING),
            "shuffle": _is_whole(self.shuffle, 1, 1 if self.kind == DCCNN else _MANY),
            "solver_steps": _is_whole(self.solver_steps, 0, _SOLVED if self.coils else 0),
            "solver_weight": _LIGHTEST <= self.solver_weight <= _HEAVIEST,
        }
        wrong = [name for name, good in checks.items() if not good]
        if wrong:
            raise ModelError(
                f"Model field {wrong[0]} = {getattr(self, wrong[0])!r} is out of range.",
                f"{wrong[0]} has to be {_RANGES[wrong[0]]}.",
            )

    def widths_of(self, cascade: int) -> list[tuple[int, int]]:
        """Return input and output channels of each convolution of a cascade, counted from 0.

        The first cascade reads the zero-filled image once and no carried maps, and the last one
        writes none.
        """
        image = self.channels * self.shuffle**2
        read = written = image
        if cascade > 0:
            read += image * self.shows_zero_filled + self.carried
        if cascade + 1 < self.cascades:
            written += self.carried
        inner = [self.width] * (self.convs - 1)
        return list(zip([read, *inner], [*inner, written], strict=True))

    @property
    def _products(self) -> int:
        """Input times output channels, summed over all convolutions."""
        return sum(i * o for number in range(self.cascades) for i, o in self.widths_of(number))

    @property
    def reads(self) -> InputKind:
        """What its module is given."""
        if self.channels == 1:
            return InputKind.MAGNITUDE
        return InputKind.SENSE if self.coils else InputKind.COMPLEX

    @property
    def has_data_consistency(self) -> bool:
        """Whether each cascade ends with data consistency."""
        return self.kind != VDSR

    @property
    def magnitude_input(self) -> bool:
        """Whether it reads |x_u|: a magnitude network without data consistency (VDSR of KD-MRI).

        With data consistency it must be the real part of x_u, see `physics.operators`.
        """
        return not self.has_data_consistency and self.channels == 1

    @property
    def attention_widths(self) -> tuple[int, ...]:
        """Feature maps of the tapped activations of each cascade."""
        return (self.width,) * self.cascades

    @property
    def has_features_from(self) -> bool:
        """Whether its module can go on from the image of any cascade."""
        return self.has_data_consistency and not self.carried

    def layer_values(self, height: int, width: int) -> int:
        """Count the values that all convolutions read and write for one image."""
        values = sum(i + o for number in range(self.cascades) for i, o in self.widths_of(number))
        return values * height * width // self.shuffle**2

    def with_dilation(self, dilation: tuple[int, ...]) -> ModelSpec:
        """Return the same architecture with dilated convolutions.

        Args:
            dilation: One number a convolution, for all cascades alike or cascade by cascade.

        Raises:
            ModelError: Another number of numbers.
        """
        if len(dilation) not in (self.convs, self.convs * self.cascades):
            raise ModelError(
                f"A dilation of {len(dilation)} numbers does not suit a network of {self.convs}"
                " convolutions.",
                f"Give {self.convs} numbers, or {self.convs * self.cascades} for each cascade its"
                " own.",
            )
        return replace(self, dilation=dilation)

    @property
    def parameters(self) -> int:
        """Number of trainable parameters, biases included."""
        biases = sum(o for number in range(self.cascades) for _, o in self.widths_of(number))
        return self._products * self.kernel**2 + biases

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
        convolutions = self._products * self.kernel**2 * height * width // self.shuffle**2
        consistency = 0
        if self.has_data_consistency:
            consistency = consistency_macs(
                height,
                width,
                self.channels,
                lines=lines,
                sampled=sampled,
                coils=coils if self.coils else None,
            )
        return {
            "convolutions": convolutions,
            "data_consistency": consistency * (self.cascades + self.solver_steps),
        }

    @property
    def receptive_radius(self) -> int:
        """How many pixels away a pixel of the input can act, convolutions alone."""
        every = (d for number in range(self.cascades) for d in self.dilation_of(number))
        radius = sum(d * (self.kernel // 2) for d in every)
        return radius * self.shuffle + (self.shuffle - 1) * self.cascades

    def dilation_of(self, cascade: int) -> tuple[int, ...]:
        """Return the dilation of each convolution of a cascade, counted from 0."""
        begin = 0 if len(self.dilation) == self.convs else cascade * self.convs
        return self.dilation[begin : begin + self.convs]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values.

        What an older version did not know is left out where it is not used, so that it can read
        the network, and runs that it began go on.
        """
        value = {**asdict(self), "dilation": list(self.dilation)}
        for name, unused in _LATER.items():
            if value[name] == unused:
                del value[name]
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
        kind=DCCNN,
        cascades=5,
        convs=convs,
        width=32,
        attention_tap=tap,
        channels=channels,
        coils=coils,
    )


def _carrying(
    convs: int,
    width: int,
    carried: int,
    *,
    cascades: int = 5,
    shuffle: int = 1,
    dilation: tuple[int, ...] = (),
    channels: int = 1,
    coils: bool = False,
) -> ModelSpec:
    """Return DC-CNN whose cascades hand on feature maps and read the zero-filled image."""
    return replace(
        _dccnn(convs, convs // 2 + 1, channels=channels, coils=coils),
        kind=CARRYING,
        cascades=cascades,
        width=width,
        carried=carried,
        shows_zero_filled=True,
        shuffle=shuffle,
        dilation=dilation or (1,) * convs,
        solver_steps=6 if coils else 0,
    )


def _carrying_presets() -> dict[str, ModelSpec]:
    """Return teacher and students with carried maps, for each kind of input."""
    presets: dict[str, ModelSpec] = {}
    for suffix, channels, coils in (("", 1, False), ("-complex", 2, False), ("-sense", 2, True)):
        presets |= {
            f"dccnn-d5c5-carried{suffix}": _carrying(5, 32, 16, channels=channels, coils=coils),
            f"dccnn-edge{suffix}": _carrying(
                3, 24, 8, dilation=(1, 2, 1), channels=channels, coils=coils
            ),
            f"dccnn-edge-half{suffix}": _carrying(
                3, 48, 16, shuffle=2, channels=channels, coils=coils
            ),
            f"dccnn-edge-small{suffix}": _carrying(
                3, 32, 12, cascades=4, shuffle=2, channels=channels, coils=coils
            ),
        }
    return presets


def _carrying_recipe(spec: ModelSpec) -> str:
    """Return the recipe: wide cascades at a lower resolution take no rate as high as others."""
    return "carried-half" if spec.shuffle > 1 else "carried"


def _vdsr(convs: int, tap: int, *, shuffle: int = 1) -> ModelSpec:
    return ModelSpec(
        kind=VDSR, cascades=1, convs=convs, width=64, attention_tap=tap, shuffle=shuffle
    )


def _vdsr_recipe(spec: ModelSpec) -> str:
    """Return the recipe: at a lower resolution the teacher's convolutions have other sizes."""
    return "edge-sr-half" if spec.shuffle > 1 else "edge-sr"


# Attention taps as in KD-MRI: conv 3 of 5 against conv 2 of 3; conv 6 of 11 against conv 4 of 7.
NETWORKS: Final = Registry(
    "kdmri_edge.networks",
    NetworkFamily,
    "network family",
    {
        DCCNN: NetworkFamily(
            name=DCCNN,
            from_dict=ModelSpec.from_dict,
            build="kdmri_edge.models.dccnn:DCCNN",
            presets={
                "dccnn-d5c5": _dccnn(5, 3),
                "dccnn-d3c5": _dccnn(3, 2),
                "dccnn-d5c5-complex": _dccnn(5, 3, channels=2),
                "dccnn-d3c5-complex": _dccnn(3, 2, channels=2),
                "dccnn-d5c5-sense": _dccnn(5, 3, channels=2, coils=True),
                "dccnn-d3c5-sense": _dccnn(3, 2, channels=2, coils=True),
            },
        ),
        CARRYING: NetworkFamily(
            name=CARRYING,
            from_dict=ModelSpec.from_dict,
            build="kdmri_edge.models.dccnn:DCCNN",
            presets=_carrying_presets(),
            recipe="carried",
            recipe_of=_carrying_recipe,
            teachers=frozenset({DCCNN}),
        ),
        VDSR: NetworkFamily(
            name=VDSR,
            from_dict=ModelSpec.from_dict,
            build="kdmri_edge.models.vdsr:VDSR",
            presets={
                "vdsr-11": _vdsr(11, 6),
                "vdsr-7": _vdsr(7, 4),
                "vdsr-half": _vdsr(7, 4, shuffle=2),
            },
            recipe="edge-sr",
            recipe_of=_vdsr_recipe,
            first_weights="He",
        ),
        CODE: NetworkFamily(
            name=CODE,
            from_dict=CodeSpec.from_dict,
            build="kdmri_edge.models.adapter:build",
            recipe="imitation",
        ),
    },
    error=ModelError,
    claims=lambda family: family.presets,
)


class _Presets(Mapping[str, NetworkSpec]):
    """The presets of all families; those of installed packages are looked at last."""

    def __getitem__(self, name: str) -> NetworkSpec:
        for family in NETWORKS.values():
            if name in family.presets:
                return family.presets[name]
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for family in NETWORKS.values() for name in family.presets)

    def __len__(self) -> int:
        return sum(1 for _ in self)


PRESETS: Final[Mapping[str, NetworkSpec]] = _Presets()
"""Architectures by name, of all families."""


def preset(name: str) -> NetworkSpec:
    """Return a named architecture.

    Args:
        name: One of `PRESETS`, whose fields may be changed: "dccnn-d3c5?width=16&cascades=4". With
            another number of `convs`, `dilation` is 1 and `attention_tap` the middle one, where
            these are not said.

    Raises:
        ModelError: No preset has that name (the message suggests the nearest), or a field that is
            changed is unknown or out of range.
    """
    base, question, query = name.partition("?")
    if base in PRESETS:
        return _changed(name, PRESETS[base], query) if question else PRESETS[base]
    near = nearest(base, PRESETS)
    raise ModelError(
        f"There is no preset {name!r}; did you mean {near!r}?",
        f"Presets: {', '.join(PRESETS)}.",
    )


def preset_of(spec: NetworkSpec) -> str | None:
    """Return the preset that an architecture is, whatever its dilation; None where it is none."""
    for name, known in PRESETS.items():
        if not isinstance(known, ModelSpec) or not isinstance(spec, ModelSpec):
            continue
        if known.convs == spec.convs and replace(known, dilation=spec.dilation) == spec:
            return name
    return None


def _changed(name: str, spec: NetworkSpec, query: str) -> NetworkSpec:
    """Return the architecture with the fields that a query names."""
    if not isinstance(spec, ModelSpec):
        raise ModelError(
            f"The architecture of {name!r} cannot be changed.",
            f"Fields can be set of the families {DCCNN}, {CARRYING} and {VDSR}.",
        )
    known = [field.name for field in fields(spec) if field.name != "kind"]
    changes: dict[str, Any] = {}
    for key, text in read_arguments(query, name).items():
        if key not in known:
            raise ModelError(
                f"{name!r} sets {key!r}, which no architecture has; did you mean"
                f" {nearest(key, known)!r}?",
                f"Fields: {', '.join(known)}.",
            )
        changes[key] = _field_value(name, key, json.loads(text), getattr(spec, key))
    if "convs" in changes:
        changes = {"dilation": (), "attention_tap": changes["convs"] // 2 + 1, **changes}
    return replace(spec, **changes)


def _field_value(name: str, key: str, value: Any, present: Any) -> Any:
    """Return the value of a field of `ModelSpec`, which has to be of the present value's type."""
    if isinstance(present, tuple):
        numbers = value if isinstance(value, list) else [value]
        good, what = all(type(one) is int for one in numbers), "whole numbers, as [1,2,1]"
        value = tuple(numbers)
    elif key == "noise_weight":
        good, what = value is None or type(value) in (int, float), "a number or none"
        value = None if value is None else float(value) if good else value
    elif isinstance(present, bool):
        good, what = isinstance(value, bool), "true or false"
    elif isinstance(present, float):
        good, what = type(value) in (int, float), "a number"
        value = float(value) if good else value
    else:
        good, what = type(value) is int, "a whole number"
    if not good:
        raise ModelError(f"{key} of {name!r} must be {what}.", "See the fields of ModelSpec.")
    return value


def spec_from_dict(value: Mapping[str, Any]) -> NetworkSpec:
    """Rebuild a specification of any family from its `to_dict`.

    Raises:
        ModelError: Its family is not installed, or the values are damaged.
    """
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if not isinstance(kind, str):
        raise ModelError("A model specification names no family.", "Make the file again.")
    if kind not in NETWORKS:
        raise ModelError(
            f"The network family {kind!r} is not installed.",
            "Install the package that brings it, or update kdmri-edge.",
        )
    try:
        spec = NETWORKS[kind].from_dict(value)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"A model specification is damaged ({error!r}).", "Make the file again."
        ) from error
    if not isinstance(spec, NetworkSpec):
        names = [name for name in dir(NetworkSpec) if not name.startswith("_")]
        missing = next(name for name in names if not hasattr(spec, name))
        raise ModelError(
            f"The specifications of family {kind!r} lack {missing!r}.",
            f"Update the package {NETWORKS.origin(kind)}.",
        )
    return spec


@dataclass(frozen=True, kw_only=True)
class _Described(SpecDefaults):
    """What a bundle says of a network whose family is not installed: enough to run it."""

    stored: Mapping[str, Any]
    reads: InputKind
    has_data_consistency: bool
    parameters: int
    counted: Mapping[str, int]
    receptive_radius: int | None = None

    @property
    def kind(self) -> str:
        """Name of its family."""
        return str(self.stored.get("kind"))

    def macs(
        self,
        height: int,
        width: int,
        *,
        lines: bool = True,
        sampled: int | None = None,
        coils: int = 1,
    ) -> dict[str, int]:
        """Return what was counted for the bundle's own matrix and mask."""
        return dict(self.counted)

    def to_dict(self) -> dict[str, Any]:
        """Return what the bundle holds."""
        return dict(self.stored)


def describe_spec(spec: NetworkSpec) -> dict[str, Any]:
    """Return what a bundle says of a network for machines without the package of its family."""
    return {"reads": str(spec.reads), "has_data_consistency": spec.has_data_consistency}


def described_spec(meta: Mapping[str, Any]) -> NetworkSpec:
    """Return the specification in a manifest or in a checkpoint's header.

    Args:
        meta: With the key `spec`; manifests also have `network` (`describe_spec`), `parameters` and
            `macs`, by which a bundle runs where its family is not installed.

    Raises:
        ModelError: See `spec_from_dict`.
    """
    stored, network = meta["spec"], meta.get("network")
    if isinstance(network, Mapping) and stored.get("kind") not in NETWORKS:
        try:
            return _Described(
                stored=stored,
                reads=InputKind(network["reads"]),
                has_data_consistency=bool(network["has_data_consistency"]),
                parameters=int(meta["parameters"]),
                counted=meta["macs"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"A manifest describes its network wrongly ({error!r}).", "Export it again."
            ) from error
    return spec_from_dict(stored)
