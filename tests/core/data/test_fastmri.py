"""fastMRI's single-coil layout, in files that the tests write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from kdmri_edge.data.case import make_case
from kdmri_edge.data.datasets import find_volumes
from kdmri_edge.data.formats.registry import read_volume
from kdmri_edge.data.resample import to_matrix
from kdmri_edge.errors import DataError
from kdmri_edge.physics.masks import Mask, equispaced_lines, random_lines

S, READOUT, PE = 2, 64, 48


def knee(seed: int = 0) -> np.ndarray:
    """Complex images [S, readout, phase encode] with air outside the central half of readout."""
    random = np.random.default_rng(seed)
    image = random.normal(size=(S, READOUT, PE)) + 1j * random.normal(size=(S, READOUT, PE))
    image[:, : READOUT // 4] = 0
    image[:, 3 * READOUT // 4 :] = 0
    return image


def write(path: Path, image: np.ndarray, *, patient: str = "p1", reference: bool = True) -> None:
    axes = (1, 2)
    kspace = np.fft.fft2(np.fft.ifftshift(image, axes), axes=axes, norm="ortho")
    with h5py.File(path, "w") as file:
        file["kspace"] = np.fft.fftshift(kspace, axes).astype(np.complex64)
        if reference:
            size = READOUT // 2
            start = [n // 2 - size // 2 for n in (READOUT, PE)]
            central = image[:, start[0] : start[0] + size, start[1] : start[1] + size]
            file["reconstruction_esc"] = np.abs(central).astype(np.float32)
        file.attrs["patient_id"] = patient
        file.attrs["acquisition"] = "CORPDFS_FBK"
        file["ismrmrd_header"] = "<ismrmrdHeader/>"


def test_phase_encode_is_h_and_oversampling_is_gone(tmp_path: Path) -> None:
    path, image = tmp_path / "file1000001.h5", knee()
    write(path, image)
    volume = read_volume(path)
    assert volume.image.shape == (S, PE, READOUT // 2)
    assert volume.image.dtype == np.complex64
    inside = image[:, READOUT // 4 : 3 * READOUT // 4]
    np.testing.assert_allclose(volume.image, np.swapaxes(inside, 1, 2), atol=1e-5)
    assert volume.measured
    assert (volume.subject, volume.contrast) == ("p1", "CORPDFS_FBK")
    with h5py.File(path) as file:  # the file's own reference, from our image
        size = READOUT // 2
        start = PE // 2 - size // 2
        own = np.abs(np.swapaxes(volume.image, 1, 2))[:, :, start : start + size]
        np.testing.assert_allclose(own, file["reconstruction_esc"], atol=1e-5)


def test_without_a_reference_the_readout_stays(tmp_path: Path) -> None:
    path = tmp_path / "file1.h5"
    write(path, knee(), reference=False)
    assert read_volume(path).image.shape == (S, PE, READOUT)


@pytest.mark.parametrize("family", [equispaced_lines, random_lines])
def test_masks_sample_the_measured_lines(tmp_path: Path, family: Callable[..., Mask]) -> None:
    path, image = tmp_path / "file1.h5", knee()
    write(path, image)
    mask = family(PE, 4.0, seed=1)
    case = make_case(read_volume(path), mask, channels=2)
    encoded = np.fft.fft(np.fft.ifftshift(case.zero_filled, 1), axis=1, norm="ortho")
    found = np.abs(encoded).sum((0, 2))
    assert np.all((found > 1e-3) == mask.samples)
    # the lines are those of the file: its readout, transformed and cropped, line by line
    with h5py.File(path) as file:
        lines = np.fft.ifftshift(np.asarray(file["kspace"]), (1, 2))  # zero frequency first
    readout = np.fft.fftshift(np.fft.ifft(lines, axis=1, norm="ortho"), 1)
    wanted = np.swapaxes(readout[:, READOUT // 4 : 3 * READOUT // 4], 1, 2) * mask.samples[:, None]
    np.testing.assert_allclose(np.abs(encoded), np.abs(wanted), atol=1e-4)


def test_a_file_with_gaps_is_no_fully_sampled_one(tmp_path: Path) -> None:
    path = tmp_path / "file1.h5"
    write(path, knee(), reference=False)
    taken = np.ones(PE, np.bool_)
    taken[3::4] = False
    with h5py.File(path, "r+") as file:
        file["kspace"][...] = np.asarray(file["kspace"]) * taken
        file["mask"] = taken.astype(np.float32)
    volume = read_volume(path)
    assert volume.kspace is not None
    assert volume.kspace_mask is not None
    np.testing.assert_array_equal(np.fft.fftshift(volume.kspace_mask.samples), taken)
    with pytest.raises(DataError, match="another mask"):
        make_case(volume, equispaced_lines(PE, 4.0, seed=1), channels=2)


def test_lines_that_are_padding_at_the_edges_are_no_gaps(tmp_path: Path) -> None:
    path = tmp_path / "file1.h5"
    write(path, knee(), reference=False)
    with h5py.File(path, "r+") as file:
        kspace = np.asarray(file["kspace"])
        kspace[..., :5] = kspace[..., -4:] = 0
        file["kspace"][...] = kspace
    assert read_volume(path).kspace is None


def test_knee_files_come_to_a_square_matrix(tmp_path: Path) -> None:
    path = tmp_path / "file1.h5"
    write(path, knee())
    assert to_matrix(read_volume(path), 40).image.shape == (S, 40, 40)


def test_the_papers_knee_mask_fits_the_lines(real_data: Path, tmp_path: Path) -> None:
    from kdmri_edge.physics.masks import load_mask

    masks = real_data / "masks" / "kd_mri_masks.json"
    if not masks.is_file():
        pytest.skip("the paper's masks are not there")
    mask = load_mask(masks, "knee_4x")
    assert mask.is_lines
    # A slice of the true size: 640 readout points, 368 phase encodes, a reference of 320 x 320.
    path, lines, readout = tmp_path / "file1000001.h5", 368, 640
    random = np.random.default_rng(0)
    kspace = random.normal(size=(1, readout, lines)) + 1j * random.normal(size=(1, readout, lines))
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace.astype(np.complex64)
        file["reconstruction_esc"] = np.ones((1, 320, 320), np.float32)
    case = make_case(read_volume(path), mask, channels=2)
    assert case.zero_filled.shape == (1, lines, 320)
    encoded = np.fft.fft(np.fft.ifftshift(case.zero_filled, 1), axis=1, norm="ortho")
    found = np.linalg.norm(encoded, axis=(0, 2))
    assert found[mask.samples].min() > 1
    assert found[~mask.samples].max() < 1e-3
    # For magnitude networks, at the square matrix that keeps every line.
    magnitude = make_case(to_matrix(read_volume(path), lines), mask)
    assert magnitude.target.shape == (1, lines, lines)
    assert magnitude.target.dtype == np.float32


def test_magnitude_of_a_file_is_its_reference(tmp_path: Path) -> None:
    """What a magnitude network learns is the file's own `reconstruction_esc` where that reaches."""
    path = tmp_path / "file1.h5"
    write(path, knee())
    case = make_case(read_volume(path), random_lines(PE, 4.0, seed=1))
    size = READOUT // 2
    start = PE // 2 - size // 2
    own = np.swapaxes(case.target, 1, 2)[:, :, start : start + size]
    with h5py.File(path) as file:
        np.testing.assert_allclose(own, file["reconstruction_esc"], atol=1e-5)


def test_a_file_without_kspace_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file1.h5"
    with h5py.File(path, "w") as file:
        file["reconstruction_esc"] = np.ones((2, 8, 8), np.float32)
        file.attrs["patient_id"] = "p1"
    with pytest.raises(DataError, match=r"file1\.h5 holds no kspace"):
        read_volume(path)


def test_two_files_of_a_patient_are_one_subject(tmp_path: Path) -> None:
    for name in ("file1", "file2"):
        write(tmp_path / f"{name}.h5", knee(), patient="same")
    assert {file.subject for file in find_volumes(tmp_path)} == {"same"}


@pytest.mark.parametrize(
    ("kspace", "words"),
    [
        (np.ones((2, 15, 8, 8), np.complex64), "15 coils"),
        (np.ones((8, 8), np.complex64), "shape"),
        (np.ones((2, 8, 8), np.float32), "not complex"),
        (np.full((2, 8, 8), np.nan, np.complex64), "NaN"),
        (np.zeros((2, 8, 8), np.complex64), "all zero"),
    ],
)
def test_what_it_refuses(tmp_path: Path, kspace: np.ndarray, words: str) -> None:
    path = tmp_path / "file1.h5"
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
    with pytest.raises(DataError, match=words):
        read_volume(path)
