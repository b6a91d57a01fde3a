"""Replaying a network's kernels as one CUDA graph (PyTorch)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["CudaGraph"]

_WARM_UP = 3  # cuDNN and the allocator settle before the recording, as PyTorch's notes ask


_Recorded = tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]


class CudaGraph:
    """A function of one CUDA tensor, recorded at the first call with each shape.

    Args:
        function: What is recorded; its output lies where it lay before after each replay.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._recorded: dict[tuple[torch.Size, ...], _Recorded] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the output for `inputs`, valid until the next call."""
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in self._recorded:
            self._recorded[shapes] = self._record([tensor.clone() for tensor in inputs])
        graph, given, output = self._recorded[shapes]
        for own, tensor in zip(given, inputs, strict=True):
            own.copy_(tensor)
        graph.replay()
        return output

    def _record(self, given: list[Tensor]) -> _Recorded:
        aside: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                self._function(*given)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self._function(*given)
        return graph, given, output
