"""Networks of other projects are exported and compared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from experiments.peer_networks import Peer, markdown, measure


class Cascade(nn.Module):
    """Zero-fills what a mask leaves out, looks at the mask's values, and combines coils."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, kspace: Tensor, mask: Tensor) -> Tensor:
        first = int(mask.flatten().to(torch.int8).argmax())
        kspace = torch.where(mask, kspace, kspace[..., first : first + 1, :] * 0)
        image = torch.fft.ifft2(
            torch.fft.ifftshift(torch.view_as_complex(1e3 * kspace), dim=(-2, -1))
        )
        combined = image.abs().square().sum(1, keepdim=True).sqrt()
        return combined + self.conv(combined)


def _absent() -> Any:
    raise ModuleNotFoundError("No module named 'peer'")


def test_a_network_is_a_row_and_an_absent_one_a_reason() -> None:
    report = measure(
        [
            Peer(name="Cascade", package="torch", make=Cascade, reads="kspace"),
            Peer(name="Absent", package="torch", make=_absent, reads="kspace"),
            Peer(name="Unknown", package="no-such-package", make=Cascade, reads="kspace"),
        ],
        matrix=32,
        coils=2,
        samples=1,
        others=False,
    )
    row, absent, unknown = report["rows"]
    way = row["ways"]["without complex numbers"]
    assert row["reason"] is None
    assert way["reason"] is None
    assert way["difference"] < 1e-4
    assert way["dft_nodes"] == 0
    assert row["transforms"] == 1
    assert row["milliseconds"].keys() == {"PyTorch", "without complex numbers"}
    assert absent["reason"] == "No module named 'peer'"
    assert "no-such-package" in unknown["reason"]
    table = markdown(report)
    assert "| Cascade (torch" in table
    assert "No module named 'peer'" in table
