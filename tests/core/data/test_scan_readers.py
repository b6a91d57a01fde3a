"""What all readers of measured k-space share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdmri_edge.data.case import make_case
from kdmri_edge.data.formats.measured import mask_of, root_sum_of_squares, volume_of
from kdmri_edge.data.formats.registry import SCAN_READERS, read_scan
from kdmri_edge.errors import DataError
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.masks import Mask, random_lines
from tests.core.data.scans import LINES, drawn, refused, scan_of, undersampled


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
