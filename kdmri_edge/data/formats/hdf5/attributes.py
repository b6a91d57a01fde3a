"""Text in HDF5: strings, bytes of fixed length, or an array of one (MATLAB's h5writeatt)."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["attribute_text"]


def attribute_text(value: Any) -> str | None:
    """Return an attribute or a dataset's value as text.

    Args:
        value: As h5py gives it.

    Returns:
        The text without trailing zero bytes; None for nothing, an empty text, or several values.
    """
    stored = np.asarray(value, dtype=object).reshape(-1)
    if value is None or len(stored) != 1:
        return None
    only = stored[0]
    text = only.decode("utf-8", "replace") if isinstance(only, bytes) else str(only)
    return text.rstrip("\0").strip() or None
