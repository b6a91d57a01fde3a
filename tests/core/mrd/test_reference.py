"""Calibration lines beside the image: sensitivities come from them, in files as in streams."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import ismrmrd
import numpy as np
import pytest
from ismrmrd import Acquisition

from kdmri_edge.data.conversion import convert
from kdmri_edge.errors import DataError, MaskError
from kdmri_edge.mrd.client import send_scan
from kdmri_edge.mrd.format.assembler import Assembler
from kdmri_edge.mrd.format.emit import encoding_of, readouts
from kdmri_edge.mrd.format.hdf5 import read_scan, write_scan
from kdmri_edge.mrd.format.header import write_encoding
from kdmri_edge.mrd.format.images import fallback_of
from kdmri_edge.mrd.format.readouts import Purpose, purpose_of
from kdmri_edge.physics.combining import combined
from kdmri_edge.physics.espirit import sense_slice
from kdmri_edge.physics.reference import calibration_reach
from kdmri_edge.runtime.pipeline import Pipeline
from tests.core.mrd.scans import (
    HALF,
    SIZE,
    every_line,
    phantom_scan,
    reference_of,
    scan_apart,
)


@pytest.mark.parametrize("whitened", [False, True])
def test_maps_are_those_of_the_whole_scan(whitened: bool) -> None:
    scan, whole = scan_apart(1)
    weights = None
    if whitened:
        weights = np.triu(np.full((4, 4), 0.2)) + np.eye(4) * [1, 2, 1, 0.5]
    with pytest.raises(MaskError, match="leaves 8 of the samples out"):
        sense_slice(scan.kspace[0], HALF)
    assert scan.reference is not None
    _, maps = sense_slice(scan.kspace[0], HALF, whitening=weights, reference=scan.reference[0])
    _, wanted = sense_slice(whole.kspace[0], whole.mask, whitening=weights)
    np.testing.assert_allclose(maps, wanted, atol=2e-4)


def test_one_image_is_combined_by_them() -> None:
    scan, whole = scan_apart(1)
    assert scan.reference is not None
    lines = scan.reference[0]
    assert lines is not None
    calibration = lines.kspace(SIZE), lines.mask(SIZE)
    image = combined(scan.kspace[0], HALF, calibration=calibration)
    centre = whole.kspace[0] * lines.mask(SIZE).grid
    wanted = combined(scan.kspace[0], HALF, calibration=(centre, lines.mask(SIZE)))
    np.testing.assert_allclose(image, wanted, atol=1e-3 * np.abs(wanted).max())


def test_the_image_keeps_its_own_centre_where_that_reaches_as_far() -> None:
    whole = phantom_scan(every_line(SIZE), slices=1, coils=4).kspace[0]
    wrong = reference_of(np.roll(whole, 1, axis=0))
    _, maps = sense_slice(whole, every_line(SIZE), reference=wrong)
    np.testing.assert_array_equal(maps, sense_slice(whole, every_line(SIZE))[1])
    assert calibration_reach(HALF, wrong) == 24
    assert calibration_reach(HALF, None) == 1
    assert calibration_reach(every_line(SIZE), wrong) == SIZE


def test_streams_and_files_are_reconstructed_alike(serving, sense: Path, tmp_path: Path) -> None:
    """No line of the image calibrates: without the reference lines there is no network's image."""
    pipeline = Pipeline(sense, threads=1)
    scan, whole = scan_apart()
    write_scan(tmp_path / "scan.h5", scan, oversampling=2)
    read = read_scan(tmp_path / "scan.h5")
    assert read.reference is not None
    assert len(read.reference) == 2
    from_file = np.abs(pipeline.images(pipeline.prepare(read)))
    server = serving(pipeline)
    xml = write_encoding(encoding_of(scan), slices=2)
    reply = send_scan(xml, readouts(scan), port=server.port)
    assert [fallback_of(image) for image in reply.images] == [None, None]
    for image, wanted in zip(reply.images, from_file, strict=True):
        np.testing.assert_allclose(image.data[0, 0], wanted, atol=1e-4 * wanted.max())
    for lines, served in ((16, True), (15, False), (0, False)):
        rows = (np.arange(lines) - lines // 2) % SIZE
        few = tuple(reference_of(kspace, rows) for kspace in whole.kspace) if lines else None
        fewer = dataclasses.replace(scan, reference=few)
        reply = send_scan(xml, readouts(fewer), port=server.port)
        for image in reply.images:
            said = fallback_of(image)
            assert (said is None) if served else ("from which coil" in (said or "")), lines


def test_reference_lines_of_the_first_repetition_serve_the_others() -> None:
    scan, _ = scan_apart()
    assembler = Assembler(encoding_of(scan))
    bare = dataclasses.replace(scan, reference=None)
    given = [*readouts(scan), *readouts(bare, repetition=1)]
    found = [part for line in given if (part := assembler.add(line)) is not None]
    assert [(part.key.repetition, part.key.slice) for part in found] == [
        (0, 0), (0, 1), (1, 0), (1, 1)
    ]  # fmt: skip
    assert scan.reference is not None
    for part in found:
        wanted = scan.reference[part.key.slice]
        assert part.reference is not None
        assert wanted is not None
        order = np.argsort(wanted.rows)
        np.testing.assert_array_equal(part.reference.rows, wanted.rows[order])
        np.testing.assert_allclose(
            part.reference.lines, wanted.lines[:, order], atol=1e-5 * np.abs(wanted.lines).max()
        )
    # what is kept for later repetitions is counted
    assert assembler.held == sum(lines.lines.nbytes for lines in scan.reference if lines)
    assembler.drop()
    assert assembler.held == 0


def test_lines_of_another_set_calibrate_all() -> None:
    """Reference lines that are counted as a set of their own, which has no image."""
    scan, _ = scan_apart(1)
    lines = list(readouts(scan))
    for line in lines:
        if purpose_of(line) is Purpose.CALIBRATION:
            line.idx.set = 1
    assembler = Assembler(encoding_of(scan))
    found = [part for line in lines if (part := assembler.add(line)) is not None]
    assert len(found) == 1
    assert found[0].reference is not None
    assert len(found[0].reference.rows) == 24
    assert list(assembler.finish()) == []


@pytest.mark.parametrize(
    ("flags", "purpose"),
    [
        ([ismrmrd.ACQ_IS_PARALLEL_CALIBRATION], Purpose.CALIBRATION),
        ([ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING], Purpose.IMAGE),
        (
            [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION, ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING],
            Purpose.IMAGE,  # as converters write a line that is both
        ),
    ],
)
def test_lines_that_are_imaged_too_belong_to_the_image(flags: list[int], purpose: Purpose) -> None:
    line = Acquisition.from_array(np.ones((1, 8), np.complex64))
    for flag in flags:
        line.set_flag(flag)
    assert purpose_of(line) is purpose


def test_reference_lines_fit_their_scan() -> None:
    scan, _ = scan_apart()
    assert scan.reference is not None
    with pytest.raises(DataError, match="do not fit its 2 slices of 4 coils"):
        dataclasses.replace(scan, reference=scan.reference[:1])
    other = reference_of(np.zeros((3, SIZE, SIZE), np.complex64))
    with pytest.raises(DataError, match="do not fit"):
        dataclasses.replace(scan, reference=(other, None))


def test_conversion_says_where_they_have_no_place(tmp_path: Path) -> None:
    scan, _ = scan_apart()
    write_scan(tmp_path / "scan.h5", scan)
    assert "reference lines" in convert(tmp_path / "scan.h5", tmp_path / "scan.cfl").lost
    done = convert(tmp_path / "scan.h5", tmp_path / "again.h5")
    assert "reference lines" not in done.lost
    again = read_scan(tmp_path / "again.h5")
    assert again.reference is not None
