"""One readout: what it is for, and its samples in order without oversampling."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

import ismrmrd
import numpy as np
from ismrmrd import Acquisition
from numpy.typing import NDArray

from kdmri_edge.errors import DataError
from kdmri_edge.mrd.format.header import Encoding

__all__ = ["Purpose", "calibrates", "purpose_of", "readout"]


class Purpose(StrEnum):
    """What a readout is for."""

    IMAGE = "image"
    NOISE = "noise"
    CALIBRATION = "calibration"
    OTHER = "other"


def _bits(*flags: int) -> int:
    return sum(1 << (flag - 1) for flag in flags)


_NOISE: Final = _bits(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
_CALIBRATION: Final = _bits(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
_BOTH: Final = _bits(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)
_OTHER: Final = _bits(
    ismrmrd.ACQ_IS_NAVIGATION_DATA,
    ismrmrd.ACQ_IS_PHASECORR_DATA,
    ismrmrd.ACQ_IS_HPFEEDBACK_DATA,
    ismrmrd.ACQ_IS_DUMMYSCAN_DATA,
    ismrmrd.ACQ_IS_RTFEEDBACK_DATA,
    ismrmrd.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA,
    ismrmrd.ACQ_IS_PHASE_STABILIZATION_REFERENCE,
    ismrmrd.ACQ_IS_PHASE_STABILIZATION,
)


def purpose_of(acquisition: Acquisition) -> Purpose:
    """Tell by its flags what a readout is for.

    Readouts of another encoding space than the first (a reference scan of another matrix) are
    `OTHER`, like phase correction, navigators and feedback. Calibration lines that are imaged too
    are `IMAGE`, whether or not they carry the flag of those that are not, too.
    """
    flags = int(acquisition.flags)
    if flags & _NOISE:
        return Purpose.NOISE
    if flags & _OTHER or acquisition.encoding_space_ref != 0:
        return Purpose.OTHER
    if flags & _BOTH:
        return Purpose.IMAGE
    return Purpose.CALIBRATION if flags & _CALIBRATION else Purpose.IMAGE


def calibrates(acquisition: Acquisition) -> bool:
    """Tell whether a line of the image is a calibration line as well."""
    return bool(int(acquisition.flags) & _BOTH)


def readout(acquisition: Acquisition, encoding: Encoding) -> tuple[NDArray[Any], bool]:
    """Bring a readout into order and remove its oversampling.

    A reversed readout is turned around first; `center_sample` counts in the turned one, as
    converters write it. Discarded samples are left out, and what an asymmetric echo leaves out is
    zero. A shorter readout that is symmetric about zero frequency is one of lower resolution,
    which zeros on both sides interpolate, as scanners do. Oversampling goes by cropping the field
    of view.

    Args:
        acquisition: [C, samples].
        encoding: Of the scan.

    Returns:
        complex64 [C, W], zero frequency at index 0, orthonormal; and whether it is whole, or
        symmetric.

    Raises:
        DataError: It has no samples, or lies outside the encoded readout.
    """
    data = acquisition.data
    count, full = data.shape[1], encoding.samples
    first, last = int(acquisition.discard_pre), count - int(acquisition.discard_post)
    if int(acquisition.flags) & _bits(ismrmrd.ACQ_IS_REVERSE):
        data = data[:, ::-1]
        first, last = count - last, count - first
    start = full // 2 - int(acquisition.center_sample)
    if not (first < last and start + first >= 0 and start + last <= full):
        raise DataError(
            f"A readout of {count} samples with centre {int(acquisition.center_sample)} lies"
            f" outside the {full} that are encoded.",
            "Check number_of_samples, center_sample and the discarded samples.",
        )
    before, after = start + first, full - (start + last)
    # k-space of even size has one more sample below zero frequency than above it
    symmetric = abs(before - after) <= 1
    if before == after == 0:
        line = data[:, first:last]
    else:
        line = np.zeros((data.shape[0], full), np.complex64)
        line[:, start + first : start + last] = data[:, first:last]
    line = np.fft.ifftshift(line, axes=1)
    if encoding.width < full:
        image = np.fft.fftshift(np.fft.ifft(line, axis=1, norm="ortho"), axes=1)
        edge = full // 2 - encoding.width // 2
        image = image[:, edge : edge + encoding.width]
        line = np.fft.fft(np.fft.ifftshift(image, axes=1), axis=1, norm="ortho")
    return np.ascontiguousarray(line, dtype=np.complex64), symmetric
