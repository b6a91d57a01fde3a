from __future__ import annotations

import errno
import hashlib
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kdmri_edge.data.datasets import load_split
from kdmri_edge.errors import BundleError, DataError, MaskError, OutputError, RunError
from kdmri_edge.mrd.server.parameters import parameters_of
from kdmri_edge.physics.masks import load_mask
from kdmri_edge.runtime.manifest import read_manifest
from kdmri_edge.utils.files import (
    atomic_directory,
    atomic_path,
    check_file_writable,
    check_writable,
    finite_json,
    read_json,
    refuse_newer,
    sha256_bytes,
    sha256_file,
    sweep,
    sweep_folders,
    write_json,
    writing,
)


def test_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "er" / "file.txt"
    with atomic_path(final) as temporary:
        temporary.write_text("new")
        assert not final.exists()
        assert temporary.parent == final.parent
        assert temporary.suffix == ".txt"
    assert final.read_text() == "new"
    assert [p.name for p in final.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_keeps_the_earlier_file(tmp_path: Path, error: type[BaseException]) -> None:
    final = tmp_path / "file.txt"
    final.write_text("old")

    def fail() -> None:
        with atomic_path(final) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert final.read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    final = tmp_path / "file.json"
    write_json(final, {"a": 1})

    def fsync(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match="disk is full") as caught:
        write_json(final, {"a": 2})
    assert str(final) in caught.value.what
    assert read_json(final, RunError) == {"a": 1}
    assert list(tmp_path.iterdir()) == [final]


def test_places_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for final in (
        tmp_path / "file" / "below",
        tmp_path / "folder",
        tmp_path / ("x" * 300),
    ):
        with pytest.raises(OutputError, match="cannot be written"):
            write_json(final, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), writing(tmp_path):
        raise FileNotFoundError


def test_folder_replaces_the_earlier_one_as_a_whole(tmp_path: Path) -> None:
    final = tmp_path / "folder"
    for text in ("old", "new"):
        with atomic_directory(final) as temporary:
            (temporary / text).write_text(text)
    assert [p.name for p in final.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_failure_keeps_the_earlier_folder(tmp_path: Path) -> None:
    final = tmp_path / "folder"
    with atomic_directory(final) as temporary:
        (temporary / "old").write_text("old")

    def fail() -> None:
        with atomic_directory(final) as temporary:
            (temporary / "new").write_text("half")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert [p.name for p in final.iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_failure_between_the_renames_brings_the_earlier_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "folder"
    with atomic_directory(final) as temporary:
        (temporary / "old").write_text("old")
    rename, calls = Path.rename, []

    def fails_once(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_once)

    def replace() -> None:
        with atomic_directory(final) as temporary:
            (temporary / "new").write_text("new")

    with pytest.raises(KeyboardInterrupt):
        replace()
    assert [p.name for p in final.iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("name", [".", ".."])
def test_a_folder_without_a_name_of_its_own_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def make() -> None:
        with atomic_directory(Path(name)):
            pass

    with pytest.raises(OutputError, match="Give it a name"):
        make()
    assert list(tmp_path.iterdir()) == []


def test_folder_does_not_replace_a_file(tmp_path: Path) -> None:
    final = tmp_path / "file"
    final.write_text("mine")

    def make() -> None:
        with atomic_directory(final):
            pass

    with pytest.raises(OutputError, match="is a file"):
        make()
    assert final.read_text() == "mine"


def test_json_round_trip_and_damage(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    value = {"text": "Å", "list": [1, 2.5, None]}
    write_json(file, value)
    assert read_json(file, RunError) == value
    for damage in (b"{", b"\xff\xfe"):
        file.write_bytes(damage)
        with pytest.raises(RunError, match="not readable JSON"):
            read_json(file, RunError)
    with pytest.raises(RunError, match="does not exist"):
        read_json(tmp_path / "none", RunError)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_json_of_strangers_holds_no_infinite_numbers(tmp_path: Path, number: str) -> None:
    """They are no JSON, or no number, and pass comparisons; own records may have them."""
    file = tmp_path / "a.json"
    file.write_text(f'{{"a": [1.5, {number}]}}')
    with pytest.raises(RunError, match=f"not readable JSON .*{number} is no finite number"):
        read_json(file, RunError)
    with pytest.raises(ValueError, match="no finite number"):
        finite_json(file.read_text(), unique=True)
    assert not math.isfinite(read_json(file, RunError, finite=False)["a"][1])
    with pytest.raises(BundleError, match="no finite number"):
        read_manifest(file)
    file.write_text(f'{{"shape": [8, 8], "phase_encode_axis": 0, "sampled_lines": [0, {number}]}}')
    with pytest.raises(MaskError, match="cannot be read as a mask"):
        load_mask(file)
    file.write_text(f'{{"train": [], "test": ["b"], "validation": ["c"], "name": {number}}}')
    with pytest.raises(DataError, match="no finite number"):
        load_split(file)
    assert parameters_of(f'{{"parameters": {{"threshold": {number}}}}}') is None


def test_hashes(tmp_path: Path) -> None:
    data = os.urandom(100_000)
    (tmp_path / "f").write_bytes(data)
    assert sha256_file(tmp_path / "f") == sha256_bytes(data) == hashlib.sha256(data).hexdigest()


def _killed_while(writing: str, half: str, final: Path, by: signal.Signals) -> None:
    """Let a process of its own be killed within `atomic_path` or `atomic_directory`."""
    code = (
        "import os, sys; from pathlib import Path\n"
        f"from kdmri_edge.utils.files import {writing}\n"
        f"with {writing}(Path(sys.argv[1])) as t:\n"
        f"    {half}; os.kill(os.getpid(), {int(by)})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(final)],
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == -by


def test_sweep_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    write_json(tmp_path / "kept.json", {})
    (tmp_path / ".hidden").write_text("kept")
    half = "t.write_text('half')"
    _killed_while("atomic_path", half, tmp_path / "kept.json", signal.SIGKILL)
    assert len(list(tmp_path.iterdir())) == 3
    assert read_json(tmp_path / "kept.json", RunError) == {}
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", "kept.json"]
    sweep(tmp_path / "none")


def test_folders_that_killed_processes_left_are_removed_when_they_are_old(tmp_path: Path) -> None:
    half = "(t / 'graph').write_text('half')"
    _killed_while("atomic_directory", half, tmp_path / "student-onnx", signal.SIGTERM)
    (left,) = tmp_path.iterdir()
    sweep_folders(tmp_path)
    assert left.is_dir()  # another process may be writing it
    sweep(tmp_path)
    assert not left.exists()


def test_folders_of_others_and_the_only_copy_stay(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    names = (".cache.tmp", ".mine.tmp.d", "x.0123abcd.tmp", ".gone.0123abcd.former.tmp")
    old = (".there.0123abcd.former.tmp", ".a.dcm.0123abcd.tmp.dcm", ".a.0123abcd.tmp")
    for name in (*names, *old, ".busy.0123abcd.tmp"):
        (tmp_path / name / "inside").mkdir(parents=True)
        for place in (tmp_path / name / "inside", tmp_path / name):
            os.utime(place, (1e9, 1e9))
    (tmp_path / ".busy.0123abcd.tmp" / "inside" / "file").touch()  # by another process, just now
    sweep_folders(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {*names, "there", ".busy.0123abcd.tmp"}
    sweep_folders(tmp_path / "none")


def test_trying_a_folder_leaves_no_trace_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    out = tmp_path / "a" / "b"
    check_writable(out)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    # the name that 0.1.0 wrote to, whatever lay there
    (tmp_path / ".kdmri-edge-probe").symlink_to(tmp_path / "mine")
    check_writable(tmp_path)
    assert (tmp_path / "mine").read_text() == "kept"


def test_a_file_may_be_there_already_but_not_as_a_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    check_file_writable(tmp_path / "mine")
    check_file_writable(tmp_path / "a" / "new")
    assert (tmp_path / "mine").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(OutputError, match="is a folder"):
        check_file_writable(tmp_path)
    with pytest.raises(OutputError):
        check_file_writable(tmp_path / "mine" / "inside")


def test_two_processes_may_try_the_same_folder(tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def attempt() -> None:
        try:
            for _ in range(200):
                check_writable(tmp_path / "a" / "b")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["mine/inside", "x" * 300])
def test_a_folder_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(OutputError):
        check_writable(tmp_path / name)


@pytest.mark.parametrize("form", [0, 1, 2, None, "3", True, 2.5])
def test_what_is_not_newer_is_left_to_its_reader(form: object) -> None:
    refuse_newer("a.json", form, 2, RunError)


def test_a_newer_form_is_named_with_its_remedy() -> None:
    with pytest.raises(RunError, match=r"a\.json has schema 3, which a newer .* up to 2") as caught:
        refuse_newer("a.json", 3, 2, RunError, named="schema")
    assert caught.value.remedy == "Update kdmri-edge."
