"""The target of a package that is not ours inherits the cases of all targets."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdmri_edge.runtime.backends.registry import BACKENDS
from kdmri_edge.runtime.targets import TARGETS
from tests.export.parity_cases import ParityCases

PACKAGE = Path(__file__).resolve().parents[1] / "third_party"


@pytest.fixture(autouse=True, scope="module")
def _rows() -> Iterator[None]:
    """Its rows, as if it were installed; `tests/core/test_wheel.py` installs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(PACKAGE), *sys.path])
        rows = importlib.import_module("acme_recon.target")
        for table, row in ((BACKENDS, rows.BACKEND), (TARGETS, rows.TARGET)):
            patch.setitem(table._rows, row.name, row)
            patch.setattr(table, "_built_in", table._built_in | {row.name})
        yield
    for name in [name for name in sys.modules if name.startswith("acme_recon")]:
        del sys.modules[name]


class TestAcmeProgram(ParityCases):
    target = "acme-program"
    refuses = "sense"
    refusal = "without coils"
    takes_masks = False
    takes_batches = False
