"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DATA_VARIABLE = "KDMRI_TEST_DATA"

# At most two threads, as on the smallest machine that the tests run on, and no more than the cores
# that fall to one of pytest-xdist's workers: threads that wait for each other's cores slow all
# down. Set before PyTorch is first imported, which reads it then; their processes inherit it.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, max(1, (os.cpu_count() or 1) // _WORKERS))))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data: $KDMRI_TEST_DATA, else shared/data beside the checkout."""
    given = os.environ.get(DATA_VARIABLE)
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(given) if given else beside
    if not (folder / "brain").is_dir():
        pytest.skip(f"no real data at {folder}; set {DATA_VARIABLE} to a folder that holds brain/")
    return folder
