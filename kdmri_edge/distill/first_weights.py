"""First weights of a run's networks: the same on every process and after every restart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from kdmri_edge.models.branches import expand
from kdmri_edge.models.build import Network, build_model
from kdmri_edge.models.spec import ModelSpec

__all__ = ["branched", "drawn"]


@contextlib.contextmanager
def _seeded(run: int, own: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run * 1000 + own)
        yield


def drawn(spec: ModelSpec, run: int, own: int) -> Network:
    """Draw a network.

    Args:
        spec: Its architecture.
        run: Seed of the run.
        own: Number of the network within it.
    """
    with _seeded(run, own):
        return build_model(spec)


def branched(network: nn.Module, run: int, own: int) -> None:
    """Give a network branches, in place; their weights are drawn apart from the network's own."""
    with _seeded(run, own):
        expand(network)
