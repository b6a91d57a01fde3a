"""Fixtures of the readers' tests."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def pixels() -> np.ndarray:
    """[S, H, W] with three different lengths, so that a swapped axis shows."""
    return np.random.default_rng(3).uniform(0, 900, (3, 10, 8)).astype(np.float32)
