"""First weights of a run's networks: the same on every process and after every restart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from kdmri_edge.distillation.recipe import DistillRecipe
from kdmri_edge.distillation.stages import TrainContext
from kdmri_edge.distillation.taps import TapPair, projections
from kdmri_edge.models.build import build_model
from kdmri_edge.models.initialisation import bridge
from kdmri_edge.models.network import Network
from kdmri_edge.models.protocol import NetworkSpec
from kdmri_edge.models.reparameterisation import reparameterise
from kdmri_edge.physics.consistency import maps_tensor
from kdmri_edge.physics.scaling import as_channels
from kdmri_edge.utils.console import progress

__all__ = ["add_branches", "init_from_teacher", "init_model", "init_projections", "seeded"]

# Number of the projections of tapped maps among a run's networks.
_PROJECTIONS = 4

# Slices on which a student's first weights are fitted to its teacher's feature maps.
_SLICES = 16


@contextlib.contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Draw PyTorch's random numbers by a seed, and leave its generators as they were.

    Args:
        seed: From 0 to 2^63 - 1.
        device: A GPU whose generator is meant as well; a CPU adds nothing.
    """
    on_gpu = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.manual_seed(seed)
        yield


def _seeded(run: int, own: int) -> contextlib.AbstractContextManager[None]:
    return seeded(run * 1000 + own)


def init_model(spec: NetworkSpec, run: int, own: int) -> Network:
    """Draw a network.

    Args:
        spec: Its architecture.
        run: Seed of the run.
        own: Number of the network within it.
    """
    with _seeded(run, own):
        return build_model(spec)


def add_branches(network: nn.Module, run: int, own: int) -> None:
    """Give a network branches, in place; their weights are drawn apart from the network's own."""
    with _seeded(run, own):
        reparameterise(network)


def init_projections(pairs: Sequence[TapPair], recipe: DistillRecipe) -> nn.ModuleList:
    """Draw the projections of tapped maps, apart from the networks' weights.

    Args:
        pairs: What is compared.
        recipe: Gives the seed, and how it is compared.
    """
    with _seeded(recipe.seed, _PROJECTIONS):
        return projections(pairs, recipe.distillation.transfer)


def init_from_teacher(student: Network, teacher: Network, context: TrainContext) -> None:
    """Start a student as its teacher, with convolutions fitted in place of the inner ones.

    Args:
        student: The student; it is moved to the run's device.
        teacher: The trained teacher, moved likewise.
        context: Gives training slices, operator, device and seed.
    """
    slices, device = context.slices, context.fabric.device
    numbers = slices.spread(_SLICES)
    x_u = torch.from_numpy(as_channels(slices.zero_filled[numbers])).to(device)
    maps = slices.maps_of(numbers)
    with progress("student: first weights, fitted to the teacher"):
        bridge(
            student.to(device),
            teacher.to(device),
            x_u,
            context.operator,
            None if maps is None else maps_tensor(maps).to(device),
            seed=context.recipe.seed,
        )
