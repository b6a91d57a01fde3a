from __future__ import annotations

import getpass
import json
import platform
import re
import socket
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kdmri_edge import __version__
from kdmri_edge.utils import provenance as module
from kdmri_edge.utils.provenance import git_revision, machine, provenance, versions


def test_tells_what_a_figure_needs() -> None:
    told = json.loads(json.dumps(provenance(seed=3)))
    assert told["kdmri_edge"] == __version__
    assert told["seed"] == 3
    assert told["python"] == platform.python_version()
    assert abs(datetime.now(UTC) - datetime.fromisoformat(told["time_utc"])) < timedelta(minutes=1)
    assert told["versions"]["numpy"] == __import__("numpy").__version__
    assert told["machine"]["cores"] >= 1
    assert told["machine"]["memory_gib"] > 0


def test_names_no_machine_person_or_place() -> None:
    text = json.dumps(provenance(seed=0))
    private = [socket.gethostname(), platform.node(), str(Path.home()), str(Path.cwd())]
    private += [str(Path(module.__file__).parent)]
    for word in private:
        if len(word) > 3:
            assert word not in text
    if len(getpass.getuser()) > 4:
        assert getpass.getuser() not in text
    assert not re.search(r'"[^"]*(/[\w.-]+){2,}', text)


def test_revision_of_this_checkout() -> None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    expected = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True
    ).stdout.strip()
    told = git_revision()
    assert told["revision"] == expected
    assert isinstance(told["dirty"], bool)


def test_installed_outside_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "__file__", str(tmp_path / "provenance.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_revision() == {"revision": None, "dirty": None}


def test_in_somebody_elses_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "__init__.py").write_text("")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "provenance.py"))
    assert git_revision()["revision"] is None


def test_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_revision() == {"revision": None, "dirty": None}


def test_machine_and_versions_are_plain() -> None:
    assert all(isinstance(v, str) for v in versions().values())
    assert set(machine()) == {"cpu", "cpu_features", "cores", "memory_gib", "os"}
