"""Sorting the lines of a Siemens raw-data file into slices, coils and phase encodes.

Counters and flags are those of the measurement data headers (MDH) as the library twixtools names
them. Zero frequency is where the headers' CenterLin and CenterCol say; a sequence that leaves
CenterLin at 0 (Pulseq) is taken to have it in the middle of its lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.console import progress
from kdmri_edge.errors import DataError

__all__ = ["centred_size", "image_lines", "noise_of", "sorted_lines"]

# Counters of which a scan of single slices has one value, and what several of them are.
_SINGLE: Final = {
    "Par": "partitions (a 3-D scan)",
    "Eco": "echoes",
    "Phs": "cardiac phases",
    "Rep": "repetitions",
    "Set": "sets",
}
_INPLACE: Final = 2
"""sPat.ucRefScanMode of reference lines that belong to the image's own k-space."""
_OTHER: Final = ("RTFEEDBACK", "HPFEEDBACK", "NOISEADJSCAN", "PHASESTABSCAN", "REFPHASESTABSCAN",
                 "SYNCDATA", "ACQEND", "RETRO_DUMMYSCAN", "noname60")  # fmt: skip


def image_lines(lines: Sequence[Any], protocol: Any, path: Path) -> list[Any]:
    """The lines that belong to the image.

    Raises:
        DataError: None, phase-correction lines (echo-planar), or several measurements.
    """
    if any(line.is_flag_set("PHASCOR") for line in lines):
        raise DataError(
            f"{path} holds an echo-planar scan, whose phase correction is not made here.",
            "Correct and sort it first (BART or another tool), and give k-space as .cfl or .h5.",
        )
    inplace = (protocol.get("sPat") or {}).get("ucRefScanMode") == _INPLACE
    kept = []
    for line in lines:
        if any(line.is_flag_set(flag) for flag in _OTHER) or not line.mdh.SamplesInScan:
            continue
        reference = line.is_flag_set("PATREFSCAN") and not line.is_flag_set("PATREFANDIMASCAN")
        if not reference or inplace:
            kept.append(line)
    if not kept:
        raise DataError(f"{path} holds no lines of an image.", "Export the measurement again.")
    for counter, what in _SINGLE.items():
        values = {int(getattr(line.mdh.Counter, counter)) for line in kept}
        if len(values) > 1:
            raise DataError(
                f"{path} holds {len(values)} {what}, and one was expected.",
                "Take them apart first, and give each as .cfl or .h5.",
            )
    shapes = {(int(line.mdh.UsedChannels), int(line.mdh.SamplesInScan)) for line in kept}
    if len(shapes) > 1:
        raise DataError(
            f"{path} holds lines of different lengths or numbers of coils.",
            "Export the measurement again.",
        )
    return kept


def noise_of(measurements: Sequence[Sequence[Any]], coils: int) -> NDArray[np.complex64] | None:
    """Noise scans of that number of coils, [C, N]; None without one."""
    found = [
        np.asarray(line.data)
        for lines in measurements
        for line in lines
        if line.is_flag_set("NOISEADJSCAN") and int(line.mdh.UsedChannels) == coils
    ]
    return np.concatenate(found, axis=1).astype(np.complex64) if found else None


def centred_size(centre: int, count: int, planned: int | None = None) -> int:
    """Size N of the full axis whose zero frequency, at N // 2, is index `centre` of `count`.

    Where lines were left out (partial Fourier, or the last of an acceleration) it is twice the
    longer side: an even number, as product sequences have. An odd N is believed if it was planned.
    """
    if centre == count // 2 and (count % 2 == 0 or count == planned):
        return count
    return 2 * max(centre, count - centre)


def sorted_lines(
    lines: Sequence[Any], planned: int | None
) -> tuple[NDArray[np.complex64], NDArray[np.int64], NDArray[np.bool_]]:
    """Put lines in their places; lines of one place are averaged, reversed ones turned.

    Args:
        lines: From `image_lines`.
        planned: Phase-encode lines of the protocol, None where it does not tell.

    Returns:
        K-space [S, C, H, W] with zero frequency in the middle (index N // 2), W with oversampling;
        how often each slice and line was measured [S, H]; which points of a readout were sampled
        [W] (an asymmetric echo leaves some out).
    """
    first = lines[0].mdh
    coils, samples = int(first.UsedChannels), int(first.SamplesInScan)
    count = 1 + max(int(line.mdh.Counter.Lin) for line in lines)
    centre = max(int(line.mdh.CenterLin) for line in lines)
    if centre == 0 and count > 1:
        centre, planned = count // 2, count
    height = centred_size(centre, count, planned)
    column = int(first.CenterCol) or samples // 2
    width = centred_size(column, samples, samples)
    numbers = sorted({int(line.mdh.Counter.Sli) for line in lines})
    kspace = np.zeros((len(numbers), coils, height, width), np.complex64)
    counts = np.zeros((len(numbers), height), np.int64)
    begin = width // 2 - column
    taken = np.zeros(width, np.bool_)
    with progress("Sorting lines", len(lines)) as advance:
        for line in lines:
            data = np.array(line.data, np.complex64)
            before, after = int(line.mdh.CutOff.Pre), int(line.mdh.CutOff.Post)
            if before:
                data[:, :before] = 0
            if after:
                data[:, -after:] = 0
            if line.is_flag_set("REFLECT"):
                data = data[:, ::-1]
            place = numbers.index(int(line.mdh.Counter.Sli))
            row = int(line.mdh.Counter.Lin) - centre + height // 2
            kspace[place, :, row, begin : begin + samples] += data
            counts[place, row] += 1
            taken[begin : begin + samples] |= data.any(axis=0)
            advance(1)
    kspace /= np.maximum(counts, 1)[:, None, :, None]
    return kspace, counts, taken
