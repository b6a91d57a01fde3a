"""A bundle: the folder that ships, with a manifest that accounts for every file in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdmri_edge.errors import BundleError
from kdmri_edge.models.shipped import refusal
from kdmri_edge.physics.masks import Mask
from kdmri_edge.runtime.contents import (
    GOLDEN_INPUT,
    GOLDEN_MAPS,
    GOLDEN_OPERATOR,
    GOLDEN_OUTPUT,
    OTHER,
    check_files,
    check_graph,
    check_mask,
)
from kdmri_edge.runtime.manifest import (
    AGAIN,
    DIGEST,
    MANIFEST,
    SCHEMA,
    SIGNATURE,
    read_manifest,
    read_manifest_bytes,
    write_manifest,
)
from kdmri_edge.runtime.scope import FreeSizes
from kdmri_edge.runtime.signature import Signature, check_signature
from kdmri_edge.runtime.targets import TARGETS, Target
from kdmri_edge.utils.files import damaged
from kdmri_edge.utils.keys import PublicKey

__all__ = [
    "GOLDEN_INPUT",
    "GOLDEN_MAPS",
    "GOLDEN_OPERATOR",
    "GOLDEN_OUTPUT",
    "MANIFEST",
    "OTHER",
    "SCHEMA",
    "Bundle",
    "foreign_files",
    "open_bundle",
    "write_manifest",
]

_OF_KSPACE = 5  # axes: batch, coils, real and imaginary part, height, width


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    Attributes:
        path: The folder.
        manifest: Contents of manifest.json.
        signature: What was found to hold of its signature; None where no key was given.
    """

    path: Path
    manifest: Mapping[str, Any]
    signature: Signature | None = None

    @property
    def target(self) -> Target:
        """Row of the table of targets."""
        return TARGETS[self.manifest["target"]]

    @property
    def graph(self) -> Path:
        """The graph that the runtime loads."""
        return self.path / str(self.manifest["graph"])

    @property
    def mask(self) -> Mask:
        """The sampling pattern that it reconstructs."""
        return Mask.from_dict(self.manifest["mask"])

    @property
    def takes_maps(self) -> bool:
        """Whether it combines coils, and is given their sensitivities beside each image."""
        return "maps" in self.manifest["io"]

    @property
    def reads_kspace(self) -> bool:
        """Whether it is given the coils' k-space in place of an image."""
        shape = self._input.get("shape")
        return isinstance(shape, list) and len(shape) == _OF_KSPACE

    @property
    def takes_blank_coils(self) -> bool:
        """Whether coils without a sample may fill a number of coils up that its graph fixes."""
        return bool(self._input.get("blank_coils", True))

    @property
    def _input(self) -> Mapping[str, Any]:
        port = self.manifest["io"].get("input")
        return port if isinstance(port, Mapping) else {}

    @property
    def free(self) -> FreeSizes | None:
        """Which matrices it takes beside the one that it was exported at; None for no others.

        Raises:
            BundleError: The manifest is damaged.
        """
        with damaged(self.path, BundleError, AGAIN):
            if not isinstance(self.manifest["io"]["input"]["shape"][2], str):
                return None
            return FreeSizes(multiple=int(self.manifest.get("matrix_multiple", 1)))

    @property
    def transforms(self) -> int:
        """Along how many axes its graph takes DFT matrices as inputs, H before W."""
        return sum(name in self.manifest["io"] for name in ("dft_height", "dft_width"))

    @property
    def written(self) -> str:
        """Precision that its graph is written in."""
        return str(self.manifest.get("precision", "f32"))

    @property
    def meant_for(self) -> str:
        """Precision that it runs in unless another one is asked for."""
        return str(self.manifest.get("run_precision", self.written))

    @property
    def fixed_coils(self) -> int | None:
        """Number of coils that its graph is made for; None where it takes any number, or none."""
        port = "maps" if self.takes_maps else "input" if self.reads_kspace else None
        coils = self.manifest["io"][port]["shape"][1] if port else None
        return coils if isinstance(coils, int) else None

    @property
    def digest(self) -> str | None:
        """Digest over its manifest, which stands for all of it; None of older versions' bundles."""
        digest = self.manifest.get(DIGEST)
        return None if digest is None else str(digest)

    @property
    def size(self) -> int:
        """Bytes of all its files, the manifest left out."""
        return sum((self.path / name).stat().st_size for name in self.manifest["files"])


def open_bundle(path: Path, *, verify: bool = True, keys: Sequence[PublicKey] = ()) -> Bundle:
    """Open a bundle.

    Args:
        path: Its folder.
        verify: Compare what lies in it with the manifest: every file's hash, and the mask. What is
            executed has to be opened so.
        keys: One of these has to have signed it; empty asks for no signature. What is signed are
            the bytes that the manifest is read from here. A signed bundle holds nothing that its
            manifest does not name, TensorRT's engines included.

    Raises:
        SignatureError: The signature is missing, or not what it should be.
        BundleError: Not a bundle, of a newer schema, of an unknown target, with a damaged
            manifest, with missing, changed or unnamed files, or made for another mask than it says.
    """
    if not (path / MANIFEST).is_file():
        raise refusal(
            path, BundleError, "Give the folder of a bundle, as `kdmri-edge export` wrote it."
        )
    read = read_manifest_bytes(path / MANIFEST)
    manifest = read.content
    if manifest["target"] not in TARGETS:
        raise BundleError(
            f"{path} is made for the unknown target {manifest['target']!r}.", "Update kdmri-edge."
        )
    signature = check_signature(path, read, keys) if keys else None
    if verify:
        check_files(path, manifest, engines=not keys)
        check_graph(path, manifest)
        check_mask(path, manifest)
    return Bundle(path, manifest, signature)


def foreign_files(path: Path) -> list[str]:
    """Name what lies in a folder and belongs to no bundle: replacing the folder would lose it.

    Args:
        path: Any folder, which may not exist.

    Returns:
        Relative names, sorted; empty for a bundle, whole or damaged, and for an empty folder.
    """
    golden = (GOLDEN_INPUT, GOLDEN_OUTPUT, GOLDEN_OPERATOR, GOLDEN_MAPS)
    known = {MANIFEST, SIGNATURE, *golden, *(OTHER + name for name in golden)}
    found = (file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir())
    try:
        known |= set(read_manifest(path / MANIFEST)["files"])
    except BundleError:
        # damaged, if a golden input lies beside it; else a folder of the user's, model.pt and all
        if not ((path / MANIFEST).is_file() and (path / GOLDEN_INPUT).is_file()):
            return sorted(found)
    stems = {target.graph_file.rpartition(".")[0] for target in TARGETS.values()}
    # "model.sm86.engine" was built beside the graph later
    return sorted(name for name in found if name not in known and name.split(".")[0] not in stems)
