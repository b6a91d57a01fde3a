"""How the convolutions of any network are described, and what acts on them by that."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdmri_edge.distillation.recipe import Qat
from kdmri_edge.errors import CheckpointError, RecipeError
from kdmri_edge.models.build import build_model
from kdmri_edge.models.layers import Layer, replace_module, traced_structure
from kdmri_edge.models.network import Network
from kdmri_edge.models.specs import PRESETS
from kdmri_edge.physics.operators import Form
from kdmri_edge.quantisation.calibration import (
    HIGHEST,
    LOWEST,
    activation_maxima,
    check_magnitudes,
    layer_of,
    of_layers,
)
from kdmri_edge.quantisation.equalisation import equalise
from kdmri_edge.quantisation.fake_quantisation import (
    FakeQuantLayer,
    add_fake_quantisation,
    remove_fake_quantisation,
)
from kdmri_edge.quantisation.scheme import in_two_parts
from kdmri_edge.quantisation.tuning import layers_in_parts


def conv(inputs: int = 4, outputs: int = 4, **options: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class Chain(nn.Module):
    """a -> ReLU -> b -> ReLU -> c, in the ways in which a ReLU can be written."""

    def __init__(self, relu: str) -> None:
        super().__init__()
        self.relu = relu
        self.a, self.b, self.c = conv(1), conv(), conv(4, 1)
        self.act = nn.ReLU(inplace=relu == "module, in place")

    def rectified(self, x: Tensor) -> Tensor:
        match self.relu:
            case "function":
                return F.relu(x)
            case "function, in place":
                return F.relu_(x)
            case "method":
                return x.relu()
            case "method, in place":
                return x.relu_()
            case "torch":
                return torch.relu(x)
        return self.act(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.rectified(self.a(x))
        assert x.shape[1] == 4  # looking at a shape is no use
        return self.c(self.rectified(self.b(x)))


RELUS = ["function", "function, in place", "method", "method, in place", "torch", "module",
         "module, in place"]  # fmt: skip


@pytest.mark.parametrize("relu", RELUS)
def test_a_chain_is_found_however_its_relu_is_written(relu: str) -> None:
    network = Chain(relu).train()
    assert traced_structure(network, torch.zeros(1, 1, 8, 8)).layers == [
        Layer(name="a", rectified=False),
        Layer(name="b", rectified=True, follows="a"),
        Layer(name="c", rectified=True, follows="b"),
    ]
    assert network.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("form", list(Form))
def test_tracing_finds_what_the_structure_says(name: str, form: Form) -> None:
    network = build_model(PRESETS[name])
    network.form = form
    described = network.structure()
    # Which channels are an image's, and which are carried, a network says; tracing cannot tell.
    layers = [replace(one, image=0, carried_from=None) for one in described.layers]
    assert Network.structure(network) == replace(described, layers=layers)
    convs = [n for n, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    assert [one.name for one in network.layers()] == convs


class Odd(nn.Module):
    """Convolutions that hand their output to more than one reader, each in another way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first, self.second, self.third = conv(1), conv(), conv()

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        raw = self.first(x)
        hidden = F.relu(raw)
        match self.way:
            case "added to the output":
                return self.third(F.relu(self.second(hidden))) + hidden
            case "read before the ReLU":
                return self.third(F.relu(self.second(hidden))) + raw
            case "read by two convolutions":
                return self.second(hidden) + self.third(hidden)
            case "returned":
                return self.third(F.relu(self.second(hidden))), hidden
            case "changed in place":
                hidden += 1
                return self.third(F.relu(self.second(hidden)))
            case "leaky":
                return self.third(F.relu(self.second(F.leaky_relu(raw))))
            case "pooled":
                return self.third(F.relu(self.second(F.max_pool2d(hidden, 2))))
        return self.third(F.relu(self.second(torch.cat((hidden, hidden))[:1])))


@pytest.mark.parametrize(
    ("way", "rectified"),
    [
        ("added to the output", True),
        ("read before the ReLU", True),
        ("read by two convolutions", True),
        ("returned", True),
        ("changed in place", False),
        ("leaky", False),
        ("pooled", False),
        ("concatenated", False),
    ],
)
def test_what_others_read_too_is_not_followed(way: str, rectified: bool) -> None:
    found = {one.name: one for one in traced_structure(Odd(way), torch.zeros(1, 1, 8, 8)).layers}
    assert found["second"].follows is None
    assert found["second"].rectified is rectified
    assert found["third"].follows == (None if "two" in way else "second")


class Shared(Network):
    """One convolution that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.spec, self.form = PRESETS["vdsr-7"], Form.PROJECTION
        self.first, self.twice, self.last = conv(1), conv(), conv(4, 1)

    def forward(self, x_u: Tensor, operator: object = None, maps: object = None) -> Tensor:
        x = F.relu(self.first(x_u))
        x = F.relu(self.twice(x))
        return x_u + self.last(F.relu(self.twice(x)))


def test_a_convolution_that_is_called_twice_follows_none_and_none_follows_it() -> None:
    assert Shared().layers() == [
        Layer(name="first", rectified=False),
        Layer(name="twice", rectified=True),
        Layer(name="last", rectified=True),
    ]


class Plain(Network):
    """A network that is not made of stacks: a residual, a group, a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.spec, self.form = PRESETS["vdsr-7"], Form.PROJECTION
        self.head = nn.Sequential(conv(1), nn.ReLU(), conv(), nn.ReLU())
        self.deep = conv(4, 4, groups=4)
        self.wide = conv(4, 6)
        self.tail = conv(6, 1)

    def forward(self, x_u: Tensor, operator: object = None, maps: object = None) -> Tensor:
        x = self.head(x_u)
        x = x + F.relu(self.deep(x))
        return x_u + self.tail(F.relu(self.wide(x)))


def calibrated(network: Network) -> tuple[Tensor, dict[str, list[float]]]:
    torch.manual_seed(0)
    x_u = torch.rand(2, 1, 16, 16)
    return x_u, activation_maxima(network, [(x_u, torch.eye(16))])


def test_equalising_changes_nothing_in_float_and_only_what_is_followed() -> None:
    torch.manual_seed(1)
    network = Plain().eval()
    x_u, maxima = calibrated(network)
    names = [key for key in maxima if layer_of(key) == key]
    assert names == ["head.0", "head.2", "deep", "wide", "tail"]
    # what no other reads behind a ReLU alone, but for the image, which is hardly below zero
    assert set(maxima) - set(names) == {
        *(f"{name}{end}" for name in ("head.2", "deep") for end in (HIGHEST, LOWEST)),
        "head.0:below",
    }
    before, weights = network(x_u), copy.deepcopy(network.state_dict())
    after = equalise(network, maxima)
    torch.testing.assert_close(network(x_u), before)
    changed = {k.rpartition(".")[0] for k, v in network.state_dict().items()
               if not torch.equal(v, weights[k])}  # fmt: skip
    assert changed == {"head.0", "head.2", "wide", "tail"}
    assert after["deep"] == max(maxima["deep"])


@pytest.mark.parametrize("unsigned", [True, False])
def test_rounding_acts_on_all_of_them_and_comes_off_again(unsigned: bool) -> None:
    torch.manual_seed(1)
    network = Plain().eval()
    x_u, maxima = calibrated(network)
    before = network(x_u)
    ranges = {name: max(values) for name, values in maxima.items()}
    add_fake_quantisation(network, ranges, unsigned=unsigned)
    rounded = {n: m for n, m in network.named_modules() if isinstance(m, FakeQuantLayer)}
    assert list(rounded) == [key for key in maxima if layer_of(key) == key]
    wanted = {"head.0": "u8c", "deep": "u8", "wide": "u8c"} if unsigned else {"head.2": "s8"}
    assert {name: rounded[name].kind for name in wanted} == wanted
    error = (network(x_u) - before).abs().max()
    assert 0 < error < 0.05 * before.abs().max()
    learned = remove_fake_quantisation(network)
    assert of_layers(learned, ["head.0"]).keys() == (
        {"head.0", "head.0:below"} if unsigned else {"head.0"}
    )
    assert {name: learned[name] for name in rounded} == pytest.approx(
        {name: ranges[name] for name in rounded}, rel=1e-5
    )
    torch.testing.assert_close(network(x_u), before)


def test_a_module_is_replaced_by_its_name() -> None:
    network = Plain()
    replace_module(network, "head.2", nn.Identity())
    replace_module(network, "tail", nn.Identity())
    assert isinstance(network.head[2], nn.Identity)
    assert isinstance(network.tail, nn.Identity)


class Mixed(Network):
    """Every kind of layer, and what is none: a function, another kind, a weight of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.spec, self.form = PRESETS["vdsr-7"], Form.PROJECTION
        self.head = conv(1, 6)
        self.down = conv(6, 4, stride=2)
        self.up = nn.ConvTranspose2d(4, 5, 2, stride=2)
        self.wide = nn.ConvTranspose2d(5, 4, 3, padding=1)
        self.norm = nn.InstanceNorm2d(4)
        self.after = conv(4, 4)
        self.batch = nn.BatchNorm2d(4)
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 4)
        self.a, self.b = conv(), conv()
        self.b.weight = self.a.weight
        self.own = nn.Parameter(torch.rand(4, 4))
        self.along = nn.Conv1d(4, 4, 1)
        self.tail = conv(4, 1, bias=False)

    def forward(self, x_u: Tensor, operator: object = None, maps: object = None) -> Tensor:
        x = F.max_pool2d(F.leaky_relu(self.down(F.leaky_relu(self.head(input=x_u), 0.2))), 1)
        x = self.norm(self.wide(F.relu(self.up(x))))
        x = F.relu(self.batch(self.after(x)))
        x = self.second(F.leaky_relu(self.first(x.movedim(1, -1)))).movedim(-1, 1)
        x = self.b(F.relu(self.a(x)))
        x = torch.einsum("bchw,cd->bdhw", x, self.own * 2)
        x = x + self.along(x.flatten(2)).unflatten(2, x.shape[2:])
        return x_u + self.tail(x)


class Mapped(Network):
    """Layers of every kind, each of which alone reads what the one before it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.spec, self.form = PRESETS["vdsr-7"], Form.PROJECTION
        self.head, self.narrow, self.deep = conv(1), conv(4, 2), conv(2, 6)
        self.up, self.wide = nn.ConvTranspose2d(6, 5, 2, stride=2), conv(5, 4, stride=2)
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 4)
        self.tail = conv(4, 1)

    def forward(self, x_u: Tensor, operator: object = None, maps: object = None) -> Tensor:
        x = F.leaky_relu(self.narrow(F.relu(self.head(x_u))), 0.2)
        x = F.relu(self.wide(F.relu(self.up(F.relu(self.deep(x))))))
        x = self.second(F.relu(self.first(x.movedim(1, -1)))).movedim(-1, 1)
        return x_u + self.tail(x)


@pytest.mark.parametrize("made", [Plain, Mixed, Mapped])
@pytest.mark.parametrize("unsigned", [True, False])
def test_factors_of_channels_become_a_part_of_the_weights(
    made: type[Network], unsigned: bool
) -> None:
    torch.manual_seed(1)
    network = made().eval()
    x_u, maxima = calibrated(network)
    ranges = equalise(network, maxima)
    before = network(x_u)
    add_fake_quantisation(network, ranges, unsigned=unsigned, factors=True)
    readers = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, FakeQuantLayer) and module.log_factors is not None
    }
    assert (
        set(readers)
        == {
            Plain: {"head.2", "tail"},
            Mixed: {"wide"},
            Mapped: {"narrow", "up", "wide", "second"},
        }[made]
    )
    with torch.no_grad():
        for module in readers.values():
            module.log_factors += 0.01 * torch.randn(module.log_factors.shape)
    with_factors = network(x_u)
    learned = remove_fake_quantisation(network)
    torch.testing.assert_close(network(x_u), before)
    add_fake_quantisation(network, learned, unsigned=unsigned)
    gap = (network(x_u) - with_factors).abs()
    # a value on the edge between two integers may fall to either side
    assert gap.quantile(0.9) <= 1e-5 * before.abs().max()
    assert gap.max() < (with_factors - before).abs().max()


def test_rows_of_an_image_are_no_channels() -> None:
    """What a Linear reads along the last axis is the width of what a convolution writes."""
    network = nn.Sequential(conv(1, 16), nn.ReLU(), nn.Linear(16, 16))

    class Rows(Network):
        def __init__(self) -> None:
            super().__init__()
            self.spec, self.form, self.all = PRESETS["vdsr-7"], Form.PROJECTION, network

        def forward(self, x_u: Tensor, operator: object = None, maps: object = None) -> Tensor:
            made: Tensor = self.all(x_u[..., :16, :16])
            return made

    rows = Rows().eval()
    x_u, maxima = calibrated(rows)
    before = rows(x_u)
    equalise(rows, maxima)
    torch.testing.assert_close(rows(x_u), before)


@pytest.mark.parametrize("name", ["up", "first"])
def test_only_convolutions_read_in_two_parts(name: str) -> None:
    network = Mapped().eval()
    assert layers_in_parts(network, Qat(fine_layers=("wide",))) == ["wide"]
    with pytest.raises(RecipeError, match=f"names {name}, and only convolutions"):
        layers_in_parts(network, Qat(fine_layers=(name,)))
    with pytest.raises(CheckpointError, match=f"'{name}:parts' is no number of channels"):
        check_magnitudes(network, maxima={}, ranges={name: 1.0, f"{name}:parts": 1.0})
    check_magnitudes(network, maxima={}, ranges={"wide": 1.0, "wide:parts": 5.0})
    ranges = dict.fromkeys(("wide", "deep", name), 1.0)
    told = in_two_parts(network, ranges, unsigned=True, also=[*ranges])
    assert told == {"wide:parts": 5, "wide:below": 0, "deep:parts": 2}


def test_groups_do_not_read_in_two_parts() -> None:
    network = Mapped().eval()
    network.deep = nn.Conv2d(2, 6, 3, padding=1, groups=2)
    with pytest.raises(RecipeError, match="names deep, and only convolutions of one group"):
        layers_in_parts(network, Qat(fine_layers=("deep",)))
    with pytest.raises(CheckpointError, match="'deep:parts' is no number of channels"):
        check_magnitudes(network, maxima={}, ranges={"deep": 1.0, "deep:parts": 1.0})


def test_a_weight_that_is_computed_is_not_rounded_nor_in_two_parts() -> None:
    network = Mapped().eval()
    nn.utils.parametrizations.weight_norm(network.wide)
    with pytest.raises(RecipeError, match="names wide, which stays in float32"):
        layers_in_parts(network, Qat(fine_layers=("wide",)))


def test_what_is_equalised_reaches_as_far_below_zero_as_it_does_then() -> None:
    """A convolution of two channels is taken to read an image; here they are hidden ones."""
    torch.manual_seed(1)
    network = Mapped().eval()
    _, maxima = calibrated(network)
    assert "deep:below" in maxima
    after = equalise(network, maxima)
    assert "deep:below" not in after
    assert "head:below" in after


def test_every_kind_of_layer_is_described_and_what_is_none_is_named() -> None:
    network = Mixed().eval()
    found = network.structure()
    assert [one.name for one in found.layers] == [
        "head", "down", "up", "wide", "after", "first", "second", "a", "b", "tail"
    ]  # fmt: skip
    said = {one.name: one for one in found.layers}
    assert {name: one.follows for name, one in said.items() if one.follows} == {
        "wide": "up", "b": "a"
    }  # fmt: skip
    # through leaky ReLUs and poolings, but not through a normalisation
    assert {name: one.scales_with for name, one in said.items() if one.scales_with} == {
        "down": "head", "up": "down", "second": "first"
    }  # fmt: skip
    assert {name for name, one in said.items() if one.tied} == {"a", "b"}
    assert found.normalised == {"batch": "after"}
    einsum, along = found.functional
    assert einsum.startswith("einsum in line ")
    assert einsum.endswith(" of test_layers.py")
    assert along == "Conv1d 'along'"


def test_no_kind_of_layer_changes_in_float_when_it_is_equalised() -> None:
    torch.manual_seed(1)
    network = Mixed().eval()
    x_u, maxima = calibrated(network)
    widths = {name: len(values) for name, values in maxima.items()}
    assert widths["up"] == 4
    assert widths["first"] == 4
    assert widths["second"] == 8
    before, weights = network(x_u), copy.deepcopy(network.state_dict())
    after = equalise(network, maxima)
    torch.testing.assert_close(network(x_u), before, rtol=1e-4, atol=1e-5)
    changed = {k.partition(".")[0] for k, v in network.state_dict().items()
               if not torch.equal(v, weights[k])}  # fmt: skip
    assert changed == {"head", "down", "up", "wide", "first", "second"}
    _, seen = calibrated(network)
    for name in changed:
        assert after[name] == pytest.approx(max(seen[name]), rel=1e-3)


def test_every_kind_of_layer_is_rounded_but_one_whose_weight_two_have() -> None:
    torch.manual_seed(1)
    network = Mixed().eval()
    x_u, maxima = calibrated(network)
    before = network(x_u).detach()
    ranges = {name: max(values) for name, values in maxima.items()}
    add_fake_quantisation(network, ranges, unsigned=True)
    rounded = {n: m for n, m in network.named_modules() if isinstance(m, FakeQuantLayer)}
    assert set(rounded) == {layer_of(key) for key in maxima} - {"a", "b"}
    steps = {name: one.rounded_weight().detach() for name, one in rounded.items()}
    assert all(torch.isfinite(one).all() for one in steps.values())
    # a scale for each pixel of a block, else for each channel that is written
    assert len(torch.unique(steps["up"].abs().amax(0))) == 5 * 4
    made = network(x_u)
    assert 0 < (made - before).abs().max() < 0.05 * before.abs().max()
    made.square().mean().backward()
    assert all(torch.isfinite(one.log_range.grad) for one in rounded.values())
    remove_fake_quantisation(network)
    torch.testing.assert_close(network(x_u), before)


def test_a_module_is_replaced_wherever_it_is_held() -> None:
    network = nn.Module()
    network.one = network.two = conv()
    replace_module(network, "one", nn.Identity())
    assert network.one is network.two


def test_a_weight_that_is_computed_is_not_rounded_as_if_it_stayed() -> None:
    network = Plain().eval()
    nn.utils.parametrizations.weight_norm(network.wide)
    x_u, maxima = calibrated(network)
    before = network(x_u)
    equalise(network, maxima)
    torch.testing.assert_close(network(x_u), before)
