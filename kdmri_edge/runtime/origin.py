"""Whose network a bundle holds, as far as that can be told.

A manifest names the SHA-256 of the checkpoint that it was exported from, the data that trained it,
and its figures. Anyone can write that. For networks of this package the checkpoint is at hand: what
the manifest says is compared with it, and so are images, of an input that is not in the bundle. Of
all others the figures are their exporter's claim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import KdmriError
from kdmri_edge.models.checkpoint import read_checkpoint_meta
from kdmri_edge.models.protocol import reads_coils
from kdmri_edge.models.shipped import WEIGHTS, resolve, shipped_networks
from kdmri_edge.models.specs import described_spec
from kdmri_edge.physics.masks import Mask
from kdmri_edge.runtime.bundle import Bundle
from kdmri_edge.runtime.session import open_session
from kdmri_edge.utils.extras import available, load_attribute

__all__ = ["Claim", "Trial", "claim_of", "trial_of"]

_GOLDEN: Final = "kdmri_export.parity:golden"


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """What a manifest says of its network's origin.

    Attributes:
        network: Reference of the package's network that it is by its hash; None for any other.
        checkpoint: That network's file.
        contradicted: Why the bundle cannot be that network, as a sentence; None where nothing
            speaks against it.
    """

    network: str | None = None
    checkpoint: Path | None = None
    contradicted: str | None = None


class Trial(NamedTuple):
    """What a network of the package makes of an input that its bundles do not hold.

    Attributes:
        given: Input of a session, float32.
        maps: Sensitivities of the coils, for networks that combine coils.
        wanted: PyTorch's images of it.
    """

    given: NDArray[np.float32]
    maps: NDArray[np.float32] | None
    wanted: NDArray[np.float32]


def claim_of(bundle: Bundle, root: Path = WEIGHTS) -> Claim:
    """Look a bundle's network up among those of the package, and compare what both say.

    Args:
        bundle: An opened bundle.
        root: Folder of the package's networks.

    Raises:
        CheckpointError: The package's own weights are missing or altered.
    """
    sha256 = bundle.manifest.get("checkpoint_sha256")
    for reference, network in shipped_networks(root).items():
        for entry in (network.entry, *network.entry.get("tuned", {}).values()):
            if entry["sha256"] == sha256:
                resolve(reference, root)  # compares the hashes of its files
                file = root / entry["file"]
                return Claim(
                    network=reference, checkpoint=file, contradicted=_differs(bundle, file)
                )
    return Claim()


def _differs(bundle: Bundle, checkpoint: Path) -> str | None:
    """Say what a manifest says otherwise than the checkpoint that it names."""
    manifest, meta = bundle.manifest, read_checkpoint_meta(checkpoint)
    same: Mapping[str, Any] = {
        "training": manifest.get("training") == meta.get("training"),
        "spec": manifest.get("spec") == meta.get("spec"),
        "matrix": manifest["matrix"] == meta["matrix"],
        "mask": bundle.mask == Mask.from_dict(meta["mask"]),
    }
    wrong = [key for key in same if not same[key]]
    return f"Its {wrong[0]!r} is not that of the package's checkpoint." if wrong else None


def trial_of(bundle: Bundle, checkpoint: Path) -> Trial | str:
    """Draw an input that a bundle does not hold, and run the package's network on it in PyTorch.

    Returns:
        The trial; or why there is none here, as a sentence.
    """
    if not available("torch"):
        return "PyTorch is not installed, so its images are not compared with that network's."
    spec = described_spec(bundle.manifest)
    coils = bundle.fixed_coils or int(bundle.manifest.get("coils", 1))
    try:
        drawn = load_attribute(_GOLDEN)(
            bundle.mask,
            int(bundle.manifest["matrix"]),
            spec.channels,
            coils if reads_coils(spec) else None,
            reads=spec.reads,
        )
        given = np.ascontiguousarray(drawn.network_input[-1:])  # the bundle's golden input is 0
        maps = None if drawn.network_maps is None else drawn.network_maps[-1:]
        with open_session(checkpoint) as session:
            return Trial(given, maps, session.run(given, maps=maps))
    except KdmriError as error:
        return f"Its images could not be compared with that network's: {error.what}"
