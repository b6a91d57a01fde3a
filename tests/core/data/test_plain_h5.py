"""K-space in HDF5: datasets that are named by hand, and fastMRI's with coils."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdmri_edge.data.datasets import find_volumes
from kdmri_edge.data.formats.registry import read_scan, read_volume
from kdmri_edge.errors import DataError
from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image
from tests.core.data.scans import LINES, drawn, refused, undersampled


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

    @pytest.mark.parametrize("said", ["first", np.bytes_(b"first"), b"first"])
    def test_zero_frequency_however_its_text_is_stored(self, tmp_path: Path, said: object) -> None:
        kspace = np.random.default_rng(0).normal(size=(2, 10, 8)).astype(np.complex64)
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["k"] = kspace
            file["k"].attrs["zero_frequency"] = said
        assert (read_scan(tmp_path / "a.h5:k:shw").kspace[:, 0] == kspace).all()

    def test_an_unknown_zero_frequency_is_refused(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["k"] = np.ones((2, 10, 8), np.complex64)
            file["k"].attrs["zero_frequency"] = "corner"
        with pytest.raises(DataError, match="zero_frequency"):
            read_scan(tmp_path / "a.h5:k:shw")

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
        with pytest.raises(DataError, match=r"FLAIR \[2, 10, 8\], FSE") as caught:
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
