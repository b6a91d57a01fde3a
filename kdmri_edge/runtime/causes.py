"""Why a slice has no image of the network, in as many words as counters can go by.

The sentence beside an image says more; it has numbers in it, so that there may be any number of
different ones.
"""

from __future__ import annotations

from enum import StrEnum

from kdmri_edge.errors import BackendError, KdmriError, MaskError

__all__ = ["Cause", "cause_of"]


class Cause(StrEnum):
    """Kinds of reasons."""

    MATRIX = "matrix"
    """Another matrix than the network's."""
    MASK = "mask"
    """Sampled in another way than the network takes."""
    CALIBRATION = "calibration"
    """The centre of k-space has gaps, so that coils or phase cannot be estimated."""
    COILS = "coils"
    """The coils' combined image does not suit the network."""
    VALUES = "values"
    """NaN or infinite values in k-space."""
    ECHO = "asymmetric-echo"
    """Readouts that cover a part of k-space."""
    NO_BUNDLE = "no-bundle"
    """None of many bundles fits."""
    NOT_LOADED = "not-loaded"
    """The bundle that fits cannot be loaded."""
    SCOPE = "scope"
    """Unlike what the network is made for, where the site wants no image of it then."""
    NETWORK = "network"
    """The network failed, or gave values that are not finite."""
    DEADLINE = "deadline"
    """The network was not ready in time."""
    BROKE_OFF = "broke-off"
    """The scan ended before the slice was complete."""
    IMAGE = "image"
    """An image that no network takes."""
    OTHER = "other"
    """Anything else."""


def cause_of(error: KdmriError) -> Cause:
    """Return what an error is counted as: what it says itself, else by its class."""
    if error.cause:
        return Cause(error.cause)
    if isinstance(error, MaskError):
        return Cause.MASK
    return Cause.NETWORK if isinstance(error, BackendError) else Cause.OTHER
