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
SPELT_BY = ("printable", "_shown")


def test_modules_are_documented() -> None:
    sources = [file for folder in PACKAGES.values() for file in sorted(folder.rglob("*.py"))]
    assert len(sources) > 200
    silent = [
        str(file.relative_to(ROOT))
        for file in sources
        if not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert not silent


def test_what_a_person_sees_goes_through_one_module() -> None:
    """It spells out control characters, which names in strangers' files may hold."""
    past = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for folder in PACKAGES.values()
        for file in sorted(folder.rglob("*.py"))
        if file != PACKAGES["kdmri_edge"] / "utils" / "console.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("click.echo", "click.secho", "Console", "rich.print")
    ]
    assert not past


def test_programs_of_a_bundle_spell_out_what_they_print() -> None:
    """They run beside bundles, where that module is not, and say what paths and errors hold."""
    folders = [*PACKAGES.values(), ROOT / "deploy"]
    raw = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for folder in folders
        for file in sorted(folder.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
        for part in ast.walk(node)
        if isinstance(part, ast.FormattedValue)
        and not (isinstance(part.value, ast.Call) and ast.unparse(part.value.func) in SPELT_BY)
    ]
    assert not raw
