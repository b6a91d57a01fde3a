"""A trained network as somebody without this project would run it: torch.fft, exported plainly."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from kdmri_edge.models.checkpoint import load_reconstructor
from kdmri_edge.models.dccnn import DCCNN
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.models.specs import ModelSpec
from kdmri_edge.physics.consistency import apply_fft
from kdmri_edge.physics.operators import Form
from kdmri_edge.runtime.backends.onnxruntime import OnnxRuntimeSession
from kdmri_edge.runtime.backends.openvino import OpenVinoSession
from kdmri_edge.runtime.backends.pytorch import EagerSession
from kdmri_edge.runtime.session import Session
from kdmri_export.targets.onnx import OPSET, quiet

__all__ = ["open_peer", "plain_network", "write_onnx"]


class _PlainDCCNN(DCCNN):
    """The network with data consistency as published code has it: torch.fft over both axes."""

    def consistent(
        self, x: Tensor, x_u: Tensor, operator: Tensor, maps: Tensor | None = None
    ) -> Tensor:
        """Put the acquired samples into an image; see `DCCNN.consistent`."""
        return apply_fft(x, x_u, operator, self.gain)


def _made_plain(reconstructor: Reconstructor, matrix: int) -> None:
    reconstructor.operator = reconstructor.operator.expand(matrix, matrix).contiguous()
    plain = _PlainDCCNN(cast(ModelSpec, reconstructor.spec))
    plain.load_state_dict(reconstructor.model.state_dict())
    plain.form = reconstructor.form
    reconstructor.model = plain.to(reconstructor.operator.device).eval()


def plain_network(checkpoint: Path, matrix: int) -> Reconstructor:
    """Load a network with data consistency in plain PyTorch.

    Raises:
        CheckpointError: missing or damaged file.
    """
    reconstructor = load_reconstructor(checkpoint, Form.FFT)
    _made_plain(reconstructor, matrix)
    return reconstructor


def write_onnx(checkpoint: Path, matrix: int, graph: Path) -> None:
    """Export as PyTorch's documentation does: one call of `torch.onnx.export`.

    The opset alone is not the exporter's default, to be fair to the peer: with that one OpenVINO
    transforms along another axis, without a word, and its images are wrong (`to_onnx.OPSET`).

    Raises:
        Exception: whatever the exporter raises.
    """
    network = plain_network(checkpoint, matrix)
    example = torch.zeros(1, network.spec.channels, matrix, matrix)
    with quiet(), torch.no_grad():
        torch.onnx.export(
            network,
            (example,),
            graph,
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )


class _CompiledPeer(EagerSession):
    """`torch.compile(network)` in PyTorch's default layout."""

    def __init__(self, checkpoint: Path, *, matrix: int, threads: int | None) -> None:
        super().__init__(
            checkpoint, threads=threads, layout="default", form=Form.FFT, mode="compile"
        )
        assert isinstance(self._model, Reconstructor)
        _made_plain(self._model, matrix)


def open_peer(
    source: Path,
    *,
    backend: str | None = None,
    precision: str = "f32",
    threads: int | None = None,
    **options: Any,
) -> Session:
    """Open what `write_onnx` wrote, or a checkpoint under torch.compile.

    Args:
        source: the graph or the checkpoint.
        backend: "onnxruntime" or "openvino" for a graph.
        precision: for OpenVINO.
        threads: CPU threads.
        **options: `matrix` for a checkpoint.

    Raises:
        KdmriError: see the sessions.
    """
    if source.suffix != ".onnx":
        return _CompiledPeer(source, matrix=int(options["matrix"]), threads=threads)
    if backend == "openvino":
        return OpenVinoSession(source, precision=precision, threads=threads)
    return OnnxRuntimeSession(source, precision=precision, threads=threads)
