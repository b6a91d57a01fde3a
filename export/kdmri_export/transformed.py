"""What a precision does to a network: which of its layers, and what it leaves, with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from kdmri_edge.errors import ExportError
from kdmri_edge.models.layers import Layer, Structure, Weighted, kind_of, layers_named
from kdmri_edge.models.network import Network

__all__ = ["Choice", "Transformed", "choose_layers"]

_ASKED = "asked for in float"
_NO_RANGE = "the checkpoint has no range for it: left in float when it was tuned, or never measured"
_TIED = "its weight is used elsewhere, too"
# Names of layers in a message.
_SHOWN = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Transformed:
    """What was written in another precision than float32.

    Attributes:
        kinds: The kind of each layer, by its name, e.g. {"head": "Conv2d"}.
        left: Why a layer was left in float32, by its name.
        functional: Products with learned weights that are no such layer, and stay in float32.
    """

    kinds: Mapping[str, str] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    functional: Sequence[str] = ()

    @property
    def layers(self) -> dict[str, int]:
        """How many layers were transformed, by their kind, e.g. {"Conv2d": 12, "Linear": 1}."""
        return _counted(kind for name, kind in self.kinds.items() if name not in self.left)

    @property
    def of(self) -> dict[str, int]:
        """How many layers there are, by their kind."""
        return _counted(self.kinds.values())

    @property
    def total(self) -> int:
        """How many layers were transformed."""
        return sum(self.layers.values())

    def without(self, left: Mapping[str, str]) -> Transformed:
        """Return the same, less what stayed in float32 after all, for these reasons by name."""
        return replace(self, left={**self.left, **left})

    @property
    def why_nothing(self) -> str:
        """Why none was, in a clause."""
        reasons = [f"{name}: {why}" for name, why in self.left.items()]
        reasons += [f"{place} is no layer of these" for place in self.functional]
        kinds = "Conv2d, ConvTranspose2d or Linear layer"
        said = "; ".join(reasons[:_SHOWN]) or "nothing else multiplies by weights"
        if self.left:
            return said
        return f"it calls no {kinds} ({said})"

    def to_dict(self) -> dict[str, Any]:
        """Return what the manifest says; "convolutions" is what version 0.1 had."""
        return {
            "convolutions": self.layers.get("Conv2d", 0),
            "layers": self.layers,
            "of": self.of,
            "left": dict(self.left),
            "functional": list(self.functional),
        }


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The layers of a network that a precision acts on.

    Attributes:
        network: The network.
        structure: Of the network.
        left: Why others are left in float32, by name.
    """

    network: Network
    structure: Structure
    left: Mapping[str, str]

    @property
    def layers(self) -> list[Layer]:
        """Those that are chosen, in the order of their first call."""
        return [one for one in self.structure.layers if one.name not in self.left]

    @property
    def names(self) -> set[str]:
        """Their names."""
        return {one.name for one in self.layers}

    def transformed(self) -> Transformed:
        """Return what is done to them; to be called while they are what they were."""
        kinds = {
            one.name: str(kind_of(self.network.get_submodule(one.name)))
            for one in self.structure.layers
        }
        return Transformed(kinds=kinds, left=self.left, functional=self.structure.functional)


def choose_layers(
    network: Network,
    floats: Sequence[str] = (),
    refuses: Callable[[Weighted], str | None] = lambda layer: None,
    known: Collection[str] | None = None,
) -> Choice:
    """Choose the layers that a precision acts on.

    Args:
        network: The network.
        floats: Patterns of the names of layers that are to stay in float32, as in a shell.
        refuses: Returns why a layer cannot be transformed, None if it can.
        known: For int8: the layers whose activations were measured; None where that is no matter.

    Raises:
        ExportError: A pattern fits no layer.
    """
    structure = network.structure()
    names = [one.name for one in structure.layers]
    asked = set(layers_named(floats, names, ExportError))
    left: dict[str, str] = {}
    for one in structure.layers:
        layer = cast(Weighted, network.get_submodule(one.name))
        if one.name in asked:
            left[one.name] = _ASKED
        elif one.tied:
            left[one.name] = _TIED
        elif (why := refuses(layer)) is not None:
            left[one.name] = why
        elif known is not None and one.name not in known:
            left[one.name] = _NO_RANGE
    return Choice(network=network, structure=structure, left=left)


def _counted(kinds: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(kinds).items()))
