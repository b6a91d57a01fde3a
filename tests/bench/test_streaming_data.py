"""The study of data sets that memory does not hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.streaming_data import Kind, markdown, measure, write_volume
from kdmri_edge.data.formats.registry import read_scan
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.physics.fourier import kspace_to_image


def test_its_files_are_fully_sampled_multi_coil_k_space(tmp_path: Path) -> None:
    kind = Kind(coils=3, slices=2, matrix=48)
    write_volume(tmp_path / "file7.h5", kind, 7)
    scan = read_scan(tmp_path / "file7.h5")
    assert scan.kspace.shape == (2, 3, 48, 48)
    assert scan.kspace.nbytes == kind.bytes
    assert scan.mask.samples.all()
    assert scan.subject == "patient007"
    image = phantom_volume(7, slices=2, matrix=48).image
    rss = np.sqrt((np.abs(kspace_to_image(scan.kspace)) ** 2).sum(1))
    np.testing.assert_allclose(rss, image, atol=0.08 * image.max())


@pytest.mark.nightly
def test_each_way_has_its_row() -> None:
    report = measure(
        (3,),
        small=Kind(coils=4, slices=2, matrix=64),
        full=Kind(coils=4, slices=2, matrix=80),
        steps=20,
        memory=100_000,
        acceleration=2.0,
    )
    ways = [(row["way"], row["volumes"], row["stored_bytes"] > 0) for row in report["rows"]]
    assert ways == [("memory", 3, False), ("files", 3, True), ("files", 3, True)]
    assert all(0 <= row["waiting"] < 1 and row["peak"] > 2**20 for row in report["rows"])
    assert "from files" in markdown(report)
