"""From a specification to a torch module."""

from __future__ import annotations

from kdmri_edge.models.network import Network, as_network
from kdmri_edge.models.protocol import NetworkSpec
from kdmri_edge.models.specs import NETWORKS
from kdmri_edge.utils.extras import load_attribute

__all__ = ["Network", "build_model"]


def build_model(spec: NetworkSpec) -> Network:
    """Return a network of any family, with freshly drawn weights.

    Raises:
        ModelError: Its family is not installed, or builds something else than networks.
    """
    build = load_attribute(NETWORKS.named(spec.kind).build)
    return as_network(build(spec), spec)
