"""Writing files so that a reader never sees half of one.

Everything is written under a temporary name beside its destination, flushed to disk and renamed.
A crash, a full disk or Ctrl-C leaves the earlier file as it was.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from kdmri_edge.errors import KdmriError, OutputError

__all__ = [
    "atomic_directory",
    "atomic_path",
    "check_file_writable",
    "check_writable",
    "finite_json",
    "parse_json",
    "read_json",
    "refuse_newer",
    "sha256_bytes",
    "sha256_file",
    "sweep",
    "sweep_folders",
    "write_json",
    "writing",
]

_REFUSALS = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
)

# What `_temporary` calls a file or folder.
_LEFTOVER = re.compile(
    r"\.(?P<final>.+)\.[0-9a-f]{8}\.(?P<former>former\.)?tmp(?:\..+)?", re.DOTALL
)


@contextlib.contextmanager
def writing(destination: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write `destination` into one clear sentence.

    Raises:
        OutputError: The disk is full, the place is read-only, or a parent is not a folder.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"The disk is full: {destination} was not written.",
                "Free some space or choose another place, then run the command again.",
            ) from error
        if error.errno in _REFUSALS:
            raise OutputError(
                f"{destination} cannot be written ({error.strerror}).",
                "Choose a place that you may write to.",
            ) from error
        raise


def check_writable(out: Path) -> None:
    """Try to write where an output folder is or will be, before anything is measured.

    Nothing is left there: the file has no name, or one that nothing had before. Folders that are
    not there yet are not made, so that several processes may try at once.

    Raises:
        OutputError: That place cannot be written to.
    """
    with writing(out):
        place = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
        with tempfile.TemporaryFile(dir=place):
            pass


def check_file_writable(file: Path) -> None:
    """Do the same for one file, which may be there already and is then replaced.

    Raises:
        OutputError: It is a folder, or its place cannot be written to.
    """
    if file.is_dir():
        raise OutputError(f"{file} is a folder, and a file is to be written.", "Name a file in it.")
    check_writable(file.parent)


def _temporary(final: Path, kind: str = "tmp") -> Path:
    if final.name in ("", ".."):
        raise OutputError(f"{str(final)!r} cannot be replaced as a whole.", "Give it a name.")
    suffix = "".join(final.suffixes[-2:])  # both parts of .nii.gz
    return final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.{kind}{suffix}")


def sweep(folder: Path) -> None:
    """Remove what a killed process may have left half written in a folder that is one's own."""
    for leftover in folder.glob(".*.tmp*"):
        if leftover.is_file():
            leftover.unlink(missing_ok=True)
    sweep_folders(folder, older_s=0)


def sweep_folders(place: Path, *, older_s: float = 24 * 3600) -> None:
    """Remove what killed processes have left of `atomic_directory`, beside its destinations.

    Args:
        place: A folder, which others may write to: what has another name than ours stays.
        older_s: How long nothing in such a folder may have changed, since one that is young may be
            another process's.
    """
    latest = time.time() - older_s
    for leftover in place.glob(".*.tmp*"):
        known = _LEFTOVER.fullmatch(leftover.name)
        if known is None or leftover.is_symlink() or not leftover.is_dir():
            continue
        if known["former"] and not (place / known["final"]).exists():
            continue  # stopped between two renames: it is the only one
        with contextlib.suppress(OSError):  # another process has finished it
            changed = max(each.stat().st_mtime for each in (leftover, *leftover.rglob("*")))
            if changed <= latest:
                shutil.rmtree(leftover, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Yield a temporary path beside `final`; rename it on success, remove it on failure.

    The temporary name keeps the suffix of `final`, since some writers choose their format by it.

    Raises:
        OutputError: The place cannot be written to.
    """
    with writing(final):
        if final.exists() and not final.is_file() and not final.is_dir():
            raise OutputError(f"{final} is a device or a pipe.", "Choose the name of a file.")
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(final)
        try:
            yield temporary
            _flush(temporary)
            temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(final: Path) -> Iterator[Path]:
    """Yield a new folder beside `final` that takes its place on success and vanishes on failure.

    Raises:
        OutputError: The place cannot be written to, or `final` exists and is a file.
    """
    with writing(final):
        if final.exists() and not final.is_dir():
            raise OutputError(f"{final} is a file.", "Choose a folder that does not exist yet.")
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(final)
        temporary.mkdir()
        retired = _temporary(final, "former.tmp")
        try:
            yield temporary
            for file in sorted(temporary.rglob("*")):
                if file.is_file():
                    _flush(file)
            if final.exists():
                final.rename(retired)
            temporary.rename(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if retired.exists() and not final.exists():  # stopped between the two renames
                retired.rename(final)
            shutil.rmtree(retired, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically.

    Raises:
        OutputError: The place cannot be written to.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path, error: type[KdmriError], *, finite: bool = True) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        error: Class of the exception.
        finite: See `parse_json`.

    Raises:
        KdmriError: Of the given type, when the file is missing or is not JSON.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise error(f"{path} does not exist.", "Check the path.") from None
    except OSError as cause:
        raise error(f"{path} is not readable JSON ({cause}).", "Make it again.") from cause
    return parse_json(data, path, error, finite=finite)


def finite_json(text: str, *, unique: bool = False) -> Any:
    """Return what a stranger's JSON says, which has no NaN and no infinity.

    Python reads NaN and Infinity, which are no JSON, and 1e999, which is none of its numbers; each
    passes comparisons that were to keep it out.

    Args:
        text: The JSON.
        unique: Refuse an object that has a key twice.

    Raises:
        ValueError: It is no JSON, or holds such a number or key.
        RecursionError: It is nested too deeply.
    """
    return json.loads(
        text,
        parse_constant=_refuse_number,
        parse_float=_finite_number,
        object_pairs_hook=_unique if unique else None,
    )


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:40]} is no finite number")


def _finite_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        _refuse_number(text)
    return value


def parse_json(
    data: bytes,
    path: Path,
    error: type[KdmriError],
    *,
    unique: bool = False,
    finite: bool = True,
) -> Any:
    """Return what the bytes of a JSON file say.

    Args:
        data: The bytes.
        path: The file, for the message.
        error: Class of the exception.
        unique: Refuse an object that has a key twice. Python takes the last, other readers the
            first, so that nobody can tell what such a file means.
        finite: Refuse NaN and infinite numbers, see `finite_json`. False is for records that this
            project itself writes with such figures: of a training that diverged, of an image that
            is equal to its reference.

    Raises:
        KdmriError: Of the given type, when they are not JSON, a key is there twice, or a number is
            not finite.
    """
    try:
        text = data.decode("utf-8")
        if finite:
            return finite_json(text, unique=unique)
        return json.loads(text, object_pairs_hook=_unique if unique else None)
    except (ValueError, RecursionError) as cause:
        raise error(f"{path} is not readable JSON ({cause}).", "Make it again.") from cause


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:40]!r} is there twice")
        found[key] = value
    return found


@contextlib.contextmanager
def damaged(path: Path, error: type[KdmriError], remedy: str = "Make it again.") -> Iterator[None]:
    """Call a file damaged whose values are of other kinds than they should be.

    Raises:
        KdmriError: Of the given type, for what Python raises when it meets such values.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as cause:
        raise error(f"{path} is damaged ({type(cause).__name__}: {cause}).", remedy) from cause


def refuse_newer(
    path: Path | str,
    form: object,
    known: int,
    error: Callable[[str, str], KdmriError],
    *,
    named: str = "format",
    remedy: str = "Update kdmri-edge.",
) -> None:
    """Refuse a file of ours whose form is newer than what this version reads: it is not damaged.

    Args:
        path: The file, or what else the message calls it.
        form: Number of its form, as it says itself. What is no whole number is left to the reader.
        known: The newest one that this version reads.
        error: Makes the exception of what is wrong and of the remedy.
        named: What that number is called.
        remedy: What the user can do.

    Raises:
        KdmriError: The form is newer.
    """
    if isinstance(form, int) and not isinstance(form, bool) and form > known:
        raise error(
            f"{path} has {named} {form}, which a newer kdmri-edge wrote; this version reads up to"
            f" {known}.",
            remedy,
        )


def sha256_bytes(data: bytes) -> str:
    """Return the hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
