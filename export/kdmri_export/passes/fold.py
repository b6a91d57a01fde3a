"""Weights that are computed from others, before anything is rounded: folded into plain ones."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights

from kdmri_edge.models.layers import replace_module
from kdmri_edge.models.network import Network

__all__ = ["fold_batch_normalisations", "fold_parametrizations"]


def fold_parametrizations(network: nn.Module) -> None:
    """Replace weights that are parametrized (weight or spectral normalisation) by their values."""
    for module in list(network.modules()):
        if not parametrize.is_parametrized(module):
            continue
        names = list(cast(Any, module).parametrizations)
        values = {name: getattr(module, name).detach().clone() for name in names}
        # PyTorch's own way back changes the class, which copies of the network share
        module.__class__ = type(module).__bases__[0]
        del module._modules["parametrizations"]
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value))


def fold_batch_normalisations(network: Network) -> None:
    """Fold batch normalisations into the layers that they alone read, in place.

    In evaluation they multiply and shift channels by constants. A layer then hands its results to
    the next one, as integer kernels and equalisation want it; a rounded weight and its step grow by
    the same factor, so that a network that was trained with rounding stays what it was.
    """
    for name, before in network.structure().normalised.items():
        normalisation = cast(nn.BatchNorm2d, network.get_submodule(name))
        layer = cast(nn.Conv2d | nn.ConvTranspose2d, network.get_submodule(before))
        with torch.no_grad():
            layer.weight, layer.bias = fuse_conv_bn_weights(
                layer.weight,
                layer.bias,
                cast(torch.Tensor, normalisation.running_mean),
                cast(torch.Tensor, normalisation.running_var),
                normalisation.eps,
                normalisation.weight,
                normalisation.bias,
                transpose=isinstance(layer, nn.ConvTranspose2d),
            )
        replace_module(network, name, nn.Identity())
