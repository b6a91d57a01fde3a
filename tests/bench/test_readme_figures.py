"""README's tables are what the recorded reports say, and the schema's page names every key."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from kdmri_bench.reporting.page.charts import pareto_svg
from kdmri_bench.reporting.report import read_report, write_report
from kdmri_bench.results.schema import SCHEMA_VERSION, Network, Report, Row
from kdmri_edge.errors import BenchError
from maintainer.readme import draw_pictures, generate
from tests.bench.reports import report, row

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path("bench/results")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_generated_from_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert generate(README, RESULTS) == README
    for picture, drawing in draw_pictures(README, RESULTS).items():
        assert picture.read_text(encoding="utf-8") == drawing + "\n"


def _reports() -> list[Path]:
    found = sorted((ROOT / RESULTS).glob("*/report.json"))
    return [path for path in found if '"rows"' in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", _reports(), ids=lambda path: path.parent.name)
def test_recorded_reports_of_every_version_are_read(path: Path) -> None:
    try:
        found = read_report(path)
    except BenchError as error:
        if '"matrix"' in path.read_text(encoding="utf-8") and "gap_closed" in path.read_text():
            raise
        pytest.skip(f"no report of `bench`: {error}")
    assert found.schema_version <= SCHEMA_VERSION


def test_blocks_for_details_recommendation_and_picture(tmp_path: Path) -> None:
    made = report(
        row("teacher", "PyTorch", 40.0, 100.0), row("student", "OpenVINO", 39.95, 8.0),
        recommended="student/OpenVINO", limits={"latency_ms": 50.0},
    )  # fmt: skip
    write_report(made, tmp_path / "brain")
    kinds = ("details", "recommended", "pareto", "peers")
    text = "".join(f"<!-- begin:{k}:brain -->\n<!-- end:{k}:brain -->\n" for k in kinds)
    found = generate(text, tmp_path)
    assert "| **student, OpenVINO f32** | 0.050 |" in found
    assert "Recommended: student, OpenVINO f32 (`student/OpenVINO`)" in found
    assert "brain/pareto.svg)" in found
    assert draw_pictures(text, tmp_path) == {
        tmp_path / "brain" / "pareto.svg": pareto_svg(made, standalone=True)
    }


def test_the_schemas_page_names_every_key() -> None:
    page = (ROOT / "bench" / "report-schema.md").read_text(encoding="utf-8")
    assert f"version {SCHEMA_VERSION}" in page
    for kind in (Report, Row, Network):
        for field in fields(kind):
            assert f"`{field.name}`" in page, field.name
