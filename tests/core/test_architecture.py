"""What docs/architecture.md says of the source is so."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
LONGEST = 12  # files that a reader has to follow
ROW = re.compile(r"^\| \[`(?P<file>[^`]+)`\]\(\.\./(?P<to>[^)]+)\) \| (?P<names>[^|]+) \|", re.M)


def walks() -> dict[str, list[tuple[str, list[str]]]]:
    """Return (file, names) of each walk, by its title."""
    _, _, text = PAGE.partition("\n## Three walks\n")
    parts = re.split(r"^### (.+)$", text, flags=re.M)[1:]
    return {
        title: [(row["file"], re.findall(r"`([^`]+)`", row["names"])) for row in ROW.finditer(body)]
        for title, body in zip(parts[::2], parts[1::2], strict=True)
    }


def layers(of: str) -> list[list[str]]:
    """Return the names of each layer, the highest first."""
    found = re.search(rf"<!-- layers:{of} -->\n```\n(.*?)```", PAGE, re.S)
    assert found is not None
    return [line.split(", ") for line in found[1].splitlines()]


def defined(body: list[ast.stmt], within: str = "") -> Iterator[str]:
    """Yield the functions, classes and constants that statements define (Class.method)."""
    for node in body:
        match node:
            case ast.ClassDef():
                yield within + node.name
                yield from defined(node.body, f"{within}{node.name}.")
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield within + node.name
            case ast.Assign(targets=targets):
                yield from (within + t.id for t in targets if isinstance(t, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield within + name


def test_every_walk_is_short_and_names_what_there_is() -> None:
    found = walks()
    assert len(found) == 3
    for title, rows in found.items():
        assert 6 <= len(rows) <= LONGEST, title
        assert len({file for file, _ in rows}) == len(rows), title
        for file, names in rows:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            assert names, file
            assert not set(names) - set(defined(tree.body)), file


def test_links_lead_to_the_file_that_they_name() -> None:
    rows = list(ROW.finditer(PAGE))
    assert len(rows) == sum(map(len, walks().values()))
    assert all(row["file"] == row["to"] for row in rows)


def test_names_with_a_dot_lead_somewhere() -> None:
    for name in set(re.findall(r"`(kdmri_edge(?:\.\w+)+)`", PAGE)):
        place = ROOT.joinpath(*name.split("."))
        inside = place.parent.with_suffix(".py")
        if not (place.is_dir() or place.with_suffix(".py").is_file()):
            stub = place.parent / "__init__.pyi"
            file = inside if inside.is_file() else stub
            assert re.search(rf"\b{place.name}\b", file.read_text(encoding="utf-8")), name


def test_every_package_has_its_row() -> None:
    rows = set(re.findall(r"`([\w.]+)`", PAGE.partition("\n## Import layers\n")[0]))
    inner = {f"kdmri_edge.{path.parent.name}" for path in ROOT.glob("kdmri_edge/*/__init__.py")}
    assert inner - rows == set()
    assert {"kdmri_edge", "kdmri_export", "kdmri_bench", "experiments", "maintainer"} <= rows


def test_the_layers_are_those_of_the_import_contract() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = settings["tool"]["importlinter"]["contracts"]
    assert [[name] for name in contract["layers"]] == layers("packages")


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield what of the library a module imports when it is loaded, by its first name."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                pass
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                pass
            case ast.ImportFrom(module=module) if module and module.startswith("kdmri_edge."):
                yield module.split(".")[1]
            case _:
                yield from imported(node)


def test_modules_of_the_library_import_from_their_layer_or_below() -> None:
    level = {name: number for number, names in enumerate(layers("kdmri_edge")) for name in names}
    files = [file for file in (ROOT / "kdmri_edge").rglob("*.py") if file.name != "__main__.py"]
    known = {file.relative_to(ROOT / "kdmri_edge").parts[0].removesuffix(".py") for file in files}
    assert known - {"__init__"} == set(level)
    wrong = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in files
        if (own := file.relative_to(ROOT / "kdmri_edge").parts[0].removesuffix(".py")) in level
        for name in imported(ast.parse(file.read_text(encoding="utf-8")))
        if level[name] < level[own]
    ]
    assert not wrong


def test_modules_that_the_changelog_leads_to_are_there() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    table = re.search(r"^\| 0\.1\.0 \| now \|\n(.*?)\n\n", text, re.M | re.S)
    assert table is not None
    cells = [line.split("|")[2] for line in table[1].splitlines()]
    names = set(re.findall(r"`(\w+\.[\w.]+)`", " ".join(cells)))
    assert len(names) > 70
    roots = ("kdmri_edge", "export/kdmri_export", "bench/kdmri_bench", "bench")
    for name in names:
        places = [(ROOT / root).joinpath(*name.split(".")) for root in roots]
        assert any(p.is_dir() or p.with_suffix(".py").is_file() for p in places), name


def test_paths_that_contributors_are_told_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:[\w.]+/)+[\w.]*)`", text))
    assert len(paths) > 20
    within = (ROOT, ROOT / "export" / "kdmri_export")
    made = {"bench/results/NAME", "shared/data"}  # by whoever follows the page
    own = {p for p in paths - made if not p.startswith(("commands/", "brain/"))}
    assert not {path for path in own if not any((root / path).exists() for root in within)}


@pytest.mark.parametrize("file", ["kdmri_edge/missing.py", "docs/architecture.md"])
def test_a_row_of_another_file_is_seen(file: str) -> None:
    row = f"| [`kdmri_edge/api.py`](../{file}) | `load` | |"
    (found,) = ROW.finditer(row)
    assert found["file"] != found["to"]
