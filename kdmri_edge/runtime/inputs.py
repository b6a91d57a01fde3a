"""From what a user has (k-space, zero-filled or fully sampled images) to what a network reads.

`slice_input` is the one function for k-space, whatever it came from: a file (`prepare_scan`), a
scanner's stream or an array (`runtime.pipeline`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.case import make_case
from kdmri_edge.data.geometry import Affine
from kdmri_edge.data.resample import to_matrix
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import BundleError, CheckpointError, DataError, MaskError
from kdmri_edge.models.checkpoint import is_checkpoint, read_checkpoint_meta
from kdmri_edge.models.protocol import InputKind, NetworkSpec, reads_coils
from kdmri_edge.models.specs import described_spec
from kdmri_edge.physics.coils import (
    COILS,
    compress,
    compression_matrix,
    noise_weights,
    sense_zero_filled,
)
from kdmri_edge.physics.combining import (
    combined,
    is_zero_phase,
    left_out,
    misfit,
    root_sum_of_squares,
)
from kdmri_edge.physics.espirit import (
    Sensitivities,
    calibration_energy,
    sense_slice,
    sensitivities,
)
from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.operators import as_network_reads, zero_filled
from kdmri_edge.physics.redraw import redrawn
from kdmri_edge.physics.reference import ReferenceLines, calibration_of
from kdmri_edge.runtime.bundle import Bundle, open_bundle
from kdmri_edge.runtime.causes import Cause
from kdmri_edge.runtime.scope import FreeSizes
from kdmri_edge.utils.files import damaged
from kdmri_edge.utils.threads import mapped

__all__ = [
    "NOTHING_TOLD",
    "HeldCoils",
    "InputSpec",
    "NetworkInput",
    "SliceInput",
    "Told",
    "check_slice",
    "noise_sigma",
    "prepare",
    "prepare_scan",
    "read_input_spec",
    "slice_input",
]


# Norm of what an image holds outside the mask, over its own, up to which it counts as undersampled
# with that mask: far above float32 rounding, far below what another mask leaves.
_OUTSIDE = 1e-3

# `combining.misfit` up to which a network of one image is given combined coils. On phantoms of 3 to
# 16 coils with smooth phase, at 2x to 4x, it is at most 0.21 for real parts and 0.02 for complex
# images, and networks improve on the zero-filled image; on a measured slice of 16 coils it is at
# least 0.21 and 0.04, and they do not, or by chance.
_MISFIT = {True: 0.22, False: 0.03}
# What is imaginary is lost to a network of real images, so it has to be less than what the mask
# left out (`combining.left_out`), or nothing is won: times this on phantoms at most 0.7, on the
# measured slice at least 0.75. Up to the second figure it hardly shows in a magnitude.
_OF_LEFT_OUT, _SLIGHT = 0.7, 0.05


# Energy of the calibration data over that of the slice which held sensitivities were estimated of,
# from which on they are estimated anew: 10 dB. A slice that is no more than that above one of noise
# alone is itself so noisy that its own estimate would be hardly better; repetitions that differ by
# contrast agent, flip angle or receiver gain, mostly by less than 3 times in amplitude, stay below.
# Where they do not, a better estimate replaces a worse one, and only its time is lost.
_FAR_ABOVE: Final = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class InputSpec:
    """What a network has to be given.

    Attributes:
        spec: Its architecture.
        mask: The sampling pattern that it is made for, or that of the scan at hand.
        matrix: (H, W): pixels that it is made for, or those of the scan at hand.
        free: Which other matrices it takes; None for no others.
        coils: Virtual coils that scans are compressed to, at most, for networks that combine coils
            or read their k-space.
    """

    spec: NetworkSpec
    mask: Mask
    matrix: tuple[int, int]
    free: FreeSizes | None = None
    coils: int = COILS

    def at(self, matrix: tuple[int, int], name: str = "The scan") -> InputSpec:
        """Return what is to be given of a matrix; a network of one matrix stays as it is.

        The mask, where it is of another matrix, is drawn anew like it (`physics.redraw`).

        Raises:
            DataError: The network does not take such a matrix.
            MaskError: The acceleration leaves such a matrix without a centre.
        """
        if self.free is None:
            return self
        self.free.check(*matrix, name)
        return dataclasses.replace(self, mask=redrawn(self.mask, *matrix), matrix=matrix)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NetworkInput:
    """Slices, ready for a network.

    Attributes:
        zero_filled: [S, H, W] in the source's own unit, as the network reads it: float32 or
            complex64 (`physics.operators.as_network_reads`); for a network of k-space the root sum
            of squares of the coils' images.
        mask: What was sampled.
        target: The fully sampled images where they are known (undersampled here), else None.
        kind: What the source held, in words.
        voxel_mm: Voxel size along (S, H, W), where the file tells.
        affine: Of these images, see `data.geometry`, where the file tells.
        maps: Coil sensitivities, complex64 [S, coils, H, W], for a network that combines coils.
        kspace: What the coils measured, complex64 [S, coils, H, W], for a network of k-space.
        beyond: What of it the network was not trained for, in sentences.
        coils: Coils that were combined to the zero-filled image.
        noise: Standard deviation of the real part of a sample, of a noise scan of one coil.
        contrast: As the source tells it.
    """

    zero_filled: NDArray[Any]
    mask: Mask
    target: NDArray[Any] | None = None
    kind: str = ""
    voxel_mm: tuple[float, float, float] | None = None
    affine: Affine | None = None
    maps: NDArray[np.complex64] | None = None
    kspace: NDArray[np.complex64] | None = None
    beyond: tuple[str, ...] = ()
    coils: int = 1
    noise: float | None = None
    contrast: str | None = None

    @classmethod
    def of(cls, slices: Sequence[SliceInput], mask: Mask, **facts: Any) -> NetworkInput:
        """Join slices.

        Args:
            slices: What `slice_input` made of each.
            mask: What was sampled.
            **facts: Other attributes.
        """

        def joined(parts: list[NDArray[Any] | None]) -> NDArray[Any] | None:
            there = [part for part in parts if part is not None]
            return np.stack(there) if there else None

        return cls(
            zero_filled=np.stack([one.zero_filled for one in slices]),
            mask=mask,
            maps=joined([one.maps for one in slices]),
            kspace=joined([one.kspace for one in slices]),
            **facts,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """What a stream tells of a slice beside its samples: what `NetworkInput` has of a file's.

    Attributes:
        voxel_mm: See `NetworkInput`, as are noise and contrast.
        noise: See `NetworkInput`.
        contrast: See `NetworkInput`.
    """

    voxel_mm: tuple[float, float, float] | None = None
    noise: float | None = None
    contrast: str | None = None


NOTHING_TOLD: Final = Told()


class HeldCoils:
    """What was estimated of the coils at one place, for slices that come there again.

    The first slice that tells anything fills it: of one without signal nothing is held. A slice of
    other coils or another matrix fills it anew, and so does one whose calibration data hold far
    more energy than those it was filled from, which may have been noise alone.
    """

    def __init__(self) -> None:
        # with the energy of the calibration data; in one, since two slices may come at once
        self._held: tuple[Sensitivities, float] | None = None

    def of(
        self,
        kspace: NDArray[np.complex64],
        mask: Mask,
        *,
        coils: int,
        whitening: NDArray[np.complex128] | None,
        reference: ReferenceLines | None,
    ) -> Sensitivities:
        """Return what is known, else `espirit.sensitivities` of this slice.

        Raises:
            MaskError: See `espirit.sensitivities`.
        """
        energy = calibration_energy(kspace, mask, whitening=whitening, reference=reference)
        held = self._held
        if held is not None and held[0].fit(kspace) and energy <= _FAR_ABOVE * held[1]:
            return held[0]
        known = sensitivities(kspace, mask, coils=coils, whitening=whitening, reference=reference)
        # maps that are zero everywhere would make zero of every later slice
        self._held = (known, energy) if known.maps.any() else None
        return known


class SliceInput(NamedTuple):
    """One slice, ready for a network.

    Attributes:
        zero_filled: [H, W], see `NetworkInput`.
        maps: Coil sensitivities, complex64 [coils, H, W], for a network that combines coils.
        kspace: What the coils measured, complex64 [coils, H, W], for a network of k-space.
    """

    zero_filled: NDArray[Any]
    maps: NDArray[np.complex64] | None = None
    kspace: NDArray[np.complex64] | None = None


def read_input_spec(
    source: Path,
    mask: Mask | None = None,
    *,
    any_matrix: bool = False,
    bundle: Bundle | None = None,
) -> InputSpec:
    """Return what a bundle, or a .safetensors checkpoint, has to be given.

    Args:
        source: Bundle or checkpoint.
        mask: Another mask than its own, for a bundle that takes masks as an input
            (`open_session` refuses others).
        any_matrix: A checkpoint is to take any matrix; a bundle says itself whether it does.
        bundle: The bundle, where its manifest has been read already.

    Raises:
        BundleError: The bundle is not intact.
        CheckpointError: The checkpoint is not intact.
    """
    if is_checkpoint(source):
        meta: Mapping[str, Any] = read_checkpoint_meta(source)
        free = FreeSizes() if any_matrix else None
    else:
        bundle = bundle or open_bundle(source, verify=False)
        meta, free = bundle.manifest, bundle.free
    with damaged(source, CheckpointError if is_checkpoint(source) else BundleError):
        return InputSpec(
            spec=described_spec(meta),
            mask=mask or Mask.from_dict(meta["mask"]),
            matrix=(int(meta["matrix"]), int(meta["matrix"])),
            free=free,
            coils=int(meta.get("coils", COILS)),
        )


_ANY_MATRIX: Final = "or one that takes any: `kdmri-edge export --matrix any`"


def _times(matrix: tuple[int, int]) -> str:
    return f"{matrix[0]} x {matrix[1]}"


def check_slice(kspace: NDArray[np.complex64], reads: InputSpec) -> None:
    """Refuse a slice that no network input can be made of.

    Raises:
        DataError: Another matrix than the network's, or values that are not finite.
    """
    height, width = kspace.shape[-2:]
    if reads.free is not None:
        reads.free.check(height, width)
    elif (height, width) != reads.matrix:
        raise DataError(
            f"The scan's matrix is {height} x {width}, the network's {_times(reads.matrix)}.",
            f"Use a network of the scan's matrix (`kdmri-edge distill` trains one), {_ANY_MATRIX}.",
            cause=Cause.MATRIX,
        )
    if not np.isfinite(kspace).all():
        raise DataError(
            "The slice's k-space holds NaN or infinite values.",
            "Export the scan again.",
            cause=Cause.VALUES,
        )


def slice_input(
    kspace: NDArray[np.complex64],
    mask: Mask,
    reads: InputSpec,
    *,
    whitening: NDArray[np.complex128] | None = None,
    maps: NDArray[np.complex64] | None = None,
    reference: ReferenceLines | None = None,
    held: HeldCoils | None = None,
) -> SliceInput:
    """Make a network's input of one slice of k-space: files, streams and arrays come by here.

    A network that combines coils (SENSE) gets them whitened and compressed, with their
    sensitivities (`physics.espirit`). A network of k-space gets them whitened and compressed. A
    network of one image gets one coil as it is where it reads complex images or magnitudes, or the
    object has no phase; anything else is combined, without the phase between coils and, for
    networks of real images, without smooth phase (`physics.combining`), and it reads what
    `as_network_reads` says.

    Args:
        kspace: complex64 [C, H, W] under the conventions of `physics.fourier`, zero where not
            sampled; finite and of the network's matrix, which `Scan` and `check_slice` see to.
        mask: What was sampled.
        reads: What the network has to be given.
        whitening: `coils.noise_weights` [C, C] of the scan's noise, applied before coils are
            combined, by the network or before it; a single coil of one image is left as it is.
        maps: Sensitivities of these coils, complex64 [C, H, W], in place of estimated ones; coils
            are then neither whitened nor compressed.
        reference: Lines beside the image that sensitivities are estimated from where they reach
            further than its own (`physics.reference`); networks of k-space take none.
        held: Sensitivities of this place, for networks that combine coils; None estimates them.

    Returns:
        Zero-filled image as the network reads it, for networks that combine coils their
        sensitivities, and for networks of k-space that of the coils.

    Raises:
        DataError: Maps of another shape, or for a network that estimates them itself; or coils
            whose combination does not suit a network of one image.
        MaskError: The mask is of another matrix, or its centre has gaps where coils or phase have
            to be estimated.
    """
    mask.check_matrix(*kspace.shape[-2:])
    channels, magnitude = reads.spec.channels, reads.spec.magnitude_input
    if reads.spec.reads is InputKind.KSPACE:
        return _coil_kspace(kspace, reads.coils, whitening, maps)
    if maps is not None:
        x_u: NDArray[Any] = sense_zero_filled(kspace, maps)
        if reads.spec.coils:
            return SliceInput(x_u, maps.astype(np.complex64, copy=False))
    elif reads.spec.coils:
        known = (sensitivities if held is None else held.of)(
            kspace, mask, coils=reads.coils, whitening=whitening, reference=reference
        )
        return SliceInput(*sense_slice(kspace, mask, known=known))
    elif len(kspace) == 1 and (channels == 2 or magnitude or is_zero_phase(kspace[0], mask)):
        x_u = kspace_to_image(kspace[0])
    else:
        centre, sampled = calibration_of(kspace, mask, reference)
        if whitening is not None and len(kspace) > 1:
            apart = centre is not kspace
            kspace = compress(kspace, whitening)
            centre = compress(centre, whitening) if apart else kspace
        x_u = combined(kspace, mask, keeps_phase=channels == 2, calibration=(centre, sampled))
        if reads.spec.has_data_consistency:
            _check_combination(x_u, kspace, mask, real=channels == 1)
    return SliceInput(as_network_reads(x_u, channels=channels, magnitude=magnitude))


def _check_combination(
    x_u: NDArray[np.complex64], kspace: NDArray[np.complex64], mask: Mask, *, real: bool
) -> None:
    found, most = misfit(x_u, mask, real=real), _MISFIT[real]
    if real:
        most = min(most, max(_SLIGHT, _OF_LEFT_OUT * left_out(kspace, mask)))
    if found > most and len(kspace) == 1:
        raise DataError(
            f"The slice does not suit a network of real images: {found:.0%} of it is imaginary, for"
            " its phase varies too fast, or it holds little but noise.",
            "Use a network of complex images, e.g. dccnn-d3c5-complex.",
            cause=Cause.COILS,
        )
    if found > most:
        part = "imaginary" if real else "outside the mask"
        raise DataError(
            "The combined image of these coils does not suit a network of one image:"
            f" {found:.0%} of it is {part}, since phase or sensitivities vary too fast.",
            "Use a network that combines coils, e.g. dccnn-d3c5-sense.",
            cause=Cause.COILS,
        )


def _coil_kspace(
    kspace: NDArray[np.complex64],
    coils: int,
    whitening: NDArray[np.complex128] | None,
    maps: NDArray[np.complex64] | None,
) -> SliceInput:
    """Whiten and compress the coils of one slice, for a network of k-space."""
    if maps is not None:
        raise DataError(
            "The network reads k-space and takes no coil sensitivities.", "Leave the maps out."
        )
    if whitening is not None and len(kspace) > 1:
        kspace = compress(kspace, whitening)
    if len(kspace) > coils:
        kspace = compress(kspace, compression_matrix(kspace, coils))
    images = kspace_to_image(kspace).astype(np.complex64, copy=False)
    return SliceInput(root_sum_of_squares(images), kspace=np.ascontiguousarray(kspace))


def prepare_scan(
    scan: Scan,
    reads: InputSpec,
    *,
    undersample: bool = False,
    maps: NDArray[np.complex64] | None = None,
    at_once: int = 1,
) -> NetworkInput:
    """Make a network's input of a measured scan, slice by slice (`slice_input`).

    Args:
        scan: K-space of any number of coils, sampled with the network's mask; with `undersample`
            fully sampled.
        reads: What the network has to be given.
        undersample: Apply the network's mask to a fully sampled scan first.
        maps: Coil sensitivities, complex64 [S, C, H, W] or [C, H, W] for all slices, in place of
            estimated ones.
        at_once: Slices that are worked on at a time.

    Raises:
        DataError: Another matrix than the network's, or there is nothing to undersample.
        MaskError: The scan is sampled with another mask, or its centre has gaps.
    """
    _check_matrix(scan.name, scan.matrix, reads)
    coils = "one coil" if scan.coils == 1 else f"{scan.coils} coils"
    kind = f"k-space of {coils}"
    if undersample:
        if not scan.mask.samples.all():
            raise DataError(f"{scan.name} is undersampled already.", "Leave --undersample out.")
        kspace = scan.kspace * reads.mask.grid
        scan = dataclasses.replace(scan, kspace=kspace, mask=reads.mask)
        kind = f"fully sampled {kind}, undersampled here"
    elif scan.mask != reads.mask:
        if scan.mask.samples.all():
            raise MaskError(
                f"{scan.name} is fully sampled, and the network is made for mask"
                f" {reads.mask.name!r}.",
                "To try that mask on it, add --undersample.",
            )
        raise MaskError(
            f"{scan.name} is sampled with another mask than the network's {reads.mask.name!r}.",
            "Use a network for the mask of this scan.",
        )
    whitening = None if scan.noise is None else noise_weights(scan.noise)
    many: Sequence[NDArray[np.complex64] | None] = (
        [None] * len(scan.kspace) if maps is None else _for_each_slice(maps, scan)
    )
    references = scan.reference or (None,) * len(scan.kspace)

    def one(number: int) -> SliceInput:
        return slice_input(
            scan.kspace[number], scan.mask, reads,
            whitening=whitening, maps=many[number], reference=references[number],
        )  # fmt: skip

    slices = mapped(one, range(len(scan.kspace)), at_once)
    return NetworkInput.of(
        slices, scan.mask, kind=kind, voxel_mm=scan.voxel_mm, affine=scan.affine,
        coils=scan.coils, noise=noise_sigma(scan.noise), contrast=scan.contrast,
    )  # fmt: skip


def noise_sigma(noise: NDArray[np.complex64] | None) -> float | None:
    """Return the standard deviation of the real part of one coil's noise.

    None for several coils, and for noise that is zero or not finite: a stream's is not checked.
    """
    if noise is None or len(noise) > 1 or not noise.any() or not np.isfinite(noise).all():
        return None
    return float(np.sqrt(np.mean(np.abs(noise.astype(np.complex128)) ** 2) / 2))


def _for_each_slice(maps: NDArray[np.complex64], scan: Scan) -> list[NDArray[np.complex64]]:
    """Return the sensitivities of each slice."""
    if maps.shape == scan.kspace.shape[1:]:
        return [maps] * len(scan.kspace)
    if maps.shape == scan.kspace.shape:
        return list(maps)
    raise DataError(
        f"Coil sensitivities are {list(maps.shape)}, k-space {list(scan.kspace.shape)}.",
        "Give one map per coil, as [slices, coils, height, width], or without slices.",
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
            combines coils or reads their k-space, anything but a `Scan`); the message says what.
        MaskError: The volume has another matrix than the mask.
    """
    channels, magnitude = reads.spec.channels, reads.spec.magnitude_input
    if reads_coils(reads.spec):
        does = "combines coils" if reads.spec.coils else "reads k-space of several coils"
        raise DataError(
            f"{volume.name} holds images or k-space of one coil, the network {does}.",
            "Give multi-coil k-space, or use a network of one image (dccnn-d3c5-complex).",
        )
    if undersample:
        if volume.kspace is not None:
            raise DataError(
                f"{volume.name} holds undersampled k-space already.", "Leave --undersample out."
            )
        whole = to_matrix(volume, reads.matrix, instead="Take it as it is with --matrix any")
        case = make_case(whole, reads.mask, channels, magnitude=magnitude)
        return NetworkInput(
            zero_filled=case.zero_filled,
            mask=reads.mask,
            target=case.target,
            kind="fully sampled images, undersampled here",
            voxel_mm=whole.voxel_mm,
            affine=whole.affine,
            contrast=volume.contrast,
        )
    if volume.kspace is not None and volume.kspace_mask is not None:
        scan = Scan(
            kspace=volume.kspace[:, None].astype(np.complex64, copy=False),
            mask=volume.kspace_mask,
            name=volume.name,
            subject=volume.subject,
            contrast=volume.contrast,
        )
        given = prepare_scan(scan, reads)
        return dataclasses.replace(given, voxel_mm=volume.voxel_mm, affine=volume.affine)
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
        if channels == 1 and not magnitude:
            _check_zero_phase(volume.name, x_u, reads.mask)
    else:
        x_u, kind = volume.image, "magnitude images of low resolution"
    return NetworkInput(
        zero_filled=as_network_reads(x_u, channels=channels, magnitude=magnitude),
        mask=reads.mask,
        kind=kind,
        voxel_mm=volume.voxel_mm,
        affine=volume.affine,
        contrast=volume.contrast,
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
            f"{name} is {_times(matrix)}, the network takes {_times(reads.matrix)}.",
            f"Use a network of its matrix (`kdmri-edge models`), {_ANY_MATRIX}.",
        ) from None


def _check_zero_phase(name: str, image: NDArray[Any], mask: Mask) -> None:
    """Refuse an image with phase, of which the real part alone would be a wrong image."""
    if not is_zero_phase(image_to_kspace(image), mask):
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
