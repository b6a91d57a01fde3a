"""Equalised channels: the same function in float, and finer integers."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.models.specs import PRESETS, ModelSpec
from kdmri_edge.quantisation.calibration import activation_maxima
from kdmri_edge.quantisation.equalisation import equalise
from tests.export.networks import lines, network, spec

SIZE = (32, 24)


def _uneven(architecture: ModelSpec, seed: int) -> tuple[Reconstructor, Tensor]:
    """A network of very different channels, and images."""
    made = network(architecture, lines())
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in made.model.named_parameters():
            if name.endswith("weight") and "convs.0" in name:
                size = torch.rand(len(weight), generator=chance) * 4 - 2
                weight.mul_(torch.exp(size)[:, None, None, None])
    x_u = torch.randn(2, architecture.channels, *SIZE, generator=chance)
    made.maxima = activation_maxima(made.model, [(x_u, made.operator)])
    return made, x_u


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16))
@pytest.mark.parametrize(
    "architecture",
    [spec(), PRESETS["vdsr-7"], PRESETS["vdsr-half"], spec(carried=3), spec(carried=3, shuffle=2)],
    ids=["dccnn", "vdsr", "vdsr, half size", "carried maps", "carried maps, half size"],
)
def test_nothing_changes_in_float(architecture: ModelSpec, seed: int) -> None:
    made, x_u = _uneven(architecture, seed)
    changed = copy.deepcopy(made)
    equalise(changed.model, changed.maxima)
    with torch.no_grad():
        before, after = made(x_u), changed(x_u)
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()


def test_channels_come_closer_and_the_largest_value_is_told() -> None:
    made, x_u = _uneven(spec(), seed=3)
    told = equalise(made.model, made.maxima)
    seen = activation_maxima(made.model, [(x_u, made.operator)])
    for name, values in seen.items():
        assert told[name] == pytest.approx(max(values), rel=1e-3)

    def spread(values: list[float]) -> float:
        alive = [value for value in values if value > 0]
        return max(alive) / min(alive)

    assert any(spread(seen[name]) < spread(made.maxima[name]) for name in seen)


@pytest.mark.parametrize("size", [0.01, 100.0])
def test_maps_that_are_carried_are_brought_to_the_images_range(size: float) -> None:
    made, x_u = _uneven(spec(carried=3), seed=3)
    before, reader = made.model.cascades[0].convs[1], made.model.cascades[1].convs[0]
    with torch.no_grad():  # as large or as small as they like: what reads them makes up for it
        before.weight[1:] *= size
        before.bias[1:] *= size
        reader.weight[:, 2:] /= size
    made.maxima = activation_maxima(made.model, [(x_u, made.operator)])
    largest = torch.tensor(made.maxima["cascades.1.convs.0"])
    heaviest = reader.weight.detach().abs().amax((0, 2, 3))
    told = equalise(made.model, made.maxima)
    seen = activation_maxima(made.model, [(x_u, made.operator)])["cascades.1.convs.0"]
    assert told["cascades.1.convs.0"] == pytest.approx(max(seen), rel=1e-3)
    assert seen[:2] == pytest.approx(largest[:2].tolist(), rel=1e-3)  # the image stays as it is
    # activations and weights of the maps stand to the image's own alike, whatever they were
    ratio = (largest[2:] * heaviest[2:]) / (largest[:2].max() * heaviest[:2].max())
    wanted = ratio.sqrt() * largest[:2].max()
    assert seen[2:] == pytest.approx(wanted.tolist(), rel=0.05)


def test_a_channel_that_never_answers_stays_finite() -> None:
    made, x_u = _uneven(spec(), seed=5)
    with torch.no_grad():
        first = made.model.cascades[0].convs[0]
        first.weight[0] = 0.0
        first.bias[0] = -1.0
    made.maxima = activation_maxima(made.model, [(x_u, made.operator)])
    assert made.maxima["cascades.0.convs.1"][0] == 0.0
    equalise(made.model, made.maxima)
    assert all(torch.isfinite(value).all() for value in made.state_dict().values())
