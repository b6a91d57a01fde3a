"""An image in a file, as `docker save` and `podman save` write it: its label, and its files.

Only the format that all of them write is read: a tar file with manifest.json, the image's
configuration, and a tar file for each layer.
"""

from __future__ import annotations

import contextlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from kdmri_edge.errors import DataError

__all__ = ["files_of", "labels_of"]

_SAVE: Final = "Write it with `docker save --output FILE.tar IMAGE`."
_GONE: Final = ".wh."
_EMPTIED: Final = ".wh..wh..opq"


def labels_of(file: Path) -> dict[str, str]:
    """Return the labels of an image.

    Raises:
        DataError: The file is no image.
    """
    with _opened(file) as (archive, manifest):
        configuration = json.loads(_bytes(archive, manifest["Config"]))
        return dict(configuration.get("config", {}).get("Labels") or {})


def files_of(file: Path, merged: Path) -> int:
    """Write the files of an image, all layers on top of each other, as one tar file.

    Args:
        file: The image.
        merged: The tar file.

    Returns:
        What the files take on a disk of blocks of 4 KiB, in bytes.

    Raises:
        DataError: The file is no image.
    """
    with _opened(file) as (archive, manifest), contextlib.ExitStack() as stack:
        found: dict[str, tuple[tarfile.TarFile, tarfile.TarInfo]] = {}
        for name in manifest["Layers"]:
            stream = archive.extractfile(name)
            assert stream is not None
            layer = stack.enter_context(tarfile.open(fileobj=stream))
            members = [(one.name.removeprefix("./").strip("/"), one) for one in layer]
            for path, _ in members:  # what a layer takes away is of those below it
                folder, _, last = path.rpartition("/")
                if last == _EMPTIED:
                    _forget(found, folder, itself=False)
                elif last.startswith(_GONE):
                    _forget(found, f"{folder}/{last.removeprefix(_GONE)}".lstrip("/"))
            for path, member in members:
                if path and not path.rpartition("/")[2].startswith(_GONE):
                    if path in found and found[path][1].isdir() and not member.isdir():
                        _forget(found, path)
                    found[path] = (layer, member)
        # folders first and links last: nothing is ever written through a link
        order = sorted(found, key=lambda path: (_rank(found[path][1]), path))
        with tarfile.open(merged, "w") as out:
            for path in order:
                layer, member = found[path]
                member.name = path
                if ".." in path.split("/"):
                    raise DataError(f"{file} holds {path!r}.", "Build the image anew.")
                out.addfile(member, layer.extractfile(member) if member.isreg() else None)
        return sum(-(-max(found[path][1].size, 1) // 4096) * 4096 for path in order)


def _rank(member: tarfile.TarInfo) -> int:
    return 0 if member.isdir() else 3 if member.issym() else 2 if member.islnk() else 1


def _forget(found: dict[str, Any], path: str, *, itself: bool = True) -> None:
    for each in [each for each in found if each.startswith(f"{path}/" if path else "")]:
        del found[each]
    if itself:
        found.pop(path, None)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[tuple[tarfile.TarFile, dict[str, Any]]]:
    try:
        with tarfile.open(file) as archive:
            manifest = json.loads(_bytes(archive, "manifest.json"))
            yield archive, manifest[0]
    except FileNotFoundError:
        raise DataError(f"{file} does not exist.", _SAVE) from None
    except (OSError, tarfile.TarError, KeyError, ValueError, IndexError, TypeError) as error:
        raise DataError(f"{file} is no saved image ({error}).", _SAVE) from error


def _bytes(archive: tarfile.TarFile, name: str) -> bytes:
    stream = archive.extractfile(name)
    if stream is None:
        raise KeyError(name)
    return stream.read()
