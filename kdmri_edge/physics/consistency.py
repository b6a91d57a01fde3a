"""Data consistency as torch operators with three equal forms, for one image and for coils.

    x' = x + g (x_u - P x),          P = F^H diag(m) F,    x_u = F^H m y
    x' = x + g (x_u - S^H P S x),                          x_u = S^H F^H m y

with g = lambda / (1 + lambda): 1 for hard consistency, below 1 for noise weight lambda (Schlemper
et al., TMI 2018, eq. 8). On a magnitude network (one channel) only real parts are kept, which is
the behaviour of KD-MRI (Murugesan et al., MIDL 2020). With coils (SENSE; what it means and when it
is valid: `physics.coils`) images are [B, 2, H, W] and maps [B, C, 2, H, W]; axes of two hold real
and imaginary part. The number of coils C is free in every form: a coil whose map is zero changes
nothing.

Models call the custom ops `kdmri::data_consistency` and `kdmri::sense_consistency`; exporters
replace them by `FORMULAS` and `SENSE_FORMULAS`, which hold standard operations only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef  # type: ignore[attr-defined]

from kdmri_edge.physics.coils import sense_operator_array
from kdmri_edge.physics.fourier import dft_matrices
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.operators import Form, operator_array
from kdmri_edge.physics.scaling import network_maps

__all__ = [
    "FORMULAS",
    "SENSE_FORMULAS",
    "Matrices",
    "apply_dft",
    "apply_fft",
    "apply_projection",
    "chebyshev_steps",
    "data_consistency",
    "dft_left",
    "dft_right",
    "gain",
    "maps_tensor",
    "operator_tensor",
    "sense_consistency",
    "sense_dft",
    "sense_operator_tensor",
    "sense_projection",
]


def gain(noise_weight: float | None) -> float:
    """Return g = lambda / (1 + lambda); None stands for hard consistency, g = 1."""
    return 1.0 if noise_weight is None else noise_weight / (1.0 + noise_weight)


def chebyshev_steps(count: int, weight: float) -> tuple[float, ...]:
    """Return sizes of gradient steps that solve (A + w) x = b best for any A between 0 and 1.

    After `count` steps x <- x + t (b - (A + w) x) the error of each eigenvalue l of A is multiplied
    by prod(1 - t (l + w)), and these t are the inverse roots of the Chebyshev polynomial of the
    interval [w, 1 + w], which has the least maximum there (Young, J. Math. Phys. 1953). Small and
    large steps alternate, so that rounding does not grow in between.

    Args:
        count: Steps; 0 gives none.
        weight: w, above 0.
    """
    middle, half = weight + 0.5, 0.5
    roots = [middle + half * math.cos(math.pi * (k + 0.5) / count) for k in range(count)]
    order = [n // 2 if n % 2 == 0 else count - 1 - n // 2 for n in range(count)]
    return tuple(1 / roots[k] for k in order)


def operator_tensor(
    mask: Mask, form: Form, channels: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return `physics.operators.operator_array` as a tensor of a real dtype."""
    return torch.from_numpy(operator_array(mask, form, channels)).to(dtype)


def apply_projection(x: Tensor, x_u: Tensor, operator: Tensor, gain: float) -> Tensor:
    """Compute x + g (x_u - P x) with one matrix product along phase encode.

    Args:
        x: Image [B, C, H, W].
        x_u: Zero-filled image of the same shape.
        operator: [C * H, C * H], or [B, C * H, C * H] with one mask per image.
        gain: g, 1 when hard.
    """
    batch, channels, height, width = x.shape
    if channels == 1:  # no reshapes: an exported graph then holds the product alone
        px = torch.matmul(operator if operator.dim() == 2 else operator[:, None], x)
    else:
        flat = x.reshape(batch, channels * height, width)
        px = torch.matmul(operator, flat).reshape(batch, channels, height, width)
    residual = x_u - px
    return x + (residual if gain == 1.0 else gain * residual)


Matrices = Callable[[int, torch.dtype, torch.device], tuple[Tensor, Tensor]]
"""From n, dtype and device to cos and sin of the orthonormal DFT matrix, each [n, n]."""


@lru_cache(maxsize=32)
def _kept(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    cosine, sine = (torch.from_numpy(m).to(dtype=dtype, device=device) for m in dft_matrices(n))
    return cosine, sine


def _dft(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return `physics.fourier.dft_matrices` as tensors."""
    # int(): while tracing, sizes are tensors, but the matrices are constants of the graph
    return _kept(int(n), dtype, device)


def apply_dft(
    x: Tensor,
    x_u: Tensor,
    operator: Tensor,
    gain: float,
    matrices: Matrices = _dft,
    along_width: Matrices | None = None,
) -> Tensor:
    """Compute x + g (x_u - P x) with real products by DFT matrices.

    Args:
        x: Image [B, C, H, W].
        x_u: Zero-filled image of the same shape.
        operator: The mask, [H, 1] for lines or [H, W].
        gain: g, 1 when hard.
        matrices: What makes the DFT matrices.
        along_width: What makes those along readout, where that differs.
    """
    along_width = along_width or matrices
    channels, height, width = x.shape[1:]
    real = x[:, :1]
    imag = x[:, 1:] if channels == 2 else None
    real, imag = dft_left(height, real, imag, inverse=False, matrices=matrices)
    two_axes = operator.shape[-1] != 1
    if two_axes:
        real, imag = dft_right(width, real, imag, inverse=False, matrices=along_width)
    real = operator * real
    imag = operator * imag
    if two_axes:
        real, imag = dft_right(width, real, imag, inverse=True, matrices=along_width)
    real, imag = dft_left(height, real, imag, inverse=True, matrices=matrices)
    px = real if channels == 1 else torch.cat((real, imag), 1)
    residual = x_u - px
    return x + (residual if gain == 1.0 else gain * residual)


def dft_left(
    height: int,
    real: Tensor,
    imag: Tensor | None,
    *,
    inverse: bool,
    matrices: Matrices = _dft,
) -> tuple[Tensor, Tensor]:
    """Multiply [..., H, W] by F (or F^H) from the left: along phase encode."""
    cosine, sine = matrices(height, real.dtype, real.device)
    sine = -sine if inverse else sine
    if imag is None:
        return torch.matmul(cosine, real), torch.matmul(-sine, real)
    return (
        torch.matmul(cosine, real) + torch.matmul(sine, imag),
        torch.matmul(cosine, imag) - torch.matmul(sine, real),
    )


def dft_right(
    width: int, real: Tensor, imag: Tensor, *, inverse: bool, matrices: Matrices = _dft
) -> tuple[Tensor, Tensor]:
    """Multiply [..., H, W] by F (or F^H) from the right: along readout."""
    cosine, sine = matrices(width, real.dtype, real.device)
    sine = -sine if inverse else sine
    return (
        torch.matmul(real, cosine) + torch.matmul(imag, sine),
        torch.matmul(imag, cosine) - torch.matmul(real, sine),
    )


def apply_fft(x: Tensor, x_u: Tensor, operator: Tensor, gain: float) -> Tensor:
    """Compute x + g (x_u - P x) with torch.fft, the reference.

    The same arguments as `apply_dft`. P does not depend on where the image's origin lies, so no
    shifts are needed.
    """
    channels = x.shape[1]
    image = x[:, 0] if channels == 1 else torch.complex(x[:, 0], x[:, 1])
    axes = [-2] if operator.shape[-1] == 1 else [-2, -1]
    # The scaling of forward and inverse cancels in P, so the default one spares two products.
    projected = torch.fft.ifftn(operator * torch.fft.fftn(image, dim=axes), dim=axes)
    parts = [projected.real] if channels == 1 else [projected.real, projected.imag]
    residual = x_u - torch.stack(parts, 1)
    return x + (residual if gain == 1.0 else gain * residual)


FORMULAS = {
    Form.PROJECTION: apply_projection,
    Form.DFT: apply_dft,
    Form.FFT: apply_fft,
}


def _custom_op(name: str) -> Callable[[Callable[..., Tensor]], CustomOpDef]:
    """Make a custom operator of a function, with the function's docstring, not the class's."""

    def made(function: Callable[..., Tensor]) -> CustomOpDef:
        operator = torch.library.custom_op(name, function, mutates_args=())
        operator.__doc__ = function.__doc__
        return operator

    return made


@_custom_op("kdmri::data_consistency")
def data_consistency(x: Tensor, x_u: Tensor, operator: Tensor, gain: float, form: str) -> Tensor:
    """Pull an image towards its acquired samples: x + g (x_u - P x).

    Args:
        x: Image [B, C, H, W], C = 1 (magnitude) or 2 (real, imaginary).
        x_u: Zero-filled image of the same shape.
        operator: What `operator_tensor` gives for the form.
        gain: g = lambda / (1 + lambda); 1 is hard consistency.
        form: "projection", "dft" or "fft".

    Returns:
        Image of the same shape and dtype. Under autocast it is computed in float32.
    """
    return FORMULAS[Form(form)](x, x_u, operator, gain).contiguous()


@data_consistency.register_fake
def _(x: Tensor, x_u: Tensor, operator: Tensor, gain: float, form: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:  # type: ignore[type-arg]
    _, _, operator, gain, form = inputs
    ctx.save_for_backward(operator)
    ctx.gain, ctx.form = gain, form  # type: ignore[attr-defined]


def _backward(
    ctx: torch.autograd.function.FunctionCtx, gradient: Tensor
) -> tuple[Tensor, Tensor, None, None, None]:
    # P is self-adjoint in every form, so the adjoint of x -> x - g P x is the map itself.
    (operator,) = ctx.saved_tensors  # type: ignore[attr-defined]
    gain: float = ctx.gain  # type: ignore[attr-defined]
    form: str = ctx.form  # type: ignore[attr-defined]
    through_x = data_consistency(gradient, torch.zeros_like(gradient), operator, gain, form)
    return through_x, gradient if gain == 1.0 else gain * gradient, None, None, None


data_consistency.register_autograd(_backward, setup_context=_keep)
# Under bf16 autocast the matrix product would be rounded, and acquired samples with it.
data_consistency.register_autocast("cpu", torch.float32)
data_consistency.register_autocast("cuda", torch.float32)


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
    height = x.shape[-2]
    seen = torch.cat(_expand(x, maps), 2).flatten(2, 3)
    matrix = operator if operator.dim() == 2 else operator[:, None]
    seen = torch.matmul(matrix, seen)
    if operator.shape[-2] != operator.shape[-1]:  # the factor F_m, not P
        seen = torch.matmul(matrix.transpose(-1, -2), seen)
    normal = _combine(seen[:, :, None, :height], seen[:, :, None, height:], maps)
    return _stepped(x, x_u, normal, gain)


def sense_dft(
    x: Tensor,
    x_u: Tensor,
    maps: Tensor,
    operator: Tensor,
    gain: float,
    matrices: Matrices = _dft,
    along_width: Matrices | None = None,
) -> Tensor:
    """Compute it with real products by DFT matrices; the operator is the mask.

    What makes the matrices is said as for `apply_dft`.
    """
    left = partial(dft_left, matrices=matrices)
    right = partial(dft_right, matrices=along_width or matrices)
    height, width = x.shape[-2:]
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


@_custom_op("kdmri::sense_consistency")
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


def _keep_sense(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:  # type: ignore[type-arg]
    _, _, maps, operator, gain, form = inputs
    ctx.save_for_backward(maps, operator)
    ctx.gain, ctx.form = gain, form  # type: ignore[attr-defined]


def _backward_sense(
    ctx: torch.autograd.function.FunctionCtx, gradient: Tensor
) -> tuple[Tensor, Tensor, None, None, None, None]:
    # S^H P S is self-adjoint, so the adjoint of x -> x - g S^H P S x is the map itself.
    maps, operator = ctx.saved_tensors  # type: ignore[attr-defined]
    gain: float = ctx.gain  # type: ignore[attr-defined]
    form: str = ctx.form  # type: ignore[attr-defined]
    nothing = torch.zeros_like(gradient)
    through_x = sense_consistency(gradient, nothing, maps, operator, gain, form)
    return through_x, gain * gradient, None, None, None, None


sense_consistency.register_autograd(_backward_sense, setup_context=_keep_sense)
# Under bf16 autocast the matrix product would be rounded.
sense_consistency.register_autocast("cpu", torch.float32)
sense_consistency.register_autocast("cuda", torch.float32)
