"""The rows of a benchmark before they are measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdmri_bench.exporter import Refused
from kdmri_bench.schema import Row

__all__ = ["Plan"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """One row to be measured, or why it cannot be.

    Attributes:
        row: the row as far as it is known; its status is SKIPPED or FAILED where nothing can run.
        source: bundle folder or checkpoint; None where nothing can run.
        backend: for `open_session`.
        options: further arguments of `open_session`.
        dynamic: makes the bundle that takes any batch, when it is needed; None where the source
            itself takes any batch, or nothing larger than one slice can be run.
        opener: import string of what opens the source instead of `open_session`.
    """

    row: Row
    source: Path | None
    backend: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    dynamic: Callable[[], Path | Refused] | None = None
    opener: str | None = None
