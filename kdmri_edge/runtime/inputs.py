"""From what a user has (k-space, zero-filled or fully sampled images) to what a network reads.

From a measured scan to what a SENSE network reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.case import make_case
from kdmri_edge.data.geometry import Affine
from kdmri_edge.data.resample import to_matrix
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import DataError, MaskError
from kdmri_edge.models.specs import ModelSpec
from kdmri_edge.physics.coils import COILS, noise_weights
from kdmri_edge.physics.espirit import sense_slice
from kdmri_edge.physics.fourier import image_to_kspace, mirrored
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.operators import zero_filled
from kdmri_edge.runtime.bundle import open_bundle

__all__ = [
    "InputSpec",
    "NetworkInput",
    "SenseInput",
    "prepare",
    "prepare_scan",
    "read_input_spec",
    "sense_input",
]


class SenseInput(NamedTuple):
    """A scan, ready for a SENSE network.

    Attributes:
        zero_filled: x_u = S^H F^H m y, complex64 [S, H, W], in the unit of k-space.
        maps: Coil sensitivities, complex64 [S, C, H, W].
        mask: What was sampled.
    """

    zero_filled: NDArray[np.complex64]
    maps: NDArray[np.complex64]
    mask: Mask


def sense_input(
    scan: Scan,
    *,
    coils: int | None = COILS,
    advance: Callable[[int], None] | None = None,
) -> SenseInput:
    """Whiten, compress, estimate sensitivities and combine, slice by slice.

    Args:
        scan: Measured k-space; its lines around zero frequency have to be sampled without a gap.
        coils: Virtual coils to compress to, at most; None leaves all.
        advance: Called with the number of slices that are finished.

    Raises:
        MaskError: The mask's centre has gaps.
        DataError: Noise without a usable covariance, or fewer than one coil asked for.
    """
    whitening = None if scan.noise is None else noise_weights(scan.noise)
    images, maps = [], []
    for kspace in scan.kspace:
        image, sensitivities = sense_slice(kspace, scan.mask, coils=coils, whitening=whitening)
        images.append(image)
        maps.append(sensitivities)
        if advance is not None:
            advance(1)
    return SenseInput(np.stack(images), np.stack(maps), scan.mask)


# Norm of what an image holds outside the mask, over its own, up to which it counts as undersampled
# with that mask: far above float32 rounding, far below what another mask leaves.
_OUTSIDE = 1e-3

# Deviation of k-space from Hermitian symmetry, over its norm, that counts as no phase: what the
# noise of a phase-corrected image leaves.
_PHASE = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class InputSpec:
    """What a network has to be given.

    Attributes:
        spec: Its architecture.
        mask: The sampling pattern that it is made for.
        matrix: Pixels along H and W.
        coils: Virtual coils that scans are compressed to, at most, for networks that combine coils.
    """

    spec: ModelSpec
    mask: Mask
    matrix: int
    coils: int = COILS


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NetworkInput:
    """A volume, ready for a network.

    Attributes:
        zero_filled: [S, H, W] in the volume's own unit.
        target: The fully sampled images where they are known (undersampled here), else None.
        kind: What the file held, in words.
        voxel_mm: Voxel size along (S, H, W), where the file tells.
        affine: Of these images, see `data.geometry`, where the file tells.
        maps: Coil sensitivities [S, coils, H, W], for a network that combines coils.
    """

    zero_filled: NDArray[Any]
    target: NDArray[Any] | None
    kind: str
    voxel_mm: tuple[float, float, float] | None
    affine: Affine | None = None
    maps: NDArray[np.complex64] | None = None


def read_input_spec(source: Path, mask: Mask | None = None) -> InputSpec:
    """Return what a bundle, or a .safetensors checkpoint, has to be given.

    Args:
        source: Bundle or checkpoint.
        mask: Another mask than its own, for a bundle that takes masks as an input
            (`open_session` refuses others).

    Raises:
        BundleError: The bundle is not intact.
        CheckpointError: The checkpoint is not intact.
    """
    if source.suffix == ".safetensors":
        from kdmri_edge.models.checkpoint import read_checkpoint_meta

        meta: Mapping[str, Any] = read_checkpoint_meta(source)
    else:
        meta = open_bundle(source, verify=False).manifest
    return InputSpec(
        spec=ModelSpec.from_dict(meta["spec"]),
        mask=mask or Mask.from_dict(meta["mask"]),
        matrix=int(meta["matrix"]),
        coils=int(meta.get("coils", COILS)),
    )


def prepare_scan(scan: Scan, reads: InputSpec, *, undersample: bool = False) -> NetworkInput:
    """Make a SENSE network's input of a measured scan.

    Args:
        scan: K-space of any number of coils, sampled with the network's mask; with `undersample`
            fully sampled.
        reads: What the network has to be given.
        undersample: Apply the network's mask to a fully sampled scan first.

    Raises:
        DataError: The network combines no coils, the matrix is another, or there is nothing to
            undersample.
        MaskError: The scan is sampled with another mask, or its centre has gaps.
    """
    if not reads.spec.coils:
        raise DataError(
            f"{scan.name} has {scan.coils} coils, the network takes one image.",
            "Use a network that combines coils (dccnn-d3c5-sense).",
        )
    _check_matrix(scan.name, scan.matrix, reads)
    kind = f"k-space of {scan.coils} coils"
    if undersample:
        if not scan.mask.samples.all():
            raise DataError(f"{scan.name} is undersampled already.", "Leave --undersample out.")
        keep = reads.mask.samples[:, None] if reads.mask.is_lines else reads.mask.samples
        scan = dataclasses.replace(scan, kspace=scan.kspace * keep, mask=reads.mask)
        kind = f"fully sampled {kind}, undersampled here"
    elif scan.mask != reads.mask:
        raise MaskError(
            f"{scan.name} is sampled with another mask than the network's {reads.mask.name!r}.",
            "Use a network for the mask of this scan; if it is fully sampled, add --undersample.",
        )
    given = sense_input(scan, coils=reads.coils)
    return NetworkInput(
        zero_filled=given.zero_filled,
        target=None,
        kind=kind,
        voxel_mm=scan.voxel_mm,
        affine=scan.affine,
        maps=given.maps,
    )


def prepare(volume: Volume, reads: InputSpec, *, undersample: bool = False) -> NetworkInput:
    """Make a network's input of a volume.

    Args:
        volume: K-space that was sampled with the network's mask; complex zero-filled images of
            it; for super-resolution magnitude images of low resolution; with `undersample` fully
            sampled images.
        reads: What the network has to be given.
        undersample: Bring fully sampled images to the network's matrix and apply its mask.

    Raises:
        DataError: The file holds something else than the network reads (for a network that
            combines coils, anything but a `Scan`); the message says what.
        MaskError: The volume has another matrix than the mask.
    """
    channels, magnitude = reads.spec.channels, reads.spec.magnitude_input
    if reads.spec.coils:
        raise DataError(
            f"{volume.name} holds images or k-space of one coil, the network combines coils.",
            "Give multi-coil k-space, or use a network of one image (dccnn-d3c5-complex).",
        )
    if undersample:
        if volume.kspace is not None:
            raise DataError(
                f"{volume.name} holds undersampled k-space already.", "Leave --undersample out."
            )
        whole = to_matrix(volume, reads.matrix)
        case = make_case(whole, reads.mask, channels, magnitude=magnitude)
        return NetworkInput(
            zero_filled=case.zero_filled,
            target=case.target,
            kind="fully sampled images, undersampled here",
            voxel_mm=whole.voxel_mm,
            affine=whole.affine,
        )
    if volume.kspace is not None:
        case = make_case(volume, reads.mask, channels, magnitude=magnitude)
        return NetworkInput(
            zero_filled=case.zero_filled,
            target=None,
            kind="k-space",
            voxel_mm=volume.voxel_mm,
            affine=volume.affine,
        )
    if not volume.is_complex and not magnitude:
        raise DataError(
            f"{volume.name} holds magnitude images, of which data consistency cannot be computed.",
            "Give k-space or complex zero-filled images; to try the mask on fully sampled images,"
            " add --undersample.",
        )
    try:
        _check_matrix(volume.name, volume.matrix, reads)
    except MaskError as error:
        raise MaskError(
            error.what, f"{error.remedy} Fully sampled images are brought to it by --undersample."
        ) from None
    if volume.is_complex:
        x_u, kind = _undersampled(volume, reads.mask), "complex zero-filled images"
        if channels == 1:  # with the magnitude, x' = x - P x + x_u would not hold
            if not magnitude:
                _check_zero_phase(volume.name, x_u, reads.mask)
            x_u = np.abs(x_u) if magnitude else x_u.real
    else:
        x_u, kind = volume.image, "magnitude images of low resolution"
    return NetworkInput(
        zero_filled=np.ascontiguousarray(x_u),
        target=None,
        kind=kind,
        voxel_mm=volume.voxel_mm,
        affine=volume.affine,
    )


def _check_matrix(name: str, matrix: tuple[int, int], reads: InputSpec) -> None:
    """Refuse an image of another matrix than the network's.

    Raises:
        MaskError: They differ.
    """
    try:
        reads.mask.check_matrix(*matrix)
    except MaskError:
        raise MaskError(
            f"{name} is {matrix[0]} x {matrix[1]}, the network takes"
            f" {reads.matrix} x {reads.matrix}.",
            "Use a network of its matrix (`kdmri-edge models`).",
        ) from None


def _check_zero_phase(name: str, image: NDArray[Any], mask: Mask) -> None:
    """Refuse an image with phase, of which the real part alone would be a wrong image.

    K-space of a real object is Hermitian, K(-k) = K(k)*, which shows on the samples whose mirror
    was taken too; an undersampled image of a real object may be complex.
    """
    kspace = image_to_kspace(image)
    taken = mask.samples[:, None] if mask.is_lines else mask.samples
    both = taken & mirrored(taken)  # the one column of lines is its own mirror
    whole = float(np.linalg.norm(kspace * both))
    if whole and float(np.linalg.norm((kspace - mirrored(kspace).conj()) * both)) > _PHASE * whole:
        raise DataError(
            f"{name} carries phase, and the network takes images without.",
            "Use a network of two channels (dccnn-d3c5-complex), or take out the phase first.",
        )


def _undersampled(volume: Volume, mask: Mask) -> NDArray[Any]:
    """Return a complex image, refused where it holds samples that the mask does not take."""
    image = volume.image
    whole = float(np.linalg.norm(image))
    if not whole:
        return image  # nothing is nothing under any mask
    outside = float(np.linalg.norm(image - zero_filled(image, mask))) / whole
    if outside > _OUTSIDE:
        raise DataError(
            f"{volume.name} is not undersampled with the network's mask {mask.name!r}:"
            f" {100 * outside**2:.2g} % of its energy are samples which that mask does not take.",
            "Use a network for the mask of this scan; if the images are fully sampled, add"
            " --undersample.",
        )
    return image
