"""Siemens raw data, .dat of VB to XA (twixtools, extra `scanner`): Cartesian scans of slices.

Phase encode is H, readout W without its oversampling. Siemens gives the directions of its axes for
a Fourier transform of the other sign than `physics.fourier`'s, so an image's H and W run against
them: with the quaternion's columns P, R, S (phase, read, slice, in LPS+), H runs along -P and W
along -R (as the libraries twixtools and mrpro have it). Pulseq plays gradients of its own, of which
the protocol's directions say nothing: its scans have no geometry.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge import extras
from kdmri_edge.data.geometry import LPS, Affine, from_axes, usable_affine
from kdmri_edge.data.measured import remove_oversampling, volume_of
from kdmri_edge.data.names import parse_name
from kdmri_edge.data.readers import stem_of
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.twix_lines import image_lines, noise_of, sorted_lines
from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import DataError
from kdmri_edge.files import sha256_file
from kdmri_edge.physics.masks import Mask

__all__ = ["read_twix", "scan_twix"]

_CARTESIAN: Final = 1
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
    return Scan(
        kspace=np.ascontiguousarray(kspace, dtype=np.complex64),
        mask=Mask(samples=samples, name=stem),
        name=stem,
        subject=subject,
        contrast=contrast,
        sha256=sha256_file(path),
        affine=_affine(protocol, rotation, positions, kspace.shape[-2:]),
        noise=noise,
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


def _affine(
    protocol: Any,
    rotation: NDArray[np.float64] | None,
    positions: NDArray[np.float64],
    matrix: tuple[int, ...],
) -> Affine | None:
    """The affine where file and protocol tell all of it, and slices are evenly spaced."""
    if rotation is None or "pulseq" in str(protocol.get("tSequenceFileName", "")).lower():
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
    height, width = -rotation[:, 0] * step_h, -rotation[:, 1] * step_w
    origin = positions[0] - height * (matrix[0] // 2) - width * (matrix[1] // 2)
    return usable_affine(LPS @ from_axes(across, height, width, origin))
