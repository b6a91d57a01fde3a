"""The layers of a network that hold weights: what each one reads, and who reads its output.

Calibration, equalisation, rounding and casts act on any `torch.nn.Conv2d`, `ConvTranspose2d` and
`Linear` of any network by this description alone. Networks made of stacks know it from their
structure; of others it is found out by following the tensors of one forward pass. What a network
multiplies by learned weights without such a layer is named, so that nobody takes it for done.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from types import FrameType
from typing import Any, Final, TypeAlias, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kdmri_edge.errors import KdmriError, ModelError
from kdmri_edge.utils.suggest import nearest

__all__ = [
    "KINDS",
    "RECTIFIERS",
    "Layer",
    "Structure",
    "Weighted",
    "Wrapped",
    "is_convolution",
    "kind_of",
    "layers_named",
    "replace_module",
    "traced_structure",
]

Weighted: TypeAlias = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
"""The layers that precisions act on."""

KINDS: Final[Mapping[str, type[nn.Module]]] = {
    "Conv2d": nn.Conv2d,
    "ConvTranspose2d": nn.ConvTranspose2d,
    "Linear": nn.Linear,
}
"""Their classes, by the names that manifests give them."""

RECTIFIERS: Final = frozenset(
    (nn.functional.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
)
"""The functions that are a ReLU, as a `TorchFunctionMode` sees them."""

_SHOWN: Final = 6
"""Names of layers in a message."""

_NOT_THEIRS: Final = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), "<")
# f(s z) = s f(z) for s > 0, channel by channel; and, for what Linear writes, value by value.
_ELEMENTWISE: Final = frozenset(("leaky_relu", "leaky_relu_", "prelu", "dropout", "dropout2d"))
_PLANAR: Final = frozenset(
    ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate")
)
# Products by what they are called in PyTorch; of learned weights, only layers are transformed.
_PRODUCTS: Final = frozenset(
    (
        "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
        "linear", "bilinear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "addmm",
        "addmv", "baddbmm", "einsum", "tensordot", "multi_head_attention_forward",
        "_native_multi_head_attention", "_transformer_encoder_layer_fwd", "lstm", "gru",
        "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell",
    )
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One layer of a network.

    Attributes:
        name: Of the module within its network, e.g. "cascades.0.convs.1".
        rectified: Whether it reads the output of a ReLU.
        follows: The layer whose rectified output it reads, where nothing else reads that, nor the
            output before the ReLU; else None.
        scales_with: The layer whose output it alone reads, by way of functions that a positive
            factor per channel passes through: leaky ReLUs, poolings. None where that is the one
            that it follows, and where there is none.
        image: How many of the channels that it reads, the first ones, are an image's, of networks
            that say so; 0 where that is not told (`quantisation.scheme.image_channels`).
        carried_from: The layer that writes what it reads behind the image's channels: feature maps,
            the last channels of that layer, by way of a ReLU alone, and for nobody else.
        tied: Its weight is used elsewhere, too: by another layer, or by a function.
    """

    name: str
    rectified: bool
    follows: str | None = None
    scales_with: str | None = None
    image: int = 0
    carried_from: str | None = None
    tied: bool = False


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What holds weights in a network.

    Attributes:
        layers: In the order of their first call.
        functional: What multiplies by learned weights without such a layer, each once: a function
            with its line, or a layer of another kind with its name.
        normalised: The convolution that each batch normalisation alone reads, by the
            normalisation's name; in evaluation both are one convolution.
    """

    layers: list[Layer]
    functional: tuple[str, ...] = ()
    normalised: Mapping[str, str] = field(default_factory=dict)


def kind_of(module: nn.Module) -> str | None:
    """Return the name of a layer's kind; None for what is none, or does more than one does.

    A class that derives from one may normalise its weights first.
    """
    for name, own in KINDS.items():
        if isinstance(module, own) and type(module).forward is own.forward:
            plain = not isinstance(module, nn.Conv2d) or (
                type(module)._conv_forward is nn.Conv2d._conv_forward
            )
            return name if plain else None
    return None


def is_convolution(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Tell whether a module is a `torch.nn.Conv2d` and computes what one computes."""
    return kind_of(module) == "Conv2d"


def layers_named(
    patterns: Sequence[str], names: Sequence[str], error: type[KdmriError] = ModelError
) -> list[str]:
    """Return the layers that patterns name.

    Args:
        patterns: Names, or patterns of them as in a shell. Those of networks that users bring all
            begin with "module.", which may be left out.
        names: Of all layers.
        error: What is raised.

    Raises:
        KdmriError: A pattern fits no layer.
    """
    for pattern in patterns:
        if not any(_fits(name, pattern) for name in names):
            near = nearest(pattern, names)
            hint = f"; did you mean {near!r}?" if near else "."
            more = ", ..." if len(names) > _SHOWN else ""
            raise error(
                f"No layer of the network is called {pattern!r}{hint}",
                f"Its layers: {', '.join(names[:_SHOWN])}{more}.",
            )
    return [name for name in names if any(_fits(name, pattern) for pattern in patterns)]


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.removeprefix("module."), pattern)


class Wrapped(nn.Module):
    """A layer in another arithmetic; what else is asked of it, the layer itself answers.

    Args:
        layer: The layer. It is called `conv` in weights and graphs, whatever its kind.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.conv = layer

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the layer, such as its number of channels."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "conv":
                raise
            return getattr(self.conv, name)


def replace_module(network: nn.Module, name: str, module: nn.Module) -> None:
    """Put another module in the place of the one with that name, and wherever else that is held."""
    former = network.get_submodule(name)
    for holder in list(network.modules()):
        for own, held in list(holder._modules.items()):
            if held is former:
                setattr(holder, own, module)


def traced_structure(network: nn.Module, *inputs: Tensor | None) -> Structure:
    """Describe a network by one forward pass.

    Args:
        network: The network; it is run in evaluation mode, without gradients.
        *inputs: Of the forward pass; any size, since shapes do not matter.

    Returns:
        The layers that were called, in the order of their first call. One that is called several
        times follows none, and none follows it.
    """
    follow = _Follow(network)
    training = network.training
    hooks = [
        hook
        for name, module in network.named_modules()
        for hook in (
            module.register_forward_pre_hook(follow.before(name), with_kwargs=True),
            module.register_forward_hook(follow.after(name)),
        )
    ]
    try:
        with torch.no_grad(), follow:
            network.eval()
            result = network(*inputs)
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    follow.use(result)
    return follow.structure()


@dataclass(frozen=True, slots=True)
class _Way:
    """How a tensor came from the output of a layer by functions that factors pass through.

    Attributes:
        writer: The layer.
        between: The tensors on the way, which nothing else may read.
        planar: Whether a function on it takes the last two axes for those of an image.
    """

    writer: str
    between: tuple[int, ...] = ()
    planar: bool = False


class _Follow(TorchFunctionMode):
    """Notes which tensors layers write, which are rectified, and who uses them.

    Tensors are known by their identity, and kept so that no other one takes it over.

    Args:
        network: The network that is called.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network
        self._kept: list[Tensor] = []
        self._inside = False
        self._calls: list[str] = [""]
        self._uses: Counter[int] = Counter()
        self._written: dict[int, str] = {}
        # Of a ReLU's output: the layer before it, None if it is no layer's alone.
        self._rectified: dict[int, str | None] = {}
        # By layer: what each call read (a rectified tensor's number, else None).
        self._read: dict[str, list[int | None]] = {}
        self._given: dict[str, list[int]] = {}
        # By layer: uses of its output before the ReLU, the ReLU among them.
        self._raw: dict[str, int] = {}
        self._ways: dict[int, _Way] = {}
        # By batch normalisation: what each call read.
        self._normalised: dict[str, list[int]] = {}
        # Parameters, and what is computed from nothing else; those that functions were given.
        self._learned = {id(one) for one in network.parameters()}
        self._used: set[int] = set()
        self._functional: dict[str, None] = {}

    def before(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        """Return the hook of a module that is about to be called."""

        def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._calls.append(name)
            first = next(_tensors((given, named)), None)
            if first is None:
                return
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                self._normalised.setdefault(name, []).append(id(first))
            if kind_of(module) is not None:
                self.use(first)
                number = id(first) if id(first) in self._rectified else None
                self._read.setdefault(name, []).append(number)
                self._given.setdefault(name, []).append(id(first))
                self._inside = True

        return hook

    def after(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        """Return the hook of a module that was called."""

        def hook(module: nn.Module, given: tuple[Any, ...], made: Any) -> None:
            self._calls.pop()
            if kind_of(module) is not None:
                self._inside = False
                self._kept.append(made)
                self._written[id(made)] = name
                self._ways[id(made)] = _Way(name)

        return hook

    def use(self, value: Any) -> None:
        """Count a use of all tensors in a value."""
        for tensor in _tensors(value):
            self._kept.append(tensor)
            self._uses[id(tensor)] += 1

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        changed = result if name != "__setitem__" else args[0]
        if self._inside or not any(True for _ in _tensors(changed)):
            return result  # within a layer; or a shape, a type, a device
        given = list(_tensors((*args, kwargs or {})))
        self.use(given)
        self._note_weights(name, given, result)
        if func in RECTIFIERS:
            self._note_way(given[0], result, planar=False)
            self._note_relu(given[0], result)
            return result
        if given and isinstance(result, Tensor) and (name in _ELEMENTWISE or name in _PLANAR):
            self._note_way(given[0], result, planar=name in _PLANAR)
        else:
            for tensor in _tensors(changed):
                self._ways.pop(id(tensor), None)
        for tensor in _tensors(changed):  # changed in place, it is no longer what it was
            self._kept.append(tensor)
            self._rectified.pop(id(tensor), None)
            self._written.pop(id(tensor), None)
        return result

    def _note_weights(self, name: str, given: Sequence[Tensor], result: Any) -> None:
        """Note what a function, not a layer, does with learned weights."""
        learned = [one for one in given if id(one) in self._learned]
        if not learned:
            return
        self._used.update(id(one) for one in learned)
        if len(learned) == len(given):
            for tensor in _tensors(result):
                self._kept.append(tensor)
                self._learned.add(id(tensor))
        elif name in _PRODUCTS:
            self._functional[self._place(name)] = None

    def _place(self, function: str) -> str:
        """Say where a product is: the layer that it is of, or the line of the user's code."""
        own = self._calls[-1]
        module = self._network.get_submodule(own) if own else self._network
        if type(module).__module__.startswith("torch.") and own:
            return f"{type(module).__name__} {own!r}"
        frame: FrameType | None = sys._getframe()
        while frame is not None and frame.f_code.co_filename.startswith(_NOT_THEIRS):
            frame = frame.f_back
        if frame is None:
            return f"{function} in {own!r}"
        # a name alone: what is written down must not tell the folders of this machine
        return f"{function} in line {frame.f_lineno} of {Path(frame.f_code.co_filename).name}"

    def _note_way(self, given: Tensor, made: Tensor, *, planar: bool) -> None:
        way = self._ways.get(id(given))
        self._kept.append(made)
        if way is None:
            self._ways.pop(id(made), None)
            return
        planar = planar or way.planar
        if made is not given:
            self._ways[id(made)] = _Way(way.writer, (*way.between, id(given)), planar)
        elif self._uses[id(given)] == 1:  # in place, or left as it is: read by this alone so far
            del self._uses[id(given)]
            self._ways[id(made)] = _Way(way.writer, way.between, planar)
        else:
            del self._ways[id(made)]

    def _note_relu(self, given: Tensor, made: Tensor) -> None:
        writer = self._written.get(id(given))
        if writer is not None and given is made:
            # the way has been noted before, and has taken its one use away
            self._raw[writer] = self._uses.pop(id(given), 0) or 1
            del self._written[id(given)]
        self._kept.append(made)
        self._rectified[id(made)] = writer

    def structure(self) -> Structure:
        """Return what was found."""
        raw = {name: self._uses[number] for number, name in self._written.items()} | self._raw
        weights = {name: id(self._layer(name).weight) for name in self._read}
        holders = Counter(weights.values())
        tied = {
            name for name, weight in weights.items() if holders[weight] > 1 or weight in self._used
        }
        layers = []
        for name, read in self._read.items():
            follows = self._followed(read, raw)
            passed = self._passed(name)
            layers.append(
                Layer(
                    name=name,
                    rectified=all(number is not None for number in read),
                    follows=follows,
                    scales_with=passed if passed != follows else None,
                    tied=name in tied,
                )
            )
        return Structure(
            layers=layers,
            functional=tuple(self._functional),
            normalised=self._normalised_layers(tied),
        )

    def _layer(self, name: str) -> Weighted:
        return cast(Weighted, self._network.get_submodule(name))

    def _followed(self, read: list[int | None], raw: Mapping[str, int]) -> str | None:
        if len(read) != 1 or read[0] is None or self._uses[read[0]] != 1:
            return None
        writer = self._rectified.get(read[0])
        if writer is None or len(self._read[writer]) != 1 or raw.get(writer) != 1:
            return None
        return writer

    def _passed(self, name: str) -> str | None:
        (number, *more) = self._given[name]
        way = self._ways.get(number)
        if more or way is None:
            return None
        alone = all(self._uses[one] == 1 for one in (number, *way.between))
        linear = [kind_of(self._layer(one)) == "Linear" for one in (name, way.writer)]
        if not alone or len(self._read[way.writer]) != 1 or linear[0] != linear[1]:
            return None
        return None if linear[0] and way.planar else way.writer

    def _normalised_layers(self, tied: set[str]) -> dict[str, str]:
        found = {}
        for name, (number, *more) in self._normalised.items():
            writer = self._written.get(number)
            if more or writer is None or self._uses[number] != 1 or len(self._read[writer]) != 1:
                continue
            layer, normalisation = self._layer(writer), self._network.get_submodule(name)
            # the last axis of what a Linear writes is not that of channels
            split = isinstance(layer, nn.ConvTranspose2d) and layer.groups != 1
            if writer in tied or split or isinstance(layer, nn.Linear):
                continue
            if cast(nn.BatchNorm2d, normalisation).running_var is not None:
                found[name] = writer
        return found


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))
