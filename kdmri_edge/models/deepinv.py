"""The physics that deepinv's reconstructors are given as `forward(y, physics)`.

It follows deepinv's `MRI` and `MultiCoilMRI` (version 0.5). Images [B, 2, H, W] and k-space
[B, 2, H, W] or [B, 2, coils, H, W] are pairs of real numbers, real part first. Fourier transforms
are orthonormal; the image's origin and zero frequency lie in the middle of both axes. Masks
[1, 2, H, W] sample lines along the last axis. Methods have deepinv's names and defaults.

deepinv is not used even where it is installed. A network is then the same graph on every machine,
and a solver that deepinv stops by values, which no graph can, has a fixed number of steps. What
deepinv's physics has and this one lacks is refused by name when a network asks for it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar, Final, NoReturn

import torch
from torch import Tensor

from kdmri_edge.errors import ModelError

__all__ = ["SOLVER_STEPS", "CoilPhysics", "Physics", "to_complex", "to_pairs"]

SOLVER_STEPS: Final = 10
"""Steps of conjugate gradients where `prox_l2` of several coils is told none, as in MoDL."""

_AXES: Final = (-2, -1)
_TINY: Final = 1e-8
_LEAST: Final = 1e-5  # below it deepinv takes a singular value for zero


class _NotOfferedError(ModelError, AttributeError):
    """A member of deepinv's physics that is not here; `hasattr` and `getattr` see it missing."""


def _refuse(name: str, remedy: str) -> NoReturn:
    raise _NotOfferedError(f"forward asks for physics.{name}, which is not offered.", remedy)


def to_complex(x: Tensor) -> Tensor:
    """[B, 2, ...] to [B, ...] in complex numbers, of single precision at least."""
    wide = x if x.dtype == torch.float64 else x.to(torch.float32)  # convolutions may give bf16
    return torch.view_as_complex(wide.moveaxis(1, -1).contiguous())


def to_pairs(x: Tensor) -> Tensor:
    """[B, ...] in complex numbers to [B, 2, ...] in float."""
    return torch.view_as_real(x).moveaxis(-1, 1)


class _NoNoise:
    """The noise model of a scan, of whose noise nothing is known."""

    def __call__(self, x: Tensor, **parameters: Any) -> Tensor:
        return x

    def update_parameters(self, **parameters: Any) -> None:
        """There are none."""

    def __getattr__(self, name: str) -> NoReturn:
        _refuse(f"noise_model.{name}", "Give it a default: the noise of a scan is not known.")


class _Measurement:
    """What the physics of one coil and of several have in common.

    Args:
        mask: [H, W] or [1, 2, H, W], 1 where it samples, zero frequency in the middle.

    Attributes:
        mask: [1, 2, H, W], float32.
        noise_model: Adds nothing.
        three_d: False: images are slices.
    """

    three_d: ClassVar[bool] = False
    _offers: ClassVar[str]

    def __init__(self, mask: Tensor) -> None:
        self.mask = self.check_mask(mask).to(torch.float32)
        self.noise_model = _NoNoise()

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # what Python asks of any object
            raise AttributeError(name)
        _refuse(name, f"{self._offers}; or write an adapter that makes deepinv's own physics.")

    def __call__(self, x: Tensor, **parameters: Any) -> Tensor:
        return self.A(x, **parameters)

    @property
    def img_size(self) -> tuple[int, ...]:
        """Shape of an image, (2, H, W)."""
        return tuple(self.mask.shape[1:])

    # --- what a network may set ---------------------------------------------------------------

    @staticmethod
    def check_mask(mask: Tensor, three_d: bool = False) -> Tensor:
        """Return a mask [H, W], [C, H, W] or [B, C, H, W] as [B, 2, H, W]."""
        while mask.dim() < 4:
            mask = mask.unsqueeze(0)
        return torch.cat((mask, mask), 1) if mask.shape[1] == 1 else mask

    def update(self, **parameters: Any) -> None:
        """Set the mask, and of several coils their sensitivities; deepinv, too, passes over others.

        Args:
            parameters: mask, coil_maps; None leaves one as it is.
        """
        self.update_parameters(**parameters)

    def update_parameters(
        self, mask: Tensor | None = None, coil_maps: Tensor | None = None, **further: Any
    ) -> None:
        """See `update`."""
        if mask is not None:
            self.mask = self.check_mask(mask).to(self.mask)

    def clone(self) -> Any:
        """Return a copy whose mask can be set by itself."""
        return copy.copy(self)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Return itself: it follows the tensors that it is called with."""
        return self

    # --- transforms ---------------------------------------------------------------------------

    to_torch_complex = staticmethod(to_complex)
    from_torch_complex = staticmethod(to_pairs)

    @staticmethod
    def fft(x: Tensor, dim: tuple[int, ...] = _AXES, norm: str = "ortho") -> Tensor:
        """Transform complex images to k-space, both centred."""
        made = torch.fft.fftn(torch.fft.ifftshift(x, dim=dim), dim=dim, norm=norm)
        centred: Tensor = torch.fft.fftshift(made, dim=dim)
        return centred

    @staticmethod
    def ifft(x: Tensor, dim: tuple[int, ...] = _AXES, norm: str = "ortho") -> Tensor:
        """Transform complex k-space to images, both centred."""
        made = torch.fft.ifftn(torch.fft.ifftshift(x, dim=dim), dim=dim, norm=norm)
        centred: Tensor = torch.fft.fftshift(made, dim=dim)
        return centred

    def im_to_kspace(self, x: Tensor, three_d: bool = False) -> Tensor:
        """Transform images [B, 2, ..., H, W] to k-space of that shape."""
        return to_pairs(self.fft(to_complex(x)))

    def kspace_to_im(self, y: Tensor, three_d: bool = False) -> Tensor:
        """Transform k-space [B, 2, ..., H, W] to images of that shape."""
        return to_pairs(self.ifft(to_complex(y)))

    @staticmethod
    def rss(x: Tensor, multicoil: bool = True, mag: bool = True, three_d: bool = False) -> Tensor:
        """Return the root sum of squares of images [B, 2, (coils,) H, W], as deepinv does.

        Args:
            x: The images.
            multicoil: Sum over coils as well.
            mag: Sum over real and imaginary part.
            three_d: Not used.
        """
        squares = x.square()
        squares = squares.sum(1, keepdim=True) if mag else squares
        return (squares.sum(2) if multicoil else squares).sqrt()

    # --- what follows from the operator -------------------------------------------------------

    def A(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Measure images."""
        raise NotImplementedError

    def A_adjoint(self, y: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the zero-filled images of k-space."""
        raise NotImplementedError

    def A_vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """Return the adjoint of `v`: the operator is linear."""
        return self.A_adjoint(v)

    def A_adjoint_A(self, x: Tensor, **parameters: Any) -> Tensor:
        """Return A^H A x."""
        return self.A_adjoint(self.A(x, **parameters))

    def A_A_adjoint(self, y: Tensor, **parameters: Any) -> Tensor:
        """Return A A^H y."""
        return self.A(self.A_adjoint(y, **parameters))


class Physics(_Measurement):
    """The physics of one coil: y = M F x. See `_Measurement`."""

    _offers = "It has A, A_adjoint, A_dagger, A_vjp, prox_l2, V, V_adjoint, mask and update"

    def A(self, x: Tensor, mask: Tensor | None = None, **further: Any) -> Tensor:
        """Measure images [B, 2, H, W]: k-space of that shape, zero where it is not sampled."""
        self.update_parameters(mask=mask, **further)
        return self.mask * self.im_to_kspace(x)

    def A_adjoint(
        self,
        y: Tensor,
        mask: Tensor | None = None,
        mag: bool = False,
        crop: bool = False,
        **further: Any,
    ) -> Tensor:
        """Return the zero-filled images [B, 2, H, W] of k-space.

        Args:
            y: K-space [B, 2, H, W].
            mask: Is kept from then on, as deepinv does.
            mag: Return magnitudes [B, 1, H, W].
            crop: Changes nothing: the image is of the mask's size.
            further: See `update`.
        """
        self.update_parameters(mask=mask, **further)
        x = self.kspace_to_im(self.mask * y)
        return self.rss(x, multicoil=False) if mag else x

    def A_dagger(self, y: Tensor, mask: Tensor | None = None, **further: Any) -> Tensor:
        """Return the pseudo-inverse of k-space, images [B, 2, H, W]."""
        self.update_parameters(mask=mask, **further)
        inverse = torch.where(self.mask > _LEAST, self.mask.reciprocal(), 0.0)
        return self.kspace_to_im(y * inverse)

    def U(self, x: Tensor) -> Tensor:
        """Return `x`: of A = U diag(mask) V^H, the first factor is the identity."""
        return x

    def U_adjoint(self, x: Tensor, **further: Any) -> Tensor:
        """Return `x`, see `U`."""
        return x

    def V(self, x: Tensor, **further: Any) -> Tensor:
        """Transform k-space to images, see `U`."""
        return self.kspace_to_im(x)

    def V_adjoint(self, x: Tensor) -> Tensor:
        """Transform images to k-space, see `U`."""
        return self.im_to_kspace(x)

    def prox_l2(self, z: Tensor | float | None, y: Tensor, gamma: Any, **solver: Any) -> Tensor:
        """Return the x that minimises gamma/2 |A x - y|^2 + 1/2 |x - z|^2, in closed form.

        Args:
            z: Images [B, 2, H, W]; a number for such an image, None for zero.
            y: K-space.
            gamma: A number, a tensor of one, or one for each image.
            solver: Not used.
        """
        gamma = _for_each_image(gamma)
        b = self.A_adjoint(y)
        if z is not None:
            b = b + z / gamma
        return self.V(self.V_adjoint(b) / (self.mask.square() + 1 / gamma))


class CoilPhysics(_Measurement):
    """The physics of several coils: y_c = M F (s_c x). See `_Measurement`.

    Args:
        mask: See there.
        coil_maps: Returns the coils' sensitivities [B, coils, H, W], complex; asked once, if at
            all, for a network may bring maps of its own.
    """

    _offers = "For several coils it has A, A_adjoint, A_vjp, prox_l2, mask, coil_maps and update"

    def __init__(self, mask: Tensor, coil_maps: Callable[[], Tensor]) -> None:
        super().__init__(mask)
        self._estimated = coil_maps
        self._maps: Tensor | None = None

    @property
    def coil_maps(self) -> Tensor:
        """Sensitivities [B, coils, H, W], complex."""
        if self._maps is None:
            self._maps = self._estimated()
        return self._maps

    @staticmethod
    def check_coil_maps(coil_maps: Tensor, three_d: bool = False) -> Tensor:
        """Return maps [H, W], [coils, H, W] or [B, coils, H, W] as the last of these."""
        while coil_maps.dim() < 4:
            coil_maps = coil_maps.unsqueeze(0)
        if not coil_maps.is_complex():
            raise ModelError(
                f"forward gives the physics coil_maps in {coil_maps.dtype}.",
                "Give complex numbers, e.g. by torch.view_as_complex.",
            )
        return coil_maps

    def update_parameters(
        self, mask: Tensor | None = None, coil_maps: Tensor | None = None, **further: Any
    ) -> None:
        """See `update`."""
        super().update_parameters(mask=mask)
        if coil_maps is not None:
            self._maps = self.check_coil_maps(coil_maps)

    def A(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        coil_maps: Tensor | None = None,
        **further: Any,
    ) -> Tensor:
        """Measure images [B, 2, H, W]: k-space [B, 2, coils, H, W]."""
        self.update_parameters(mask=mask, coil_maps=coil_maps)
        coils = self.fft(self.coil_maps * to_complex(x)[:, None])
        return self.mask[:, :, None] * to_pairs(coils)

    def A_adjoint(
        self,
        y: Tensor,
        mask: Tensor | None = None,
        coil_maps: Tensor | None = None,
        rss: bool = False,
        crop: bool = False,
        **further: Any,
    ) -> Tensor:
        """Combine the coils' zero-filled images: [B, 2, H, W].

        Args:
            y: K-space [B, 2, coils, H, W].
            mask: Is kept from then on, as deepinv does.
            coil_maps: Likewise.
            rss: Return the root sum of squares [B, 1, H, W] instead.
            crop: Changes nothing: the image is of the mask's size.
            further: Not used.
        """
        self.update_parameters(mask=mask, coil_maps=coil_maps)
        images = self.ifft(to_complex(self.mask[:, :, None] * y))
        if rss:
            return self.rss(to_pairs(images))
        return to_pairs((self.coil_maps.conj() * images).sum(1))

    def prox_l2(
        self,
        z: Tensor | float | None,
        y: Tensor,
        gamma: Any,
        solver: str = "CG",
        max_iter: int | None = None,
        **further: Any,
    ) -> Tensor:
        """Return the x that minimises gamma/2 |A x - y|^2 + 1/2 |x - z|^2.

        It is solved by conjugate gradients from `z` on. Where the squares of sensitivities sum to 1
        at most, as of those that are given here, the error is at most 2 r^steps of that of `z`,
        with r = (s - 1) / (s + 1) and s the root of 1 + gamma: 5e-8 after ten steps for a gamma
        of 1, 4e-3 for one of 10.

        Args:
            z: Images [B, 2, H, W]; a number for such an image, None for zero.
            y: K-space.
            gamma: A number, a tensor of one, or one for each image.
            solver: Not used.
            max_iter: Steps [10].
            further: Not used.
        """
        gamma = _for_each_image(gamma)
        zero_filled = self.A_adjoint(y)
        start = torch.zeros_like(zero_filled) if z is None else z
        if not isinstance(start, Tensor):
            start = torch.full_like(zero_filled, start)
        return _solved(
            lambda x: self.A_adjoint_A(x) + x / gamma,
            zero_filled + start / gamma,
            start,
            SOLVER_STEPS if max_iter is None else max_iter,
        )


def _for_each_image(gamma: Any) -> Any:
    """Return a weight as a number, or as a tensor that suits images [B, C, H, W]."""
    if isinstance(gamma, Tensor) and gamma.dim() < 4:
        return gamma[(..., *(None,) * (4 - gamma.dim()))]
    return gamma


def _solved(operator: Callable[[Tensor], Tensor], b: Tensor, x: Tensor, steps: int) -> Tensor:
    """Solve operator(x) = b by conjugate gradients, image by image, in a fixed number of steps.

    Args:
        operator: Self-adjoint and positive.
        b: [B, 2, H, W].
        x: Where it starts.
        steps: Of the solver.
    """

    def dot(one: Tensor, other: Tensor) -> Tensor:
        return (one * other).sum((1, 2, 3), keepdim=True)

    rest = b - operator(x)
    direction, squares = rest, dot(rest, rest)
    for _ in range(steps):
        turned = operator(direction)
        alpha = squares / (dot(direction, turned) + _TINY)
        x, rest = x + alpha * direction, rest - alpha * turned
        after = dot(rest, rest)
        direction = rest + after / (squares + _TINY) * direction
        squares = after
    return x
