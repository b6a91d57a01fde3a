"""Training steps that a GPU replays.

A step of these small networks is some thousand short kernels, and to launch them one by one takes
several times as long as they run. Recorded once as a CUDA graph they are launched together. What is
recorded reads and writes fixed memory, so each step's batch is copied to where the recorded one
lay; kinds of steps that differ (strips or whole slices, with imitation or without) are recorded
apart.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Record", "Replayed", "cuda_recorder"]

Result = tuple[Tensor, ...]
Record = Callable[[Callable[[], Result]], Callable[[], Result]]
"""Turns work into something that does it again, without doing it now."""

# Steps of a kind that run as they are before it is recorded: optimiser states, workspaces and
# kernels come into being in them.
_BEFORE = 3


@dataclass
class _Kind:
    seen: int = 0
    inputs: list[Tensor] = field(default_factory=list)
    replay: Callable[[], Result] | None = None


class Replayed:
    """Work on tensors that is recorded after its first few runs.

    Args:
        work: Takes the tensors; what it does must depend on them and on the kind alone, without
            waiting for the device.
        record: What records it.
    """

    def __init__(self, work: Callable[[Sequence[Tensor]], Result], record: Record) -> None:
        self._work, self._record = work, record
        self._kinds: dict[Hashable, _Kind] = {}

    def __call__(self, inputs: Sequence[Tensor], kind: Hashable) -> Result:
        """Do the work.

        Args:
            inputs: Tensors of any device; from the first recording on they are only copied.
            kind: What the work depends on beside them; their shapes are added to it.

        Returns:
            Its results; overwritten by the next call of the same kind.
        """
        known = self._kinds.setdefault((kind, *(t.shape for t in inputs)), _Kind())
        if known.replay is None:
            known.seen += 1
            if known.seen <= _BEFORE:
                return self._work(inputs)
            known.inputs = [t.clone() for t in inputs]
            known.replay = self._record(lambda: self._work(known.inputs))
        else:
            for mine, given in zip(known.inputs, inputs, strict=True):
                mine.copy_(given)
        return known.replay()


def cuda_recorder() -> Record:
    """Return what records work on the current CUDA device as a graph."""

    def record(work: Callable[[], Result]) -> Callable[[], Result]:
        graph = torch.cuda.CUDAGraph()
        # Other threads of the process may use the device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = work()

        def replay() -> Result:
            graph.replay()
            return result

        return replay

    return record
