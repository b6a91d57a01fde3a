"""A server's images on their way to a DICOM archive.

Nothing here delays a scan: the sender of a scan's images hands each of them over and goes on, one
thread makes objects and puts them into the queue on disk, and one sends that queue. What goes wrong
is logged and counted, and the scan is not told.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Final

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge

from kdmri_edge import __version__
from kdmri_edge.archive.address import Archive
from kdmri_edge.archive.queue import ArchiveQueue
from kdmri_edge.archive.sender import Sender
from kdmri_edge.archive.transfer import Delivery, Limits, require_archive
from kdmri_edge.data.formats.dicom.writing import DicomSeries
from kdmri_edge.data.image import ImageRecord
from kdmri_edge.data.orientation import Orientation, orientation_of
from kdmri_edge.errors import KdmriError
from kdmri_edge.mrd.format.assembler import Slice
from kdmri_edge.mrd.format.geometry import affine_of
from kdmri_edge.mrd.format.header import Encoding
from kdmri_edge.mrd.format.patient import dicom_attributes
from kdmri_edge.mrd.server.telemetry import Metrics, log_defect, log_event
from kdmri_edge.runtime.pipeline import Outcome

__all__ = ["ArchivedScan", "Archiving"]

_HELD: Final = 64  # images of all scans that wait to be written to the disk
_ENDING_S: Final = 10.0  # what is on the way when the server ends


class Archiving:
    """Sends what a server sends its clients to an archive as well.

    Args:
        archive: The archive.
        waiting: The queue on disk; what an earlier server left in it is sent first.
        limits: See `transfer.Limits`.
        metrics: Where objects are counted; None counts them nowhere.

    Raises:
        KdmriError: What archives need is not installed, or the queue cannot be written to.
    """

    def __init__(
        self,
        archive: Archive,
        waiting: ArchiveQueue,
        limits: Limits | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        require_archive()
        self._at_start = len(waiting.line(archive).waiting())
        registry = CollectorRegistry() if metrics is None else metrics.registry
        self._objects = Counter(
            "kdmri_archive_objects", "Objects for the archive", ["outcome"], registry=registry
        )
        for outcome in ("stored", "refused", "lost"):
            self._objects.labels(outcome)
        self._left = Gauge(
            "kdmri_archive_waiting", "Objects that wait for the archive", registry=registry
        )
        self._left.set(self._at_start)
        self._archive, self._waiting = archive, waiting
        self._jobs: queue.Queue[Callable[[], bytes] | None] = queue.Queue(_HELD)
        self._sender = Sender(waiting, limits, tell=self._told, fail=self._failed)
        self._thread = threading.Thread(target=self._work, name="archive queue", daemon=True)

    def __enter__(self) -> Archiving:
        """Begin, with what is left of an earlier server."""
        log_event(
            "archive", archive=self._archive.name, calling=self._archive.calling,
            tls=self._archive.tls is not None, queue=str(self._waiting.folder),
            waiting=self._at_start,
        )  # fmt: skip
        self._thread.start()
        self._sender.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Put what has come into the queue, and leave the rest of it for the next start."""
        try:
            self._jobs.put(None, timeout=_ENDING_S)
            self._thread.join(_ENDING_S)
        except queue.Full:
            log_event("archive stopped", logging.ERROR, lost=self._jobs.qsize())
        self._sender.stop(_ENDING_S)

    def scan(self, xml: str | bytes, encoding: Encoding, orientation: Orientation) -> ArchivedScan:
        """Return what takes the images of a scan.

        Args:
            xml: Its header.
            encoding: What was read of it.
            orientation: See `ServerSettings`.
        """
        return ArchivedScan(self._hand_over, xml, encoding, orientation)

    def _hand_over(self, make: Callable[[], bytes]) -> None:
        try:
            self._jobs.put_nowait(make)
        except queue.Full:
            self._lost("the disk does not keep up")

    def _work(self) -> None:
        while (make := self._jobs.get()) is not None:
            try:
                self._waiting.put(self._archive, make())
                self._left.inc()
                self._sender.wake()
            except KdmriError as error:
                self._lost(str(error))
            except Exception as error:  # the next image may go better
                log_defect(error)
                self._lost(f"Internal error ({type(error).__name__})")
            del make

    def _lost(self, reason: str) -> None:
        self._objects.labels("lost").inc()
        log_event("archive image lost", logging.ERROR, reason=reason)

    def _told(self, archive: Archive, done: Delivery) -> None:
        self._objects.labels("stored").inc(done.stored)
        self._objects.labels("refused").inc(len(done.refused))
        self._left.set(len(self._waiting.line(self._archive).waiting()))
        well = not done.reason and not done.refused
        log_event("archived", logging.INFO if well else logging.WARNING, archive=archive.name,
                  stored=done.stored, waiting=done.waiting, reason=done.reason,
                  refused=list(done.refused.values()), remarks=done.warnings)  # fmt: skip

    def _failed(self, error: Exception) -> None:
        if isinstance(error, KdmriError):
            log_event("archive queue", logging.ERROR, reason=str(error))
        else:
            log_defect(error)


class ArchivedScan:
    """Takes the images of one scan; those of each contrast are a series.

    Args:
        hand_over: Takes what makes an object.
        xml: The scan's header.
        encoding: What was read of it.
        orientation: See `ServerSettings`.
    """

    def __init__(
        self,
        hand_over: Callable[[Callable[[], bytes]], None],
        xml: str | bytes,
        encoding: Encoding,
        orientation: Orientation,
    ) -> None:
        self._hand_over, self._xml, self._encoding = hand_over, xml, encoding
        self._orientation = orientation_of(encoding.vendor, orientation)
        self._series: dict[int, DicomSeries] = {}
        self._study: dict[str, str] = {}

    def put(self, part: Slice, outcome: Outcome, bundle: str | None = None) -> None:
        """Take an image that has been sent to the client.

        Args:
            part: The slice.
            outcome: Its image.
            bundle: Which of many bundles served.
        """
        head, contrast = part.head, int(part.key.contrast)
        height, rows = self._encoding.lines, self._encoding.rows
        edge = height // 2 - rows // 2  # as images are sent, phase oversampling removed
        image = np.abs(outcome.image[edge : edge + rows]).astype(np.float32)
        certificate = outcome.certificate
        repetition, rate = int(part.key.repetition), part.mask.nominal_acceleration

        def make() -> bytes:
            affine = affine_of([head], self._encoding, image.shape, self._orientation)
            fx, fy, fz = self._encoding.fov_mm
            picture = ImageRecord(
                image=image[None],
                voxel_mm=(fz, fy / rows, fx / self._encoding.width),
                affine=affine,
                derivation=_derivation(outcome, bundle, rate),
                certificates=() if certificate is None else (certificate.to_line(),),
            )
            also = {"AcquisitionNumber": repetition + 1, "ImageComments": _comment(outcome)}
            return self._of(contrast).add(picture, also)

        self._hand_over(make)

    def _of(self, contrast: int) -> DicomSeries:
        if contrast not in self._series:
            known = dicom_attributes(self._xml, contrast)
            self._series[contrast] = made = DicomSeries({**known, **self._study})
            self._study = made.study
        return self._series[contrast]


def _comment(outcome: Outcome) -> str:
    if outcome.fallback is not None:
        return f"zero-filled: {outcome.fallback}"
    return " ".join(outcome.beyond)


def _derivation(outcome: Outcome, bundle: str | None, rate: float) -> str:
    """Say how an image came about, as `runtime.files.derivation` does for files."""
    named = f" {bundle}" if bundle else ""
    made = (
        "Zero-filled image, not reconstructed by a neural network"
        if outcome.fallback is not None
        else f"Reconstructed by the neural network{named}"
    )
    estimate = "" if outcome.fallback is not None else ": an estimate"
    return (
        f"{made} (kdmri-edge {__version__}) from data undersampled {rate:.2f}x{estimate}."
        f" {_comment(outcome)}"
    ).strip()[:1024]
