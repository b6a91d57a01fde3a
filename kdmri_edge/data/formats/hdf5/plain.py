"""K-space in any dataset of an HDF5 file, named on the command line as FILE.h5:DATASET:AXES.

AXES has a letter for each axis: s slice, c coil, h phase encode, w readout; "swh" is [slice,
readout, phase encode]. Instead, the dataset may have an attribute `axes` with the same letters.
Zero frequency is in the middle (index N // 2, attribute `zero_frequency` "centre"), as measuring
software stores it, or at index 0 ("first"); without the attribute it is where the energy peaks, see
`data.origins`. Coordinates are not known: no geometry.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.formats.hdf5.attributes import attribute_text
from kdmri_edge.data.formats.hdf5.opening import open_hdf5, values
from kdmri_edge.data.formats.measured import mask_of
from kdmri_edge.data.formats.registry import origin_of
from kdmri_edge.data.origins import zero_first
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.sources import AXES_HELP, axes_of, contrast_of, dataset_of, split_dataset
from kdmri_edge.errors import DataError

__all__ = ["complex_datasets", "scan_plain_h5"]


def complex_datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """All datasets of a file that hold complex numbers, by name."""
    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and (_is_complex(node) and 2 <= node.ndim <= 4):
            found[name] = node

    file.visititems(visit)
    return found


def _is_complex(node: h5py.Dataset) -> bool:
    return node.dtype.kind == "c" or set(node.dtype.names or ()) == {"real", "imag"}


def scan_plain_h5(path: Path) -> Scan:
    """Read a dataset of k-space.

    Args:
        path: FILE.h5:DATASET:AXES; without AXES the attribute `axes` says what the axes are; a
            file alone, if that attribute marks one of its datasets.

    Raises:
        DataError: Unreadable, no such dataset, real numbers, axes that are not told or do not fit,
            or slices that were sampled differently.
    """
    source, named = split_dataset(path)
    with open_hdf5(source) as file:
        loaded = complex_datasets(file)
        name = _chosen(source, file, loaded, named)
        node = file[name]
        axes = (axes_of(named) if named else None) or attribute_text(node.attrs.get("axes"))
        zero = attribute_text(node.attrs.get("zero_frequency"))
        stored = values(node)
    if zero not in (None, "first", "centre"):
        raise DataError(
            f"zero_frequency of {source}:{name} is {zero!r}.",
            "It says where zero frequency lies: centre, or first.",
        )
    if stored.dtype.names:
        stored = stored["real"] + 1j * stored["imag"]
    kspace, _ = zero_first(
        _arranged(f"{source}:{name}", stored, axes),
        f"{source.name}:{name}",
        centred=None if zero is None else str(zero) == "centre",
        usual=True,
    )
    origin = origin_of(source)
    origin["name"] += f"_{name.replace('/', '_')}"
    origin["contrast"] = origin["contrast"] or contrast_of(name)
    kspace = np.ascontiguousarray(kspace, dtype=np.complex64)
    return Scan(
        kspace=kspace,
        mask=mask_of(kspace, origin["name"]),
        **origin,
    )


def _chosen(
    source: Path, file: h5py.File, loaded: dict[str, h5py.Dataset], named: str | None
) -> str:
    """Which dataset is meant, refused where it is none or no k-space."""
    if named is None:
        marked = [name for name, node in loaded.items() if "axes" in node.attrs]
        if len(marked) == 1:
            return marked[0]
        shapes = {name: list(node.shape) for name, node in loaded.items()}
        raise unknown_layout(source, shapes, [str(name) for name in file])
    name = dataset_of(named)
    if name in loaded:
        return name
    if isinstance(file.get(name), h5py.Dataset):
        node = file[name]
        raise DataError(
            f"{name} of {source} holds {node.dtype} {list(node.shape)}, not complex k-space of two"
            " to four axes.",
            f"Complex datasets are {', '.join(loaded)}." if loaded else "Store complex k-space.",
        )
    raise DataError(
        f"{source} has no dataset {name!r}.",
        f"It holds {', '.join(loaded) or 'no complex dataset'}.",
    )


_EXAMPLE: Final = {2: "wh", 3: "swh", 4: "scwh"}
"""Axes as they might be, by their number."""


def unknown_layout(source: Path, shapes: dict[str, list[int]], names: list[str]) -> DataError:
    """Why a file in no layout that is known is refused, and how to name what it holds."""
    if shapes:
        held = ", ".join(f"{name} {shape}" for name, shape in list(shapes.items())[:6])
        name, shape = next(iter(shapes.items()))
        return DataError(
            f"{source} is in no layout that is known by itself; it holds complex data in {held}.",
            f"Name one with its axes ({AXES_HELP}), for instance"
            f" {source}:{name}:{_EXAMPLE[len(shape)]}.",
        )
    return DataError(
        f"{source} is not in KD-MRI's layout (it holds {', '.join(sorted(names)[:6]) or 'nothing'})"
        " nor in another one that is known.",
        "KD-MRI's needs volfs, [height, width, slices]; fastMRI's kspace.",
    )


def _arranged(what: str, stored: NDArray[Any], axes: str | None) -> NDArray[Any]:
    """[S, C, H, W] from axes in any order."""
    if axes is None:
        raise DataError(
            f"The axes of {what}, {list(stored.shape)}, are not told.",
            f"Add them as letters ({AXES_HELP}): {what}:"
            f"{ {2: 'hw', 3: 'swh', 4: 'scwh'}[stored.ndim] }, in their own order.",
        )
    letters = "".join(axes.lower().split())
    if len(set(letters)) != len(letters) or not {"h", "w"} <= set(letters) <= set("schw"):
        raise DataError(
            f"{letters!r} does not name axes of k-space.",
            f"Give each axis one letter ({AXES_HELP}); h and w must be there.",
        )
    if len(letters) != stored.ndim:
        raise DataError(
            f"{what} has {stored.ndim} axes, {list(stored.shape)}, and {letters!r} names"
            f" {len(letters)}.",
            f"Give each axis one letter ({AXES_HELP}).",
        )
    for letter in "sc":
        if letter not in letters:
            letters, stored = letter + letters, stored[None]
    return stored.transpose([letters.index(letter) for letter in "schw"])
