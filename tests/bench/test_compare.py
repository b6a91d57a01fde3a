"""Comparing two reports: regressions are flagged, noise is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from kdmri_bench.commands.bench import bench as command
from kdmri_bench.measuring.latency import summarise
from kdmri_bench.reporting.report import write_report
from kdmri_bench.results.compare import compare
from kdmri_bench.results.schema import Report, Status
from kdmri_edge.errors import BenchError
from tests.bench.reports import report, row

TEACHER = row("teacher", "PyTorch", 40.0, 100.0)
STUDENT = row("student", "OpenVINO", 39.5, 8.0)
BEFORE = report(TEACHER, STUDENT)


def worse(after: Report) -> list[str]:
    return [f"{c.key} {c.measure}" for c in compare(BEFORE, after)[0] if c.worse]


def test_a_report_is_no_worse_than_itself() -> None:
    assert compare(BEFORE, BEFORE) == ([], [])


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (row("student", "OpenVINO", 39.5, 8.05), []),  # within the intervals
        (row("student", "OpenVINO", 39.5, 9.0), ["latency", "end to end"]),
        (row("student", "OpenVINO", 39.5, 8.0, mib=103), []),
        (row("student", "OpenVINO", 39.5, 8.0, mib=130), ["memory"]),
        (row("student", "OpenVINO", 39.5, 8.0, size_bytes=500 << 10), ["size"]),
        (row("student", "OpenVINO", 39.4, 8.0), ["psnr", "ssim", "nmse", "hfn"]),
        (row("student", "OpenVINO", 39.4999, 8.0), []),  # another order of sums
        (replace(STUDENT, status=Status.FAILED, reason="SIGSEGV"), ["status"]),
    ],
)  # fmt: skip
def test_what_counts_as_a_regression(changed: object, expected: list[str]) -> None:
    assert worse(report(TEACHER, changed)) == [f"student/OpenVINO {name}" for name in expected]  # type: ignore[arg-type]


def test_improvements_are_told_apart() -> None:
    changes, _ = compare(BEFORE, report(TEACHER, row("student", "OpenVINO", 39.6, 6.0)))
    assert {change.measure for change in changes} >= {"latency", "psnr"}
    assert not any(change.worse for change in changes)


def test_a_drift_in_volumes_that_is_not_common_to_all_is_noise() -> None:
    shifted = tuple(
        {**values, "psnr": values["psnr"] + shift}
        for values, shift in zip(STUDENT.volumes, (0.3, -0.2), strict=True)
    )
    assert worse(report(TEACHER, replace(STUDENT, volumes=shifted))) == []


def test_other_machines_are_compared_in_quality_alone() -> None:
    origin = dict(BEFORE.provenance)
    origin["machine"] = {**origin["machine"], "cpu": "another"}
    slow = report(TEACHER, row("student", "OpenVINO", 39.0, 80.0), provenance=origin)
    changes, remarks = compare(BEFORE, slow)
    assert "another" in remarks[0]
    assert {change.measure for change in changes} == {"psnr", "ssim", "nmse", "hfn"}


def _shaken(seed: int) -> Report:
    """The same machine and networks once more, its rounds scattered by 3 %."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(8):
        rounds = [
            [1e-2 * level * random.normal(1, 0.002) for _ in range(30)]
            for level in np.exp(0.03 * random.standard_normal(3))
        ]
        changed = {"latency": summarise(rounds), "end_to_end": None}
        rows.append(row("student", "OpenVINO", 39.5, 8.0, key=f"student/{number}", **changed))
    return report(TEACHER, *rows)


@pytest.mark.nightly
def test_the_same_machine_measured_twice_has_no_regressions() -> None:
    pairs = [(_shaken(2 * n), _shaken(2 * n + 1)) for n in range(20)]
    flagged = sum(len(compare(a, b)[0]) for a, b in pairs)
    assert flagged <= 0.1 * 20 * 8  # of 160 rows, at 95 %


def test_a_regression_above_the_scatter_is_flagged_all_the_same() -> None:
    before, after = _shaken(1), _shaken(2)
    slow = tuple(
        replace(r, latency={**r.latency, "p50_ms": 1.3 * r.latency["p50_ms"]})
        if r.role == "student" and r.latency else r
        for r in after.rows
    )  # fmt: skip
    assert len(compare(before, replace(after, rows=slow))[0]) == 8


def test_without_two_rounds_nothing_is_known_of_the_scatter() -> None:
    once = {"latency": summarise([[0.008] * 9]), "end_to_end": None}
    again = {"latency": summarise([[0.012] * 9]), "end_to_end": None}
    first = report(TEACHER, row("student", "OpenVINO", 39.5, 8.0, **once))
    second = report(TEACHER, row("student", "OpenVINO", 39.5, 12.0, **again))
    assert compare(first, second)[0] == []


def test_reports_on_other_volumes_say_that_quality_was_not_compared(tmp_path: Path) -> None:
    others = tuple(replace(volume, slices=4) for volume in BEFORE.volumes)
    poor = replace(report(TEACHER, row("student", "OpenVINO", 20.0, 8.0)), volumes=others)
    changes, remarks = compare(BEFORE, poor)
    assert changes == []
    assert "no volume in common" in remarks[0]
    half = replace(BEFORE, volumes=(BEFORE.volumes[0], others[1]))
    assert "on 1 volume(s) alone, of 2 and 2" in compare(BEFORE, half)[1][0]
    a, b = (write_report(r, tmp_path / n)["json"] for r, n in ((BEFORE, "a"), (poor, "b")))
    assert "No regression in what could be compared." in invoke("--compare", a, b).stdout


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_the_command_exits_with_1_for_regressions(tmp_path: Path) -> None:
    a = write_report(BEFORE, tmp_path / "a")["json"]
    b = write_report(report(TEACHER, row("student", "OpenVINO", 39.5, 9.0)), tmp_path / "b")["json"]
    assert invoke("--compare", a, a).exit_code == 0
    result = invoke("--compare", a, b)
    assert result.exit_code == 1
    assert "worse   student/OpenVINO  latency: p50 8.00 ms" in result.stdout
    value = json.loads(invoke("--compare", a, b, "--json").stdout)
    assert [item["measure"] for item in value["regressions"]] == ["latency", "end to end"]
    assert invoke("--compare", b, a).exit_code == 0


def test_a_missing_report_is_one_sentence(tmp_path: Path) -> None:
    result = invoke("--compare", tmp_path / "a.json", tmp_path / "b.json")
    assert isinstance(result.exception, BenchError)
