"""Tracing a network that was not written for it, as a program of `torch.export`.

Arguments that are the same for every image, a sampling mask above all, are bound as constants.
What a network computes from them alone is computed while it is traced, so that it may look at their
values: find the centre lines of a mask, or walk over it in a loop. Only its result is in the graph.
"""

from __future__ import annotations

import copy
import inspect
import keyword
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.weak import WeakIdKeyDictionary

from kdmri_edge.errors import ExportError
from kdmri_edge.runtime.manifest import LARGEST_SIDE
from kdmri_export.passes.user_code import raised_line, silence, source_line

__all__ = ["FixedSizeError", "NarrowedSizeError", "trace"]


class FixedSizeError(ExportError):
    """A network that fixes the size of an axis that was to be free, or asks multiples of it."""


class NarrowedSizeError(FixedSizeError):
    """A network whose graph would hold for a part of the sizes of an axis that was to be free."""


_AT_LEAST: Final = 2  # of PyTorch's own: it takes an axis of one for a constant


_VALUES: Final = re.compile(
    r"data-dependent|GuardOnDataDependent|_local_scalar_dense|dynamic shape operator|unbacked"
    r"|Dynamic control flow",
    re.IGNORECASE,
)
_ASSIGNED: Final = re.compile(r"assigned during export|mutat", re.IGNORECASE)
_DIMENSION: Final = re.compile(
    r"Constraints violated|ConstraintViolation|specialized", re.IGNORECASE
)
_FROM_NUMBERS: Final = (torch.tensor, torch.as_tensor, torch.arange)
_FREE: Final = (Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)


def trace(
    network: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    constants: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> ExportedProgram:
    """Return a network as a program of its remaining arguments.

    Args:
        network: In evaluation mode.
        args: Example inputs, by position. Those that are bound are left out.
        kwargs: Example inputs by name.
        constants: Arguments of `forward` that are bound, by name.
        dynamic_shapes: Which axes are free, as `torch.export.export` takes it, for `args` and
            `kwargs`.

    Raises:
        ExportError: The network decides by values of its inputs, writes into its own attributes,
            draws from a `torch.Generator`, fixes a size that was to be free or decides by it, has a
            part called by a word of Python that it cannot do without, or cannot be traced
            otherwise.
    """
    network = _without_words(network)
    for name in (*dict(network.named_parameters()), *dict(network.named_buffers())):
        if word := next(filter(keyword.iskeyword, name.split(".")), None):
            raise ExportError(
                f"{name} of the network is called by a word of Python, {word!r}, which PyTorch's"
                " exporter cannot write down.",
                "Give it another name, in the weights too.",
            )
    constants = dict(constants or {})
    bound = _bound(network, constants) if constants else network
    known = [leaf for leaf in pytree.tree_leaves(constants) if isinstance(leaf, Tensor)]
    try:
        with torch.no_grad(), silence(), _Constants(known):
            program = torch.export.export(
                bound, tuple(args), dict(kwargs or {}), dynamic_shapes=dynamic_shapes, strict=False
            )
    except ExportError:
        raise
    except Exception as error:  # an exporter may raise anything
        raise _explained(error) from error
    _refuse_generators(program)
    if dynamic_shapes is not None:
        _refuse_bounds(program, dynamic_shapes)
    return program


def _refuse_bounds(program: ExportedProgram, dynamic_shapes: Any) -> None:
    """Refuse a program that holds for a part of the free sizes alone.

    A network that decides by the size of its images is one network for small and another for large
    ones. PyTorch refuses it for an axis of its own; of an axis that is a multiple of another it
    narrows the range instead, and the graph would go on beyond it without a word.

    Raises:
        NarrowedSizeError: An axis has a narrower range than it was given.
    """
    axes = [one for one in pytree.tree_leaves(dynamic_shapes) if isinstance(one, Dim)]
    roots = [one.root for one in axes if hasattr(one, "root")]
    if not roots:
        return
    least = max(_AT_LEAST, *(one.min for one in roots))
    for axis, bounds in program.range_constraints.items():
        if axis.is_symbol and (bounds.lower > least or bounds.upper < LARGEST_SIDE):
            raise NarrowedSizeError(
                "It decides by the size of its images, and its graph would hold for some alone.",
                "Export it without --matrix any.",
            )


def _refuse_generators(program: ExportedProgram) -> None:
    """Refuse a network whose graph would read a generator of random numbers."""
    for spec in program.graph_signature.input_specs:
        generator = program.constants.get(spec.target or "")
        if spec.kind is not InputKind.CUSTOM_OBJ or not isinstance(generator, torch.Generator):
            continue
        node = next(one for one in program.graph.nodes if one.name == spec.arg.name)
        place = next((f", in {source_line(user)}" for user in node.users), "")
        raise ExportError(
            f"The network draws random numbers from a torch.Generator{place}, which no graph can"
            " hold.",
            "Draw them once into a buffer, or leave them out in evaluation (self.training).",
        )


def _without_words(network: nn.Module) -> nn.Module:
    """Return a network none of whose parts is called by a word of Python, as deepinv's `lambda` is.

    PyTorch's exporter writes programs as source, where such a name is a mistake. In a copy these
    parts get another name, and modules find them when their own code asks for the old one. Parts of
    a `ModuleDict` keep theirs: they are keys, which code may compare.
    """
    names = (*dict(network.named_parameters()), *dict(network.named_buffers()))
    if not any(keyword.iskeyword(part) for name in names for part in name.split(".")):
        return network
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        if isinstance(module, nn.ModuleDict):
            continue
        free: dict[str, str] = {}
        for parts in (module._parameters, module._buffers, module._modules):
            for name in filter(keyword.iskeyword, parts):
                free[name] = f"{name}_"
                while hasattr(module, free[name]):
                    free[name] += "_"
            kept = {free.get(name, name): part for name, part in parts.items()}
            parts.clear()
            parts.update(kept)  # type: ignore[arg-type]
        passing = module._non_persistent_buffers_set
        module._non_persistent_buffers_set = {free.get(name, name) for name in passing}
        if free:
            module.__class__ = _finding(type(module), free)
    return network


def _finding(own: type[nn.Module], names: Mapping[str, str]) -> type[nn.Module]:
    """Return a class whose modules find parts by other names as well."""

    def find(self: nn.Module, name: str) -> Any:
        return own.__getattr__(self, names.get(name, name))

    return type(own.__name__, (own,), {"__getattr__": find})


def _explained(error: Exception) -> ExportError:
    text = f"{type(error).__name__}: {error}"
    line = raised_line(error)
    at = f" in {line}" if line else ""
    if _VALUES.search(text):
        return ExportError(
            f"The network decides by values of its inputs{at}, which a graph cannot do.",
            "Bind what it looks at, such as the mask, as a constant.",
        )
    if _ASSIGNED.search(text):
        return ExportError(
            f"The network writes into its own attributes{at}, which a graph cannot do.",
            "Let it compute with local variables.",
        )
    if _DIMENSION.search(text):
        return FixedSizeError(
            "The network fixes the size of an axis that was to be free.",
            "Export with a fixed size along that axis.",
        )
    said = str(error).strip().splitlines()
    first = said[0][:300] if said else type(error).__name__
    return ExportError(
        f"torch.export cannot trace the network{at}: {first}", "Change that line of the network."
    )


def _bound(network: nn.Module, constants: Mapping[str, Any]) -> nn.Module:
    """Return a network that is called without the arguments that are bound.

    It shares parameters, buffers and layers with the original, under their names. Constants are no
    buffers: those would be traced as inputs are.
    """
    signature = inspect.signature(network.forward)
    unknown = set(constants) - set(signature.parameters)
    if unknown:
        raise ExportError(
            f"The network has no argument {sorted(unknown)[0]!r}.",
            f"It has: {', '.join(signature.parameters)}.",
        )
    kept = [one for name, one in signature.parameters.items() if name not in constants]
    left = signature.replace(parameters=kept)
    original = network.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return original(**left.bind(*args, **kwargs).arguments, **constants)

    forward.__signature__ = left  # type: ignore[attr-defined]
    made = copy.copy(network)
    vars(made)["forward"] = forward
    return made


class _Constants(TorchFunctionMode):
    """Computes for real what is computed from constants alone, whatever is being traced.

    Args:
        known: The constants.
    """

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        # Tensors whose values do not depend on the inputs, and these values. What a network writes
        # down as numbers may be filled later, so that it stays what it is in the trace.
        self._known = WeakIdKeyDictionary()
        for one in known:
            self._known[one] = one

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        leaves = pytree.tree_leaves((args, kwargs))
        given = [one for one in leaves if isinstance(one, Tensor)]
        if func in _FROM_NUMBERS and not any(isinstance(one, _FREE) for one in leaves):
            made = func(*args, **kwargs)
            with _disable_current_modes():
                self._known[made] = func(*args, **kwargs)
            return made
        if not given or not all(one in self._known for one in given):
            if _writes(func) and given and given[0] in self._known:
                self._forget(given[0])
            return func(*args, **kwargs)
        with _disable_current_modes():
            made = func(*pytree.tree_map(self._value, args), **pytree.tree_map(self._value, kwargs))
        for one in pytree.tree_leaves(made):
            if isinstance(one, Tensor):
                self._known[one] = one
        return made

    def _value(self, given: Any) -> Any:
        return self._known[given] if isinstance(given, Tensor) else given

    def _forget(self, written: Tensor) -> None:
        """Take a tensor for one that depends on the inputs: values of them are written into it."""
        value = self._known[written]
        del self._known[written]
        if value is written:
            raise ExportError(
                "The network writes values of its inputs into a constant, which a graph cannot do.",
                "Let it write into a copy made of its inputs, as `torch.zeros_like(x)`.",
            )


def _writes(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name in ("__setitem__", "__set__") or (name.endswith("_") and not name.endswith("__"))
