"""Training with rounding computes what the exported graph computes, and learns through it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.models.specs import ModelSpec
from kdmri_edge.quantisation.calibration import HIGHEST, LOWEST
from kdmri_edge.quantisation.equalisation import equalise
from kdmri_edge.quantisation.fake_quantisation import (
    FakeQuantLayer,
    add_fake_quantisation,
    remove_fake_quantisation,
)
from kdmri_edge.quantisation.scheme import (
    BELOW,
    BOUNDS,
    FINE,
    LARGEST,
    PARTS,
    grid,
    in_two_parts,
)
from kdmri_export.recipe import ExportRecipe
from kdmri_export.targets.onnx import to_model
from tests.export.networks import COILS, lines, maps, network, spec

SIZE = (32, 24)
SPECS = {
    "magnitude": spec(),
    "complex": spec(channels=2),
    "vdsr": spec(kind="vdsr"),
    "vdsr, half size": spec(kind="vdsr", shuffle=2),
    "coils": spec(channels=2, coils=True),
    "carried maps": spec(carried=3),
    "carried maps, half size, complex": spec(carried=3, shuffle=2, channels=2),
}


def _run(graph: Any, x_u: torch.Tensor, further: tuple[np.ndarray, ...]) -> np.ndarray:
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    # Fused kernels of integers round sums in their own way; what the graph says is compared here.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [port.name for port in session.get_inputs()]
    output: np.ndarray = session.run(None, dict(zip(names, (x_u.numpy(), *further), strict=True)))[
        0
    ]
    return output


@pytest.mark.parametrize("unsigned", [True, False], ids=["cpu", "tensorrt"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.nightly if "half size" in name else ())
        for name in SPECS
    ],
)
@pytest.mark.parametrize("fine", [False, True], ids=["", "fine"])
def test_it_computes_what_the_export_computes(name: str, unsigned: bool, fine: bool) -> None:
    architecture: ModelSpec = SPECS[name]
    made = network(architecture, lines(), size=SIZE)
    # of a seed that puts few values on the edge between two integers
    chance = torch.Generator().manual_seed(1)
    x_u = torch.randn(1, architecture.channels, *SIZE, generator=chance)
    sensitivities = maps(1, SIZE) if architecture.coils else None
    ranges = equalise(made.model, made.maxima)
    if architecture.channels == 1 and "vdsr" not in name:
        x_u = x_u.abs()
        images = [one.name for one in made.model.layers() if not one.rectified]
        ranges |= {f"{name}{BELOW}": 0.3 * ranges[name] for name in images}
    also = [made.model.layers()[-1].name] if fine else []
    ranges |= in_two_parts(made.model, ranges, unsigned=unsigned, also=also)
    maps_too = architecture.carried > 0 and not unsigned
    assert sum(key.endswith(PARTS) for key in ranges) == fine + maps_too
    target = "onnx" if unsigned else "trt"
    tuned = Reconstructor(made.model, made.mask, ranges=ranges)
    graph, _ = to_model(
        tuned,
        x_u,
        ExportRecipe(target=target, precision="int8", coils=COILS),
        narrow=unsigned,
        unsigned=unsigned,
    )
    theirs = _run(graph, x_u, () if sensitivities is None else (sensitivities,))
    with torch.no_grad():
        float_image = made(
            x_u, maps=None if sensitivities is None else torch.from_numpy(sensitivities)
        )
        add_fake_quantisation(made.model, ranges, unsigned=unsigned)
        ours = made(x_u, maps=None if sensitivities is None else torch.from_numpy(sensitivities))
    peak = float_image.abs().max()
    cost = (ours - float_image).abs().max()
    assert cost > 1e-4 * peak  # rounding does something
    # a value on the edge between two integers may fall to either side
    gap = (ours - torch.from_numpy(theirs)).abs()
    assert gap.quantile(0.99) < 0.02 * cost
    assert gap.max() < 0.5 * cost


def test_gradients_pass_and_ranges_learn() -> None:
    made = network(spec(), lines(), size=SIZE)
    ranges = equalise(made.model, made.maxima)
    halved = {key: 0.5 * value for key, value in ranges.items()}
    add_fake_quantisation(made.model, halved, unsigned=True, factors=True)
    x_u = torch.randn(2, 1, *SIZE)
    made(x_u).square().mean().backward()
    for name, parameter in made.model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    # ranges that clip half of everything have somewhere to go
    reader = made.model.cascades[0].convs[1]
    assert reader.log_range.grad.abs() > 0
    assert reader.log_factors.grad.abs().max() > 0


@given(largest=st.floats(1e-3, 1e3), share=st.floats(0, 3))
def test_a_grid_holds_an_image_and_what_rounding_takes_from_it(
    largest: float, share: float
) -> None:
    below = share * largest
    lowest, highest = grid("u8c", largest, below)
    step = largest / highest
    assert highest - lowest == 255
    assert -128 <= lowest <= -FINE // 2
    if share <= 1:
        # half an integer, and the step is as much larger or smaller
        assert step * lowest <= -below + 1.01 * step
        assert step <= largest / BOUNDS["u8c"][1]  # never coarser than as far below as above
    # told again after it was learned, it is the same one
    assert grid("u8c", largest, -step * lowest) == (lowest, highest)


@pytest.mark.parametrize("kind", ["u8", "s8", "u8c"])
def test_other_grids_are_as_they_were(kind: str) -> None:
    assert grid(kind, 2.0) == BOUNDS[kind]
    assert grid(kind, 2.0, 9.0) == BOUNDS[kind]


def test_values_are_multiples_of_the_step_within_bounds() -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1)
    for kind, unsigned in (("u8", True), ("s8", False)):
        rounded = FakeQuantLayer(conv, 2.0, rectified=True, unsigned=unsigned)
        assert rounded.kind == kind
        values = rounded._rounded(torch.linspace(-3, 3, 4001).reshape(1, 1, 1, -1))
        steps = (values / (2.0 / LARGEST[kind])).detach()
        assert (steps - steps.round()).abs().max() < 1e-2
        assert (steps.round().min(), steps.round().max()) == BOUNDS[kind]


@pytest.mark.parametrize("architecture", [spec(carried=3), spec(carried=3, shuffle=2)])
def test_the_image_is_given_in_two_parts_and_maps_beside_it_in_one(architecture: ModelSpec) -> None:
    made = network(architecture, lines(), size=SIZE)
    add_fake_quantisation(made.model, equalise(made.model, made.maxima), unsigned=True)
    first, second = (cascade.convs[0] for cascade in made.model.cascades)
    of_image = architecture.shuffle**2
    assert (first.parts, second.parts) == (of_image, 2 * of_image)  # the second shows x_u as well
    assert second.rounded_weight().shape[1] == 2 * 2 * of_image + architecture.carried
    image, maps = torch.randn(1, 2 * of_image, 8, 8), torch.rand(1, architecture.carried, 8, 8)
    step = second.largest / LARGEST[second.kind]
    known = image.clamp(-second.largest, second.largest)
    read = _read(second, torch.cat((known, maps), 1))
    coarse, fine, others = read.split([2 * of_image, 2 * of_image, architecture.carried], 1)
    assert (coarse - known).abs().max() > step / 4
    assert (coarse + fine / FINE - known).abs().max() <= step / FINE
    assert (others - maps.clamp(max=second.largest)).abs().max() <= step * 0.51


def test_signed_integers_are_given_maps_beside_an_image_in_two_parts_too() -> None:
    made = network(spec(carried=3), lines(), size=SIZE)
    ranges = equalise(made.model, made.maxima)
    told = in_two_parts(made.model, ranges, unsigned=False)
    assert told == {"cascades.1.convs.0:parts": 2 + 3}
    # only layers that are rounded, and for CPUs those alone that are named
    assert not in_two_parts(made.model, {"cascades.0.convs.0"}, unsigned=False)
    assert not in_two_parts(made.model, ranges, unsigned=True)
    also = in_two_parts(made.model, ranges, unsigned=True, also=["cascades.0.convs.1"])
    assert also == {"cascades.0.convs.1:parts": 4, "cascades.0.convs.1:below": 0}
    add_fake_quantisation(made.model, ranges | told, unsigned=False)
    first, second = (cascade.convs[0] for cascade in made.model.cascades)
    assert (first.parts, second.parts) == (1, 5)
    known, step = second.largest * torch.rand(1, 5, 8, 8), second.largest / LARGEST["s8"]
    coarse, fine = _read(second, known).chunk(2, 1)
    assert (coarse - known).abs().max() > step / 4
    assert (coarse + fine / FINE - known).abs().max() <= step / FINE


def _read(layer: FakeQuantLayer, given: torch.Tensor) -> torch.Tensor:
    """Return what a layer computes with when it is given something."""
    usual = layer.conv._conv_forward
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        layer.conv._conv_forward = lambda x, *rest: (seen.append(x), usual(x, *rest))[1]
        layer(given)
    layer.conv._conv_forward = usual
    return seen[0]


@pytest.mark.parametrize("unsigned", [True, False])
def test_unrounding_gives_the_float_network_back(unsigned: bool) -> None:
    made = network(spec(carried=3), lines(), size=SIZE)
    ranges = equalise(made.model, made.maxima)
    ranges |= in_two_parts(made.model, ranges, unsigned=unsigned)
    before = {k: v.clone() for k, v in made.model.state_dict().items()}
    ranges = {key: value for key, value in ranges.items() if not key.endswith((HIGHEST, LOWEST))}
    add_fake_quantisation(made.model, ranges, unsigned=unsigned)
    learned = remove_fake_quantisation(made.model)
    assert learned == pytest.approx(ranges, rel=1e-5)
    after = made.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) for k in before)


@pytest.mark.parametrize("unsigned", [True, False], ids=["cpu", "tensorrt"])
@pytest.mark.parametrize("name", SPECS)
def test_factors_of_channels_become_a_part_of_the_weights(name: str, unsigned: bool) -> None:
    architecture: ModelSpec = SPECS[name]
    made = network(architecture, lines(), size=SIZE)
    chance = torch.Generator().manual_seed(3)
    x_u = torch.randn(1, architecture.channels, *SIZE, generator=chance)
    given = torch.from_numpy(maps(1, SIZE)) if architecture.coils else None
    ranges = equalise(made.model, made.maxima)
    with torch.no_grad():
        float_image = made(x_u, maps=given)
        add_fake_quantisation(made.model, ranges, unsigned=unsigned, factors=True)
        plain = made(x_u, maps=given)
        readers = [
            one
            for one in made.model.modules()
            if isinstance(one, FakeQuantLayer) and one.log_factors is not None
        ]
        assert readers
        for one in readers:
            one.log_factors += 0.01 * torch.randn(one.log_factors.shape, generator=chance)
        with_factors = made(x_u, maps=given)
        learned = remove_fake_quantisation(made.model)
        assert (made(x_u, maps=given) - float_image).abs().max() <= 1e-5 * float_image.abs().max()
        add_fake_quantisation(made.model, learned, unsigned=unsigned)
        folded = made(x_u, maps=given)
    changed = (with_factors - plain).abs().max()
    assert changed > 1e-4 * float_image.abs().max()  # factors do something
    # a value on the edge between two integers may fall to either side
    gap = (folded - with_factors).abs()
    assert gap.quantile(0.99) < 0.02 * changed
    assert gap.max() < 0.5 * changed
