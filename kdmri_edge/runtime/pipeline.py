"""From a slice of k-space, one coil or many, to its image: what a scanner's stream calls.

The network's image where the slice is within the bundle's scope, else the zero-filled image and the
reason: there is always an image. Torch-free, but for bundles that run in PyTorch.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import BackendError, KdmriError
from kdmri_edge.physics.coils import compress
from kdmri_edge.physics.combining import combined, root_sum_of_squares
from kdmri_edge.physics.espirit import sense_slice
from kdmri_edge.physics.fourier import kspace_to_image
from kdmri_edge.physics.masks import Mask
from kdmri_edge.runtime.bundle import open_bundle
from kdmri_edge.runtime.inputs import InputSpec, read_input_spec
from kdmri_edge.runtime.session import Session, open_session, operator_of, reconstruct

__all__ = ["Outcome", "Pipeline", "SliceReconstructor", "zero_filled_magnitude"]

_LOG: Final = logging.getLogger(__name__)
_OPERATORS: Final = 8  # masks whose operators are kept


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcome:
    """The image of a slice.

    Attributes:
        image: [H, W], float32 or complex64, in the unit of k-space (orthonormal transform).
        fallback: Why it is the zero-filled image; None where it is the network's.
    """

    image: NDArray[Any]
    fallback: str | None = None


class SliceReconstructor(Protocol):
    """What the server calls for every slice; one thread at a time."""

    def reconstruct(
        self,
        kspace: NDArray[np.complex64],
        mask: Mask,
        whitening: NDArray[np.complex128] | None = None,
    ) -> Outcome:
        """Return the image of complex64 k-space [C, H, W], zero where `mask` does not sample."""


def zero_filled_magnitude(kspace: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Return the root sum of squares of the coils' zero-filled images: the fallback.

    Args:
        kspace: complex64 [C, H, W]; samples that are not finite count as zero.

    Returns:
        float32 [H, W], finite.
    """
    finite = np.isfinite(kspace)
    usable = kspace if finite.all() else np.where(finite, kspace, 0)
    with np.errstate(over="ignore", invalid="ignore"):
        image = root_sum_of_squares(kspace_to_image(usable).astype(np.complex64, copy=False))
    largest = float(np.finfo(np.float32).max)
    shown: NDArray[np.float32] = np.nan_to_num(image, nan=0.0, posinf=largest)
    return shown


class Pipeline:
    """A bundle, and what surrounds it.

    Args:
        source: A bundle's folder or a .safetensors checkpoint.
        backend: Key of `BACKENDS`; None takes the bundle's own.
        precision: See `open_session`.
        threads: CPU threads; None leaves the runtime's choice.
        sharing: Leave the CPUs to others while there is nothing to compute (ONNX Runtime would let
            its threads spin): a server has the next slice's lines to read meanwhile.

    Attributes:
        reads: What the network is made for.
        session: The network.

    Raises:
        KdmriError: See `open_session`.
    """

    def __init__(
        self,
        source: Path,
        *,
        backend: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        sharing: bool = False,
    ) -> None:
        self.reads: InputSpec = read_input_spec(source)
        self._bundle = None if source.suffix == ".safetensors" else open_bundle(source)
        runs_in = backend or (self._bundle.target.runs_on[0] if self._bundle else None)
        options: dict[str, Any] = {"spin": False} if sharing and runs_in == "onnxruntime" else {}
        self.session: Session = open_session(
            source, backend=backend, precision=precision, threads=threads, **options
        )
        self._operators: dict[Mask, Any] = {self.reads.mask: self.session.operator}

    def warm_up(self) -> None:
        """Run the network once, so that the first slice does not wait for what runtimes defer.

        Raises:
            BackendError: The network does not run.
        """
        size = self.reads.matrix
        blank = np.zeros((1, size, size), np.complex64 if self._complex else np.float32)
        maps = np.zeros((1, 1, size, size), np.complex64) if self.reads.spec.coils else None
        reconstruct(self.session, blank, maps=maps)

    @property
    def _complex(self) -> bool:
        return self.reads.spec.channels == 2

    def reconstruct(
        self,
        kspace: NDArray[np.complex64],
        mask: Mask,
        whitening: NDArray[np.complex128] | None = None,
    ) -> Outcome:
        """Reconstruct one slice; whatever happens, there is an image.

        A network of two channels gets the combined complex image, one of one channel its real
        part after phase correction (its magnitude for super-resolution); see `combine`. A network
        that combines coils gets them compressed, with their sensitivities; see `espirit`.

        Args:
            kspace: complex64 [C, H, W], zero where not sampled.
            mask: What was sampled.
            whitening: `coils.noise_weights` [C, C] of the scan's noise, applied before coils are
                combined, by the network or before it; a single coil is left as it is. The
                zero-filled image of a fallback is that of the coils as they were measured.

        Returns:
            The network's image; the zero-filled one where the matrix or the mask is not the
            bundle's, samples are not finite, coils cannot be combined, or the network fails or
            gives values that are not finite.
        """
        try:
            return Outcome(image=self._network(kspace, mask, whitening))
        except KdmriError as error:
            reason = error.what
        except Exception as error:  # a runtime may raise anything, and the scan needs its image
            _LOG.exception("the network failed")
            reason = f"The network failed ({type(error).__name__})."
        return Outcome(image=zero_filled_magnitude(kspace), fallback=reason)

    def _network(
        self,
        kspace: NDArray[np.complex64],
        mask: Mask,
        whitening: NDArray[np.complex128] | None,
    ) -> NDArray[Any]:
        size = self.reads.matrix
        height, width = kspace.shape[-2:]
        if (height, width) != (size, size):
            raise BackendError(
                f"The scan's matrix is {height} x {width}, the network's {size} x {size}.", ""
            )
        if not np.isfinite(kspace).all():
            raise BackendError("The slice's k-space holds NaN or infinite values.", "")
        operator = self._operator(mask)
        if self.reads.spec.coils:
            coils = self.reads.coils
            x_u, maps = sense_slice(kspace, mask, coils=coils, whitening=whitening)
            return self._image(x_u, operator, maps)
        if whitening is not None and len(kspace) > 1:
            kspace = compress(kspace, whitening)
        image: NDArray[Any] = combined(kspace, mask, phase=self._complex)
        if not self._complex:
            image = np.abs(image) if self.reads.spec.magnitude_input else image.real
        return self._image(np.ascontiguousarray(image), operator)

    def _image(
        self,
        x_u: NDArray[Any],
        operator: NDArray[np.float32] | None,
        maps: NDArray[np.complex64] | None = None,
    ) -> NDArray[Any]:
        many = None if maps is None else maps[None]
        image: NDArray[Any] = reconstruct(self.session, x_u[None], maps=many, operator=operator)[0]
        if not np.isfinite(image).all():
            raise BackendError("The network's image holds NaN or infinite values.", "")
        return image

    def _operator(self, mask: Mask) -> NDArray[np.float32] | None:
        """Return the operator for a mask, None where the graph holds it.

        Raises:
            BackendError: The bundle is made for another mask.
        """
        if mask not in self._operators:
            own = self.reads.mask
            if self._bundle is None or not self._bundle.manifest.get("mask_input"):
                raise BackendError(
                    f"The slice is sampled with another mask ({int(mask.samples.sum())} lines)"
                    f" than the network's ({own.name!r}, {int(own.samples.sum())} lines).",
                    "",
                )
            operator = operator_of(self._bundle, mask)
            while len(self._operators) >= _OPERATORS:
                del self._operators[next(iter(self._operators))]
            self._operators[mask] = operator
        own_operator: NDArray[np.float32] | None = self._operators[mask]
        return own_operator
