"""Changing what a bundle's manifest says, as its owner or as somebody else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdmri_edge.runtime.manifest import DIGEST, MANIFEST, digest_of
from kdmri_edge.utils.files import sha256_file


def edit_manifest(
    folder: Path, change: Callable[[dict[str, Any]], object], *, sealed: bool = True
) -> None:
    """Change a manifest in place.

    Args:
        folder: The bundle.
        change: Is given the manifest.
        sealed: Compute the digest anew, as one who wants to deceive would.
    """
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    change(manifest)
    if sealed:
        manifest[DIGEST] = digest_of(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def rehash(manifest: dict[str, Any], folder: Path, *names: str) -> None:
    """Give files of a bundle, or all that are named, the hashes that they have now."""
    for name in names or list(manifest["files"]):
        manifest["files"][name] = sha256_file(folder / name)
