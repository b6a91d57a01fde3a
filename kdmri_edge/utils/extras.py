"""Imports at the last moment: optional libraries, and what the tables name by import strings."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

from kdmri_edge.errors import MissingExtraError

__all__ = ["available", "load_attribute", "require"]


def available(module: str) -> bool:
    """Tell whether `module` could be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package of a dotted name is absent
        return False


def require(module: str, *, extra: str) -> ModuleType:
    """Import and return `module`.

    Raises:
        MissingExtraError: It is not installed; the message holds the pip command for `extra`.
    """
    root = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != root:
            raise  # the library is there but broken: hiding that would mislead
        raise MissingExtraError(root, extra) from None


def load_attribute(import_string: str) -> Any:
    """Return what a string `module:name` of one of this project's tables stands for."""
    module, _, name = import_string.partition(":")
    return getattr(importlib.import_module(module), name)
