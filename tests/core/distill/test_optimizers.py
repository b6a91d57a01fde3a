"""Muon: what it makes of a step, and of which parameters."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdmri_edge.distillation.optimizers import Muon, orthogonalised, over
from kdmri_edge.distillation.recipe import Optimizer, load_recipe
from kdmri_edge.errors import RecipeError
from kdmri_edge.models.build import build_model
from kdmri_edge.models.reparameterisation import reparameterise
from kdmri_edge.models.specs import preset

SIZES = st.integers(2, 24)


@given(rows=SIZES, columns=SIZES, seed=st.integers(0, 2**16), scale=st.floats(1e-4, 1e6))
@settings(deadline=None, max_examples=60)
def test_what_is_kept_are_directions_of_about_one_length(
    rows: int, columns: int, seed: int, scale: float
) -> None:
    random = np.random.default_rng(seed)
    least = min(rows, columns)
    u, _ = np.linalg.qr(random.standard_normal((rows, least)))
    v, _ = np.linalg.qr(random.standard_normal((columns, least)))
    lengths = random.uniform(0.05, 1, least)
    given_ = torch.tensor(scale * (u * lengths) @ v.T, dtype=torch.float32)
    made = orthogonalised(given_[None])[0].double().numpy()
    # in the directions of the matrix itself, and in no others
    inner = u.T @ made @ v
    assert np.allclose(u @ inner @ v.T, made, atol=1e-3)
    assert np.allclose(inner, np.diag(np.diag(inner)), atol=2e-3)
    assert (np.diag(inner) > 0.6).all()
    assert (np.diag(inner) < 1.3).all()


def test_matrices_do_not_see_one_another_and_zeros_stay_zeros() -> None:
    torch.manual_seed(3)
    many = torch.randn(3, 4, 9)
    many[1] = 0
    made = orthogonalised(many)
    assert torch.equal(made[1], torch.zeros(4, 9))
    for number in (0, 2):
        assert torch.allclose(made[number], orthogonalised(many[number : number + 1])[0], atol=1e-6)


@pytest.mark.parametrize("scale", [1e-12, 1e-25, 1e-30, 1e-38])
def test_what_is_almost_zero_gives_almost_no_step(scale: float) -> None:
    torch.manual_seed(4)
    small = scale * torch.randn(1, 8, 72)
    made = orthogonalised(small)
    assert torch.isfinite(made).all()
    # the quintic makes at most 485 times as much of what is small
    assert float(made.norm()) <= 500 * 25 * scale / 1e-7


def test_a_layer_without_a_signal_comes_to_rest() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 4, 3, bias=False))
    optimiser = over(network, Optimizer.MUON, 3e-3)
    _with_gradients(network, 0)
    (weight,) = network.parameters()
    places = []
    for step in range(1200):
        optimiser.step()
        weight.grad = torch.zeros_like(weight)
        places.append(weight.detach().clone())
        assert torch.isfinite(places[-1]).all(), step
    assert (
        torch.equal(places[850], places[-1]) or float((places[600] - places[-1]).abs().max()) < 1e-6
    )


def _with_gradients(network: nn.Module, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def test_convolutions_take_the_direction_and_biases_the_step_of_adam() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 3, 3))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    first = over(network, Optimizer.MUON, 0.01)
    momentum = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    expected = {name: p.clone() for name, p in before.items()}
    biases = {name: p for name, p in expected.items() if p.ndim == 1}
    adam = torch.optim.Adam(biases.values(), lr=0.01)
    for seed in range(3):
        gradients = _with_gradients(network, seed)
        first.step()
        for name, own in expected.items():
            gradient = gradients[name]
            if own.ndim == 1:
                own.grad = gradient
                continue
            momentum[name] = 0.95 * momentum[name] + gradient
            flat = (gradient + 0.95 * momentum[name]).flatten(1)
            size = 0.2 * math.sqrt(max(flat.shape))
            own -= 0.01 * size * orthogonalised(flat[None]).view_as(own)
        adam.step()
    for name, parameter in network.named_parameters():
        assert torch.allclose(parameter, expected[name], atol=1e-6), name
        assert not torch.equal(parameter, before[name])


def test_a_step_is_about_as_long_as_adams() -> None:
    torch.manual_seed(0)
    network = build_model(preset("dccnn-edge-half"))
    before = {name: p.detach().clone() for name, p in network.named_parameters() if p.ndim == 4}
    optimiser = over(network, Optimizer.MUON, 0.01)
    _with_gradients(network, 1)
    optimiser.step()
    for name, parameter in network.named_parameters():
        if name in before:
            length = float((parameter.detach() - before[name]).square().mean().sqrt()) / 0.01
            assert 0.05 < length < 0.3, name


def test_branches_are_stacks_of_matrices_but_for_the_identity() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 3))
    reparameterise(network)
    optimiser = over(network, Optimizer.MUON, 0.01)
    _with_gradients(network, 0)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    gradients = _with_gradients(network, 0)
    optimiser.step()
    moved = dict(network.named_parameters())
    stack = "branches.0.spread"  # [G, O * 9, M]: each convolution's own direction
    made = -0.01 * 0.2 * math.sqrt(36) * orthogonalised(1.95 * gradients[stack])
    assert torch.allclose(moved[stack] - before[stack], made, atol=1e-6)
    identity = "branches.0.identity"  # [G, O], as Adam's first step: by the signs
    step = moved[identity] - before[identity]
    assert torch.allclose(step, -0.01 * gradients[identity].sign(), atol=1e-5)


def test_what_is_no_matrix_is_left_to_adam() -> None:
    class Odd(nn.Module):
        """Scales, a row, a table, a complex matrix, and a matrix that two layers share."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1, 6, 1, 1))
            self.number = nn.Parameter(torch.ones(()))
            self.row = nn.Parameter(torch.ones(1, 5))
            self.waves = nn.Parameter(torch.ones(3, 4, dtype=torch.complex64))
            self.norm = nn.LayerNorm([3, 4])
            self.table = nn.Embedding(5, 4)
            self.one = nn.Linear(4, 4, bias=False)
            self.two = nn.Linear(4, 4, bias=False)
            self.two.weight = self.one.weight

    network = Odd()
    optimiser = over(network, Optimizer.MUON, 0.01)
    _with_gradients(network, 5)
    optimiser.step()
    kinds = {
        name: set(optimiser.state[parameter]) for name, parameter in network.named_parameters()
    }
    assert kinds.pop("one.weight") == {"step", "momentum"}
    others = {"norm.weight", "norm.bias", "table.weight"}
    assert set(kinds) == {"scale", "number", "row", "waves", *others}
    assert all("exp_avg" in kind for kind in kinds.values())


def test_parameters_without_a_gradient_stay() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    optimiser = over(network, Optimizer.MUON, 0.01)
    before = network[0].weight.detach().clone()
    network[1].weight.grad = torch.ones_like(network[1].weight)
    optimiser.step()
    assert torch.equal(network[0].weight, before)


def test_adam_is_what_recipes_take_that_say_nothing() -> None:
    network = build_model(preset("dccnn-edge"))
    recipe = load_recipe("kd-mri")
    assert recipe.optim.optimizer is Optimizer.ADAM
    assert not isinstance(over(network, recipe.optim.optimizer, 1e-3), Muon)
    assert load_recipe("kd-mri", ["optim.optimizer=muon"]).optim.optimizer is Optimizer.MUON


def test_an_unknown_optimizer_and_other_words_for_it_are_told() -> None:
    with pytest.raises(RecipeError, match="adam") as caught:
        load_recipe("kd-mri", ["optim.optimizer=sgd"])
    assert "muon" in str(caught.value)
    with pytest.raises(RecipeError, match=r"optim\.optimizer"):
        load_recipe("kd-mri", ["optimizer=muon"])
