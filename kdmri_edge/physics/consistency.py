"""Data consistency as one torch operator with three equal forms.

    x' = x + g (x_u - P x),    P = F^H diag(m) F,    g = lambda / (1 + lambda)

with g = 1 for hard consistency and g < 1 for noise weight lambda (Schlemper et al., TMI 2018,
eq. 8). x_u is the complex zero-filled image; on a magnitude network (one channel) only real parts
are kept, which is the behaviour of KD-MRI (Murugesan et al., MIDL 2020).

Models call the custom op `kdmri::data_consistency`; exporters replace it by one of the `apply_*`
functions below, which hold standard operations only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from kdmri_edge.physics.forms import Form
from kdmri_edge.physics.fourier import dft_matrices
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.projection import operator_array

__all__ = [
    "FORMULAS",
    "Matrices",
    "apply_dft",
    "apply_fft",
    "apply_projection",
    "data_consistency",
    "dft_left",
    "dft_right",
    "gain",
    "operator_tensor",
]


def gain(noise_weight: float | None) -> float:
    """Return g = lambda / (1 + lambda); None stands for hard consistency, g = 1."""
    return 1.0 if noise_weight is None else noise_weight / (1.0 + noise_weight)


def operator_tensor(
    mask: Mask, form: Form, channels: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return `physics.projection.operator_array` as a tensor of a real dtype."""
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
def _dft(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return `physics.fourier.dft_matrices` as tensors."""
    cosine, sine = (torch.from_numpy(m).to(dtype=dtype, device=device) for m in dft_matrices(n))
    return cosine, sine


def apply_dft(
    x: Tensor, x_u: Tensor, operator: Tensor, gain: float, matrices: Matrices = _dft
) -> Tensor:
    """Compute x + g (x_u - P x) with real products by DFT matrices.

    Args:
        x: Image [B, C, H, W].
        x_u: Zero-filled image of the same shape.
        operator: The mask, [H, 1] for lines or [H, W].
        gain: g, 1 when hard.
        matrices: What makes the DFT matrices.
    """
    channels, height, width = x.shape[1:]
    real = x[:, :1]
    imag = x[:, 1:] if channels == 2 else None
    real, imag = dft_left(height, real, imag, inverse=False, matrices=matrices)
    two_axes = operator.shape[-1] != 1
    if two_axes:
        real, imag = dft_right(width, real, imag, inverse=False, matrices=matrices)
    real = operator * real
    imag = operator * imag
    if two_axes:
        real, imag = dft_right(width, real, imag, inverse=True, matrices=matrices)
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
    # int(): while tracing, sizes are tensors, but the matrices are constants of the graph
    cosine, sine = matrices(int(height), real.dtype, real.device)
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
    cosine, sine = matrices(int(width), real.dtype, real.device)
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


@torch.library.custom_op("kdmri::data_consistency", mutates_args=())
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
