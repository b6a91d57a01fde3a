"""The volumes of an assessment: test subjects alone, at the matrix of the networks."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kdmri_bench.planning.sources import Source
from kdmri_bench.planning.testdata import central_slices, choose_files
from kdmri_edge.data.case import Case, Undersampling
from kdmri_edge.data.datasets import LESION_MASK, Split, VolumeFile, read_coils, read_found
from kdmri_edge.data.geometry import regridded
from kdmri_edge.data.phantom.volumes import phantom_set
from kdmri_edge.data.resample import is_large_enough, pad_centred, to_matrix
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.volume import Volume
from kdmri_edge.distillation.request import PHANTOM
from kdmri_edge.errors import BenchError
from kdmri_edge.models.protocol import reads_coils
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.files import sha256_bytes

__all__ = ["LABELS", "SEED", "AssessedVolume", "Data", "brought", "in_air", "load", "undersampled"]

LABELS: Final = LESION_MASK

SEED: Final = 1
"""Of phase, coils and noise that are simulated on test volumes, as in the benchmark."""

_PHANTOMS: Final = 4
_PHANTOM_SLICES: Final = 8

Data = str | os.PathLike[str] | Volume | Scan
"""Folder of volumes or one file, "phantom", or what `kdmri_edge.read` returned."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AssessedVolume:
    """One volume under the networks' mask.

    Attributes:
        case: its fully sampled images and what a network is given, [S, H, W].
        file: where it was read from; None of what was given as arrays.
        first: number, in the volume, of the first slice that is assessed.
        voxel_mm: along (S, H, W) at the networks' matrix; None where the file does not tell.
        own: (H, W) of the volume as it was read.
        air: share of the image that is air, which it was set in since it is smaller than the
            matrix; 0 where it is not.
    """

    case: Case
    file: Path | None = None
    first: int = 0
    voxel_mm: tuple[float, float, float] | None = None
    own: tuple[int, int] = (0, 0)
    air: float = 0.0

    @property
    def target(self) -> NDArray[np.float32]:
        """Magnitude of the fully sampled images, [S, H, W]."""
        magnitude: NDArray[np.float32] = np.abs(self.case.target).astype(np.float32, copy=False)
        return magnitude

    @property
    def slices(self) -> range:
        """Numbers, in the volume, of the slices that are assessed."""
        return range(self.first, self.first + self.case.count)


def air_around(volume: Volume, matrix: int) -> float:
    """Return the share of the image that is air where `brought` sets a volume in it, else 0."""
    if volume.kspace is not None or is_large_enough(volume, (matrix, matrix)):
        return 0.0
    sizes = (1.0, 1.0) if volume.voxel_mm is None else volume.voxel_mm[1:]
    own = [pixels * mm for pixels, mm in zip(volume.matrix, sizes, strict=True)]
    field = [max(pixels, matrix) * mm for pixels, mm in zip(volume.matrix, sizes, strict=True)]
    return 1 - own[0] * own[1] / max(field) ** 2


def in_air(volumes: Sequence[AssessedVolume], matrix: int) -> list[str]:
    """Say which volumes were set in air, and what that does to averages over the image.

    Args:
        volumes: What is assessed.
        matrix: Side of their images.
    """
    names: dict[tuple[tuple[int, int], float], list[str]] = {}
    for volume in volumes:
        if volume.air:
            names.setdefault((volume.own, volume.air), []).append(volume.case.name)
    return [
        f"{', '.join(own)}: {height} x {width} pixels, set in air to {matrix} x {matrix}. PSNR and"
        f" SSIM are means over the air, too, {air:.0%} of the image: PSNR may be up to"
        f" {-10 * np.log10(1 - air):.1f} dB higher than over the volume's own area."
        for ((height, width), air), own in names.items()
    ]


def brought(volume: Volume, matrix: int) -> Volume:
    """Bring a volume to the networks' matrix; one that is smaller is set in air.

    `to_matrix` never upsamples. Air around the field of view adds no pixel to what was measured,
    so that a volume of 218 pixels can be assessed at 240: pixels keep their size.

    Args:
        volume: Images of any matrix.
        matrix: Pixels along H and W.

    Raises:
        DataError: See `to_matrix`.
    """
    if not air_around(volume, matrix):
        return to_matrix(volume, matrix)
    shape = (max(volume.matrix[0], matrix), max(volume.matrix[1], matrix))
    affine = volume.affine
    if affine is not None:
        affine = regridded(
            affine,
            old=(0, volume.matrix[0] // 2, volume.matrix[1] // 2),
            new=(0, shape[0] // 2, shape[1] // 2),
            step=(1, 1, 1),
        )
    padded = dataclasses.replace(volume, image=pad_centred(volume.image, shape), affine=affine)
    return to_matrix(padded, matrix)


def undersampled(source: Source, volume: Volume | Scan, *, seed: int = SEED) -> Case:
    """Undersample a volume at the networks' matrix as they read it.

    Raises:
        DataError: See `data.case.Undersampling.case`.
        MaskError: The same.
    """
    kspace = True if reads_coils(source.spec) else None
    at = Undersampling(source.spec, source.mask, source.matrix, seed, kspace=kspace)
    return at.case(volume)


def load(
    data: Data | Iterable[Data],
    source: Source,
    *,
    own: Split | None = None,
    contrast: str | None = None,
    subjects: Sequence[str] = (),
    slices: int | None = None,
) -> list[AssessedVolume]:
    """Read the test volumes of folders.

    Args:
        data: One or several folders or files, "phantom", or volumes that were read. Of a folder
            that follows the run's split, or a known one, test subjects alone are taken.
        source: One of the networks; all of them read the same.
        own: Split of the run that the networks come from.
        contrast: Keep this contrast of folders only.
        subjects: Take exactly these subjects of folders.
        slices: Keep so many slices around the middle of each volume; None keeps all.

    Raises:
        BenchError: No volume, subjects that are not there, or the same images twice.
        DataError: A volume is unreadable.
    """
    single = isinstance(data, str | os.PathLike | Volume | Scan)
    given: list[Data] = [data] if single else list(data)  # type: ignore[list-item, arg-type]
    found: list[AssessedVolume] = []
    masks: list[VolumeFile] = []
    wanted: list[VolumeFile | Volume | Scan] = []
    for item in given:
        if item == PHANTOM:
            wanted += phantom_set(SEED, _PHANTOMS, slices=_PHANTOM_SLICES, matrix=source.matrix)
        elif isinstance(item, Volume | Scan):
            wanted.append(item)
        else:
            files, _ = choose_files(Path(item), contrast=contrast, subjects=subjects, own=own)
            masks += [file for file in files if file.name.endswith(LABELS)]
            wanted += [file for file in files if not file.name.endswith(LABELS)]
    with progress("Reading test volumes", len(wanted)) as advance:
        for each in wanted:
            found.append(_read(each, source, slices))
            advance(1)
    if not found and masks:
        raise BenchError(
            f"{masks[0].path} is a mask of lesions (its name ends in {LABELS}), and there is no"
            " volume beside it.",
            "Put the volumes into the same folder, or call what is an image otherwise.",
        )
    if not found:
        raise BenchError("There is no volume to assess on.", "Name a folder of volumes.")
    names = [volume.case.name for volume in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BenchError(f"Two volumes are called {twice}.", "Name each folder once.")
    _check_apart(found)
    return found


def _check_apart(volumes: Sequence[AssessedVolume]) -> None:
    """Refuse images that are there twice, under whatever names: intervals would be too narrow."""
    known: dict[str, AssessedVolume] = {}
    for volume in volumes:
        first = known.setdefault(sha256_bytes(volume.target.tobytes()), volume)
        if first is not volume:
            whose = (
                f"subjects {first.case.subject} and {volume.case.subject}"
                if first.case.subject != volume.case.subject
                else f"subject {volume.case.subject}"
            )
            raise BenchError(
                f"{first.case.name} and {volume.case.name} of {whose} hold the same images, which"
                " would count twice.",
                "Leave one of them out.",
            )


def _read(each: VolumeFile | Volume | Scan, source: Source, slices: int | None) -> AssessedVolume:
    file = None
    if isinstance(each, VolumeFile):
        file = each.path
        loaded = read_coils(each) if reads_coils(source.spec) else read_found(each)
    else:
        loaded = each
    own, air = loaded.matrix, 0.0
    if isinstance(loaded, Volume):
        air = air_around(loaded, source.matrix)
        loaded = brought(loaded, source.matrix)
    case = undersampled(source, loaded)
    kept = central_slices(case, slices)
    return AssessedVolume(
        case=kept,
        file=file,
        first=(case.count - kept.count) // 2,
        voxel_mm=loaded.voxel_mm,
        own=own,
        air=air,
    )
