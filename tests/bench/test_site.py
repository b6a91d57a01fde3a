"""The documentation builds without a warning, is whole, and needs no other host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kdmri_edge.cli import COMMANDS
from maintainer.code_tables import registries
from maintainer.site import places, resolved

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    path = os.pathsep.join(os.fspath(ROOT / part) for part in (".", "export", "bench"))
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", os.fspath(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    loads = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=\"?(?:https?:)?//")
    found = [page for page in site.rglob("*.html") if loads.search(page.read_text("utf-8"))]
    assert not found
    sheets = [
        page for page in site.rglob("*.css") if re.search(r"url\(.?https?:", page.read_text())
    ]
    assert not sheets


def test_search_works_without_a_server(site: Path) -> None:
    home = (site / "index.html").read_text("utf-8")
    assert home.index("iframe-worker.js") < home.index("assets/javascripts/bundle")
    index = (site / "search" / "search_index.js").read_text("utf-8")
    assert "variable-density" in index


def test_every_command_and_picture_is_there(site: Path) -> None:
    page = (site / "reference" / "cli.html").read_text("utf-8")
    assert not [name for name in COMMANDS if f'id="{name}"' not in page]
    assert "made:" not in page
    shown = (site / "results" / "runtimes.html").read_text("utf-8")
    assert 'src="workstation/panel.png"' in shown
    assert (site / "results" / "workstation" / "panel.png").is_file()


def test_what_packages_may_add_is_listed() -> None:
    found = {
        group
        for package in ("kdmri_edge", "export/kdmri_export", "bench/kdmri_bench")
        for file in (ROOT / package).rglob("*.py")
        for group in re.findall(r"= Registry\(\s*\"([\w.]+)\"", file.read_text("utf-8"))
    }
    assert found == set(re.findall(r"^\| `([\w.]+)` \|", registries(), re.M))
    assert "kdmri_edge.networks" in found


def test_links_lead_to_the_site() -> None:
    known = places(ROOT)

    def link(text: str, page: str) -> str:
        return resolved(text, f"docs/{page}", page, known)

    panel = "bench/results/brain/panel-4x.png"
    assert link(f"![x](../../{panel})", "results/brain.md") == "![x](brain/panel-4x.png)"
    assert link("[x](../CHANGELOG.md#added)", "index.md") == "[x](changelog.md#added)"
    assert link("[`case`](../kdmri_edge/data/case.py)", "index.md") == "`case`"
    assert link("[x](../missing.py)", "index.md") == "[x](../missing.py)"  # the build refuses it
    assert link("[x](https://example.org/a)", "index.md") == "[x](https://example.org/a)"
    known["examples/a.py"] = "tutorials/a.md"
    assert resolved("[x](../docs/install.md)", "examples/a.py", "tutorials/a.md", known) == (
        "[x](../install.md)"
    )
