"""The convolutions of a network: what each one reads, and how they hand results to each other.

Calibration, equalisation, rounding and casts act on any `torch.nn.Conv2d` of any network by this
description alone. Networks made of stacks know it from their structure; of others it is found out
by following the tensors of one forward pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["RECTIFIERS", "Convolution", "is_convolution", "replace_module", "traced_convolutions"]

RECTIFIERS: Final = frozenset(
    (nn.functional.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
)
"""The functions that are a ReLU, as a `TorchFunctionMode` sees them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Convolution:
    """One convolution of a network.

    Attributes:
        name: Of the module within its network, e.g. "cascades.0.convs.1".
        rectified: Whether it reads the output of a ReLU.
        follows: The convolution whose rectified output it reads, where nothing else reads that, nor
            the output before the ReLU; else None.
    """

    name: str
    rectified: bool
    follows: str | None = None


def is_convolution(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Tell whether a module is a `torch.nn.Conv2d` and computes what one computes.

    A class that derives from it may normalise its weights first, or do more than convolve.
    """
    return isinstance(module, nn.Conv2d) and (
        type(module).forward is nn.Conv2d.forward
        and type(module)._conv_forward is nn.Conv2d._conv_forward
    )


def replace_module(network: nn.Module, name: str, module: nn.Module) -> None:
    """Put another module in the place of the one with that name."""
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, module)


def traced_convolutions(network: nn.Module, *inputs: Tensor | None) -> list[Convolution]:
    """Describe the convolutions of a network by one forward pass.

    Args:
        network: The network; it is run in evaluation mode, without gradients.
        *inputs: Of the forward pass; any size, since shapes do not matter.

    Returns:
        Those that were called, in the order of their first call. One that is called several times
        follows none, and none follows it.
    """
    follow = _Follow()
    training = network.training
    hooks = [
        hook
        for name, module in network.named_modules()
        if is_convolution(module)
        for hook in (
            module.register_forward_pre_hook(follow.before(name)),
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
    return follow.convolutions()


class _Follow(TorchFunctionMode):
    """Notes which tensors convolutions write, which are rectified, and who uses them.

    Tensors are known by their identity, and kept so that no other one takes it over.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[Tensor] = []
        self._inside = False
        self._uses: Counter[int] = Counter()
        self._written: dict[int, str] = {}
        # Of a ReLU's output: the convolution before it, None if it is no convolution's alone.
        self._rectified: dict[int, str | None] = {}
        # By convolution: what each call read (a rectified tensor's number, else None).
        self._read: dict[str, list[int | None]] = {}
        # By convolution: uses of its output before the ReLU, the ReLU among them.
        self._raw: dict[str, int] = {}

    def before(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        """Return the hook of a convolution that is about to be called."""

        def hook(module: nn.Module, given: tuple[Any, ...]) -> None:
            (x,) = _tensors(given)
            self.use(x)
            number = id(x) if id(x) in self._rectified else None
            self._read.setdefault(name, []).append(number)
            self._inside = True

        return hook

    def after(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        """Return the hook of a convolution that was called."""

        def hook(module: nn.Module, given: tuple[Any, ...], made: Tensor) -> None:
            self._inside = False
            self._kept.append(made)
            self._written[id(made)] = name

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
        if self._inside or not any(True for _ in _tensors(result)):
            return result  # within a convolution; or a shape, a type, a device
        self.use((*args, kwargs or {}))
        if func in RECTIFIERS:
            self._note_relu(next(_tensors((*args, kwargs or {}))), result)
            return result
        for tensor in _tensors(result):  # changed in place, it is no longer what it was
            self._kept.append(tensor)
            self._rectified.pop(id(tensor), None)
            self._written.pop(id(tensor), None)
        return result

    def _note_relu(self, given: Tensor, made: Tensor) -> None:
        writer = self._written.get(id(given))
        if writer is not None and given is made:
            self._raw[writer] = self._uses.pop(id(given))
            del self._written[id(given)]
        self._kept.append(made)
        self._rectified[id(made)] = writer

    def convolutions(self) -> list[Convolution]:
        """Return what was found."""
        raw = {name: self._uses[number] for number, name in self._written.items()} | self._raw
        return [
            Convolution(
                name=name,
                rectified=all(number is not None for number in read),
                follows=self._followed(read, raw),
            )
            for name, read in self._read.items()
        ]

    def _followed(self, read: list[int | None], raw: Mapping[str, int]) -> str | None:
        if len(read) != 1 or read[0] is None or self._uses[read[0]] != 1:
            return None
        writer = self._rectified.get(read[0])
        if writer is None or len(self._read[writer]) != 1 or raw[writer] != 1:
            return None
        return writer


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))
