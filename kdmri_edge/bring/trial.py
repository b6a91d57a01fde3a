"""The first forward pass of a network of one's own, on a phantom.

It finds a wrong convention, and what else would fail after hours of training, and it counts the
multiplications.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kdmri_edge.data.case import make_case
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.simulation import coil_maps
from kdmri_edge.errors import KdmriError, MaskError, ModelError
from kdmri_edge.models.adapter import GUIDE
from kdmri_edge.models.code import CodeSpec, Convention
from kdmri_edge.models.network import Network, blank_inputs, network_operator
from kdmri_edge.models.protocol import InputKind, NetworkSpec, reads_coils
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.physics.coils import COILS, expand, sense_normal
from kdmri_edge.physics.combining import root_sum_of_squares
from kdmri_edge.physics.fourier import kspace_to_image
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.operators import choose_form, sampled_kspace
from kdmri_edge.physics.scaling import (
    network_input,
    network_kspace,
    network_maps,
    slice_scale,
)

__all__ = ["MULTIPLES", "phantom_inputs", "takes_sides", "try_network"]

_OF_PHYSICS: Final = (Convention.DEEPINV, Convention.DEEPINV_MULTICOIL)
_OTHER: Final = {
    Convention.DEEPINV: "Name --convention deepinv-multicoil if it takes [B, 2, coils, H, W]",
    Convention.DEEPINV_MULTICOIL: "Name --convention deepinv if it takes [B, 2, H, W]",
}
"""What else a network may have been meant for, by the convention that failed."""
_SEED: Final = 1
_IMAGES: Final = 2
_COILS: Final = 3
_SHORT: Final = 48
_SAME: Final = 1e-3
MULTIPLES: Final = (1, 2, 4, 8, 16, 32, 64)
"""What the sides of an image may have to be multiples of, by poolings and strides."""


def try_network(network: Network, spec: CodeSpec, mask: Mask, matrix: int) -> CodeSpec:
    """Run a network once on a phantom, forwards and backwards.

    Args:
        network: The network, with its weights or freshly drawn; it is as it was afterwards.
        spec: What is known of it.
        mask: The mask that it is meant for.
        matrix: Side of its square images.

    Returns:
        The specification, with its multiplications counted.

    Raises:
        ModelError: It fails, gives something else than an image of the size that it was given,
            changes its input, or cannot be trained.
        MaskError: The mask is of another matrix.
    """
    mask.check_matrix(matrix, matrix)
    network.form = choose_form(mask)
    inputs = phantom_inputs(spec, mask, matrix, network)
    training = network.training
    try:
        network.eval()
        output = _forward(network, spec, inputs)
        _check_output(output, spec, inputs[0], network)
        counted = _counted(network, spec, inputs, matrix)
        network.train()
        _check_gradients(network, spec, inputs)
    finally:
        network.zero_grad(set_to_none=True)
        network.train(training)
    return counted


def phantom_inputs(
    spec: NetworkSpec, mask: Mask, matrix: int, network: Network
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return what a network reads of two slices of a phantom.

    Args:
        spec: What is known of it.
        mask: What the slices are sampled with.
        matrix: Side of the square images.
        network: Its `form` decides about the operator.

    Returns:
        Zero-filled images, the operator and, with coils, their sensitivities.

    Raises:
        MaskError: The mask is of another matrix.
    """
    if matrix < 16:
        raise MaskError(f"A matrix of {matrix} is too small for an image.", "Give 16 or more.")
    with_phase = spec.channels == 2 or reads_coils(spec)
    volume = phantom_volume(_SEED, slices=_IMAGES + 2, matrix=matrix, complex_phase=with_phase)
    maps = None
    operator = network_operator(spec, mask, network.form)
    images = volume.image[1:-1].astype(np.complex64)
    drawn = np.stack([coil_maps(_COILS, matrix, matrix, seed=n) for n in range(_IMAGES)])
    if spec.reads is InputKind.KSPACE:
        kspace = sampled_kspace(expand(images, drawn), mask)
        x_u = root_sum_of_squares(kspace_to_image(kspace))
        return torch.from_numpy(network_kspace(kspace, slice_scale(x_u))), operator, None
    if spec.coils:
        x_u = sense_normal(images, drawn, mask).astype(np.complex64)
        scale = slice_scale(x_u)
        maps = torch.from_numpy(network_maps(drawn))
    else:
        case = make_case(volume, mask, spec.channels, magnitude=spec.magnitude_input)
        x_u, scale = case.zero_filled[1:-1], case.scale[1:-1]
    return torch.from_numpy(network_input(x_u, scale)), operator, maps


def _given(spec: CodeSpec, x_u: Tensor) -> str:
    """Say in words what a network is given."""
    if spec.convention in _OF_PHYSICS:
        batch, height, width = len(x_u), *x_u.shape[-2:]
        each = list(x_u.shape[1:-3])
        maps = f" and coil_maps {[batch, *each, width, height]}" if each else ""
        return (
            f"k-space y {[batch, 2, *each, width, height]} (float32, zero frequency in the middle)"
            f" and a physics with the mask {[1, 2, width, height]}{maps}"
        )
    if spec.reads is InputKind.KSPACE:
        batch, coils, _, height, width = x_u.shape
        if spec.convention is Convention.ADAPTER:
            return f"masked k-space {list(x_u.shape)} (float32) and the mask"
        return (
            f"masked k-space {[batch, coils, width, height, 2]} (float32, zero frequency in the"
            f" middle) and the mask {[1, 1, 1, height, 1]} (bool)"
        )
    kind = {
        (1, False): "the zero-filled magnitude x_u",
        (1, True): "the real part of the zero-filled image, x_u",
        (2, False): "real and imaginary part of the zero-filled image, x_u",
        (2, True): "real and imaginary part of the zero-filled image, x_u",
    }[spec.channels, spec.has_data_consistency]
    further = ", the operator" if spec.has_data_consistency else ""
    further += " and the coils' maps" if spec.coils else ""
    return f"{kind} {list(x_u.shape)} (float32){further}"


def _image(spec: NetworkSpec, x_u: Tensor) -> list[int]:
    """Return the shape of the image that a network has to make of its input."""
    return [len(x_u), spec.channels, *x_u.shape[-2:]]


def _wanted(spec: CodeSpec, x_u: Tensor) -> str:
    """Say in words what a network has to return."""
    shape = _image(spec, x_u)
    if spec.convention in _OF_PHYSICS:
        return f"an image {[shape[0], 2, shape[3], shape[2]]} in float32"
    if spec.reads is not InputKind.KSPACE:
        return f"an image {shape} in float32"
    if spec.convention is not Convention.ADAPTER:
        shape = [shape[0], shape[3], shape[2]]
    return f"a magnitude image {shape} in float32"


def _forward(network: Network, spec: CodeSpec, inputs: tuple[Tensor, Tensor, Tensor | None]) -> Any:
    x_u = inputs[0]
    before = x_u.clone()
    try:
        with torch.no_grad():
            output = network(*inputs)
            again = network(*inputs)
    except KdmriError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's own module raises
        raise _failure(network, spec, x_u, error) from error
    if not torch.equal(before, x_u):
        raise ModelError(
            f"forward of {spec.reference} changes its input in place.",
            "Write x = x + y instead of x += y, where x is the input.",
        )
    if _is_another(output, again):
        raise ModelError(
            f"{spec.reference} gives another image each time that it is given the same input.",
            "Leave out of its forward what draws random numbers (dropout in evaluation, too) or"
            " counts its calls.",
        )
    return output


def _is_another(output: Any, again: Any) -> bool:
    """Tell whether two outputs for one input differ by more than rounding."""
    if not isinstance(output, Tensor) or not isinstance(again, Tensor):
        return False
    if output.layout is not torch.strided or output.shape != again.shape:
        return False
    if not torch.isfinite(output).all():
        return False  # `_check_output` says what is wrong with it
    return bool((again - output).abs().max() > _SAME * output.abs().max())


def _failure(network: Network, spec: CodeSpec, x_u: Tensor, error: BaseException) -> ModelError:
    if (sizes := _sizes(network, spec, x_u)) is not None:
        return sizes
    text = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
    if isinstance(error, SystemExit):
        text = f"it ends the program (SystemExit: {error})"
    return ModelError(
        f"{spec.reference} fails on a phantom: {text}. By convention {spec.convention!s} it is"
        f" given {_given(spec, x_u)}.",
        f"{_OTHER.get(spec.convention, 'Name another convention with it')}, or write an adapter;"
        f" {GUIDE}.",
    )


def _sizes(network: Network, spec: CodeSpec, x_u: Tensor) -> ModelError | None:
    """Return the error for a network that takes some sizes alone, None where that is not why."""
    side = x_u.shape[-1]
    for multiple in MULTIPLES[1:]:
        fitting = math.ceil(side / multiple) * multiple
        odd = fitting if fitting // multiple % 2 else fitting + multiple  # of no larger power of 2
        if fitting != side and _takes(network, spec, odd, odd):
            return ModelError(
                f"{spec.reference} takes images whose sides are multiples of {multiple}, and the"
                f" matrix is {side}.",
                f"Use a matrix and a mask of {fitting}, or pad and crop in an adapter; {GUIDE}.",
            )
    return None


def takes_sides(reconstructor: Reconstructor, multiple: int) -> bool:
    """Tell whether a network takes images whose sides are odd multiples of a number."""
    height = multiple * math.ceil(_SHORT / multiple)
    height += 0 if height // multiple % 2 else multiple
    return _takes(reconstructor.model, reconstructor.spec, height, height + 2 * multiple)


def _takes(network: Network, spec: NetworkSpec, height: int, width: int) -> bool:
    """Tell whether a network gives back an image of a size."""
    x_u, operator, maps = blank_inputs(spec, network.form, height, width, coils=_COILS)
    try:
        with torch.no_grad():
            output = network(x_u, operator, maps)
    except (Exception, SystemExit):  # its reason is that of the first pass
        return False
    return isinstance(output, Tensor) and list(output.shape) == _image(spec, x_u)


def _check_output(output: Any, spec: CodeSpec, x_u: Tensor, network: Network) -> None:
    """Refuse what is no image like the input."""
    given, wanted = _given(spec, x_u), _wanted(spec, x_u)
    said = f"{spec.reference} was given {given}, and has to return {wanted}"
    remedy = f"Change what it returns, name another convention, or write an adapter; {GUIDE}."
    if not isinstance(output, Tensor):
        kind = type(output).__name__
        many = f" of {len(output)}" if isinstance(output, tuple | list | dict) else ""
        raise ModelError(f"{said}; it returned a {kind}{many}.", remedy)
    if type(output) is not Tensor or output.layout is not torch.strided:
        kind = type(output).__name__ if type(output) is not Tensor else f"{output.layout} tensor"
        raise ModelError(f"{said}; it returned a {kind}.", remedy)
    if output.is_complex():
        parts = "two real channels" if spec.channels == 2 else "the magnitude"
        raise ModelError(
            f"{said}; it returned complex numbers {list(output.shape)}.",
            f"Return {parts}, which every runtime takes; {GUIDE}.",
        )
    if list(output.shape) != _image(spec, x_u):
        if (sizes := _sizes(network, spec, x_u)) is not None:
            raise sizes
        raise ModelError(f"{said}; it returned {list(output.shape)}.", remedy)
    if output.dtype != torch.float32:
        raise ModelError(f"{said}; it returned {output.dtype}.", remedy)
    if not torch.isfinite(output).all():
        state = network.state_dict().items()
        odd = next((name for name, value in state if not torch.isfinite(value).all()), None)
        if odd is not None:
            raise ModelError(
                f"{spec.reference} gives NaN or infinite values, and its weight"
                f" {odd.removeprefix('module.')!r} holds such values.",
                "Give weights of an earlier step of its training.",
            )
        raise ModelError(
            f"{spec.reference} gives NaN or infinite values for a phantom.",
            "Look for a division by zero, a root or a logarithm in it, or give its weights.",
        )


def _check_gradients(
    network: Network, spec: CodeSpec, inputs: tuple[Tensor, Tensor, Tensor | None]
) -> None:
    """Refuse what cannot be trained; running averages of normalisations are put back."""
    kept = {name: value.clone() for name, value in network.named_buffers()}
    try:
        with torch.random.fork_rng(devices=[]):
            output: Any = network(*inputs)
            if not isinstance(output, Tensor):  # of several depths, say
                raise ModelError(
                    f"{spec.reference} returns an image when it is evaluated, and a"
                    f" {type(output).__name__} when it is trained.",
                    "Let it return the image alone in both.",
                )
            loss: Any = output.square().mean()
            loss.backward()
    except ModelError:
        raise
    except Exception as error:  # whatever autograd says to the user's own module
        text = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        raise ModelError(
            f"{spec.reference} cannot be trained: {text}.",
            "Its output has to depend on its weights by differentiable operations, none of which"
            " changes in place what another one needs.",
        ) from error
    finally:
        for name, value in network.named_buffers():
            value.copy_(kept[name])


def _counted(
    network: Network,
    spec: CodeSpec,
    inputs: tuple[Tensor, Tensor, Tensor | None],
    matrix: int,
) -> CodeSpec:
    """Count the multiplications of one image."""
    calls: list[str] = []

    def consistency(name: str) -> Callable[..., int]:
        def count(*shapes: Any, **more: Any) -> int:
            calls.append(name)
            return 0

        return count

    operators = {
        torch.ops.kdmri.data_consistency: consistency("data_consistency"),
        torch.ops.kdmri.sense_consistency: consistency("sense_consistency"),
    }
    counter = FlopCounterMode(display=False, custom_mapping=operators)
    x_u, operator, maps = inputs
    if spec.reads is InputKind.KSPACE:  # as many coils as scans are compressed to
        x_u = x_u.repeat(1, math.ceil(COILS / x_u.shape[1]), 1, 1, 1)[:, :COILS]
    try:
        with torch.no_grad(), counter:
            network(x_u[:1], operator, None if maps is None else maps[:1])
    except KdmriError:
        raise
    except Exception as error:  # of a module that took two images
        text = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        raise ModelError(
            f"{spec.reference} takes {len(inputs[0])} images, and fails for one: {text}.",
            "Let it take the number of images from its input, e.g. x.reshape(len(x), ...).",
        ) from error
    if spec.convention is Convention.OPERATOR and not calls:
        raise ModelError(
            f"{spec.reference} is given the operator of data consistency, and does not use it.",
            "Call kdmri_edge.physics.data_consistency (with coils sense_consistency) with it, or"
            " leave it out of forward.",
        )
    return replace(
        spec,
        counted_at=(matrix, matrix),
        convolutions=counter.get_total_flops() // 2,
        consistencies=len(calls),
    )
