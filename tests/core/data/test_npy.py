"""NumPy arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdmri_edge.data.formats.registry import read_volume
from kdmri_edge.errors import DataError


def test_single_slice(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((6, 5)))
    assert read_volume(tmp_path / "a.npy").image.shape == (1, 6, 5)


def test_complex(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((2, 6, 5), -1 + 2j))
    volume = read_volume(tmp_path / "a.npy")
    assert volume.image.dtype == np.complex64


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 4)])
def test_empty(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.ones(shape))
    with pytest.raises(DataError, match="empty"):
        read_volume(tmp_path / "a.npy")


def test_text(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((2, 3, 3), "x"))
    with pytest.raises(DataError, match="not numbers"):
        read_volume(tmp_path / "a.npy")


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="pickled"):
        read_volume(tmp_path / "a.npy")


def test_archive_under_this_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(DataError, match="archive"):
        read_volume(tmp_path / "a.npy")


def test_values_beyond_float32(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((2, 3, 3), 1e300))
    with pytest.raises(DataError, match="infinite"):
        read_volume(tmp_path / "a.npy")
