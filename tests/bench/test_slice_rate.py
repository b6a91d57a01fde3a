"""Slices per second, now and before: what is recorded, and that it can be repeated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import slice_rate
from kdmri_edge.errors import BenchError

RECORDED = Path(__file__).resolve().parents[2] / "bench" / "results" / "slice-rate" / "report.json"


def test_the_recorded_images_are_equal_and_come_faster() -> None:
    report = json.loads(RECORDED.read_text(encoding="utf-8"))
    assert (report["matrix"], report["coils"], report["threads"]) == (256, 16, 2)
    sense, other = report["rows"]
    assert sense["network"] == "dccnn-d3c5-sense@measured-4x"
    assert sense["ratio"]["median"] > 2.5
    assert other["ratio"]["median"] > 1
    assert max(sense["apart"], other["apart"]) <= slice_rate.CLOSE


@pytest.mark.nightly
def test_a_revision_compared_with_itself_is_as_fast_and_equal() -> None:
    report = slice_rate.measure(None, matrix=104, coils=5, slices=2, rounds=1, threads=1)
    assert [row["apart"] for row in report["rows"]] == [0, 0]
    assert all(row["after"]["slices_per_s"] > 0 for row in report["rows"])
    assert "2 slices of 104 x 104 with 5 coils" in slice_rate.markdown(report)


def test_a_revision_that_is_not_there_is_named() -> None:
    with pytest.raises(BenchError, match="no revision 'nowhere'"):
        slice_rate.measure("nowhere")
