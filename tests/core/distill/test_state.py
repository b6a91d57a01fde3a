from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdmri_edge.distillation.optimizers import over
from kdmri_edge.distillation.recipe import Optimizer
from kdmri_edge.distillation.state import load_state, save_state
from kdmri_edge.errors import CheckpointError
from kdmri_edge.models.blocks import channels_last
from kdmri_edge.models.build import Network, build_model
from kdmri_edge.models.specs import preset


def _trained(
    steps: int, seed: int = 0, optimizer: Optimizer = Optimizer.ADAM
) -> tuple[Network, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    network = channels_last(build_model(preset("dccnn-d3c5")))
    optimiser = over(network, optimizer, 1e-2)
    for _ in range(steps):
        _step(network, optimiser)
    return network, optimiser


def _step(network: Network, optimiser: torch.optim.Optimizer) -> None:
    # Without the last bias: a parameter that never got a gradient has no optimiser state.
    parameters = list(network.parameters())
    sum(p.square().sum() for p in parameters[:-1]).backward()
    optimiser.step()
    optimiser.zero_grad()


@pytest.mark.parametrize("optimizer", Optimizer)
def test_training_goes_on_as_if_nothing_had_happened(tmp_path: Path, optimizer: Optimizer) -> None:
    file = tmp_path / "state" / "teacher.safetensors"
    network, optimiser = _trained(3, optimizer=optimizer)
    save_state(file, network, optimiser, 3, "key")
    other, other_optimiser = _trained(0, seed=1, optimizer=optimizer)
    assert load_state(file, other, other_optimiser, "key") == 3
    for _ in range(3):
        _step(network, optimiser)
        _step(other, other_optimiser)
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
        assert one.stride() == two.stride()
    mine, others = optimiser.state_dict()["state"], other_optimiser.state_dict()["state"]
    assert mine.keys() == others.keys()
    for index, values in mine.items():
        for kind, value in values.items():
            assert torch.equal(value, others[index][kind])
            assert value.stride() == others[index][kind].stride()


def test_without_a_file_a_stage_begins(tmp_path: Path) -> None:
    network, optimiser = _trained(0)
    before = [p.clone() for p in network.parameters()]
    assert load_state(tmp_path / "none.safetensors", network, optimiser, "key") == 0
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_other_settings_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    network, optimiser = _trained(1)
    save_state(file, network, optimiser, 1, "key")
    with pytest.raises(CheckpointError, match="other settings"):
        load_state(file, network, optimiser, "another key")


@pytest.mark.parametrize("damage", ["empty", "cut", "rubbish", "foreign", "architecture"])
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "s.safetensors"
    network, optimiser = _trained(1)
    save_state(file, network, optimiser, 1, "key")
    data = file.read_bytes()
    if damage == "empty":
        file.write_bytes(b"")
    elif damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "rubbish":
        file.write_bytes(b"\x00" * 4096)
    elif damage == "foreign":
        save_file({"a": torch.ones(1)}, file)
    else:
        network = build_model(preset("dccnn-d5c5"))
        optimiser = torch.optim.Adam(network.parameters())
    with pytest.raises(CheckpointError, match=r"damaged|another version") as caught:
        load_state(file, network, optimiser, "key")
    assert str(file) in str(caught.value)
    assert "Delete it" in caught.value.remedy
