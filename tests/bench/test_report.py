"""Reports: round trips, tables and what is derived from the figures."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from experiments.ratios import ratios
from kdmri_bench.measuring.quality import gap_closed, summary
from kdmri_bench.planning.settings import BenchSettings
from kdmri_bench.reporting.report import csv_columns, read_report, write_report
from kdmri_bench.reporting.table import markdown_report, markdown_table, print_table
from kdmri_bench.results.schema import Network, Report, Row, Status, TestVolume
from kdmri_edge.data.formats.registry import FORMATS
from kdmri_edge.errors import BenchError, OutputError
from kdmri_edge.physics.masks import variable_density_lines
from kdmri_edge.runtime.targets import TARGETS
from kdmri_edge.utils.files import check_writable
from kdmri_edge.utils.provenance import provenance
from maintainer import readme
from maintainer.readme import generate


def row(network: str, runtime: str, psnr: float, p50: float | None, **more: object) -> Row:
    volumes = tuple(
        {"name": name, "psnr": psnr + shift, "ssim": 0.9, "nmse": 0.01, "hfn": 0.2}
        for name, shift in (("v1", -1.0), ("v2", 1.0))
    )
    latency = None
    if p50 is not None:
        latency = {"samples": 4, "p50_ms": p50, "p90_ms": 1.2 * p50, "min_ms": 0.9 * p50,
                   "mean_ms": p50, "round_p50_ms": [0.98 * p50, 1.02 * p50]}  # fmt: skip
    return Row(
        key=f"{network}/{runtime}", network=network, role=network, runtime=runtime,
        precision="f32", volumes=volumes, quality=summary(volumes), latency=latency,
        load_s=(0.1, 0.2), memory={"baseline": 30 << 20, "loaded": 80 << 20, "peak": 100 << 20,
                                   "above_baseline": 70 << 20, "source": "x"},
        session={"version": "1", "precision_executed": "f32"}, **more,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture
def report() -> Report:
    mask = variable_density_lines(32, 4, centre_lines=4)
    rows = (
        replace(row("zero-filled", "none", 27.0, None), session=None, memory=None),
        row("teacher", "PyTorch", 39.0, 300.0, speedup=1.0),
        row("student", "ONNX Runtime", 38.5, 30.0, speedup=10.0),
        replace(
            row("student", "ONNX Runtime", 38.5, 90.0, variant="plain export", dft_nodes=10),
            key="student/ONNX Runtime-fft",
            session={"version": "1", "precision_executed": "bf16 in 5/8 layers, f32 in 3/8 layers"},
            difference={"max_range_normalised": 1.5e-6, "psnr_db": 0.0, "ssim": 0.0},
        ),
        row("plain", "PyTorch", 38.0, 200.0, speedup=1.5),
        Row(key="student/openvino-bf16", network="student", role="student", runtime="OpenVINO",
            precision="bf16", status=Status.SKIPPED, reason="This CPU has no bf16."),
    )  # fmt: skip
    return Report(
        provenance=provenance(),
        settings=BenchSettings(samples=4).to_dict(),
        statement="Retrospective data.",
        volumes=tuple(
            TestVolume(name=name, subject=name, contrast=None, sha256=name * 32, slices=3)
            for name in ("v1", "v2")
        ),
        split=None,
        mask=mask.to_dict(),
        matrix=32,
        networks=(
            Network(name="teacher", role="teacher", parameters=141765,
                    macs={"convolutions": 1, "data_consistency": 2}, attribution=None),
        ),
        rows=rows,
        gap_closed={"psnr": 80.0, "ssim": None},
    )  # fmt: skip


def test_json_round_trip(report: Report, tmp_path: Path) -> None:
    files = write_report(report, tmp_path / "out")
    text = files["json"].read_text()
    assert json.loads(text)["schema_version"] == 2
    again = read_report(files["json"])
    assert again.to_dict() == report.to_dict()
    assert again.rows[5].status is Status.SKIPPED
    assert again.row("student/ONNX Runtime") == report.rows[2]


def test_infinities_are_null(report: Report) -> None:
    rows = (replace(report.rows[0], quality={"psnr": {"mean": float("inf"), "std": float("nan")}}),)
    value = replace(report, rows=rows).to_dict()
    json.dumps(value, allow_nan=False)
    assert value["rows"][0]["quality"]["psnr"] == {"mean": None, "std": None}


def test_csv_holds_every_row_and_volume(report: Report, tmp_path: Path) -> None:
    files = write_report(report, tmp_path)
    with files["csv"].open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert tuple(lines[0]) == csv_columns()
    assert len(lines) == 5 * 3 + 1
    student = [line for line in lines if line["key"] == "student/ONNX Runtime"]
    assert [line["volume"] for line in student] == ["mean", "v1", "v2"]
    assert [float(line["psnr_db"]) for line in student] == [38.5, 37.5, 39.5]
    assert float(student[0]["p50_ms"]) == 30.0
    assert lines[-1]["reason"] == "This CPU has no bf16."
    assert lines[-1]["psnr_db"] == ""


def test_csv_holds_no_formula_of_a_file(report: Report, tmp_path: Path) -> None:
    formula = '=HYPERLINK("http://a.example","x")'
    first, *others = report.volumes
    rows = [
        replace(row, volumes=[{**one, "name": formula} if one["name"] == first.name else one
                              for one in row.volumes])
        for row in report.rows
    ]  # fmt: skip
    named = replace(first, name=formula, subject="@SUM(A1)")
    hostile = replace(report, rows=tuple(rows), volumes=(named, *others))
    with write_report(hostile, tmp_path)["csv"].open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    found = [line for line in lines if line["volume"] == f"'{formula}"]
    assert len(found) == 5
    assert {line["subject"] for line in found} == {"'@SUM(A1)"}
    assert not [text for line in lines for text in line.values() if text.startswith(("=", "@"))]
    assert [float(line["psnr_db"]) for line in found if line["key"] == "student/ONNX Runtime"] == [
        37.5
    ]


@pytest.mark.parametrize(
    "damage", [{"schema_version": 99}, {"schema_version": "x"}, {"rows": [{}]}]
)
def test_foreign_reports_are_refused(
    report: Report, tmp_path: Path, damage: dict[str, object]
) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps({**report.to_dict(), **damage}))
    with pytest.raises(BenchError):
        read_report(path)


def test_unknown_keys_of_a_later_minor_version_are_passed_over(report: Report) -> None:
    value = report.to_dict()
    value["new"] = 1
    value["rows"][0]["new"] = 1
    assert Report.from_dict(value).to_dict() == report.to_dict()


def test_a_failure_leaves_the_earlier_report(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(report, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_: object) -> str:
        raise RuntimeError("crash while drawing")

    monkeypatch.setattr("kdmri_bench.reporting.report.build", fail)
    with pytest.raises(RuntimeError):
        write_report(replace(report, statement="second"), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_place_that_cannot_be_written_is_found_out_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        check_writable(tmp_path / "file" / "out")
    check_writable(tmp_path / "new" / "out")
    check_writable(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def shown(report: Report, width: int) -> str:
    stream = io.StringIO()
    print_table(report, Console(file=stream, width=width))
    return stream.getvalue()


def test_the_table_shows_figures_reasons_and_counts(report: Report) -> None:
    text = " ".join(shown(report, 140).split())
    for words in ("38.50 ±1.41", "10.00x", "100 (70)", "[1]", "This CPU has no bf16.",
                  "4 samples", "fp32 3/8", "Retrospective data.",
                  "teacher are 1.00 dB; distillation closes 80 %."):  # fmt: skip
        assert words in text, words
    assert max(map(len, shown(report, 140).splitlines())) <= 140


def test_layers_have_a_table_that_leaves_the_small_ones_together(report: Report) -> None:
    layers = [
        {"layer": f"conv_{n}", "type": "Convolution", "precision": "f32", "kernel": "jit",
         "ms": 1.0 / n, "share": 0.1} for n in range(1, 20)
    ]  # fmt: skip
    rows = list(report.rows)
    rows[2] = replace(rows[2], profile={"queries": 30, "total_ms": 3.5, "layers": layers})
    rows[3] = replace(rows[3], profile={"reason": "It tells nothing."})
    profiled = replace(report, rows=tuple(rows))
    assert "conv_1" not in shown(report, 140)
    text = " ".join(shown(profiled, 140).split())
    for words in (
        "3.50 ms in 19 layers, timed one by one; 30.00 ms without that",
        "conv_1 Convolution fp32 jit 1.000 10.0 %", "3 others 0.167 30.0 %",
        "its layers were not timed. It tells nothing.",
    ):  # fmt: skip
        assert words in text, words
    assert "conv_17" not in text
    document = markdown_report(profiled)
    assert "| conv_1 | Convolution | fp32 | jit | 1.000 | 10.0 % |" in document
    assert "## Layers" not in markdown_report(report)
    assert Report.from_dict(profiled.to_dict()).to_dict() == profiled.to_dict()


def test_a_narrow_table_still_has_the_essentials(report: Report) -> None:
    text = shown(report, 80)
    assert max(map(len, text.splitlines())) <= 80
    for words in ("38.50 ±1.41", "10.00x", "100 (70)", "plain export", "ONNX Runtime"):
        assert words in text, words
    assert "HFN" not in text.rpartition("Left out")[0]
    assert "Left out here, in report.csv: SSIM, NMSE, HFN" in " ".join(text.split())


def test_samples_are_those_that_were_taken_not_those_that_were_asked_for(report: Report) -> None:
    rows = list(report.rows)
    index = next(i for i, found in enumerate(rows) if found.latency)
    rows[index] = replace(rows[index], latency={**(rows[index].latency or {}), "samples": 2})
    text = " ".join(shown(replace(report, rows=tuple(rows)), 400).split())
    assert "2 to 4 samples after" in text


def test_unrest_of_the_machine_is_told(report: Report) -> None:
    quiet = " ".join(shown(replace(report, load_average=0.01), 140).split())
    assert "p50 differs by up to 4 % (" in quiet
    assert "busy" not in quiet
    assert "was busy before (load 99.0" in shown(replace(report, load_average=99.0), 400)


def test_a_training_volume_is_marked(report: Report) -> None:
    seen = replace(report.volumes[0], seen_in_training=("student",))
    flagged = replace(report, volumes=(seen, report.volumes[1]))
    for text in (shown(flagged, 140), markdown_table(flagged)):
        assert "v1 was in the training data of student" in text
    assert "training data" not in shown(report, 140)


def test_the_table_of_formats_needs_no_report(tmp_path: Path) -> None:
    text = generate("<!-- begin:formats -->\nstale\n<!-- end:formats -->", tmp_path)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(FORMATS)
    assert all(any(f"`{s}`" in row for row in rows) for f in FORMATS.values() for s in f.suffixes)


def test_the_table_of_targets_needs_no_report(tmp_path: Path) -> None:
    text = generate("<!-- begin:targets -->\nstale\n<!-- end:targets -->", tmp_path)
    for target in TARGETS.values():
        assert f"| `{target.name}` | {target.backend.title} |" in text
    assert "stale" not in text
    with pytest.raises(BenchError, match="unknown kind"):
        generate("<!-- begin:other -->\n<!-- end:other -->", tmp_path)


def test_rows_of_one_reason_share_a_note(report: Report) -> None:
    absent = report.rows[-1]
    rows = (*report.rows, replace(absent, key="teacher/openvino-bf16"),
            replace(absent, key="teacher/trt-f32", reason="No TensorRT."))  # fmt: skip
    text = markdown_table(replace(report, rows=rows))
    notes = [line.strip() for line in text.splitlines() if line.startswith("(")]
    assert notes == [
        "(1) student/openvino-bf16, teacher/openvino-bf16, skipped: This CPU has no bf16.",
        "(2) teacher/trt-f32, skipped: No TensorRT.",
    ]


def test_ratios_pair_the_same_network_and_runtime(report: Report) -> None:
    (pair,) = ratios(report)
    assert pair.ratio == pytest.approx(3.0)
    assert pair.round_ratios == pytest.approx((3.0, 3.0))


def test_gap_closed() -> None:
    def quality(psnr: float, nmse: float) -> dict[str, dict[str, float | None]]:
        values = {"psnr": psnr, "ssim": 0.9, "nmse": nmse, "hfn": nmse}
        return {name: {"mean": value, "std": None} for name, value in values.items()}

    found = gap_closed(quality(40, 0.01), quality(38, 0.03), quality(39.5, 0.02))
    assert found["psnr"] == pytest.approx(75.0)
    assert found["nmse"] == pytest.approx(50.0)
    assert found["ssim"] is None  # no gap


TEMPLATE = """# Title

before
<!-- begin:table:brain -->
stale
<!-- end:table:brain -->
between <!-- begin:facts:brain --><!-- end:facts:brain -->
<!-- begin:ratios:brain -->
<!-- end:ratios:brain -->
after
"""


def run_readme(tmp_path: Path, *options: str) -> tuple[int, str]:
    arguments = ["--readme", str(tmp_path / "README.md"), "--results", str(tmp_path), *options]
    done = CliRunner().invoke(readme.main, arguments)
    return done.exit_code, done.output


def test_readme_blocks_are_generated_and_checked(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path / "brain")
    file = tmp_path / "README.md"
    file.write_text(TEMPLATE)
    code, output = run_readme(tmp_path, "--check")
    assert code == 1
    assert "stale" in output
    assert file.read_text() == TEMPLATE
    assert run_readme(tmp_path) == (0, "")
    text = file.read_text()
    assert text.startswith("# Title\n\nbefore\n")
    assert text.endswith("after\n")
    assert "| student | ONNX Runtime | fp32 | 38.50 ±1.41 |" in text.replace("**", "")
    assert "**3.0x**" in text
    assert "1.5e-06 plain" in text
    assert str(report.provenance["versions"]["numpy"]) in text
    assert run_readme(tmp_path, "--check")[0] == 0
    write_report(replace(report, statement="Other data."), tmp_path / "brain")
    assert run_readme(tmp_path, "--check")[0] == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<!-- begin:table:none -->\n<!-- end:table:none -->", "does not exist"),
        ("<!-- begin:chart:brain --><!-- end:chart:brain -->", "unknown kind"),
        ("<!-- begin:table:brain -->\n", "lacks its begin or end"),
        ("<!-- end:table:brain -->\n", "lacks its begin or end"),
    ],
)
def test_a_wrong_block_is_one_sentence(
    report: Report, tmp_path: Path, text: str, words: str
) -> None:
    write_report(report, tmp_path / "brain")
    (tmp_path / "README.md").write_text(text)
    code, output = run_readme(tmp_path)
    assert code == 1
    assert words in output
    assert (tmp_path / "README.md").read_text() == text
