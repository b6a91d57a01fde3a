"""`kdmri-edge serve --send`: a stream's images at the archive."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kdmri_edge as ke
from kdmri_edge.archive.queue import ArchiveQueue
from kdmri_edge.archive.transfer import Limits
from kdmri_edge.data.scan import Scan
from kdmri_edge.mrd.client import Reply, send_scan
from kdmri_edge.mrd.format.emit import encoding_of, readouts
from kdmri_edge.mrd.format.header import write_encoding
from kdmri_edge.mrd.format.patient import dicom_attributes
from kdmri_edge.mrd.server.archiving import Archiving
from kdmri_edge.mrd.server.server import Server
from kdmri_edge.mrd.server.settings import ServerSettings
from kdmri_edge.mrd.server.telemetry import Metrics
from tests.core.archive.conftest import Archives
from tests.core.mrd.conftest import StandIn
from tests.core.mrd.scans import every_line, phantom_scan
from tests.waiting import until

QUICK = Limits(
    connect_s=2.0,
    association_s=5.0,
    object_s=5.0,
    silence_s=5.0,
    pause_s=0.02,
    longest_pause_s=0.05,
)

WHO = """<subjectInformation><patientName>Doe^Jane</patientName><patientID>4711</patientID>
<patientBirthdate>1970-01-31</patientBirthdate><patientGender>F</patientGender>
</subjectInformation><studyInformation><studyDate>2026-11-27</studyDate>
<accessionNumber>77</accessionNumber><studyInstanceUID>1.2.3.4</studyInstanceUID>
</studyInformation><measurementInformation><patientPosition>HFS</patientPosition>
<protocolName>pd_tse</protocolName><frameOfReferenceUID>1.2.3.5</frameOfReferenceUID>
</measurementInformation>"""


def with_patient(xml: str) -> str:
    """Add whose scan it is to a header, in the order of the schema."""
    return xml.replace("<experimentalConditions", f"{WHO}<experimentalConditions").replace(
        "ns0:", ""
    )


def scanned(server: Server, scan: Scan) -> Reply:
    encoding = encoding_of(scan)
    xml = with_patient(write_encoding(encoding, slices=len(scan.kspace)))
    return send_scan(xml, readouts(scan), port=server.port)


def counted(server: Server, outcome: str) -> float | None:
    name = "kdmri_archive_objects_total"
    return server.metrics.registry.get_sample_value(name, {"outcome": outcome})


@pytest.fixture
def serving(tmp_path: Path) -> Any:
    """Return what starts a server that sends to an archive, and stops it at the end."""
    stops: list[Callable[[], None]] = []

    def start(archive: Any, **how: Any) -> tuple[Server, ArchiveQueue]:
        queue = ArchiveQueue(tmp_path / "queue", reserve=how.pop("reserve", 0))
        archiving = Archiving(archive, queue, QUICK, metrics := Metrics())
        settings = ServerSettings(port=0, idle_s=5.0, send_s=1.0, linger_s=1.0)
        server = Server(StandIn(), settings, metrics, archiving)

        def run() -> None:
            with archiving:
                server.serve()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()

        def stop() -> None:
            server.stop()
            thread.join(20)
            assert not thread.is_alive()

        stops.append(stop)
        return server, queue

    yield start
    for stop in stops:
        stop()


def test_images_of_a_stream_arrive_with_patient_study_and_place(
    archives: Archives, serving: Any, tmp_path: Path
) -> None:
    scan = phantom_scan(every_line(32), slices=3)
    server, queue = serving(archives.archive("good"))
    reply = scanned(server, scan)
    assert len(reply.images) == 3
    until(lambda: len(archives.stored("good")) == 3)
    came = archives.stored("good")
    for data in came:
        assert (data.PatientName, data.PatientID, data.PatientSex) == ("Doe^Jane", "4711", "F")
        assert (data.PatientBirthDate, data.StudyDate) == ("19700131", "20261127")
        assert (data.StudyInstanceUID, data.FrameOfReferenceUID) == ("1.2.3.4", "1.2.3.5")
        assert (data.AccessionNumber, data.PatientPosition) == ("77", "HFS")
        assert data.SeriesDescription == "pd_tse kdmri-edge"
        assert data.ImageType[0] == "DERIVED"
        assert "Reconstructed by the neural network" in data.DerivationDescription
    assert len({data.SeriesInstanceUID for data in came}) == 1
    assert len({float(data.RescaleSlope) for data in came}) == 1
    # what came lies where the client's images do, and has their values
    shutil.copytree(archives.folder / "good", tmp_path / "came.dcm")
    read = ke.read(tmp_path / "came.dcm")
    assert isinstance(read, ke.Volume)
    sent = {tuple(np.round(image.position, 3)): image for image in reply.images}
    for data in came:
        middle = np.array(data.ImagePositionPatient, float)
        for cosine, count, mm in zip(
            np.reshape(np.array(data.ImageOrientationPatient, float), (2, 3)),
            (data.Columns, data.Rows), reversed(list(map(float, data.PixelSpacing))), strict=True,
        ):  # fmt: skip
            middle = middle + cosine * (int(count) // 2) * mm
        nearest = min(sent, key=lambda place: float(np.linalg.norm(np.array(place) - middle)))
        assert np.linalg.norm(np.array(nearest) - middle) < max(map(float, data.PixelSpacing)) * 1.5
        image = sent.pop(nearest)
        assert float(data.pixel_array.max()) * float(data.RescaleSlope) == pytest.approx(
            float(image.data.max()), rel=1e-3
        )
    assert not sent
    line = queue.line(archives.archive("good"))
    until(lambda: not line.waiting())  # the archive has them before its answer has come


@pytest.mark.parametrize("name", ["cannot", pytest.param("aborts", marks=pytest.mark.nightly)])
def test_an_archive_that_refuses_harms_no_scan(archives: Archives, serving: Any, name: str) -> None:
    server, queue = serving(archives.archive(name))
    reply = scanned(server, phantom_scan(every_line(32), slices=2))
    assert len(reply.images) == 2
    assert reply.closed
    line = queue.line(archives.archive(name))
    until(lambda: len(line.refused()) == 2)
    until(lambda: counted(server, "refused") == 2)


def test_a_full_disk_harms_no_scan(archives: Archives, serving: Any) -> None:
    server, queue = serving(archives.archive("good"), reserve=1 << 62)
    reply = scanned(server, phantom_scan(every_line(32), slices=2))
    assert len(reply.images) == 2
    until(lambda: counted(server, "lost") == 2)
    assert queue.line(archives.archive("good")).waiting() == []


@pytest.mark.parametrize(
    ("element", "value"),
    [
        ("patientBirthdate", "31.1.1970"), ("patientGender", "unknown"), ("patientName", ""),
        ("studyInstanceUID", "1.2.3.x"), ("studyInstanceUID", "1." * 40 + "1"),
        ("patientPosition", "upside down"),
    ],
)  # fmt: skip
def test_what_dicom_does_not_know_is_left_out(element: str, value: str) -> None:
    import re

    xml = re.sub(f"<{element}>[^<]*<", f"<{element}>{value}<", f"<h>{WHO}</h>")
    attributes = dicom_attributes(xml)
    assert len(attributes) == len(dicom_attributes(f"<h>{WHO}</h>")) - 1
    assert dicom_attributes("no header at all") == {}


def test_times_are_those_of_the_contrast() -> None:
    xml = "<h><sequenceParameters><TR>500</TR><TE>4.5</TE><TE>9</TE></sequenceParameters></h>"
    first, second = dicom_attributes(xml), dicom_attributes(xml, 1)
    assert (first["EchoTime"], second["EchoTime"]) == ("4.5", "9")
    assert second["RepetitionTime"] == "500"
    assert second["SeriesDescription"] == "kdmri-edge echo 2"
