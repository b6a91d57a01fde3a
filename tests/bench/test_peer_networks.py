"""Networks of other projects are exported and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from experiments.peer_networks import PEERS, Peer, joined, measure
from experiments.peer_tables import markdown
from kdmri_edge.errors import BenchError


class Cascade(nn.Module):
    """Zero-fills what a mask leaves out, looks at the mask's values, and combines coils."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, masked_kspace: Tensor, mask: Tensor) -> Tensor:
        first = int(mask.flatten().to(torch.int8).argmax())
        kspace = torch.where(mask, masked_kspace, masked_kspace[..., first : first + 1, :] * 0)
        image = torch.fft.ifft2(torch.fft.ifftshift(torch.view_as_complex(kspace), dim=(-2, -1)))
        combined = image.abs().square().sum(1, keepdim=True).sqrt()
        return combined + 0.1 * self.conv(combined)


def _absent() -> Any:
    raise ModuleNotFoundError("No module named 'peer'")


def test_a_network_is_a_row_and_an_absent_one_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("KDMRI_EDGE_CODE", "")
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
        ways=["ONNX Runtime"],
    )
    row, absent, unknown = report["rows"]
    way = row["ways"]["ONNX Runtime"]
    assert row["reason"] is None
    assert way["reason"] is None
    assert way["difference"] < 1e-4
    assert way["dft_nodes"] == 0
    assert way["transforms"] == 1
    assert 0 < way["convolutions"] < 1
    assert row["milliseconds"].keys() == {"PyTorch", "ONNX Runtime"}
    assert absent["reason"] == "No module named 'peer'"
    assert "no-such-package" in unknown["reason"]
    table = markdown(report)
    assert "| Cascade (torch" in table
    assert "No module named 'peer'" in table


def test_what_is_gained_and_what_could_be_at_most() -> None:
    def row(name: str, nodes: int, **ours: Any) -> dict[str, Any]:
        ways = {"torch.onnx, dynamo": {"reason": None, "dft_nodes": nodes}, "ONNX Runtime": ours}
        ms = {"torch.onnx, dynamo": 900.0, "ONNX Runtime": 300.0, "PyTorch": 500.0}
        return {
            "network": name, "package": "p", "version": "1", "parameters": 1, "reason": None,
            "milliseconds": {key: {"median": value} for key, value in ms.items()},
            "ways": {key: {"reason": None, **value} for key, value in ways.items()},
        }  # fmt: skip

    rows = [row("Known", 2, convolutions=0.5), row("Old", 2), row("Plain", 0, convolutions=0.9)]
    table = markdown({"matrix": 32, "coils": 2, "threads": 1, "rows": rows})
    assert "| Known | 3.00x | 50 % | 6.00x |" in table
    assert "| Old | 3.00x |  |  |" in table
    assert "| Plain | 3.00x" not in table


def test_parts_of_a_report_are_joined_in_the_order_of_the_networks() -> None:
    settings = {"schema": 2, "matrix": 32, "coils": 2, "threads": 1, "acceleration": 4.0}
    first, second = (peer.name for peer in PEERS[:2])
    old, new = (
        {"git": {"revision": one * 40, "dirty": False}, "time_utc": f"2026-11-27T1{one}:00:00"}
        for one in "12"
    )

    def row(name: str, number: int, *ways: str) -> dict[str, Any]:
        return {
            "network": name, "n": number, "reason": None, "version": "1",
            "ways": {way: {"n": number} for way in ways},
            "milliseconds": dict.fromkeys(ways, number),
        }  # fmt: skip

    rows = [row(second, 1, "a", "b"), row(first, 1)]
    earlier = {**settings, "rows": rows, "provenance": old}
    later = {**settings, "rows": [row(second, 2, "a")], "provenance": new}
    report = joined(later, earlier)
    assert [(row["network"], row["n"]) for row in report["rows"]] == [(first, 1), (second, 2)]
    revisions = [row["measured"]["revision"] for row in report["rows"]]
    assert revisions == ["1" * 12, "2" * 12]
    again_measured = report["rows"][1]  # what was not measured again says when it was
    assert again_measured["milliseconds"] == {"a": 2, "b": 1}
    assert "measured" not in again_measured["ways"]["a"]
    assert again_measured["ways"]["b"]["measured"]["revision"] == "1" * 12
    again = joined({**settings, "rows": [], "provenance": new}, report)
    assert again["rows"] == report["rows"]
    with pytest.raises(BenchError, match="matrix"):
        joined({**settings, "matrix": 64, "rows": [], "provenance": new}, earlier)
