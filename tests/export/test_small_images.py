"""Networks whose images stay at half resolution give the same images."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdmri_edge.models.blocks import columns_apart, columns_joined, smaller
from kdmri_edge.physics.operators import Form
from kdmri_edge.quantisation.calibration import activation_maxima
from kdmri_export.passes.small_images import keep_images_small
from kdmri_export.recipe import ExportRecipe
from kdmri_export.targets.onnx import to_model
from tests.export.networks import lines, network, points, spec


@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 2),
    factor=st.integers(1, 3),
    high=st.integers(1, 4),
    wide=st.integers(1, 4),
)
@settings(max_examples=40, deadline=None)
def test_columns_apart_are_the_same_pixels(
    batch: int, channels: int, factor: int, high: int, wide: int
) -> None:
    shape = (batch, channels, high * factor, wide * factor)
    image = torch.arange(batch * channels * high * factor * wide * factor).float().reshape(shape)
    apart = columns_apart(image, factor)
    assert apart.shape == (batch * factor, channels, high * factor, wide)
    assert torch.equal(columns_joined(apart, factor), image)
    blocks = apart.reshape(batch, factor, channels, factor, high, wide)
    wanted = smaller(image, factor).reshape(batch, channels, factor, factor, high, wide)
    assert torch.equal(blocks.permute(0, 2, 3, 1, 4, 5), wanted)


@given(
    channels=st.integers(1, 2),
    factor=st.sampled_from([2, 3]),
    carried=st.sampled_from([1, 3]),
    noise_weight=st.sampled_from([None, 2.0]),
    wide=st.integers(4, 7),
    seed=st.integers(0, 3),
)
@settings(max_examples=15, deadline=None)
def test_the_result_is_the_same(
    channels: int, factor: int, carried: int, noise_weight: float | None, wide: int, seed: int
) -> None:
    size = (30, factor * wide)
    architecture = spec(
        channels=channels, shuffle=factor, carried=carried, noise_weight=noise_weight
    )
    plain = network(architecture, lines(30)).double()
    small = copy.deepcopy(plain)
    assert keep_images_small(small)
    torch.manual_seed(seed)
    x_u = torch.randn(2, channels, *size, dtype=torch.float64)
    with torch.no_grad():
        wanted = plain.model.features(x_u, plain.operator)
        found = small.model.features(x_u, small.operator)
    assert torch.allclose(found.output, wanted.output, rtol=1e-10, atol=1e-12)
    for one, other in zip(found.cascade_outputs, wanted.cascade_outputs, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


def test_what_was_measured_moves_with_the_channels() -> None:
    plain = network(spec(carried=3, shuffle=2, channels=2), lines(), size=(32, 24))
    x_u = torch.randn(3, 2, 32, 24)
    plain.maxima = activation_maxima(plain.model, [(x_u, plain.operator)])
    small = copy.deepcopy(plain)
    assert keep_images_small(small)
    found = activation_maxima(small.model, [(x_u, small.operator)])
    assert found.keys() == small.maxima.keys()
    for key, values in found.items():
        assert values == pytest.approx(small.maxima[key], rel=1e-3), key
    first = "cascades.1.convs.0"
    assert small.maxima[first] != plain.maxima[first]


@pytest.mark.parametrize(
    ("case", "form"),
    [
        (spec(carried=3), None),
        (spec(carried=3, shuffle=2), Form.DFT),
        (spec(carried=3, shuffle=2, channels=2, coils=True), None),
        (spec(kind="vdsr", shuffle=2), None),
    ],
    ids=["full size", "DFT", "coils", "no data consistency"],
)
def test_other_networks_stay_as_they_are(case: object, form: Form | None) -> None:
    made = network(case, lines(), form, size=(32, 24))  # type: ignore[arg-type]
    before = {key: value.clone() for key, value in made.state_dict().items()}
    assert not keep_images_small(made)
    assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items())


def test_masks_in_two_dimensions_have_no_projection() -> None:
    assert not keep_images_small(network(spec(carried=3, shuffle=2), points(32, 24), size=(32, 24)))


@pytest.mark.parametrize("mask_input", [False, True])
def test_a_graph_takes_an_image_apart_once(mask_input: bool) -> None:
    """At a size at which the exporter computes nothing of constants beforehand."""
    size = (240, 24)
    made = network(spec(carried=3, shuffle=2, cascades=3), lines(240), size=size)
    recipe = ExportRecipe(target="onnx", mask_input=mask_input)
    graph = to_model(made, torch.rand(1, 1, *size), recipe)[0].graph
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["Transpose"] == (3 if mask_input else 2)  # the operator's rows
    assert kinds["DepthToSpace"] == 0


def test_one_node_for_data_consistency_has_whole_images() -> None:
    made = network(spec(carried=3, shuffle=2, cascades=3), lines(), size=(32, 24))
    recipe = ExportRecipe(target="onnx", keep_op=True)
    graph = to_model(made, torch.rand(1, 1, 32, 24), recipe)[0].graph
    assert Counter(node.op_type for node in graph.node)["DepthToSpace"] == 3
