"""Trained networks inside the package, by reference: `dccnn-d3c5@brain-4x` (torch-free).

A reference is PRESET@PLACE. `weights/index.json` says of each what it is, which volumes it was
trained on, whom to attribute, and how well it does on which test volumes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kdmri_edge.errors import CheckpointError, KdmriError, ModelError
from kdmri_edge.models.code import is_code
from kdmri_edge.models.foreign import OURS, file_kind
from kdmri_edge.models.specs import PRESETS
from kdmri_edge.physics.masks import Mask, load_mask_option
from kdmri_edge.utils.files import damaged, read_json, refuse_newer, sha256_file
from kdmri_edge.utils.suggest import nearest

__all__ = [
    "INDEX",
    "INDEX_FORMAT",
    "TAKEN",
    "WEIGHTS",
    "ShippedNetwork",
    "bundles_in",
    "is_reference",
    "named_mask",
    "refusal",
    "resolve",
    "resolve_weights",
    "served",
    "shipped_networks",
    "trained",
]

WEIGHTS: Final = Path(__file__).resolve().parent.parent / "weights"
INDEX: Final = "index.json"
INDEX_FORMAT: Final = 1
TAKEN: Final = (
    "Give a bundle that `kdmri-edge export` wrote, a .safetensors checkpoint that"
    " `kdmri-edge distill` wrote, or a network of `kdmri-edge models`."
)
"""What every command that runs a network takes."""

# Of the folders that this project writes; spelled out since the modules that own them are above.
_MANIFEST: Final = "manifest.json"
_RUN: Final = "run.json"
_REFERENCE: Final = re.compile(r"[\w.-]+@[\w.-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShippedNetwork:
    """A network in the package.

    Attributes:
        reference: PRESET@PLACE.
        path: Its checkpoint (safetensors).
        entry: What the index says: file, sha256, role, spec, parameters, mask and accelerations
            (of its figures), masks ("lines" if it was trained for any line mask, else "own"; own
            where it is left out), matrix, recipe, steps, seed, data, attribution, revision,
            figures, and `tuned`: the copies beside it that were tuned for int8, by the kind of
            their integers.
    """

    reference: str
    path: Path
    entry: Mapping[str, Any]

    @property
    def anatomy(self) -> str:
        """What it was trained on and measured on: the splits are named after it."""
        return str(self.entry["figures"]["split"]).partition("-")[0]


def served(entry: Mapping[str, Any]) -> str:
    """Return what a table puts before the mask of a network's figures: whether others will do."""
    return "any lines; here " if entry.get("masks") == "lines" else ""


def is_reference(text: str) -> bool:
    """Tell whether a text is meant as PRESET@PLACE rather than as a path."""
    # folders may have an @ in their names: what has a separator or a suffix of ours is a path
    named = _REFERENCE.fullmatch(text) is not None and not text.endswith(".safetensors")
    return named and not Path(text).exists()


def shipped_networks(root: Path = WEIGHTS) -> dict[str, ShippedNetwork]:
    """Return the networks of the package by reference.

    Raises:
        CheckpointError: The index is damaged or of a newer format.
    """
    file = root / INDEX
    if not file.is_file():
        return {}
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        refuse_newer(file, index["format"], INDEX_FORMAT, CheckpointError)
        return {
            reference: _network(reference, root, entry)
            for reference, entry in index["networks"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file} is damaged ({error}).", "Install kdmri-edge again."
        ) from error


def _network(reference: str, root: Path, entry: Mapping[str, Any]) -> ShippedNetwork:
    entry["sha256"]  # without it nothing could be compared: the index is damaged
    return ShippedNetwork(reference=reference, path=root / entry["file"], entry=entry)


def trained(preset: str, root: Path = WEIGHTS) -> list[str]:
    """Return the references of the package's networks of an architecture.

    Raises:
        CheckpointError: The index is damaged or of a newer format.
    """
    return [name for name in shipped_networks(root) if name.partition("@")[0] == preset]


def bundles_in(folder: Path) -> list[Path]:
    """Return the bundles that lie in a folder or, if that is a run, among its exports."""
    found = {file.parent for file in folder.glob(f"*/{_MANIFEST}")}
    found |= {file.parent for file in folder.glob(f"exports/*/{_MANIFEST}")}
    return sorted(found)


def refusal(source: Path, error: type[KdmriError], takes: str = TAKEN) -> KdmriError:
    """Return the error for what was named as a network and is none that a command takes.

    Args:
        source: What was named: a path, or a word.
        error: Class of the error.
        takes: The remedy where nothing nearer is known: what the command takes, as sentences.

    Returns:
        An error that says what `source` is, and names what may have been meant.
    """
    text = str(source)
    if is_code(text):
        return error(
            f"{text} is code that makes a network, not one with weights.",
            f"Export it: `kdmri-edge export {text} --weights FILE --for-mask MASK --target onnx`.",
        )
    if source.suffix == ".py" and source.is_file():
        return error(
            f"{source} is a file of Python, and says not what in it makes a network.",
            f"Name that after a colon: {source}:FACTORY.",
        )
    if source.is_file():
        kind = file_kind(source)
        if kind == OURS:
            return _unexported(source, "a checkpoint", error)
        return error(f"{source} is {kind}, not a network that kdmri-edge wrote.", takes)
    if source.is_dir():
        return _refused_folder(source, error, takes)
    if text in PRESETS:
        known = trained(text)
        remedy = f"Train it: `kdmri-edge distill --student {text}`."
        if known:
            remedy = f"Name weights as well: {', '.join(known)} (see `kdmri-edge models`)."
        return error(f"{text} is an architecture, without weights.", remedy)
    if text in shipped_networks():
        return _unexported(source, "a network of the package", error)
    near = nearest(text, shipped_networks(), likeness=0.6)
    if near is not None and not source.suffix and len(source.parts) == 1:
        return error(f"{text} does not exist; did you mean {near!r}?", takes)
    return error(f"{source} does not exist.", takes)


def _unexported(source: Path, kind: str, error: type[KdmriError]) -> KdmriError:
    return error(
        f"{source} is {kind}, not a bundle.",
        f"Export it: `kdmri-edge export {source} --target onnx`.",
    )


def _refused_folder(folder: Path, error: type[KdmriError], takes: str) -> KdmriError:
    inside = bundles_in(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if (folder / _RUN).is_file():
        what = f"{folder} is a run of several networks."
        if inside or weights:
            named = [str(path) for path in (*inside, *weights)]
            return error(what, f"Name one of them: {', '.join(named)}.")
        return error(
            f"{folder} is a run without a finished network.",
            f"Finish it: `kdmri-edge distill --resume --out {folder}`.",
        )
    if inside:
        named = [str(path) for path in inside]
        return error(f"{folder} is no bundle, but holds some.", f"Name one: {', '.join(named)}.")
    if (folder / _MANIFEST).is_file():
        return error(f"{folder} is a bundle, that is, exported already.", takes)
    return error(f"{folder} is a folder without a network (no {_MANIFEST}).", takes)


def resolve_weights(network: Path) -> Path:
    """Return the place of a network that can be run: a checkpoint's file or a bundle's folder.

    Args:
        network: A network of the package (PRESET@PLACE), a checkpoint, or a bundle.

    Raises:
        ModelError: There is no such network, or it is of another program; see `resolve`.
        CheckpointError: See `resolve`.
    """
    if is_reference(str(network)):
        return resolve(str(network))
    if (network / _MANIFEST).is_file() or (network.suffix == ".safetensors" and network.is_file()):
        return network
    raise refusal(network, ModelError)


def named_mask(text: str) -> Mask:
    """Return the mask that a user names.

    Args:
        text: A file (FILE.npy, FILE.json, FILE.json:KEY), or a network whose mask is meant:
            PRESET@PLACE, a .safetensors checkpoint, or the folder of a bundle.

    Raises:
        MaskError: See `physics.masks.load_mask`.
        ModelError: See `resolve`.
        CheckpointError: The network is damaged.
    """
    from kdmri_edge.models.checkpoint import read_checkpoint_meta

    path = Path(text)
    if path.is_dir() and (path / _MANIFEST).is_file():
        manifest = read_json(path / _MANIFEST, CheckpointError)
        with damaged(path / _MANIFEST, CheckpointError):
            return Mask.from_dict(manifest["mask"])
    if is_reference(text) or (path.suffix == ".safetensors" and path.is_file()):
        return Mask.from_dict(read_checkpoint_meta(resolve_weights(path))["mask"])
    return load_mask_option(text)


def resolve(reference: str, root: Path = WEIGHTS) -> Path:
    """Return the checkpoint of a shipped network, after comparing its hash and its copies'.

    Raises:
        ModelError: There is no such network; the message names the nearest.
        CheckpointError: The file is missing or altered, or the index is damaged.
    """
    known = shipped_networks(root)
    if reference not in known:
        if not known:
            raise ModelError(f"No network {reference!r} is shipped.", "Give a checkpoint's path.")
        raise ModelError(
            f"No network {reference!r} is shipped; did you mean {nearest(reference, known)!r}?",
            f"Shipped are {', '.join(known)}.",
        )
    network = known[reference]
    # copies that were tuned for int8 are found by their names (`run_folder.tuned_for`)
    files = [network.entry, *network.entry.get("tuned", {}).values()]
    if not all(_intact(root, entry) for entry in files):
        raise CheckpointError(
            f"The weights of {reference} are missing or altered.", "Install kdmri-edge again."
        )
    return network.path


def _intact(root: Path, entry: Mapping[str, Any]) -> bool:
    file = root / entry["file"]
    return file.is_file() and bool(sha256_file(file) == entry["sha256"])
