"""Activation maxima: of what convolutions really read, channel by channel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdmri_edge.models.blocks import padded
from kdmri_edge.models.build import build_model
from kdmri_edge.models.specs import preset
from kdmri_edge.physics.consistency import operator_tensor
from kdmri_edge.physics.operators import Form
from kdmri_edge.quantisation import calibration as calibrate
from kdmri_edge.quantisation.calibration import activation_maxima, layer_of
from kdmri_edge.quantisation.scheme import BELOW
from tests.export.networks import lines, spec


def test_maxima_of_few_values_are_those_of_each_channel_over_all_batches() -> None:
    torch.manual_seed(0)
    network = build_model(spec()).eval()
    operator = operator_tensor(lines(), Form.PROJECTION, 1)
    x_u = torch.rand(2, 1, 32, 24)
    maxima = activation_maxima(network, [(x_u[:1], operator), (x_u[1:], operator)])
    layers = {f"cascades.{n}.convs.{k}" for n in range(2) for k in (0, 1)}
    assert set(maxima) == layers | {"cascades.0.convs.0:below", "cascades.1.convs.0:below"}
    hidden = torch.relu(network.cascades[0].convs[0](x_u))
    wanted = hidden.detach().amax((0, 2, 3)).tolist()
    assert maxima["cascades.0.convs.1"] == pytest.approx(wanted, rel=1e-4)
    assert maxima["cascades.0.convs.0"] == pytest.approx([float(x_u.max())], rel=1e-4)


def test_rare_values_of_hidden_channels_are_left_out_and_none_of_the_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    network = build_model(spec()).eval()
    operator = operator_tensor(lines(), Form.PROJECTION, 1)
    x_u = torch.rand(3, 1, 32, 24)
    monkeypatch.setattr(calibrate, "_TAIL", 0.01)
    maxima = activation_maxima(network, [(part[None], operator) for part in x_u])
    hidden = torch.relu(network.cascades[0].convs[0](x_u)).detach()
    values = hidden.transpose(0, 1).flatten(1).sort(descending=True).values
    wanted = values[:, int(0.01 * values.shape[1])].tolist()
    assert maxima["cascades.0.convs.1"] == pytest.approx(wanted, rel=1e-4)
    assert maxima["cascades.0.convs.0"] == pytest.approx([float(x_u.max())], rel=1e-4)


def test_of_maps_beside_an_image_rare_values_are_left_out_and_none_of_the_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    network = build_model(spec(carried=3)).eval()
    operator = operator_tensor(lines(), Form.PROJECTION, 1)
    x_u = torch.rand(3, 1, 32, 24)
    monkeypatch.setattr(calibrate, "_TAIL", 0.01)
    maxima = activation_maxima(network, [(part[None], operator) for part in x_u])
    with torch.no_grad():
        made = network.cascade(0, x_u, x_u, operator)
    assert made.carried is not None
    values = made.carried.transpose(0, 1).flatten(1).sort(descending=True).values
    wanted = [float(made.image.abs().max()), float(x_u.max())]
    wanted += values[:, int(0.01 * values.shape[1])].tolist()
    assert maxima["cascades.1.convs.0"] == pytest.approx(wanted, rel=1e-4)
    # what holds an image among its channels is nowhere rounded as it is
    assert not any(name.startswith("cascades.0.convs.1:") for name in maxima)


@given(
    kept=st.integers(1, 9),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    width=st.integers(1, 3),
    memory=st.sampled_from((torch.contiguous_format, torch.channels_last)),
    seed=st.integers(0, 99),
)
def test_the_largest_values_are_kept_however_they_are_spread_over_batches(
    kept: int, sizes: list[int], width: int, memory: torch.memory_format, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # few different values, so that there are ties
    batches = [
        torch.randint(0, 9, (size, 3, 2, width), generator=generator).float() for size in sizes
    ]
    found = None
    for batch in batches:
        found = calibrate._largest(found, batch.contiguous(memory_format=memory), kept)
    values = torch.cat(batches).transpose(0, 1).flatten(1)
    wanted = values.sort(descending=True).values[:, :kept]
    assert found is not None
    assert torch.equal(found, wanted)


def test_a_value_that_is_not_a_number_is_not_lost() -> None:
    found = calibrate._largest(None, torch.ones(1, 1, 1, 4), 2)
    found = calibrate._largest(found, torch.tensor([[[[0.0, torch.nan, 0.0]]]]), 2)
    assert found.isnan().any()


def test_the_network_is_left_as_it_was() -> None:
    network = build_model(spec()).eval()
    operator = operator_tensor(lines(), Form.PROJECTION, 1)
    activation_maxima(network, [(torch.rand(1, 1, 32, 24), operator)])
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_convolutions_that_are_not_called_are_noticed() -> None:
    torch.manual_seed(0)
    network = build_model(preset("dccnn-d3c5"))
    operator = operator_tensor(lines(), Form.PROJECTION, 1)
    batch = (torch.rand(1, 1, 32, 24), operator)
    with padded(network), pytest.raises(RuntimeError, match=r"convs\.0 was not called"):
        activation_maxima(network, [batch])
    assert len({layer_of(key) for key in activation_maxima(network, [batch])}) == 15


def test_how_far_an_image_reaches_below_zero_is_told_where_it_is_not_as_far_as_above() -> None:
    torch.manual_seed(0)
    network = build_model(spec()).eval()
    operator = operator_tensor(lines(), Form.PROJECTION, 1)
    x_u = torch.rand(2, 1, 32, 24) - 0.25
    maxima = activation_maxima(network, [(x_u[:1], operator), (x_u[1:], operator)])
    assert maxima["cascades.0.convs.0" + BELOW] == pytest.approx([-1.5 * float(x_u.min())], 1e-4)
    assert "cascades.0.convs.1" + BELOW not in maxima
    maxima = activation_maxima(network, [(torch.rand(2, 1, 32, 24) - 0.5, operator)])
    assert "cascades.0.convs.0" + BELOW not in maxima
