"""Narrow convolutions taken apart give the same images."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdmri_edge.models.build import build_model
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.models.specs import preset
from kdmri_edge.physics.masks import variable_density_lines
from kdmri_export.passes.narrow import NarrowConv, decompose_narrow_convs


@given(
    outputs=st.integers(1, 2),
    inputs=st.integers(1, 5),
    side=st.sampled_from([1, 3, 5]),
    dilation=st.integers(1, 3),
    height=st.integers(5, 12),
    width=st.integers(5, 12),
    bias=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_equals_the_convolution(
    outputs: int, inputs: int, side: int, dilation: int, height: int, width: int, bias: bool
) -> None:
    torch.manual_seed(outputs + 10 * inputs)
    conv = nn.Conv2d(
        inputs, outputs, side, padding=dilation * (side // 2), dilation=dilation, bias=bias
    ).double()
    x = torch.randn(2, inputs, height, width, dtype=torch.float64)
    apart = NarrowConv(conv).double()
    with torch.no_grad():
        assert torch.allclose(apart(x), conv(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dilation", [1, 2])
def test_keeps_the_weights_precision(dilation: int) -> None:
    conv = nn.Conv2d(32, 1, 3, padding=dilation, dilation=dilation)
    x = torch.rand(1, 32, 40, 40)
    with torch.no_grad():
        error = (NarrowConv(conv)(x) - conv(x)).abs().max()
    assert float(error) < 1e-5


def test_a_convolution_with_hooks_stays() -> None:
    """What a user's module does in them would be lost with it."""
    mask = variable_density_lines(32, 3, centre_lines=4, seed=3)
    reconstructor = Reconstructor(build_model(preset("dccnn-d3c5")), mask)
    narrow = [
        one
        for one in reconstructor.modules()
        if isinstance(one, nn.Conv2d) and one.out_channels == 1
    ]
    narrow[0].register_forward_hook(lambda module, given, made: 2 * made)
    decompose_narrow_convs(reconstructor)
    kept = list(reconstructor.modules())
    assert narrow[0] in kept
    assert not any(one in kept for one in narrow[1:])
