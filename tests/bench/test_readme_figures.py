"""Pages of the documentation are what reports say, and the schema's page names every key."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from kdmri_bench.reporting.page.charts import pareto_svg
from kdmri_bench.reporting.report import read_report, write_report
from kdmri_bench.results.schema import SCHEMA_VERSION, Network, Report, Row
from kdmri_edge.errors import BenchError
from maintainer import report_schema
from maintainer.readme import draw_pictures, generate, pages, small
from tests.bench.reports import report, row

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path("bench/results")


def test_pages_are_generated_from_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    stale = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if generate(text, RESULTS, page.parent) != text:
            stale.append(str(page))
        for picture, drawing in draw_pictures(text, RESULTS).items():
            if picture.read_text(encoding="utf-8") != drawing + "\n":
                stale.append(str(picture))
    assert not stale, "run python -m maintainer.readme"


def test_every_recorded_report_is_on_a_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in pages(ROOT))
    recorded = {path.parent.name for path in (ROOT / RESULTS).glob("*/report.json")}
    assert not {stem for stem in recorded if f":{stem} -->" not in text}
    pictures = {path.relative_to(ROOT).as_posix() for path in (ROOT / RESULTS).rglob("*.png")}
    assert not {path for path in pictures if path not in text}


def test_recorded_reports_of_every_version_are_read() -> None:
    files = [
        path
        for path in (ROOT / RESULTS).glob("*/report.json")
        if '"schema_version"' in path.read_text(encoding="utf-8")
    ]
    versions = {read_report(path).schema_version for path in files}
    assert versions <= set(range(1, SCHEMA_VERSION + 1))
    assert versions


def test_blocks_for_details_recommendation_and_picture(tmp_path: Path) -> None:
    made = report(
        row("teacher", "PyTorch", 40.0, 100.0), row("student", "OpenVINO", 39.95, 8.0),
        recommended="student/OpenVINO", limits={"latency_ms": 50.0},
    )  # fmt: skip
    write_report(made, tmp_path / "brain")
    kinds = ("details", "recommended", "pareto", "peers")
    text = "".join(f"<!-- begin:{k}:brain -->\n<!-- end:{k}:brain -->\n" for k in kinds)
    found = generate(text, tmp_path)
    assert "| **student, OpenVINO fp32** | 0.050 |" in found
    assert "Recommended: student, OpenVINO fp32 (`student/OpenVINO`)" in found
    assert "brain/pareto.svg)" in found
    assert draw_pictures(text, tmp_path) == {
        tmp_path / "brain" / "pareto.svg": pareto_svg(made, standalone=True)
    }
    page = tmp_path / "docs" / "results"
    assert "](../../brain/pareto.svg)" in generate(text, tmp_path, page)


def test_the_small_table_needs_all_of_its_rows() -> None:
    workstation = read_report(ROOT / RESULTS / "workstation" / "report.json")
    lines = [line for line in small(workstation).splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + 4
    measured = workstation.row("distilled student/openvino-int8")
    assert measured.latency is not None
    assert f"{measured.latency['p50_ms']:.1f}" in lines[-1]
    with pytest.raises(BenchError, match="lacks teacher OpenVINO f32"):
        small(report(row("teacher", "PyTorch", 40.0, 100.0)))


def test_the_schemas_page_is_made_from_what_declares_it() -> None:
    """`python -m maintainer.report_schema` writes it anew."""
    assert report_schema.PAGE.read_text(encoding="utf-8") == report_schema.page()
    for kind in (Report, Row, Network):
        for field in fields(kind):
            assert f"| `{field.name}` |" in report_schema.page(), field.name
