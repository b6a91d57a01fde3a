"""A server in a process of its own, and what the soak and the streaming benchmark send it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import psutil
from ismrmrd import Acquisition

from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.scan import Scan
from kdmri_edge.errors import BenchError
from kdmri_edge.mrd.format.emit import readouts
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.masks import Mask, variable_density_lines

__all__ = ["NETWORK", "ServerProcess", "coil_scan", "make_bundle", "repeated"]

NETWORK: Final = "dccnn-d3c5"
_PATIENCE_S: Final = 120.0


def make_bundle(
    folder: Path,
    matrix: int,
    *,
    target: str = "onnx",
    network: str = NETWORK,
    centre: int | None = None,
) -> Path:
    """Export a network for a line mask of a matrix.

    Args:
        folder: Where checkpoint and bundle go.
        matrix: Side of the slices.
        target: Of the export.
        network: An architecture, untrained, since weights change neither time nor memory; or a
            trained network of the package, of whatever matrix.
        centre: Lines around zero frequency that are sampled without a gap.

    Raises:
        KdmriError: It cannot be exported.
    """
    import torch

    from kdmri_edge.models.build import build_model
    from kdmri_edge.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from kdmri_edge.models.shipped import is_reference, resolve_weights
    from kdmri_edge.models.specs import preset
    from kdmri_export.export import export_model
    from kdmri_export.recipe import ExportRecipe

    centre = centre or max(4, min(10, matrix // 8))
    spec = preset(network.partition("@")[0])
    if is_reference(network):
        state = load_checkpoint(resolve_weights(Path(network))).state
    else:
        torch.manual_seed(0)
        state = build_model(spec).state_dict()
    checkpoint = folder / "student.safetensors"
    save_checkpoint(
        checkpoint,
        Checkpoint(
            spec=spec,
            mask=variable_density_lines(matrix, 4.0, centre_lines=centre, seed=0),
            matrix=matrix,
            role="student",
            training={},
            state=state,
        ),
    )
    return export_model(checkpoint, ExportRecipe(target=target), folder / "bundle").path


def coil_scan(mask: Mask, matrix: int, *, slices: int, coils: int) -> Scan:
    """Return a phantom seen by coils around it, sampled with a mask."""
    images = phantom_volume(0, slices=slices, matrix=matrix).image
    h, w = np.meshgrid(*2 * [np.linspace(-1.0, 1.0, matrix)], indexing="ij")
    angle = 2 * np.pi * np.arange(coils)[:, None, None] / coils
    fall = np.exp(-0.5 * ((h - np.sin(angle)) ** 2 + (w - np.cos(angle)) ** 2))
    maps = (fall * np.exp(1j * (angle + 0.3 * w))).astype(np.complex64)
    kspace = np.stack([image_to_kspace(image * maps) for image in images])
    kspace = kspace * mask.samples.reshape(matrix, -1)
    return Scan(kspace=kspace.astype(np.complex64), mask=mask, name="phantom", subject="phantom")


def repeated(scan: Scan, slices: int) -> Iterator[Acquisition]:
    """Yield the readouts of a scan of so many slices, which are those of `scan` over and over."""
    count = len(scan.kspace)
    once = list(readouts(scan))
    per_slice = len(once) // count
    for number in range(slices):
        base = (number % count) * per_slice
        for line in once[base : base + per_slice]:
            copy = Acquisition(line.getHead(), line.data)
            copy.idx.slice = number
            yield copy


class ServerProcess:
    """`kdmri-edge serve` in a process of its own, at a free port of this machine.

    Args:
        bundle: What it serves.
        *options: More options of `serve`.

    Attributes:
        port: Where it listens.

    Raises:
        BenchError: It does not start.
    """

    def __init__(self, bundle: Path, *options: str) -> None:
        self._log = tempfile.TemporaryFile("a+")  # noqa: SIM115 - closed in __exit__
        command = [sys.executable, "-m", "kdmri_edge", "serve", str(bundle), "--port", "0"]
        self._process = subprocess.Popen(
            [*command, *options], stdout=subprocess.DEVNULL, stderr=self._log
        )
        self.port = self._listening()

    def _listening(self) -> int:
        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until and self._process.poll() is None:
            for event in self.events():
                if event["event"] == "listening":
                    return int(str(event["port"]))
            time.sleep(0.05)
        self._process.kill()
        self._log.seek(0)
        raise BenchError(f"The server did not start: {self._log.read()[-300:]}", "Run it by hand.")

    def events(self) -> list[dict[str, object]]:
        """Return what it has logged so far."""
        self._log.seek(0)
        lines = self._log.read().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def resident(self) -> int:
        """Return its resident set in bytes."""
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def sessions(self, count: int) -> list[dict[str, object]]:
        """Wait until so many sessions have ended, and return their log lines.

        Raises:
            BenchError: They do not.
        """
        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until:
            ended = [event for event in self.events() if event["event"] == "session"]
            if len(ended) >= count:
                return ended
            time.sleep(0.05)
        raise BenchError(f"Not all of {count} sessions ended.", "A session hangs: look at its log.")

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(_PATIENCE_S)
        finally:
            self._process.kill()
            self._log.close()
