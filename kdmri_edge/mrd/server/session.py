"""One client's scan, from its first byte to the server's CLOSE."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, cast

import numpy as np
from ismrmrd import Acquisition, Image
from numpy.typing import NDArray

from kdmri_edge.data.orientation import orientation_of
from kdmri_edge.errors import DataError, KdmriError, OutputError, StreamError
from kdmri_edge.mrd.format.assembler import Assembler, Slice, TooLargeError
from kdmri_edge.mrd.format.header import Encoding, read_encoding
from kdmri_edge.mrd.format.images import ImageMaker, fine_matrix
from kdmri_edge.mrd.format.messages import (
    Close,
    ConfigFile,
    ConfigText,
    HeaderText,
    Id,
    Message,
    Skipped,
    Text,
)
from kdmri_edge.mrd.format.parser import Order, Parser
from kdmri_edge.mrd.format.pictures import answer, pixels_of, unchanged
from kdmri_edge.mrd.server.archiving import ArchivedScan, Archiving
from kdmri_edge.mrd.server.networks import Chooser, ImageFacts, Served, ServedImage, Serving
from kdmri_edge.mrd.server.recording import Recorder, Recording
from kdmri_edge.mrd.server.rules import ScanFacts
from kdmri_edge.mrd.server.send_queue import SendQueue
from kdmri_edge.mrd.server.settings import Choice, ServerSettings, choose, refine
from kdmri_edge.mrd.server.telemetry import Metrics, log_defect, log_event
from kdmri_edge.mrd.server.worker import Worker
from kdmri_edge.physics.coils import noise_weights
from kdmri_edge.physics.reference import calibration_reach
from kdmri_edge.runtime.causes import Cause
from kdmri_edge.runtime.inputs import HeldCoils, Told, noise_sigma
from kdmri_edge.runtime.pipeline import Outcome, zero_filled_magnitude
from kdmri_edge.utils.memory import give_memory_back

__all__ = ["ClientSession"]

_NOT_TAKEN: Final = frozenset({Id.IMAGE, Id.WAVEFORM})
_CHUNK: Final = 1 << 18
_GRACE_S: Final = 1.0  # a client that opens its next scan at once meets the end of its last one
_TEXTS: Final = 64  # texts about bundles that one scan is sent
_PLACES: Final = 128  # at which sensitivities are kept, the last that were used
_NOBODY: Final = Served(network=None)
_NO_IMAGES: Final = "The server's network reads no images."
_ASYMMETRIC: Final = "The slice has asymmetric echoes, which no line mask describes."


def _finer(encoding: Encoding) -> str:
    assert encoding.finer is not None
    return (
        f"The header asks for images of {encoding.finer[0]} x {encoding.finer[1]}, and"
        f" {encoding.rows} x {encoding.width} are encoded: images are not interpolated."
    )


class _RefusedError(StreamError):
    """A scan that was not begun."""


class ClientSession:
    """Reads a scan, and has its images sent.

    Args:
        number: To tell scans apart in the log.
        connection: The client's socket; closed at the end.
        worker: Runs the networks.
        networks: Choose who reconstructs the scan.
        settings: Times and bounds.
        metrics: Counters.
        slots: One is taken with the scan's header, and given back at its end.
        archiving: Sends the images to an archive as well.
        recorder: Records the scan; None for nobody.

    Attributes:
        waits: Whether no header has come yet, and it was not dropped.
    """

    def __init__(
        self,
        number: int,
        connection: socket.socket,
        worker: Worker,
        networks: Chooser,
        settings: ServerSettings,
        metrics: Metrics,
        slots: threading.Semaphore,
        archiving: Archiving | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.waits = True
        self._slots, self._admitted = slots, False
        self._dropped: str | None = None
        self._began = time.monotonic()
        self._message_began: float | None = None  # where one has come in part
        self._number = number
        self._connection = connection
        self._worker = worker
        self._networks = networks
        self._serving: Serving | None = None
        self._archiving = archiving
        self._archived: ArchivedScan | None = None
        self._told: set[str] = set()
        self._recorder, self._recording = recorder, cast("Recording | None", None)
        self._xml = ""
        self._settings = settings
        self._metrics = metrics
        self._parser = Parser(settings.limits, skips=_NOT_TAKEN)
        self._order = Order()
        self._choice: Choice | None = None
        self._assembler: Assembler | None = None
        self._maker: ImageMaker | None = None
        self._weights: NDArray[np.complex128] | None = None
        self._noise: NDArray[np.complex64] | None = None
        self._sigma: float | None = None
        self._held: dict[int, HeldCoils] = {}
        self._received = self._readouts = self._pictures = self._slices = 0
        self._answered = 0
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._send_queue = SendQueue(number, connection, settings, metrics)

    def drop(self, reason: str) -> None:
        """End the session, from another thread, if it still waits for its header.

        Args:
            reason: What the client is told.
        """
        if self.waits:
            self.waits, self._dropped = False, reason
            with contextlib.suppress(OSError):  # it has gone meanwhile
                self._connection.shutdown(socket.SHUT_RD)

    def run(self) -> None:
        """Read the scan and send its images; what goes wrong is told to the client and logged."""
        outcome, reason, kept = "complete", None, True
        try:
            if not self._read_scan():
                outcome = "probe"
        except _RefusedError as error:
            outcome, reason = "refused", str(error)
        except KdmriError as error:
            outcome, reason = "failed", str(error)
            kept = not isinstance(error, TooLargeError)
        except Exception as error:  # a defect of ours ends this scan, not the server
            log_defect(error, session=self._number)
            outcome, reason = "failed", f"Internal error ({type(error).__name__})."
        try:
            if not kept:
                self._let_go()
            if reason is not None:
                self._give_up(reason)
        finally:
            if self._recording is not None:
                self._recording.end()
            self._send_queue.finish()
            if self._admitted:
                self._slots.release()
            self._linger()
            self._connection.close()
            if outcome != "probe":
                self._metrics.sessions.labels(outcome).inc()
            log_event(
                "session",
                logging.DEBUG if outcome == "probe"
                else logging.INFO if reason is None else logging.WARNING,
                session=self._number,
                outcome=outcome,
                **({} if reason is None else {"reason": reason}),
                readouts=self._readouts,
                ignored=0 if self._assembler is None else self._assembler.ignored,
                received_bytes=self._received,
                images=self._send_queue.images,
                zero_filled=self._send_queue.zero_filled,
                causes=dict(self._send_queue.fallbacks),
                seconds=round(time.monotonic() - self._began, 3),
            )  # fmt: skip

    def _read_scan(self) -> bool:
        """Read until CLOSE; return whether anything came at all.

        Raises:
            KdmriError: The scan cannot go on.
        """
        for message in self._messages():
            if message is None:
                return False
            self._order.take(message)
            self._take(message)
        if self._saves:
            if self._recording is None:
                raise StreamError(
                    "Nothing came that could be recorded.", "Send readouts or images."
                )
            readouts, images = self._recording.finish(self._settings.send_s)
            self._send_queue.put_text(
                f"INF Recorded {readouts} readouts and {images} images as {self._recording.name}."
            )
        elif self._assembler is not None:
            for part in self._assembler.finish():
                self._submit(part)
            if self._slices == self._answered == 0:
                raise StreamError("No line of an image came.", "There is no image to send.")
        return True

    @property
    def _saves(self) -> bool:
        """Whether the scan is recorded, and no image is sent."""
        return self._choice is not None and self._choice.saves

    def _messages(self) -> Iterator[Message | Skipped | None]:
        """Yield messages until CLOSE; None where the client only connected.

        Raises:
            StreamError: The stream breaks off, cannot be followed, or nothing comes.
        """
        while True:
            left, late = self._patience()
            try:
                self._connection.settimeout(max(left, 0.001))
                data = self._connection.recv(_CHUNK)
            except TimeoutError:
                raise late from None
            except OSError as error:
                self._send_queue.check()
                raise StreamError(
                    f"The client went away ({type(error).__name__}).", "Send the scan again."
                ) from None
            self._send_queue.check()
            if not data:
                if self._dropped is not None:
                    raise _RefusedError(self._dropped, "Try again later.")
                if not self._received:
                    yield None
                    return
                self._parser.finish()
                raise StreamError("The stream ended without CLOSE.", "Send the scan again.")
            self._received += len(data)
            self._metrics.received.inc(len(data))
            self._parser.feed(data)
            del data
            for message in self._parser.messages():
                self._message_began = None
                if isinstance(message, Close):
                    return
                yield message
            if not self._parser.under_way:
                self._message_began = None
            elif self._message_began is None:
                self._message_began = time.monotonic()

    def _patience(self) -> tuple[float, StreamError]:
        """Return how many seconds are left for more to come, and what is wrong if nothing does."""
        settings, now = self._settings, time.monotonic()
        if not self._admitted:
            late = _RefusedError(
                f"No scan was begun within {settings.opening_s:g} s.",
                "Send the configuration and the header at once.",
            )
            return self._began + settings.opening_s - now, late
        if self._message_began is None:
            silent = StreamError(
                f"Nothing came for {settings.idle_s:g} s.", "Send CLOSE after a scan."
            )
            return settings.idle_s, silent
        slow = StreamError(
            f"A message came at less than {settings.slowest:g} bytes per second.",
            "Send each message as a whole.",
        )
        allowed = settings.opening_s + self._parser.under_way / settings.slowest
        return self._message_began + allowed - now, slow

    def _take(self, message: Message | Skipped) -> None:
        match message:
            case ConfigFile() | ConfigText():
                self._configure(choose(message, self._settings))
            case HeaderText():
                if not self._slots.acquire(timeout=_GRACE_S):
                    raise _RefusedError("The server is busy with other scans.", "Try again later.")
                self.waits, self._admitted = False, True
                self._xml = message.xml
                self._serving = self._networks.choice()
                if self._recorder is not None or self._takes_images:
                    self._parser.skips = _NOT_TAKEN - {Id.IMAGE}
                if not self._saves:
                    try:
                        self._open_scan()
                    except DataError:  # a scan whose images alone come may be of any kind
                        if not self._takes_images:
                            raise
            case Text() if self._choice is not None:
                self._configure(refine(message, self._choice, self._settings))
            case Acquisition():
                self._take_readout(message)
            case Skipped(Id.IMAGE) | Image():
                self._pictures += 1
                if isinstance(message, Image):
                    self._record(message)
                    if self._takes_images and not self._saves:
                        self._submit_image(message)
                        return
                if self._pictures == 1 and not self._saves:
                    self._send_queue.put_text("WRN Images are not taken; k-space is.")

    @property
    def _takes_images(self) -> bool:
        """Whether images are answered: by a network that reads some, or as they came."""
        reads = self._serving is not None and self._serving.takes_images
        return reads or self._settings.pass_images

    def _configure(self, choice: Choice) -> None:
        """Take what the client chose; a name that stands for another one is said once."""
        name = self._settings.default_config
        said = f"The configuration that was asked for is unknown: {name} is used."
        if choice.defaulted and said not in self._told:
            self._told.add(said)
            log_event("default configuration", session=self._number, config=name)
            self._send_queue.put_text(f"WRN {said}")
        new = sorted(set(choice.unknown) - set(self._choice.unknown if self._choice else ()))
        if new:
            log_event("unknown parameters", session=self._number, names=new)
            self._send_queue.put_text(f"INF Parameters that mean nothing here: {', '.join(new)}.")
        self._choice = choice

    def _open_scan(self) -> None:
        """Read the header, of which images are to be made.

        Raises:
            DataError: It is not that of a scan which is reconstructed here.
        """
        encoding = read_encoding(self._xml)
        self._assembler = Assembler(encoding, self._settings.capacity)
        finer: dict[str, Any] = {}
        if encoding.finer is not None and not (
            self._settings.interpolate and fine_matrix(encoding) is not None
        ):
            finer["finer_matrix_ignored"] = encoding.finer
            self._send_queue.put_text(f"WRN {_finer(encoding)}")
        log_event(
            "header", session=self._number, lines=encoding.lines, samples=encoding.samples,
            coils=encoding.coils, averages=encoding.averages,
            orientation=orientation_of(encoding.vendor, self._settings.orientation),
            **finer,
        )  # fmt: skip
        if self._archiving is not None:
            orientation = self._settings.orientation
            self._archived = self._archiving.scan(self._xml, encoding, orientation)

    def _record(self, message: Acquisition | Image) -> None:
        """Record a message; the scan's first one, since parameters may follow the header."""
        if self._recorder is None:
            return
        if self._recording is None:
            try:
                self._recording = self._recorder.begin(self._number, self._xml, saved=self._saves)
            except OutputError as error:
                log_event("recording stopped", logging.WARNING, session=self._number,
                          reason=str(error))  # fmt: skip
                if self._saves:
                    raise
                self._recorder = None
                return
        self._recording.put(message)

    def _take_readout(self, acquisition: Acquisition) -> None:
        self._readouts += 1
        self._metrics.readouts.inc()
        self._record(acquisition)
        if self._saves:
            return
        if self._assembler is None:  # it was not needed before, or refused
            self._open_scan()
        assert self._assembler is not None
        if (part := self._assembler.add(acquisition)) is not None:
            self._submit(part)

    def _submit(self, part: Slice, given_up: str | None = None) -> None:
        """Have a slice reconstructed, or sent as it is where the scan was given up."""
        came = time.monotonic()
        self._send_queue.reserve()
        assert self._assembler is not None
        if self._maker is None:
            int16 = self._choice is not None and self._choice.int16
            self._maker = ImageMaker(
                self._assembler.encoding, int16=int16, orientation=self._settings.orientation,
                interpolate=self._settings.interpolate,
                name=next(iter(self._networks.names), None),
            )  # fmt: skip
        reason, cause = given_up, Cause.BROKE_OFF
        if reason is None and part.partial_readout:
            reason, cause = _ASYMMETRIC, Cause.ECHO
        future: Future[Outcome]
        weights = self._whitening()
        served = _NOBODY if reason is not None else self._served(part)
        if served.network is not None:
            future = self._worker.submit(
                served.network.reconstruct, part.kspace, part.mask, weights, part.reference,
                self._coils_at(part.key.slice), self._told_of(),
            )  # fmt: skip
        else:
            if reason is None:
                reason, cause = served.said, Cause.NO_BUNDLE
            future = Future()
            image = zero_filled_magnitude(part.kspace)
            future.set_result(Outcome(image=image, fallback=reason, cause=cause))
        self._send_queue.put_slice(part, future, self._maker, came, served, self._archived)
        self._slices += 1

    def _submit_image(self, image: Image) -> None:
        """Have an image that came reconstructed, or sent back as it came where it cannot be."""
        came = time.monotonic()
        self._send_queue.reserve()
        self._answered += 1
        int16 = self._choice is not None and self._choice.int16
        undersample = self._choice is not None and self._choice.undersample
        future: Future[Outcome] = Future()
        served, pixels, reason = ServedImage(network=None), None, _NO_IMAGES
        try:
            pixels = pixels_of(image)
            facts = ImageFacts(
                matrix=(pixels.shape[0], pixels.shape[1]), complex=np.iscomplexobj(pixels),
                undersample=undersample,
            )  # fmt: skip
            assert self._serving is not None
            served = self._serving.of_image(facts)
            reason = served.why or reason
        except DataError as error:
            reason = error.what
        if served.network is not None:
            reconstruct = partial(served.network.reconstruct_image, undersample=undersample)
            future = self._worker.submit(reconstruct, pixels)
        else:
            future.set_result(
                Outcome(image=np.zeros((1, 1), np.float32), fallback=reason, cause=Cause.IMAGE)
            )

        def make(outcome: Outcome) -> Image | None:
            if outcome.fallback is None:
                compared = pixels if undersample else None
                return answer(
                    image, outcome, int16=int16, bundle=served.name, why=served.why,
                    compared=compared,
                )  # fmt: skip
            return unchanged(image, outcome.fallback) if self._settings.pass_images else None

        self._send_queue.put_image(self._pictures, future, make, came, served)

    def _coils_at(self, place: int) -> HeldCoils | None:
        """Return what holds the sensitivities of a place; None where each slice has its own."""
        if not self._settings.reuse_coils:
            return None
        held = self._held.pop(place, None) or HeldCoils()
        while len(self._held) >= _PLACES:
            del self._held[next(iter(self._held))]
        self._held[place] = held
        return held

    def _told_of(self) -> Told:
        """Return what header and noise tell of a slice, which `run` reads from files alike."""
        assert self._assembler is not None
        encoding = self._assembler.encoding
        across, down, thick = encoding.fov_mm
        voxel = (thick, down / encoding.rows, across / encoding.width)
        noise = self._assembler.noise
        if noise is not self._noise:  # another array where more has come
            self._noise, self._sigma = noise, noise_sigma(noise)
        return Told(voxel_mm=voxel if min(voxel) > 0 else None, noise=self._sigma)

    def _served(self, part: Slice) -> Served:
        """Choose who reconstructs a slice; who serves is logged and told once."""
        assert self._assembler is not None
        assert self._serving is not None
        coils, height, width = part.kspace.shape
        served = self._serving.of(
            ScanFacts(
                coils=coils,
                matrix=(height, width),
                mask=part.mask,
                centre=calibration_reach(part.mask, part.reference),
                contrast=part.key.contrast,
                protocol=self._assembler.encoding.protocol,
            )
        )
        if served.said and served.said not in self._told and len(self._told) < _TEXTS:
            self._told.add(served.said)
            log_event("served", session=self._number, bundle=served.name, why=served.why,
                      others=dict(served.others))  # fmt: skip
            if served.name is not None:  # else the images' own reason is told
                self._send_queue.put_text(f"INF {served.said}")
        return served

    def _let_go(self) -> None:
        """Free what was kept of a scan that is too large; nothing of it is reconstructed."""
        self._parser = Parser(self._settings.limits, skips=_NOT_TAKEN)
        if self._assembler is not None:
            self._assembler.drop()
        self._noise = None
        give_memory_back()

    def _whitening(self) -> NDArray[np.complex128] | None:
        """Return the weights of the coils by their noise, which comes before the first slice.

        Called for every slice, reconstructed or not: the first one settles it for the scan.
        """
        if not self._slices and self._assembler is not None:
            noise = self._assembler.noise
            try:
                self._weights = None if noise is None else noise_weights(noise)
            except DataError as error:  # an image without whitening is better than none
                self._send_queue.put_text(f"WRN {error.what} Coils are not whitened.")
        return self._weights

    def _give_up(self, reason: str) -> None:
        """Send what has come of the open slices, and why there is no more."""
        with contextlib.suppress(StreamError):  # the client is gone
            if self._assembler is not None:
                for part in self._assembler.finish():
                    self._submit(part, given_up=f"The scan broke off: {reason}")
        self._send_queue.put_text(f"ERR {reason}")

    def _linger(self) -> None:
        """Throw away what still comes: closing with unread data would take our last words back."""
        until = time.monotonic() + self._settings.linger_s
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
            while (left := until - time.monotonic()) > 0:
                self._connection.settimeout(left)
                if not self._connection.recv(_CHUNK):
                    return
