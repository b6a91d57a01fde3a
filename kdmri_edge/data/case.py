"""Undersampled cases: what a network sees and should give, for one volume under one mask.

Everything follows from a seed and the volume's hash, whatever volumes stand beside it. What is
simulated is said in `SIMULATION`, which goes into runs and checkpoints: figures on such data say
nothing about measured k-space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.resample import to_matrix
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.simulation import (
    Coils,
    coil_maps,
    complex_noise,
    local_phase,
    smooth_phase,
)
from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import DataError
from kdmri_edge.models.protocol import InputKind, NetworkSpec, reads_coils
from kdmri_edge.physics.coils import (
    COILS,
    combine,
    compress,
    compression_matrix,
    expand,
    noise_weights,
    sense_zero_filled,
)
from kdmri_edge.physics.combining import root_sum_of_squares
from kdmri_edge.physics.espirit import check_calibration, sense_coils
from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.operators import as_network_reads, sampled_kspace, zero_filled
from kdmri_edge.physics.scaling import network_input, network_kspace, slice_scale
from kdmri_edge.utils.console import progress

__all__ = [
    "NOISE",
    "SETS",
    "SIMULATION",
    "Case",
    "Measurement",
    "Reception",
    "Undersampling",
    "coil_sets",
    "make_case",
    "measured_case",
    "simulated_case",
]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Reception:
    """What simulated coils receive of some slices.

    Their k-space is made anew where it is needed: it has as many values as all coils' images.

    Attributes:
        image: The fully sampled images with their phase, complex64 [S, H, W], in any unit.
        maps: Sets of coil sensitivities, complex64 [sets, C, H, W].
        received: The set of each slice, intp [S].
        noise: Standard deviation of each slice's noise, float32 [S], in the unit of the images.
        seeds: Of that noise, int64 [S].
        mask: Which samples are taken.
    """

    image: NDArray[np.complex64]
    maps: NDArray[np.complex64]
    received: NDArray[np.intp]
    noise: NDArray[np.float32]
    seeds: NDArray[np.int64]
    mask: Mask

    def part(self, slices: slice | Sequence[int] | NDArray[Any]) -> Reception:
        """Return what is received of some of the slices."""
        return replace(
            self,
            image=self.image[slices],
            received=self.received[slices],
            noise=self.noise[slices],
            seeds=self.seeds[slices],
        )

    def scaled(
        self, scale: NDArray[np.float32], image: NDArray[np.complex64] | None = None
    ) -> Reception:
        """Return the same of images that are divided by numbers [S].

        Args:
            scale: The numbers.
            image: These images, where they are at hand.
        """
        if image is None:
            image = self.image / scale[:, None, None]
        return replace(self, image=image, noise=self.noise / scale)

    def coil_images(self) -> NDArray[np.complex64]:
        """Return the fully sampled coil images with their noise, complex64 [S, C, H, W].

        The Fourier transform is unitary: white noise of k-space is white in the image.
        """
        seen: NDArray[np.complex64] = expand(self.image, self.maps[self.received])
        for one, level, seed in zip(seen, self.noise, self.seeds, strict=True):
            one += np.float32(level) * complex_noise(one.shape, seed=int(seed))
        return seen

    def kspace(self) -> NDArray[np.complex64]:
        """Return what the coils measure, complex64 [S, C, H, W]."""
        return sampled_kspace(self.coil_images(), self.mask)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Measurement:
    """What measured coils received of some slices, undersampled retrospectively.

    Attributes:
        coils: K-space of the coils, complex64 [S, C, H, W], zero where it is not sampled.
    """

    coils: NDArray[np.complex64]

    def part(self, slices: slice | Sequence[int] | NDArray[Any]) -> Measurement:
        """Return what was received of some of the slices."""
        return replace(self, coils=self.coils[slices])

    def scaled(
        self, scale: NDArray[np.float32], image: NDArray[np.complex64] | None = None
    ) -> Measurement:
        """Return the same divided by numbers [S]; the images are not needed."""
        return replace(self, coils=self.coils / scale[:, None, None, None])

    def kspace(self) -> NDArray[np.complex64]:
        """Return what the coils measured, complex64 [S, C, H, W]."""
        return self.coils


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Case:
    """One volume under one mask, in the volume's own intensity unit (nothing is divided yet).

    Attributes:
        name: the volume's name.
        subject: whom it shows.
        contrast: for instance "T1w", None where unknown.
        sha256: of the volume's source file.
        target: the fully sampled image [S, H, W], float32 (complex64 with two channels).
        zero_filled: the zero-filled image x_u [S, H, W], same dtype; for one channel its real part,
            or its magnitude where that was asked for; for networks of k-space the root sum of
            squares of the coils' images.
        scale: float32 [S]; the network sees `zero_filled / scale`, see `scaling.slice_scale`.
        maps: sets of coil sensitivities that volumes share, complex64 [sets, C, H, W], or those of
            each slice, where coils were measured; None for one coil.
        received: intp [S], the set that each slice is received with; None exactly when maps is.
        reception: how the coils' k-space comes about; None where no coils are simulated, and of
            measured ones where networks are given images and sensitivities.
        kspace: whether networks are given that k-space in place of `zero_filled`.
    """

    name: str
    subject: str
    contrast: str | None
    sha256: str
    target: NDArray[Any]
    zero_filled: NDArray[Any]
    scale: NDArray[np.float32]
    maps: NDArray[np.complex64] | None = None
    received: NDArray[np.intp] | None = None
    reception: Reception | Measurement | None = None
    kspace: bool = False

    @property
    def count(self) -> int:
        """Number of slices."""
        return len(self.target)

    @property
    def peaks(self) -> NDArray[np.float32]:
        """Largest magnitude of each slice's zero-filled image, float32 [S]."""
        found: NDArray[np.float32] = np.abs(self.zero_filled).max((1, 2))
        return found

    def part(self, slices: slice) -> Case:
        """Return a case of some of the slices."""
        return replace(
            self,
            target=self.target[slices],
            zero_filled=self.zero_filled[slices],
            scale=self.scale[slices],
            received=None if self.received is None else self.received[slices],
            reception=None if self.reception is None else self.reception.part(slices),
        )

    def network_input(self, slices: slice) -> NDArray[np.float32]:
        """Return what a network is given of some slices, [n, C, H, W] or [n, coils, 2, H, W]."""
        if self.kspace and self.reception is not None:
            return network_kspace(self.reception.part(slices).kspace(), self.scale[slices])
        return network_input(self.zero_filled[slices], self.scale[slices])

    def maps_of(self, slices: slice | NDArray[np.bool_]) -> NDArray[np.complex64] | None:
        """Return the coil sensitivities of some slices, complex64 [n, C, H, W]; None without."""
        if self.maps is None or self.received is None:
            return None
        chosen: NDArray[np.complex64] = self.maps[self.received[slices]]
        return chosen


def make_case(volume: Volume, mask: Mask, channels: int = 1, *, magnitude: bool = False) -> Case:
    """Undersample a volume, or take the undersampled k-space that it carries.

    Measured k-space is complex; a one-channel network gets the magnitude of its images as the fully
    sampled volume, undersampled as a zero-phase image. Other complex volumes are refused there,
    since who stored a phase may have meant it.

    Args:
        volume: fully sampled images at the mask's matrix.
        mask: which samples are taken.
        channels: 1 for networks on magnitude (zero-phase) images, 2 for (real, imaginary).
        magnitude: give |x_u| instead of the real part of x_u. Only for networks without data
            consistency: super-resolution, as KD-MRI's published code makes its input.

    Returns:
        float32 arrays for one channel, complex64 for two.

    Raises:
        MaskError: the mask is made for another matrix.
        DataError: a complex volume for a one-channel network, k-space acquired with another mask,
            an unknown number of channels, or a magnitude of two channels.
    """
    if channels not in (1, 2):
        raise DataError(f"{channels} channels make no image.", "Use 1 (magnitude) or 2 (complex).")
    if magnitude and channels == 2:
        raise DataError(
            "A magnitude has no imaginary part for a second channel.",
            "Use a network of one channel, or the complex zero-filled image.",
        )
    image = volume.image
    if volume.is_complex and channels == 1 and volume.measured and volume.kspace is None:
        image = np.abs(image)
    elif volume.is_complex and channels == 1:
        raise DataError(
            f"{volume.name} is complex, but the network takes magnitude (zero-phase) images.",
            "Use a network of two channels, or save numpy.abs of the volume and use that.",
        )
    mask.check_matrix(*volume.matrix)
    if volume.kspace is None:
        # A complex image keeps x_u complex: its magnitude can be taken, or both of its parts.
        whole = magnitude or channels == 2
        x_u = zero_filled(image.astype(np.complex64) if whole else image, mask)
    elif volume.kspace_mask != mask:
        raise DataError(
            f"{volume.name} carries k-space sampled with another mask than {mask.name!r}.",
            "Use the mask of the file, or a file with volfs alone to undersample it afresh.",
        )
    else:
        x_u = kspace_to_image(volume.kspace)
    x_u = as_network_reads(x_u, channels=channels, magnitude=magnitude)
    dtype = np.float32 if channels == 1 else np.complex64
    return Case(
        name=volume.name,
        subject=volume.subject,
        contrast=volume.contrast,
        sha256=volume.sha256,
        target=image.astype(dtype, copy=False),
        zero_filled=x_u,
        scale=slice_scale(x_u),
    )


SETS: Final = 24
"""Sets of sensitivities that the slices of a run share; half of them birdcages."""

NOISE: Final = 0.02
"""Largest standard deviation of the noise, over the volume's maximum; drawn for each slice."""

SIMULATION: Final[dict[str, Any]] = {"phase": "smooth and local", "noise": [0.0, NOISE]}
"""What is simulated for complex networks; with coils, `coils` and `sets` come on top."""


def coil_sets(
    height: int, width: int, *, seed: int, coils: int = COILS, sets: int = SETS
) -> NDArray[np.complex64]:
    """Draw the sensitivities of a run: complex64 [sets, C, H, W], birdcage and random in turn."""
    kinds = list(Coils)
    return np.stack(
        [
            coil_maps(coils, height, width, seed=seed * sets + n, kind=kinds[n % len(kinds)])
            for n in range(sets)
        ]
    )


def _phase(height: int, width: int, seed: int) -> NDArray[np.float32]:
    phase: NDArray[np.float32] = smooth_phase(height, width, seed=seed)
    phase += local_phase(height, width, seed=seed)
    return phase


def simulated_case(
    volume: Volume,
    mask: Mask,
    *,
    seed: int,
    maps: NDArray[np.complex64] | None = None,
    kspace: bool = False,
) -> Case:
    """Undersample a volume as a complex scan, with one coil or many.

    Args:
        volume: Fully sampled images; a phase that they have is kept, magnitudes are given one.
        mask: Which samples are taken.
        seed: Seed of phase, noise and the choice of coils.
        maps: What `coil_sets` gives, [sets, C, H, W]; None for one coil of sensitivity 1.
        kspace: For networks of k-space, which give magnitudes and are given no sensitivities.

    Returns:
        Complex arrays, or magnitudes; the target is free of the noise that is added here.

    Raises:
        MaskError: The mask is of another matrix, or (with coils) does not sample the centre from
            which a scan's sensitivities are estimated.
        DataError: The maps are of another matrix.
    """
    height, width = volume.matrix
    mask.check_matrix(height, width)
    if maps is not None:
        if not kspace:
            check_calibration(mask, width)
        if maps.shape[-2:] != (height, width):
            raise DataError(
                f"Coils are simulated at {maps.shape[-2]} x {maps.shape[-1]}, {volume.name} is"
                f" {height} x {width}.",
                "Simulate them at the volume's matrix.",
            )
    count = len(volume.image)
    random = np.random.default_rng([seed, int(volume.sha256[:12] or "0", 16)])
    seeds = random.integers(0, 2**31, count)
    levels = random.uniform(0, NOISE, count) * float(np.abs(volume.image).max())
    received = random.integers(0, 1 if maps is None else len(maps), count)
    target = np.empty((count, height, width), np.complex64)
    x_u = np.empty_like(target, np.float32 if kspace else np.complex64)
    one = np.ones((1, height, width), np.complex64)
    for n, own in enumerate(seeds):
        phase = 0.0 if volume.is_complex else _phase(height, width, int(own))
        target[n] = volume.image[n] * np.exp(1j * np.asarray(phase))
        sensitivities = one if maps is None else maps[received[n]]
        seen = expand(target[n], sensitivities)
        # F is unitary: white noise of k-space is white in the image.
        seen = seen + np.float32(levels[n]) * complex_noise(seen.shape, seed=int(own))
        images = zero_filled(seen, mask)
        x_u[n] = root_sum_of_squares(images) if kspace else combine(images, sensitivities)
    reception = None
    if maps is not None:
        reception = Reception(
            image=target,
            maps=maps,
            received=received,
            noise=levels.astype(np.float32),
            seeds=seeds,
            mask=mask,
        )
    return Case(
        name=volume.name,
        subject=volume.subject,
        contrast=volume.contrast,
        sha256=volume.sha256,
        target=np.abs(target) if kspace else target,
        zero_filled=x_u,
        scale=slice_scale(x_u),
        maps=None if kspace else maps,
        received=None if kspace or maps is None else received,
        reception=reception,
        kspace=kspace,
    )


def measured_case(
    scan: Scan,
    mask: Mask,
    matrix: int | tuple[int, int],
    *,
    kspace: bool = False,
    coils: int | None = COILS,
) -> Case:
    """Undersample fully sampled k-space of several coils retrospectively.

    Coils are whitened where the scan has a noise measurement, compressed to `COILS`, and their
    sensitivities estimated from the centre of the mask (`physics.espirit`), as `kdmri-edge run`
    and `serve` do with an undersampled scan. The target is the combination of the same coils'
    fully sampled k-space by the same sensitivities, so that it is 0 where they are.

    Args:
        scan: Fully sampled, of any matrix from `matrix` on, which its coils' images are brought
            to as volumes are (`data.resample`).
        mask: Which samples are taken.
        matrix: Pixels along H and W, or (H, W).
        kspace: Make a case whose networks are given the coils' k-space; the target is a magnitude.
        coils: Virtual coils of that k-space, by the samples that are taken (as `run` compresses
            for networks of k-space); None leaves all coils.

    Raises:
        DataError: The scan is undersampled, or smaller than the matrix.
        MaskError: The mask is of another matrix, or its centre has gaps.
    """
    if not scan.mask.samples.all():
        raise DataError(
            f"{scan.name} is undersampled, and has no fully sampled image to compare with.",
            "Give fully sampled scans: masks are applied to them here.",
        )
    height, width = (matrix, matrix) if isinstance(matrix, int) else matrix
    mask.check_matrix(height, width)
    count, held = len(scan.kspace), scan.coils if coils is None else coils
    dtype = np.float32 if kspace else np.complex64
    target = np.empty((count, height, width), dtype)
    x_u = np.empty_like(target)
    # a coil that is zero, or whose map is, changes nothing: volumes may differ in their coils
    maps = np.zeros((0 if kspace else count, COILS, height, width), np.complex64)
    received = np.zeros((count if kspace else 0, held, height, width), np.complex64)
    whitening = None if scan.noise is None else noise_weights(scan.noise)
    for n, measured in enumerate(scan.kspace):
        full = _at_matrix(measured, scan, (height, width))
        virtual, own = sense_coils(full, mask, whitening=whitening)
        image = sense_zero_filled(virtual, own)
        if kspace:
            seen = (full if whitening is None else compress(full, whitening)) * mask.grid
            if len(seen) > held:
                seen = compress(seen, compression_matrix(seen, held))
            received[n, : len(seen)] = seen
            target[n] = np.abs(image)
            x_u[n] = root_sum_of_squares(kspace_to_image(received[n]).astype(np.complex64))
        else:
            target[n], x_u[n] = image, sense_zero_filled(virtual * mask.grid, own)
            maps[n, : len(own)] = own
    return Case(
        name=scan.name,
        subject=scan.subject,
        contrast=scan.contrast,
        sha256=scan.sha256,
        target=target,
        zero_filled=x_u,
        scale=slice_scale(x_u),
        maps=None if kspace else maps,
        received=None if kspace else np.arange(count),
        reception=Measurement(coils=received) if kspace else None,
        kspace=kspace,
    )


def _at_matrix(
    kspace: NDArray[np.complex64], scan: Scan, shape: tuple[int, int]
) -> NDArray[np.complex64]:
    """Bring the coils of a slice [C, H, W] to a matrix; k-space of that size stays as it is."""
    if scan.matrix == shape:
        return kspace
    images = Volume(
        image=kspace_to_image(kspace).astype(np.complex64),
        name=scan.name,
        subject=scan.subject,
        voxel_mm=scan.voxel_mm,
    )
    return image_to_kspace(to_matrix(images, shape).image).astype(np.complex64)


@dataclass(frozen=True)
class Undersampling:
    """How volumes become cases; for complex networks magnitudes are given phase, coils and noise.

    Args:
        spec: The network's architecture.
        mask: Which samples are taken.
        matrix: Pixels along H and W, or (H, W).
        seed: Of what is simulated.
        kspace: Whether cases are for networks of k-space, whose targets are magnitudes; None goes
            by what the network reads. Where networks with coils are compared, such cases serve
            all of them: k-space is what each makes its own input of.
    """

    spec: NetworkSpec
    mask: Mask
    matrix: int | tuple[int, int]
    seed: int
    kspace: bool | None = None
    _simulated: list[str] = field(default_factory=list, repr=False, compare=False)

    @cached_property
    def _maps(self) -> NDArray[np.complex64] | None:
        if not reads_coils(self.spec):
            return None
        sides = (self.matrix, self.matrix) if isinstance(self.matrix, int) else self.matrix
        return coil_sets(*sides, seed=self.seed)

    @property
    def simulates(self) -> bool:
        """Whether magnitudes are given a phase."""
        return self.spec.channels == 2 or self._kspace

    @property
    def _kspace(self) -> bool:
        if self.kspace is not None:
            return self.kspace
        return self.spec.reads is InputKind.KSPACE

    def facts(self) -> dict[str, Any]:
        """All that a volume's case depends on besides the volume, as plain JSON values."""
        samples = self.mask.samples
        return {
            "reads": str(self.spec.reads),
            "channels": self.spec.channels,
            "magnitude": self.spec.magnitude_input,
            "kspace": self._kspace,
            "mask": [list(samples.shape), np.packbits(samples).tobytes().hex()],
            "matrix": self.matrix,
            "seed": self.seed if self.simulates else None,
        }

    def note_simulated(self, name: str) -> None:
        """Note of a volume that was undersampled earlier that phase, coils or noise were added."""
        self._simulated.append(name)

    def has_simulated(self, name: str) -> bool:
        """Whether anything was added to a volume."""
        return name in self._simulated

    @property
    def maps(self) -> NDArray[np.complex64] | None:
        """Sets of simulated coils, which volumes share; None for networks of one image."""
        return self._maps

    @property
    def record(self) -> dict[str, Any]:
        """What was simulated, for runs and checkpoints; empty where nothing was."""
        if not self._simulated:
            return {}
        maps = self._maps
        coils = {} if maps is None else {"coils": maps.shape[1], "sets": len(maps)}
        return {"simulation": {**SIMULATION, **coils}}

    def case(self, volume: Volume | Scan) -> Case:
        """Undersample a volume, or for networks with coils a measured scan of several.

        Raises:
            DataError: See `make_case`, `simulated_case` and `measured_case`.
            MaskError: The mask is of another matrix, or (with coils) its centre has gaps.
        """
        if isinstance(volume, Scan):
            if not reads_coils(self.spec):
                raise DataError(
                    f"{volume.name} holds k-space of {volume.coils} coils, and a network reads one"
                    " image.",
                    "Use networks that combine coils (dccnn-d5c5-sense, dccnn-d3c5-sense), or"
                    " combine the coils first: `kdmri-edge data convert --magnitude`.",
                )
            # of cases that serve networks of several kinds, each compresses the coils itself
            coils = None if self.kspace else COILS
            return measured_case(volume, self.mask, self.matrix, kspace=self._kspace, coils=coils)
        measured = volume.is_complex and not reads_coils(self.spec)
        if self.simulates and not measured:
            self._simulated.append(volume.name)
            return simulated_case(
                volume, self.mask, seed=self.seed, maps=self._maps, kspace=self._kspace
            )
        magnitude = self.spec.magnitude_input
        return make_case(volume, self.mask, self.spec.channels, magnitude=magnitude)

    def __call__(self, volumes: Sequence[Volume]) -> list[Case]:
        """Undersample volumes, with a progress bar where that takes time."""
        if not self.simulates:
            return [self.case(volume) for volume in volumes]
        cases = []
        with progress("Simulating scans", len(volumes)) as advance:
            for volume in volumes:
                cases.append(self.case(volume))
                advance(1)
        return cases
