"""Data consistency while a graph is traced: spelled out, or kept as one node.

A network calls the registered operators `kdmri::data_consistency` and `kdmri::sense_consistency`
(`kdmri_edge.physics.consistency`), which no runtime knows. While `Lowering` is active, calls of
them are replaced, whatever module they come from:

- by plain aten operations. TorchScript takes them as they are, so that libtorch alone can run the
  graph. The ONNX exporter turns them into MatMul nodes (projection and DFT-matmul forms) or DFT
  nodes (the FFT form, which is what an export without this project gives);
- for `--keep-op`, by the one ONNX node that `passes.onnx_function` describes.

Torch-TensorRT has a table of its own for this, see `targets.tensorrt.torch_operators`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kdmri_edge.errors import ExportError
from kdmri_edge.physics.consistency import FORMULAS, SENSE_FORMULAS, Matrices
from kdmri_edge.physics.operators import Form
from kdmri_export.passes.onnx_function import node

__all__ = ["Lowering"]


class Lowering(TorchFunctionMode):
    """Replaces calls of this project's operators; a context for what traces a network.

    Args:
        keep: Make one ONNX node of each, instead of spelling it out.

    Attributes:
        calls: Form and gain of each call, in order.
        transforms: DFT matrices [2, n, n] along H and along W that the graph is given, for graphs
            of any matrix, which hold none of their own; empty for others.
    """

    def __init__(self, *, keep: bool = False) -> None:
        super().__init__()
        self.keep = keep
        self.calls: list[tuple[Form, float]] = []
        self.transforms: Sequence[Tensor] = ()
        self._replaced: dict[Any, Callable[..., Tensor]] = {
            torch.ops.kdmri.data_consistency: self._image,
            torch.ops.kdmri.sense_consistency: self._coils,
        }

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        replaced = self._replaced.get(getattr(func, "overloadpacket", func))
        return (replaced or func)(*args, **(kwargs or {}))

    def _image(self, x: Tensor, x_u: Tensor, operator: Tensor, gain: float, form: str) -> Tensor:
        self.calls.append((Form(form), gain))
        if self.keep:
            return node(x, x_u, operator, gain, form)
        return FORMULAS[Form(form)](x, x_u, operator, gain, *self._matrices(form))

    def _coils(
        self, x: Tensor, x_u: Tensor, maps: Tensor, operator: Tensor, gain: float, form: str
    ) -> Tensor:
        if self.keep:
            raise ExportError(
                "Networks that combine coils have no node for data consistency.",
                "Leave --keep-op out: its operators are then written out.",
            )
        self.calls.append((Form(form), gain))
        return SENSE_FORMULAS[Form(form)](x, x_u, maps, operator, gain, *self._matrices(form))

    def _matrices(self, form: str) -> list[Matrices]:
        """Return what makes the DFT matrices, where the graph is given them."""

        def given(pair: Tensor) -> Matrices:
            return lambda *_: (pair[0], pair[1])

        return [given(pair) for pair in self.transforms] if form == Form.DFT else []

    def only_call(self) -> tuple[Form, float]:
        """Return the form and gain that all calls have in common.

        Raises:
            ExportError: There was no call, or the calls differ: one node could not mean them all.
        """
        found = set(self.calls)
        if len(found) != 1:
            kinds = "no" if not found else f"{len(found)} kinds of"
            raise ExportError(
                f"The network has {kinds} data consistency, and one node is to stand for it.",
                "Leave --keep-op out: its operators are then written out.",
            )
        return found.pop()
