"""The recorded examination: five protocols, one server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from experiments import protocols

RECORDED = Path(__file__).resolve().parents[2] / "bench" / "results" / "protocols" / "report.json"


def test_the_recorded_examination_is_right() -> None:
    """Networks' images where a bundle fits, nearer to the truth; flagged ones where none does."""
    report = json.loads(RECORDED.read_text(encoding="utf-8"))
    rows = {row["protocol"]: row for row in report["rows"]}
    assert len(rows) == 5
    assert len({tuple(row["matrix"]) for row in rows.values()}) == 2
    for name, row in rows.items():
        assert row["from_memory"] < 1e-3
        if name == "no calibration":
            assert (row["served"], row["flagged"]) == ("none", row["images"])
        else:
            assert row["flagged"] == 0
            assert row["error"] <= row["zero_filled_error"] + 1e-4  # both none, fully sampled
    assert rows["separate reference lines"]["reference_lines"] == 32
    assert (
        rows["separate reference lines"]["error"]
        < rows["separate reference lines"]["zero_filled_error"]
    )
    assert report["client"] != "ours"  # nobody's who wrote the server


@pytest.mark.nightly
def test_the_examination_can_be_repeated(tmp_path: Path) -> None:
    done = CliRunner().invoke(protocols.main, ["--out", str(tmp_path / "protocols")])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "protocols" / "report.json").read_text(encoding="utf-8"))
    served = [row["served"] for row in report["rows"]]
    assert served == ["brain-4x", "coils", "coils", "coils", "none"]
    assert protocols.markdown(report) in done.output
