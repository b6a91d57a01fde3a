"""Reading what strangers wrote: how much memory a file may claim, and one sentence for the rest.

Every reader of users' files goes through `reading`. What a file claims of its own size is compared
with `memory_limit` by `check_claim`, before anything of that size is allocated.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Final

from kdmri_edge.errors import DataError, KdmriError
from kdmri_edge.utils.memory import physical_memory

__all__ = [
    "BYTES",
    "MAX_MEMORY",
    "TRUST",
    "check_claim",
    "file_bytes",
    "limited",
    "machine_memory",
    "memory_limit",
    "parse_size",
    "reading",
    "size_in_words",
    "trusted",
]

MAX_MEMORY: Final = "KDMRI_MAX_MEMORY"
"""Environment variable: the largest array that a file may hold, as "8GiB" or in bytes."""
TRUST: Final = "KDMRI_TRUST_FILES"
"""Environment variable: "1" where all files are one's own, see `trusted`."""
BYTES: Final = {
    "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30,
}  # fmt: skip
"""Units of sizes that users write."""

_GAIN: Final = 1032
"""Most bytes that one compressed byte stands for: the limit of deflate (RFC 1951), which NIfTI,
DICOM and HDF5 use; other compressors of HDF5 reach less on images."""
_SMALL: Final = 64 * 2**20
"""Claims up to here are not compared with what is stored."""
_FALLBACK: Final = 8 * 2**30
_AGAIN: Final = "The file is damaged or cut short: copy it again."
_CGROUP: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")

_limit: ContextVar[int | None] = ContextVar("kdmri_edge_memory_limit", default=None)
_trust: ContextVar[bool | None] = ContextVar("kdmri_edge_trust", default=None)


def parse_size(text: str, name: str) -> int:
    """Read a number of bytes, with or without a unit.

    Args:
        text: "8GiB", "500 MB", "1000000".
        name: What it was given as, for the message.

    Raises:
        DataError: No positive number, or an unknown unit.
    """
    match = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)\s*", text)
    units = {"": 1, "b": 1, **{unit.lower(): factor for unit, factor in BYTES.items()}}
    size = 0 if match is None else int(float(match[1]) * units.get(match[2].lower(), 0))
    if size < 1:
        raise DataError(
            f"{name} {text!r} is no number of bytes.", f"Units are {', '.join(BYTES)}: 8GiB."
        )
    return size


@cache
def machine_memory() -> int:
    """Bytes of memory that this machine, or the container that this is run in, has."""
    found = [physical_memory()]
    for file in _CGROUP:
        with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
            found.append(int(Path(file).read_text(encoding="ascii")))
    return min((size for size in found if size > 0), default=_FALLBACK)


def memory_limit() -> int:
    """Bytes of the largest array that a file may hold.

    That of `limited`, else of $KDMRI_MAX_MEMORY, else half of the machine's memory.

    Raises:
        DataError: The environment variable is no size.
    """
    if (own := _limit.get()) is not None:
        return own
    told = os.environ.get(MAX_MEMORY, "")
    return parse_size(told, f"${MAX_MEMORY}") if told else machine_memory() // 2


def trusted() -> bool:
    """Whether HDF5 is opened without being tried first in a process of its own."""
    own = _trust.get()
    return os.environ.get(TRUST, "") not in ("", "0") if own is None else own


@contextlib.contextmanager
def limited(memory: int | None = None, trust: bool | None = None) -> Iterator[None]:
    """Set what `memory_limit` and `trusted` return, in this thread.

    Args:
        memory: In bytes; None leaves it as it is.
        trust: None leaves it as it is.
    """
    kept = _limit.set(_limit.get() if memory is None else memory)
    also = _trust.set(_trust.get() if trust is None else trust)
    try:
        yield
    finally:
        _limit.reset(kept)
        _trust.reset(also)


def check_claim(
    size: int, what: object, *, stored: int | None = None, error: type[KdmriError] = DataError
) -> None:
    """Refuse what is too large to be read, before it is allocated.

    Args:
        size: Bytes that an array takes, shape times item size.
        what: Whose it is, for the message.
        stored: Bytes of the file that hold it, where that is known: a claim that no compression
            explains is a mistake, or a trap.
        error: Class of the exception.

    Raises:
        KdmriError: Of that class.
    """
    limit = memory_limit()
    if size > limit:
        raise error(
            f"{what} claims {size_in_words(size)} of memory, and {size_in_words(limit)} are"
            " allowed.",
            f"If that is its real size, raise the limit: --max-memory, or ${MAX_MEMORY}.",
        )
    if stored is not None and size > max(_SMALL, _GAIN * stored):
        raise error(
            f"{what} claims {size_in_words(size)}, of which the file holds"
            f" {size_in_words(stored)}.",
            _AGAIN,
        )


def size_in_words(size: int) -> str:
    """Return a number of bytes as one reads it: "1.5 GiB"."""
    if size > 2**80:
        return f"10^{int(math.log10(size))} bytes"
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.4g} {unit}"
    return f"{size} bytes"


def file_bytes(path: Path) -> int:
    """Return the size of a file."""
    return path.stat().st_size


@contextlib.contextmanager
def reading(
    path: object, kind: str, *, error: type[KdmriError] = DataError, remedy: str = _AGAIN
) -> Iterator[None]:
    """Turn whatever a file makes its reader raise into one sentence: the one place for it.

    Libraries let errors of any type through for bytes that make no sense, so that no list of them
    is complete; the original one is kept as the cause. What this project raises passes, and so do
    libraries that cannot be imported.

    Args:
        path: What is read, for the message.
        kind: As what: "NIfTI", "a mask".
        error: Class of the exception.
        remedy: What to do about it.

    Raises:
        KdmriError: Of that class.
    """
    try:
        yield
    except (KdmriError, ImportError):
        raise
    except FileNotFoundError as cause:
        raise error(f"{path} does not exist.", "Check the path.") from cause
    except PermissionError as cause:
        raise error(f"{path} may not be read.", "Check its permissions.") from cause
    except MemoryError as cause:
        raise error(
            f"{path} needs more memory than there is.",
            "Close other programs, or give a part of it.",
        ) from cause
    except RecursionError as cause:
        raise error(f"{path} is nested too deeply to be {kind}.", remedy) from cause
    except Exception as cause:
        raise error(f"{path} cannot be read as {kind} ({type(cause).__name__}).", remedy) from cause
