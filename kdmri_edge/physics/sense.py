"""SENSE data consistency as one torch operator with three equal forms.

    x' = x + g (x_u - S^H P S x),    x_u = S^H F^H m y

What it means and when it is valid: `physics.coils`. Images are [B, 2, H, W], maps [B, C, 2, H, W];
axes of two hold real and imaginary part. The number of coils C is free in every form: a coil whose
map is zero changes nothing.

Models call the custom op `kdmri::sense_consistency`; exporters replace it by one of the formulas,
which hold standard operations only.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdmri_edge.physics.coils import sense_operator_array
from kdmri_edge.physics.consistency import Matrices, dft_left, dft_right
from kdmri_edge.physics.forms import Form
from kdmri_edge.physics.masks import Mask
from kdmri_edge.scaling import network_maps

__all__ = [
    "SENSE_FORMULAS",
    "maps_tensor",
    "sense_consistency",
    "sense_dft",
    "sense_operator_tensor",
    "sense_projection",
]


def sense_operator_tensor(
    mask: Mask, form: Form, *, any_mask: bool = False, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return `physics.coils.sense_operator_array` as a tensor of a real dtype."""
    return torch.from_numpy(sense_operator_array(mask, form, any_mask=any_mask)).to(dtype)


def maps_tensor(maps: Any) -> Tensor:
    """Return complex maps [..., C, H, W] (numpy) as float32 [..., C, 2, H, W]."""
    return torch.from_numpy(network_maps(maps))


def _expand(x: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return real and imaginary part of S x, each [B, C, 1, H, W]."""
    real, imag = x[:, None, :1], x[:, None, 1:]
    s_real, s_imag = maps[:, :, :1], maps[:, :, 1:]
    return s_real * real - s_imag * imag, s_real * imag + s_imag * real


def _combine(real: Tensor, imag: Tensor, maps: Tensor) -> Tensor:
    """Return S^H z, [B, 2, H, W], of real and imaginary part of z, each [B, C, 1, H, W]."""
    s_real, s_imag = maps[:, :, :1], maps[:, :, 1:]
    parts = torch.cat((s_real * real + s_imag * imag, s_real * imag - s_imag * real), 2)
    return parts.sum(1)


def _stepped(x: Tensor, x_u: Tensor, normal: Tensor, gain: float) -> Tensor:
    residual = x_u - normal
    return x + (residual if gain == 1.0 else gain * residual)


def sense_projection(x: Tensor, x_u: Tensor, maps: Tensor, operator: Tensor, gain: float) -> Tensor:
    """Compute it with matrix products along phase encode, coil by coil.

    Args:
        x: Image [B, 2, H, W].
        x_u: Zero-filled image of the same shape.
        maps: Sensitivities [B, C, 2, H, W].
        operator: P [2H, 2H], or its factor F_m [2m, 2H] which is applied twice; either may have
            one matrix per image in front.
        gain: g, 1 when hard.
    """
    height = int(x.shape[-2])
    seen = torch.cat(_expand(x, maps), 2).flatten(2, 3)
    matrix = operator if operator.dim() == 2 else operator[:, None]
    seen = torch.matmul(matrix, seen)
    if int(operator.shape[-2]) != 2 * height:
        seen = torch.matmul(matrix.transpose(-1, -2), seen)
    normal = _combine(seen[:, :, None, :height], seen[:, :, None, height:], maps)
    return _stepped(x, x_u, normal, gain)


def sense_dft(
    x: Tensor,
    x_u: Tensor,
    maps: Tensor,
    operator: Tensor,
    gain: float,
    matrices: Matrices | None = None,
) -> Tensor:
    """Compute it with real products by DFT matrices; the operator is the mask.

    `matrices` makes them, None as everywhere else.
    """
    left, right = dft_left, dft_right
    if matrices is not None:
        left, right = partial(left, matrices=matrices), partial(right, matrices=matrices)
    height, width = (int(n) for n in x.shape[-2:])
    real, imag = left(height, *_expand(x, maps), inverse=False)
    two_axes = operator.shape[-1] != 1
    if two_axes:
        real, imag = right(width, real, imag, inverse=False)
    real, imag = operator * real, operator * imag
    if two_axes:
        real, imag = right(width, real, imag, inverse=True)
    real, imag = left(height, real, imag, inverse=True)
    return _stepped(x, x_u, _combine(real, imag, maps), gain)


def sense_fft(x: Tensor, x_u: Tensor, maps: Tensor, operator: Tensor, gain: float) -> Tensor:
    """Compute it with torch.fft, the reference; the operator is the mask."""
    seen = torch.complex(*_expand(x, maps))
    axes = [-2] if operator.shape[-1] == 1 else [-2, -1]
    projected = torch.fft.ifftn(operator * torch.fft.fftn(seen, dim=axes), dim=axes)
    return _stepped(x, x_u, _combine(projected.real, projected.imag, maps), gain)


SENSE_FORMULAS = {
    Form.PROJECTION: sense_projection,
    Form.DFT: sense_dft,
    Form.FFT: sense_fft,
}


@torch.library.custom_op("kdmri::sense_consistency", mutates_args=())
def sense_consistency(
    x: Tensor, x_u: Tensor, maps: Tensor, operator: Tensor, gain: float, form: str
) -> Tensor:
    """Take a step towards what the coils measured: x + g (x_u - S^H P S x).

    Args:
        x: Image [B, 2, H, W].
        x_u: Coil-combined zero-filled image of the same shape.
        maps: Sensitivities [B, C, 2, H, W], sum over coils of |s|^2 at most 1; constants, to which
            no gradient flows.
        operator: What `sense_operator_tensor` gives for the form.
        gain: g = lambda / (1 + lambda); 1 is a full step.
        form: "projection", "dft" or "fft".

    Returns:
        Image of the same shape and dtype. Under autocast it is computed in float32.
    """
    return SENSE_FORMULAS[Form(form)](x, x_u, maps, operator, gain).contiguous()


@sense_consistency.register_fake
def _(x: Tensor, x_u: Tensor, maps: Tensor, operator: Tensor, gain: float, form: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:  # type: ignore[type-arg]
    _, _, maps, operator, gain, form = inputs
    ctx.save_for_backward(maps, operator)
    ctx.gain, ctx.form = gain, form  # type: ignore[attr-defined]


def _backward(
    ctx: torch.autograd.function.FunctionCtx, gradient: Tensor
) -> tuple[Tensor, Tensor, None, None, None, None]:
    # S^H P S is self-adjoint, so the adjoint of x -> x - g S^H P S x is the map itself.
    maps, operator = ctx.saved_tensors  # type: ignore[attr-defined]
    gain: float = ctx.gain  # type: ignore[attr-defined]
    form: str = ctx.form  # type: ignore[attr-defined]
    nothing = torch.zeros_like(gradient)
    through_x = sense_consistency(gradient, nothing, maps, operator, gain, form)
    return through_x, gain * gradient, None, None, None, None


sense_consistency.register_autograd(_backward, setup_context=_keep)
# Under bf16 autocast the matrix product would be rounded.
sense_consistency.register_autocast("cpu", torch.float32)
sense_consistency.register_autocast("cuda", torch.float32)
