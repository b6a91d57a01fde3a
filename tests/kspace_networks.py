"""Small networks of masked k-space, as fastMRI and MONAI write theirs: a user's own file."""

import torch
from torch import nn


def fft2c(x, inverse=False):
    """Transform [..., H, W, 2], zero frequency and origin in the middle."""
    x = torch.fft.ifftshift(x, dim=(-3, -2))
    transform = torch.fft.ifftn if inverse else torch.fft.fftn
    x = torch.view_as_real(transform(torch.view_as_complex(x), dim=(-2, -1), norm="ortho"))
    return torch.fft.fftshift(x, dim=(-3, -2))


def multiply(a, b):
    real = a[..., 0] * b[..., 0] - a[..., 1] * b[..., 1]
    return torch.stack((real, a[..., 0] * b[..., 1] + a[..., 1] * b[..., 0]), -1)


def conjugate(x):
    return torch.stack((x[..., 0], -x[..., 1]), -1)


class Denoiser(nn.Module):
    """Two convolutions of images [B, 2, H, W]; each image is normalised by itself, or by none."""

    def __init__(self, width, norm):
        super().__init__()
        self.norm = norm
        self.layers = nn.Sequential(
            nn.Conv2d(2, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 2, 3, padding=1)
        )

    def forward(self, x):
        x = x.permute(0, 3, 1, 2)
        if self.norm:
            mean, std = x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), keepdim=True)
            x = self.layers((x - mean) / std) * std + mean
        else:
            x = self.layers(x)
        return x.permute(0, 2, 3, 1).contiguous()


class Cascade(nn.Module):
    """Soft data consistency of k-space, and a convolution of the coils' common image."""

    def __init__(self, width, norm):
        super().__init__()
        self.model = Denoiser(width, norm)
        self.dc_weight = nn.Parameter(torch.ones(1))

    def forward(self, kspace, measured, mask, maps):
        zero = torch.zeros(1, 1, 1, 1, 1).to(kspace)
        gap = torch.where(mask, kspace - measured, zero) * self.dc_weight
        image = multiply(fft2c(kspace, inverse=True), conjugate(maps)).sum(1)
        further = fft2c(multiply(0.1 * self.model(image)[:, None], maps))
        return kspace - gap - further


class _Unrolled(nn.Module):
    def __init__(self, width=4, cascades=2, norm=True):
        super().__init__()
        self.maps = Denoiser(width, norm)
        self.cascades = nn.ModuleList(Cascade(width, norm) for _ in range(cascades))

    def _sensitivities(self, centre):
        images = fft2c(centre, inverse=True)
        batch, coils = images.shape[:2]
        flat = images.reshape(batch * coils, *images.shape[2:])
        maps = (flat + 0.1 * self.maps(flat)).view(images.shape)
        return maps / (maps.square().sum((1, -1), keepdim=True).sqrt() + 1e-6)

    def _image(self, kspace, masked_kspace, mask, maps):
        for cascade in self.cascades:
            kspace = cascade(kspace, masked_kspace, mask, maps)
        return fft2c(kspace, inverse=True).square().sum(-1).sum(1).sqrt()


class FastMRI(_Unrolled):
    """Finds the lines around zero frequency by the mask's values."""

    def forward(self, masked_kspace, mask, num_low_frequencies=None):
        lines = mask[:, 0, 0, :, 0].to(torch.int8)
        middle = lines.shape[1] // 2
        left = torch.argmin(lines[:, :middle].flip(1), dim=1)
        right = torch.argmin(lines[:, middle:], dim=1)
        count = torch.max(2 * torch.min(left, right), torch.ones_like(left))
        first = int((lines.shape[1] - count + 1) // 2)
        centre = torch.zeros_like(masked_kspace)
        last = first + int(count)
        centre[..., first:last, :] = masked_kspace[..., first:last, :]
        maps = self._sensitivities(centre)
        return self._image(masked_kspace.clone(), masked_kspace, mask, maps)


class Counted(_Unrolled):
    """Is told how many lines lie around zero frequency."""

    def forward(self, masked_kspace, mask, num_low_frequencies):
        size = mask.shape[-2]
        first = (size - num_low_frequencies + 1) // 2
        centre = torch.zeros_like(masked_kspace)
        part = slice(first, first + num_low_frequencies)
        centre[..., part, :] = masked_kspace[..., part, :]
        maps = self._sensitivities(centre)
        return self._image(masked_kspace.clone(), masked_kspace, mask, maps)


class MONAI(_Unrolled):
    """Walks over the mask from its middle."""

    def forward(self, masked_kspace, mask):
        left = right = mask.shape[-2] // 2
        while mask[..., right, :]:
            right += 1
        while mask[..., left, :]:
            left -= 1
        centre = torch.zeros_like(masked_kspace)
        centre[..., left + 1 : right, :] = masked_kspace[..., left + 1 : right, :]
        maps = self._sensitivities(centre)
        return self._image(masked_kspace.clone(), masked_kspace, mask, maps)
