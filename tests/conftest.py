"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DATA_VARIABLE = "KDMRI_TEST_DATA"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data: $KDMRI_TEST_DATA, else shared/data beside the checkout."""
    given = os.environ.get(DATA_VARIABLE)
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(given) if given else beside
    if not (folder / "brain").is_dir():
        pytest.skip(f"no real data at {folder}; set {DATA_VARIABLE} to a folder that holds brain/")
    return folder


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread_pool() -> None:
    """Keep PyTorch to two threads, as on the smallest machine that the tests run on."""
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = "2"
