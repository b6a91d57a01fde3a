"""Tables by name, and what installed packages add to them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kdmri_edge.data.formats.registry import FORMATS
from kdmri_edge.distillation.recipe import LOSSES, DistillRecipe
from kdmri_edge.errors import ExportError, KdmriError, RecipeError
from kdmri_edge.metrics import METRICS
from kdmri_edge.physics.masks import MASK_FAMILIES
from kdmri_edge.registry import Registry
from kdmri_edge.runtime.backends.registry import BACKENDS
from kdmri_edge.runtime.targets import TARGETS

Install = Callable[..., None]
GROUP = "kdmri_edge.tests"


@dataclass(frozen=True)
class Row:
    name: str
    suffixes: tuple[str, ...] = field(default=())


def table() -> Registry[Row]:
    rows = {name: Row(name, (f".{name}",)) for name in ("onnx", "openvino")}
    return Registry(GROUP, Row, "row", rows, error=ExportError, claims=lambda row: row.suffixes)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a package with entry points on the path: NAME = OBJECT of a module with this code."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(package: str, code: str, **points: str) -> None:
        module = package.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(code)
        folder = tmp_path / f"{module}-1.2.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        lines = [f"{name} = {module}:{what}" for name, what in points.items()]
        (folder / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))
        monkeypatch.delitem(sys.modules, module, raising=False)

    return make


ROW = "from tests.core.test_registry import Row\n"


def test_a_package_adds_a_row_behind_the_built_in_ones(install: Install) -> None:
    install("acme-edge", f"{ROW}A = Row('acme', ('.acme',))\n", acme="A")
    rows = table()
    assert list(rows) == ["onnx", "openvino", "acme"]
    assert (len(rows), "acme" in rows, "akme" in rows) == (3, True, False)
    assert rows["acme"].suffixes == (".acme",)
    assert rows.named("acme") is rows["acme"]
    assert (rows.origin("acme"), rows.origin("onnx")) == ("acme-edge 1.2", None)


def test_names_are_known_without_loading_and_built_in_rows_ask_no_package(
    install: Install,
) -> None:
    install("acme-edge", "raise RuntimeError('loaded')\n", acme="A")
    rows = table()
    assert rows["onnx"].name == rows.named("openvino").name.replace("openvino", "onnx")
    assert rows._points is None
    assert "acme" in list(rows)
    with pytest.raises(ExportError, match=r"'acme' of the package acme-edge 1\.2 .*: loaded"):
        list(rows.values())


def test_an_unknown_name_is_a_sentence_with_the_nearest(install: Install) -> None:
    install("acme-edge", f"{ROW}A = Row('acme')\n", acme="A")
    with pytest.raises(ExportError, match="There is no row 'akme'; did you mean 'acme'") as caught:
        table().named("akme")
    assert "onnx, openvino, acme" in caught.value.remedy
    with pytest.raises(KeyError):
        table()["akme"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_module\n", "No module named 'no_such_module'"),
        ("B = 1\n", "no attribute 'A'|'A'"),
        ("A = 'acme'\n", "is of class str, not Row"),
        (f"{ROW}A = Row('other')\n", "calls itself 'other'"),
        (f"{ROW}A = Row('acme', ('.onnx',))\n", "claims '.onnx', which 'onnx' has"),
    ],
)
def test_a_broken_package_is_named_in_one_sentence(install: Install, code: str, said: str) -> None:
    install("acme-edge", code, acme="A")
    with pytest.raises(ExportError, match=rf"acme-edge 1\.2.*({said})") as caught:
        table().named("acme")
    assert "uninstall" in caught.value.remedy


@pytest.mark.parametrize("name", ["onnx", "acme"])
def test_a_name_that_is_taken_is_refused(install: Install, name: str) -> None:
    install("acme-edge", f"{ROW}A = Row('{name}')\n", **{name: "A"})
    if name == "acme":
        install("akme-edge", f"{ROW}A = Row('acme')\n", acme="A")
    owner = "kdmri-edge itself" if name == "onnx" else r"a.me-edge 1\.2"
    with pytest.raises(ExportError, match=rf"The package a.me-edge 1\.2 .*{name}.*{owner}"):
        list(table())


@pytest.mark.parametrize(
    "rows", [BACKENDS, FORMATS, LOSSES, MASK_FAMILIES, METRICS, TARGETS], ids=lambda r: r.group
)
def test_every_table_names_its_rows_and_says_what_is_unknown(rows: Registry[object]) -> None:
    assert [getattr(row, "name", None) for row in rows.values()] == list(rows)
    first = next(iter(rows))
    with pytest.raises(KdmriError, match=f"did you mean {first!r}"):
        rows.named(first + "x")


def test_a_recipe_names_a_loss_of_the_table() -> None:
    assert DistillRecipe.from_dict({"name": "a", "loss": "mse"}, "test").optim.loss == "mse"
    with pytest.raises(RecipeError, match="no loss 'l1-sim'; did you mean 'l1-ssim'"):
        DistillRecipe.from_dict({"name": "a", "loss": "l1-sim"}, "test")
