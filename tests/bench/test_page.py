"""The page: whole, readable by machines that read aloud, and alone: it loads nothing."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from kdmri_bench.measuring.quality import cut, slice_psnr, worst_slices
from kdmri_bench.reporting.page.build import build
from kdmri_bench.reporting.page.charts import front, pareto_svg
from kdmri_bench.reporting.page.images import ZOOM, Figure, figures, region
from kdmri_bench.reporting.report import write_report
from kdmri_bench.results.figures import FIGURES
from kdmri_bench.results.schema import PLAIN_EXPORT, Report, Row, Status
from kdmri_edge.data.case import Case
from tests.bench.reports import report, row

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ROWS = (
    row("teacher", "PyTorch", 40.0, 100.0),
    row("teacher", "OpenVINO", 39.99, 12.0),
    row("student", "OpenVINO", 39.6, 8.0),
    row("student", "ONNX Runtime <b>", 39.6, 30.0),
    row("student", "plain", 39.6, 90.0, variant="plain export"),
    Row(key="student/trt", network="student", role="student", runtime="TensorRT", precision="f32",
        status=Status.SKIPPED, reason="This machine has no CUDA device & no <engine>."),
)  # fmt: skip


@pytest.fixture(scope="module")
def whole() -> Report:
    return report(*ROWS, recommended="student/OpenVINO", limits={"latency_ms": 50.0})


@pytest.fixture
def pictures(cases: list[Case]) -> list[Figure]:
    outputs = [case.zero_filled for case in cases]
    teacher = [0.5 * (case.zero_filled + case.target) for case in cases]
    psnr = [
        [slice_psnr(c.target, o) for c, o in zip(cases, volumes, strict=True)]
        for volumes in (outputs, teacher)
    ]
    views = cut(outputs, worst_slices(psnr[0], psnr[1], 2))
    return figures(cases, views, teacher, name="student")


class Reader(HTMLParser):
    """Collects what a page must not have, and what it must."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


# A PNG's signature and the head of its first chunk, which holds its size.
PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 960, 480)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def test_the_page_is_well_formed_and_loads_nothing(whole: Report, pictures: list[Figure]) -> None:
    page = build(whole, pictures, PNG)
    reader = read(page)
    assert reader.open == []
    for tag, attributes in reader.tags:
        for name in ("src", "href"):
            if name in attributes and tag != "a":
                assert str(attributes[name]).startswith("data:"), (tag, attributes)
        if tag == "img":
            assert attributes["alt"]
            assert int(str(attributes["width"])) > 0
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
        if tag == "svg":
            assert attributes["aria-label"]
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page)
    assert len(page) < 4_000_000


def test_what_comes_from_outside_is_escaped(whole: Report) -> None:
    page = build(whole)
    assert "ONNX Runtime &lt;b&gt;" in page
    assert "no CUDA device &amp; no &lt;engine&gt;" in page


def test_the_summary_names_the_recommended_row_and_its_limits(whole: Report) -> None:
    summary = build(whole).split('id="summary"')[1].split("</section>")[0]
    assert "student, OpenVINO fp32" in summary
    assert "at most 50 ms" in summary
    assert "0.400" in summary  # lost to the teacher
    assert "--max-loss 0.1dB" in summary
    assert "is not known" not in summary
    alone = report(*(found for found in ROWS if found.role == "student"))
    summary = build(alone).split('id="summary"')[1].split("</section>")[0]
    assert "The loss to a teacher is not known" in summary
    assert "--max-loss" not in summary


def test_without_a_variant_within_the_limits_the_nearest_is_shown_and_what_it_misses(
    whole: Report,
) -> None:
    page = build(replace(whole, recommended=None, limits={"latency_ms": 1.0}))
    summary = page.split('id="summary"')[1].split("</section>")[0]
    shown, _, folded = summary.partition("<details>")
    assert "student, OpenVINO fp32" in shown
    assert "it misses: <strong>latency 8.1 ms (p90) &gt; 1 ms</strong>" in shown
    assert "teacher/PyTorch" not in shown  # misses of the others are folded away
    assert "teacher/PyTorch" in folded


def test_the_page_explains_every_column(whole: Report) -> None:
    table = build(whole).split('id="table"')[1].split("</section>")[0]
    legend = table.split('class="legend"')[1]
    for figure in FIGURES:
        if f'title="{escape(figure.description)}"' in table:
            assert f"<dd>{escape(figure.description)}</dd>" in legend, figure.name
    for words in ("edges and fine detail", "Structural similarity", "Normalised mean squared"):
        assert words in legend


def test_memory_and_size_are_in_the_first_table(whole: Report) -> None:
    first = build(whole).split('id="table"')[1].split("</table>")[0]
    heads = re.findall(r'<th scope="col"[^>]*>([^<]*)', first)
    assert heads[:3] == ["network", "runtime", "precision"]
    assert {"PSNR", "loss", "end to end p50", "memory", "size"} <= set(heads)
    assert len(heads) <= 12


def test_a_quick_report_says_so(whole: Report) -> None:
    quick = replace(whole, settings={**whole.settings, "mode": "quick"})
    assert "Quick mode" in build(quick)
    assert "Quick mode" not in build(whole)


def test_a_busy_machine_is_told_at_the_top(whole: Report) -> None:
    top = build(replace(whole, load_average=99.0)).partition("<main>")[0]
    assert "The machine was busy before (load 99.0" in top
    assert "busy" not in build(replace(whole, load_average=0.0)).partition("<main>")[0]


def test_a_report_of_baselines_alone_has_its_plot() -> None:
    alone = report(row("student", "ONNX Runtime", 39.0, 50.0, variant=PLAIN_EXPORT))
    assert front(alone) == []
    assert "1 variants." in pareto_svg(alone)
    assert "<polyline" not in pareto_svg(alone)
    assert "None." in build(alone)


def test_the_front_holds_what_nothing_beats(whole: Report) -> None:
    assert [r.key for r in front(whole)] == [
        "student/OpenVINO", "teacher/OpenVINO", "teacher/PyTorch",
    ]  # fmt: skip
    assert pareto_svg(report()) == ""
    assert "one slice from k-space to image, p50 in ms" in pareto_svg(whole)
    older = [replace(r, end_to_end=None) for r in whole.rows]
    assert "one slice network only" in pareto_svg(replace(whole, rows=tuple(older)))


def test_residues_show_the_error_and_the_zoom_its_place(cases: list[Case]) -> None:
    case = cases[0]
    image = case.target.copy()
    image[1, 3, 28] += 0.5 * case.target.max()
    psnr = slice_psnr(case.target, image)
    score = worst_slices([psnr], None, 1)[0]
    assert score.slice == 1
    figure = figures([case], cut([image], [score]), None, name="student")[0]
    assert [tile.caption.split()[0] for tile in figure.tiles] == [
        "target", "zero-filled", "student", "residue",
    ]  # fmt: skip


def test_the_slices_say_how_to_read_them(whole: Report, pictures: list[Figure]) -> None:
    for limit, origin in ((2, "the first one that was measured"), (None, "of the volume")):
        page = build(replace(whole, settings={**whole.settings, "limit_slices": limit}), pictures)
        text = page.split('id="slices"')[1].split("</section>")[0]
        assert "counted from 0" in text
        assert origin in text
        assert "left is not marked" in text


def test_the_enlarged_region_holds_the_largest_residue() -> None:
    residue = np.full((120, 90), 0.01)
    residue[100, 7] = 1.0
    rows, columns = region(residue)
    assert rows.start <= 100 < rows.stop <= 120
    assert columns.start <= 7 < columns.stop <= 90
    assert rows.stop - rows.start == columns.stop - columns.start == ZOOM


def test_worst_slices_lose_most_to_the_teacher(cases: list[Case]) -> None:
    target = cases[0].target
    blank = np.zeros_like(target[:1])
    volume = np.concatenate([blank, target])
    image = volume.copy()
    for index, error in enumerate((9.0, 0.1, 0.3, 0.2)):
        image[index] += error * volume.max()
    found = worst_slices([slice_psnr(volume, image)], [np.full(4, 50.0)])
    assert [score.slice for score in found] == [2, 3, 1]  # the blank one is left out
    assert found[0].loss == pytest.approx(50.0 - found[0].psnr)
    assert found[0].psnr == pytest.approx(-20 * np.log10(0.3), abs=1e-4)


def test_reports_without_the_new_figures_still_make_a_page(whole: Report) -> None:
    old = [
        replace(r, end_to_end=None, cold=None, throughput={}, limit=None, to_teacher={})
        for r in whole.rows
    ]
    assert "All variants" in build(replace(whole, rows=tuple(old), peaks={}, limits={}))


PROBE = """<script>
window.addEventListener("error", (e) => { document.title = "ERROR " + e.message; });
addEventListener("load", () => setTimeout(() => {
  const heads = [...document.querySelectorAll("#table > .scroll thead th")];
  const column = heads.findIndex((h) => h.textContent.includes("network p50"));
  const values = () => [...document.querySelectorAll("#table > .scroll tbody tr")]
    .map((r) => Number(r.cells[column].dataset.value));
  heads[column].querySelector("button").click();
  const up = values();
  heads[column].querySelector("button").click();
  const names = [...document.querySelector("#table > .scroll tbody tr").cells].slice(0, 3);
  const places = () => names.map((cell) => Math.round(cell.getBoundingClientRect().left));
  const still = places();
  document.querySelector("#table > .scroll").scrollLeft = 300;
  document.body.dataset.probe = JSON.stringify({up, down: values(), still, scrolled: places(),
    resources: performance.getEntriesByType("resource").map((e) => e.name)
      .filter((n) => !n.startsWith("data:")),
    fits: document.querySelector("#table > .scroll").scrollWidth
      <= document.querySelector("#table > .scroll").clientWidth + 1,
    overflow: document.documentElement.scrollWidth > innerWidth + 1});
}, 50));
</script></head>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH (Debian: apt install chromium)")
@pytest.mark.parametrize("width", [1280, pytest.param(500, marks=pytest.mark.nightly)])
def test_a_browser_opens_it_without_errors_or_requests(
    whole: Report, pictures: list[Figure], tmp_path: Path, width: int
) -> None:
    page = write_report(whole, tmp_path, slices=pictures)["html"]
    page.write_text(page.read_text().replace("</head>", PROBE, 1))
    done = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND",
         "--enable-logging=stderr", f"--window-size={width},900", "--virtual-time-budget=2000",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr, done.stderr
    assert "<title>ERROR" not in done.stdout
    probe = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert probe is not None, done.stdout[:500]
    found = json.loads(probe[1].replace("&quot;", '"'))
    assert found["up"] == sorted(found["up"])
    assert found["down"] == found["up"][::-1]
    assert found["resources"] == []
    kept = [a == b for a, b in zip(found["still"], found["scrolled"], strict=True)]
    assert kept == ([True] * 3 if width >= 900 else [True, False, False])  # which variant it is
    assert not found["overflow"], "the page scrolls sideways as a whole"
    if width >= 1280:
        assert found["fits"], "the table is wider than the page"
