"""Imports at the last moment: optional libraries, and what the tables name by import strings."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any, Final

from kdmri_edge.errors import BackendError, MissingExtraError

__all__ = ["available", "load_attribute", "require", "require_torch_tensorrt"]

_REPORTS: Final = {"openvino": "openvino_telemetry"}
"""Parts of libraries that report each use to their makers, which the libraries work without.

OpenVINO's converter sends such reports without asking, from processes that it forks, and writes an
identifier into the user's home. Nothing that runs beside a scanner may do so.
"""


_SETTINGS: Final = {"onnxruntime": ("ORT_DISABLE_TELEMETRY", "1")}
"""Variables of the environment by which libraries are kept from the same, read at their import.

ONNX Runtime's own wheels report loading, sessions and runs, and keep an identifier and a database
in the user's home. Whoever sets the variable otherwise decides so.
"""


def available(module: str) -> bool:
    """Tell whether `module` could be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package of a dotted name is absent
        return False


def require(module: str, *, extra: str) -> ModuleType:
    """Import and return `module`, without the part of it that reports its use over the network.

    Raises:
        MissingExtraError: It is not installed; the message holds the pip command for `extra`.
    """
    root = module.partition(".")[0]
    if root in _REPORTS and root not in sys.modules:  # else it is the user's own import that rules
        sys.modules.setdefault(_REPORTS[root], None)  # type: ignore[arg-type]  # "not to be found"
    if root in _SETTINGS:
        os.environ.setdefault(*_SETTINGS[root])
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != root:
            raise  # the library is there but broken: hiding that would mislead
        raise MissingExtraError(root, extra) from None


def require_torch_tensorrt() -> None:
    """Refuse what needs Torch-TensorRT where it is missing, without an import that takes a GPU.

    Raises:
        BackendError: It is not. No extra of this project brings it, since there is one for each
            version of PyTorch.
    """
    if not available("torch_tensorrt"):
        raise BackendError(
            "torch_tensorrt is not installed.",
            "Install it for the version of your PyTorch: pip install torch-tensorrt, or"
            " torch-tensorrt-rtx.",
        )


def load_attribute(import_string: str) -> Any:
    """Return what a string `module:name` of one of this project's tables stands for."""
    module, _, name = import_string.partition(":")
    return getattr(importlib.import_module(module), name)
