"""How the convolutions of any network are described, and what acts on them by that."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdmri_edge.models.build import build_model
from kdmri_edge.models.convolutions import Convolution, replace_module, traced_convolutions
from kdmri_edge.models.network import Network
from kdmri_edge.models.specs import PRESETS
from kdmri_edge.physics.operators import Form
from kdmri_edge.quantisation.calibration import activation_maxima
from kdmri_edge.quantisation.equalisation import equalise
from kdmri_edge.quantisation.fake_quantisation import (
    FakeQuantConv,
    add_fake_quantisation,
    remove_fake_quantisation,
)


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
    assert traced_convolutions(network, torch.zeros(1, 1, 8, 8)) == [
        Convolution(name="a", rectified=False),
        Convolution(name="b", rectified=True, follows="a"),
        Convolution(name="c", rectified=True, follows="b"),
    ]
    assert network.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("form", list(Form))
def test_tracing_finds_what_the_structure_says(name: str, form: Form) -> None:
    network = build_model(PRESETS[name])
    network.form = form
    described = network.convolutions()
    assert Network.convolutions(network) == described
    convs = [n for n, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    assert [one.name for one in described] == convs


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
    found = {one.name: one for one in traced_convolutions(Odd(way), torch.zeros(1, 1, 8, 8))}
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
    assert Shared().convolutions() == [
        Convolution(name="first", rectified=False),
        Convolution(name="twice", rectified=True),
        Convolution(name="last", rectified=True),
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
    assert list(maxima) == ["head.0", "head.2", "deep", "wide", "tail"]
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
    rounded = {n: m for n, m in network.named_modules() if isinstance(m, FakeQuantConv)}
    assert list(rounded) == list(maxima)
    wanted = {"head.0": "u8c", "deep": "u8", "wide": "s8"} if unsigned else {"head.2": "s8"}
    assert {name: rounded[name].kind for name in wanted} == wanted
    error = (network(x_u) - before).abs().max()
    assert 0 < error < 0.05 * before.abs().max()
    learned = remove_fake_quantisation(network)
    assert learned == pytest.approx(ranges, rel=1e-5)
    torch.testing.assert_close(network(x_u), before)


def test_a_module_is_replaced_by_its_name() -> None:
    network = Plain()
    replace_module(network, "head.2", nn.Identity())
    replace_module(network, "tail", nn.Identity())
    assert isinstance(network.head[2], nn.Identity)
    assert isinstance(network.tail, nn.Identity)
