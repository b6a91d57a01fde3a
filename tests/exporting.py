"""Exports by PyTorch, made cheaper for tests: hundreds of tiny networks pass through its exporter.

Its fixed work for a graph takes longer than such a network: it parses the source of all operators
anew, looks for all that it may take apart, and replaces these one by one. None of that depends on
the network, and nothing of this project adds to its tables, so that all exports of a process share
one of each. What a version of PyTorch does not have is left alone.
"""

from __future__ import annotations
import __future__

import functools
import importlib
import inspect
import textwrap
from typing import Any

__all__ = ["share_fixed_work"]


def share_fixed_work() -> None:
    """Do once in a process what PyTorch's exporter does for each graph."""
    registry = _named("torch.onnx._internal.exporter._registration", "ONNXRegistry")
    if registry is not None:
        registry.from_torchlib = staticmethod(functools.cache(registry.from_torchlib))
    _once("torch._export.utils", "_materialize_cpp_cia_ops")
    _without_annotations("torch._ops", "OperatorBase", "py_impl")


def _named(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


def _once(module: str, name: str) -> None:
    """Have a function without arguments do its work once."""
    function = _named(module, name)
    if function is not None:
        setattr(importlib.import_module(module), name, functools.cache(function))


def _without_annotations(module: str, owner: str, name: str) -> None:
    """Compile a method anew: the types of its inner function are put together at each call.

    They take most of the time of this one, which is called some thousand times for each graph.
    """
    found = _named(module, owner)
    if found is None:
        return
    source = textwrap.dedent(inspect.getsource(getattr(found, name)))
    code = compile(source, module, "exec", __future__.annotations.compiler_flag)
    made: dict[str, Any] = {}
    exec(code, vars(importlib.import_module(module)), made)
    setattr(found, name, made[name])
