"""Networks written as deepinv's reconstructors are, forward(y, physics), without deepinv."""

import torch
from torch import nn


class Denoiser(nn.Sequential):
    def __init__(self, width):
        super().__init__(
            nn.Conv2d(2, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 2, 3, padding=1)
        )

    def forward(self, x, sigma=None):
        return x + 0.1 * super().forward(x)


class VarNet(nn.Module):
    """Gradient steps, each with the mask that the physics has at that time."""

    def __init__(self, width=4, cascades=2):
        super().__init__()
        self.cascades = nn.ModuleList(Denoiser(width) for _ in range(cascades))
        self.dc_weight = nn.Parameter(torch.ones(1))

    def forward(self, y, physics, **kwargs):
        x = physics.A_adjoint(y, **kwargs)
        mask = physics.mask
        for cascade in self.cascades:
            gap = mask if mask.dim() == y.dim() else mask.unsqueeze(2).expand_as(y)
            gap = gap * (physics.A(x) - y)
            denoised = cascade(x, getattr(physics.noise_model, "sigma", None))
            x = denoised - self.dc_weight * physics.A_adjoint(gap, coil_maps=None)
            physics.update(mask=mask)
        return x


class MoDL(nn.Module):
    """Half-quadratic splitting, with weights that are called by a word of Python."""

    def __init__(self, width=4, cascades=2, start="A_adjoint"):
        super().__init__()
        self.denoiser = Denoiser(width)
        self.params = nn.ParameterDict(
            {
                "stepsize": nn.ParameterList(nn.Parameter(torch.tensor(1.0)) for _ in range(2)),
                "lambda": nn.ParameterList(nn.Parameter(torch.tensor(0.7)) for _ in range(2)),
            }
        )
        self.start = start

    def forward(self, y, physics, init=None, compute_metrics=False, **kwargs):
        x = getattr(physics, self.start)(y)
        for step, weight in zip(self.params["stepsize"], self.params["lambda"], strict=True):
            u = physics.prox_l2(x, y, step)
            x = u + weight * (self.denoiser(u) - u)
        return x


class EndToEnd(VarNet):
    """Works on the coils' k-space, with sensitivities of its own."""

    def forward(self, y, physics, **kwargs):
        images = physics.ifft(physics.to_torch_complex(y))
        maps = images / (images.abs().square().sum(1, keepdim=True).sqrt() + 1e-3)
        mask, k = physics.mask, y
        ones = torch.ones_like(mask)
        for cascade in self.cascades:
            gap = mask.unsqueeze(2) * (k - y)
            x = physics.A_adjoint(k, mask=ones, coil_maps=maps)
            k = k - self.dc_weight * gap + physics.A(cascade(x) - x, ones, maps)
            physics.update(mask=mask)
        return physics.A_adjoint(k, torch.ones(k.shape[-2:]))


class Asks(VarNet):
    """Asks the physics for something that it may lack."""

    def __init__(self, member="compute_norm", width=2):
        super().__init__(width, 1)
        self.member = member

    def forward(self, y, physics):
        found = physics
        for name in self.member.split("."):
            found = getattr(found, name)
        return super().forward(y, physics)
