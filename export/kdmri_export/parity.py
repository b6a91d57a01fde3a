"""The parity gate: an exported graph must give what PyTorch gives for golden phantom slices."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdmri_edge.data.case import make_case
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.resample import to_matrix
from kdmri_edge.data.simulation import coil_maps
from kdmri_edge.errors import ParityError
from kdmri_edge.metrics import psnr, ssim
from kdmri_edge.models.protocol import InputKind
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.physics.coils import expand, sense_normal
from kdmri_edge.physics.combining import root_sum_of_squares
from kdmri_edge.physics.fourier import kspace_to_image
from kdmri_edge.physics.masks import Mask, variable_density_2d, variable_density_lines
from kdmri_edge.physics.operators import sampled_kspace, zero_filled
from kdmri_edge.physics.redraw import redrawn
from kdmri_edge.physics.scaling import (
    network_input,
    network_kspace,
    network_maps,
    slice_scale,
)
from kdmri_edge.quantisation.calibration import activation_maxima
from kdmri_edge.quantisation.scheme import BELOW
from kdmri_edge.runtime.bundle import (
    GOLDEN_INPUT,
    GOLDEN_MAPS,
    GOLDEN_OPERATOR,
    GOLDEN_OUTPUT,
)
from kdmri_edge.runtime.deviation import Figures, compare, tolerance_for
from kdmri_edge.runtime.session import Session, reconstruct

__all__ = [
    "Golden",
    "check",
    "check_other_coils",
    "check_other_mask",
    "check_other_matrix",
    "golden",
    "phantom_maxima",
    "takes_blank_coils",
    "with_coils",
]

# Any seed serves; one far from training's keeps the phantom apart from what a network has seen.
_SEED = 20200706
_SLICES = 3


@dataclass(frozen=True)
class Golden:
    """Phantom slices under a mask.

    Attributes:
        zero_filled: [S, H, W], in the phantom's own unit; complex64 for two channels.
        target: Fully sampled images, same shape.
        scale: float32 [S].
        maps: Coil sensitivities, complex64 [S, coils, H, W]; None for networks of one image.
        kspace: What the coils measured, complex64 [S, coils, H, W], for networks of k-space; else
            None.
    """

    zero_filled: NDArray[Any]
    target: NDArray[Any]
    scale: NDArray[np.float32]
    maps: NDArray[np.complex64] | None = None
    kspace: NDArray[np.complex64] | None = None

    @property
    def network_maps(self) -> NDArray[np.float32] | None:
        """What the network sees of the coils: [S, coils, 2, H, W] float32."""
        return None if self.maps is None else network_maps(self.maps)

    @property
    def network_input(self) -> NDArray[np.float32]:
        """What the network sees: [S, C, H, W] float32, normalised; or [S, coils, 2, H, W]."""
        if self.kspace is not None:
            return network_kspace(self.kspace, self.scale)
        return network_input(self.zero_filled, self.scale)


def phantom_maxima(reconstructor: Reconstructor, data: Golden) -> dict[str, list[float]]:
    """Return activation maxima of a network whose checkpoint brings none, from golden slices.

    How far images reach below zero is not among them: a phantom's aliasing is no bound of theirs.
    """
    x_u, maps = torch.from_numpy(data.network_input), data.network_maps
    further = () if maps is None else (torch.from_numpy(maps),)
    found = activation_maxima(reconstructor.model, [(x_u, reconstructor.operator, *further)])
    return {key: values for key, values in found.items() if not key.endswith(BELOW)}


def with_coils(target: NDArray[np.complex64], mask: Mask, coils: int) -> Golden:
    """Return golden slices of fully sampled images [S, H, W] that simulated coils receive."""
    maps = _maps(target, coils)
    x_u = sense_normal(target, maps, mask).astype(np.complex64)
    return Golden(x_u, target, slice_scale(x_u), maps)


def _kspace(target: NDArray[np.complex64], mask: Mask, coils: int) -> Golden:
    """Return golden slices of the k-space that simulated coils receive of images [S, H, W]."""
    maps = _maps(target, coils)
    kspace = sampled_kspace(expand(target, maps), mask)
    x_u = root_sum_of_squares(kspace_to_image(kspace).astype(np.complex64))
    truth = root_sum_of_squares(expand(target, maps).astype(np.complex64))
    return Golden(x_u, truth, slice_scale(x_u), kspace=kspace)


def _maps(target: NDArray[np.complex64], coils: int) -> NDArray[np.complex64]:
    shape = target.shape[-2:]
    return np.stack([coil_maps(coils, *shape, seed=_SEED + n) for n in range(len(target))])


def golden(
    mask: Mask,
    matrix: int | tuple[int, int],
    channels: int,
    coils: int | None = None,
    *,
    reads: InputKind | None = None,
) -> Golden:
    """Return golden slices for a mask.

    Args:
        mask: The sampling pattern.
        matrix: Side of square images, or (H, W).
        channels: 1 or 2.
        coils: Simulate so many coils; None for networks of one image.
        reads: What the network is given, where that is k-space.

    Raises:
        MaskError: The mask is of another matrix.
    """
    height, width = (matrix, matrix) if isinstance(matrix, int) else matrix
    # The outermost slices of a head are nearly empty and would tell nothing.
    with_phase = channels == 2 or coils is not None
    volume = phantom_volume(
        _SEED, slices=_SLICES + 2, matrix=max(height, width, 16), complex_phase=with_phase
    )
    if height != width:
        volume = to_matrix(volume, (height, width))
    if coils is not None and reads is InputKind.KSPACE:
        return _kspace(volume.image[1:-1].astype(np.complex64), mask, coils)
    if coils is not None:
        return with_coils(volume.image[1:-1].astype(np.complex64), mask, coils)
    case = make_case(volume, mask, channels)
    return Golden(case.zero_filled[1:-1], case.target[1:-1], case.scale[1:-1])


Array = NDArray[Any]

# A network is not linear: inputs away from the usual scale find errors that the usual one hides.
_NETWORK_SCALES = (0.01, 1.0, 100.0)
# A scanner's unit is arbitrary; the scaling around the network has to absorb it.
_IMAGE_SCALES = (1e-6, 1.0, 1e6)
# A mask that samples everything leaves rounding alone: above this, PSNR has no meaning.
_EQUAL_DB = 100.0
# The mask that graphs with a mask as an input are checked with, beside their own.
_OTHER_ACCELERATION = 3.0
_OTHER_SEED = 991
# Largest difference, over the image's range, up to which two images are one but for rounding.
_SAME_IMAGE = 1e-4
# The number of coils that multi-coil graphs are checked with, beside their own.
_OTHER_COILS = 3


def _against_truth(output: Array, reference: Array, truth: Array) -> Figures:
    base = compare(output, reference)
    if not np.isfinite(output).all():  # no quality is defined then: the gate has to fail
        return base.worst(Figures(max_error=np.nan, nrmse=np.nan, psnr_db=np.nan, ssim=np.nan))
    target, ours, theirs = np.abs(truth), np.abs(output), np.abs(reference)
    # SSIM's window of 7 pixels does not fit into tiny matrices, which only tests have.
    has_window = min(target.shape[-2:]) >= 7
    change = abs(ssim(target, ours) - ssim(target, theirs)) if has_window else 0.0
    return Figures(
        max_error=base.max_error,
        nrmse=base.nrmse,
        psnr_db=abs(min(psnr(target, ours), _EQUAL_DB) - min(psnr(target, theirs), _EQUAL_DB)),
        ssim=change,
    )


_KEPT = 32
_kept: dict[bytes, NDArray[np.float32]] = {}
"""What PyTorch made of golden slices, by network and input: the same for every target of a network,
and what most of an export's time would go into."""


def _torch_session(reconstructor: Reconstructor) -> Any:
    network = hashlib.sha256(f"{reconstructor.spec} {reconstructor.form}".encode())
    for tensor in (*reconstructor.state_dict().values(), reconstructor.operator):
        network.update(tensor.numpy().tobytes())

    class Reference(Session):
        info = None  # type: ignore[assignment]
        sense = reconstructor.spec.coils
        kspace = reconstructor.spec.reads is InputKind.KSPACE

        def run(
            self,
            x_u: NDArray[np.float32],
            *,
            operator: NDArray[np.float32] | None = None,
            maps: NDArray[np.float32] | None = None,
        ) -> NDArray[np.float32]:
            given = self.inputs(x_u, operator=operator, maps=maps)
            seen = network.copy()
            for array in given:
                seen.update(f"{array.shape}".encode())
                seen.update(array.tobytes())
            key = seen.digest()
            if key not in _kept:
                while len(_kept) >= _KEPT:
                    del _kept[next(iter(_kept))]
                images, *coils = (torch.from_numpy(array) for array in given)
                with torch.inference_mode():
                    _kept[key] = reconstructor(images, None, *coils).numpy()
            return _kept[key].copy()

    return Reference()


def check(
    session: Session,
    reconstructor: Reconstructor,
    data: Golden,
    *,
    precision: str,
    dynamic: bool = False,
    operator: NDArray[np.float32] | None = None,
) -> dict[str, Any]:
    """Run the gate.

    Args:
        session: The exported graph in its runtime.
        reconstructor: The same network in PyTorch, float32, with the form that was exported.
        data: Golden slices.
        precision: Which tolerances apply.
        dynamic: The graph takes any batch: all slices are also run in one call.
        operator: What the graph is given for another mask than its own, see `Session.run`.

    Returns:
        For the manifest: tolerance, figures, the scales that were tried, and what ran in which
        arithmetic.

    Raises:
        ParityError: A figure exceeds its tolerance; the message names all of them.
    """
    reference = _torch_session(reconstructor)
    maps = data.network_maps

    def compared(x_u: NDArray[np.float32], slices: slice) -> Figures:
        x_u = np.ascontiguousarray(x_u)
        own = None if maps is None else maps[slices]
        return compare(session.run(x_u, operator=operator, maps=own), reference.run(x_u, maps=own))

    name, tolerance = tolerance_for(precision, reconstructor.form)
    figures = Figures(max_error=0.0, nrmse=0.0, psnr_db=0.0, ssim=0.0)
    # Integers and halves serve the range of normalised images; far from it biases, which do not
    # scale, leave few of their digits to the image.
    scales = _NETWORK_SCALES if precision == "f32" else (1.0,)
    for scale in scales:
        for number, x_u in enumerate(data.network_input):
            one = slice(number, number + 1)
            figures = figures.worst(compared(x_u[None] * np.float32(scale), one))
    if dynamic:
        figures = figures.worst(compared(data.network_input, slice(None)))
    for scale in _IMAGE_SCALES:
        zero_filled = data.zero_filled * data.zero_filled.dtype.type(scale)
        kspace = None if data.kspace is None else data.kspace * np.float32(scale)
        coils: dict[str, Any] = {"maps": data.maps, "kspace": kspace}
        ours = reconstruct(session, zero_filled, operator=operator, **coils)
        theirs = reconstruct(reference, zero_filled, **coils)
        figures = figures.worst(_against_truth(ours / scale, theirs / scale, data.target))
    exceeded = figures.exceeded(tolerance)
    if exceeded:
        text = ", ".join(
            f"{key} {getattr(figures, key):.2g} (limit {getattr(tolerance, key):.2g})"
            for key in exceeded
        )
        remedy = (
            "Nothing was written; leave the layers that lose most in float32 with --float auto, or"
            " train a copy with rounding (`kdmri-edge distill --quantize int8`)."
            if precision == "int8"
            else "Nothing was written; try another --dc form, or report the versions that"
            " `kdmri-edge doctor` prints."
        )
        raise ParityError(f"The exported graph does not reproduce PyTorch: {text}.", remedy)
    return {
        "passed": True,
        "tolerance_name": name,
        "tolerance": asdict(tolerance),
        "figures": asdict(figures),
        "network_input_scales": list(scales),
        "image_scales": list(_IMAGE_SCALES),
        "slices": len(data.zero_filled),
        "ran": f"{session.info.backend} {session.info.version}, {session.info.provider}",
        "computed": session.info.precision_executed,
        "against": f"PyTorch {torch.__version__} float32, {reconstructor.form} form",
    }


def check_other_mask(
    session: Session, reconstructor: Reconstructor, data: Golden, *, precision: str
) -> None:
    """Run the gate with another mask than the one that the graph was written with.

    A graph that takes the mask as an input, and yet holds the example's, would pass with that.

    Args:
        session: The exported graph in its runtime.
        reconstructor: The same network in PyTorch, with the mask of the example.
        data: Golden slices, of which the true images are undersampled anew.
        precision: Which tolerances apply.

    Raises:
        ParityError: See `check`.
    """
    height, width = data.target.shape[-2:]
    mask = (
        variable_density_lines(height, _OTHER_ACCELERATION, seed=_OTHER_SEED)
        if reconstructor.mask.is_lines
        else variable_density_2d((height, width), _OTHER_ACCELERATION, seed=_OTHER_SEED)
    )
    reference = Reconstructor(reconstructor.model, mask, reconstructor.form, any_mask=True)
    if data.maps is not None:
        other = with_coils(data.target, mask, data.maps.shape[1])
    else:
        x_u = zero_filled(data.target, mask)
        other = Golden(x_u, data.target, slice_scale(x_u))
    operator = reference.operator.numpy()
    check(session, reference, other, precision=precision, operator=operator)


def check_other_matrix(
    session: Session,
    reconstructor: Reconstructor,
    matrix: tuple[int, int],
    *,
    precision: str,
    coils: int | None = None,
) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """Run the gate at another matrix than the one that the graph was written at.

    Args:
        session: The exported graph in its runtime, which takes any matrix.
        reconstructor: The same network in PyTorch, with the mask of the example; the other one is
            drawn like it.
        matrix: (H, W).
        precision: Which tolerances apply.
        coils: Coils of a network that combines them.

    Returns:
        See `check`; and the golden data of the first slice, by the names of a bundle's files.

    Raises:
        ParityError: See `check`.
    """
    mask = redrawn(reconstructor.mask, *matrix)
    reference = Reconstructor(reconstructor.model, mask, reconstructor.form, any_mask=True)
    data = golden(mask, matrix, reconstructor.spec.channels, coils)
    consistent = reconstructor.spec.has_data_consistency
    operator = reference.operator.numpy() if consistent else None
    parity = check(session, reference, data, precision=precision, operator=operator)
    given = data.network_input[:1]
    maps = None if data.network_maps is None else data.network_maps[:1]
    with torch.inference_mode():
        further = None if maps is None else torch.from_numpy(maps)
        wanted = reference(torch.from_numpy(given), maps=further).numpy()
    arrays = {
        GOLDEN_INPUT: given,
        GOLDEN_OUTPUT: wanted,
        GOLDEN_OPERATOR: operator,
        GOLDEN_MAPS: maps,
    }
    return parity, {name: array for name, array in arrays.items() if array is not None}


def check_other_coils(
    session: Session, reconstructor: Reconstructor, data: Golden, *, precision: str
) -> None:
    """Run the gate with another number of coils than the graph was written with.

    Args:
        session: The exported graph in its runtime.
        reconstructor: The same network in PyTorch.
        data: Golden slices, whose true images other coils receive.
        precision: Which tolerances apply.

    Raises:
        ParityError: See `check`.
    """
    own = 0 if data.maps is None else data.maps.shape[1]
    if session.coils is None:
        number = _OTHER_COILS if own != _OTHER_COILS else _OTHER_COILS - 1
    else:  # fewer, which are filled up
        number = max(1, min(_OTHER_COILS, own - 1))
    other = with_coils(data.target, reconstructor.mask, number)
    check(session, reconstructor, other, precision=precision)


def takes_blank_coils(reconstructor: Reconstructor, data: Golden) -> bool:
    """Tell whether a network of k-space gives the same image when a coil without samples is added.

    Those that normalise each coil by itself give NaN; others make something of their biases.
    """
    x_u = torch.from_numpy(data.network_input[:1])
    with torch.inference_mode():
        own = reconstructor(x_u)
        more = reconstructor(torch.cat((x_u, torch.zeros_like(x_u[:, :1])), 1))
    span = float(own.max() - own.min())
    gap = float((more - own).abs().max())
    return gap <= _SAME_IMAGE * span  # not where it is NaN
