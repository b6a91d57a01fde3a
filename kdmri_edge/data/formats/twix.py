"""Siemens raw data, .dat of VB to XA (twixtools, extra `scanner`): Cartesian scans of slices.

Counters and flags are those of the measurement data headers (MDH) as the library twixtools names
them. Zero frequency is where the headers' CenterLin and CenterCol say; a sequence that leaves
CenterLin at 0 (Pulseq) is taken to have it in the middle of its lines.

Phase encode is H, readout W without its oversampling. With the quaternion's columns P, R, S (phase,
read, slice, in LPS+), H runs along -P and W along -R, as `data.orientation` decides for Siemens.
Pulseq plays gradients of its own, of which the protocol's directions say nothing: its scans have no
geometry.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.formats.measured import remove_oversampling, volume_of
from kdmri_edge.data.formats.registry import stem_of
from kdmri_edge.data.geometry import LPS, Affine, from_axes, usable_affine
from kdmri_edge.data.orientation import orientation_of, sign_of
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.sources import parse_name
from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import DataError
from kdmri_edge.physics.masks import Mask
from kdmri_edge.utils import extras
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.files import sha256_file
from kdmri_edge.utils.reading import check_claim

__all__ = ["centred_size", "image_lines", "noise_of", "read_twix", "scan_twix", "sorted_lines"]

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
    check_claim(8 * len(numbers) * coils * height * width, "K-space of this scan")
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


_CARTESIAN: Final = 1
_VENDOR: Final = "Siemens"
_AGAIN: Final = "The file is damaged or cut short: copy it again."


def read_twix(path: Path) -> Volume:
    """Read the scan of a single coil as a volume; see `scan_twix` and `measured.volume_of`."""
    return volume_of(scan_twix(path))


def scan_twix(path: Path) -> Scan:
    """Read the last measurement of a file; earlier ones may be its noise scans.

    Slices are in the order of their positions, averages averaged, reversed lines turned. Lines that
    partial Fourier or an acceleration leaves out are unsampled. Of the patient's data in the header
    nothing is kept; subject and contrast are those of the file's name.

    Raises:
        DataError: Unreadable or cut short, not Cartesian, three-dimensional, echo-planar, several
            echoes, phases, repetitions or sets, slices of several orientations, or slices that
            were sampled differently.
        MissingExtraError: twixtools is not installed.
    """
    measurements = _open(path)
    protocol = measurements[-1]["hdr"].get("MeasYaps") or {}
    trajectory = (protocol.get("sKSpace") or {}).get("ucTrajectory", _CARTESIAN)
    if trajectory != _CARTESIAN:
        raise DataError(
            f"{path} holds a scan that is not Cartesian.", "Radial and spiral scans are not read."
        )
    with _held_open(path, measurements):
        lines = image_lines(measurements[-1]["mdb"], protocol, path)
        planned = (protocol.get("sKSpace") or {}).get("lPhaseEncodingLines")
        kspace, counts, readout = sorted_lines(lines, planned)
        noise = noise_of([m["mdb"] for m in measurements], kspace.shape[1])
    rotation, positions = _slices(lines, path)
    # Where no orientation is told, slices are ordered from feet to head.
    normal = np.array([0.0, 0.0, 1.0]) if rotation is None else rotation[:, 2]
    order = np.argsort(positions @ normal, kind="stable")
    kspace, counts, positions = kspace[order], counts[order], positions[order]
    if ((counts > 0) != (counts[0] > 0)).any():
        raise DataError(
            f"{path} has slices that were sampled differently.",
            "The measurement may have been stopped: export a whole one.",
        )
    width = round(kspace.shape[-1] / _oversampling(measurements[-1]["hdr"]))
    factor = kspace.shape[-1] / width
    kspace = remove_oversampling(np.fft.ifftshift(kspace, axes=(-2, -1)), width)
    samples: NDArray[np.bool_] = np.fft.ifftshift(counts[0] > 0)
    if not readout.all():  # an asymmetric echo, at the points that the cropped readout has
        points = np.rint((np.arange(width) - width // 2) * factor).astype(int) + len(readout) // 2
        columns = np.fft.ifftshift(readout[np.clip(points, 0, len(readout) - 1)])
        samples = samples[:, None] & columns
    kspace = kspace * (samples if samples.ndim == 2 else samples[:, None])
    stem = stem_of(path)
    subject, contrast = parse_name(stem)
    orientation = None if rotation is None or _is_pulseq(protocol) else orientation_of(_VENDOR)
    return Scan(
        kspace=np.ascontiguousarray(kspace, dtype=np.complex64),
        mask=Mask(samples=samples, name=stem),
        name=stem,
        subject=subject,
        contrast=contrast,
        sha256=sha256_file(path),
        affine=_affine(protocol, rotation, positions, kspace.shape[-2:]),
        noise=noise,
        orientation=orientation,
        vendor=_VENDOR,
    )


def _open(path: Path) -> list[dict[str, Any]]:
    """Headers and line headers of all measurements."""
    _check_whole(path)
    twixtools: Any = extras.require("twixtools", extra="scanner")
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):  # it warns by printing
            found: list[dict[str, Any]] = twixtools.read_twix(
                str(path), parse_pmu=False, parse_geometry=False, verbose=False
            )
    # bytes that make no sense end in errors of any type
    except Exception as error:
        raise _unreadable(path, type(error).__name__) from error
    if "parsing encountered an error" in said.getvalue():
        raise _unreadable(path, "a line is incomplete")
    if not found or not found[-1].get("mdb") or not isinstance(found[-1].get("hdr"), dict):
        raise _unreadable(path, "it holds no measurement")
    return found


def _unreadable(path: Path, why: str) -> DataError:
    return DataError(f"{path} cannot be read as Siemens raw data ({why}).", _AGAIN)


def _check_whole(path: Path) -> None:
    """Refuse what no such file begins with, before the library allocates by its numbers."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8 + 152)
    if len(start) < 160:
        raise _unreadable(path, "it is too short")
    first, second = struct.unpack("<2I", start[:8])
    if first < 10000 and 1 <= second <= 64:  # VD and later: a table of measurements
        _, _, offset, length = struct.unpack("<2I2Q", start[8:32])
        if offset + 8 > size or offset + length > size:
            raise _unreadable(path, "it ends before its measurement does")
        with path.open("rb") as stream:
            stream.seek(offset)
            first, second = struct.unpack("<2I", stream.read(8))
    else:
        offset = 0
    if not 32 <= first <= size - offset or not 1 <= second <= 64:  # header's bytes, its parts
        raise _unreadable(path, "its header makes no sense")
    _check_lines(path, size)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Lines:
    """Where the header of a line says what: bytes from its start.

    Attributes:
        mask: Flags, 8 bytes.
        counts: Samples, and the channels after them, 2 bytes each.
        header: Its length.
        of_channel: Length of what stands before the samples of each channel.
    """

    mask: int
    counts: int
    header: int
    of_channel: int


_OLD: Final = _Lines(mask=20, counts=28, header=0, of_channel=128)  # VB
_NEW: Final = _Lines(mask=40, counts=48, header=192, of_channel=32)  # VD and later
_ACQEND, _SYNCDATA = 1, 1 << 5
_LENGTH: Final = (1 << 25) - 1  # of a line, in its first number
_INDEX: Final = re.compile(rb"\[[0-9]{6,}\]")  # which the library makes lists of that length for


def _check_lines(path: Path, size: int) -> None:
    """Go through headers and lines as the library will, which damaged ones would keep for ever.

    Raises:
        DataError: A line is incomplete or has no length, or a list of the protocol is too long.
    """
    with path.open("rb") as stream:
        first, second = struct.unpack("<2I", stream.read(8))
        new = first < 10000 and 1 <= second <= 64
        table = stream.read(152 * second) if new else b""
        places = [struct.unpack_from("<2Q", table, 152 * n + 8) for n in range(len(table) // 152)]
        kind = _NEW if new else _OLD
        for begin, length in places if new else [(0, size)]:
            end = min(size, begin + length) if length else size
            stream.seek(begin)
            start = stream.read(4)
            header = struct.unpack("<I", start)[0] if len(start) == 4 else size
            if _INDEX.search(stream.read(min(header, size))):
                raise _unreadable(path, "its protocol has lists without end")
            at = begin + header
            while at + 128 < end:
                stream.seek(at)
                head = stream.read(kind.counts + 4)
                if len(head) < kind.counts + 4:
                    break
                (flags,) = struct.unpack_from("<Q", head, kind.mask)
                samples, channels = struct.unpack_from("<2H", head, kind.counts)
                step = kind.header + channels * (kind.of_channel + 8 * samples)
                if flags & (_ACQEND | _SYNCDATA):
                    step = struct.unpack_from("<I", head)[0] & _LENGTH
                elif new and at + step > size:  # the library would go on with another's length
                    raise _unreadable(path, "a line is incomplete")
                if flags & _ACQEND:
                    break
                if not step:
                    raise _unreadable(path, "a line has no length")
                at += step


@contextlib.contextmanager
def _held_open(path: Path, measurements: Sequence[dict[str, Any]]) -> Iterator[None]:
    """Let all lines read from one open file; the library would open it for every line."""
    with path.open("rb") as stream:
        for measurement in measurements:
            for line in measurement["mdb"]:
                line.fid = stream
        try:
            yield
        except (ValueError, OSError) as error:
            raise _unreadable(path, "a line is incomplete") from error


def _oversampling(headers: dict[str, Any]) -> float:
    """How many times more densely the readout was sampled than the image needs; 1 if unknown."""
    try:
        factor = float((headers.get("Dicom") or {}).get("flReadoutOSFactor") or 1.0)
    except (TypeError, ValueError):
        return 1.0
    return factor if factor >= 1 else 1.0


def _slices(
    lines: Sequence[Any], path: Path
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64]]:
    """Rotation with the columns P, R, S, and the slices' centres [S, 3], both LPS+."""
    seen: dict[int, Any] = {}
    for line in lines:
        seen.setdefault(int(line.mdh.Counter.Sli), line.mdh.SliceData)
    data = [seen[number] for number in sorted(seen)]
    quaternions = np.array([slice_data.Quaternion for slice_data in data], np.float64)
    if not np.allclose(np.abs(quaternions @ quaternions[0]), quaternions[0] @ quaternions[0],
                       atol=1e-3):  # fmt: skip
        raise DataError(
            f"{path} holds slices of several orientations.",
            "Give each stack of slices as a file of its own (a localiser has three).",
        )
    positions = [[d.SlicePos.Sag, d.SlicePos.Cor, d.SlicePos.Tra] for d in data]
    return _rotation(quaternions[0]), np.array(positions, np.float64)


def _rotation(quaternion: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Rotation matrix of (w, x, y, z); None where a sequence left it empty."""
    length = float(np.linalg.norm(quaternion))
    if length < 0.5:
        return None
    w, x, y, z = quaternion / length
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _is_pulseq(protocol: Any) -> bool:
    return "pulseq" in str(protocol.get("tSequenceFileName", "")).lower()


def _affine(
    protocol: Any,
    rotation: NDArray[np.float64] | None,
    positions: NDArray[np.float64],
    matrix: tuple[int, ...],
) -> Affine | None:
    """The affine where file and protocol tell all of it, and slices are evenly spaced."""
    if rotation is None or _is_pulseq(protocol):
        return None
    try:
        planned = protocol["sSliceArray"]["asSlice"][0]
        over = float((protocol.get("sKSpace") or {}).get("dPhaseOversamplingForDialog", 0.0))
        step_h = float(planned["dPhaseFOV"]) * (1 + over) / matrix[0]
        step_w = float(planned["dReadoutFOV"]) / matrix[1]
        across = rotation[:, 2] * float(planned["dThickness"])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    if len(positions) > 1:
        steps = np.diff(positions, axis=0)
        across = steps.mean(axis=0)
        if np.abs(steps - across).max() > 0.02 * float(np.linalg.norm(across)):
            return None
    sign = sign_of(orientation_of(_VENDOR))
    height, width = sign * rotation[:, 0] * step_h, sign * rotation[:, 1] * step_w
    origin = positions[0] - height * (matrix[0] // 2) - width * (matrix[1] // 2)
    return usable_affine(LPS @ from_axes(across, height, width, origin))
