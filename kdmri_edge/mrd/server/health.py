"""Whether a server makes images: a phantom's slice goes the way of a scan's, and is compared.

Its readouts are serialised and read again, assembled and reconstructed in the same line as the
scans' slices, one at a time and seldom; it takes no scan's place. The first image of a network is
what later ones are compared with, so that a network that computes something else is found out.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.simulation import coil_maps
from kdmri_edge.errors import KdmriError
from kdmri_edge.models.protocol import reads_coils
from kdmri_edge.mrd.format.assembler import Assembler
from kdmri_edge.mrd.format.emit import encoding_of, readouts
from kdmri_edge.mrd.format.images import ImageMaker
from kdmri_edge.mrd.format.messages import serialise
from kdmri_edge.mrd.format.parser import Parser
from kdmri_edge.mrd.server.networks import Chooser
from kdmri_edge.mrd.server.telemetry import log_defect, log_event
from kdmri_edge.mrd.server.worker import Worker
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.runtime.causes import Cause
from kdmri_edge.runtime.inputs import InputSpec

__all__ = ["Health", "HealthReport"]

_FRESH_S: Final = 10.0  # for so long an answer stands
_WAIT_S: Final = 30.0  # for the line of slices to move on; a network may have to be loaded
_COILS: Final = 4
_EQUAL: Final = 1e-3  # of the maximum: between two runs of one network


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthReport:
    """What a check found.

    Attributes:
        healthy: Whether scans get their images.
        status: "ok", "busy" (scans' slices are being reconstructed), or what is wrong.
        facts: What else there is to say.
    """

    healthy: bool
    status: str
    facts: dict[str, object] = field(default_factory=dict)


class Health:
    """Checks a server.

    Args:
        networks: What it holds.
        worker: Runs the networks.
        stopping: Whether it takes scans no more.
    """

    def __init__(
        self, networks: Chooser, worker: Worker, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self._networks, self._worker, self._stopping = networks, worker, stopping
        self._lock = threading.Lock()
        self._last: tuple[float, HealthReport] | None = None
        self._known: list[tuple[object, NDArray[Any]]] = []  # the last network's image

    def check(self) -> HealthReport:
        """Reconstruct, or return what was found a moment ago."""
        if self._stopping():
            return HealthReport(healthy=False, status="stopping")
        with self._lock:  # whoever asks meanwhile gets the same answer
            if self._last is not None and time.monotonic() - self._last[0] < _FRESH_S:
                return self._last[1]
            began = time.monotonic()
            try:
                report = self._tried()
            except KdmriError as error:
                report = HealthReport(healthy=False, status=error.what)
            except Exception as error:  # a defect of ours is no healthy server
                log_defect(error)
                report = HealthReport(healthy=False, status=f"failed ({type(error).__name__})")
            report.facts["seconds"] = round(time.monotonic() - began, 3)
            self._last = (time.monotonic(), report)
            if not report.healthy:
                log_event("unhealthy", logging.ERROR, status=report.status, **report.facts)
            return report

    def _tried(self) -> HealthReport:
        tried = self._networks.tried()
        if tried is None:
            return HealthReport(healthy=True, status="ok", facts={"reconstructed": False})
        facts: dict[str, object] = {"bundle": tried.name, "reconstructed": True}
        before = self._worker.finished
        part, maker = _phantom_slice(tried.reads)
        future = self._worker.submit(
            tried.network.reconstruct, part.kspace, part.mask, None, part.reference
        )
        try:
            outcome = future.result(timeout=_WAIT_S)
        except Late:
            future.cancel()
            busy = self._worker.finished > before
            status = "busy" if busy else f"no slice was finished within {_WAIT_S:g} s"
            return HealthReport(healthy=busy, status=status, facts=facts)
        # a phantom may be outside the scope of a network that ran well on it
        if outcome.fallback is not None and outcome.cause is not Cause.SCOPE:
            return HealthReport(healthy=False, status=outcome.fallback, facts=facts)
        image = np.array(maker.make(part, outcome).data[0, 0], dtype=np.float32)
        if not (np.isfinite(image).all() and image.any()):
            return HealthReport(healthy=False, status="the image is empty", facts=facts)
        if not self._known or self._known[0][0] is not tried.network:
            self._known = [(tried.network, image)]
        first = self._known[0][1]
        if np.abs(image - first).max() > _EQUAL * first.max():
            return HealthReport(healthy=False, status="the image has changed", facts=facts)
        return HealthReport(healthy=True, status="ok", facts=facts)


def _phantom_slice(reads: InputSpec) -> tuple[Any, ImageMaker]:
    """Return a slice of the phantom as a network reads it, by way of the stream's bytes."""
    height, width = reads.matrix
    image = phantom_volume(0, slices=1, matrix=height).image
    coils = _COILS if reads_coils(reads.spec) else 1
    maps = coil_maps(coils, height, width)
    kspace = image_to_kspace((image[:, None] * maps).astype(np.complex64))
    mask = reads.mask
    scan = Scan(
        kspace=(kspace * mask.grid).astype(np.complex64), mask=mask, name="phantom",
        subject="phantom",
    )  # fmt: skip
    encoding = encoding_of(scan)
    maker = ImageMaker(encoding)
    assembler, parser = Assembler(encoding), Parser()
    for line in readouts(scan):
        parser.feed(serialise(line))
    found = [part for line in parser.messages() if (part := assembler.add(line)) is not None]
    return found[0], maker
