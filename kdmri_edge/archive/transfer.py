"""Sending a queue's objects: DICOM's storage service as its user (PS3.4, B), by pynetdicom.

An association takes a limited number of objects, and everything in it has a time limit. What an
archive refuses as it is (a data set that it cannot understand, a class that it does not store) is
put aside with the reason; everything else is tried again after growing pauses.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kdmri_edge.archive.address import Archive
from kdmri_edge.archive.queue import Line, State
from kdmri_edge.data.formats.dicom.frames import open_dicom, reading_dicom
from kdmri_edge.errors import ArchiveError, KdmriError
from kdmri_edge.utils import extras

__all__ = ["Delivery", "Limits", "deliver", "echo", "require_archive"]

_EXTRA: Final = "archive"
_RESOURCES: Final = range(0xA700, 0xA800)
_BREAKS: Final = 5  # times that one object may break associations before it is put aside
_VERIFICATION: Final = "1.2.840.10008.1.1"
_SYNTAXES: Final = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")  # little endian, explicit, implicit


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much, and how long.

    Attributes:
        objects: Most objects of one association; the rest is sent in the next one.
        pdu: Largest protocol data unit that we take, bytes; 0 for any. The archive says itself what
            it takes.
        connect_s: For a connection, its encryption included.
        association_s: For the archive to accept an association, or to release it.
        object_s: For the archive to confirm an object.
        silence_s: Without any data, before an association is given up.
        pause_s: Until the second attempt; each failure after it doubles the pause.
        longest_pause_s: That pauses grow to.
    """

    objects: int = 200
    pdu: int = 16382
    connect_s: float = 10.0
    association_s: float = 20.0
    object_s: float = 60.0
    silence_s: float = 60.0
    pause_s: float = 5.0
    longest_pause_s: float = 900.0

    def pause(self, attempts: int) -> float:
        """Return the seconds until the next attempt, after so many that failed in a row."""
        return min(self.pause_s * 2.0 ** min(attempts - 1, 30), self.longest_pause_s)


@dataclass(slots=True, kw_only=True)
class Delivery:
    """What became of a queue's objects for one archive.

    Attributes:
        stored: Objects that the archive has confirmed.
        warnings: What it remarked on objects that it stored.
        refused: Objects that it refused and that were put aside, by name, with the reason.
        waiting: Objects that still wait.
        reason: Why they do; empty where none does.
    """

    stored: int = 0
    warnings: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    waiting: int = 0
    reason: str = ""


class _Broken(Exception):  # noqa: N818 - it ends an association, and is no error of ours
    """An association that is over.

    Args:
        reason: Why.
        during: The object that was being sent; None where none was.
    """

    def __init__(self, reason: str, during: Path | None = None) -> None:
        super().__init__(reason)
        self.reason, self.during = reason, during


def require_archive() -> None:
    """Check that what archives need is installed.

    Raises:
        MissingExtraError: It is not.
    """
    for module in ("pydicom", "pynetdicom", "filelock"):
        extras.require(module, extra=_EXTRA)


def deliver(
    line: Line,
    limits: Limits | None = None,
    *,
    stop: Callable[[], bool] = lambda: False,
) -> Delivery:
    """Send what waits for an archive, until nothing does, or the archive takes no more.

    The caller holds the right to send, see `ArchiveQueue.sending`.

    Args:
        line: What waits for the archive.
        limits: How much, and how long.
        stop: Asked after each object; True ends it.

    Raises:
        MissingExtraError: See `require_archive`.
        OutputError: The queue cannot be written to.
    """
    bounds = limits or Limits()
    require_archive()
    done = Delivery()
    state = line.state
    while (waiting := _in_order(line, state)) and not stop():
        try:
            for file in _send(line, waiting[: bounds.objects], bounds, done, stop):
                line.stored(file)
                state = _works(line, state, file.name)
            state = _works(line, state)  # where all were refused
        except _Broken as broken:
            state = _after(line, state, broken, bounds, done)
            if broken.during is None or broken.during.name not in done.refused:
                break  # the archive may need a while; what broke the association comes last then
    done.waiting = len(line.waiting())
    if done.waiting and not done.reason:
        done.reason = "sending was stopped"
    return done


def _in_order(line: Line, state: State) -> list[Path]:
    """What waits; objects during which associations broke come last."""
    return sorted(line.waiting(), key=lambda file: (state.breaks.get(file.name, 0), file.name))


def _works(line: Line, state: State, stored: str = "") -> State:
    """Note that associations are to be had again."""
    works = State(breaks={name: n for name, n in state.breaks.items() if name != stored})
    if works != state:
        line.keep(works)
    return works


def _after(line: Line, state: State, broken: _Broken, bounds: Limits, done: Delivery) -> State:
    """Note why an association ended, and put an object aside that ended too many of them."""
    breaks = dict(state.breaks)
    if broken.during is not None:
        name = broken.during.name
        breaks[name] = breaks.get(name, 0) + 1
        if breaks[name] >= _BREAKS:
            del breaks[name]
            reason = f"{_BREAKS} associations ended while it was sent: {broken.reason}"
            line.refuse(broken.during, reason)
            done.refused[name] = reason
    attempts = state.attempts + 1
    made = State(
        attempts=attempts,
        reason=broken.reason,
        next_s=time.time() + bounds.pause(attempts),
        breaks=breaks,
    )
    line.keep(made)
    done.reason = broken.reason
    return made


def _send(
    line: Line, files: Sequence[Path], bounds: Limits, done: Delivery, stop: Callable[[], bool]
) -> Iterator[Path]:
    """Send objects in one association; yield each that is stored.

    Raises:
        _Broken: The association could not be had, or ended before they all were sent.
    """
    readable: list[tuple[Path, Any]] = []
    for file in files:
        try:
            readable.append((file, _class_of(file)))
        except KdmriError as error:
            _refuse(line, file, error.what, done)
    if not readable:
        return
    classes = sorted({str(sop) for _, sop in readable})
    with _association(line.archive, classes, bounds) as association:
        for file, sop in readable:
            if stop():
                return
            if sop not in {str(c.abstract_syntax) for c in association.accepted_contexts}:
                _refuse(line, file, f"the archive does not take objects of class {sop}", done)
                continue
            try:
                data = open_dicom(file)
            except KdmriError as error:
                _refuse(line, file, error.what, done)
                continue
            code, remark = _store(association, data)
            if code is None:
                raise _Broken(remark, file)
            said = f"0x{code:04X}{f': {remark}' if remark else ''}"
            match _category(code):
                case "Success":
                    pass
                case "Warning":
                    done.warnings.append(f"{file.name}: {said}")
                case _ if code in _RESOURCES:
                    raise _Broken(f"the archive is out of resources ({said})")
                case _:
                    _refuse(line, file, f"the archive refused it ({said})", done)
                    continue
            done.stored += 1
            yield file


def _refuse(line: Line, file: Path, reason: str, done: Delivery) -> None:
    line.refuse(file, reason)
    done.refused[file.name] = reason


def _class_of(file: Path) -> str:
    """The class of an object, of the file's meta information.

    Raises:
        KdmriError: It is damaged.
    """
    header = open_dicom(file, pixels=False)
    with reading_dicom(file):
        return str(header.SOPClassUID)


def _store(association: Any, data: Any) -> tuple[int | None, str]:
    """Send an object; return the archive's status, None where the association ended, and why."""
    try:
        answer = association.send_c_store(data)
    except (RuntimeError, ValueError, OSError) as error:
        return None, f"the association ended ({type(error).__name__})"
    code = answer.get("Status")
    if code is None:
        return None, "the association ended before the archive confirmed an object"
    return int(code), str(answer.get("ErrorComment") or "").strip()[:200]


def _category(code: int) -> str:
    status: Any = extras.require("pynetdicom.status", extra=_EXTRA)
    return str(status.code_to_category(code))


@contextlib.contextmanager
def _association(archive: Archive, classes: Sequence[str], bounds: Limits) -> Iterator[Any]:
    """Hold an association; where the archive takes none of the classes it is over already.

    Raises:
        _Broken: It cannot be had.
    """
    network: Any = extras.require("pynetdicom", extra=_EXTRA)
    entity = network.AE(ae_title=archive.calling)
    entity.connection_timeout = bounds.connect_s
    entity.acse_timeout = bounds.association_s
    entity.dimse_timeout = bounds.object_s
    entity.network_timeout = bounds.silence_s
    for sop in classes:
        for syntax in _SYNTAXES:  # one each, so that the archive may not choose to re-encode
            entity.add_requested_context(sop, syntax)
    options: dict[str, Any] = {"ae_title": archive.title, "max_pdu": bounds.pdu}
    try:
        if archive.tls is not None:
            options["tls_args"] = (_encryption(archive), archive.host)
        place = socket.getaddrinfo(archive.host, archive.port, type=socket.SOCK_STREAM)[0][4][0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            association = entity.associate(place, archive.port, **options)
    except ArchiveError as error:
        raise _Broken(f"{error.what.rstrip('.')}") from None
    except (OSError, UnicodeError) as error:
        raise _Broken(f"{archive.host} is not known ({_reason(error)})") from None
    none_taken = bool(association.rejected_contexts) and not association.accepted_contexts
    if not association.is_established and not none_taken:
        _close(association)
        raise _Broken(_why_not(association, archive, bounds))
    try:
        yield association
    except BaseException:
        association.abort()
        raise
    else:
        if association.is_established:
            association.release()
    finally:
        if association.is_alive():
            association.join(timeout=bounds.association_s)
        _close(association)


def _close(association: Any) -> None:
    """Close the socket of an association that is over; the library leaves some to the collector."""
    with contextlib.suppress(AttributeError, OSError):
        association.dul.socket.socket.close()


def _encryption(archive: Archive) -> ssl.SSLContext:
    """What a connection is encrypted with.

    Raises:
        ArchiveError: A file of certificates or keys cannot be used.
    """
    tls = archive.tls
    assert tls is not None
    try:
        context = ssl.create_default_context(cafile=None if tls.ca is None else str(tls.ca))
        if tls.certificate is not None:
            # without a callback OpenSSL asks at the terminal for the password of a key
            context.load_cert_chain(tls.certificate, tls.key, password=lambda: "")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        files = [str(path) for path in (tls.ca, tls.certificate, tls.key) if path is not None]
        raise ArchiveError(
            f"{' or '.join(files)} cannot be used for TLS ({_reason(error)}).",
            "Give PEM files: --tls-ca of the authority, --tls-cert and --tls-key of our own, the"
            " key without a password.",
        ) from None
    return context


def _why_not(association: Any, archive: Archive, bounds: Limits) -> str:
    """Say why there is no association."""
    if association.is_rejected:
        answer = association.acceptor.primitive
        try:
            return f"the archive rejected the association ({answer.reason_str})"
        except (AttributeError, ValueError):
            return "the archive rejected the association"
    try:  # the library logs why a connection failed, and does not tell
        with socket.create_connection((archive.host, archive.port), bounds.connect_s) as plain:
            if archive.tls is not None:
                with _encryption(archive).wrap_socket(plain, server_hostname=archive.host):
                    pass
    except OSError as error:
        return f"{archive.host}:{archive.port} cannot be reached ({_reason(error)})"
    return "the archive accepted the connection, and no association in it"


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def echo(archive: Archive, limits: Limits | None = None) -> float:
    """Ask an archive whether it is there (C-ECHO); return the seconds that it took.

    Raises:
        ArchiveError: It is not, or does not want us; the message says why.
        MissingExtraError: See `require_archive`.
    """
    require_archive()
    began = time.perf_counter()
    try:
        if archive.tls is not None:
            _encryption(archive)
        with _association(archive, [_VERIFICATION], limits or Limits()) as association:
            answer = association.send_c_echo()
            if answer.get("Status") != 0x0000:
                raise _Broken("the archive does not answer C-ECHO")
    except _Broken as broken:
        raise ArchiveError(
            f"{archive.name}, called by {archive.calling}: {broken.reason}.",
            "Check host, port and both titles; most archives have to be told of ours beforehand.",
        ) from None
    return time.perf_counter() - began
