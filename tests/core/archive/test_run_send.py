"""`kdmri-edge run --send`: what arrives at the archive, and what a user is told."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

import kdmri_edge as ke
from kdmri_edge.archive.address import parse_address
from kdmri_edge.archive.outgoing import Outgoing
from kdmri_edge.archive.transfer import Limits
from kdmri_edge.data.formats.dicom.writing import write_dicom
from kdmri_edge.data.image import ImageRecord
from kdmri_edge.data.phantom.volumes import phantom_volume
from tests.core.archive.conftest import Archives

Cli = Callable[..., Any]


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A fully sampled DICOM series of somebody, as a scanner would have written it."""
    affine = np.array([[0, 0, -2, 30], [0, -1.5, 0, 25], [5, 0, 0, -7], [0, 0, 0, 1.0]])
    image = phantom_volume(5, slices=3, matrix=32).image
    folder = tmp_path / "series.dcm"
    write_dicom(folder, ImageRecord(image=image, affine=affine))
    for file in folder.iterdir():
        data = pydicom.dcmread(file)
        data.PatientName, data.PatientID, data.StudyDescription = "Doe^Jane", "4711", "Knee"
        data.StudyInstanceUID, data.FrameOfReferenceUID = "1.2.3.4", "1.2.3.5"
        data.SeriesDescription, data.ManufacturerModelName = "pd_tse", "Scanner"
        data.save_as(file)
    return folder


def placed(volume: ke.Volume) -> dict[tuple[int, ...], float]:
    """The values of a volume by where they lie, in tenths of millimetres."""
    grid = np.stack(np.indices(volume.image.shape), axis=-1).reshape(-1, 3)
    assert volume.affine is not None
    places = np.c_[grid, np.ones(len(grid))] @ volume.affine[:3].T
    values = np.abs(volume.image).reshape(-1)
    rounded = [tuple(round(10 * v) for v in place) for place in places]
    return dict(zip(rounded, map(float, values), strict=True))


@pytest.mark.parametrize(
    "output", ["out.dcm", pytest.param("out.nii.gz", marks=pytest.mark.nightly)]
)
def test_what_arrives_is_the_reconstruction_of_that_patient(
    archives: Archives, tiny_bundles: dict[str, Path], series: Path, tmp_path: Path, cli: Cli,
    output: str,
) -> None:  # fmt: skip
    done = cli(
        "run", tiny_bundles["magnitude"], series, "-o", tmp_path / output, "--undersample",
        "--magnitude", "--threads", 1, "--send", archives.address("good"),
        "--queue", tmp_path / "queue",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "3 object(s) stored" in done.err
    came = archives.stored("good")
    assert len(came) == 3
    for data in came:
        assert (data.PatientName, data.PatientID) == ("Doe^Jane", "4711")
        assert (data.StudyInstanceUID, data.FrameOfReferenceUID) == ("1.2.3.4", "1.2.3.5")
        assert data.SeriesDescription == "pd_tse kdmri-edge"
        assert data.ImageType[0] == "DERIVED"
        assert "Reconstructed by the neural network" in data.DerivationDescription
    assert len({data.SeriesInstanceUID for data in came}) == 1
    assert came[0].SeriesInstanceUID != pydicom.dcmread(series / "0001.dcm").SeriesInstanceUID
    written = ke.read(tmp_path / output)
    shutil.copytree(archives.folder / "good", tmp_path / "arrived.dcm")
    arrived = ke.read(tmp_path / "arrived.dcm")
    assert isinstance(arrived, ke.Volume)
    assert isinstance(written, ke.Volume)
    # DICOM has its own order of axes; each pixel has its place in the patient, and its value
    same = placed(arrived)
    assert placed(written).keys() == same.keys()
    for place, value in placed(written).items():
        assert value == pytest.approx(same[place], abs=1e-4 * float(written.image.max()))
    if output == "out.dcm":  # the very objects that were written
        files = sorted((tmp_path / output).iterdir())
        assert [pydicom.dcmread(file) for file in files] == came


def test_an_archive_that_is_away_harms_no_reconstruction(
    archives: Archives, tiny_bundles: dict[str, Path], series: Path, tmp_path: Path, cli: Cli
) -> None:
    away = "NOBODY@127.0.0.1:1"
    common = ("run", tiny_bundles["magnitude"], series, "--undersample", "--threads", 1,
              "--queue", tmp_path / "queue")  # fmt: skip
    done = cli(*common, "-o", tmp_path / "a.npy", "--send", away, "--json")
    assert done.code == 0
    assert np.load(tmp_path / "a.npy").shape == (3, 32, 32)
    assert json.loads(done.out)[0]["archive"]["waiting"] == 3
    assert "cannot be reached" in done.err
    cli("run", tiny_bundles["magnitude"], series, "-o", tmp_path / "b.npy", "--send", "PACS")\
        .check_refusal("'PACS' is no address")  # fmt: skip
    assert not (tmp_path / "b.npy").exists()
    other = cli(*common, "-o", tmp_path / "b.npy", "--study", tmp_path / "a.npy", "--send", away)
    other.check_refusal("a.npy")
    listed = json.loads(cli("archive", "list", "--queue", tmp_path / "queue", "--json").out)
    assert [(one["archive"], one["waiting"], one["attempts"]) for one in listed] == [(away, 3, 1)]
    unqueued = cli("archive", "send", "X@127.0.0.1:9", "--queue", tmp_path / "queue")
    unqueued.check_refusal("Nothing was ever queued for X@127.0.0.1:9")


def test_an_archives_copy_that_loses_negative_values_is_told(tmp_path: Path) -> None:
    image = np.ones((2, 4, 5), np.float32)
    image[0, 0] = -0.5
    outgoing = Outgoing(parse_address("NOBODY@127.0.0.1:1"), tmp_path / "queue", Limits())
    outgoing.put(tmp_path / "a.npy", ImageRecord(image=image))
    outgoing.send()
    (first, _, _) = outgoing.said
    assert "a.npy is without negative values (12.5 % of the pixels, now 0)" in first
    positive = Outgoing(parse_address("NOBODY@127.0.0.1:1"), tmp_path / "other", Limits())
    positive.put(tmp_path / "b.npy", ImageRecord(image=np.abs(image)))
    positive.send()
    assert not any("negative" in line for line in positive.said)


def test_a_full_disk_of_the_queue_is_said_and_the_image_is_there(
    archives: Archives, tiny_bundles: dict[str, Path], series: Path, tmp_path: Path, cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40 - 2**20, 2**20))
    done = cli(
        "run", tiny_bundles["magnitude"], series, "-o", tmp_path / "a.npy", "--undersample",
        "--threads", 1, "--send", archives.address("good"), "--queue", tmp_path / "queue",
    )  # fmt: skip
    assert done.code == 1
    assert "a.npy was not queued for ARCHIVE@" in done.err.splitlines()[-1]
    assert np.load(tmp_path / "a.npy").shape == (3, 32, 32)
    assert archives.stored("good") == []


def test_scans_get_the_study_that_is_named(
    archives: Archives, tiny_bundles: dict[str, Path], series: Path, tmp_path: Path, cli: Cli
) -> None:
    from kdmri_edge.mrd.format.hdf5 import write_scan
    from kdmri_edge.runtime.bundle import open_bundle
    from tests.core.mrd.scans import phantom_scan

    mask = open_bundle(tiny_bundles["magnitude"]).mask
    write_scan(tmp_path / "scan.h5", phantom_scan(mask, slices=2))
    done = cli(
        "run", tiny_bundles["magnitude"], tmp_path / "scan.h5", "-o", tmp_path / "a.nii.gz",
        "--threads", 1, "--study", series, "--send", archives.address("good"),
        "--queue", tmp_path / "queue",
    )  # fmt: skip
    assert done.code == 0, done.err
    came = archives.stored("good")
    assert [str(data.PatientName) for data in came] == ["Doe^Jane"] * 2
    assert {data.StudyInstanceUID for data in came} == {"1.2.3.4"}
