"""Siemens raw data: every way in which lines arrive, in files that the tests write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdmri_edge.data.formats.registry import read_scan, read_volume
from kdmri_edge.data.formats.twix import centred_size
from kdmri_edge.physics.fourier import kspace_to_image
from tests.core.data.written_twix import C, H, S, W, drawn, line, whole, zero_first

pytest.importorskip("twixtools")


def test_whole_scan(raw_path: Path, write_raw: Any, kspace: np.ndarray,
                    capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    write_raw(whole(kspace))
    scan = read_scan(raw_path)
    np.testing.assert_allclose(scan.kspace, zero_first(kspace), rtol=1e-6)
    assert scan.mask.is_lines
    assert scan.mask.samples.all()
    assert (scan.name, scan.subject, scan.contrast) == ("sub-07_T2w", "07", "T2w")
    assert scan.noise is None
    assert capsys.readouterr().out == ""  # the library's prints stay away from --json


def test_any_order_of_lines(raw_path: Path, write_raw: Any, kspace: np.ndarray) -> None:
    lines = whole(kspace)
    write_raw([lines[n] for n in np.random.default_rng(0).permutation(len(lines))])
    np.testing.assert_allclose(read_scan(raw_path).kspace, zero_first(kspace), rtol=1e-6)


def test_slices_are_in_their_spatial_order(
    raw_path: Path, write_raw: Any, kspace: np.ndarray
) -> None:
    """Interleaved: the counter tells when a slice was measured, the position where it is."""
    heights = [4, -4, 0]
    write_raw([
        line(kspace[s, :, h], lin=h, sli=s, centre=H // 2, position=(1, 2, heights[s]))
        for s in range(S) for h in range(H)
    ])  # fmt: skip
    scan = read_scan(raw_path)
    np.testing.assert_allclose(scan.kspace, zero_first(kspace[[1, 2, 0]]), rtol=1e-6)
    assert scan.affine is not None
    np.testing.assert_allclose(scan.affine @ [0, H // 2, W // 2, 1], [-1, -2, -4, 1], atol=1e-5)
    np.testing.assert_allclose(scan.affine @ [2, H // 2, W // 2, 1], [-1, -2, 4, 1], atol=1e-5)


def test_averages_are_averaged(raw_path: Path, write_raw: Any, kspace: np.ndarray) -> None:
    again = drawn(S, C, H, W, seed=1)
    write_raw(whole(kspace, Ave=0) + whole(again, Ave=1))
    np.testing.assert_allclose(
        read_scan(raw_path).kspace, zero_first((kspace + again) / 2), rtol=1e-5, atol=1e-6
    )


def test_reversed_lines_are_turned(raw_path: Path, write_raw: Any, kspace: np.ndarray) -> None:
    lines = whole(kspace)
    for s in range(S):
        for h in range(1, H, 2):
            lines[s * H + h] = line(kspace[s, :, h, ::-1], lin=h, sli=s, centre=H // 2,
                                    position=(0, 0, 4 * s), flags=["REFLECT"])  # fmt: skip
    write_raw(lines)
    np.testing.assert_allclose(read_scan(raw_path).kspace, zero_first(kspace), rtol=1e-6)


def test_noise_of_the_measurement_before(
    raw_path: Path, write_raw: Any, kspace: np.ndarray
) -> None:
    noise = drawn(C, 32, seed=2)
    other = drawn(C + 1, 32, seed=3)  # of another coil selection
    write_raw(
        [line(noise[:, :16], flags=["NOISEADJSCAN"]), line(noise[:, 16:], flags=["NOISEADJSCAN"]),
         line(other, flags=["NOISEADJSCAN"])],
        whole(kspace),
    )  # fmt: skip
    scan = read_scan(raw_path)
    np.testing.assert_array_equal(scan.noise, noise)
    np.testing.assert_allclose(scan.kspace, zero_first(kspace), rtol=1e-6)


def test_noise_of_the_same_measurement(raw_path: Path, write_raw: Any, kspace: np.ndarray) -> None:
    noise = drawn(C, 32, seed=2)
    write_raw([line(noise, flags=["NOISEADJSCAN"]), *whole(kspace)])
    np.testing.assert_array_equal(read_scan(raw_path).noise, noise)


def test_oversampling_is_removed(raw_path: Path, write_raw: Any) -> None:
    image = drawn(1, C, H, 2 * W)
    image[..., : W // 2] = image[..., -W // 2 :] = 0  # air, as the scanner's filter leaves it
    centred = np.fft.fftshift(
        np.fft.fft2(np.fft.ifftshift(image, (-2, -1)), norm="ortho"), axes=(-2, -1)
    )
    write_raw(whole(centred), oversampling=2.0)
    scan = read_scan(raw_path)
    assert scan.matrix == (H, W)
    np.testing.assert_allclose(
        kspace_to_image(scan.kspace), image[..., W // 2 : -W // 2], atol=1e-5
    )
    assert scan.voxel_mm == pytest.approx((4, 180 / H, 240 / W))


@pytest.mark.parametrize("first", [1, 3])
def test_partial_fourier_lines_are_unsampled(
    raw_path: Path, write_raw: Any, kspace: np.ndarray, first: int
) -> None:
    """The lines before `first` were left out, and the counter starts with those that are there."""
    write_raw([
        line(kspace[0, :, h], lin=h - first, centre=H // 2 - first) for h in range(first, H)
    ])  # fmt: skip
    scan = read_scan(raw_path)
    assert scan.matrix == (H, W)
    expected = kspace[:1].copy()
    expected[:, :, :first] = 0
    np.testing.assert_allclose(scan.kspace, zero_first(expected), rtol=1e-6)
    np.testing.assert_array_equal(np.fft.fftshift(scan.mask.samples), np.arange(H) >= first)


def test_acceleration_is_unsampled_lines(
    raw_path: Path, write_raw: Any, kspace: np.ndarray
) -> None:
    taken = [0, 2, 4, 5, 6, 8]
    write_raw([line(kspace[0, :, h], lin=h, centre=H // 2) for h in taken])
    scan = read_scan(raw_path)
    assert scan.matrix == (H, W)
    assert np.flatnonzero(np.fft.fftshift(scan.mask.samples)).tolist() == taken


@pytest.mark.parametrize("mode", [2, 4])
def test_reference_lines_count_where_they_are_of_the_image(
    raw_path: Path, write_raw: Any, kspace: np.ndarray, mode: int
) -> None:
    lines = [line(kspace[0, :, h], lin=h, centre=H // 2) for h in (0, 2, 4, 6, 8)]
    lines += [line(kspace[0, :, 5], lin=5, centre=H // 2, flags=["PATREFSCAN"])]
    write_raw(lines, sPat__ucRefScanMode=mode)
    assert int(read_scan(raw_path).mask.samples.sum()) == (6 if mode == 2 else 5)


def test_asymmetric_echo_is_a_mask_of_points(
    raw_path: Path, write_raw: Any, kspace: np.ndarray
) -> None:
    """The readout lacks its first two points; its echo is still at the centre."""
    write_raw(
        [line(kspace[0, :, h, 2:], lin=h, centre=H // 2, column=W // 2 - 2) for h in range(H)]
    )
    scan = read_scan(raw_path)
    assert scan.matrix == (H, W)
    assert not scan.mask.is_lines
    expected = kspace[:1].copy()
    expected[..., :2] = 0
    np.testing.assert_allclose(scan.kspace, zero_first(expected), rtol=1e-6, atol=1e-6)


def test_cut_off_points_are_not_sampled(raw_path: Path, write_raw: Any, kspace: np.ndarray) -> None:
    write_raw(whole(kspace[:1], cutoff=2))
    assert not np.fft.fftshift(read_scan(raw_path).kspace, -1)[..., :2].any()


def test_sequences_without_a_centre_line(
    raw_path: Path, write_raw: Any, kspace: np.ndarray
) -> None:
    write_raw([line(kspace[0, :, h], lin=h, centre=0) for h in range(H)])
    np.testing.assert_allclose(read_scan(raw_path).kspace, zero_first(kspace[:1]), rtol=1e-6)


@given(st.integers(2, 60), st.data())
def test_full_axis_from_its_centre(size: int, data: st.DataObject) -> None:
    """Whatever lines are left out in front, the full size comes back."""
    left_out = data.draw(st.integers(0, size - 1))
    full = 2 * size
    assert centred_size(full // 2 - left_out, full - left_out) == full
    assert centred_size(size // 2, size, planned=size) == size


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4), st.floats(-100, 100))
def test_oblique_geometry(numbers: list[float], offset: float) -> None:
    from kdmri_edge.data.formats.twix import _affine, _rotation

    rotation = _rotation(np.array(numbers))
    if rotation is None:  # as a sequence leaves it that fills nothing in
        assert np.linalg.norm(numbers) < 0.5
        assert _affine({}, None, np.zeros((1, 3)), (10, 8)) is None
        return
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    centres = np.array([[offset, 1, 2] + rotation[:, 2] * 5 * s for s in range(3)])
    protocol = {"sSliceArray": {"asSlice": [{"dPhaseFOV": 180.0, "dReadoutFOV": 240.0,
                                             "dThickness": 4.0}]}}  # fmt: skip
    affine = _affine(protocol, rotation, centres, (10, 8))
    assert affine is not None
    for s in range(3):  # LPS+ to RAS+
        np.testing.assert_allclose((affine @ [s, 5, 4, 1])[:3], centres[s] * [-1, -1, 1], atol=1e-9)
    np.testing.assert_allclose(affine[:3, 1] * [-1, -1, 1], -rotation[:, 0] * 18, atol=1e-9)
    np.testing.assert_allclose(affine[:3, 2] * [-1, -1, 1], -rotation[:, 1] * 30, atol=1e-9)


def test_one_coil_is_a_volume(raw_path: Path, write_raw: Any, kspace: np.ndarray) -> None:
    write_raw(whole(kspace[:, :1]))
    volume = read_volume(raw_path)
    np.testing.assert_allclose(
        volume.image, kspace_to_image(zero_first(kspace[:, 0])), rtol=1e-4, atol=1e-5
    )
    assert volume.kspace is None
    assert volume.measured
    assert volume.affine is not None


def test_one_coil_undersampled_carries_its_kspace(raw_path: Path, write_raw: Any,
                                                  kspace: np.ndarray) -> None:  # fmt: skip
    write_raw([line(kspace[0, :1, h], lin=h, centre=H // 2) for h in (0, 4, 5, 6, 9)])
    volume = read_volume(raw_path)
    assert volume.kspace_mask is not None
    assert int(volume.kspace_mask.samples.sum()) == 5


def test_without_a_field_of_view_there_is_no_geometry(
    raw_path: Path, write_raw: Any, kspace: np.ndarray
) -> None:
    write_raw(whole(kspace), **{"sSliceArray__asSlice[0]__dPhaseFOV": None})
    assert read_scan(raw_path).affine is None


def test_a_pulseq_sequence_has_no_geometry(
    raw_path: Path, write_raw: Any, kspace: np.ndarray
) -> None:
    write_raw(whole(kspace), tSequenceFileName='"%CustomerSeq%\\\\pulseq"')
    assert read_scan(raw_path).affine is None


def test_real_scan_is_its_hdf5_twin(real_data: Path) -> None:
    folder = real_data / "kspace"
    raw, twin = folder / "invivo_brain_16coil_twix.dat", folder / "invivo_brain_16coil.h5"
    if not raw.is_file() or not twin.is_file():
        pytest.skip(f"{raw} or {twin} is not there")
    scan = read_scan(raw)
    other = read_scan(Path(f"{twin}:kspace:chw"))
    assert scan.kspace.shape == other.kspace.shape == (1, 16, 128, 128)
    scale = np.vdot(other.kspace, scan.kspace) / np.vdot(other.kspace, other.kspace)
    distance = np.linalg.norm(scan.kspace - scale * other.kspace) / np.linalg.norm(scan.kspace)
    assert distance < 0.01
    assert scan.affine is None  # a Pulseq sequence: the header's directions are not what it played
    with h5py.File(twin) as file:
        assert list(file) == ["kspace"]
