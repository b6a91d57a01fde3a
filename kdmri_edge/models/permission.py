"""Which code may be imported and called: what the user named, now or earlier, on this machine.

A checkpoint's header names the code of its network. Whoever wrote the file may have written
anything there, `os:system?command=...` as well, so that opening a file must not call what it names.
What a user names is remembered in the cache folder with the SHA-256 of its source, and handed on to
the processes that are started from here.

A program of torch.export (.pt2) is such a file as well: to load one is to unpickle, to evaluate
expressions, and for a compiled one to run its machine code. So is a TorchScript archive (.pt) that
holds more than exports do (`runtime.graphs.torchscript`). What was written on this machine is
remembered by its SHA-256; others a user has to allow.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kdmri_edge.errors import BundleError, ModelError
from kdmri_edge.models.code import OBJECT, CodeReference
from kdmri_edge.utils.cache import cache_folder
from kdmri_edge.utils.files import atomic_path, sha256_bytes, sha256_file, write_json

__all__ = [
    "PermittedCode",
    "allow_code",
    "allow_program",
    "is_permitted_program",
    "is_program",
    "keep_object",
    "keep_program",
    "permitted_code",
    "permitted_program",
]

_PROGRAMS: Final = (".pt2", ".pt")

_NAMED: Final = "KDMRI_EDGE_CODE"
"""Environment variable with the references that were named in this process or in its parents."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PermittedCode:
    """Code that may be called.

    Attributes:
        reference: As it can be imported here: a file with its whole path.
        file: What holds its source; of a module that was given as an object, its pickle.
        sha256: Of that file, now.
    """

    reference: CodeReference
    file: Path
    sha256: str


def allow_code(reference: str) -> PermittedCode:
    """Allow code to be imported and called, from now on, on this machine.

    Networks that name this code, with these arguments, can be opened afterwards.

    Args:
        reference: "package.module:factory" or "FILE.py:factory", with arguments as
            "FILE.py:factory?width=16".

    Raises:
        ModelError: It is no reference, or there is no such file or module.
        OutputError: The cache folder cannot be written to.
    """
    named = CodeReference.parse(reference)
    code = _located(named)
    record = {
        "reference": str(named.portable),
        "sha256": code.sha256,
        "file": str(code.file),
    }
    key = sha256_bytes(f"{record['reference']} {code.sha256}".encode())
    write_json(_memory() / f"{key[:32]}.json", record)
    before = _named_here()
    if str(code.reference) not in before:
        os.environ[_NAMED] = "\n".join((*before, str(code.reference)))
    return code


def keep_object(name: str, pickled: bytes) -> PermittedCode:
    """Keep a module that was given as an object, so that processes started from here have it too.

    Args:
        name: Of its class.
        pickled: The module.

    Raises:
        OutputError: The cache folder cannot be written to.
    """
    sha256 = sha256_bytes(pickled)
    file = _object_file(sha256)
    if not file.is_file():
        with atomic_path(file) as temporary:
            temporary.write_bytes(pickled)
    reference = CodeReference(OBJECT, f"{name}_{sha256[:12]}")
    return PermittedCode(reference=reference, file=file, sha256=sha256)


def permitted_code(reference: str, sha256: str) -> PermittedCode:
    """Return the code of a network, if it may be called.

    Args:
        reference: What the network's specification names.
        sha256: Of the file that held the code when the network was made.

    Raises:
        ModelError: Nobody named that code on this machine, it has changed since, or it is gone.
    """
    wanted = CodeReference.parse(reference).portable
    if wanted.place == OBJECT:
        return _kept(wanted, sha256)
    named = [one for one in map(CodeReference.parse, _named_here()) if one.portable == wanted]
    there = [one for one in named if not one.is_file or Path(one.place).is_file()]
    if here := [_located(one) for one in there or named[-1:]]:
        # of files of one name in several folders the one that made the network; one that has
        # changed since was named again to be used as it is now
        return next((one for one in here if one.sha256 == sha256), here[-1])
    known = [entry for entry in _remembered() if entry["reference"] == str(wanted)]
    for entry in known:
        file = Path(entry["file"])
        if entry["sha256"] == sha256 and file.is_file() and sha256_file(file) == sha256:
            place = str(file) if wanted.is_file else wanted.place
            found = CodeReference(place, wanted.factory, wanted.arguments)
            return PermittedCode(reference=found, file=file, sha256=sha256)
    hint = f"FOLDER/{wanted}" if wanted.is_file else str(wanted)
    if any(entry["sha256"] == sha256 for entry in known):
        raise ModelError(
            f"The code {wanted} has changed, or moved, since the network was made.",
            f"Bring it back, or use it as it is now by --code '{hint}' before the command's name.",
        )
    why = "with another content" if known else "by nobody"
    raise ModelError(
        f"The network is made by code, {wanted} (SHA-256 {sha256[:12]}), that was named {why} on"
        " this machine, so it is not called.",
        f"If you know and trust it, put --code '{hint}' before the command's name"
        " (in Python `kdmri_edge.models.allow_code`).",
    )


def is_program(reference: str) -> bool:
    """Whether a user names a program of torch.export, a TorchScript archive, or a folder of one."""
    place = Path(reference)
    return place.suffix in _PROGRAMS or bool(_programs_in(place))


def _programs_in(folder: Path) -> list[Path]:
    return sorted(file for suffix in _PROGRAMS for file in folder.glob(f"*{suffix}"))


def allow_program(place: Path) -> None:
    """Allow a program to be loaded, from now on, on this machine.

    Args:
        place: A program of torch.export (.pt2), a TorchScript archive (.pt), or a folder: all that
            are in it.

    Raises:
        ModelError: There is none.
        OutputError: The cache folder cannot be written to.
    """
    files = _programs_in(place) if place.is_dir() else [place]
    if not files or not all(file.is_file() for file in files):
        raise ModelError(
            f"{place} is no program of torch.export or TorchScript, and holds none.",
            "Check the path.",
        )
    for file in files:
        keep_program(file)


def keep_program(file: Path) -> None:
    """Remember a program that was written here, or that a user allowed.

    Raises:
        OutputError: The cache folder cannot be written to.
    """
    write_json(_program_file(sha256_file(file)), {"program": file.name})


def is_permitted_program(file: Path) -> bool:
    """Whether a program was written or allowed on this machine."""
    return _program_file(sha256_file(file)).is_file()


def permitted_program(
    file: Path, why: str = "holds code and was not written on this machine"
) -> None:
    """Refuse a program that may not be loaded.

    Args:
        file: The program.
        why: What is to be said of one that is not known here.

    Raises:
        ModelError: It was neither written nor allowed on this machine.
        BundleError: There is no such file.
    """
    if not file.is_file():
        raise BundleError(f"{file} does not exist.", "Export the network again.")
    if not is_permitted_program(file):
        raise ModelError(
            f"{file} (SHA-256 {sha256_file(file)[:12]}) {why}, so it is not loaded.",
            f"If you know and trust it, put --code '{file.parent}' before the command's name"
            " (in Python `kdmri_edge.models.allow_program`), or take a bundle of ONNX.",
        )


def _program_file(sha256: str) -> Path:
    return _memory() / f"program-{sha256}.json"


def _located(named: CodeReference) -> PermittedCode:
    """Find the source of what a user named, which may import the packages around a module."""
    if named.is_file:
        file = Path(named.place)
        if not file.is_file():
            raise ModelError(f"{named.place} does not exist.", "Check the path before the colon.")
        return PermittedCode(
            reference=named.absolute, file=file.resolve(), sha256=sha256_file(file)
        )
    try:
        found = importlib.util.find_spec(named.place)
    except (ImportError, ValueError) as error:
        raise _no_module(named, f" ({error})") from error
    except (Exception, SystemExit) as error:  # of the packages around it, which are imported
        said = " ".join(str(error).split())[:300].rstrip(".") or "no message"
        raise ModelError(
            f"A package around {named.place} cannot be imported: {type(error).__name__}: {said}.",
            "Mend it, or name the module's file: FILE.py:FACTORY.",
        ) from error
    if found is None:
        raise _no_module(named)
    if found.origin is None or not Path(found.origin).is_file():
        raise ModelError(
            f"The module {named.place} is no file of Python.", "Name a module that makes networks."
        )
    file = Path(found.origin)
    return PermittedCode(reference=named, file=file, sha256=sha256_file(file))


def _no_module(named: CodeReference, why: str = "") -> ModelError:
    return ModelError(
        f"There is no module {named.place!r}{why}.",
        f"Install the package that brings it, or name its file: FILE.py:{named.factory}.",
    )


def _kept(wanted: CodeReference, sha256: str) -> PermittedCode:
    file = _object_file(sha256)
    if not file.is_file() or sha256_file(file) != sha256:
        raise ModelError(
            f"The network is made by {wanted}, an object of a Python session on another machine.",
            "Export it where it was made: bundles run everywhere.",
        )
    return PermittedCode(reference=wanted, file=file, sha256=sha256)


def _memory() -> Path:
    return cache_folder() / "code"


def _object_file(sha256: str) -> Path:
    return _memory() / f"{sha256[:32]}.pickle"


def _named_here() -> list[str]:
    return [line for line in os.environ.get(_NAMED, "").splitlines() if line]


def _remembered() -> Iterator[dict[str, Any]]:
    """Yield what was named on this machine; what cannot be read was not."""
    for file in sorted(_memory().glob("*.json")):
        try:
            entry = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(entry, dict) and {"reference", "sha256", "file"} <= entry.keys():
            yield entry
