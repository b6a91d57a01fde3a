"""Loading a sampling mask from a file."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdmri_edge.errors import MaskError
from kdmri_edge.physics.masks import Mask

__all__ = ["load_mask", "load_mask_option"]


def load_mask(path: Path, key: str | None = None) -> Mask:
    """Read a mask from .npy or JSON.

    A .npy file holds zeros and ones, shape [H] or [H, W], zero frequency at index 0. If all its
    columns are equal it is a line mask and is stored as such (phase encode is H). A JSON file holds
    either one mask as `Mask.to_dict` writes it, or several by name in the layout
    `{name: {"shape": [H, W], "phase_encode_axis": 0 or 1, "sampled_lines": [...]}}`.

    Args:
        path: The file.
        key: Which mask of a JSON file that holds several.

    Raises:
        MaskError: Missing or unreadable file, unknown key, values other than zero and one.
    """
    if not path.is_file():
        raise MaskError(f"Mask file {path} does not exist.", "Check the path.")
    try:
        if path.suffix == ".json":
            return _from_json(json.loads(path.read_text(encoding="utf-8")), path, key)
        with path.open("rb") as stream:  # numpy leaves a file open whose archive is cut short
            array = np.load(stream, allow_pickle=False)
            if not isinstance(array, np.ndarray):  # an .npz archive, whatever its name
                raise MaskError(f"{path} is an .npz archive.", "Save its one mask with numpy.save.")
        return _from_array(array, path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise MaskError(
            f"{path} is not a readable mask ({error}).", "Give a .npy array or a .json file."
        ) from error


def load_mask_option(text: str) -> Mask:
    """Read the mask that a command-line option names as FILE or FILE:KEY; see `load_mask`."""
    file, _, key = text.partition(":")
    return load_mask(Path(file), key or None)


def _from_array(array: np.ndarray[Any, Any], path: Path) -> Mask:
    if array.ndim not in (1, 2) or array.dtype.kind not in "buif":
        raise MaskError(
            f"{path} holds {array.dtype} of shape {array.shape}.",
            "A mask is zeros and ones of shape [H] or [H, W].",
        )
    if not np.isin(array, (0, 1)).all():
        raise MaskError(f"{path} holds values other than 0 and 1.", "Give a binary mask.")
    samples = array.astype(np.bool_)
    if samples.ndim == 2 and (samples == samples[:, :1]).all():
        samples = samples[:, 0]
    return Mask(samples=samples, name=path.stem)


def _from_json(value: Any, path: Path, key: str | None) -> Mask:
    if not isinstance(value, Mapping):
        raise MaskError(f"{path} is not a JSON object.", "Give a mask file.")
    if "sampled" in value:
        return Mask.from_dict(value)
    if key is None and len(value) == 1:
        key = next(iter(value))
    if key is None or key not in value:
        known = ", ".join(sorted(value))
        named = f"no mask {key!r}" if key else "several masks"
        raise MaskError(f"{path} holds {named}.", f"Name one as FILE:KEY; it has {known}.")
    entry = value[key]
    try:
        axis = int(entry["phase_encode_axis"])
        samples = np.zeros(int(entry["shape"][axis]), dtype=np.bool_)
        samples[np.asarray(entry["sampled_lines"], dtype=np.intp)] = True
        if int(entry.get("zero_frequency_index", 0)) != 0:
            raise MaskError(
                f"Mask {key!r} of {path} has zero frequency elsewhere than at index 0.",
                "Shift it with numpy.fft.ifftshift.",
            )
    except (KeyError, TypeError, IndexError) as error:
        raise MaskError(
            f"Mask {key!r} of {path} is damaged ({error!r}).", "Compare it with the documentation."
        ) from error
    return Mask(samples=samples, name=key)
