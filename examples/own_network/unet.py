"""A U-Net of two levels, as many people have one: nothing of it knows kdmri-edge."""

import torch
from torch import Tensor, nn


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions, each normalised and rectified."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
            nn.InstanceNorm2d(outputs, affine=True),
            nn.LeakyReLU(0.2),
        ]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Adds to a zero-filled magnitude image [B, 1, H, W] what is missing in it; H and W even."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = block(1, width)
        self.pool = nn.MaxPool2d(2)
        self.deep = block(width, 2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.merge = block(2 * width, width)
        self.last = nn.Conv2d(width, 1, 1)
        nn.init.zeros_(self.last.weight)  # training begins at the zero-filled image

    def forward(self, image: Tensor) -> Tensor:
        fine = self.first(image)
        coarse = self.up(self.deep(self.pool(fine)))
        residue: Tensor = self.last(self.merge(torch.cat((fine, coarse), dim=1)))
        return image + residue
