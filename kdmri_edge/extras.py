"""Optional libraries: found without importing them, imported with a helpful message."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from kdmri_edge.errors import MissingExtraError

__all__ = ["available", "require"]


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
