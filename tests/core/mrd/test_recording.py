"""Recordings: what came can be sent again, nothing of it says whose it is, and no image waits."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np
import pytest

from kdmri_edge.errors import DataError, OutputError, StreamError
from kdmri_edge.mrd.client import Reply, send_scan
from kdmri_edge.mrd.format.emit import encoding_of, readouts
from kdmri_edge.mrd.format.hdf5 import read_header, read_readouts, read_scan, write_scan
from kdmri_edge.mrd.format.header import read_encoding, write_encoding
from kdmri_edge.mrd.format.identity import header_without_identity
from kdmri_edge.mrd.format.messages import ConfigFile, ConfigText, Text
from kdmri_edge.mrd.format.replay import read_replay
from kdmri_edge.mrd.server import recording as module
from kdmri_edge.mrd.server.recording import Recorder, _Store
from kdmri_edge.mrd.server.server import Server
from kdmri_edge.mrd.server.settings import ServerSettings, check_default, choose, refine
from tests.core.mrd.scans import noise_scan

MIB = 2**20
SCAN = noise_scan(3, coils=2, height=16, width=16)
WHO = """
<subjectInformation><patientName>Doe</patientName><patientWeight_kg>71</patientWeight_kg>
</subjectInformation><studyInformation><studyID>Doe1</studyID></studyInformation>
<measurementInformation><measurementID>Doe2</measurementID><seriesDate>1999-01-01</seriesDate>
<patientPosition>HFS</patientPosition><protocolName>t2_tse</protocolName>
<seriesDescription>Doe3</seriesDescription></measurementInformation>
<acquisitionSystemInformation><systemVendor>SIEMENS</systemVendor>
<institutionName>Doe4</institutionName><stationName>Doe5</stationName>
<deviceSerialNumber>Doe6</deviceSerialNumber><receiverChannels>2</receiverChannels>
</acquisitionSystemInformation>
"""


def identified(scan: Any = SCAN) -> str:
    """A header that says whose the scan is, in every way that the standard has, and in one more."""
    xml = write_encoding(encoding_of(scan), slices=len(scan.kspace))
    start = xml.index("<acquisitionSystemInformation>")
    end = xml.index("</acquisitionSystemInformation>") + len("</acquisitionSystemInformation>")
    xml = xml[:start] + WHO + xml[end:]
    free = (
        "<userParameters><userParameterString><name>PatientID</name><value>Doe7</value>"
        "</userParameterString></userParameters><vendorsOwn patient='Doe8'>Doe9</vendorsOwn>"
    )
    return xml.replace("</ismrmrdHeader>", f"{free}</ismrmrdHeader>")


@pytest.fixture
def recording(serving, tmp_path: Path) -> Callable[..., Server]:
    def begin(*, limit: int = 64 * MIB, whose: bool = False, **settings: Any) -> Server:
        server = serving(records=True, **settings)
        server._recorder = Recorder(
            tmp_path / "scans", limit=limit, identified=whose, metrics=server.metrics
        )
        return server

    return begin


def files(folder: Path) -> list[Path]:
    return sorted((folder / "scans").glob("*"))


def sent(server: Server, scan: Any = SCAN, xml: str | None = None, **more: Any) -> Reply:
    lines = readouts(scan)
    return send_scan(xml or identified(scan), lines, port=server.port, timeout_s=10, **more)


def test_a_recording_is_the_scan(recording, events, tmp_path: Path) -> None:
    server = recording()
    reply = sent(server)
    (event,) = events("recorded")
    (file,) = files(tmp_path)
    assert (event["file"], event["readouts"]) == (file.name, 48)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for wanted, got in zip(readouts(SCAN), read_readouts(file), strict=True):
        np.testing.assert_array_equal(got.data, wanted.data)
        assert bytes(got.getHead()) == bytes(wanted.getHead())
    np.testing.assert_array_equal(read_scan(file).kspace, SCAN.kspace)
    with ismrmrd.Dataset(str(file), mode="r") as dataset:  # the standard's own package
        assert dataset.number_of_acquisitions() == 48
    # and sent again it gives the same images
    replay = read_replay(file)
    again = send_scan(replay.xml, replay.messages, port=server.port)
    assert replay.count == 48
    for one, other in zip(reply.images, again.images, strict=True):
        np.testing.assert_array_equal(one.data, other.data)


def test_nothing_of_a_recording_says_whose_it_is(recording, events, tmp_path: Path) -> None:
    sent(recording())
    (file,) = (events("recorded"), files(tmp_path))[1]
    assert b"Doe" not in file.read_bytes()
    assert "1999" not in read_header(file)
    kept, wanted = read_encoding(read_header(file)), read_encoding(identified())
    assert (kept.vendor, kept.coils, kept.fov_mm) == ("SIEMENS", 2, wanted.fov_mm)
    assert kept.protocol == ("t2_tse",)


def test_a_site_may_keep_it(recording, events, tmp_path: Path) -> None:
    sent(recording(whose=True))
    assert events("recorded")
    (file,) = files(tmp_path)
    assert read_header(file) == identified()


@pytest.mark.parametrize("xml", ["", "<a", "<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", "\0"])
def test_what_is_no_header_is_not_written(xml: str) -> None:
    with pytest.raises(DataError):
        header_without_identity(xml)


def test_savedataonly_records_and_sends_nothing(recording, tmp_path: Path) -> None:
    """As public servers do; of any scan, whether or not it could be reconstructed."""
    server = recording()
    radial = identified().replace("cartesian", "radial")
    reply = sent(server, xml=radial, config="savedataonly")
    (file,) = files(tmp_path)  # there before the scan's end
    assert (reply.images, reply.closed) == ([], True)
    assert reply.texts == [f"INF Recorded 48 readouts and 0 images as {file.name}."]
    assert file.name.startswith("saved-")
    assert sum(1 for _ in read_readouts(file)) == 48


def test_send_says_what_was_recorded(cli, recording, tmp_path: Path) -> None:
    write_scan(tmp_path / "scan.h5", SCAN)
    done = cli("send", tmp_path / "scan.h5", "-o", tmp_path / "out.h5", "--config", "savedataonly",
               "--port", recording().port)  # fmt: skip
    assert done.code == 0, done.err
    assert done.out.startswith("Recorded 48 readouts and 0 images as saved-")
    assert not (tmp_path / "out.h5").exists()


def test_nothing_to_be_recorded_is_said(recording, tmp_path: Path) -> None:
    reply = send_scan(identified(), [], port=recording().port, config="savedataonly")
    assert reply.errors == ["Nothing came that could be recorded. Send readouts or images."]
    assert files(tmp_path) == []


def test_images_are_recorded_without_their_dicom_headers(recording, tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.float32).reshape(6, 8)
    images = []
    for series, data in ((1, pixels), (1, 2 * pixels), (2, pixels[:4]), (2, 1j * pixels)):
        image = ismrmrd.Image.from_array(data.astype(data.dtype), image_series_index=series)
        image.meta = {"DicomJson": "Doe", "RescaleSlope": "2"}
        images.append(image)
    server = recording()
    reply = send_scan(identified(), images, port=server.port, config="savedataonly")
    assert "0 readouts and 4 images" in reply.texts[0]
    (file,) = files(tmp_path)
    assert b"Doe" not in file.read_bytes()
    replay = read_replay(file)
    assert replay.count == 4
    for wanted, got in zip(images, replay.messages, strict=True):
        np.testing.assert_array_equal(got.data, wanted.data)
        assert got.meta == {"RescaleSlope": "2"}
    with ismrmrd.Dataset(str(file), mode="r") as dataset:
        assert dataset.number_of_images("image_1") == 2
        assert dataset.number_of_images("image_2_2") == 1


def test_the_oldest_make_room(recording, events, tmp_path: Path) -> None:
    server = recording(limit=MIB)
    sent(server, config="savedataonly")
    events("recorded")
    stranger = tmp_path / "scans" / "notes.txt"
    stranger.write_bytes(bytes(3 * MIB))
    large = noise_scan(6, coils=4, height=32, width=32)  # about 0.3 MiB
    for number in range(4):
        sent(server, large)
        assert len(events("recorded", number + 2)) == number + 2
    gone = [event["file"] for event in events("recording deleted")]
    left = [file.name for file in files(tmp_path) if file != stranger]
    written = [event["file"] for event in events("recorded")]
    assert stranger.exists()
    assert gone
    assert set(gone) < set(written)
    assert left[0].startswith("saved-")  # those never go
    assert written[-1] in left
    assert sum((tmp_path / "scans" / name).stat().st_size for name in left) <= MIB


def test_a_scan_of_more_than_half_the_room_drives_nothing_out(
    recording, events, tmp_path: Path
) -> None:
    server = recording(limit=MIB)
    sent(server)
    events("recorded")
    (kept,) = files(tmp_path)
    reply = sent(server, noise_scan(12, coils=4, height=32, width=32))
    assert len(reply.images) == 12
    assert "larger than half" in events("recording stopped")[0]["reason"]
    assert files(tmp_path) == [kept]


def test_a_folder_full_of_saved_scans_says_so(recording, tmp_path: Path) -> None:
    server = recording(limit=MIB)
    large = noise_scan(12, coils=4, height=32, width=32)
    first, second = (sent(server, large, config="savedataonly") for _ in range(2))
    assert first.errors == []
    assert "fills --record-limit" in second.errors[0]
    assert len(files(tmp_path)) == 1  # no half of the second one


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """Until when a disk hangs: the end of the test at the latest, for HDF5 has one lock for all."""
    event = threading.Event()
    yield event
    event.set()


class _Failing(io.FileIO):
    """A file on a disk that takes so many bytes and no more; then it fails, or hangs."""

    room = 0
    reason = errno.ENOSPC
    hangs: threading.Event | None = None

    def write(self, data: Any, /) -> int:
        self.room -= len(data)
        if self.room < 0 and self.hangs is not None:
            self.hangs.wait(20)
        elif self.room < 0:
            raise OSError(self.reason, os.strerror(self.reason))
        return super().write(data)


def failing(monkeypatch: pytest.MonkeyPatch, **how: Any) -> None:
    kind = type("Failing", (_Failing,), how)
    monkeypatch.setattr(module, "_made", lambda path: kind(str(path), "x+b"))


@pytest.mark.parametrize(
    ("room", "reason"),
    [(0, errno.ENOSPC), (100, errno.EIO), (5_000, errno.ENOSPC), (20_000, errno.EIO)],
)
def test_a_full_disk_harms_no_image(
    recording, events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, reason: int
) -> None:
    failing(monkeypatch, room=room, reason=reason)
    server = recording()
    reply = sent(server)
    assert len(reply.images) == 3
    assert reply.texts == []
    (event,) = events("recording stopped")
    assert os.strerror(reason) in event["reason"]
    assert files(tmp_path) == []
    refused = sent(server, config="savedataonly")
    assert os.strerror(reason) in refused.errors[0]
    assert events("session", 2)[0]["outcome"] == "complete"


def test_a_disk_that_hangs_holds_no_scan_up(
    recording, events, released, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, hangs=released)
    monkeypatch.setattr(module, "_WAITING", 20_000)
    monkeypatch.setattr(module, "_PATIENCE_S", 0.2)
    reply = sent(recording())
    assert len(reply.images) == 3
    assert events("session")[0]["outcome"] == "complete"
    released.set()
    assert "slower than the scan" in events("recording stopped")[0]["reason"]
    assert files(tmp_path) == []


def test_a_disk_that_hangs_leaves_few_files_open(
    recording, events, released, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, hangs=released)
    monkeypatch.setattr(module, "_OPEN", 2)
    server = recording(send_s=0.2)
    for _ in range(3):
        assert len(sent(server).images) == 3
    assert "does not take" in events("recording stopped")[0]["reason"]
    assert "does not take" in sent(server, config="savedataonly").errors[0]
    assert sum(thread.name == "record" for thread in threading.enumerate()) == 2
    released.set()
    assert len(events("recorded", 2)) == 2


def test_a_folder_that_hangs_holds_no_scan_up(
    recording, events, released, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a server of files does that is gone: not even its names can be listed."""
    listed = os.scandir

    def hanging(folder: Any) -> Any:
        released.wait(20)
        return listed(folder)

    server = recording()
    monkeypatch.setattr(module.os, "scandir", hanging)
    for _ in range(2):
        assert len(sent(server).images) == 3
    released.set()
    assert len(events("recorded", 2)) == 2


def test_what_waits_for_the_disk_is_bounded_by_all_that_it_takes() -> None:
    line = ismrmrd.Acquisition.from_array(np.ones((1, 4), np.complex64))
    traced = ismrmrd.Acquisition.from_array(
        np.ones((1, 4), np.complex64), np.ones((4, 3), np.float32)
    )
    assert module._size(line) == 4096 + 32
    assert module._size(traced) == 4096 + 32 + 48
    image = ismrmrd.Image.from_array(np.ones((2, 2), np.float32))
    image.meta = {"DicomJson": "x" * 10_000}
    assert module._size(image) > 14_000


def test_odd_messages_are_recorded(recording, tmp_path: Path) -> None:
    """No samples, no coils, a trajectory, an image without pixels."""
    none = ismrmrd.Acquisition.from_array(np.ones((2, 0), np.complex64))
    coilless = ismrmrd.Acquisition()
    traced = ismrmrd.Acquisition.from_array(
        np.ones((1, 4), np.complex64), np.ones((4, 3), np.float32)
    )
    empty = ismrmrd.Image.from_array(np.ones((1, 1, 4, 0), np.float32))
    given = [none, coilless, traced, empty]
    reply = send_scan(identified(), given, port=recording().port, config="savedataonly")
    assert "3 readouts and 0 images" in reply.texts[0]
    (file,) = files(tmp_path)
    found = list(read_readouts(file))
    assert found[2].traj.shape == (4, 3)


def test_an_almost_full_disk_is_left_alone(
    recording, events, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RESERVE", 1 << 62)
    assert len(sent(recording()).images) == 3
    assert "almost full" in events("recording stopped")[0]["reason"]


def test_a_folder_that_goes_away_harms_no_image(recording, events, tmp_path: Path) -> None:
    server = recording()
    (tmp_path / "scans").rmdir()
    assert len(sent(server).images) == 3
    assert events("recording stopped")


def test_a_scan_that_breaks_off_is_kept(recording, events, tmp_path: Path) -> None:
    """It is the one that somebody will want to look at."""
    server = recording()
    lines = list(readouts(SCAN))
    send_scan(identified(), [*lines[:20], lines[3]], port=server.port)
    assert events("session")[0]["outcome"] == "failed"
    assert events("recorded")[0]["readouts"] == 21
    (file,) = files(tmp_path)
    assert sum(1 for _ in read_readouts(file)) == 21


def test_links_are_neither_followed_nor_counted(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(bytes(MIB))
    folder = tmp_path / "scans"
    folder.mkdir()
    planted = folder / "scan-20200101T000000Z-00000000.h5"
    planted.symlink_to(target)
    recorder = Recorder(folder, limit=MIB)
    recorder.grant(".scan-20260101T000000Z-00000001.h5.tmp", MIB // 2)
    assert planted.is_symlink()
    place = folder / ".scan-20260101T000000Z-00000002.h5.tmp"
    place.symlink_to(target)
    with pytest.raises(OSError, match="exists"):
        _Store(Recorder(folder, limit=64 * MIB), place)
    assert target.read_bytes() == bytes(MIB)


def test_what_a_killed_server_left_goes(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    left, young = (folder / f".scan-20200101T000000Z-0000000{n}.h5.tmp" for n in (1, 2))
    other = folder / ".scan.tmp"
    for file in (left, young, other):
        file.write_bytes(b"x")
    os.utime(left, (0, 0))
    os.utime(other, (0, 0))
    Recorder(folder, limit=MIB)
    assert sorted(folder.iterdir()) == sorted([young, other])


def test_mistakes_of_whoever_starts_it(cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        Recorder(tmp_path / "file", limit=MIB)
    done = cli("serve", "bundle", "--record", tmp_path / "file" / "in")
    done.check_refusal("cannot be written")
    done = cli("serve", "bundle", "--default-config", "brain")
    done.check_refusal("'brain' is none of this server", "savedataonly needs --record")
    check_default("kdmri-edge.xml", ["kdmri-edge"], records=False)
    check_default("savedataonly", ["kdmri-edge"], records=True)
    with pytest.raises(StreamError):
        check_default("savedataonly", ["kdmri-edge"], records=False)


def test_a_default_configuration(serving, events) -> None:
    server = serving(default_config="openrecon")
    reply = sent(server, config="invertcontrast")
    assert len(reply.images) == 3
    assert reply.texts == [
        "WRN The configuration that was asked for is unknown: openrecon is used."
    ]
    assert events("default configuration")[0]["config"] == "openrecon"
    assert sent(server).texts == []


def test_which_scans_are_saved() -> None:
    settings = ServerSettings(records=True)
    assert choose(ConfigFile("savedataonly"), settings).saves
    assert choose(ConfigText('{"config": "savedataonly"}'), settings).saves
    first = choose(ConfigFile("kdmri-edge"), settings)
    saves = refine(Text('{"parameters": {"config": "savedataonly"}}'), first, settings)
    assert (first.saves, saves.saves) == (False, True)
    images = refine(Text('{"parameters": {"customconfig": "openrecon"}}'), saves, settings)
    assert not images.saves
    with pytest.raises(StreamError, match="--record"):
        choose(ConfigFile("savedataonly"), ServerSettings())
    chosen = choose(ConfigFile("x"), ServerSettings(records=True, default_config="savedataonly"))
    assert (chosen.saves, chosen.defaulted) == (True, True)


def test_a_file_of_images_without_a_header_is_no_scan(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["dataset/image_1/data"] = np.ones((1, 1, 1, 2, 2), np.float32)
    with contextlib.suppress(ImportError), pytest.raises(DataError):
        read_replay(tmp_path / "a.h5")


HANGS = """
import io, sys, threading
from kdmri_edge.mrd.server import recording

class Hanging(io.FileIO):
    def write(self, data):
        threading.Event().wait()

recording._made = lambda path: Hanging(str(path), "x+b")
recording._CLOSING_S = 0.2
from kdmri_edge.cli import run
sys.argv = ["kdmri-edge", *sys.argv[1:]]
run()
"""


@pytest.mark.nightly
def test_a_disk_that_hangs_does_not_keep_a_server_from_ending(tiny_bundles, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS, "serve", str(tiny_bundles["magnitude"]), "--port", "0",
         "--record", str(tmp_path / "scans"), "--threads", "1"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    with process:
        try:
            while (event := json.loads(process.stderr.readline()))["event"] != "listening":
                pass
            reply = send_scan(identified(), readouts(SCAN), port=int(event["port"]))
            assert len(reply.images) == 3
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 1
    assert json.loads(log.splitlines()[-2])["event"] == "recordings lost"
