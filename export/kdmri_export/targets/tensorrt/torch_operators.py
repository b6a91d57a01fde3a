"""What data consistency means to Torch-TensorRT.

Torch-TensorRT has no converter for the custom operators `kdmri::data_consistency` and
`kdmri::sense_consistency`, so each of them would end one engine and begin another, with PyTorch in
between. `register` puts their meaning into its table of decompositions (its guide, "Lowering
phase"), by which it spells out operators before it looks for converters: products of matrices, all
of which it converts. This is the one place for that target; whoever compiles a network of this
project by himself calls it first:

    from kdmri_export.targets.tensorrt.torch_operators import register
    register()
    torch_tensorrt.dynamo.compile(torch.export.export(network, (x_u,)), ...)

Written against the sources of Torch-TensorRT 2.8 to 2.13; tested with a stand-in for it that lowers
and folds with PyTorch itself. It has not run on a GPU.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from kdmri_edge.errors import BackendError
from kdmri_edge.physics import consistency
from kdmri_edge.physics import consistency as sense
from kdmri_edge.physics.operators import Form
from kdmri_edge.utils.extras import require_torch_tensorrt

__all__ = ["decompositions", "kept", "register"]

_NAMESPACE = "kdmri"


def _matrices(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Make the DFT matrices out of operators: a decomposition cannot bring constants along.

    Torch-TensorRT folds them into constants before it converts anything, in float64 as
    `physics.fourier.dft_matrices` does.
    """
    n = int(n)
    index = torch.arange(n, device=device)
    angle = torch.remainder(index[:, None] * index, n).double() * (2 * math.pi / n)
    scale = 1 / math.sqrt(n)
    return (scale * angle.cos()).to(dtype), (scale * angle.sin()).to(dtype)


def _consistency(x: Tensor, x_u: Tensor, operator: Tensor, gain: float, form: str) -> Tensor:
    if form == Form.PROJECTION:
        return consistency.apply_projection(x, x_u, operator, gain)
    # The FFT form has the same operator, the mask; TensorRT has neither FFT nor complex numbers.
    return consistency.apply_dft(x, x_u, operator, gain, _matrices)


def _sense(
    x: Tensor, x_u: Tensor, maps: Tensor, operator: Tensor, gain: float, form: str
) -> Tensor:
    if form == Form.PROJECTION:
        return sense.sense_projection(x, x_u, maps, operator, gain)
    return sense.sense_dft(x, x_u, maps, operator, gain, _matrices)


def decompositions() -> dict[Any, Callable[..., Tensor]]:
    """Return the meaning of this project's operators, as `torch.export` takes it."""
    ours = torch.ops.kdmri
    return {
        ours.data_consistency.default: _consistency,
        ours.sense_consistency.default: _sense,
    }


def register() -> None:
    """Tell Torch-TensorRT what data consistency means; doing so twice changes nothing.

    Raises:
        BackendError: torch_tensorrt is not installed, or has no table of decompositions where it
            used to be.
    """
    require_torch_tensorrt()
    try:
        table = importlib.import_module("torch_tensorrt.dynamo.lowering").TORCH_TRT_DECOMPOSITIONS
    except (ModuleNotFoundError, AttributeError) as error:
        raise BackendError(
            f"This torch_tensorrt has no table of decompositions ({error}).",
            "Install one of 2.8 to 2.13.",
        ) from error
    table.update(decompositions())


def kept(compiled: nn.Module) -> list[str]:
    """Name the nodes of a compiled network that still are this project's operators."""
    return [
        node.name
        for module in compiled.modules()
        if isinstance(module, GraphModule)
        for node in module.graph.nodes
        if getattr(node.target, "namespace", None) == _NAMESPACE
    ]
