"""Networks in the package: they are what the index says, and anything else is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kdmri_edge.data.recorded import RECORDED_FILES
from kdmri_edge.errors import CheckpointError, ModelError
from kdmri_edge.models.checkpoint import load_checkpoint, read_checkpoint_meta
from kdmri_edge.models.shipped import (
    WEIGHTS,
    is_reference,
    named_mask,
    refusal,
    resolve,
    shipped_networks,
)
from kdmri_edge.models.specs import PRESETS, ModelSpec
from kdmri_edge.utils.files import sha256_file

NETWORKS = shipped_networks()


def test_the_promised_ones_are_there() -> None:
    cascades = {
        f"{network}@brain-{place}"
        for network in ("dccnn-d5c5", "dccnn-d3c5")
        for place in ("4x", "5x", "8x", "any-mask")
    }
    assert cascades | {"vdsr-11@brain-sr", "vdsr-7@brain-sr"} <= set(NETWORKS)


@pytest.mark.parametrize("reference", NETWORKS)
def test_each_is_what_the_index_says(reference: str) -> None:
    entry = NETWORKS[reference].entry
    path = resolve(reference)
    meta, checkpoint = read_checkpoint_meta(path), load_checkpoint(path)
    assert sha256_file(path) == entry["sha256"]
    preset, _, _ = reference.partition("@")
    assert checkpoint.spec == ModelSpec.from_dict(entry["spec"])
    assert checkpoint.spec.parameters == entry["parameters"] == PRESETS[preset].parameters
    assert sum(tensor.numel() for tensor in checkpoint.state.values()) == entry["parameters"]
    assert checkpoint.mask.name == entry["mask"]
    assert meta["training"]["recipe"]["name"] == entry["recipe"]
    # CC BY asks for the name of the data's owner
    assert "Lesjak" in entry["attribution"]
    figures = entry["figures"]
    least = 6.0 if checkpoint.spec.channels == 1 else 3.0  # those of more channels are given noise
    if preset.startswith("vdsr"):  # all of the centre was measured: no aliases to remove
        least = 0.5
    assert figures["mean"]["psnr"] > figures["zero_filled"]["psnr"] + least
    trained = {item["name"]: item["sha256"] for item in meta["training"]["data"]}
    assert trained.keys().isdisjoint(row["name"] for row in figures["volumes"])
    # of the volumes themselves: a copy's digest would hide from `bench` and `assess` what was seen
    assert trained.items() <= RECORDED_FILES["brain"].items()
    assert entry["trained_on_sha256"] == sorted(trained.values())


def test_nothing_lies_there_unlisted() -> None:
    listed = {network.path for network in NETWORKS.values()} | {
        WEIGHTS / copy["file"]
        for network in NETWORKS.values()
        for copy in network.entry.get("tuned", {}).values()
    }
    assert set(WEIGHTS.rglob("*.safetensors")) == listed


def test_a_near_name_is_suggested() -> None:
    with pytest.raises(ModelError, match="dccnn-d3c5@brain-4x"):
        resolve("dccnn-d3c5@brian-4x")


def test_a_path_is_no_reference(tmp_path: Path) -> None:
    assert is_reference("dccnn-d3c5@brain-4x")
    folder = tmp_path / "me@home"
    folder.mkdir()
    assert not is_reference(str(folder))
    assert not is_reference("runs/brain")
    # a mistyped path must be told as a path
    assert not is_reference("runs/me@home/student.safetensors")
    assert not is_reference("me@home.safetensors")


def test_altered_weights_and_a_damaged_index_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "weights"
    shutil.copytree(WEIGHTS, root)
    reference = next(iter(NETWORKS))
    path = resolve(reference, root)
    path.write_bytes(path.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(CheckpointError, match="altered"):
        resolve(reference, root)
    path.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        resolve(reference, root)
    index = root / "index.json"
    newer = {**json.loads(index.read_text()), "format": 99}
    index.write_text(json.dumps(newer))
    with pytest.raises(CheckpointError, match="newer"):
        shipped_networks(root)
    no_hash = {"format": 1, "networks": {"a@b": {"file": "a"}}}
    for damaged in ("{", "[]", '{"format": 1, "networks": []}', json.dumps(no_hash)):
        index.write_text(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            shipped_networks(root)
    assert shipped_networks(tmp_path / "none") == {}


def test_a_networks_name_stands_for_its_mask(tmp_path: Path) -> None:
    checkpoint = resolve("dccnn-d3c5@brain-4x")
    wanted = load_checkpoint(checkpoint).mask
    for named in ("dccnn-d3c5@brain-4x", str(checkpoint)):
        found = named_mask(named)
        assert found.sha256 == wanted.sha256
    with pytest.raises(ModelError, match="dccnn-d3c5@brain-4x"):
        named_mask("dccnn-d3c5@brain-4")


def test_an_architectures_name_suggests_its_trained_networks() -> None:
    error = refusal(Path("dccnn-d3c5"), ModelError)
    assert "dccnn-d3c5@brain-4x" in error.remedy
    assert "dccnn-d5c5" not in error.remedy
