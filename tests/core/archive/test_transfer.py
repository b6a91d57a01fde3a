"""What becomes of objects that are sent to an archive, whatever it does with them."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest

from kdmri_edge.archive.address import Archive, Tls, parse_address
from kdmri_edge.archive.queue import ArchiveQueue, Line, default_queue
from kdmri_edge.archive.sender import Sender
from kdmri_edge.archive.transfer import Delivery, Limits, deliver, echo
from kdmri_edge.errors import ArchiveError, OutputError
from tests.core.archive.conftest import Archives
from tests.waiting import until

Objects = Callable[[int], list[bytes]]
Cli = Callable[..., Any]
QUICK = Limits(
    connect_s=2.0,
    association_s=5.0,
    object_s=5.0,
    silence_s=5.0,
    pause_s=0.02,
    longest_pause_s=0.05,
)


@pytest.fixture
def queue(tmp_path: Path) -> ArchiveQueue:
    return ArchiveQueue(tmp_path / "queue", reserve=0)


@pytest.fixture
def nobody() -> Archive:
    """The address of an archive where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return Archive(title="ARCHIVE", host="127.0.0.1", port=free.getsockname()[1])


def filled(queue: ArchiveQueue, archive: Archive, made: list[bytes]) -> Line:
    for data in made:
        queue.put(archive, data)
    return queue.line(archive)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("PACS@10.0.0.5:104", "10.0.0.5", 104),
        (" PACS@pacs.example.org:11112 ", "pacs.example.org", 11112),
        ("PACS@[fe80::1]:104", "fe80::1", 104),
    ],
)
def test_addresses_are_read(text: str, host: str, port: int) -> None:
    read = parse_address(text, calling="EDGE")
    assert (read.title, read.host, read.port, read.calling) == ("PACS", host, port, "EDGE")
    assert read.name == text.strip()
    assert Archive.from_dict(json.loads(json.dumps(read.to_dict()))) == read


@pytest.mark.parametrize(
    "text",
    ["PACS", "PACS@host", "PACS:104", "@host:104", "PACS@:104", "PACS@host:0", "PACS@host:65536",
     "PACS@fe80::1:104", "PACS@host:104x", "SEVENTEEN-LETTERS@host:104", "PA\\CS@host:104",
     "PÄCS@host:104", "A@B@host:104"],
)  # fmt: skip
def test_addresses_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ArchiveError) as wrong:
        parse_address(text)
    assert "\n" not in str(wrong.value)


def test_objects_arrive_as_they_were_queued(
    archives: Archives, queue: ArchiveQueue, objects: Objects
) -> None:
    made = objects(5)
    line = filled(queue, archives.archive("good", calling="EDGE1"), made)
    done = deliver(line, Limits(objects=2))
    assert (done.stored, done.waiting, done.refused, done.reason) == (5, 0, {}, "")
    assert archives.associations("good") == 3  # of two objects, and the last one
    assert "EDGE1" in (archives.folder / "good.log").read_text()
    for sent, came in zip(made, archives.stored("good"), strict=True):
        wanted = pydicom.dcmread(io.BytesIO(sent))
        assert came.PixelData == wanted.PixelData
        assert came == wanted  # each attribute: geometry, series, derivation
    assert len({data.SeriesInstanceUID for data in archives.stored("good")}) == 1
    assert line.waiting() == []


def test_an_archive_of_another_transfer_syntax_gets_the_same_pixels(
    archives: Archives, queue: ArchiveQueue, objects: Objects
) -> None:
    (made,) = objects(1)
    assert deliver(filled(queue, archives.archive("implicit"), [made])).stored == 1
    (came,) = archives.stored("implicit")
    assert came.PixelData == pydicom.dcmread(io.BytesIO(made)).PixelData
    assert came.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2"


def test_remarks_of_the_archive_are_no_refusals(
    archives: Archives, queue: ArchiveQueue, objects: Objects
) -> None:
    done = deliver(filled(queue, archives.archive("warns"), objects(1)))
    assert (done.stored, done.waiting) == (1, 0)
    assert "0xB000" in done.warnings[0]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cannot", "0xC000"),
        pytest.param("capture", "does not take objects of class", marks=pytest.mark.nightly),
    ],
)
def test_what_an_archive_refuses_is_kept_with_the_reason(
    archives: Archives, queue: ArchiveQueue, objects: Objects, name: str, reason: str, cli: Cli
) -> None:
    line = filled(queue, archives.archive(name), objects(2))
    done = deliver(line, QUICK)
    assert (done.stored, done.waiting, len(done.refused)) == (0, 0, 2)
    held = line.refused()
    assert [one.file.read_bytes()[128:132] for one in held] == [b"DICM"] * 2
    assert all(reason in one.reason for one in held)
    listed = cli("archive", "list", "--queue", queue.folder)
    assert listed.code == 0
    assert listed.out.count(reason) == 2
    again = cli("archive", "send", "--queue", queue.folder, "--refused")
    assert again.code == 1
    assert "2 refused" in again.out
    assert len(line.refused()) == 2


def test_an_archive_that_is_full_gets_the_rest_later(
    archives: Archives, queue: ArchiveQueue, objects: Objects
) -> None:
    line = filled(queue, archives.archive("full"), objects(3))
    done = deliver(line, QUICK)
    assert (done.stored, done.waiting) == (1, 2)
    assert "out of resources" in done.reason
    assert line.state.attempts == 1
    killed = line.folder / ".0-killed.dcm.tmp.dcm"
    killed.write_bytes(b"half")
    os.utime(killed, (0, 0))
    with queue.sending() as ours:
        assert ours
        assert deliver(line, QUICK).stored == 2
    assert line.state.attempts == 0
    assert not killed.exists()  # it was neither sent nor left


def test_an_object_that_breaks_associations_holds_up_no_others_for_ever(
    archives: Archives, queue: ArchiveQueue, objects: Objects
) -> None:
    line = filled(queue, archives.archive("aborts"), objects(2))
    first = line.waiting()[0].name
    done = deliver(line, QUICK)
    assert done.waiting == 2
    assert "ended before" in done.reason
    assert line.state.breaks == {first: 1}
    second = line.waiting()[1].name
    deliver(line, QUICK)
    assert line.state.breaks == {first: 1, second: 1}  # what broke an association comes last


@pytest.mark.nightly
def test_an_object_that_breaks_every_association_is_put_aside(
    archives: Archives, queue: ArchiveQueue, objects: Objects
) -> None:
    line = filled(queue, archives.archive("aborts"), objects(2))
    for _ in range(20):
        if not deliver(line, QUICK).waiting:
            break
    assert line.waiting() == []
    assert all("5 associations ended" in one.reason for one in line.refused())


def test_pauses_grow_while_nobody_answers(
    queue: ArchiveQueue, objects: Objects, nobody: Archive
) -> None:
    line = filled(queue, nobody, objects(1))
    pauses = []
    for attempt in (1, 2, 3):
        done = deliver(line, Limits(pause_s=100.0, longest_pause_s=250.0))
        assert done.waiting == 1
        assert "cannot be reached" in done.reason
        assert line.state.attempts == attempt
        pauses.append(round(line.state.next_s - time.time(), -1))
    assert pauses == [100, 200, 250]
    again = ArchiveQueue(queue.folder).lines()  # as another process finds it
    assert [(each.archive, each.state.attempts) for each in again] == [(nobody, 3)]


def test_wrong_titles_and_hosts_are_named(
    archives: Archives, queue: ArchiveQueue, objects: Objects, cli: Cli
) -> None:
    wrong = Archive(title="OTHER", host="127.0.0.1", port=archives.ports["picky"])
    assert "title not recognised" in deliver(filled(queue, wrong, objects(1)), QUICK).reason
    cli("archive", "echo", wrong.name).check_refusal("OTHER@127.0.0.1", "title not recognised")
    there = cli("archive", "echo", archives.address("picky"))
    assert there.code == 0
    assert "takes KDMRI-EDGE" in there.out
    unknown = Archive(title="X", host="no.such.host.invalid", port=104)
    with pytest.raises(ArchiveError, match=r"no.such.host.invalid is not known"):
        echo(unknown)


def test_queues_are_private_and_full_disks_a_sentence(
    archives: Archives, tmp_path: Path, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    (made,) = objects(1)
    queue = ArchiveQueue(tmp_path / "q", reserve=0)
    place = queue.put(archives.archive("good"), made)
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert stat.S_IMODE(queue.folder.stat().st_mode) == 0o700
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40 - 2**20, 2**20))
    with pytest.raises(OutputError, match="1 MiB are free"):
        ArchiveQueue(tmp_path / "q").put(archives.archive("good"), made)
    assert len(queue.line(archives.archive("good")).waiting()) == 1
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert default_queue() == tmp_path / "state" / "kdmri-edge" / "archive"


def test_a_damaged_object_does_not_hold_up_the_others(
    archives: Archives, queue: ArchiveQueue, objects: Objects
) -> None:
    line = filled(queue, archives.archive("good"), objects(2))
    first = line.waiting()[0]
    first.write_bytes(first.read_bytes()[:100])
    done = deliver(line, QUICK)
    assert (done.stored, list(done.refused)) == (1, [first.name])


def test_one_process_at_a_time_sends(
    archives: Archives, queue: ArchiveQueue, objects: Objects, cli: Cli
) -> None:
    line = filled(queue, archives.archive("good"), objects(2))
    code = (
        "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire();"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(queue.folder / "lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        cli("archive", "send", "--queue", queue.folder).check_refusal("Another process sends")
        filled(queue, archives.archive("good"), objects(1))  # which may be added to meanwhile
        assert len(line.waiting()) == 3
        other.kill()  # the system takes its lock back
    done = cli("archive", "send", archives.address("good"), "--queue", queue.folder)
    assert done.code == 0, done.err
    assert "3 object(s) stored" in done.out
    assert "Nothing" not in cli("archive", "list", "--queue", queue.folder).out


def test_encrypted_and_only_with_the_right_authority(
    archives: Archives, queue: ArchiveQueue, objects: Objects
) -> None:
    if archives.certificate is None:
        pytest.skip("openssl is not installed")
    checked = archives.archive("tls", tls=Tls(ca=archives.certificate))
    assert deliver(filled(queue, checked, objects(1)), QUICK).stored == 1
    assert [line.archive.tls for line in queue.lines()] == [checked.tls]  # kept for the next start
    system = archives.archive("tls", tls=Tls())
    with pytest.raises(ArchiveError, match="certificate is not accepted"):
        echo(system, QUICK)
    wrong = archives.archive("tls", tls=Tls(ca=archives.folder / "tls.log"))
    with pytest.raises(ArchiveError, match="cannot be used for TLS"):
        echo(wrong, QUICK)
    in_the_clear = archives.archive("tls")
    with pytest.raises(ArchiveError, match="no association in it"):
        echo(in_the_clear, QUICK)


def test_a_sender_goes_on_where_an_earlier_process_ended(
    archives: Archives, queue: ArchiveQueue, objects: Objects, nobody: Archive
) -> None:
    filled(queue, archives.archive("good"), objects(2))
    filled(queue, nobody, objects(1))
    told: list[tuple[Archive, Delivery]] = []
    wrong: list[Exception] = []
    sender = Sender(queue, QUICK, tell=lambda *what: told.append(what), fail=wrong.append)
    sender.start()
    until(lambda: len(archives.stored("good")) == 2)
    queue.put(archives.archive("good"), objects(3)[2])
    sender.wake()
    until(lambda: len(archives.stored("good")) == 3)
    sender.stop(5.0)
    assert wrong == []
    assert sum(done.stored for _, done in told) == 3
    assert len(queue.line(nobody).waiting()) == 1  # and it keeps nobody else waiting


@pytest.mark.nightly
def test_a_real_archive_takes_them(
    tmp_path: Path, queue: ArchiveQueue, objects: Objects, nobody: Archive
) -> None:
    """dcmtk's storescp; pynetdicom installs a program of the same name."""
    found = shutil.which("storescp", path="/usr/bin:/usr/local/bin:/opt/homebrew/bin")
    if found is None:
        pytest.skip("dcmtk's storescp is not installed (package dcmtk)")
    made = objects(3)
    (tmp_path / "archive").mkdir()
    command = [found, "--output-directory", str(tmp_path / "archive"), str(nobody.port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        line = filled(queue, nobody, made)
        until(lambda: deliver(line, QUICK).stored > 0)
        process.terminate()
    came = {}
    for file in (tmp_path / "archive").iterdir():
        data = pydicom.dcmread(file)
        came[data.SOPInstanceUID] = data
    for sent in made:
        wanted = pydicom.dcmread(io.BytesIO(sent))
        assert came.pop(wanted.SOPInstanceUID) == wanted
    assert not came
    assert line.waiting() == []
