"""Transforms that are undone and done again across data consistency are left out, exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdmri_export.passes.complex_numbers import RealProgram, without_complex
from kdmri_export.passes.tracing import trace

TOLERANCE = 1e-4  # of the range of the images
HEIGHT, WIDTH, COILS = 6, 8, 2


class Unrolled(nn.Module):
    """Cascades as fastMRI writes them: k-space [B, coils, H, W, 2], real numbers, lines along H.

    Args:
        mask: [H or 1, W or 1].
        factor: What data consistency is multiplied with.
        norms: Of the transforms to images and back.
        shifted: Zero frequency is in the middle.
        between: What happens to k-space after each cascade.
    """

    mask: Tensor
    factor: Tensor
    maps: Tensor

    def __init__(
        self,
        mask: Tensor,
        *,
        size: tuple[int, int] = (HEIGHT, WIDTH),
        factor: Tensor | None = None,
        norms: tuple[str, str] = ("ortho", "ortho"),
        shifted: bool = True,
        between: Callable[[Tensor], Tensor] = torch.clone,
        cascades: int = 2,
    ) -> None:
        super().__init__()
        self.register_buffer("mask", mask[..., None] > 0)
        self.register_buffer("factor", torch.ones(1) if factor is None else factor)
        self.register_buffer("maps", torch.randn(1, COILS, *size, dtype=torch.complex64))
        self.norms, self.shifted, self.between, self.cascades = norms, shifted, between, cascades
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def _transform(self, x: Tensor, forward: bool) -> Tensor:
        z = torch.view_as_complex(x)
        if self.shifted:
            z = torch.fft.ifftshift(z, dim=(-2, -1))
        transform = torch.fft.fft2 if forward else torch.fft.ifft2
        z = transform(z, norm=self.norms[forward])
        if self.shifted:
            z = torch.fft.fftshift(z, dim=(-2, -1))
        return torch.view_as_real(z)

    def forward(self, measured: Tensor) -> Any:
        kspace = measured.clone()
        zero = torch.zeros(1, 1, 1, 1, 1)
        for _ in range(self.cascades):
            coils = torch.view_as_complex(self._transform(kspace, False))
            image = torch.view_as_real((coils * self.maps.conj()).sum(1))
            made = self.conv(image.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()
            expanded = torch.view_as_real(torch.view_as_complex(made)[:, None] * self.maps)
            soft = torch.where(self.mask, kspace - measured, zero) * self.factor
            kspace = self.between(kspace - soft - self._transform(expanded, True))
        return self._transform(kspace, False).square().sum(-1).sqrt()


def products(made: RealProgram) -> int:
    return sum("matmul" in str(node.target) for node in made.program.graph.nodes)


def check(network: Unrolled, size: tuple[int, int] = (HEIGHT, WIDTH)) -> int:
    """Compare images with PyTorch's; return how many products with matrices there are."""
    measured = torch.randn(1, COILS, *size, 2)
    made = without_complex(trace(network.eval(), (measured,)))
    with torch.no_grad():
        expected, found = network(measured), made.program.module()(measured)
    assert float((found - expected).abs().max()) <= TOLERANCE * float(expected.max())
    return products(made)


LINES = (torch.arange(WIDTH) % 3 == 0).float()[None]
POINTS = (torch.arange(HEIGHT)[:, None] + torch.arange(WIDTH) % 3 == 0).float()
ALL = 4 * (2 * 2 + 1)  # a product of complex numbers is four; an axis of a transform
"""Products along one axis for two cascades: to the image and back, and the last image."""


def test_data_stays_transformed_along_the_readout() -> None:
    torch.manual_seed(0)
    assert check(Unrolled(LINES)) == ALL + 4  # along the readout the measurement alone


def test_what_is_masked_by_points_goes_both_ways() -> None:
    assert check(Unrolled(POINTS)) == 2 * ALL


@settings(max_examples=3, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
    st.tuples(st.integers(2, 9), st.integers(2, 9)),
    st.sampled_from([("ortho", "ortho"), ("backward", "backward"), ("forward", "forward")]),
    st.booleans(),
    st.booleans(),
)
def test_of_any_size_norm_and_shift(
    size: tuple[int, int], norms: tuple[str, str], shifted: bool, along_w: bool
) -> None:
    across = torch.arange(size[along_w]) % 2 == 0
    mask = (across[None] if along_w else across[:, None]).float()
    network = Unrolled(mask, size=size, norms=norms, shifted=shifted)
    assert check(network, size) == ALL + 4


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        # the ones undo the others but for a factor: not left out
        (Unrolled(LINES, norms=("ortho", "backward")), 2 * ALL),
        # real and imaginary parts are weighted differently
        (Unrolled(LINES, factor=torch.tensor([0.5, 0.7])), 2 * ALL),
        # not the same all along the readout
        (Unrolled(LINES, factor=torch.linspace(0.1, 1.0, HEIGHT).view(-1, 1, 1)), 2 * ALL),
        (Unrolled(LINES, between=lambda kspace: kspace + 1.0), 2 * ALL),
        (Unrolled(LINES, between=lambda kspace: -kspace / 2), ALL + 4),
    ],
)
def test_only_what_commutes_is_passed(network: Unrolled, expected: int) -> None:
    assert check(network) == expected


class Both(nn.Module):
    """Gives k-space as well."""

    def forward(self, image: Tensor) -> Any:
        kspace = torch.fft.fft2(image, norm="ortho")
        weighted = kspace * LINES
        return weighted, torch.fft.ifft2(weighted, norm="ortho")


def test_what_is_read_in_both_spaces_is_right_in_both() -> None:
    image = torch.randn(1, HEIGHT, WIDTH, dtype=torch.complex64)
    made = without_complex(trace(Both(), (image,)))
    found = made.program.module()(torch.view_as_real(image))
    for a, b in zip(found, Both()(image), strict=True):
        torch.testing.assert_close(torch.view_as_complex(a.contiguous()), b, rtol=0, atol=1e-5)


class Factors(nn.Module):
    """A factor for each channel of an image without channels: axes move when it is broadcast."""

    def forward(self, given: Tensor) -> Tensor:
        image = torch.fft.ifft2(torch.view_as_complex(given))
        channels = torch.tensor([1.0, 2.0])[:, None, None]
        return torch.view_as_real(torch.fft.fft2(image * channels))


class Ranks(nn.Module):
    """The same transforms of values with and without an axis of coils."""

    def forward(self, given: Tensor) -> Tensor:
        coils = torch.view_as_complex(given)[None, None].expand(1, 2, -1, -1)
        lines = (torch.arange(coils.shape[-1]) % 2 == 0).float()
        found = torch.zeros_like(coils)
        for value in (coils, coils[:, 0]):
            for mask in (lines[:, None], lines[None]):
                made = torch.fft.fft2(torch.fft.ifft2(value) * mask)
                found = found + (made if made.ndim == 4 else made[:, None])
        return torch.view_as_real(found)


class Floors(nn.Module):
    """A division that rounds, which no transform commutes with."""

    def forward(self, given: Tensor) -> Tensor:
        image = torch.view_as_real(torch.fft.ifft2(torch.view_as_complex(given)))
        floored = torch.div(image, 0.05, rounding_mode="floor") * 0.05
        return torch.view_as_real(torch.fft.fft2(torch.view_as_complex(floored)))


class Shifts(nn.Module):
    """A shift between two transforms belongs to one of them."""

    def forward(self, given: Tensor) -> Tensor:
        spectrum = torch.fft.fftshift(torch.fft.fft2(torch.view_as_complex(given)), dim=(0, 1))
        again = torch.fft.ifft2(spectrum) + torch.fft.fft2(spectrum)
        once = torch.fft.fftshift(torch.fft.fft2(torch.view_as_complex(given)), dim=(0, 1))
        return torch.view_as_real(again + torch.fft.ifft2(once))


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("network", [Factors, Ranks, Floors, Shifts])
def test_what_no_transform_commutes_with(network: type[nn.Module], size: int) -> None:
    torch.manual_seed(size)
    given = torch.randn(size, size, 2)
    expected = network()(given)
    program = without_complex(trace(network(), (given,))).program
    made = program.module()(given)
    made = made[0] if isinstance(made, tuple) else made
    torch.testing.assert_close(made, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))
