"""How fast the student is beside what one would run without this project."""

from __future__ import annotations

import pytest

from experiments.ratios import markdown_student
from kdmri_bench.results.schema import PLAIN_EXPORT
from kdmri_edge.errors import BenchError
from tests.bench.reports import report, row

TEACHER = row("teacher", "ONNX Runtime", 40.0, 120.0, variant=PLAIN_EXPORT)
STUDENT = (
    row("student", "OpenVINO", 39.0, 20.0),
    row("student", "OpenVINO", 38.5, 6.0, key="student/openvino-int8", precision="int8"),
    row("student", "ONNX Runtime", 39.0, 24.0, variant=PLAIN_EXPORT, key="student/plain"),
)


def test_each_row_stands_beside_the_teachers_plain_export_and_itself_in_f32() -> None:
    lines = markdown_student(report(TEACHER, *STUDENT)).splitlines()
    assert "(120.0 ms)" in lines[0]
    whole, integers = (line for line in lines if line.startswith("| OpenVINO"))
    assert "**6.0x** (6.00, 6.00)" in whole
    assert "**20.0x**" in integers
    assert "**3.3x**" in integers
    assert "38.50" in integers
    assert not any(line.startswith("| ONNX Runtime") for line in lines)  # a baseline is no student


def test_without_that_row_there_is_no_ratio() -> None:
    with pytest.raises(BenchError, match="plain export of a teacher"):
        markdown_student(report(*STUDENT))
