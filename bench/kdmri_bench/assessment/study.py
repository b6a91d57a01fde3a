"""What all sections share: the networks, the volumes, and what each network made of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_bench.assessment.annotations import Annotation
from kdmri_bench.assessment.data import AssessedVolume
from kdmri_bench.assessment.kept import Kept
from kdmri_bench.assessment.margins import Margins
from kdmri_bench.assessment.networks import FLOAT, ZERO_FILLED, AssessedNetwork
from kdmri_bench.assessment.sections import Section
from kdmri_edge.data.case import Case
from kdmri_edge.physics.masks import Mask
from kdmri_edge.runtime.inputs import NetworkInput
from kdmri_edge.runtime.pipeline import Outcome, zero_filled_magnitude
from kdmri_edge.utils.console import progress

__all__ = ["REPLACED", "ROUNDED", "STUDENT", "Images", "Options", "Pair", "Study"]

Images = NDArray[np.float32]
"""Magnitudes [S, H, W]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What a user may choose of the sections.

    Attributes:
        seed: of everything that is drawn: resampling, noise, positions.
        slices: most slices of a volume that the costly sections take (robustness, inserted
            lesions), spread over those that are assessed.
        other_data: folders of data of other scanners, for the section on robustness.
    """

    seed: int = 0
    slices: int = 2
    other_data: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two networks that are compared.

    Attributes:
        candidate: the one that may lose: a student, or an int8 copy.
        reference: what it is compared with: the teacher, or the same network in float.
        kind: `STUDENT`, `ROUNDED` or `REPLACED`.
    """

    candidate: AssessedNetwork
    reference: AssessedNetwork
    kind: str


STUDENT: Final = "student against teacher"
ROUNDED: Final = "int8 against float"
REPLACED: Final = "new against old"


@dataclass(kw_only=True, eq=False)
class Study:
    """The networks and volumes of an assessment.

    Attributes:
        networks: open, the teacher's first; the zero-filled images are none of them.
        teacher: name of the network that the others are compared with; None without one.
        volumes: the test volumes.
        margins: largest losses that count as none.
        options: what the user chose.
        annotations: where the lesions of each volume are, None where nothing lies beside it; empty
            where no section asks.
        replaced: the other network is to take the place of the teacher's: they are compared in
            equal precisions.
        sections: what was found so far, by name; the verdict reads it.
        kept: what of it is kept for the case that the assessment is cut off.
    """

    networks: Sequence[AssessedNetwork]
    teacher: str | None
    volumes: Sequence[AssessedVolume]
    margins: Margins
    options: Options = field(default_factory=Options)
    annotations: Sequence[Annotation | None] = ()
    replaced: bool = False
    sections: dict[str, Section] = field(default_factory=dict)
    kept: Kept = field(default_factory=Kept)
    _made: dict[str, list[Images]] = field(default_factory=dict, repr=False)

    @property
    def mask(self) -> Mask:
        """Which samples are taken."""
        return self.networks[0].source.mask

    @property
    def matrix(self) -> int:
        """Side of the images in pixels."""
        return self.networks[0].source.matrix

    @property
    def subjects(self) -> list[str]:
        """Subject of each volume."""
        return [volume.case.subject for volume in self.volumes]

    @property
    def keys(self) -> list[str]:
        """Keys of the networks, those without any first: columns and rows of most tables."""
        return [ZERO_FILLED, *(network.key for network in self.networks)]

    def network(self, key: str) -> AssessedNetwork:
        """Return the network of a key.

        Raises:
            KeyError: There is none.
        """
        for network in self.networks:
            if network.key == key:
                return network
        raise KeyError(key)

    def pairs(self) -> Iterator[Pair]:
        """Yield what is compared: students with the teacher, int8 with float.

        An int8 student is compared with the float teacher, too: that is what would be shipped.
        """
        floats = {network.name: network for network in self.networks if network.precision == FLOAT}
        if self.replaced:
            yield from self._replacements()
            return
        teacher = floats.get(self.teacher or "")
        for network in self.networks:
            if teacher is not None and network.name != self.teacher:
                yield Pair(candidate=network, reference=teacher, kind=STUDENT)
        for network in self.networks:
            own = floats.get(network.name)
            if own is not None and own is not network:
                yield Pair(candidate=network, reference=own, kind=ROUNDED)

    def _replacements(self) -> Iterator[Pair]:
        old = {n.precision: n for n in self.networks if n.name == self.teacher}
        for network in self.networks:
            if network.name != self.teacher and network.precision in old:
                yield Pair(candidate=network, reference=old[network.precision], kind=REPLACED)

    def images(self, key: str) -> list[Images]:
        """Return what a network made of each volume, reconstructed at the first call.

        Args:
            key: Of the network, or `ZERO_FILLED`.

        Returns:
            Magnitudes float32 [S, H, W] of each volume, in its unit; a network's real image may be
            negative, which counts as zero, as it would be shown.
        """
        if key not in self._made:
            if key == ZERO_FILLED:
                self._made[key] = [shown(volume.case.zero_filled) for volume in self.volumes]
            else:
                self._made[key] = self.kept.arrays("images", key, lambda: self._reconstructed(key))
        return self._made[key]

    def _reconstructed(self, key: str) -> list[Images]:
        network = self.network(key)
        total = sum(volume.case.count for volume in self.volumes)
        with progress(f"Reconstructing: {key}", total) as advance:
            return [reconstructed(network, volume.case, advance) for volume in self.volumes]

    def reconstruct(
        self, network: AssessedNetwork | None, kspace: NDArray[np.complex64]
    ) -> tuple[Images, list[str]]:
        """Reconstruct k-space that a section made, as a scanner's would be.

        Args:
            network: None for the zero-filled images.
            kspace: complex64 [S, C, H, W], under the conventions of `physics.fourier`; what the
                mask does not take is set to zero here.

        Returns:
            Magnitudes float32 [S, H, W], and why slices were refused: a slice that the network
            refuses is its zero-filled image, as `kdmri-edge serve` sends it.
        """
        sampled = (kspace * self.mask.grid).astype(np.complex64, copy=False)
        if network is None:
            return np.stack([zero_filled_magnitude(one) for one in sampled]), []
        outcomes: list[Outcome] = [network.pipeline.reconstruct(one, self.mask) for one in sampled]
        refused = [outcome.fallback for outcome in outcomes if outcome.fallback]
        return np.stack([shown(outcome.image) for outcome in outcomes]), refused

    def each(self) -> Iterator[AssessedNetwork | None]:
        """Yield None for the zero-filled images, then each network."""
        yield None
        yield from self.networks


def shown(image: NDArray[Any]) -> Images:
    """Return an image as it would be shown: a magnitude, or a real one without negative values."""
    real = np.abs(image) if np.iscomplexobj(image) else np.maximum(image, 0)
    image32: Images = real.astype(np.float32, copy=False)
    return image32


def reconstructed(network: AssessedNetwork, case: Case, advance: Callable[[int], object]) -> Images:
    """Reconstruct a case slice by slice; magnitudes [S, H, W]."""
    pipeline, made = network.pipeline, []
    for n in range(case.count):
        one = slice(n, n + 1)
        if case.reception is not None:  # coils: each network makes its own input of their k-space
            kspace = case.reception.part(one).kspace()[0]
            made.append(shown(pipeline.image(kspace, network.source.mask)))
        else:
            given = NetworkInput(
                zero_filled=case.zero_filled[one],
                mask=network.source.mask,
                maps=case.maps_of(one),
            )
            made.append(shown(pipeline.images(given)[0]))
        advance(1)
    return np.stack(made)
