"""Measured k-space as a Scan: BART, fastMRI with coils, named datasets, and what all share."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdmri_edge.data.bart import write_bart_scan
from kdmri_edge.data.cases import make_case
from kdmri_edge.data.folder import find_volumes
from kdmri_edge.data.measured import mask_of, root_sum_of_squares, volume_of
from kdmri_edge.data.readers import read_volume
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.scan_readers import SCAN_READERS, read_scan
from kdmri_edge.data.writers import write_image
from kdmri_edge.errors import DataError
from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image
from kdmri_edge.physics.masks import Mask, random_lines
from tests.core.data.strategies import images

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


def test_formats_without_kspace_name_those_with(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 3, 3)))
    refused(tmp_path / "a.npy", "no measured k-space")
    with pytest.raises(DataError) as caught:
        read_scan(tmp_path / "a.npy")
    assert all(suffix in caught.value.remedy for suffix in SCAN_READERS)


@pytest.mark.parametrize("suffix", sorted(SCAN_READERS))
class TestEveryFile:
    def test_missing(self, tmp_path: Path, suffix: str) -> None:
        refused(tmp_path / f"absent{suffix}", "does not exist")

    def test_junk(self, tmp_path: Path, suffix: str) -> None:
        (tmp_path / f"junk{suffix}").write_bytes(b"not a scan at all" * 40)
        refused(tmp_path / f"junk{suffix}", r"junk.*cannot be read")


class TestMask:
    def test_lines_from_zeros(self) -> None:
        mask = mask_of(undersampled(drawn(2, 3, 10, 8)), "a")
        assert mask.is_lines
        assert np.flatnonzero(mask.samples).tolist() == list(LINES)

    def test_points_from_zeros(self) -> None:
        kspace = drawn(2, 3, 10, 8)
        kspace[..., :, 2:6] = 0
        mask = mask_of(kspace, "a")
        assert not mask.is_lines
        assert not mask.samples[:, 2:6].any()

    def test_a_blank_slice_tells_nothing(self) -> None:
        kspace = undersampled(drawn(2, 3, 10, 8))
        kspace[1] = 0
        assert int(mask_of(kspace, "a").samples.sum()) == len(LINES)

    def test_slices_must_agree(self) -> None:
        kspace = drawn(2, 3, 10, 8)
        kspace[1, :, 4] = 0
        with pytest.raises(DataError, match="sampled differently"):
            mask_of(kspace, "a")

    def test_all_zero(self) -> None:
        with pytest.raises(DataError, match="all zero"):
            mask_of(np.zeros((1, 1, 4, 4), np.complex64), "a")


class TestOneCoil:
    def test_fully_sampled_is_images_that_any_mask_may_undersample(self) -> None:
        image = drawn(2, 10, 8)
        volume = volume_of(scan_of(image_to_kspace(image)[:, None]))
        np.testing.assert_allclose(volume.image, image, atol=1e-6)
        assert volume.kspace is None
        assert make_case(volume, random_lines(10, 2.0, centre_fraction=0.2), 2).scale.all()

    def test_undersampled_carries_kspace_and_mask(self) -> None:
        kspace = undersampled(image_to_kspace(drawn(2, 10, 8)))
        volume = volume_of(scan_of(kspace[:, None]))
        assert volume.kspace_mask is not None
        case = make_case(volume, Mask(samples=volume.kspace_mask.samples, name="b"), 2)
        np.testing.assert_allclose(image_to_kspace(case.zero_filled), kspace, atol=1e-5)

    def test_several_coils_are_refused(self) -> None:
        with pytest.raises(DataError, match="3 coils"):
            volume_of(scan_of(drawn(2, 3, 10, 8)))

    def test_root_sum_of_squares(self) -> None:
        image, sensitivity = drawn(2, 1, 10, 8), drawn(1, 3, 10, 8)
        sensitivity /= np.sqrt((np.abs(sensitivity) ** 2).sum(axis=1, keepdims=True))
        combined = root_sum_of_squares(image_to_kspace(image * sensitivity))
        np.testing.assert_allclose(combined, np.abs(image[:, 0]), rtol=1e-4)


class TestBart:
    @settings(deadline=None, max_examples=20)
    @given(image=images())
    def test_images_come_back(self, image: np.ndarray, tmp_path_factory: pytest.TempPathFactory,
                              ) -> None:  # fmt: skip
        path = tmp_path_factory.mktemp("b") / "a.cfl"
        write_image(path, image)
        again = read_volume(path)
        np.testing.assert_array_equal(again.image, image)
        assert again.image.dtype == image.dtype

    @settings(deadline=None, max_examples=20)
    @given(
        slices=st.integers(1, 3),
        coils=st.integers(1, 4),
        height=st.integers(10, 13),
        width=st.integers(1, 9),
    )
    def test_kspace_comes_back(
        self, slices: int, coils: int, height: int, width: int,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> None:  # fmt: skip
        path = tmp_path_factory.mktemp("b") / "sub-01_T1w.cfl"
        scan = scan_of(undersampled(drawn(slices, coils, height, width)))
        write_bart_scan(path, scan)
        again = read_scan(path)
        np.testing.assert_array_equal(again.kspace, scan.kspace)
        assert again.mask == scan.mask
        assert (again.subject, again.contrast) == ("01", "T1w")

    def test_bytes_are_barts(self, tmp_path: Path) -> None:
        """READ varies fastest, then PHS1, COIL, and SLICE; zero frequency at N // 2."""
        kspace = drawn(2, 3, 10, 8)
        write_bart_scan(tmp_path / "a.cfl", scan_of(kspace))
        header = (tmp_path / "a.hdr").read_text().splitlines()
        assert header[:2] == ["# Dimensions", "8 10 1 3 1 1 1 1 1 1 1 1 1 2 1 1 "]
        stored = np.fromfile(tmp_path / "a.cfl", "<c8").reshape(8, 10, 1, 3, 2, order="F")
        assert stored[4, 5, 0, 2, 1] == kspace[1, 2, 0, 0]
        assert stored[5, 7, 0, 0, 0] == kspace[0, 0, 2, 1]

    def test_image_and_kspace_are_a_fourier_transform_apart(self, tmp_path: Path) -> None:
        kspace = drawn(1, 1, 10, 8)
        write_bart_scan(tmp_path / "k.cfl", scan_of(kspace))
        np.testing.assert_allclose(
            volume_of(read_scan(tmp_path / "k.cfl")).image, kspace_to_image(kspace[:, 0]), atol=1e-6
        )

    def test_coils_are_no_images(self, tmp_path: Path) -> None:
        write_bart_scan(tmp_path / "k.cfl", scan_of(drawn(1, 2, 10, 8)))
        with pytest.raises(DataError, match="2 coils"):
            read_volume(tmp_path / "k.cfl")

    @pytest.mark.parametrize("axis", [2, 4, 5, 10])
    def test_more_than_one_measurement(self, tmp_path: Path, axis: int) -> None:
        sizes = [4, 3] + [1] * 14
        sizes[axis] = 2
        drawn(24).tofile(tmp_path / "a.cfl")
        (tmp_path / "a.hdr").write_text("# Dimensions\n" + " ".join(map(str, sizes)) + "\n")
        refused(tmp_path / "a.cfl", "2 entries along")

    @pytest.mark.parametrize("header", ["", "# Dimensions\n", "# Dimensions\n4 x\n",
                                        "# Dimensions\n4 -3\n"])  # fmt: skip
    def test_bad_header(self, tmp_path: Path, header: str) -> None:
        drawn(12).tofile(tmp_path / "a.cfl")
        (tmp_path / "a.hdr").write_text(header)
        refused(tmp_path / "a.cfl", "cannot be read")

    def test_no_header(self, tmp_path: Path) -> None:
        drawn(12).tofile(tmp_path / "a.cfl")
        refused(tmp_path / "a.cfl", "a.hdr is missing")

    def test_cut_short(self, tmp_path: Path) -> None:
        write_bart_scan(tmp_path / "a.cfl", scan_of(drawn(1, 2, 10, 8)))
        raw = (tmp_path / "a.cfl").read_bytes()
        (tmp_path / "a.cfl").write_bytes(raw[:-8])
        refused(tmp_path / "a.cfl", "asks for")


class TestFastmri:
    @pytest.mark.parametrize("header", [False, True])
    def test_coils_and_oversampling(self, tmp_path: Path, header: bool) -> None:
        images = drawn(2, 3, 16, 10)  # [slices, coils, readout, phase encode]
        images[:, :, :4] = images[:, :, 12:] = 0
        kspace = undersampled(np.swapaxes(image_to_kspace(images), -1, -2))
        with h5py.File(tmp_path / "file1.h5", "w") as file:
            file["kspace"] = np.fft.fftshift(np.swapaxes(kspace, -1, -2), (-2, -1))
            file.attrs["patient_id"] = "p1"
            if header:
                file["ismrmrd_header"] = (
                    "<encoding><encodedSpace><matrixSize><x>16</x></matrixSize></encodedSpace>"
                    "<reconSpace><matrixSize><x>8</x><y>8</y></matrixSize></reconSpace></encoding>"
                )
            else:
                file["reconstruction_rss"] = np.ones((2, 8, 8), np.float32)
        scan = read_scan(tmp_path / "file1.h5")
        assert scan.kspace.shape == (2, 3, 10, 8)
        assert np.flatnonzero(scan.mask.samples).tolist() == list(LINES)
        expected = kspace_to_image(kspace)[..., 4:12]
        np.testing.assert_allclose(kspace_to_image(scan.kspace), expected, atol=1e-5)
        assert scan.subject == "p1"

    def test_single_coil_too(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "file1.h5", "w") as file:
            file["kspace"] = drawn(2, 16, 10)
        assert read_scan(tmp_path / "file1.h5").kspace.shape == (2, 1, 10, 16)


class TestNamedDataset:
    @settings(deadline=None, max_examples=25)
    @given(order=st.permutations("schw"), rank=st.integers(2, 4), first=st.booleans())
    def test_axes_in_any_order(
        self, order: list[str], rank: int, first: bool, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        axes = [a for a in order if a in "schw"[4 - rank :] or a in "hw"][:4]
        sizes = {"s": 2, "c": 3, "h": 10, "w": 8}
        kspace = drawn(*(sizes[a] if a in axes else 1 for a in "schw"))
        stored = kspace if first else np.fft.fftshift(kspace, (-2, -1))
        absent = tuple("schw".index(a) for a in "sc" if a not in axes)
        stored = stored.squeeze(absent) if absent else stored
        present = [a for a in "schw" if a in axes]
        stored = stored.transpose([present.index(a) for a in axes])
        path = tmp_path_factory.mktemp("h") / "x.h5"
        with h5py.File(path, "w") as file:
            file["group/FLAIR"] = stored
            if first:
                file["group/FLAIR"].attrs["zero_frequency"] = "first"
        scan = read_scan(Path(f"{path}:group/FLAIR:{''.join(axes)}"))
        np.testing.assert_array_equal(scan.kspace, kspace)
        assert (scan.name, scan.contrast) == ("x_group_FLAIR", "FLAIR")

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "ulf_sub-1.h5"
        with h5py.File(path, "w") as file:
            file["FLAIR"] = np.fft.fftshift(undersampled(drawn(2, 10, 8)), (-2, -1))
            file["FSE"] = drawn(2, 10, 8)
            file["real"] = np.ones((2, 10, 8))
        return path

    def test_attribute_instead_of_letters(self, path: Path) -> None:
        with h5py.File(path, "a") as file:
            file["FSE"].attrs["axes"] = "s h w"
        assert read_scan(path).kspace.shape == (2, 1, 10, 8)  # the only one that is marked
        assert read_scan(Path(f"{path}:FSE")).kspace.shape == (2, 1, 10, 8)

    def test_real_and_imaginary_fields(self, tmp_path: Path) -> None:
        pair = np.zeros((2, 10, 8), [("real", "<f4"), ("imag", "<f4")])
        pair["real"], pair["imag"] = 1, 2
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["k"] = pair
        assert (read_scan(tmp_path / "a.h5:k:shw").kspace == 1 + 2j).all()

    def test_run_takes_it_as_kspace_with_its_mask(self, path: Path) -> None:
        named = Path(f"{path}:FLAIR:shw")
        volume = read_volume(named)
        assert volume.kspace_mask is not None
        assert np.flatnonzero(volume.kspace_mask.samples).tolist() == list(LINES)
        (file,) = find_volumes(named)
        assert (file.name, file.subject, file.contrast) == ("ulf_sub-1_FLAIR", "ulf_sub-1", "FLAIR")

    def test_layout_that_is_not_known_says_how_to_name_it(self, path: Path) -> None:
        with pytest.raises(DataError, match="FLAIR, FSE") as caught:
            read_volume(path)
        assert "ulf_sub-1.h5:FLAIR:" in caught.value.remedy

    @pytest.mark.parametrize(
        ("named", "words"),
        [
            ("GRE:shw", "no dataset 'GRE'"),
            ("FLAIR", "are not told"),
            ("FLAIR:sh", "does not name axes"),
            ("FLAIR:shwx", "does not name axes"),
            ("FLAIR:shh", "does not name axes"),
            ("FLAIR:hw", "names 2"),
            ("real:shw", "not complex"),
        ],
    )
    def test_mistakes(self, path: Path, named: str, words: str) -> None:
        refused(Path(f"{path}:{named}"), words)

    def test_missing_file(self, tmp_path: Path) -> None:
        refused(tmp_path / "absent.h5:FLAIR:shw", r"absent\.h5 does not exist")

    def test_a_file_that_has_such_a_name_is_that_file(self, tmp_path: Path, path: Path) -> None:
        odd = path.rename(tmp_path / "a.h5:FLAIR.h5")
        assert read_scan(Path(f"{odd}:FSE:shw")).kspace.shape == (2, 1, 10, 8)


def test_real_low_field_scans(real_data: Path) -> None:
    path = real_data / "kspace" / "ulf_sub-F6A.h5"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    for name, shape in {"FLAIR": (4, 1, 126, 128), "GRE": (4, 1, 196, 128)}.items():
        scan = read_scan(Path(f"{path}:{name}:swh"))
        assert scan.kspace.shape == shape
        picture = np.abs(kspace_to_image(scan.kspace[2, 0]))
        h, w = (n // 4 for n in picture.shape)  # the head is in the middle
        assert picture[h:-h, w:-w].mean() > 1.5 * picture.mean()
