"""What lies in a bundle, compared with its manifest before anything of it is executed.

Files: all that are named and nothing else, none of them a link, each with its SHA-256. The graph:
takes no weights from elsewhere. The mask: that of the constant which the graph holds, of the golden
operator, and of the golden input, whose k-space shows what was sampled.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import BundleError
from kdmri_edge.models.specs import described_spec
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.operators import Form, operator_array
from kdmri_edge.physics.sampled_by import contradicted_by, enforced_by, enforcement
from kdmri_edge.runtime.graphs import onnx, openvino, torchscript
from kdmri_edge.runtime.manifest import AGAIN, MANIFEST, SIGNATURE, built_on_device
from kdmri_edge.runtime.targets import TARGETS
from kdmri_edge.utils.arrays import read_array
from kdmri_edge.utils.files import damaged, sha256_file

__all__ = [
    "GOLDEN_INPUT",
    "GOLDEN_MAPS",
    "GOLDEN_OPERATOR",
    "GOLDEN_OUTPUT",
    "OTHER",
    "check_files",
    "check_graph",
    "check_mask",
    "golden_array",
]

GOLDEN_INPUT: Final = "golden_input.npy"
GOLDEN_OUTPUT: Final = "golden_output.npy"
GOLDEN_OPERATOR: Final = "golden_operator.npy"
GOLDEN_MAPS: Final = "golden_maps.npy"
OTHER: Final = "other_"
"""What stands before these names for golden data of another matrix, which bundles of any have."""

_OF_KSPACE: Final = 5  # axes: batch, coils, real and imaginary part, height, width
_SAME: Final = 1e-4


def check_files(path: Path, manifest: Mapping[str, Any], *, engines: bool = True) -> None:
    """Refuse a folder that is not what its manifest names, file by file.

    Args:
        path: The bundle.
        manifest: Its manifest.
        engines: Engines that TensorRT built on the device may lie in it beside what was exported.

    Raises:
        BundleError: A file is missing, changed, a link, or not named.
    """
    files: Mapping[str, str] = manifest["files"]
    if manifest["graph"] not in files:
        raise BundleError(f"The manifest of {path} does not account for its graph.", AGAIN)
    built = TARGETS[manifest["target"]].builds_engines
    found = set()
    for name, kind in _entries(path):
        if kind != "file":
            raise BundleError(
                f"{path / name} is {kind}, and a bundle holds files alone.",
                "Copy the bundle whole, without links.",
            )
        found.add(name)
        if name in files or name in (MANIFEST, SIGNATURE):
            continue
        if built and built_on_device(name) and not engines:
            raise BundleError(
                f"{path} holds {name}, which was built after the bundle was signed.",
                "Sign it again: `kdmri-edge sign` accounts for engines that are there.",
            )
        if not (built and built_on_device(name)):
            raise BundleError(
                f"{path} holds {name}, which its manifest does not name.",
                "Remove it, or copy the bundle again.",
            )
    for name, wanted in files.items():
        if name not in found:
            raise BundleError(f"{path} lacks its file {name}.", "Copy the bundle again, whole.")
        if sha256_file(path / name) != wanted:
            raise BundleError(
                f"{path / name} is not what was exported (its SHA-256 differs).", AGAIN
            )


def _entries(folder: Path, below: str = "") -> Iterator[tuple[str, str]]:
    """Yield what lies in a folder, and whether that is a file, without following links."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            name = below + entry.name
            if entry.is_symlink():
                yield name, "a link"
            elif entry.is_dir(follow_symlinks=False):
                yield from _entries(Path(entry.path), f"{name}/")
            else:
                regular = entry.is_file(follow_symlinks=False)
                yield name, "file" if regular else "a device or a pipe"


def check_graph(path: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse a graph of another kind than its target's, or one that takes weights from elsewhere.

    Raises:
        BundleError: It is one of these, or cannot be read.
    """
    target, graph = TARGETS[manifest["target"]], path / manifest["graph"]
    if graph.suffix != target.suffix:
        raise BundleError(
            f"The manifest of {path} names {graph.name} as a graph of target {target.name!r},"
            f" whose graphs are {target.suffix} files.",
            AGAIN,
        )
    if graph.suffix != ".onnx":
        return
    for tensor in onnx.tensors(graph):
        if not tensor.external:
            continue
        location = tensor.entries.get("location", "")
        inside = PurePosixPath(location)
        if inside.is_absolute() or ".." in inside.parts or location not in manifest["files"]:
            raise BundleError(
                f"{graph} takes weights from {location!r}, which the bundle does not account for.",
                AGAIN,
            )


def check_mask(path: Path, manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Compare a manifest's mask with what the bundle's own files say of it.

    Returns:
        What agrees with the mask: "the graph", "the golden operator", "the golden input". Empty
        where nothing holds it.

    Raises:
        BundleError: Something is made for another mask, or golden data is damaged or of another
            matrix.
    """
    mask, form = Mask.from_dict(manifest["mask"]), Form(manifest["dc"])
    of_kspace = len(manifest["io"]["input"]["shape"]) == _OF_KSPACE
    sense = "maps" in manifest["io"]
    channels = 2 if sense else int(manifest["io"]["output"]["shape"][1])
    if channels not in (1, 2):
        raise BundleError(f"The manifest of {path} describes images that are none.", AGAIN)
    agreeing = []
    graph = path / manifest["graph"]
    width = int(manifest["matrix"])
    if not of_kspace and not manifest.get("mask_input") and _is_consistent(path, manifest):
        wanted = enforcement(mask, channels)
        held = (enforced_by(one, form, mask.height, width, channels) for one in _constants(graph))
        known = [one for one in held if one is not None]
        if any(one.shape == wanted.shape and (one == wanted).all() for one in known):
            agreeing.append("the graph")
        elif known:
            raise _other_mask(path, mask, "the constant of data consistency in the graph is")
    operator = _listed(path, manifest, GOLDEN_OPERATOR)
    if operator is not None:
        own = operator_array(mask, form, channels)
        if operator.shape != own.shape or np.abs(operator - own).max() > _SAME:
            raise _other_mask(path, mask, f"{GOLDEN_OPERATOR} is")
        agreeing.append("the golden operator")
    _check_shapes(path, manifest)
    golden = _listed(path, manifest, GOLDEN_INPUT)
    if golden is not None and not sense:
        wanted = enforcement(mask, 2 if of_kspace else channels)
        _check_held(path, mask, golden, wanted, of_kspace=of_kspace)
        agreeing.append("the golden input")
    return tuple(agreeing)


def _is_consistent(path: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether a network has data consistency, whose operator its graph then holds or is given."""
    if "spec" not in manifest:
        return False
    with damaged(path / MANIFEST, BundleError, AGAIN):
        return described_spec(manifest).has_data_consistency


def _other_mask(path: Path, mask: Mask, what: str) -> BundleError:
    return BundleError(
        f"The manifest of {path} names mask {mask.name!r} of {int(mask.samples.sum())} samples, and"
        f" {what} made for another one.",
        AGAIN,
    )


def _constants(graph: Path) -> Iterable[NDArray[Any]]:
    """Return the constants of a graph, where its kind of file can be read without its runtime."""
    if graph.suffix == ".onnx":
        arrays = (tensor.array() for tensor in onnx.tensors(graph))
        return [one for one in arrays if one is not None]
    if graph.suffix == ".xml":
        return openvino.constants(graph)
    if graph.suffix == ".pt" and torchscript.refused(graph) is None:
        return torchscript.constants(graph)
    return []


def golden_array(path: Path, manifest: Mapping[str, Any], name: str) -> NDArray[np.float32]:
    """Read golden data of a bundle.

    Raises:
        BundleError: The manifest does not name it, or it is no array of finite float32.
    """
    if name not in manifest["files"]:
        raise BundleError(f"{path} lacks its file {name}.", "Export the network again.")
    file = path / name
    array: NDArray[np.float32] = read_array(
        file, kind="golden data", error=BundleError, remedy=AGAIN
    )
    if array.dtype != np.float32 or not np.isfinite(array).all():
        raise BundleError(f"{file} holds no finite float32.", AGAIN)
    return array


def _listed(path: Path, manifest: Mapping[str, Any], name: str) -> NDArray[np.float32] | None:
    return golden_array(path, manifest, name) if name in manifest["files"] else None


def _check_shapes(path: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse golden data of other shapes than the graph's."""
    io, side = manifest["io"], manifest["matrix"]
    for name, port in ((GOLDEN_INPUT, "input"), (GOLDEN_OUTPUT, "output"), (GOLDEN_MAPS, "maps")):
        array = _listed(path, manifest, name)
        if array is None:
            continue
        wanted = io.get(port, {}).get("shape", [])
        fits = len(array.shape) == len(wanted) and array.shape[-2:] == (side, side)
        if not fits or not all(
            isinstance(size, str) or size == own
            for size, own in zip(wanted[1:-2], array.shape[1:-2], strict=True)
        ):
            raise BundleError(
                f"{path / name} is {list(array.shape)}, and the graph's {port} is {wanted} at a"
                f" matrix of {side}.",
                AGAIN,
            )


def _check_held(
    path: Path,
    mask: Mask,
    golden: NDArray[np.float32],
    wanted: NDArray[np.float64],
    *,
    of_kspace: bool,
) -> None:
    """Refuse a golden input that was sampled otherwise."""
    exact = golden.astype(np.float64)
    if of_kspace:
        kspace: NDArray[Any] = exact[:, :, 0] + 1j * exact[:, :, 1]
    else:
        image = exact[:, 0] + 1j * exact[:, 1] if exact.shape[1] == 2 else exact[:, 0]
        kspace = image_to_kspace(image)
    if not kspace.any():
        raise BundleError(f"{path / GOLDEN_INPUT} is blank.", AGAIN)
    if contradicted_by(kspace, wanted):
        raise _other_mask(path, mask, f"{GOLDEN_INPUT} is")
