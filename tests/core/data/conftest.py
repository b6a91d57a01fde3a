"""Fixtures of the readers' tests."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.core.data.written_twix import C, H, S, W, drawn, write_twix


@pytest.fixture
def pixels() -> np.ndarray:
    """[S, H, W] with three different lengths, so that a swapped axis shows."""
    return np.random.default_rng(3).uniform(0, 900, (3, 10, 8)).astype(np.float32)


@pytest.fixture
def kspace() -> np.ndarray:
    """Centred [S, C, H, W]."""
    return drawn(S, C, H, W)


@pytest.fixture
def raw_path(tmp_path: Path) -> Path:
    return tmp_path / "sub-07_T2w.dat"


@pytest.fixture
def write_raw(raw_path: Path) -> Callable[..., None]:
    def quietly(*measurements: Any, **fields: Any) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            write_twix(raw_path, *measurements, **fields)

    return quietly
