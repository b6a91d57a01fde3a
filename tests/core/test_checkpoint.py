from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdmri_edge.errors import CheckpointError, KdmriError
from kdmri_edge.models.build import build_model
from kdmri_edge.models.checkpoint import (
    FORMAT,
    Checkpoint,
    load_checkpoint,
    load_reconstructor,
    read_checkpoint_meta,
    save_checkpoint,
)
from kdmri_edge.models.specs import PRESETS, preset
from kdmri_edge.physics.consistency import operator_tensor
from kdmri_edge.physics.masks import variable_density_2d, variable_density_lines


def _checkpoint(name: str = "dccnn-d3c5", **changes: Any) -> Checkpoint:
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "spec": preset(name),
        "mask": variable_density_lines(32, 2.0),
        "matrix": 32,
        "role": "student",
        "training": {"data": [{"name": "é", "subject": "1", "sha256": "0" * 64}]},
        "state": build_model(preset(name)).state_dict(),
    }
    return Checkpoint(**{**values, **changes})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "student.safetensors"
    save_checkpoint(path, _checkpoint())
    return path


@pytest.mark.parametrize("name", list(PRESETS))
def test_round_trip(tmp_path: Path, name: str) -> None:
    made = _checkpoint(name)
    save_checkpoint(tmp_path / "c.safetensors", made)
    loaded = load_checkpoint(tmp_path / "c.safetensors")
    assert (loaded.spec, loaded.mask, loaded.matrix) == (made.spec, made.mask, made.matrix)
    assert (loaded.role, dict(loaded.training)) == (made.role, made.training)
    assert all(torch.equal(loaded.state[k], v) for k, v in made.state.items())


def test_round_trip_of_a_mask_of_single_samples(tmp_path: Path) -> None:
    mask = variable_density_2d((32, 32), 2.0, centre=6)
    save_checkpoint(tmp_path / "c.safetensors", _checkpoint(mask=mask))
    assert load_checkpoint(tmp_path / "c.safetensors").mask == mask


def test_channels_last_weights_are_stored_as_they_are_meant(tmp_path: Path) -> None:
    model = build_model(preset("dccnn-d3c5")).to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path / "c.safetensors", _checkpoint(state=model.state_dict()))
    loaded = load_checkpoint(tmp_path / "c.safetensors").state
    assert all(torch.equal(loaded[k], v) for k, v in model.state_dict().items())


def test_reconstructor_runs_as_the_network_did(file: Path) -> None:
    made = _checkpoint()
    model = build_model(made.spec)
    model.load_state_dict(dict(made.state))
    reconstructor = load_reconstructor(file)
    assert not reconstructor.training
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        expected = model(image, operator_tensor(made.mask, model.form, 1))
        torch.testing.assert_close(reconstructor(image), expected)


def test_meta_needs_no_torch(file: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from kdmri_edge.models.checkpoint import read_checkpoint_meta\n"
        "meta = read_checkpoint_meta(Path(sys.argv[1]))\n"
        "assert not {'torch', 'safetensors'} & set(sys.modules)\n"
        "print(meta['role'], meta['matrix'], meta['format'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["student", "32", str(FORMAT)]


def _rewritten(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the metadata of a checkpoint in place."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    meta = json.loads(header["__metadata__"]["kdmri"])
    change(meta)
    header["__metadata__"]["kdmri"] = json.dumps(meta)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.5, 0.999])
def test_cut_short(file: Path, kept: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(kept if kept >= 4 else kept * len(data))])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(file)


@pytest.mark.parametrize("data", [b"\x00" * 1000, b"\xff" * 1000, os.urandom(1000), b"PK\x03\x04"])
def test_rubbish(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    for read in (load_checkpoint, read_checkpoint_meta, load_reconstructor):
        with pytest.raises(CheckpointError, match=r"damaged|is a file of unknown format"):
            read(file)


def test_header_of_other_json(file: Path) -> None:
    for text in (b"[]", b"3", b'{"__metadata__": []}', b'{"__metadata__": {"kdmri": "[]"}}'):
        file.write_bytes(struct.pack("<Q", len(text)) + text)
        with pytest.raises(CheckpointError, match=r"damaged|of another program|of unknown format"):
            load_checkpoint(file)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((("spec", "width"), value) for value in (True, 1e308, 10**30, 2.5, "8", None, [8])),
        *((("spec", "shows_zero_filled"), value) for value in (1e308, 10**30, 1, "no")),
        *((("spec", "residual"), value) for value in (1, "yes", None)),
        *((("spec", "dilation"), [value, 1, 1]) for value in (True, 1e308, 10**30, 0, "1")),
        *((("matrix",), value) for value in (1e308, 10**30, True, 0, -1, "32", None)),
    ],
)
def test_numbers_of_a_header_that_are_none(file: Path, key: tuple[str, ...], value: object) -> None:
    def change(meta: dict[str, Any]) -> None:
        for part in key[:-1]:
            meta = meta[part]
        meta[key[-1]] = value

    _rewritten(file, change)
    for read in (load_checkpoint, load_reconstructor):
        with pytest.raises(CheckpointError, match=f"{key[-1]}"):
            read(file)


def test_foreign_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(3)}, tmp_path / "f.safetensors")
    with pytest.raises(CheckpointError, match="a safetensors file of another program"):
        load_checkpoint(tmp_path / "f.safetensors")


def test_newer_format(file: Path) -> None:
    _rewritten(file, lambda meta: meta.update(format=FORMAT + 1))
    with pytest.raises(CheckpointError, match=f"format {FORMAT + 1}") as caught:
        load_checkpoint(file)
    assert "Update" in caught.value.remedy


def test_weights_of_another_architecture(file: Path) -> None:
    _rewritten(file, lambda meta: meta.update(spec=preset("dccnn-d5c5").to_dict()))
    with pytest.raises(CheckpointError, match="does not fit its architecture"):
        load_checkpoint(file)


@pytest.mark.parametrize("key", ["spec", "mask", "matrix", "role", "training", "format"])
def test_missing_metadata(file: Path, key: str) -> None:
    _rewritten(file, lambda meta: meta.pop(key))
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(file)


@pytest.mark.parametrize("key", ["spec", "mask", "matrix", "format"])
@pytest.mark.parametrize("value", [None, "x", [], {"shape": [3]}])
def test_metadata_of_another_kind(file: Path, key: str, value: object) -> None:
    _rewritten(file, lambda meta: meta.update({key: value}))
    with pytest.raises(KdmriError):
        load_checkpoint(file)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_checkpoint(tmp_path)


def test_failed_save_keeps_the_earlier_checkpoint(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()
    real = Path.write_bytes

    def half(self: Path, data: bytes) -> int:
        real(self, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(KdmriError, match="disk is full"):
        save_checkpoint(file, _checkpoint(role="teacher"))
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]
