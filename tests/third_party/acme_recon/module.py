"""Acme's network: a module of PyTorch, not derived from anything of kdmri-edge."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from acme_recon.network import ResidualSpec
from kdmri_edge.physics import data_consistency


class Residual(nn.Module):
    def __init__(self, spec: ResidualSpec) -> None:
        super().__init__()
        width = spec.width
        self.first = nn.Conv2d(spec.channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(spec.blocks)
        )
        self.last = nn.Conv2d(width, spec.channels, 3, padding=1)

    def forward(self, x_u: Tensor, operator: Tensor) -> Tensor:
        x = torch.relu(self.first(x_u))
        for block in self.blocks:
            x = x + block(x)
        # the library sets `form` to that of the operator
        made: Tensor = data_consistency(x_u + self.last(x), x_u, operator, 1.0, str(self.form))
        return made
