"""Siemens raw data as a scanner would write it, made with twixtools."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.utils.extras import require

__all__ = ["PROTOCOL", "C", "H", "S", "W", "drawn", "line", "whole", "write_twix", "zero_first"]

PROTOCOL: Final = {
    "sSliceArray.asSlice[0].dThickness": 4.0,
    "sSliceArray.asSlice[0].dPhaseFOV": 180.0,
    "sSliceArray.asSlice[0].dReadoutFOV": 240.0,
    "sKSpace.ucTrajectory": 1,
    "sPat.ucRefScanMode": 1,
    "tPatientName": '"Doe^Jane"',
}


S, C, H, W = 3, 2, 10, 8  # of most tests


def drawn(*shape: int, seed: int = 0) -> NDArray[Any]:
    """Return complex noise."""
    random = np.random.default_rng(seed)
    return (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)


def zero_first(centred: NDArray[Any]) -> NDArray[Any]:
    """Move zero frequency from the middle to index 0."""
    return np.fft.ifftshift(centred, axes=(-2, -1))


def _header(protocol: dict[str, Any], oversampling: float) -> NDArray[Any]:
    """Bytes of a measurement's header: its length, and named parts with their lengths."""
    lines = "".join(f"{key} = {value}\n" for key, value in protocol.items())
    parts = {
        "Dicom": f'<ParamDouble."flReadoutOSFactor"> {{ <Precision> 6 {oversampling} }}',
        "MeasYaps": f"### ASCCONV BEGIN ###\n{lines}\n### ASCCONV END ###",
    }
    body = b"".join(
        name.encode() + b"\0" + struct.pack("<I", len(text)) + text.encode()
        for name, text in parts.items()
    )
    body += bytes(-(len(body) + 8) % 32)
    return np.frombuffer(struct.pack("<2I", len(body) + 8, len(parts)) + body, np.uint8)


def line(
    data: NDArray[Any],
    *,
    lin: int = 0,
    sli: int = 0,
    centre: int = 0,
    column: int | None = None,
    flags: Sequence[str] = (),
    position: Sequence[float] = (0, 0, 0),
    quaternion: Sequence[float] = (1, 0, 0, 0),
    cutoff: int = 0,
    **counters: int,
) -> Any:
    """One readout, `data` [coils, samples]."""
    mdb: Any = require("twixtools.mdb", extra="scanner").Mdb_local(data.astype(np.complex64))
    for name, value in {"Lin": lin, "Sli": sli, **counters}.items():
        setattr(mdb.mdh.Counter, name, value)
    mdb.mdh.CenterLin = centre
    mdb.mdh.CenterCol = data.shape[1] // 2 if column is None else column
    mdb.mdh.CutOff.Pre = cutoff
    for name, millimetres in zip(("Sag", "Cor", "Tra"), position, strict=True):
        setattr(mdb.mdh.SliceData.SlicePos, name, millimetres)
    mdb.mdh.SliceData.Quaternion[:] = quaternion
    for flag in flags:
        mdb.add_flag(flag)
    return mdb


def write_twix(
    path: Path,
    *measurements: Sequence[Any],
    oversampling: float = 1.0,
    **protocol: Any,
) -> None:
    """Write measurements (lists of lines) into one file."""
    twixtools: Any = require("twixtools", extra="scanner")
    settings = PROTOCOL | {key.replace("__", "."): value for key, value in protocol.items()}
    header = _header({k: v for k, v in settings.items() if v is not None}, oversampling)
    scans = [{"mdb": list(lines), "hdr_str": header} for lines in measurements]
    twixtools.write_twix(scans, str(path))


def whole(kspace: NDArray[Any], **fields: Any) -> list[Any]:
    """Lines of centred k-space [S, C, H, W], slices 4 mm apart upwards."""
    slices, _, height, _ = kspace.shape
    return [
        line(kspace[s, :, h], lin=h, sli=s, centre=height // 2, position=(0, 0, 4 * s), **fields)
        for s in range(slices)
        for h in range(height)
    ]
