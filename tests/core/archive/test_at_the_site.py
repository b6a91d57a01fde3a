"""At the site: the page for its engineer, to the first image, and a server that is killed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import MRImageStorage

from kdmri_edge.mrd.format.hdf5 import write_scan
from kdmri_edge.runtime.bundle import open_bundle
from tests.core.archive.conftest import Archives
from tests.core.mrd.scans import phantom_scan
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "how-to" / "install-at-the-scanner.md").read_text(encoding="utf-8")
BUILD = (ROOT / "deploy" / "build.py").read_text(encoding="utf-8")
Cli = Callable[..., Any]


def commands(program: str) -> list[str]:
    """The page's lines that begin with a program."""
    blocks = re.findall(r"^```\n(.*?)^```$", PAGE, re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(f"{program} ")]


@pytest.mark.nightly
def test_the_page_leads_to_a_first_image(
    archives: Archives,
    tiny_bundles: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cli: Cli,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_bundles["magnitude"], tmp_path / "bundles" / "BUNDLE")
    mask = open_bundle(tiny_bundles["magnitude"]).mask
    write_scan(tmp_path / "raw.h5", phantom_scan(mask, slices=2), oversampling=2)
    address = archives.address("good").replace("ARCHIVE", "PACS")
    given = {"SCAN": "raw.h5", "PACS@10.0.0.5:104": address, "/var/lib/kdmri-edge/archive": "queue"}

    def words(line: str) -> list[str]:
        for ours, theirs in given.items():
            line = line.replace(ours, theirs)
        return shlex.split(line)[1:]

    ours = commands("kdmri-edge")
    (serve,) = (line for line in ours if line.startswith("kdmri-edge serve"))
    added = re.search(r"Then add `(--send [^`]+)` to `KDMRI_OPTIONS`", PAGE)
    assert added is not None
    server = [*words(serve), *words(f"kdmri-edge {added[1]}"), "--queue", "queue", "--threads", "1"]
    server[server.index("9002")] = "0"
    before, after = ours[: ours.index(serve)], ours[ours.index(serve) + 1 :]
    assert (len(before), len(after)) == (3, 3)
    told = [cli(*words(line)) for line in before]
    assert [done.code for done in told] == [0, 0, 0], told
    assert "Passed" in told[0].out.splitlines()[-1]  # what the page says to look for
    assert "coils" in told[1].out
    process = subprocess.Popen(
        [sys.executable, "-m", "kdmri_edge", *server], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip
    with process:
        assert process.stderr is not None
        events: dict[str, Any] = {}
        while "listening" not in events:
            line = process.stderr.readline()
            assert line, events
            events[json.loads(line)["event"]] = json.loads(line)
        assert events["archive"]["calling"] == "EDGE1"
        given["9002"] = str(events["listening"]["port"])
        told = [cli(*words(line)) for line in after]
        until(lambda: len(archives.stored("good")) == 2, process=process)
        process.send_signal(signal.SIGTERM)
        rest = [json.loads(line)["event"] for line in process.stderr]
    assert [done.code for done in told] == [0, 0, 0], told
    assert "2 image(s)" in told[0].out
    assert "zero-filled" not in told[0].out
    assert "is there and takes EDGE1" in told[1].out
    assert {"served", "archived", "session", "stopped"} <= set(rest)


def test_the_page_names_what_there_is() -> None:
    (line,) = commands("python deploy/build.py") or [""]
    assert set(re.findall(r"--[a-z-]+", line)) <= set(re.findall(r'"(--[a-z-]+)"', BUILD))
    for option in re.findall(r"`(--(?:coils|sessions|slice|scan|compressed|image|no-image)[a-z-]*)",
                             PAGE):  # fmt: skip
        assert f'"{option}"' in BUILD
    made = "".join(
        file.read_text(encoding="utf-8") for file in (ROOT / "deploy" / "kdmri_deploy").glob("*.py")
    )
    for name in ("kdmri-edge.service", "constraints.txt", "chroot.img", "sbom.cdx.json"):
        assert name in PAGE
        assert name in BUILD + made
    assert "/etc/kdmri-edge.env" in PAGE
    assert "/etc/kdmri-edge.env" in made
    for field in ("KdmriFallback", "KdmriBundle", "KdmriBeyondTraining"):
        assert field in PAGE


@pytest.mark.nightly
def test_what_a_killed_server_has_queued_is_sent_later(
    tiny_bundles: dict[str, Path], tmp_path: Path, cli: Cli
) -> None:
    mask = open_bundle(tiny_bundles["magnitude"]).mask
    write_scan(tmp_path / "scan.h5", phantom_scan(mask, slices=2))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "kdmri_edge", "serve", str(tiny_bundles["magnitude"]), "--port", "0",
         "--threads", "1", "--send", f"ARCHIVE@127.0.0.1:{port}", "--queue", str(tmp_path / "q")],
        stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip
    with process:
        assert process.stderr is not None
        events = (json.loads(line) for line in process.stderr)
        server = next(event["port"] for event in events if event["event"] == "listening")
        sent = cli("send", tmp_path / "scan.h5", "-o", tmp_path / "images.h5", "--port", server)
        assert sent.code == 0, sent.err
        until(lambda: len(list((tmp_path / "q").glob("*/[!.]*.dcm"))) == 2, process=process)
        process.kill()
    waits = cli("archive", "send", "--queue", tmp_path / "q")
    assert waits.code == 1
    assert "2 waiting" in waits.out
    came: list[str] = []

    def store(event: Any) -> int:
        came.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    entity = AE(ae_title="ARCHIVE")
    entity.add_supported_context(MRImageStorage)
    there = entity.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)]
    )
    done = cli("archive", "send", "--queue", tmp_path / "q")
    there.shutdown()
    assert done.code == 0, done.out
    assert "2 object(s) stored" in done.out
    assert len(set(came)) == 2
    assert not list((tmp_path / "q").glob("*/[!.]*.dcm"))
