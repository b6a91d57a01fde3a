"""Bundles: what is accepted, and every way in which one can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdmri_edge.errors import BundleError
from kdmri_edge.physics.masks import Mask, variable_density_lines
from kdmri_edge.physics.scaling import SCALING_RULE
from kdmri_edge.runtime.bundle import (
    GOLDEN_INPUT,
    GOLDEN_MAPS,
    GOLDEN_OPERATOR,
    GOLDEN_OUTPUT,
    MANIFEST,
    SCHEMA,
    foreign_files,
    open_bundle,
    write_manifest,
)
from kdmri_edge.runtime.targets import TARGETS
from tests.manifests import edit_manifest

GRAPH = b"\x08\x0a"  # an .onnx file without a node
PORT = {"name": "image", "shape": [1, 1, 32, 32], "dtype": "float32"}


@pytest.fixture
def mask() -> Mask:
    return variable_density_lines(32, 4, centre_lines=4)


@pytest.fixture
def folder(tmp_path: Path, mask: Mask) -> Path:
    path = tmp_path / "bundle"
    (path / "notes").mkdir(parents=True)
    (path / "model.onnx").write_bytes(GRAPH)
    (path / "notes" / "licence.txt").write_text("free")
    write_manifest(path, {
        "target": "onnx", "graph": "model.onnx", "io": {"input": PORT, "output": PORT},
        "mask": mask.to_dict(), "matrix": 32, "scaling": SCALING_RULE, "dc": "projection",
    })  # fmt: skip
    return path


edit = edit_manifest


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    assert caught.value.remedy
    for word in words:
        assert word in str(caught.value)


def test_round_trip(folder: Path, mask: Mask) -> None:
    bundle = open_bundle(folder)
    assert bundle.target is TARGETS["onnx"]
    assert bundle.graph.read_bytes() == GRAPH
    assert bundle.mask == mask
    assert set(bundle.manifest["files"]) == {"model.onnx", "notes/licence.txt"}
    assert bundle.size == len(GRAPH) + len("free")


def test_not_a_bundle(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder without a network")
    refused(tmp_path / "nowhere", "does not exist")


@pytest.mark.parametrize("name", ["model.onnx", "notes/licence.txt"])
def test_changed_file(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[0] ^= 1
    (folder / name).write_bytes(content)
    refused(folder, name, "SHA-256")
    assert open_bundle(folder, verify=False).manifest["target"] == "onnx"


def test_missing_file(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    refused(folder, "lacks its file model.onnx")


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"schema": "one"}', '{"target": "onnx"}'])
def test_damaged_manifest(folder: Path, content: str) -> None:
    (folder / MANIFEST).write_text(content)
    refused(folder, MANIFEST)


def test_newer_schema(folder: Path) -> None:
    edit(folder, lambda m: m.update(schema=SCHEMA + 1))
    refused(folder, f"schema {SCHEMA + 1}", "Update kdmri-edge")


def test_unknown_target(folder: Path) -> None:
    edit(folder, lambda m: m.update(target="abacus"))
    refused(folder, "'abacus'", "Update kdmri-edge")


@pytest.mark.parametrize("key", ["graph", "io", "mask", "matrix", "scaling", "dc", "files"])
@pytest.mark.parametrize("gone", [True, False])
def test_incomplete_manifest(folder: Path, key: str, gone: bool) -> None:
    edit(folder, lambda m: m.pop(key) if gone else m.update({key: None}))
    refused(folder, repr(key))


def test_graph_without_a_hash(folder: Path) -> None:
    (folder / "other.onnx").write_bytes(b"planted")
    edit(folder, lambda m: m.update(graph="other.onnx"))
    refused(folder, "graph")


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/../../secret"])
def test_manifest_cannot_point_outside(folder: Path, name: str) -> None:
    (folder.parent / "secret").write_text("x")
    edit(folder, lambda m: m["files"].update({name: "0" * 64}))
    refused(folder, "points outside")


@pytest.mark.parametrize("manifest", [None, "{", '{"files": ["model.pt"], "name": "a web page"}'])
def test_a_model_of_the_users_own_is_no_bundle(tmp_path: Path, manifest: str | None) -> None:
    (tmp_path / "model.pt").write_text("months of training")
    names = ["model.pt"]
    if manifest is not None:
        (tmp_path / MANIFEST).write_text(manifest)
        names.insert(0, MANIFEST)
    assert foreign_files(tmp_path) == names


def test_foreign_files(folder: Path, tmp_path: Path) -> None:
    assert foreign_files(folder) == []
    assert foreign_files(tmp_path / "nowhere") == []
    (folder / "thesis.tex").write_text("years of work")
    assert foreign_files(folder) == ["thesis.tex"]
    # without a readable manifest only the usual names are known to be a bundle's
    (folder / MANIFEST).write_text("{")
    for name in (GOLDEN_INPUT, GOLDEN_OUTPUT, GOLDEN_OPERATOR, GOLDEN_MAPS):
        (folder / name).touch()
    assert foreign_files(folder) == ["notes/licence.txt", "thesis.tex"]
