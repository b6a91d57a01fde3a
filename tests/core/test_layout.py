"""The shape of the project itself."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "kdmri_edge": ROOT / "kdmri_edge",
    "kdmri_export": ROOT / "export" / "kdmri_export",
    "kdmri_bench": ROOT / "bench" / "kdmri_bench",
}


def test_modules_are_documented() -> None:
    sources = [file for folder in PACKAGES.values() for file in sorted(folder.rglob("*.py"))]
    assert len(sources) > 200
    silent = [
        str(file.relative_to(ROOT))
        for file in sources
        if not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert not silent
