"""What inspect says is what is in the file."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdmri_edge.data.formats.bart import write_bart_scan
from kdmri_edge.data.formats.measured import mask_of
from kdmri_edge.data.formats.registry import write_image
from kdmri_edge.data.geometry import from_axes
from kdmri_edge.data.inspection import inspect
from kdmri_edge.data.scan import Scan
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.redraw import lines_around_zero
from tests.core.data.written_dicom import write_series
from tests.core.data.written_twix import line, whole, write_twix

AXIAL = from_axes((0, 0, 4), (-1.5, 0, 0), (0, 0.5, 0), (50, 60, 10))
LINES = (0, 1, 3, 9)


def drawn(*shape: int) -> np.ndarray:
    random = np.random.default_rng(0)
    return (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)


@given(st.integers(2, 40), st.data())
def test_centre_lines_are_counted_around_zero_frequency(size: int, data: st.DataObject) -> None:
    above = data.draw(st.integers(1, size - 1))
    below = data.draw(st.integers(0, size - 1 - above))
    samples = np.zeros(size, bool)
    samples[:above] = True
    samples[size - below :] = True
    expected = size if above + below == size else above + below
    assert lines_around_zero(Mask(samples=samples, name="a")) == expected


def test_no_centre_line() -> None:
    assert lines_around_zero(Mask(samples=np.arange(8) == 3, name="a")) == 0


def test_nifti(tmp_path: Path) -> None:
    write_image(tmp_path / "sub-01_T1w.nii", np.ones((3, 8, 6), np.float32), None, AXIAL)
    facts = inspect(tmp_path / "sub-01_T1w.nii")
    assert (facts.format, facts.holds, facts.slices, facts.matrix) == (
        "NIfTI", "magnitude images", 3, (8, 6),
    )  # fmt: skip
    assert facts.directions == "SLA"
    assert facts.voxel_mm == pytest.approx((4, 1.5, 0.5))
    assert (facts.subject, facts.contrast) == ("01", "T1w")
    assert facts.taken
    assert "--undersample" in facts.run


def test_complex_images(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", drawn(2, 8, 6))
    facts = inspect(tmp_path / "a.npy")
    assert facts.holds == "complex images"
    assert (facts.voxel_mm, facts.directions, facts.mask) == (None, None, None)


def test_dicom_says_nothing_of_the_patient(tmp_path: Path) -> None:
    write_series(tmp_path / "knee", np.ones((3, 8, 6), int), AXIAL[:, [0, 2, 1, 3]])
    facts = inspect(tmp_path / "knee")
    assert facts.format == "DICOM"
    assert "4711" not in repr(facts)
    assert "Doe" not in repr(facts)


def test_raw_data_with_noise_and_coils(tmp_path: Path) -> None:
    noise = [line(drawn(2, 32), flags=["NOISEADJSCAN"])]
    write_twix(tmp_path / "meas.dat", noise, whole(drawn(3, 2, 10, 8)))
    facts = inspect(tmp_path / "meas.dat")
    assert (facts.format, facts.holds, facts.coils) == ("Siemens TWIX", "k-space", 2)
    assert (facts.slices, facts.matrix, facts.noise_samples) == (3, (10, 8), 32)
    assert facts.voxel_mm == pytest.approx((4, 18, 30))
    assert facts.taken
    assert "give --undersample; run combines the 2 coils" in facts.run
    assert "dccnn-d3c5-sense" in facts.run


def test_mask_of_undersampled_kspace(tmp_path: Path) -> None:
    kspace = np.zeros((2, 10, 8), np.complex64)
    kspace[:, LINES] = drawn(2, 4, 8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["k"] = np.fft.fftshift(kspace, (-2, -1))
    facts = inspect(tmp_path / "a.h5:k:shw")
    assert facts.format == "HDF5"
    assert facts.mask is not None
    assert (facts.mask.kind, facts.mask.sampled, facts.mask.of) == ("lines", 4, 10)
    assert (facts.mask.acceleration, facts.mask.centre_lines) == (2.5, 3)
    assert facts.taken
    assert facts.run.startswith("undersampled k-space, for a network of this sampling mask")
    assert "coils" not in facts.run
    assert "--undersample" not in facts.run


def test_layouts_have_their_names(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["volfs"] = np.ones((8, 8, 2))
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["kspace"] = drawn(2, 3, 8, 10)
    assert inspect(tmp_path / "a.h5").format == "KD-MRI HDF5"
    facts = inspect(tmp_path / "b.h5")
    assert (facts.format, facts.coils, facts.matrix) == ("fastMRI HDF5", 3, (10, 8))


def test_bart_of_one_coil_is_what_the_user_says(tmp_path: Path) -> None:
    kspace = drawn(1, 1, 10, 8)
    scan = Scan(kspace=kspace, mask=mask_of(kspace, "a"), name="a", subject="a")
    write_bart_scan(tmp_path / "a.cfl", scan)
    assert inspect(tmp_path / "a.cfl").holds == "complex images"
    facts = inspect(tmp_path / "a.cfl", kspace=True)
    assert facts.holds == "k-space"
    assert not facts.taken
    assert f"data convert {tmp_path / 'a.cfl'} OUT.h5 --kspace" in facts.run


def test_undersampled_bart_of_one_coil_is_no_kspace_to_run_either(tmp_path: Path) -> None:
    kspace = np.zeros((1, 1, 10, 8), np.complex64)
    kspace[:, :, LINES] = drawn(1, 1, 4, 8)
    scan = Scan(kspace=kspace, mask=mask_of(kspace, "a"), name="a", subject="a")
    write_bart_scan(tmp_path / "a.cfl", scan)
    assert not inspect(tmp_path / "a.cfl", kspace=True).taken
