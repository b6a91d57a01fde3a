"""Cells of tables that are opened in spreadsheets.

A text that begins like a formula is taken for one, and a formula can send what is in the table to
whoever thought of it; names of volumes, subjects and networks come from strangers' files.
"""

from __future__ import annotations

from typing import Any, Final

__all__ = ["cell"]

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")


def cell(value: Any) -> Any:
    """Return what is written of a value in a cell of CSV.

    A text that a spreadsheet would take for a formula gets an apostrophe before it, after OWASP's
    advice against CSV injection. Numbers stay as they are, those that are text already as well.
    """
    if not isinstance(value, str) or not value.startswith(_FORMULA) or _is_number(value):
        return value
    return f"'{value}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
