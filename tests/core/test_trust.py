"""Bundles of strangers: nothing of them runs before it is checked, and nothing passes edited."""

from __future__ import annotations

import functools
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import kdmri_edge as ke
from kdmri_edge.errors import BundleError
from kdmri_edge.models.checkpoint import load_checkpoint, save_checkpoint
from kdmri_edge.models.shipped import INDEX, INDEX_FORMAT, shipped_networks
from kdmri_edge.physics.coils import sense_operator_array
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.masks import Mask, variable_density_2d, variable_density_lines
from kdmri_edge.physics.operators import Form, operator_array
from kdmri_edge.physics.sampled_by import contradicted_by, enforced_by, enforcement
from kdmri_edge.runtime import verify
from kdmri_edge.runtime.backends.torchscript import silence_warnings
from kdmri_edge.runtime.bundle import GOLDEN_INPUT, MANIFEST, open_bundle
from kdmri_edge.runtime.graphs import torchscript
from kdmri_edge.runtime.manifest import DIGEST, SIGNATURES, digest_of, write_manifest
from kdmri_edge.runtime.origin import claim_of
from kdmri_edge.utils.files import sha256_file
from kdmri_export.export import export_model
from kdmri_export.parity import golden
from kdmri_export.recipe import ExportRecipe
from tests.export.networks import write_checkpoint
from tests.manifests import edit_manifest, rehash

OLD = Path(__file__).resolve().parents[1] / "data" / "v0_1" / "bundles"
OURS = OLD / "torchscript-f32" / "model.pt"

Cli = Callable[..., Any]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of an earlier version, with the digest that it would have now."""
    folder = Path(shutil.copytree(OLD / "onnx-f32", tmp_path / "bundle"))
    write_manifest(folder, open_bundle(folder).manifest)
    return folder


def old(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD / name, tmp_path / name))


def run(cli: Cli, bundle: Path, *before: object) -> Any:
    """Ask for an image, of which there must be none where something is refused."""
    place = bundle.parent
    np.save(place / "x.npy", np.ones((1, 32, 32), np.float32))
    given = [place / "x.npy", "-o", place / "o.npy", "--undersample", "--backend", "auto"]
    done = cli(*before, "run", bundle, *given)
    assert done.code == 0 or not (place / "o.npy").exists()
    return done


# TorchScript


class Writes(torch.nn.Module):
    """Writes a file when it is loaded, as nothing that is exported here does."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.place, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.place, self.training = state
        made = torch.from_file(self.place, True, 4)
        self.training = bool(made.fill_(1.0).sum() > 5)

    def forward(self, x_u: torch.Tensor) -> torch.Tensor:
        return x_u


@pytest.fixture
def hostile(tmp_path: Path) -> tuple[Path, Path]:
    """A bundle whose graph writes a file when it is loaded, and that file."""
    folder, written = old("torchscript-f32", tmp_path), tmp_path / "written"
    with silence_warnings():
        torch.jit.script(Writes(str(written))).save(str(folder / "model.pt"))
    edit_manifest(folder, lambda m: rehash(m, folder, "model.pt"))
    return folder, written


def test_what_a_stranger_put_into_torchscript_is_not_executed(
    cli: Cli, hostile: tuple[Path, Path]
) -> None:
    folder, written = hostile
    for done in (cli("verify", folder), run(cli, folder)):
        done.check_refusal("model.pt", "so it is not loaded", f"--code '{folder}'")
    done = cli("verify", folder, "--files-only")
    assert done.code == 1
    assert "Not to be loaded without --code: model.pt" in done.out
    assert done.out.endswith("Nothing was executed.\nFailed.\n")
    assert not written.exists()
    # the flag is what it takes, and this is why
    assert cli("--code", folder, "verify", folder).code == 1
    assert written.exists()


@pytest.mark.parametrize("name", ["torchscript-f32", "torchscript-int8"])
def test_our_own_archives_are_known_by_what_they_hold(name: str) -> None:
    assert torchscript.refused(OLD / name / "model.pt") is None
    assert any(one.shape == (32, 32) for one in torchscript.constants(OLD / name / "model.pt"))


def rewritten(place: Path, change: Callable[[str, bytes], bytes], **more: bytes) -> Path:
    """Write our archive again, with other parts."""
    with zipfile.ZipFile(OURS) as given, zipfile.ZipFile(place, "w") as made:
        for name in given.namelist():
            made.writestr(zipfile.ZipInfo(name), change(name, given.read(name)))
        for name, content in more.items():
            made.writestr(f"archive/{name.replace('__', '/')}.py", content)
    return place


HEAD = b"    input = torch._convolution"
LINES = {
    "torch.save(x_u, 'f')": "torch.save",
    "a = torch.from_file('f', True, 4)": "torch.from_file",
    "a = torch . from_file": "torch.from_file",
    "a = torch": "torch.",
    "a = ops.aten.from_file('f')": "ops.aten.from_file",
    "a = ops.aten.save": "ops.aten.save",
    "(x_u).save('f')": "what an expression gives",
    "a = x_u.save": "attribute 'save'",
    "a = [x_u][0](x_u)": "what an expression gives",
    "a = getattr(self, 'b')": "calls getattr",
    "print(x_u)": "'print'",
    "a = open('f')": "calls open",
    "while True:\n      pass": "'while'",
    "for i in [1]:\n      pass": "'for'",
    "if True:\n      pass": "'if'",
    "import os": "'import'",
    "a = 1 # torch": "'#'",
    "a = 'b\\n'": "character",
    "a = '''b'''": "text",
    "a = 'b'.format(1)": "text",
    "a = x_u @ x_u": "'@'",
    "a = __torch__.b.c(x_u)": "calls b.c",
    "a = CONSTANTS.c0(x_u)": "constant",
    "def __setstate__(self) -> None:\n      pass": "__setstate__",
    "class A(Module):\n      pass": "one class",
    "a = x_u\r": "character",
    "a = 'é'": "character",
}


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_no_export_writes_makes_an_archive_unknown(line: str, tmp_path: Path) -> None:
    def change(name: str, content: bytes) -> bytes:
        return content.replace(HEAD, f"    {line}\n".encode() + HEAD) if "code" in name else content

    assert LINES[line] in str(torchscript.refused(rewritten(tmp_path / "a.pt", change)))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_is_one_plain_zip_of_known_parts(tmp_path: Path) -> None:
    def same(_: str, content: bytes) -> bytes:
        return content

    place = rewritten(tmp_path / "a.pt", same)
    assert torchscript.refused(place) is None
    whole = place.read_bytes()
    for content in (b"", b"PK", whole[:-1], whole + b"\0", b"#!" + whole, whole[: len(whole) // 2]):
        place.write_bytes(content)
        assert torchscript.refused(place) is not None
    assert "model.json" in str(torchscript.refused(_with_member(place, "archive/model.json")))
    assert "other" in str(torchscript.refused(_with_member(place, "other/version")))
    assert "as no export does" in str(torchscript.refused(_with_member(place, "archive/version")))
    evil = b"class A(Module):\n  def __setstate__(self) -> None:\n    pass\n"
    assert "__setstate__" in str(torchscript.refused(rewritten(place, same, code__a=evil)))
    assert "names os system" in str(torchscript.refused(_with_pickle(place, b"cos\nsystem\n.")))
    other = b"c__torch__.torch.classes.dist\nStore\n."
    assert "classes.dist" in str(torchscript.refused(_with_pickle(place, other)))
    assert torchscript.refused(_with_pickle(place, b"\x80\x02r\xff\xff\xff\xff.")) is not None


def _with_pickle(place: Path, pickled: bytes) -> Path:
    return rewritten(place, lambda name, own: pickled if name.endswith("constants.pkl") else own)


def _with_member(place: Path, name: str) -> Path:
    rewritten(place, lambda _, content: content)
    with zipfile.ZipFile(place, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"3")
    return place


def test_a_constant_beyond_its_bytes_is_not_read(tmp_path: Path) -> None:
    def change(name: str, content: bytes) -> bytes:
        return content[:8] if name.endswith("constants/5") else content

    with pytest.raises(BundleError, match="constants that cannot be read"):
        torchscript.constants(rewritten(tmp_path / "a.pt", change))


# The manifest


EDITS: list[dict[str, Any]] = [
    {"matrix": 1_000_000},
    {"matrix": True},
    {"matrix": 31},
    {"io": {}},
    {"io": {"input": {}, "output": {}}},
    {"io": {"input": 3, "output": 3}},
    {"scaling": {"rule": "by-the-moon"}},
    {"scaling": {"rule": "max-abs-zero-filled", "floor": 1e3}},
    {"dc": "wishful"},
    {"batch": 3},
    {"coils": "many"},
    {"coils": 0},
    {"matrix_multiple": 0},
    {"mask_input": "no"},
    {"parameters": [1]},
    {"training": None},
    {"parity": []},
    {"run_precision": "f99"},
    {"files": {"model.onnx": 3}},
    {"files": {}},
    {"graph": GOLDEN_INPUT},
    {"signatures": "mine"},
    {"digest": 1},
    {"mask": {"name": "m", "shape": [32], "sampled": [-1]}},
    {"mask": {"name": "m", "shape": [10**9, 10**9], "sampled": []}},
]


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("change", EDITS, ids=str)
def test_an_edited_manifest_is_one_sentence(
    bundle: Path, change: dict[str, Any], sealed: bool
) -> None:
    """For every command: `verify` and what runs a bundle open it by this one function."""
    edit_manifest(bundle, lambda m: m.update(change), sealed=sealed and DIGEST not in change)
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle)
    assert caught.value.remedy


def test_verify_run_and_serve_refuse_alike(cli: Cli, bundle: Path) -> None:
    edit_manifest(bundle, lambda m: m.update(scaling={"rule": "by-the-moon"}))
    served = cli("serve", bundle, "--port", 0)
    for done in (cli("verify", bundle), cli("verify", bundle, "--files-only"), served):
        done.check_refusal("scaling rule", "by-the-moon")
    run(cli, bundle).check_refusal("scaling rule", "by-the-moon")


def test_whatever_is_changed_does_not_agree_with_the_digest(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    assert manifest[DIGEST] == digest_of(manifest) == open_bundle(bundle).digest
    for key in manifest.keys() - {DIGEST, "schema"}:
        changed = {**manifest, key: [manifest[key]]}
        assert digest_of(changed) != manifest[DIGEST], key
    # signatures sign the digest, and engines are built anew on the device
    files = {**manifest["files"], "model.sm86.engine": "0" * 64}
    assert digest_of({**manifest, SIGNATURES: [{}], "files": files}) == manifest[DIGEST]
    edit_manifest(bundle, lambda m: m["training"].update(attribution="Me"), sealed=False)
    with pytest.raises(BundleError, match="digest"):
        open_bundle(bundle)


def test_the_digest_that_the_sender_told_is_asked_for(cli: Cli, bundle: Path) -> None:
    digest = open_bundle(bundle).digest
    assert digest is not None
    for told in (digest, digest.removeprefix("sha256:")):
        assert cli("verify", bundle, "--files-only", "--digest", told).code == 0
    edit_manifest(bundle, lambda m: m["training"].update(attribution="Me"))
    done = cli("verify", bundle, "--files-only", "--digest", digest)
    done.check_refusal(digest, "was asked for")


def test_a_bundle_of_an_earlier_version_says_that_it_has_no_digest(cli: Cli) -> None:
    done = cli("verify", OLD / "onnx-f32", "--files-only")
    assert done.code == 0
    assert "has no digest" in done.out
    assert "exporter's claim" in done.out


def test_files_only_takes_no_backend(cli: Cli, bundle: Path) -> None:
    done = cli("verify", bundle, "--files-only", "--backend", "onnxruntime")
    assert done.code == 2


# Mask and operator


def other_mask(manifest: dict[str, Any]) -> None:
    own = Mask.from_dict(manifest["mask"])
    made = variable_density_lines(32, 3, centre_lines=4, seed=77)
    if not own.is_lines:
        made = variable_density_2d((32, 32), 3, seed=77)
    manifest["mask"] = made.to_dict()


@pytest.mark.parametrize(
    "name", sorted(path.name for path in OLD.iterdir() if path.name != "onnx-sr")
)
def test_a_mask_that_is_not_the_graphs_is_refused(cli: Cli, name: str, tmp_path: Path) -> None:
    folder = old(name, tmp_path)
    edit_manifest(folder, other_mask)
    cli("verify", folder, "--files-only").check_refusal("names mask", "made for another one")
    run(cli, folder).check_refusal("names mask", "made for another one")


@pytest.mark.parametrize("name", ["onnx-f32", "onnx-any-mask", "onnx-sense", "openvino-f32"])
def test_one_line_more_is_another_mask(name: str, tmp_path: Path) -> None:
    def one_more(manifest: dict[str, Any]) -> None:
        sampled = manifest["mask"]["sampled"]
        sampled.append(next(n for n in range(32) if n not in sampled and -n % 32 not in sampled))

    folder = old(name, tmp_path)
    edit_manifest(folder, one_more)
    with pytest.raises(BundleError, match="made for another one"):
        open_bundle(folder)


@pytest.mark.parametrize("height", [32, 33])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_mask_is_recognised_in_its_operator(height: int, channels: int) -> None:
    lines = variable_density_lines(height, 3, centre_lines=4, seed=3)
    points = variable_density_2d((height, height), 3, seed=3)
    for mask, form in ((lines, Form.PROJECTION), (lines, Form.DFT), (points, Form.DFT)):
        operators = [operator_array(mask, form, channels)]
        if channels == 2:
            operators.append(sense_operator_array(mask, form))
        for operator in operators:
            for given in (operator, operator.T) if form is Form.PROJECTION else (operator,):
                given = np.ascontiguousarray(given, np.float32)
                found = enforced_by(given, form, height, height, channels)
                assert found is not None
                np.testing.assert_array_equal(found, enforcement(mask, channels))
    noise = np.random.default_rng(0).standard_normal((channels * height,) * 2)
    for nothing in (noise, np.eye(channels * height), np.zeros((height, 1))):
        for form in Form:
            assert enforced_by(nothing, form, height, height, channels) is None


@pytest.mark.parametrize("matrix", [32, 128])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("drawn", [variable_density_lines, variable_density_2d])
def test_golden_inputs_of_right_masks_are_taken(
    matrix: int, channels: int, drawn: Callable[..., Mask]
) -> None:
    """At 128 x 128 a phantom with phase holds nothing in its outermost lines."""
    mask = drawn(matrix if drawn is variable_density_lines else (matrix, matrix), 3, seed=1)
    given = golden(mask, matrix, channels).zero_filled[:1]
    kspace, wanted = image_to_kspace(given.astype(np.complex128)), enforcement(mask, channels)
    assert not contradicted_by(kspace, wanted)
    first = np.argwhere(wanted == 0)[0]  # of the lowest frequency
    for index, value in ((0, 0.0), (tuple(first), 1.0)):
        changed = wanted.copy()
        changed[index] = value
        if value == 0 or (mask.is_lines and matrix > 32):  # else it is the outermost
            assert contradicted_by(kspace, changed)


# Files


def test_what_the_manifest_does_not_name_is_refused(cli: Cli, bundle: Path) -> None:
    (bundle / "notes").mkdir()
    assert cli("verify", bundle, "--files-only").code == 0  # a folder is nothing
    (bundle / "notes" / "model.bin").write_bytes(b"planted")
    cli("verify", bundle).check_refusal("holds notes/model.bin", "does not name")
    run(cli, bundle).check_refusal("holds notes/model.bin", "does not name")


@pytest.mark.parametrize("name", ["model.onnx", "extra"])
def test_links_are_refused(cli: Cli, bundle: Path, name: str) -> None:
    if (bundle / name).exists():
        (bundle / name).rename(bundle.parent / name)
    (bundle / name).symlink_to(bundle.parent / name)
    cli("verify", bundle).check_refusal(name, "is a link")
    run(cli, bundle).check_refusal(name, "is a link")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_not_waited_for(bundle: Path) -> None:
    (bundle / GOLDEN_INPUT).unlink()
    os.mkfifo(bundle / GOLDEN_INPUT)
    with pytest.raises(BundleError, match="a device or a pipe"):
        open_bundle(bundle)


def test_weights_in_another_file_are_accounted_for(cli: Cli, bundle: Path) -> None:
    model = onnx.load(str(bundle / "model.onnx"))
    onnx.save_model(
        model, str(bundle / "model.onnx"), save_as_external_data=True, location="weights.bin",
        size_threshold=1024,
    )  # fmt: skip
    write_manifest(bundle, open_bundle(bundle, verify=False).manifest)
    assert cli("verify", bundle, "--backend", "onnxruntime").code == 0
    (bundle / "weights.bin").rename(bundle.parent / "weights.bin")
    write_manifest(bundle, open_bundle(bundle, verify=False).manifest)
    cli("verify", bundle).check_refusal("takes weights from 'weights.bin'", "account for")
    for location in ("../weights.bin", str(bundle.parent / "weights.bin")):
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = location if entry.key == "location" else entry.value
        (bundle / "model.onnx").write_bytes(model.SerializeToString())
        write_manifest(bundle, open_bundle(bundle, verify=False).manifest)
        for done in (cli("verify", bundle), run(cli, bundle)):
            done.check_refusal("takes weights from", "account for")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\xff" * 64, b"\x0a\xff\xff\xff\xff\x0f"])
@pytest.mark.parametrize("name", ["model.onnx", GOLDEN_INPUT])
def test_damaged_files_with_the_right_hash_are_one_sentence(
    cli: Cli, bundle: Path, name: str, content: bytes
) -> None:
    (bundle / name).write_bytes(content)
    edit_manifest(bundle, lambda m: rehash(m, bundle, name))
    done = run(cli, bundle)
    assert done.code == 1
    assert "Traceback" not in done.err
    assert name in done.err


def test_golden_data_that_claims_more_than_the_file_holds(bundle: Path) -> None:
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1000000, 1000000), }\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    (bundle / GOLDEN_INPUT).write_bytes(content)
    edit_manifest(bundle, lambda m: rehash(m, bundle, GOLDEN_INPUT))
    with pytest.raises(BundleError, match="TiB of memory"):
        open_bundle(bundle)


# Whose network it is


TRACED = ExportRecipe(target="torchscript")  # the quickest


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of weights as the package's, of one network."""
    root = tmp_path / "weights"
    root.mkdir()
    weights = write_checkpoint(root / "tiny.safetensors")
    entry = {"file": weights.name, "sha256": sha256_file(weights)}
    index = {"format": INDEX_FORMAT, "networks": {"tiny@here": entry}}
    (root / INDEX).write_text(json.dumps(index))
    monkeypatch.setattr(verify, "claim_of", functools.partial(claim_of, root=root))
    return weights


def checked(cli: Cli, bundle: Path, *options: object) -> dict[str, Any]:
    done = cli("verify", bundle, "--json", *options)
    found: dict[str, Any] = json.loads(done.out)
    assert found["passed"] == (done.code == 0)
    return found


def test_a_network_of_the_package_is_confirmed(cli: Cli, package: Path, tmp_path: Path) -> None:
    made = export_model(package, TRACED, tmp_path / "bundle").path
    found = checked(cli, made)
    assert found["passed"]
    assert found["origin"]["network"] == "tiny@here"
    assert found["origin"]["confirmed"] is True
    only = json.loads(cli("verify", made, "--files-only", "--json").out)
    assert only["passed"]
    assert only["origin"]["confirmed"] is None
    edit_manifest(made, lambda m: m["training"].update(attribution="Me"))
    found = checked(cli, made)
    assert not found["passed"]
    assert "'training' is not that" in found["origin"]["remark"]


def test_halved_weights_do_not_pass_as_a_network_of_the_package(
    cli: Cli, package: Path, tmp_path: Path
) -> None:
    """Graph, golden files, hashes and digest are those of the halved network; the claim is not."""
    held = load_checkpoint(package)
    halved = {name: value / 2 for name, value in held.state.items()}
    from dataclasses import replace

    other = tmp_path / "halved.safetensors"
    save_checkpoint(other, replace(held, state=halved))
    made = export_model(other, TRACED, tmp_path / "bundle").path
    found = checked(cli, made)
    assert found["passed"]
    assert found["origin"] == {"network": None, "confirmed": None, "remark": verify.CLAIMED}
    edit_manifest(made, lambda m: m.update(checkpoint_sha256=sha256_file(package)))
    found = checked(cli, made)
    assert found["rows"][0]["status"] == "passed"
    assert not found["passed"]
    assert found["origin"]["confirmed"] is False
    assert "not those of that network" in found["origin"]["remark"]


@pytest.mark.nightly
@pytest.mark.parametrize("reference", sorted(shipped_networks()))
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_networks_of_the_package_are_confirmed(
    cli: Cli, reference: str, precision: str, tmp_path: Path
) -> None:
    made = ke.export(reference, target="openvino", precision=precision, out=tmp_path / "bundle")
    found = checked(cli, made.path)
    assert found["origin"]["network"] == reference
    assert found["origin"]["confirmed"] is True, found["origin"]


def test_the_python_api_checks_files_alone(bundle: Path) -> None:
    found = ke.runtime.verify_bundle(bundle, files_only=True)
    assert found["passed"]
    assert not found["executed"]
    assert found["rows"] == []
    assert found["mask_agrees_with"] == ["the graph", "the golden input"]
