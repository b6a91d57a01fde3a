"""Weights of other programs: what is read, how names are matched, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kdmri_edge.errors import CheckpointError
from kdmri_edge.models.foreign_weights import load_weights, read_weights


def net(width: int = 2) -> nn.Sequential:
    torch.manual_seed(width)
    inner = nn.Sequential(nn.Conv2d(width, width, 3), nn.BatchNorm2d(width))
    return nn.Sequential(nn.Conv2d(1, width, 3), inner)


class Attack:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (Path("hacked"),)


def lightning(state: dict[str, Tensor]) -> dict[str, Any]:
    """A checkpoint as Lightning writes it, with what a module of its losses holds."""
    prefixed = {f"model.net.{name}": value for name, value in state.items()}
    return {
        "epoch": 3,
        "state_dict": {**prefixed, "loss.window": torch.ones(7)},
        "hyper_parameters": {"width": 2},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}}],
    }


@pytest.mark.parametrize("older", [False, True], ids=["zip", "older"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lightning,
        lambda state: {"model": state, "epoch": 1},
        lambda state: {f"module.{name}": value for name, value in state.items()},
    ],
    ids=["state dict", "Lightning", "model", "data parallel"],
)
def test_state_dicts(wrap: Callable[[Any], Any], older: bool, tmp_path: Path) -> None:
    source, into = net(), net()
    with torch.no_grad():
        for value in source.parameters():
            value.normal_()
    new = not older
    torch.save(wrap(source.state_dict()), tmp_path / "w.pt", _use_new_zipfile_serialization=new)
    load_weights(into, read_weights(tmp_path / "w.pt"), "w.pt")
    for name, value in source.state_dict().items():
        assert torch.equal(into.state_dict()[name], value), name


def test_safetensors(tmp_path: Path) -> None:
    source, into = net(), net()
    half = {f"unet.{name}": value.half() for name, value in source.state_dict().items()}
    half["unet.1.1.num_batches_tracked"] = torch.tensor(3)
    save_file(half, tmp_path / "w.safetensors")
    load_weights(into, read_weights(tmp_path / "w.safetensors"), "w.safetensors")
    assert into[0].weight.dtype is torch.float32
    assert torch.equal(into[0].weight, half["unet.0.weight"].float())
    assert into.state_dict()["1.1.num_batches_tracked"] == 3


def test_a_pickle_that_runs_code_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": net().state_dict(), "hook": Attack()}, tmp_path / "evil.pt")
    torch.save(net(), tmp_path / "whole.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"a": Attack()}))
    for name in ("evil.pt", "whole.pt", "plain.pkl"):
        with pytest.raises(CheckpointError, match="runs code") as caught:
            read_weights(tmp_path / name)
        assert "state_dict()" in caught.value.remedy
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.pt", None, "does not exist"),
        ("graph.onnx", b"\x08\x07", "an ONNX graph"),
        ("notes.txt", b"hello", "unknown format"),
        ("cut.pt", b"PK\x03\x04cut", "damaged archive"),
        ("empty.pt", b"", "an empty file"),
    ],
)
def test_what_is_no_file_of_weights(
    name: str, content: bytes | None, said: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        read_weights(tmp_path / name)


@pytest.mark.parametrize(
    "content", [torch.ones(3), {"epoch": 3}, {"state_dict": {"a": 1}}, {}, [torch.ones(1)]], ids=str
)
def test_what_holds_no_weights(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="no weights by name"):
        read_weights(tmp_path / "w.pt")


def test_a_file_that_was_cut_short(tmp_path: Path) -> None:
    save_file(net().state_dict(), tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[:-10])
    with pytest.raises(CheckpointError, match="damaged"):
        read_weights(tmp_path / "w.safetensors")


def changed(**names: Tensor | str | None) -> dict[str, Tensor]:
    """The weights with some of them changed (a tensor), renamed (a name), or left out (None)."""
    state = dict(net().state_dict())
    for name, value in names.items():
        old = state.pop(name.replace("_", ".", 1))
        if isinstance(value, Tensor):
            state[name.replace("_", ".", 1)] = value
        elif value is not None:
            state[value] = old
    return state


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (
            changed(**{"0_weight": "0.wieght"}),
            "0.weight is missing (the nearest in the file is 0.wieght), and 0.wieght is not of the"
            " module (the nearest of the module is 0.weight); 1 missing, 1 unexpected",
        ),
        (changed(**{"0_bias": None}), "0.bias is missing"),
        ({**changed(), "2.weight": torch.ones(1)}, "2.weight is not of the module"),
        (changed(**{"0_weight": torch.ones(4, 1, 3, 3)}), "0.weight is of shape [4, 1, 3, 3]"),
        (changed(**{"0_bias": torch.tensor([1.0, torch.nan])}), "NaN or infinite values (0.bias)"),
        (
            changed(**{"0_bias": torch.tensor([3, 4])}),
            "torch.int64 where the module's are torch.fl",
        ),
        (changed(**{"0_bias": torch.ones(2, dtype=torch.complex64)}), "complex numbers (0.bias)"),
        ({"a": torch.ones(1)}, "0.weight is missing"),
    ],
)
def test_weights_that_do_not_fit(state: dict[str, Tensor], said: str) -> None:
    into = net()
    before = {name: value.clone() for name, value in into.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(into, state, "w.pt")
    assert said in caught.value.what
    assert "w.pt" in caught.value.what
    assert all(torch.equal(value, before[name]) for name, value in into.state_dict().items())
