"""NIfTI: axes, intensities, geometry, damage."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdmri_edge.data.formats.registry import read_volume, write_image, write_image_record
from kdmri_edge.data.geometry import Affine, voxel_size
from kdmri_edge.data.image import ImageRecord
from kdmri_edge.errors import DataError, MissingExtraError
from kdmri_edge.utils import extras
from tests.core.data.strategies import affines, images
from tests.core.data.written import write_nifti


def test_voxels_follow_the_axes(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "a.nii.gz"
    write_nifti(path, pixels, zooms=(0.5, 0.75, 4.0))
    assert read_volume(path).voxel_mm == (4.0, 0.5, 0.75)


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(np.full((4, 5, 2), 10, np.int16), np.eye(4))
    path = tmp_path / "a.nii"
    nibabel.save(image, path)
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([2.5, 3.0], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(raw)
    np.testing.assert_array_equal(read_volume(path).image, 28.0)


def test_trailing_singleton_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    write_nifti(path, np.ones((6, 5, 3, 1), np.float32))
    assert read_volume(path).image.shape == (3, 6, 5)


def test_complex_keeps_its_phase(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "a.nii.gz"
    values = (pixels * np.exp(1j * pixels)).astype(np.complex64)
    write_nifti(path, values)
    volume = read_volume(path)
    assert volume.is_complex
    np.testing.assert_array_equal(volume.image, values)


def test_an_unknown_kind_of_numbers(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "a.nii"
    write_nifti(path, pixels)
    content = bytearray(path.read_bytes())
    content[70:72] = (9999).to_bytes(2, "little")  # datatype
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="cannot be read as NIfTI"):
        read_volume(path)


def test_damaged_inside_the_compressed_stream(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "a.nii.gz"
    write_nifti(path, pixels)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 40] = bytes(40)
    path.write_bytes(raw)
    with pytest.raises(DataError):
        read_volume(path)


def test_compressed_but_not_nifti(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(b"hello" * 200))
    with pytest.raises(DataError, match="cannot be read as NIfTI"):
        read_volume(path)


def test_without_nibabel_the_extra_is_named(
    tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.nii.gz"
    write_nifti(path, pixels)

    def absent(module: str, *, extra: str) -> Any:
        raise MissingExtraError(module, extra)

    monkeypatch.setattr(extras, "require", absent)
    with pytest.raises(MissingExtraError, match=r"kdmri-edge\[formats\]"):
        read_volume(path)


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(image=images(), affine=affines(), suffix=st.sampled_from([".nii", ".nii.gz"]))
def test_round_trip_keeps_place_and_phase(
    tmp_path: Path, image: np.ndarray, affine: Affine, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    write_image(path, image, voxel_size(affine), affine)
    again = read_volume(path)
    np.testing.assert_array_equal(again.image, image)
    assert again.image.dtype == image.dtype
    np.testing.assert_allclose(again.affine, affine, rtol=1e-5, atol=1e-4)
    assert again.voxel_mm == pytest.approx(voxel_size(affine), rel=1e-5)


def test_affine_is_that_of_other_software(tmp_path: Path) -> None:
    """The patient position of one voxel, by nibabel's axes (x, y, slice) and by ours."""
    nibabel = pytest.importorskip("nibabel")
    theirs = np.array([[0, -2.0, 0.1, 5], [1.5, 0, 0, -7], [0, 0.2, 4, 30], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 5, 3), np.float32), theirs), tmp_path / "a.nii")
    affine = read_volume(tmp_path / "a.nii").affine
    assert affine is not None
    np.testing.assert_allclose(affine @ [2, 3, 1, 1], theirs @ [3, 1, 2, 1], rtol=1e-6)


def test_micrometres(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(np.ones((4, 5, 3), np.float32), np.diag([500, 700, 2000, 1]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert volume.affine is not None
    assert voxel_size(volume.affine) == pytest.approx((2, 0.5, 0.7))
    assert volume.voxel_mm == pytest.approx((2, 0.5, 0.7))


def test_unknown_position_stays_unknown(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    write_image(path, np.ones((2, 4, 4), np.float32), (4.0, 1.0, 1.5))
    volume = read_volume(path)
    assert volume.affine is None
    assert volume.voxel_mm == (4.0, 1.0, 1.5)


def test_useless_affine_is_no_position(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "a.nii"
    write_nifti(path, pixels)
    raw = bytearray(path.read_bytes())
    raw[280:328] = bytes(48)  # srow_x, srow_y, srow_z
    path.write_bytes(raw)
    assert read_volume(path).affine is None


def test_description_says_how_the_images_came_about(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    derivation = "Reconstructed at 3 µm by " + "a network of a long name " * 5
    write_image_record(
        tmp_path / "a.nii", ImageRecord(image=np.ones((2, 4, 4), np.float32), derivation=derivation)
    )
    described = nibabel.load(tmp_path / "a.nii").header["descrip"].item().decode()
    assert described == derivation.replace("µ", "?")[:79]


def test_the_affine_tells_the_voxel_where_the_steps_do_not(tmp_path: Path) -> None:
    """A single slice of two axes, and steps that an editor of the sform left behind."""
    nibabel = pytest.importorskip("nibabel")
    affine = np.diag([0.881, 0.909, 3.0, 1.0])
    for name, shape, steps in (
        ("flat", (6, 5), (0.881, 0.909)),
        ("stale", (6, 5, 2), (1.0, 1.0, 1.0)),
        ("whole", (6, 5, 2), (0.881, 0.909, 3.0)),
    ):
        image = nibabel.Nifti1Image(np.ones(shape, np.float32), None)
        image.header.set_sform(affine, code=1)
        image.header.set_zooms(steps)
        image.header.set_xyzt_units("mm")
        nibabel.save(image, tmp_path / f"{name}.nii")
        volume = read_volume(tmp_path / f"{name}.nii")
        assert volume.voxel_mm == pytest.approx((3.0, 0.881, 0.909)), name
        assert volume.affine is not None
        assert voxel_size(volume.affine) == pytest.approx(volume.voxel_mm), name
