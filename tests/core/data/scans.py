"""Scans that the tests of k-space readers draw, and the refusal that they look for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdmri_edge.data.formats.measured import mask_of
from kdmri_edge.data.formats.registry import read_scan
from kdmri_edge.data.scan import Scan
from kdmri_edge.errors import DataError

LINES = (0, 1, 3, 9)


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)


def undersampled(kspace: np.ndarray) -> np.ndarray:
    """K-space [..., H, W] with the lines of LINES alone."""
    result = np.zeros_like(kspace)
    result[..., LINES, :] = kspace[..., LINES, :]
    return result


def scan_of(kspace: np.ndarray) -> Scan:
    return Scan(kspace=kspace, mask=mask_of(kspace, "a"), name="a", subject="a")


def refused(path: Path, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_scan(path)
    assert caught.value.remedy.endswith((".", "`"))
