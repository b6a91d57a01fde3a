"""Activation ranges: of what convolutions really read, the image left out."""

from __future__ import annotations

import torch

from kdmri_edge.models.build import build_model
from kdmri_edge.models.calibrate import activation_ranges
from kdmri_edge.physics.consistency import operator_tensor
from kdmri_edge.physics.forms import Form
from tests.export.networks import lines, spec


def test_ranges_are_those_of_the_hidden_convolutions() -> None:
    torch.manual_seed(0)
    network = build_model(spec()).eval()
    operator = operator_tensor(lines(), Form.PROJECTION, 1)
    x_u = torch.rand(2, 1, 32, 24)
    ranges = activation_ranges(network, [(x_u[:1], operator), (x_u[1:], operator)])
    assert set(ranges) == {f"cascades.{n}.convs.1" for n in range(3)}
    hidden = torch.relu(network.cascades[0].convs[0](x_u))
    assert ranges["cascades.0.convs.1"] == float(hidden.detach().max())


def test_the_network_is_left_as_it_was() -> None:
    network = build_model(spec()).eval()
    operator = operator_tensor(lines(), Form.PROJECTION, 1)
    activation_ranges(network, [(torch.rand(1, 1, 32, 24), operator)])
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())
