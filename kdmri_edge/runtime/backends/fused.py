"""A stack of convolutions as one kernel for NVIDIA GPUs, written in Triton.

Each program computes one tile of the image through all layers of a stack. What it needs of its
neighbours it computes itself: the first layer covers the tile and a halo as wide as all later
layers reach, the next one less, the last one the tile alone. So no program waits for another, and
the activations of a tile stay in its own piece of memory, small enough for the GPU's caches; the
image is read once and written once. Convolutions are products on the matrix units, of float16 or
bfloat16 with sums in float32: the first layer gathers its few channels and nine taps into one
product, the others add nine products. Bias and ReLU are part of them.

With TRITON_INTERPRET=1 the same kernel runs on a CPU, slowly, which is how its arithmetic is
tested; it has not run on a GPU of this project's yet.
"""

from __future__ import annotations

from typing import Any, Final, cast

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from kdmri_edge.errors import BackendError
from kdmri_edge.models.blocks import ConvStack
from kdmri_edge.models.layers import replace_module

__all__ = ["LIMITS", "FusedStack", "fuse"]

_TILE: Final = 16
_BLOCK: Final = 64
"""Pixels of a product."""

_SMALLEST: Final = 16
"""Rows and columns that a product on matrix units has at least."""

_KERNEL: Final = 3


@triton.jit  # type: ignore[untyped-decorator]
def _convolved(  # type: ignore[no-untyped-def]
    given,
    weights,
    i,
    j,
    there,
    reach,
    side,
    INNER: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    """Return the nine products of a block of pixels, [BLOCK, COLUMNS], without bias."""
    channels, columns = tl.arange(0, INNER), tl.arange(0, COLUMNS)
    made = tl.zeros((BLOCK, COLUMNS), tl.float32)
    for tap in range(9):
        kernel = tl.load(weights + (tap * INNER + channels)[:, None] * COLUMNS + columns[None, :])
        near = (i + (tap // 3 - 1) * reach) * side + j + (tap % 3 - 1) * reach
        place = given + near[:, None] * INNER + channels[None, :]
        seen = tl.load(place, mask=there[:, None], other=0.0)
        made = tl.dot(seen.to(PRODUCT), kernel.to(PRODUCT), made)
    return made


@triton.jit  # type: ignore[untyped-decorator]
def _stack(  # type: ignore[no-untyped-def]
    x,
    out,
    work,
    weights,
    biases,
    dilations,
    height,
    width,
    across,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    GATHERED: tl.constexpr,
    INNER: tl.constexpr,
    WRITTEN: tl.constexpr,
    LAYERS: tl.constexpr,
    TILE: tl.constexpr,
    HALO: tl.constexpr,
    BLOCK: tl.constexpr,
    HALF: tl.constexpr,
    PRODUCT: tl.constexpr,
):
    tile, image = tl.program_id(0), tl.program_id(1)
    side: tl.constexpr = TILE + 2 * HALO
    region: tl.constexpr = side * side * INNER
    program = image * tl.num_programs(0) + tile
    own = work + program.to(tl.int64) * 2 * region
    top = (tile // across) * TILE - HALO
    left = (tile % across) * TILE - HALO
    channels = tl.arange(0, INNER)

    # The first layer: channels and taps of a pixel are one row of the product.
    reach = tl.load(dilations)
    margin = reach
    covered = side - 2 * margin
    taps = tl.arange(0, GATHERED)
    place = taps // FIRST
    down, right = (place // 3 - 1) * reach, (place % 3 - 1) * reach
    kernel = tl.load(weights + taps[:, None] * INNER + channels[None, :])
    bias = tl.load(biases + channels)
    planes = x + (image * FIRST + taps % FIRST) * height * width
    for start in range(0, covered * covered, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        there = pixel < covered * covered
        i, j = margin + pixel // covered, margin + pixel % covered
        row, column = top + i, left + j
        rows, columns = row[:, None] + down[None, :], column[:, None] + right[None, :]
        known = there[:, None] & (place < 9)[None, :] & (rows >= 0) & (rows < height)
        known = known & (columns >= 0) & (columns < width)
        seen = tl.load(planes[None, :] + rows * width + columns, mask=known, other=0.0)
        made = tl.dot(seen.to(HALF).to(PRODUCT), kernel.to(PRODUCT)) + bias[None, :]
        made = tl.maximum(made, 0.0)
        # Outside of the image lie zeros for the next layer, as "same" padding has them.
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        made = tl.where(inside[:, None], made, 0.0)
        place_of = own + (i * side + j)[:, None] * INNER + channels[None, :]
        tl.store(place_of, made.to(HALF), mask=there[:, None])
    weights += GATHERED * INNER
    biases += INNER
    tl.debug_barrier()

    for layer in range(1, LAYERS - 1):
        reach = tl.load(dilations + layer)
        margin += reach
        covered = side - 2 * margin
        given = own + ((layer - 1) % 2) * region
        taken = own + (layer % 2) * region
        bias = tl.load(biases + channels)
        for start in range(0, covered * covered, BLOCK):
            pixel = start + tl.arange(0, BLOCK)
            there = pixel < covered * covered
            i, j = margin + pixel // covered, margin + pixel % covered
            made = _convolved(
                given, weights, i, j, there, reach, side, INNER, INNER, BLOCK, PRODUCT
            )
            made = tl.maximum(made + bias[None, :], 0.0)
            row, column = top + i, left + j
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            made = tl.where(inside[:, None], made, 0.0)
            place_of = taken + (i * side + j)[:, None] * INNER + channels[None, :]
            tl.store(place_of, made.to(HALF), mask=there[:, None])
        weights += 9 * INNER * INNER
        biases += INNER
        tl.debug_barrier()

    # The last layer covers the tile alone.
    reach = tl.load(dilations + LAYERS - 1)
    given = own + ((LAYERS - 2) % 2) * region
    written = tl.arange(0, WRITTEN)
    bias = tl.load(biases + written)
    for start in range(0, TILE * TILE, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        there = pixel < TILE * TILE
        i, j = HALO + pixel // TILE, HALO + pixel % TILE
        made = _convolved(given, weights, i, j, there, reach, side, INNER, WRITTEN, BLOCK, PRODUCT)
        made += bias[None, :]
        row, column = top + i, left + j
        inside = there & (row < height) & (column < width)
        place_of = (image * LAST + written)[None, :] * height * width
        place_of += (row * width + column)[:, None]
        tl.store(out + place_of, made, mask=inside[:, None] & (written < LAST)[None, :])


def _power(number: int) -> int:
    """Return the smallest power of two that products take and that holds `number`."""
    return max(_SMALLEST, 1 << (number - 1).bit_length())


class FusedStack(nn.Module):
    """A `ConvStack` as one kernel.

    Args:
        stack: Two or more convolutions of 3 x 3.
        dtype: torch.float16 or torch.bfloat16.

    Raises:
        BackendError: The stack has another form.
    """

    def __init__(self, stack: ConvStack, dtype: torch.dtype) -> None:
        super().__init__()
        convs = [cast(nn.Conv2d, conv) for conv in stack.convs]
        self._check(convs)
        self.first, self.last = convs[0].in_channels, convs[-1].out_channels
        self.inner = _power(max(conv.out_channels for conv in convs[:-1]))
        self.written = _power(self.last)
        self.gathered = _power(_KERNEL**2 * self.first)
        reach = [int(conv.dilation[0]) for conv in convs]
        self.halo, self.layers, self.dtype = sum(reach), len(convs), dtype
        self.register_buffer("weights", self._weights(convs).to(dtype), persistent=False)
        self.register_buffer("biases", self._biases(convs), persistent=False)
        self.register_buffer("reach", torch.tensor(reach, dtype=torch.int32), persistent=False)

    @staticmethod
    def _check(convs: list[nn.Conv2d]) -> None:
        plain = all(
            type(conv) is nn.Conv2d
            and conv.kernel_size == (_KERNEL, _KERNEL)
            and conv.stride == (1, 1)
            and conv.groups == 1
            and conv.dilation[0] == conv.dilation[1] == conv.padding[0] == conv.padding[1]
            and conv.padding_mode == "zeros"
            for conv in convs
        )
        if not plain or len(convs) < 2:
            raise BackendError(
                "The fused kernel takes two or more plain convolutions of 3 x 3.",
                "Use mode graph or eager.",
            )

    def _weights(self, convs: list[nn.Conv2d]) -> Tensor:
        """Lay the weights out as the kernel reads them, padded with zeros."""
        head = torch.zeros(self.gathered, self.inner)
        own = convs[0].weight.detach().float().permute(2, 3, 1, 0)  # taps, inputs, outputs
        head[: own[..., 0].numel(), : own.shape[-1]] = own.reshape(-1, own.shape[-1])
        parts = [head]
        for conv in convs[1:]:
            columns = self.inner if conv is not convs[-1] else self.written
            body = torch.zeros(_KERNEL**2, self.inner, columns)
            own = conv.weight.detach().float().permute(2, 3, 1, 0).flatten(0, 1)
            body[:, : own.shape[1], : own.shape[2]] = own
            parts.append(body)
        return torch.cat([part.flatten() for part in parts])

    def _biases(self, convs: list[nn.Conv2d]) -> Tensor:
        parts = []
        for conv in convs:
            columns = self.inner if conv is not convs[-1] else self.written
            bias = torch.zeros(columns)
            if conv.bias is not None:
                bias[: conv.out_channels] = conv.bias.detach().float()
            parts.append(bias)
        return torch.cat(parts)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output twice: float32 [B, C, H, W]; inner activations are not to be had."""
        x = x.float().contiguous()
        batch, _, height, width = x.shape
        across, down = -(-width // _TILE), -(-height // _TILE)
        side = _TILE + 2 * self.halo
        size = batch * across * down * 2 * side * side * self.inner
        work = torch.empty(size, dtype=self.dtype, device=x.device)
        out = torch.empty(batch, self.last, height, width, device=x.device)
        _stack[(across * down, batch)](
            x,
            out,
            work,
            self.weights,
            self.biases,
            self.reach,
            height,
            width,
            across,
            FIRST=self.first,
            LAST=self.last,
            GATHERED=self.gathered,
            INNER=self.inner,
            WRITTEN=self.written,
            LAYERS=self.layers,
            TILE=_TILE,
            HALO=self.halo,
            BLOCK=_BLOCK,
            HALF=_HALVES[self.dtype],
            PRODUCT=tl.float32 if _INTERPRETED else _HALVES[self.dtype],
        )
        return out, out


_INTERPRETED: Final = bool(triton.knobs.runtime.interpret)
"""The interpreter multiplies no bfloat16; in float32 the products of halves are exact."""

_HALVES: Final[dict[torch.dtype, Any]] = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


LIMITS: Final = {torch.float16: 1e-2, torch.bfloat16: 2e-2}
"""How far a fused stack may be from PyTorch's in float32, as a share of the range."""


def fuse(network: nn.Module, dtype: torch.dtype) -> int:
    """Put fused stacks in the place of a network's, in place; return how many.

    Each is compared with PyTorch's convolutions first, on noise.

    Args:
        network: On the device where it will run.
        dtype: torch.float16 or torch.bfloat16.

    Raises:
        BackendError: A stack has another form, there is none, or one gives other values.
    """
    stacks = [(name, one) for name, one in network.named_modules() if isinstance(one, ConvStack)]
    if not stacks:
        raise BackendError(
            "This network has no stack of convolutions that a kernel could compute at once.",
            "Use mode graph or eager.",
        )
    for name, stack in stacks:
        fused = FusedStack(stack, dtype).to(next(stack.parameters()).device)
        _check(name, stack, fused)
        replace_module(network, name, fused)
    return len(stacks)


@torch.inference_mode()
def _check(name: str, stack: ConvStack, fused: FusedStack) -> None:
    """Refuse a fused stack that gives other values than PyTorch's convolutions."""
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(1, fused.first, 19, 11, generator=noise)  # several tiles, none of them whole
    x = x.to(next(stack.parameters()).device)
    wanted, made = stack(x)[0], fused(x)[0]
    error = float((made - wanted).abs().max() / (wanted.max() - wanted.min()))
    if not error <= LIMITS[fused.dtype]:
        raise BackendError(
            f"The fused kernel of {name} gives other values than PyTorch (largest difference"
            f" {error:.2g} of their range, limit {LIMITS[fused.dtype]:g}).",
            "Use mode graph, and report the versions of Triton and PyTorch.",
        )
