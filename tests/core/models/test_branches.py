"""Branches: they act while training, fold exactly, and leave a plain network."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdmri_edge.models.build import build_model
from kdmri_edge.models.reparameterisation import fuse, reparameterise, sum_branches_once
from kdmri_edge.models.specs import ModelSpec, preset


def _images(spec: ModelSpec, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_u = torch.rand(2, spec.channels, size, size, generator=generator)
    return x_u, torch.eye(spec.channels * size) * 0.5


@pytest.mark.parametrize("name", ["dccnn-d3c5", "vdsr-7"])
@given(seed=st.integers(0, 2**16), size=st.integers(9, 24))
@settings(max_examples=10, deadline=None)
def test_folding_leaves_the_output(name: str, seed: int, size: int) -> None:
    torch.manual_seed(seed)
    network = build_model(preset(name))
    reparameterise(network)
    for parameter in network.parameters():  # as far from the first weights as training goes
        parameter.data.mul_(1 + torch.rand_like(parameter))
    x_u, operator = _images(network.spec, size, seed)
    with torch.no_grad():
        before = network(x_u, operator)
        fuse(network)
        after = network(x_u, operator)
    spread = float(before.max() - before.min())
    assert float((after - before).abs().max()) < 1e-5 * spread


def test_a_folded_network_is_a_plain_one() -> None:
    spec = preset("dccnn-d3c5")
    plain, network = build_model(spec), build_model(spec)
    reparameterise(network)
    assert sum(p.numel() for p in network.parameters()) > 2 * spec.parameters
    fuse(network)
    assert network.state_dict().keys() == plain.state_dict().keys()
    assert sum(p.numel() for p in network.parameters()) == spec.parameters
    assert all(type(p) is torch.nn.Parameter for p in network.parameters())
    fuse(plain)  # nothing to do


def test_expanding_changes_nothing_yet() -> None:
    torch.manual_seed(0)
    network = build_model(preset("dccnn-d3c5"))
    before = copy.deepcopy(network)
    reparameterise(network)
    x_u, operator = _images(network.spec, 16, 0)
    with torch.no_grad():
        output, expected = network(x_u, operator), before(x_u, operator)
    assert float((output - expected).abs().max()) < 1e-5 * float(expected.max() - expected.min())


@pytest.mark.parametrize("at_once", [pytest.param(False, marks=pytest.mark.nightly), True])
def test_every_branch_learns_and_weighs(at_once: bool) -> None:
    torch.manual_seed(0)
    network = build_model(preset("dccnn-d3c5"))
    reparameterise(network)
    x_u, operator = _images(network.spec, 16, 0)
    with sum_branches_once(network) if at_once else nullcontext():
        before = network(x_u, operator)
    before.square().mean().backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    for name, parameter in network.named_parameters():
        with torch.no_grad():
            parameter.mul_(1.5)
            assert not torch.equal(network(x_u, operator), before), name
            parameter.div_(1.5)


def test_weights_summed_at_once_are_the_same() -> None:
    torch.manual_seed(0)
    network = build_model(preset("dccnn-d3c5")).to(memory_format=torch.channels_last)
    reparameterise(network)
    convs = [conv for cascade in network.cascades for conv in cascade.convs]
    apart = [conv.weight for conv in convs]
    with sum_branches_once(network):
        at_once = [conv.weight for conv in convs]
        with torch.autocast("cpu", torch.bfloat16), sum_branches_once(network):
            rounded = [conv.weight for conv in convs]
    for one, other, short in zip(apart, at_once, rounded, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-7)
        assert other.stride() == one.stride()
        torch.testing.assert_close(short, one.bfloat16())


def test_weights_keep_the_fast_layout() -> None:
    """By the strides of the first weight, one input channel, all activations are laid out."""
    network = build_model(preset("dccnn-d3c5")).to(memory_format=torch.channels_last)
    strides = [conv.weight.stride() for conv in network.cascades[0].convs]
    reparameterise(network)
    assert [conv.weight.stride() for conv in network.cascades[0].convs] == strides


def test_autocast_does_not_round_the_weights() -> None:
    network = build_model(preset("dccnn-d3c5"))
    reparameterise(network)
    conv = network.cascades[0].convs[1]
    outside = conv.weight.detach()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv.weight.detach(), outside)
