"""BART arrays: images and k-space."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdmri_edge.data.formats.bart import write_bart_scan
from kdmri_edge.data.formats.measured import volume_of
from kdmri_edge.data.formats.registry import read_scan, read_volume, write_image
from kdmri_edge.errors import DataError
from kdmri_edge.physics.fourier import kspace_to_image
from tests.core.data.scans import drawn, refused, scan_of, undersampled
from tests.core.data.strategies import images


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
