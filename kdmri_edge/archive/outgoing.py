"""Images that a command has reconstructed, to an archive: into the queue, then once through it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Final

import numpy as np

from kdmri_edge.archive.address import Archive
from kdmri_edge.archive.queue import ArchiveQueue
from kdmri_edge.archive.transfer import Delivery, Limits, deliver, require_archive
from kdmri_edge.data.formats.dicom.files import DICOM_SUFFIXES, dicom_files
from kdmri_edge.data.formats.dicom.writing import dicom_objects
from kdmri_edge.data.formats.registry import FORMATS
from kdmri_edge.data.image import ImageRecord
from kdmri_edge.errors import KdmriError, OutputError

__all__ = ["Outgoing", "sentence"]

_OTHERS_S: Final = 5.0  # for another process that sends


class Outgoing:
    """What one command sends to one archive.

    Args:
        archive: The archive.
        folder: Of the queue; None takes `default_queue`.
        limits: See `transfer.Limits`.

    Raises:
        MissingExtraError: What archives need is not installed.
        OutputError: The queue cannot be written to.
    """

    def __init__(
        self, archive: Archive, folder: Path | None = None, limits: Limits | None = None
    ) -> None:
        require_archive()
        self._archive, self._limits = archive, limits
        self._queue = ArchiveQueue(folder)
        self._queue.line(archive)  # a place that cannot be written to is found out now
        self.said: list[str] = []
        self._lost: list[str] = []
        self._changed: list[str] = []

    def put(self, written: Path, picture: ImageRecord) -> None:
        """Queue a series; what cannot be queued is told by `check`, after everything else is done.

        Args:
            written: Where its file is; DICOM is sent as it was written.
            picture: What it was written of. Of complex images the magnitudes are sent.
        """
        try:
            if written.suffix.lower() in DICOM_SUFFIXES:
                for file in dicom_files(written):
                    self._queue.put(self._archive, file.read_bytes())
                return
            if np.iscomplexobj(picture.image):
                picture = dataclasses.replace(picture, image=np.abs(picture.image))
            for data in dicom_objects(picture):
                self._queue.put(self._archive, data)
            for what in FORMATS.named("DICOM").unsupported_values(picture.image):
                self._changed.append(f"The archive's copy of {written} is without {what}.")
        except KdmriError as error:
            self._lost.append(f"{written} was not queued for {self._archive.name}. {error.what}")

    def check(self) -> None:
        """Refuse to end well where something is neither at the archive nor in the queue.

        Raises:
            OutputError: It is not; the reconstructions themselves have been written.
        """
        if self._lost:
            more = f" ({len(self._lost)} in all)" if len(self._lost) > 1 else ""
            raise OutputError(
                f"{self._lost[0]}{more}", "The reconstruction is written; send it another way."
            )

    def send(self) -> dict[str, Any]:
        """Send what waits for the archive, whoever queued it.

        `said` then says what became of it, and what DICOM could not hold of other files.

        Returns:
            Plain JSON values: the archive, and the fields of `Delivery`.

        Raises:
            OutputError: The queue cannot be written to.
        """
        with self._queue.sending(wait_s=_OTHERS_S) as ours:
            line = self._queue.line(self._archive)
            if ours:
                done = deliver(line, self._limits)
            else:
                waiting = len(line.waiting())
                done = Delivery(waiting=waiting, reason="another process sends this queue")
        self.said = [*self._changed, sentence(self._archive, done)]
        if done.waiting or done.refused:
            self.said.append("`kdmri-edge archive list` lists what is left, `send` sends it.")
        return {"archive": self._archive.name, **dataclasses.asdict(done)}


def sentence(archive: Archive, done: Delivery) -> str:
    """Say what became of an archive's objects."""
    parts = [f"{archive.name}: {done.stored} object(s) stored"]
    if done.warnings:
        parts.append(f"{len(done.warnings)} of them with a remark ({done.warnings[0]})")
    if done.refused:
        reasons = sorted(set(done.refused.values()))
        parts.append(f"{len(done.refused)} refused and put aside ({'; '.join(reasons[:2])})")
    if done.waiting:
        parts.append(f"{done.waiting} waiting ({done.reason})")
    return f"{', '.join(parts)}."
