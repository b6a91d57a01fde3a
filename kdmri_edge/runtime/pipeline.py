"""From k-space or images to images: the one road of files, streams, benchmarks and arrays.

The network's input is made in `runtime.inputs`, scaled and undone in `runtime.session`. What is
outside the network's scope is refused; a scanner's stream gets the zero-filled image and the reason
instead (`Pipeline.reconstruct`): there is always an image. Torch-free, but for networks that run in
PyTorch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.data.formats.measured import volume_of
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import (
    BackendError,
    BundleError,
    CheckpointError,
    DataError,
    KdmriError,
    MaskError,
)
from kdmri_edge.models.checkpoint import is_checkpoint, read_checkpoint_meta
from kdmri_edge.models.protocol import InputKind, reads_coils
from kdmri_edge.physics.fourier import kspace_to_image
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.reference import ReferenceLines
from kdmri_edge.runtime.bundle import open_bundle
from kdmri_edge.runtime.calibration import (
    CALIBRATION,
    Calibration,
    read_calibration,
    sidecar,
)
from kdmri_edge.runtime.causes import Cause, cause_of
from kdmri_edge.runtime.certificate import Certificate, Noise, Policies, Policy
from kdmri_edge.runtime.certifier import Certifier
from kdmri_edge.runtime.inputs import (
    NOTHING_TOLD,
    HeldCoils,
    InputSpec,
    NetworkInput,
    Told,
    check_slice,
    prepare,
    prepare_scan,
    read_input_spec,
    slice_input,
)
from kdmri_edge.runtime.scope import trained_for
from kdmri_edge.runtime.session import Session, open_session, operator_like, reconstruct
from kdmri_edge.utils.closing import Closing
from kdmri_edge.utils.files import damaged, sha256_file
from kdmri_edge.utils.keys import PublicKey
from kdmri_edge.utils.threads import bound_threads, slices_at_once

__all__ = ["Outcome", "Pipeline", "SliceReconstructor", "zero_filled_magnitude"]

_LOG: Final = logging.getLogger(__name__)
_OPERATORS: Final = 8  # masks, each of its own matrix, whose operators are kept


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcome:
    """The image of a slice.

    Attributes:
        image: [H, W], float32 or complex64, in the unit of k-space (orthonormal transform).
        fallback: Why it is the zero-filled image; None where it is the network's.
        cause: The same as a word; None where it is the network's.
        beyond: What of the slice the network was not trained for, or was not calibrated on, in
            sentences.
        certificate: What can be said of the network's image; None where there is none.
    """

    image: NDArray[Any]
    fallback: str | None = None
    cause: Cause | None = None
    beyond: tuple[str, ...] = ()
    certificate: Certificate | None = None


class SliceReconstructor(Protocol):
    """What the server calls for every slice, from as many threads as work on slices."""

    def reconstruct(
        self,
        kspace: NDArray[np.complex64],
        mask: Mask,
        whitening: NDArray[np.complex128] | None = None,
        reference: ReferenceLines | None = None,
        held: HeldCoils | None = None,
        told: Told = NOTHING_TOLD,
    ) -> Outcome:
        """Return the image of complex64 k-space [C, H, W], zero where `mask` does not sample."""


def zero_filled_magnitude(kspace: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Return the root sum of squares of the coils' zero-filled images: the fallback.

    Args:
        kspace: complex64 [C, H, W]; samples that are not finite count as zero.

    Returns:
        float32 [H, W], finite.
    """
    power = np.zeros(kspace.shape[-2:], np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for coil in kspace:  # one at a time: all of a large slice would be held several times over
            finite = np.isfinite(coil)
            usable = coil if finite.all() else np.where(finite, coil, 0)
            image = kspace_to_image(usable).astype(np.complex64, copy=False)
            power += image.real**2 + image.imag**2
        strength = np.sqrt(power)
    largest = float(np.finfo(np.float32).max)
    shown: NDArray[np.float32] = np.nan_to_num(strength, nan=0.0, posinf=largest)
    return shown


_NOT_LOOKED_AT = "It is not looked at."


def calibration_of(source: Path) -> Calibration | str:
    """Return the calibration of a bundle or a checkpoint, or why there is none that counts.

    Raises:
        BundleError: That of a bundle is damaged.
        CheckpointError: That beside a checkpoint is damaged.
    """
    if is_checkpoint(source):
        found = read_calibration(sidecar(source), CheckpointError)
        own = sha256_file(source) if found is not None else ""
    else:
        found = read_calibration(source / CALIBRATION, BundleError)
        own = str(open_bundle(source, verify=False).manifest.get("checkpoint_sha256", ""))
    if found is None:
        return "There is no calibration: `kdmri-edge calibrate` makes one of volumes."
    if found.weights != own:
        return "The calibration is that of other weights: make it again, `kdmri-edge calibrate`."
    return found


class Pipeline(Closing):
    """A network and what surrounds it: from k-space or images to images, for every caller.

    `run`, `serve`, the benchmark and the Python API reconstruct by it. As a context manager it is
    closed at the end.

    Args:
        source: A bundle's folder or a .safetensors checkpoint.
        backend: Key of `BACKENDS`; None takes the bundle's own.
        mask: Another mask than the network's own, for a bundle that takes masks as an input.
        any_matrix: Take any matrix and mask; a bundle has to be exported so.
        precision: See `open_session`.
        threads: CPU threads; None leaves the runtime's choice.
        at_once: Slices that are worked on at a time: by `prepare`, and by as many threads that call
            `reconstruct` or `image`; more only wait. None takes `slices_at_once` of the threads.
        sharing: Leave the CPUs to others while there is nothing to compute (ONNX Runtime would let
            its threads spin): a server has the next slice's lines to read meanwhile.
        out_of_scope: What `reconstruct` and `reconstruct_image` do with slices outside the scope.
        unknown_scope: The same for those of which it is not known; None takes `out_of_scope`.
        calibrated: Read the network's calibration; without it certificates say nothing of scope
            and error.
        keys: See `open_session`.
        **options: Passed to the session, e.g. `device="cuda"` for PyTorch.

    Attributes:
        reads: What the network is made for.
        session: The network.
        at_once: Slices that are worked on at a time.

    Raises:
        KdmriError: See `open_session`.
    """

    def __init__(
        self,
        source: Path,
        *,
        backend: str | None = None,
        mask: Mask | None = None,
        any_matrix: bool = False,
        precision: str | None = None,
        threads: int | None = None,
        at_once: int | None = None,
        sharing: bool = False,
        out_of_scope: Policy = Policy.FLAG,
        unknown_scope: Policy | None = None,
        calibrated: bool = True,
        keys: Sequence[PublicKey] = (),
        **options: Any,
    ) -> None:
        self._policies = Policies(outside=out_of_scope, unknown=unknown_scope)
        self.at_once = at_once or slices_at_once(threads)
        self._one_by_one, self._kept = threading.Lock(), threading.Lock()
        # its hashes are compared by `open_session`
        self._bundle = None
        if not is_checkpoint(source):
            self._bundle = open_bundle(source, verify=False, keys=keys)
        self.reads: InputSpec = read_input_spec(
            source, mask, any_matrix=any_matrix, bundle=self._bundle
        )
        self._meta = read_checkpoint_meta(source) if not self._bundle else self._bundle.manifest
        self._said_mask = mask is not None
        runs_in = backend or (self._bundle.target.runs_on[0] if self._bundle else None)
        if sharing and runs_in == "onnxruntime":
            options["spin"] = False
        self.session: Session = open_session(
            source,
            backend=backend,
            mask=mask,
            any_matrix=any_matrix,
            precision=precision,
            threads=threads,
            keys=keys,
            **options,
        )
        loaded = self.session.bundle
        if self._bundle and loaded and loaded.manifest != self._bundle.manifest:
            raise BundleError(f"{source} was replaced while it was opened.", "Open it again.")
        if sharing and self.at_once > 1:  # linear algebra of several slices has the same threads
            bound_threads(max(1, (threads or os.cpu_count() or 1) // self.at_once))
        self._operators: dict[Mask, Any] = {self.reads.mask: self.session.operator}
        # a network of one mask and matrix refuses what it was not trained for
        with damaged(source, CheckpointError if is_checkpoint(source) else BundleError):
            self._trained = trained_for(self._meta) if self.session.takes_masks else None
        found = calibration_of(self.session.folder or source) if calibrated else _NOT_LOOKED_AT
        self._certifier = Certifier(
            spec=self.reads.spec,
            mask=Mask.from_dict(self._meta["mask"]),
            integers=self.session.info.precision_requested == "int8",
            calibration=found,
        )

    @property
    def uncalibrated(self) -> str | None:
        """Why certificates say nothing of scope and error; None with a calibration."""
        return self._certifier.uncalibrated

    def close(self) -> None:
        """Release what the runtime holds."""
        self.session.close()

    def warm_up(self) -> None:
        """Run the network once, so that the first slice does not wait for what runtimes defer.

        Raises:
            BackendError: The network does not run.
        """
        size, spec = self.reads.matrix, self.reads.spec
        named = self.reads.mask.samples.shape
        if spec.has_data_consistency and named != size[: len(named)]:  # of another matrix
            size = (named[0], named[-1])
        blank = np.zeros((1, *size), np.complex64 if spec.channels == 2 else np.float32)
        maps = np.zeros((1, 1, *size), np.complex64) if spec.coils else None
        kspace = None
        if spec.reads is InputKind.KSPACE:
            kspace = np.zeros((1, self.reads.coils, *size), np.complex64)
        reconstruct(self.session, blank, maps=maps, kspace=kspace)

    def prepare(
        self,
        loaded: Scan | Volume,
        *,
        undersample: bool = False,
        own_mask: bool = True,
        maps: NDArray[np.complex64] | None = None,
        mask: Mask | None = None,
    ) -> NetworkInput:
        """Make the network's input of what was read from a file.

        Args:
            loaded: K-space of any number of coils, or images; see `inputs.prepare_scan` and
                `inputs.prepare`.
            undersample: The source is fully sampled: apply the network's mask to it. One coil
                for a network of one image is brought to its matrix first, as images are. A network
                of any matrix takes them as they are, with a mask that is drawn like its own
                (`physics.redraw`).
            own_mask: Take the mask that k-space was sampled with, where the network takes masks as
                an input; else the network's for every source.
            maps: See `inputs.prepare_scan`; for scans alone.
            mask: Undersample with this mask, of the source's matrix, in place of the network's.

        Raises:
            DataError: The source holds something else than the network reads.
            MaskError: It is sampled with another mask, or of another matrix; or a mask is given for
                a network that is made for its own.
        """
        reads = self.reads
        if mask is not None and mask != reads.mask:
            if not self.session.takes_masks:
                raise MaskError(
                    f"The network is made for its own mask {reads.mask.name!r}, and {mask.name!r}"
                    " was drawn.",
                    "Use one exported with `kdmri-edge export --mask input` or --matrix any.",
                )
            reads = dataclasses.replace(reads, mask=mask)
        sampled = loaded.mask if isinstance(loaded, Scan) else loaded.kspace_mask
        if self.session.takes_masks and own_mask and sampled is not None and not undersample:
            reads = dataclasses.replace(reads, mask=sampled)
        elif self._said_mask and sampled not in (None, reads.mask) and not undersample:
            raise MaskError(
                f"{loaded.name} is sampled with another mask than {reads.mask.name!r}, which was"
                " named.",
                "Leave the mask out: the scan's own is taken.",
            )
        if reads.free is not None:
            reads = self._at(reads, loaded, undersample=undersample)
        if not isinstance(loaded, Scan):
            given = prepare(loaded, reads, undersample=undersample)
        elif undersample and maps is None and loaded.coils == 1 and not reads_coils(reads.spec):
            given = prepare(volume_of(loaded), reads, undersample=True)
        else:
            given = prepare_scan(
                loaded, reads, undersample=undersample, maps=maps, at_once=self.at_once
            )
        beyond = self._beyond(given.mask, given.zero_filled.shape[1:])
        return dataclasses.replace(given, beyond=beyond)

    def _at(self, reads: InputSpec, loaded: Scan | Volume, *, undersample: bool) -> InputSpec:
        """Return what a network of any matrix has to be given of a source's own."""
        found = reads.at(loaded.matrix, loaded.name)
        if found.mask is reads.mask:
            return found
        if self._said_mask:
            reads.mask.check_matrix(*loaded.matrix)
        images = isinstance(loaded, Volume) and loaded.is_complex and loaded.kspace is None
        if images and not undersample:  # a mask that is guessed would give a wrong image
            raise MaskError(
                f"{loaded.name} is {loaded.matrix[0]} x {loaded.matrix[1]}, and does not say which"
                " samples its zero-filled images were made from.",
                "Name the mask with --mask; if the images are fully sampled, add --undersample.",
            )
        return found

    def _beyond(self, mask: Mask, matrix: Sequence[int]) -> tuple[str, ...]:
        """Say what of a source the network was not trained for."""
        return () if self._trained is None else self._trained.beyond(mask, matrix[0], matrix[1])

    def images(
        self, given: NetworkInput, *, advance: Callable[[int], None] | None = None
    ) -> NDArray[Any]:
        """Reconstruct what `prepare` made: scaling, network, output.

        Args:
            given: The network's input.
            advance: Called with the number of slices that are finished.

        Returns:
            Images [S, H, W] in the source's unit, float32 or complex64.

        Raises:
            BackendError: The network is made for another mask or matrix, does not run, or gives
                values that are not finite.
        """
        operator = self._operator(given.mask)
        # a runtime that has one set of buffers takes one slice after another
        with contextlib.nullcontext() if self.session.concurrent else self._one_by_one:
            images: NDArray[Any] = reconstruct(
                self.session,
                given.zero_filled,
                advance=advance,
                maps=given.maps,
                operator=operator,
                kspace=given.kspace,
            )
        if not np.isfinite(images).all():
            raise BackendError(
                "The network's image holds NaN or infinite values.",
                "Check the scan; a network far outside its training may do this.",
            )
        return images

    def certificates(self, given: NetworkInput, images: NDArray[Any]) -> list[Certificate]:
        """Say of each image what can be said without knowing the true one.

        Args:
            given: What `prepare` made.
            images: What `images` made of it, [S, H, W].
        """
        noise = None
        if given.noise is not None:
            noise = Noise(sigma=given.noise, origin="noise scan")
        fov = None
        if given.voxel_mm is not None:
            sides = zip(given.zero_filled.shape[1:], given.voxel_mm[1:], strict=True)
            fov = max(pixels * mm for pixels, mm in sides)
        return [
            self._certifier.certificate(
                zero_filled, image, given.mask,
                beyond=given.beyond, coils=given.coils, noise=noise,
                fov_mm=fov, contrast=given.contrast,
            )
            for zero_filled, image in zip(given.zero_filled, images, strict=True)
        ]  # fmt: skip

    def image(
        self,
        kspace: NDArray[np.complex64],
        mask: Mask,
        *,
        whitening: NDArray[np.complex128] | None = None,
        maps: NDArray[np.complex64] | None = None,
        reference: ReferenceLines | None = None,
        held: HeldCoils | None = None,
    ) -> NDArray[Any]:
        """Reconstruct one slice of k-space.

        Args:
            kspace: complex64 [C, H, W], zero where not sampled.
            mask: What was sampled.
            whitening: See `inputs.slice_input`, as are `maps` and `reference`.
            maps: Coil sensitivities, complex64 [C, H, W], in place of estimated ones.
            reference: Calibration lines beside the image.
            held: See `inputs.slice_input`.

        Returns:
            Image [H, W] in the unit of k-space, float32 or complex64.

        Raises:
            DataError: See `inputs.check_slice` and `inputs.slice_input`.
            MaskError: See `inputs.slice_input`.
            BackendError: See `images`.
        """
        given = self._slice(
            kspace, mask, whitening=whitening, maps=maps, reference=reference, held=held
        )
        image: NDArray[Any] = self.images(given)[0]
        return image

    def _slice(
        self,
        kspace: NDArray[np.complex64],
        mask: Mask,
        told: Told = NOTHING_TOLD,
        **known: Any,
    ) -> NetworkInput:
        """Make the network's input of one slice, see `image`."""
        check_slice(kspace, self.reads)
        self._operator(mask)  # another mask is refused before coils are estimated
        one = slice_input(kspace, mask, self.reads, **known)
        beyond = self._beyond(mask, kspace.shape[-2:])
        return NetworkInput.of(
            [one], mask, coils=len(kspace), beyond=beyond,
            voxel_mm=told.voxel_mm, noise=told.noise, contrast=told.contrast,
        )  # fmt: skip

    def _outcome(self, given: NetworkInput, plain: Callable[[], NDArray[Any]]) -> Outcome:
        """Reconstruct one slice, and decide what becomes of an image outside the scope."""
        images = self.images(given)
        certificate = self.certificates(given, images)[0]
        scope = certificate.scope
        if self._policies.of(scope.inside) is not Policy.FLAG:
            return Outcome(
                image=plain(), fallback=" ".join(scope.reasons), cause=Cause.SCOPE,
                certificate=certificate,
            )  # fmt: skip
        said = scope.reasons if scope.inside is False else given.beyond
        return Outcome(image=images[0], beyond=said, certificate=certificate)

    def reconstruct(
        self,
        kspace: NDArray[np.complex64],
        mask: Mask,
        whitening: NDArray[np.complex128] | None = None,
        reference: ReferenceLines | None = None,
        held: HeldCoils | None = None,
        told: Told = NOTHING_TOLD,
    ) -> Outcome:
        """Reconstruct one slice; whatever happens, there is an image.

        Args:
            kspace: complex64 [C, H, W], zero where not sampled.
            mask: What was sampled.
            whitening: See `inputs.slice_input`. The zero-filled image of a fallback is that of the
                coils as they were measured.
            reference: Calibration lines beside the image.
            held: See `inputs.slice_input`.
            told: What the scan's header and noise tell, for the certificate.

        Returns:
            The network's image with its certificate; the zero-filled one where `image` refuses, or
            where the site's policies say so, with the reason.
        """
        try:
            given = self._slice(
                kspace, mask, told, whitening=whitening, reference=reference, held=held
            )
            return self._outcome(given, lambda: zero_filled_magnitude(kspace))
        except KdmriError as error:
            reason, cause = error.what, cause_of(error)
        except Exception as error:  # a runtime may raise anything, and the scan needs its image
            _LOG.exception("the network failed")
            reason, cause = f"The network failed ({type(error).__name__}).", Cause.NETWORK
        return Outcome(image=zero_filled_magnitude(kspace), fallback=reason, cause=cause)

    def reconstruct_image(self, image: NDArray[Any], *, undersample: bool = False) -> Outcome:
        """Reconstruct from an image in place of k-space; it is not resampled.

        Args:
            image: [H, W], float32 or complex64: of low resolution, for super-resolution; complex
                zero-filled; or, with `undersample`, complex and fully sampled.
            undersample: Apply the network's mask to it first.

        Returns:
            The network's image, or the given one with the reason.
        """
        height, width = image.shape
        try:
            if undersample and not np.iscomplexobj(image):
                raise DataError(
                    "A magnitude image is no fully sampled scan: it has no phase.",
                    "Send complex images.",
                )
            if self.reads.free is None and (height, width) != self.reads.matrix:
                raise DataError(
                    f"The image is {height} x {width}, the network's matrix"
                    f" {self.reads.matrix[0]} x {self.reads.matrix[1]}.",
                    "Use a network of the images' matrix, or one that takes any.",
                    cause=Cause.MATRIX,
                )
            given = self.prepare(
                Volume(image=image[None], name="The image", subject=""), undersample=undersample
            )
            return self._outcome(given, lambda: image)
        except KdmriError as error:
            reason, cause = error.what, Cause(error.cause or Cause.IMAGE)
        except Exception as error:  # as above
            _LOG.exception("the network failed")
            reason, cause = f"The network failed ({type(error).__name__}).", Cause.NETWORK
        return Outcome(image=image, fallback=reason, cause=cause)

    def _operator(self, mask: Mask) -> NDArray[np.float32] | None:
        """Return the operator for a mask, None where the graph holds it.

        Raises:
            BackendError: The bundle is made for another mask.
        """
        own = self.reads.mask
        with self._kept:
            if mask in self._operators:
                self._operators[mask] = self._operators.pop(mask)  # the last that was used
            else:
                if not self.session.takes_masks:
                    raise BackendError(
                        f"The slice is sampled with another mask ({int(mask.samples.sum())} lines)"
                        f" than the network's ({own.name!r}, {int(own.samples.sum())} lines).",
                        "Use a network for this mask, or one exported with --mask input.",
                        cause=Cause.MASK,
                    )
                operator = operator_like(self._meta, mask)
                while len(self._operators) >= _OPERATORS:
                    del self._operators[next(iter(self._operators))]
                self._operators[mask] = operator
            own_operator: NDArray[np.float32] | None = self._operators[mask]
            return own_operator
