"""From a `Scan` to readouts: for files, for trying a server, and for the tests of the way back."""

from __future__ import annotations

from collections.abc import Iterator

import ismrmrd
import numpy as np
from ismrmrd import Acquisition
from numpy.typing import NDArray

from kdmri_edge.data.scan import Scan
from kdmri_edge.errors import DataError
from kdmri_edge.mrd.format.geometry import place_slice
from kdmri_edge.mrd.format.header import Encoding
from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image

__all__ = ["encoding_of", "readouts"]


def encoding_of(scan: Scan, oversampling: int = 1) -> Encoding:
    """Return the encoded space of a scan.

    A scan without an affine gets pixels of 1 mm, which the header cannot leave open; its readouts
    have no position and no directions, so that nobody takes them for a place in a patient.

    Raises:
        DataError: The mask samples points, not lines.
    """
    if not scan.mask.is_lines:
        raise DataError(f"{scan.name} samples single points.", "MRD readouts are whole lines.")
    height, width = scan.matrix
    thick, down, across = scan.voxel_mm or (1.0, 1.0, 1.0)
    return Encoding(
        lines=height,
        samples=width * oversampling,
        width=width,
        rows=height,
        fov_mm=(width * across, height * down, thick),
        centre=height // 2,
        first=0,
        last=height - 1,
        coils=scan.coils,
    )


def readouts(scan: Scan, oversampling: int = 1, repetition: int = 0) -> Iterator[Acquisition]:
    """Yield the readouts of a scan: noise first, then slice by slice, lines in increasing order.

    Reference lines of a slice come before those of its image.

    Args:
        scan: With a mask of whole lines.
        oversampling: Pads the field of view along readout that many times with air.
        repetition: What to count it as.

    Raises:
        DataError: See `encoding_of`.
    """
    encoding = encoding_of(scan, oversampling)
    counter = 0
    if scan.noise is not None:
        noise = Acquisition.from_array(np.ascontiguousarray(scan.noise))
        noise.set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
        yield noise
    rows = sorted((int(r) for r in np.flatnonzero(scan.mask.samples)), key=lambda r: _step(r, scan))
    for index, kspace in enumerate(scan.kspace):
        reference = None if scan.reference is None else scan.reference[index]
        if reference is not None:
            lines = np.fft.fftshift(_padded(reference.lines, encoding.samples), axes=-1)
            for number, row in enumerate(reference.rows):
                acquisition = Acquisition.from_array(np.ascontiguousarray(lines[:, number]))
                acquisition.center_sample = encoding.samples // 2
                acquisition.idx.kspace_encode_step_1 = _step(int(row), scan)
                acquisition.idx.slice, acquisition.idx.repetition = index, repetition
                acquisition.set_flag(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
                yield acquisition
        wide = np.fft.fftshift(_padded(kspace, encoding.samples), axes=-1)
        for row in rows:
            acquisition = Acquisition.from_array(np.ascontiguousarray(wide[:, row]))
            counter += 1
            acquisition.scan_counter = counter
            acquisition.center_sample = encoding.samples // 2
            acquisition.idx.kspace_encode_step_1 = _step(row, scan)
            acquisition.idx.slice, acquisition.idx.repetition = index, repetition
            if scan.affine is not None:
                # the class has no other way to set array fields
                place_slice(acquisition._head, scan.affine, index, scan.matrix)
            if row == rows[0]:
                acquisition.set_flag(ismrmrd.ACQ_FIRST_IN_SLICE)
            if row == rows[-1]:
                acquisition.set_flag(ismrmrd.ACQ_LAST_IN_SLICE)
                if index == len(scan.kspace) - 1:
                    acquisition.set_flag(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
            yield acquisition


def _step(row: int, scan: Scan) -> int:
    height = scan.matrix[0]
    return (row + height // 2) % height


def _padded(kspace: NDArray[np.complex64], samples: int) -> NDArray[np.complex64]:
    """Widen the field of view along readout; zero frequency stays at index 0."""
    width = kspace.shape[-1]
    if samples == width:
        return kspace
    edge = samples // 2 - width // 2
    image = kspace_to_image(kspace, (-1,))
    room = ((0, 0), (0, 0), (edge, samples - width - edge))
    return image_to_kspace(np.pad(image, room), (-1,)).astype(np.complex64)
