"""manifest.json of a bundle: what it may say, and the digest over all that it says.

The digest is the SHA-256 of the manifest as canonical JSON: keys sorted, no white space, ASCII. Two
keys are left out, `digest` itself and `signatures`, which sign it; and so are the hashes of
TensorRT's engines, which are built anew on the device. As the manifest holds the hash of every
file, the digest stands for the bundle as a whole.

A digest finds what was changed by accident, or by someone who did not compute it anew. That nobody
did is known only where the digest comes from somewhere else than the bundle (`verify --digest`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

from kdmri_edge.errors import BundleError
from kdmri_edge.physics.operators import Form
from kdmri_edge.physics.scaling import SCALING_RULE
from kdmri_edge.runtime.targets import PRECISIONS
from kdmri_edge.utils.files import parse_json, refuse_newer, sha256_file, write_json
from kdmri_edge.utils.reading import reading

__all__ = [
    "AGAIN",
    "DIGEST",
    "LARGEST_SIDE",
    "MANIFEST",
    "SCHEMA",
    "SIGNATURE",
    "SIGNATURES",
    "Manifest",
    "built_on_device",
    "digest_of",
    "read_manifest",
    "read_manifest_bytes",
    "write_manifest",
]

SCHEMA: Final = 1
MANIFEST: Final = "manifest.json"
DIGEST: Final = "digest"
"""Key of the digest, "sha256:" and 64 hexadecimal digits."""
SIGNATURES: Final = "signatures"
"""Key of earlier versions for signatures of the digest, a list of objects, which nothing wrote."""
SIGNATURE: Final = "manifest.json.sig"
"""The signature lies beside the manifest, whose very bytes it is for (`runtime.signature`)."""
LARGEST_SIDE: Final = 8192
"""Pixels of the largest side of a matrix that a manifest may name."""
AGAIN: Final = "Copy the bundle again, or export the network again."

_APART: Final = (MANIFEST, SIGNATURE)
"""What a manifest cannot account for: itself, and what is made of it."""
_COILS: Final = 1024
_OF_KSPACE: Final = 5
_REQUIRED: Final[dict[str, type]] = {
    "target": str,
    "graph": str,
    "io": dict,
    "mask": dict,
    "matrix": int,
    "scaling": dict,
    "dc": str,
    "files": dict,
}
_OPTIONAL: Final[dict[str, type]] = {
    "role": str,
    "spec": dict,
    "network": dict,
    "parameters": int,
    "macs": dict,
    "batch": str,
    "precision": str,
    "run_precision": str,
    "mask_input": bool,
    "matrix_multiple": int,
    "keep_op": bool,
    "coils": int,
    "checkpoint_sha256": str,
    "training": dict,
    "provenance": dict,
    "parity": dict,
    "transformed": dict,
    "transforms_as_products": int,
    "kept_in_float": dict,
    "executed": dict,
    "engine": dict,
    "measured": dict,
    DIGEST: str,
    SIGNATURES: list,
}
_ENGINE: Final = re.compile(r"model\.[^/]+\.(engine|json|timing)")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_NAME: Final = re.compile(r"[A-Za-z0-9_*]+")


class Manifest(NamedTuple):
    """A manifest that was read once: what is signed, and what is gone by, are the same bytes.

    Attributes:
        data: The file's bytes.
        content: What they say.
    """

    data: bytes
    content: dict[str, Any]


def built_on_device(name: str) -> bool:
    """Tell whether a file's name is that of a TensorRT engine, or of what lies beside one."""
    return _ENGINE.fullmatch(name) is not None


def digest_of(manifest: Mapping[str, Any]) -> str:
    """Return the digest over a manifest, "sha256:" and 64 hexadecimal digits."""
    covered = {key: manifest[key] for key in manifest if key not in (DIGEST, SIGNATURES)}
    if isinstance(files := covered.get("files"), Mapping):
        covered["files"] = {name: files[name] for name in files if not built_on_device(name)}
    text = json.dumps(covered, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write manifest.json: schema, the SHA-256 of every other file there, and the digest.

    Args:
        folder: The bundle.
        manifest: What it says. Signatures of an earlier digest are dropped.

    Raises:
        OutputError: The place cannot be written to.
    """
    names = sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())
    files = {name: sha256_file(folder / name) for name in names if name not in _APART}
    kept = {key: manifest[key] for key in manifest if key not in (DIGEST, SIGNATURES)}
    # as it will be read: tuples are lists then, and keys are text
    written = json.loads(json.dumps({"schema": SCHEMA, **kept, "files": files}))
    write_json(folder / MANIFEST, {**written, DIGEST: digest_of(written)})


def read_manifest(file: Path) -> dict[str, Any]:
    """Read a manifest, and refuse one that no export can have written.

    Raises:
        BundleError: It is no manifest, of a newer schema, does not agree with its digest or with
            itself, or holds a value that is of another kind than it should be or that this version
            does not know.
    """
    return read_manifest_bytes(file).content


def read_manifest_bytes(file: Path) -> Manifest:
    """Read a manifest, see `read_manifest`, and keep its bytes.

    Raises:
        BundleError: See `read_manifest`.
    """
    with reading(file, "a manifest", error=BundleError, remedy=AGAIN):
        data = file.read_bytes()
    return Manifest(data, _checked(file, parse_json(data, file, BundleError, unique=True)))


def _checked(file: Path, found: Any) -> dict[str, Any]:
    if not isinstance(found, dict) or not _is(found.get("schema"), int):
        raise BundleError(f"{file} is not a manifest.", "Export the network again.")
    manifest: dict[str, Any] = found
    refuse_newer(file, manifest["schema"], SCHEMA, BundleError, named="manifest schema")
    for key, kind in (_REQUIRED | _OPTIONAL).items():
        if not _is(manifest.get(key), kind) and (key in _REQUIRED or key in manifest):
            raise BundleError(f"{file} lacks a valid {key!r}.", AGAIN)
    if (wrong := next(_faults(manifest), None)) is not None:
        raise BundleError(f"{file} {wrong}.", AGAIN)
    if manifest.get(DIGEST, digest := digest_of(manifest)) != digest:
        raise BundleError(
            f"{file} is not what was exported (what it says does not agree with its digest).",
            AGAIN,
        )
    return manifest


def _is(value: object, kind: type) -> bool:
    """Tell whether a value of JSON is of a kind; true and false are no numbers."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _faults(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Say what in a manifest whose keys are of the right kinds cannot be."""
    side = manifest["matrix"]
    if not 1 <= side <= LARGEST_SIDE:
        yield f"names a matrix of {_shown(side)}, which is none"
    if manifest["scaling"] != SCALING_RULE:
        rule = _shown(manifest["scaling"])
        yield f"names a scaling rule that this version does not know ({rule})"
    if manifest["dc"] not in list(Form):
        yield f"names no form of data consistency that there is ({_shown(manifest['dc'])})"
    for key in ("precision", "run_precision"):
        if manifest.get(key, "f32") not in PRECISIONS.values():
            yield "names no precision that there is"
    if manifest.get("batch", "1") not in ("1", "dynamic"):
        yield "lacks a valid 'batch'"
    if not 1 <= manifest.get("matrix_multiple", 1) <= LARGEST_SIDE:
        yield "lacks a valid 'matrix_multiple'"
    if not 1 <= manifest.get("coils", 1) <= _COILS:
        yield "lacks a valid 'coils'"
    if not all(isinstance(one, dict) for one in manifest.get(SIGNATURES, ())):
        yield f"lacks a valid {SIGNATURES!r}"
    yield from _faults_of_files(manifest["files"])
    yield from _faults_of_mask(manifest["mask"], side)
    yield from _faults_of_ports(manifest["io"], side)


def _faults_of_files(files: Mapping[str, Any]) -> Iterator[str]:
    for name, value in files.items():
        inside = PurePosixPath(name)
        plain = "\\" not in name and ":" not in name and name == str(inside)
        if not plain or inside.is_absolute() or ".." in inside.parts or name in _APART:
            yield f"points outside its bundle ({name})"
        if not isinstance(value, str) or not _SHA256.fullmatch(value):
            yield f"holds no SHA-256 of {name}"


def _faults_of_mask(mask: Mapping[str, Any], side: int) -> Iterator[str]:
    shape, sampled = mask.get("shape"), mask.get("sampled")
    if not isinstance(mask.get("name"), str):
        yield "names a mask without a name"
    if not isinstance(shape, list) or shape not in ([side], [side, side]):
        yield f"names a mask of shape {_shown(shape)} for a matrix of {side}"
        return
    size = side if len(shape) == 1 else side * side
    if not isinstance(sampled, list) or not all(_is(n, int) and 0 <= n < size for n in sampled):
        yield "names samples that its mask does not have"
    if mask.get("zero_frequency_index", 0) != 0:
        yield "names a mask whose zero frequency is elsewhere than at index 0"


def _faults_of_ports(io: Mapping[str, Any], side: int) -> Iterator[str]:
    for name in ("input", "output", *io):
        port = io.get(name)
        if not isinstance(port, dict):
            yield f"does not describe its graph's {name!r}"
            return
        shape = port.get("shape")
        known = isinstance(port.get("name"), str) and port.get("dtype") == "float32"
        if not known or not isinstance(shape, list) or not all(map(_is_size, shape)):
            yield f"describes its graph's {name!r} wrongly"
            return
    given, made = io["input"]["shape"], io["output"]["shape"]
    if len(given) not in (_OF_KSPACE - 1, _OF_KSPACE) or len(made) != _OF_KSPACE - 1:
        yield f"describes images of shape {_shown(given)}, which are none"
        return
    free = isinstance(given[-1], str) and isinstance(given[-2], str)
    if given[-2:] != made[-2:] or (not free and given[-2:] != [side, side]):
        yield f"describes images of {_shown(given[-2:])} for a matrix of {side}"
    if "blank_coils" in io["input"] and not isinstance(io["input"]["blank_coils"], bool):
        yield "lacks a valid 'blank_coils'"


def _is_size(value: object) -> bool:
    if isinstance(value, str):
        return _NAME.fullmatch(value) is not None
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 4 * LARGEST_SIDE


def _shown(value: object) -> str:
    """Show a value of a stranger's on one line, in part."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
