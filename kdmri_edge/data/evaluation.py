"""Reconstructions compared with fastMRI's references, as its public evaluation does.

For each volume (Zbontar et al., arXiv:1811.08839, and `fastmri.evaluate` of its package): reference
and reconstruction are cropped to a square of the reference's columns, and PSNR, SSIM and NMSE are
computed over the volume with the reference's maximum as data range. What is reported is the mean
over volumes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.formats.hdf5.fastmri_images import (
    Challenge,
    Reference,
    centre_crop,
    read_reconstruction,
    read_reference,
)
from kdmri_edge.data.sources import HDF5_SUFFIXES
from kdmri_edge.errors import DataError
from kdmri_edge.metrics import volume_metrics
from kdmri_edge.utils.console import progress

__all__ = ["Evaluation", "VolumeScore", "cropped_metrics", "evaluate"]


@dataclass(frozen=True, kw_only=True, slots=True)
class VolumeScore:
    """How good the reconstruction of a volume is.

    Attributes:
        name: Of its file.
        acquisition: As its file says, e.g. "AXT2"; None where it does not.
        challenge: "singlecoil" or "multicoil".
        reference: The dataset that it was compared with, or "k-space" where that was computed.
        slices: How many.
        metrics: Measure -> figure: psnr (dB), ssim, nmse, and those of `kdmri_edge.metrics` beyond.
    """

    name: str
    acquisition: str | None
    challenge: str
    reference: str
    slices: int
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Reconstructions of a folder, compared with their references.

    Attributes:
        volumes: In the order of their names.
    """

    volumes: tuple[VolumeScore, ...]

    @property
    def mean(self) -> dict[str, float]:
        """Mean of each measure over volumes."""
        return {name: float(np.mean(self._of(name))) for name in self.volumes[0].metrics}

    @property
    def std(self) -> dict[str, float | None]:
        """Standard deviation (n - 1) of each measure over volumes; None of a single one."""
        several = len(self.volumes) > 1
        with np.errstate(invalid="ignore"):  # of infinities it is not a number
            return {
                name: float(np.std(self._of(name), ddof=1)) if several else None
                for name in self.volumes[0].metrics
            }

    def _of(self, name: str) -> list[float]:
        return [volume.metrics[name] for volume in self.volumes]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; None for what is infinite, as the PSNR of an exact copy is."""
        volumes = [
            {**asdict(volume), "metrics": _finite(volume.metrics)} for volume in self.volumes
        ]
        return {"volumes": volumes, "mean": _finite(self.mean), "std": _finite(self.std)}


def _finite(figures: Mapping[str, float | None]) -> dict[str, float | None]:
    return {
        name: value if value is not None and np.isfinite(value) else None
        for name, value in figures.items()
    }


def cropped_metrics(reference: NDArray[Any], image: NDArray[Any]) -> dict[str, float]:
    """Compare a volume as fastMRI does: within the central square of the reference's columns.

    Args:
        reference: [S, R, C], any unit.
        image: The reconstruction, [S, R', C'], same unit.

    Returns:
        What `metrics.volume_metrics` gives.

    Raises:
        DataError: Other slices, an image smaller than that square, or see `volume_metrics`.
    """
    if image.ndim != 3 or reference.ndim != 3 or len(image) != len(reference):
        raise DataError(
            f"The reconstruction is {list(image.shape)}, the reference {list(reference.shape)}.",
            "Reconstruct all slices of the volume, and no others.",
        )
    side = int(reference.shape[-1])
    return volume_metrics(centre_crop(reference, side, side), centre_crop(image, side, side))


def evaluate(
    targets: Path,
    reconstructions: Path,
    *,
    challenge: Challenge | str | None = None,
    acquisition: str | None = None,
) -> Evaluation:
    """Compare the reconstructions of a folder with the references of fastMRI's files.

    Args:
        targets: Folder of files with `reconstruction_rss` or `reconstruction_esc`, or with fully
            sampled k-space of which the reference is computed; or one such file.
        reconstructions: Folder of files of the same names with a dataset `reconstruction`, as
            `kdmri-edge run --layout fastmri` and fastMRI's own code write them; or one such file.
        challenge: "singlecoil" or "multicoil"; None goes by each file's k-space.
        acquisition: Take only volumes of this kind, e.g. "AXT2".

    Raises:
        DataError: Nothing to compare, a volume without reconstruction, or files that cannot be
            read or compared.
        MissingExtraError: scikit-image is not installed.
    """
    pairs = _pairs(Path(targets), Path(reconstructions))
    scores: list[VolumeScore] = []
    kinds: set[str] = set()
    with progress("Comparing", len(pairs)) as advance:
        for target, reconstruction in pairs:
            reference = read_reference(target, challenge)
            kinds.add(reference.acquisition or "none")
            if acquisition in (None, reference.acquisition):
                scores.append(_score(target, reference, reconstruction))
            advance(1)
    if not scores:
        raise DataError(
            f"{targets} holds no volume of acquisition {acquisition!r}.",
            f"There are {', '.join(sorted(kinds))}.",
        )
    return Evaluation(volumes=tuple(scores))


def _pairs(targets: Path, reconstructions: Path) -> list[tuple[Path, Path]]:
    """Find the reconstruction of each target, before any is read.

    Raises:
        DataError: A folder is missing or empty, or a target has no reconstruction.
    """
    for place in (targets, reconstructions):
        if not place.exists():
            raise DataError(f"{place} does not exist.", "Check the path.")
    files = [targets] if targets.is_file() else sorted(_hdf5_files(targets))
    if not files:
        raise DataError(f"{targets} holds no HDF5 file.", "Give a folder of fastMRI's files.")
    if reconstructions.is_file():
        if len(files) > 1:
            raise DataError(
                f"{targets} holds {len(files)} volumes, {reconstructions} is one.",
                "Give a folder of reconstructions, or one file of either.",
            )
        return [(files[0], reconstructions)]
    missing = [file.name for file in files if not (reconstructions / file.name).is_file()]
    if missing:
        some = f"{len(missing)} of {len(files)} volumes, among them {missing[0]}"
        raise DataError(
            f"{reconstructions} lacks {some if len(files) > 1 else missing[0]}.",
            "Reconstruct all volumes: each has the name of its target.",
        )
    return [(file, reconstructions / file.name) for file in files]


def _hdf5_files(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in HDF5_SUFFIXES and path.is_file() and path.name[0] != "."
    ]


def _score(target: Path, reference: Reference, reconstruction: Path) -> VolumeScore:
    try:
        metrics = cropped_metrics(reference.image, read_reconstruction(reconstruction))
    except DataError as error:
        if str(reconstruction) in error.what:
            raise
        raise DataError(f"{target.name}: {error.what}", error.remedy) from error
    return VolumeScore(
        name=target.name,
        acquisition=reference.acquisition,
        challenge=str(reference.challenge),
        reference=reference.origin,
        slices=len(reference.image),
        metrics=metrics,
    )
