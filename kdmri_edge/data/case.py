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

from kdmri_edge.data.simulation import (
    Coils,
    coil_maps,
    complex_noise,
    local_phase,
    smooth_phase,
)
from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import DataError
from kdmri_edge.models.protocol import NetworkSpec
from kdmri_edge.physics.coils import COILS, combine, expand
from kdmri_edge.physics.espirit import check_calibration
from kdmri_edge.physics.fourier import kspace_to_image
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.operators import as_network_reads, zero_filled
from kdmri_edge.physics.scaling import slice_scale
from kdmri_edge.utils.console import progress

__all__ = [
    "NOISE",
    "SETS",
    "SIMULATION",
    "Case",
    "Undersampling",
    "coil_sets",
    "make_case",
    "simulated_case",
]


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
            or its magnitude where that was asked for.
        scale: float32 [S]; the network sees `zero_filled / scale`, see `scaling.slice_scale`.
        maps: sets of coil sensitivities that volumes share, complex64 [sets, C, H, W]; None for
            one coil.
        received: intp [S], the set that each slice is received with; None exactly when maps is.
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

    def part(self, slices: slice) -> Case:
        """Return a case of some of the slices."""
        return replace(
            self,
            target=self.target[slices],
            zero_filled=self.zero_filled[slices],
            scale=self.scale[slices],
            received=None if self.received is None else self.received[slices],
        )

    def maps_of(self, slices: slice) -> NDArray[np.complex64] | None:
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
    volume: Volume, mask: Mask, *, seed: int, maps: NDArray[np.complex64] | None = None
) -> Case:
    """Undersample a volume as a complex scan, with one coil or many.

    Args:
        volume: Fully sampled images; a phase that they have is kept, magnitudes are given one.
        mask: Which samples are taken.
        seed: Seed of phase, noise and the choice of coils.
        maps: What `coil_sets` gives, [sets, C, H, W]; None for one coil of sensitivity 1.

    Returns:
        Complex arrays; the target is free of the noise that is added here.

    Raises:
        MaskError: The mask is of another matrix, or (with coils) does not sample the centre from
            which a scan's sensitivities are estimated.
        DataError: The maps are of another matrix.
    """
    height, width = volume.matrix
    mask.check_matrix(height, width)
    if maps is not None:
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
    x_u = np.empty_like(target)
    one = np.ones((1, height, width), np.complex64)
    for n, own in enumerate(seeds):
        phase = 0.0 if volume.is_complex else _phase(height, width, int(own))
        target[n] = volume.image[n] * np.exp(1j * np.asarray(phase))
        sensitivities = one if maps is None else maps[received[n]]
        seen = expand(target[n], sensitivities)
        # F is unitary: white noise of k-space is white in the image.
        seen = seen + np.float32(levels[n]) * complex_noise(seen.shape, seed=int(own))
        x_u[n] = combine(zero_filled(seen, mask), sensitivities)
    return Case(
        name=volume.name,
        subject=volume.subject,
        contrast=volume.contrast,
        sha256=volume.sha256,
        target=target,
        zero_filled=x_u,
        scale=slice_scale(x_u),
        maps=maps,
        received=None if maps is None else received,
    )


@dataclass(frozen=True)
class Undersampling:
    """How volumes become cases; for complex networks magnitudes are given phase, coils and noise.

    Args:
        spec: The network's architecture.
        mask: Which samples are taken.
        matrix: Pixels along H and W.
        seed: Of what is simulated.
    """

    spec: NetworkSpec
    mask: Mask
    matrix: int
    seed: int
    _simulated: list[str] = field(default_factory=list, repr=False, compare=False)

    @cached_property
    def _maps(self) -> NDArray[np.complex64] | None:
        if not self.spec.coils:
            return None
        return coil_sets(self.matrix, self.matrix, seed=self.seed)

    @property
    def simulates(self) -> bool:
        """Whether magnitudes are given a phase."""
        return self.spec.channels == 2

    @property
    def record(self) -> dict[str, Any]:
        """What was simulated, for runs and checkpoints; empty where nothing was."""
        if not self._simulated:
            return {}
        maps = self._maps
        coils = {} if maps is None else {"coils": maps.shape[1], "sets": len(maps)}
        return {"simulation": {**SIMULATION, **coils}}

    def case(self, volume: Volume) -> Case:
        """Undersample a volume.

        Raises:
            DataError: See `make_case` and `simulated_case`.
            MaskError: The mask is of another matrix, or (with coils) its centre has gaps.
        """
        measured = volume.is_complex and not self.spec.coils
        if self.simulates and not measured:
            self._simulated.append(volume.name)
            return simulated_case(volume, self.mask, seed=self.seed, maps=self._maps)
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
