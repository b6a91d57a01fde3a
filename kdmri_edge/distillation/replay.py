"""Training steps that a GPU replays.

A step of these small networks is some thousand short kernels, and to launch them one by one takes
several times as long as they run. Recorded once as a CUDA graph they are launched together. What is
recorded reads and writes fixed memory, so each step's batch is copied to where the recorded one
lay; kinds of steps that differ (strips or whole slices, with imitation or without) are recorded
apart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["CudaRecorder", "Record", "Replayed"]

Result = tuple[Tensor, ...]


class Record(Protocol):
    """Turns work into something that does it again, without doing it now."""

    def __call__(self, work: Callable[[], Result]) -> Callable[[], Result]:
        """Record it."""

    def running(self) -> AbstractContextManager[None]:
        """Return the context in which the work must run before it is recorded too."""


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
        work: Takes the tensors, on the device, and the kind; what it does must depend on these
            alone, without waiting for the device.
        record: What records it.
        device: Where it happens.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Tensor], Hashable], Result],
        record: Record,
        device: torch.device,
    ) -> None:
        self._work, self._record, self._device = work, record, device
        self._kinds: dict[Hashable, _Kind] = {}

    def __call__(self, inputs: Sequence[Tensor], kind: Hashable) -> Result:
        """Do the work.

        Args:
            inputs: Tensors of any device.
            kind: What the work depends on beside them; their shapes are added to it.

        Returns:
            Its results; overwritten by the next call of the same kind.
        """
        with self._record.running():
            return self._done(inputs, kind)

    def _done(self, inputs: Sequence[Tensor], kind: Hashable) -> Result:
        known = self._kinds.setdefault((kind, *(t.shape for t in inputs)), _Kind())
        if known.replay is not None:
            for recorded, fresh in zip(known.inputs, inputs, strict=True):
                recorded.copy_(fresh)
            return known.replay()
        known.seen += 1
        placed = [t.to(self._device, copy=True) for t in inputs]
        if known.seen <= _BEFORE:
            return self._work(placed, kind)
        known.inputs = placed
        known.replay = self._record(lambda: self._work(placed, kind))
        return known.replay()

    def forget(self) -> None:
        """Let go of what is recorded: it holds memory of the device."""
        self._kinds.clear()


class CudaRecorder:
    """Records work on a CUDA device as graphs, which share their memory.

    Work runs on a stream of its own from the beginning: autograd keeps to the stream on which it
    first met a weight, and a recording cannot wait for another.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, work: Callable[[], Result]) -> Callable[[], Result]:
        """Record it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            result = work()

        def replay() -> Result:
            graph.replay()
            return result

        return replay

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run what is inside on the recorder's stream, after all that was queued before."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream().wait_stream(self._stream)
