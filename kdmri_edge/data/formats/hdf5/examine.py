"""A stranger's HDF5 file, walked through once before it is used; also a program of its own.

libhdf5 may crash or never return on damaged files. As a program (`opening` starts it) this takes
paths on standard input, one JSON object a line, and answers each with what is wrong; a file that
kills it, or that it cannot finish in time, shows as the end of the process. It imports nothing of
this package, to start fast.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import signal
import sys
from typing import Any, Final, NamedTuple

import h5py
import numpy as np

__all__ = ["Objection", "objection", "serve"]

_PLAIN: Final = (
    h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32
)  # fmt: skip
_GAIN: Final = 1032  # of deflate, at most
_SMALL: Final = 16 * 2**20  # datasets up to here are read as a whole
_BLOCK: Final = 4 * 2**20
_AGAIN: Final = "The file is damaged or cut short: copy it again."
_INSIDE: Final = "Copy the data into the file itself (h5repack, or h5py), and give that one."


class Objection(NamedTuple):
    """Why a file is not read.

    Attributes:
        what: A clause that follows the file's name: "has a link to another file (/a)."
        remedy: What to do about it.
    """

    what: str
    remedy: str


def objection(path: str, *, contents: bool, largest: int) -> Objection | None:
    """Walk through a file.

    Args:
        path: The file.
        contents: Read attributes, and of the datasets whatever libhdf5 has to interpret: small
            ones, those of variable length, those behind uncommon filters, the index of chunks.
        largest: Bytes of the largest dataset that is read.

    Returns:
        None for a file that stands alone and can be walked through.

    Raises:
        Exception: Of any type, for a damaged one.
    """
    with h5py.File(path, "r") as file:
        seen = {_place(file)}
        waiting = [file]
        while waiting:
            group = waiting.pop()
            if contents:
                _read_attributes(group)
            for key in group:
                name = f"{group.name.rstrip('/')}/{key}"
                link = group.get(key, getlink=True)
                if isinstance(link, h5py.ExternalLink):
                    return Objection(f"has a link to another file ({name}).", _INSIDE)
                node = group.get(key)
                if node is None:
                    return Objection(
                        f"has a broken link ({name}).", "Remove it, or write the file again."
                    )
                if isinstance(link, h5py.SoftLink) or _place(node) in seen:
                    continue  # what it leads to has a name of its own, or was looked at
                seen.add(_place(node))
                if isinstance(node, h5py.Group):
                    waiting.append(node)
                elif isinstance(node, h5py.Dataset):
                    found = _of_dataset(node, name)
                    if found is not None:
                        return found
                    if contents:
                        _read_attributes(node)
                        _read(node, largest)
    return None


def _place(node: Any) -> tuple[int, int]:
    info = h5py.h5o.get_info(node.id)
    return info.fileno, info.addr


def _of_dataset(node: h5py.Dataset, name: str) -> Objection | None:
    settings = node.id.get_create_plist()
    if settings.get_external_count():
        return Objection(f"keeps {name} in another file (external storage).", _INSIDE)
    if settings.get_layout() == h5py.h5d.VIRTUAL:
        return Objection(f"has a virtual dataset, made of other files ({name}).", _INSIDE)
    if _overlap(node.dtype):
        return Objection(f"holds numbers of a kind that nothing reads ({name}).", _AGAIN)
    return None


def _overlap(dtype: np.dtype[Any]) -> bool:
    """Whether parts of a compound lie over each other, or beyond its end.

    h5py takes numbers of unusual exponents for larger ones, in the place of the small ones; libhdf5
    then writes past the end of the array.
    """
    if dtype.subdtype is not None:
        return _overlap(dtype.subdtype[0])
    end = 0
    for part, begin, *_ in sorted((dtype.fields or {}).values(), key=lambda field: field[1]):
        if begin < end or _overlap(part):
            return True
        end = begin + part.itemsize
    return end > dtype.itemsize


def _read_attributes(node: Any) -> None:
    for name in node.attrs:
        node.attrs[name]


def _read(node: h5py.Dataset, largest: int) -> None:
    """Have libhdf5 interpret what the reader will ask it for."""
    shape, dtype = node.shape, node.dtype
    if not shape:
        node[()]
        return
    size = math.prod(shape) * dtype.itemsize
    if size == 0 or size > largest:
        return  # the reader refuses the latter by itself
    chunks: list[Any] = []
    if node.chunks is not None:
        node.id.chunk_iter(chunks.append)
    settings = node.id.get_create_plist()
    filters = [settings.get_filter(number)[0] for number in range(settings.get_nfilters())]
    if size <= _SMALL or dtype.hasobject or any(_uncommon(each) for each in filters):
        _in_blocks(node)
        return
    for chunk in chunks:
        if _GAIN * chunk.size > largest:  # it may be a bomb: here memory is bounded
            area = tuple(
                slice(begin, begin + extent)
                for begin, extent in zip(chunk.chunk_offset, node.chunks, strict=True)
            )
            node[area]


def _uncommon(number: int) -> bool:
    """Whether a filter is none of those that are as robust as they are common; and is there."""
    return number not in _PLAIN and bool(h5py.h5z.filter_avail(number))


def _in_blocks(node: h5py.Dataset) -> None:
    row = max(1, math.prod(node.shape[1:]) * node.dtype.itemsize)
    step = max(1, _BLOCK // row)
    for start in range(0, node.shape[0], step):
        node[start : start + step]


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    try:
        found = objection(asked["path"], contents=True, largest=asked["largest"])
    except FileNotFoundError:
        return {}  # whoever opens it says so
    # damage makes libhdf5 and h5py raise errors of any type
    except Exception as error:
        return {"what": f"cannot be read as HDF5 ({type(error).__name__}).", "remedy": _AGAIN}
    return {} if found is None else found._asdict()


def _address_space() -> int | None:
    """Bytes of addresses that this process has; None where the system does not tell."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        return None  # Windows, macOS: the time alone is bounded


def _bound_memory(soft: int) -> None:
    """Let this process have so many bytes of addresses, and leave no dump of itself."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(
            resource.RLIMIT_AS, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard)
        )
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _free_unused() -> None:
    """Let libhdf5 give back what it keeps: where it wrote past an end, this ends the process."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(h5py.h5.__file__).H5garbage_collect()


def serve() -> None:
    """Answer until standard input ends."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(2, 1)  # so that nothing that a library prints is taken for an answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started this ends it
    np.seterr(all="ignore")
    own = _address_space()
    print(json.dumps({}), file=out, flush=True)  # ready
    for line in sys.stdin:
        asked = json.loads(line)
        if own is not None:
            _bound_memory(own + asked["memory"])
        if hasattr(signal, "setitimer"):  # of the processor's time, not the clock's
            signal.setitimer(signal.ITIMER_PROF, asked["seconds"])
        answer = _answer(asked)
        _free_unused()
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    serve()
