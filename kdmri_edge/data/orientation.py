"""Which way the axes of raw data run: the one decision for TWIX, MRD files and `kdmri-edge serve`.

Raw data comes with directions of phase encode and readout in the patient. Whether H and W of an
image run along them or against them depends on the sign of the Fourier transform that whoever wrote
them had in mind. ISMRMRD means the sign of `physics.fourier`: k-space is the image times
exp(-2 pi i k x), and H and W run along `phase_dir` and `read_dir`. Siemens means the other one, so
that they run against them: the libraries twixtools and mrpro have it so (mrpro conjugates k-space,
PTB-MR/mrpro pull request 833). Converters to MRD copy samples and directions as they are, and so
does a scanner's stream: the header's `systemVendor` decides there. What names no vendor, or another
one, runs along.

Images say themselves where their pixels go: nothing is decided about them. What this package writes
as raw data runs along its directions and names no vendor.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING

from kdmri_edge.errors import DataError

if TYPE_CHECKING:
    from kdmri_edge.data.geometry import Affine
    from kdmri_edge.data.scan import Scan

__all__ = ["Orientation", "known", "not_raw", "orientation_of", "oriented", "sign_of"]


class Orientation(StrEnum):
    """How H and W of an image run to the directions that its raw data gives.

    Attributes:
        VENDOR: As the vendor's data does, see the module.
        ALONG: Along phase and read direction.
        AGAINST: Against both: the image is turned by 180 degrees within its plane.
    """

    VENDOR = "vendor"
    ALONG = "along"
    AGAINST = "against"


def orientation_of(
    vendor: str | None, wanted: Orientation | str = Orientation.VENDOR
) -> Orientation:
    """Return ALONG or AGAINST for a vendor's data, or what is wanted instead.

    Args:
        vendor: As the header has it ("SIEMENS", "Siemens Healthineers"); None where it has none.
        wanted: What the user says; VENDOR leaves it to the vendor.

    Raises:
        DataError: `wanted` is no such word.
    """
    wanted = known(wanted)
    if wanted is not Orientation.VENDOR:
        return wanted
    siemens = vendor is not None and "siemens" in vendor.lower()
    return Orientation.AGAINST if siemens else Orientation.ALONG


def sign_of(orientation: Orientation | str) -> float:
    """Return the factor of phase and read direction: 1 along them, -1 against them."""
    return -1.0 if orientation == Orientation.AGAINST else 1.0


def oriented(scan: Scan, wanted: Orientation | str) -> Scan:
    """Return a scan whose axes run as the user says; its k-space stays as it is.

    Raises:
        DataError: The file has no directions that this could be said of, or `wanted` is no such
            word.
    """
    wanted = known(wanted)
    if wanted is Orientation.VENDOR or wanted == scan.orientation:
        return scan
    if scan.orientation is None:
        raise not_raw(scan.name)
    affine = None if scan.affine is None else _turned(scan.affine, scan.matrix)
    return replace(scan, orientation=wanted, affine=affine)


def not_raw(name: str) -> DataError:
    """Why a file's orientation cannot be chosen."""
    return DataError(
        f"{name} holds no raw data with directions of phase encode and readout, so there is no"
        " orientation to choose.",
        "Leave the orientation out; it is for TWIX and MRD files that give such directions.",
    )


def known(wanted: Orientation | str) -> Orientation:
    """Return what a user means.

    Raises:
        DataError: It is no such word.
    """
    try:
        return Orientation(wanted)
    except ValueError:
        raise DataError(
            f"{wanted!r} is no orientation.", f"Give one of {', '.join(Orientation)}."
        ) from None


def _turned(affine: Affine, matrix: tuple[int, int]) -> Affine:
    """Turn H and W around the pixel that the Fourier transform puts in the middle."""
    from kdmri_edge.data.geometry import regridded  # the choices alone need no NumPy

    centre = (0, matrix[0] // 2, matrix[1] // 2)
    return regridded(affine, old=centre, new=centre, step=(1, -1, -1))
