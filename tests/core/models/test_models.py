"""Networks: parameter counts, features, residual, dilation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from kdmri_edge.data.simulation import coil_maps
from kdmri_edge.errors import ModelError
from kdmri_edge.models.blocks import ConvStack, padded, sound_gradients
from kdmri_edge.models.build import build_model
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.models.specs import CARRYING, PRESETS, ModelSpec, preset
from kdmri_edge.physics.coils import sense_normal
from kdmri_edge.physics.consistency import maps_tensor, operator_tensor
from kdmri_edge.physics.masks import variable_density_lines
from kdmri_edge.physics.operators import Form

MASK = variable_density_lines(24, 2, centre_lines=4)
COUNTS = {
    "dccnn-d5c5": 141_765,
    "dccnn-d3c5": 49_285,
    # two channels: 9 * 32 weights more at either end of a cascade, and one bias
    "dccnn-d5c5-complex": 141_765 + 5 * (2 * 288 + 1),
    "dccnn-d3c5-complex": 49_285 + 5 * (2 * 288 + 1),
    "dccnn-d5c5-sense": 141_765 + 5 * (2 * 288 + 1),
    "dccnn-d3c5-sense": 49_285 + 5 * (2 * 288 + 1),
    # 24 maps, 8 carried: 1 and 9 to 24, 24 to 24, 24 to 9 and 1, and the biases
    "dccnn-edge": 9 * 24 * (5 * 24 + (1 + 4 * 10) + (4 * 9 + 1)) + 5 * 48 + 4 * 9 + 1,
    # 4 channels an image at half resolution
    "dccnn-edge-half": 9 * 48 * (5 * 48 + (4 + 4 * 24) + (4 * 20 + 4)) + 5 * 96 + 4 * 20 + 4,
    # the same with 32 maps, 12 carried, and four cascades
    "dccnn-edge-small": 9 * 32 * (4 * 32 + (4 + 3 * 20) + (3 * 16 + 4)) + 4 * 64 + 3 * 16 + 4,
    "dccnn-d5c5-carried": 9 * 32 * (15 * 32 + (1 + 4 * 18) + (4 * 17 + 1)) + 20 * 32 + 4 * 17 + 1,
    **{
        f"dccnn-edge{kind}": 9 * 24 * (5 * 24 + (2 + 4 * 12) + (4 * 10 + 2)) + 5 * 48 + 4 * 10 + 2
        for kind in ("-complex", "-sense")
    },
    **{
        f"dccnn-edge-half{kind}": 9 * 48 * (5 * 48 + (8 + 4 * 32) + (4 * 24 + 8))
        + 5 * 96
        + 4 * 24
        + 8
        for kind in ("-complex", "-sense")
    },
    **{
        f"dccnn-edge-small{kind}": 9 * 32 * (4 * 32 + (8 + 3 * 28) + (3 * 20 + 8))
        + 4 * 64
        + 3 * 20
        + 8
        for kind in ("-complex", "-sense")
    },
    **{
        f"dccnn-d5c5-carried{kind}": 9 * 32 * (15 * 32 + (2 + 4 * 20) + (4 * 18 + 2))
        + 20 * 32
        + 4 * 18
        + 2
        for kind in ("-complex", "-sense")
    },
    "vdsr-11": 333_569,
    "vdsr-7": 185_857,
    "vdsr-half": 9 * 64 * (5 * 64 + 4 + 4) + 6 * 64 + 4,
}


def small(kind: str = "dccnn", **changes: object) -> ModelSpec:
    values = {"cascades": 2, "convs": 3, "width": 4, "attention_tap": 2, **changes}
    if kind == "dccnn" and {"carried", "shuffle"} & changes.keys():
        kind = CARRYING
    return ModelSpec(kind=kind, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_counts(name: str) -> None:
    model = build_model(preset(name))
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]
    assert preset(name).parameters == COUNTS[name]


@pytest.mark.parametrize(
    ("teacher", "student", "taps"),
    [
        ("dccnn-d5c5", "dccnn-d3c5", (3, 2)),
        ("dccnn-d5c5-sense", "dccnn-d3c5-sense", (3, 2)),
        ("vdsr-11", "vdsr-7", (6, 4)),
    ],
)
def test_attention_taps_are_kd_mris(teacher: str, student: str, taps: tuple[int, int]) -> None:
    assert (preset(teacher).attention_tap, preset(student).attention_tap) == taps


@pytest.mark.parametrize("kind", ["dccnn", "vdsr"])
@pytest.mark.parametrize("channels", [1, 2])
def test_features(kind: str, channels: int) -> None:
    spec = small(kind, channels=channels, cascades=2 if kind == "dccnn" else 1)
    model = build_model(spec)
    x = torch.randn(3, channels, 24, 10)
    operator = operator_tensor(MASK, Form.PROJECTION, channels)
    features = model.features(x, operator)
    assert len(features.cascade_outputs) == len(features.attention) == spec.cascades
    assert all(stage.shape == x.shape for stage in features.cascade_outputs)
    assert all(tap.shape == (3, spec.width, 24, 10) for tap in features.attention)
    assert all((tap >= 0).all() for tap in features.attention)  # read after the ReLU
    assert torch.equal(features.cascade_outputs[-1], features.output)
    assert torch.equal(model(x, operator), features.output)


def test_the_tap_reads_the_named_convolution() -> None:
    model = build_model(small(convs=4, attention_tap=3))
    x = torch.randn(1, 1, 24, 6)
    first = model.cascades[0]
    hidden = x
    for conv in first.convs[:3]:
        hidden = torch.relu(conv(hidden))
    torch.testing.assert_close(first(x)[1], hidden)


def test_a_silent_cascade_passes_the_image_only_with_the_residual() -> None:
    x = torch.rand(1, 1, 24, 6)
    operator = operator_tensor(MASK, Form.PROJECTION, 1)
    p = operator @ x
    for residual in (True, False):
        model = build_model(small(cascades=1, residual=residual))
        for parameter in model.parameters():
            torch.nn.init.zeros_(parameter)
        inner = x if residual else torch.zeros_like(x)
        torch.testing.assert_close(model(x, operator), inner + x - operator @ inner)
    assert not torch.allclose(p, x)


@pytest.mark.parametrize("dilation", [(1, 1, 1), (1, 2, 1), (3, 1, 2)])
def test_receptive_radius(dilation: tuple[int, ...]) -> None:
    spec = small(cascades=1, kind="vdsr", dilation=dilation)
    model = build_model(spec)
    x = torch.zeros(1, 1, 31, 31, requires_grad=True)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    model(x, None)[0, 0, 15, 15].backward()
    assert x.grad is not None
    reached = x.grad[0, 0].nonzero() - 15
    assert reached.abs().max() == spec.receptive_radius == sum(dilation)


MAPS = {"carried": 3, "shows_zero_filled": True}


@pytest.mark.parametrize("shuffle", [1, 2])
@pytest.mark.parametrize("channels", [1, 2])
def test_carried_maps(shuffle: int, channels: int) -> None:
    """Against the cascades written out."""
    spec = small(cascades=3, channels=channels, shuffle=shuffle, **MAPS)
    model = build_model(spec)
    x_u = torch.randn(2, channels, 24, 10)
    operator = operator_tensor(MASK, Form.PROJECTION, channels)
    features = model.features(x_u, operator)
    assert [tuple(tap.shape) for tap in features.attention] == [
        (2, spec.width, 24 // shuffle, 10 // shuffle)
    ] * 3
    down = torch.nn.PixelUnshuffle(shuffle)
    up = torch.nn.PixelShuffle(shuffle)
    x, image, maps = x_u, channels * shuffle**2, []
    for number, stack in enumerate(model.cascades):
        read = [down(x)] if number == 0 else [down(x), down(x_u), *maps]
        hidden = torch.cat(read, 1)
        for conv in stack.convs[:-1]:
            hidden = torch.relu(conv(hidden))
        written = stack.convs[-1](hidden)
        corrected = x + up(written[:, :image])
        maps = [torch.relu(written[:, image:])]
        x = reference_consistency(corrected, x_u)
        torch.testing.assert_close(features.cascade_outputs[number], x)
    assert maps[0].shape[1] == 0  # the last cascade writes none
    assert spec.parameters == sum(p.numel() for p in model.parameters())
    assert not spec.has_features_from
    with pytest.raises(ModelError, match="hand on feature maps"):
        model.features_from(1, x, x_u, operator)


def reference_consistency(x: torch.Tensor, x_u: torch.Tensor) -> torch.Tensor:
    """Return x + x_u - P x, with P by FFT along phase encode."""
    sampled = torch.tensor(MASK.samples)[:, None]
    imaginary = x[:, 1] if x.shape[1] == 2 else torch.zeros_like(x[:, 0])
    held = torch.fft.ifft(sampled * torch.fft.fft(torch.complex(x[:, 0], imaginary), dim=1), dim=1)
    return x + x_u - torch.stack((held.real, held.imag), 1)[:, : x.shape[1]]


@pytest.mark.parametrize("shuffle", [1, 2, 3])
def test_receptive_radius_of_cascades(shuffle: int) -> None:
    """Along readout, where data consistency moves nothing."""
    spec = small(cascades=2, dilation=(1, 2, 1), shuffle=shuffle, **MAPS)
    model = build_model(spec)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    operator = operator_tensor(MASK, Form.PROJECTION, 1)
    farthest = 0
    for column in range(36, 36 + shuffle):
        x = torch.zeros(1, 1, 24, 72, requires_grad=True)
        model(x, operator)[0, 0, :, column].sum().backward()
        assert x.grad is not None
        reached = x.grad[0, 0].abs().sum(0).nonzero() - column
        farthest = max(farthest, int(reached.abs().max()))
    radius = spec.receptive_radius
    assert radius - (shuffle - 1) <= farthest <= radius


def test_a_matrix_that_the_shuffle_does_not_divide_is_refused() -> None:
    model = build_model(small(shuffle=2))
    with pytest.raises(ModelError, match="multiples of 2, not 24 x 9"):
        model(torch.randn(1, 1, 24, 9), operator_tensor(MASK, Form.PROJECTION, 1))


def test_super_resolution_at_half_resolution() -> None:
    spec = small("vdsr", cascades=1, shuffle=2)
    torch.manual_seed(0)
    model = build_model(spec)
    x_u = torch.randn(2, 1, 12, 10)
    convs = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    y = torch.nn.PixelUnshuffle(2)(x_u)
    for conv in convs[:-1]:
        y = torch.relu(conv(y))
    expected = x_u + torch.nn.PixelShuffle(2)(convs[-1](y))
    torch.testing.assert_close(model(x_u), expected)
    assert spec.macs(12, 10) == {"convolutions": 9 * (4 * 4 * 3) * 30, "data_consistency": 0}
    with pytest.raises(ModelError, match="multiples of 2, not 12 x 9"):
        model(x_u[..., :9])


def test_older_versions_can_read_what_they_know() -> None:
    later = {
        "coils", "carried", "shows_zero_filled", "shuffle", "solver_steps", "solver_weight",
    }  # fmt: skip
    assert not later & small().to_dict().keys()
    assert later & small(shuffle=2).to_dict().keys() == {"shuffle"}
    solved = small(channels=2, coils=True, solver_steps=3)
    assert later & solved.to_dict().keys() == {"coils", "solver_steps"}


@pytest.mark.parametrize("name", ["carried", "shows_zero_filled", "shuffle"])
@pytest.mark.parametrize("kind", ["dccnn", "vdsr"])
def test_other_families_carry_nothing(kind: str, name: str) -> None:
    if (kind, name) == ("vdsr", "shuffle"):
        pytest.skip("it may compute at a lower resolution")
    plain = small(kind, cascades=1)
    with pytest.raises(ModelError, match=name):
        replace(plain, **{name: 2})  # type: ignore[arg-type]


@pytest.mark.parametrize(("channels", "dilation"), [(24, 2), (40, 3), (24, 1)])
def test_gradients_in_bf16_are_sound(channels: int, dilation: int) -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no bf16 convolutions")
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
    network = torch.nn.Sequential(conv).to(memory_format=torch.channels_last)
    for _ in range(6):
        # what is free now holds values that would be seen
        junk = [torch.full((1 << size,), torch.nan) for size in range(8, 20)]
        del junk
        x = torch.randn(2, channels, 64, 48).to(memory_format=torch.channels_last)
        with sound_gradients(network), torch.autocast("cpu", torch.bfloat16):
            made = network(x)
        weight = torch.randn_like(made)
        found, bias = torch.autograd.grad(made, list(network.parameters()), weight)
        exact, _ = torch.autograd.grad(network(x), list(network.parameters()), weight.float())
        assert torch.linalg.vector_norm(found - exact) < 0.02 * torch.linalg.vector_norm(exact)
        assert torch.isfinite(bias).all()
    assert "forward" not in vars(conv)


def test_spec_round_trip_and_presets() -> None:
    for spec in (*PRESETS.values(), small(dilation=(1, 2, 1), noise_weight=3.0)):
        assert ModelSpec.from_dict(spec.to_dict()) == spec
    with pytest.raises(ModelError, match="'dccnn-d3c5'"):
        preset("dccnn-d3c6")
    with pytest.raises(ModelError, match="newer version"):
        ModelSpec.from_dict({**small().to_dict(), "gates": 2})
    with pytest.raises(ModelError, match="damaged"):
        ModelSpec.from_dict({"kind": "dccnn"})


@pytest.mark.parametrize(
    "change",
    [
        {"cascades": 0},
        {"convs": 1},
        {"kernel": 2},
        {"channels": 3},
        {"dilation": (1, 2)},
        {"attention_tap": 3},
        {"noise_weight": -1.0},
        {"width": 0},
    ],
)
def test_bad_fields_are_named(change: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=next(iter(change))):
        small(**change)


def test_noise_weight_softens_consistency() -> None:
    x, operator = torch.randn(1, 1, 24, 6), operator_tensor(MASK, Form.PROJECTION, 1)
    torch.manual_seed(0)
    soft = build_model(small(cascades=1, noise_weight=1.0))
    hard = build_model(small(cascades=1))
    hard.load_state_dict(soft.state_dict())
    correction = x + soft.cascades[0](x)[0]
    half = (correction + hard(x, operator)) / 2  # lambda = 1: half way to the hard result
    torch.testing.assert_close(soft(x, operator), half)


def test_reconstructor_forms_agree_and_macs_count_consistency() -> None:
    torch.manual_seed(0)
    model = build_model(small())
    x = torch.randn(2, 1, 24, 10)
    results = [Reconstructor(model, MASK, form)(x) for form in Form]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=1e-5)
    macs = small().macs(24, 10)
    assert macs["data_consistency"] == 2 * 24 * 24 * 10
    assert macs["convolutions"] == 2 * (4 + 16 + 4) * 9 * 240


def test_older_specifications_stay_readable_and_equal() -> None:
    older = small().to_dict()
    assert "coils" not in older  # neither manifests nor fingerprints of runs change
    assert not ModelSpec.from_dict(older).coils
    assert small(channels=2, coils=True).to_dict()["coils"] is True


@pytest.mark.parametrize("wrong", [{}, {"channels": 2, "kind": "vdsr", "cascades": 1}])
def test_coils_take_a_complex_network_with_consistency(wrong: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="coils"):
        small(**{"coils": True, **wrong})  # type: ignore[arg-type]


def test_maps_go_to_networks_with_coils_alone() -> None:
    x, maps = torch.randn(1, 2, 24, 6), torch.rand(1, 3, 2, 24, 6)
    with_coils = Reconstructor(build_model(small(channels=2, coils=True)), MASK)
    with pytest.raises(ModelError, match="needs their sensitivities"):
        with_coils(x)
    with pytest.raises(ModelError, match="no coils"):
        Reconstructor(build_model(small(channels=2)), MASK)(x, None, maps)


def test_one_coil_of_sensitivity_one_is_the_complex_network() -> None:
    torch.manual_seed(0)
    sense, plain = (build_model(small(channels=2, coils=coils)) for coils in (True, False))
    plain.load_state_dict(sense.state_dict())
    x, maps = torch.randn(2, 2, 24, 6), torch.zeros(2, 1, 2, 24, 6)
    maps[:, :, 0] = 1
    for form in Form:
        with_coils = Reconstructor(sense, MASK, form)(x, maps=maps)
        torch.testing.assert_close(with_coils, Reconstructor(plain, MASK, form)(x))


def test_the_last_data_consistency_is_solved() -> None:
    """Against a solver that knows the whole matrix."""
    height, width, weight = 24, 5, 0.3
    torch.manual_seed(0)
    given = small(channels=2, coils=True)
    solved = build_model(replace(given, solver_steps=16, solver_weight=weight))
    plain = build_model(given)
    plain.load_state_dict(solved.state_dict())
    own = coil_maps(3, height, width, seed=1)
    maps = maps_tensor(own[None])
    truth = torch.randn(1, height, width, dtype=torch.complex64)
    x_u = torch.view_as_real(torch.from_numpy(sense_normal(truth.numpy(), own[None], MASK)))
    x_u = x_u.movedim(-1, 1).contiguous()
    unit = np.eye(height * width, dtype=np.complex128).reshape(-1, height, width)
    columns = [sense_normal(one, own.astype(np.complex128), MASK).ravel() for one in unit]
    normal = np.stack(columns, axis=1)
    z = Reconstructor(plain, MASK)(x_u, maps=maps)
    flat = [(part[0, 0] + 1j * part[0, 1]).detach().numpy().ravel() for part in (x_u, z)]
    expected = np.linalg.solve(normal + weight * np.eye(len(normal)), flat[0] + weight * flat[1])
    whole = Reconstructor(solved, MASK)
    made = whole(x_u, maps=maps)[0].detach().numpy()
    scale = np.abs(expected).max()
    np.testing.assert_allclose((made[0] + 1j * made[1]).ravel(), expected, atol=1e-5 * scale)
    assert np.abs(expected - flat[1]).max() > 1e-2 * scale  # it was not there before
    features = solved.features(x_u, whole.operator, maps)
    assert torch.equal(features.cascade_outputs[-1], features.output)
    once, more = (
        build.macs(height, width, coils=3)["data_consistency"]
        for build in (given, replace(given, solver_steps=2))
    )
    assert more == 2 * once  # as many steps as cascades


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"channels": 2, "solver_steps": 3}, "solver_steps"),
        ({"channels": 2, "coils": True, "solver_steps": 17}, "solver_steps"),
        ({"channels": 2, "coils": True, "solver_weight": 0.0}, "solver_weight"),
        ({"channels": 2, "coils": True, "solver_weight": math.nan}, "solver_weight"),
    ],
)
def test_solvers_out_of_range(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        small(**changes)


def test_macs_count_the_cheaper_product_of_every_coil() -> None:
    spec = small(channels=2, coils=True)
    whole, few = spec.macs(24, 10, coils=4), spec.macs(24, 10, sampled=6, coils=4)
    assert whole["data_consistency"] == 2 * 4 * (4 * 24 * 24 * 10 + 8 * 240)
    assert few["data_consistency"] == 2 * 4 * (2 * 4 * 6 * 24 * 10 + 8 * 240)
    assert spec.macs(24, 10, sampled=20, coils=4) == whole
    assert whole["convolutions"] == small(channels=2).macs(24, 10)["convolutions"]


@pytest.mark.parametrize("name", ["dccnn-d3c5", "dccnn-d3c5-complex", "vdsr-7"])
def test_padded_convolutions_give_the_same(name: str) -> None:
    torch.manual_seed(0)
    network = build_model(preset(name))
    x_u = torch.rand(2, network.spec.channels, 24, 20)
    operator = torch.eye(network.spec.channels * 24) * 0.5
    expected = network(x_u, operator)
    with padded(network):
        found = network(x_u, operator)
    assert not any(m.padded for m in network.modules() if isinstance(m, ConvStack))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    found.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_vdsr_starts_with_activations_that_keep_their_size() -> None:
    torch.manual_seed(0)
    network = build_model(preset("vdsr-11"))
    x = torch.rand(1, 1, 40, 40)
    sizes = []
    hooks = [
        conv.register_forward_pre_hook(lambda _, given: sizes.append(float(given[0].std())))
        for conv in network.stack.convs  # type: ignore[union-attr]
    ]
    with torch.no_grad():
        output = network(x)
    assert len(sizes) == len(hooks) == 11
    assert 0.3 < sizes[-1] / sizes[1] < 3
    assert float((output - x).abs().max()) > 1e-3
