"""Data consistency as one node of an ONNX graph, with its meaning beside it.

The node is `kdmri::DataConsistency(x, x_u, operator)`. Its body is a model-local function of
standard operators, made from the same formula as every other form, so ONNX Runtime
need not know it, and `onnx.inliner.inline_local_functions` spells it out. OpenVINO reads no such
functions: `runtime.backends.openvino_extension` tells it what the node means.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdmri_edge.physics.consistency import FORMULAS
from kdmri_edge.physics.operators import Form
from kdmri_edge.runtime.backends.openvino_extension import NODE
from kdmri_edge.utils.extras import require

__all__ = ["INPUTS", "Formula", "add_function", "node"]

INPUTS = ("x", "x_u", "operator")
_VERSION = 1
_ATTRIBUTES = ("form", "gain")


def node(x: Tensor, x_u: Tensor, operator: Tensor, gain: float, form: str) -> Tensor:
    """Return what the ONNX exporter writes as the node; the arguments of the operator."""
    made: Tensor = torch.onnx.ops.symbolic(
        "::".join(NODE),
        (x, x_u, operator),
        dict(zip(_ATTRIBUTES, (form, gain), strict=True)),
        dtype=x.dtype,
        shape=x.shape,
        version=_VERSION,
    )
    return made


class Formula(nn.Module):
    """Data consistency alone, for the function's body.

    Args:
        form: Form of data consistency.
        gain: g = lambda / (1 + lambda).
    """

    def __init__(self, form: Form, gain: float) -> None:
        super().__init__()
        self.formula, self.gain = FORMULAS[form], gain

    def forward(self, x: Tensor, x_u: Tensor, operator: Tensor) -> Tensor:
        """Compute x + g (x_u - P x)."""
        return self.formula(x, x_u, operator, self.gain)


def add_function(model: Any, body: Any) -> None:
    """Put the meaning of the node into a graph, in place.

    Args:
        model: An `onnx.ModelProto` with such nodes.
        body: The exported `Formula`, an `onnx.ModelProto` whose inputs are called `INPUTS`.
    """
    onnx = require("onnx", extra="onnx")
    # A function has no initialisers: what is constant in it has to be a node.
    constants = [
        onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)
        for tensor in body.graph.initializer
    ]
    opsets = [entry for entry in body.opset_import if entry.domain == ""]
    model.functions.append(
        onnx.helper.make_function(
            *NODE,
            INPUTS,
            [body.graph.output[0].name],
            [*constants, *body.graph.node],
            opsets,
            attributes=_ATTRIBUTES,
        )
    )
