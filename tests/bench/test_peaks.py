"""The machine's own limits: only what it has arithmetic for, and a reason for the rest."""

from __future__ import annotations

import time

import pytest

from kdmri_bench.measuring import peaks
from kdmri_bench.measuring.peaks import PROBES, best, measure_peaks
from kdmri_bench.reporting.page.build import build
from tests.bench.reports import report, row


def test_limits_are_rates_of_what_is_measured() -> None:
    found = measure_peaks(["ONNX Runtime"], threads=1, seconds=0.01, side=64)
    assert set(found) == {"side", "ONNX Runtime", "memory"}
    assert set(found["ONNX Runtime"]) == {"f32", "int8"}
    assert min(found["ONNX Runtime"].values()) > 0
    assert 0.1 < found["memory"]["gb_per_s"] < 10_000


@pytest.mark.parametrize("has", [False, True])
def test_a_cpu_without_bf16_has_no_limit_of_it(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has)
    assert ("bf16" in PROBES["PyTorch"][1](1, 8)) is has


def test_the_shortest_of_the_products_counts() -> None:
    pauses = iter([0.05, 0.03, *[0.001] * 1000])
    assert 0.001 <= best(lambda: time.sleep(next(pauses)), 0.05) < 0.02


def test_a_probe_that_hangs_or_dies_costs_its_own_limits_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = """
import os, sys, time
name = sys.argv[1]
time.sleep(60 if name == "PyTorch" else 0)
os.abort() if name == "OpenVINO" else print('{"f32": 2.0}')
"""
    monkeypatch.setattr(peaks, "_code", lambda: code)
    found = measure_peaks(
        ["PyTorch", "OpenVINO", "ONNX Runtime"], threads=1, seconds=0.0, patience_s=2.0
    )
    assert found["PyTorch"] == {"reason": "no result after 2 s; the process was ended"}
    assert "status" in found["OpenVINO"]["reason"]
    assert found["ONNX Runtime"] == {"f32": 2.0}
    page = build(report(row("teacher", "PyTorch", 40.0, 100.0), peaks=found))
    assert "not measured: no result after 2 s" in page
