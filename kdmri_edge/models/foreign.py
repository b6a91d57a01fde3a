"""What a file is that somebody names as a network and that is none of this project's.

Files are told by their first bytes, and by their names where these say nothing, without running
or unpickling any of them.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

__all__ = ["HDF5", "OURS", "UNTOLD", "file_kind"]

OURS: Final = "a checkpoint"
"""What `file_kind` calls a checkpoint that this project wrote."""
HDF5: Final = "an HDF5 file"
_EMPTY: Final = "an empty file"
_UNKNOWN: Final = "a file of unknown format"
UNTOLD: Final = frozenset({_EMPTY, _UNKNOWN})
"""What `file_kind` says where neither content nor name tell."""

_HEAD: Final = 512
_LARGEST_HEADER: Final = 64 << 20

_BY_SUFFIX: Final = {
    ".onnx": "an ONNX graph",
    ".engine": "a TensorRT engine",
    ".plan": "a TensorRT engine",
    ".trt": "a TensorRT engine",
    ".tflite": "a TensorFlow Lite model",
    ".mlmodel": "a Core ML model",
    ".pt2": "a torch.export program",
    ".keras": "a Keras model",
    ".nii": "an image (NIfTI)",
    ".dcm": "an image (DICOM)",
    ".json": "a JSON file",
    ".toml": "a TOML file",
}


def _archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    # beside its own errors the package lets through those of names, versions and numbers
    except Exception:
        return "a damaged archive"
    if any("/code/" in name for name in names):
        return "a TorchScript program"
    if any(name.endswith("/data.pkl") for name in names):
        return "a PyTorch checkpoint"
    if any(name.endswith("model.json") or "serialized_" in name for name in names):
        return "a torch.export program"
    if any(name.endswith(".npy") for name in names):
        return "a NumPy archive"
    return "a Keras model" if "model.weights.h5" in names else "a zip archive"


def _safetensors_header(path: Path, head: bytes) -> dict[str, Any] | None:
    """Return the header of a safetensors file, None for any other."""
    if len(head) < 8:
        return None
    (length,) = struct.unpack("<Q", head[:8])
    if not 2 <= length <= min(_LARGEST_HEADER, path.stat().st_size - 8):
        return None
    try:
        with path.open("rb") as stream:
            stream.seek(8)
            header = json.loads(stream.read(length))
    except (ValueError, RecursionError):
        return None
    told = header.get("__metadata__", {}) if isinstance(header, dict) else None
    return header if isinstance(told, dict | None) and isinstance(header, dict) else None


# A test of a file and its first bytes, and what it then is; the first that holds counts.
_BY_CONTENT: Final[tuple[tuple[Callable[[Path, bytes], bool], str], ...]] = (
    (lambda path, head: not head, _EMPTY),
    # older PyTorch pickles without an archive around it
    (
        lambda path, head: (
            head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
        ),
        "a pickle (PyTorch checkpoint of an older kind)",
    ),
    (lambda path, head: head.startswith(b"\x89HDF\r\n\x1a\n"), HDF5),
    (lambda path, head: head.startswith(b"\x93NUMPY"), "an array (NumPy)"),
    (lambda path, head: head[4:8] == b"TFL3", "a TensorFlow Lite model"),
    (lambda path, head: head[128:132] == b"DICM", "an image (DICOM)"),
    (lambda path, head: b"<net " in head and b"<?xml" in head, "an OpenVINO graph"),
    (
        lambda path, head: head.startswith(b"\x1f\x8b") and path.name.endswith(".nii.gz"),
        "an image (NIfTI)",
    ),
)


def file_kind(path: Path) -> str:
    """Say what a file is, with its article: "a PyTorch checkpoint", "an ONNX graph".

    Args:
        path: A file that exists.

    Returns:
        One of `UNTOLD` where neither content nor name tell.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
        if head.startswith(b"PK\x03\x04"):
            return _archive(path)
        header = _safetensors_header(path, head)
        if header is not None:
            ours = "kdmri" in (header.get("__metadata__") or {})
            return OURS if ours else "a safetensors file of another program"
        for holds, kind in _BY_CONTENT:
            if holds(path, head):
                return kind
    except OSError:
        return "a file that cannot be read"
    return _BY_SUFFIX.get(path.suffix.lower(), _UNKNOWN)
