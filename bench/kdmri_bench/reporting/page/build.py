"""Building the page from a report and the pictures of its worst slices."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Final

from kdmri_bench.reporting.notes import busy_lines, header_line, seen_lines
from kdmri_bench.reporting.page.charts import histogram_svg, pareto_svg
from kdmri_bench.reporting.page.images import Figure as SliceFigure
from kdmri_bench.reporting.page.images import Tile
from kdmri_bench.reporting.page.method import method
from kdmri_bench.reporting.table import further_figures, main_figures, with_values
from kdmri_bench.results.figures import (
    Figure,
    figures,
    loss_text,
    network_of,
    precision_text,
    runtime_text,
    spelled,
)
from kdmri_bench.results.figures import variant_name as name_of
from kdmri_bench.results.repeatability import expected
from kdmri_bench.results.schema import BASELINES, Report, Row, Status
from kdmri_bench.results.select import (
    UNKNOWN_LOSS,
    choose,
    knows_loss,
    limits_of,
    recommended_row,
)

__all__ = ["build", "fragment"]


def build(report: Report, slices: Sequence[SliceFigure] = (), picture: bytes | None = None) -> str:
    """Return the report as one HTML document that loads nothing.

    Args:
        report: what was measured.
        slices: slices to be looked at, see `images.figures`.
        picture: the comparison of networks as a PNG file.
    """
    date = str(report.provenance.get("time_utc", ""))[:10]
    title = f"Reconstruction benchmark, {report.mask.get('name', 'mask')}, {date}"
    body = "".join(
        [
            _header(report, title),
            "<main>",
            _summary(report),
            _pareto(report),
            _picture(report, picture),
            _table(report),
            _missing(report),
            _histograms(report),
            _slices(report, slices),
            method(report),
            "</main>",
            _footer(report),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,">'
        f"<style>{_asset('style.css')}</style></head>\n<body>{body}"
        f"<script>{_asset('sort.js')}</script></body></html>\n"
    )


def fragment(report: Report, picture: bytes | None = None) -> str:
    """Return recommendation, plot, table and picture as HTML to stand within another page.

    Args:
        report: what was measured.
        picture: the comparison of networks as a PNG file.
    """
    body = "".join([_summary(report), _pareto(report), _picture(report, picture), _table(report)])
    # The page's style must not reach what stands around it; old browsers show plain HTML.
    style = _asset("style.css").replace(":root", ":scope").replace("body {", ":scope {", 1)
    return (
        f'<div class="kdmri-report"><style>@scope (.kdmri-report) {{{style}}}</style>{body}</div>'
    )


def _picture(report: Report, picture: bytes | None) -> str:
    """Show the networks beside each other on the slice of median error."""
    if picture is None:
        return ""
    shown = report.panel or {}
    names = ", ".join(str(name) for name in shown.get("shown", ()))
    alt = f"{names}; below, the sampling pattern and the residues"
    data = base64.b64encode(picture).decode("ascii")
    width, height = struct.unpack(">II", picture[16:24])  # a PNG begins with its size
    return (
        '<section id="picture"><h2>The networks side by side</h2><figure class="panel">'
        f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}" width="{width}"'
        f' height="{height}"><figcaption>The slice of'
        f" median error of {escape(str(shown.get('volume', 'the first volume')))}; the same picture"
        " is panel.png. Not for diagnosis.</figcaption></figure></section>"
    )


def _asset(name: str) -> str:
    return files("kdmri_bench.reporting.page").joinpath(name).read_text(encoding="utf-8")


def _header(report: Report, title: str) -> str:
    notices = [*seen_lines(report), *busy_lines(report)]
    marks = "".join(f'<p class="notice">{escape(line)}</p>' for line in notices)
    some = report.settings.get("limit_slices") is not None
    part = ", and only the central slices of each volume" if some else ""
    quick = (
        f'<p class="faint">Quick mode: few samples{part}. Good for a first look; publish and decide'
        " with --full.</p>"
    )
    return (
        f'<header><h1>{escape(title)}</h1><p class="lead">{escape(header_line(report))}</p>'
        f"{quick if report.settings.get('mode') == 'quick' else ''}{marks}</header>"
    )


def _card(value: str, label: str) -> str:
    return f'<div class="card"><b>{escape(value)}</b><span>{escape(label)}</span></div>'


def _summary(report: Report) -> str:
    """Show the recommended variant, or the nearest to the limits and what it misses."""
    limits = limits_of(report)
    asked = escape("; ".join(limits.describe()))
    known = knows_loss(report)
    unknown = "" if known or limits.loss_db is not None else f'<p class="faint">{UNKNOWN_LOSS}</p>'
    own = (
        f"{unknown}<details><summary>Choose by limits of your own</summary><pre>kdmri-edge select"
        f" report.json --max-latency 20ms --max-memory 300MB{' --max-loss 0.1dB' if known else ''}"
        "</pre></details>"
    )
    row = recommended_row(report)
    if row is not None:
        return (
            f'<section id="summary"><h2>Recommended variant</h2>{_named(row)}<p class="faint">The'
            " smallest network, in the best of its fastest ways of running, that keeps the limits:"
            f" {asked}.</p>{_cards(row)}{own}</section>"
        )
    choice = choose(report, limits)
    lines = "".join(
        f"<li><code>{escape(key)}</code>: {escape('; '.join(found))}</li>"
        for key, found in choice.misses.items()
        if found and not found[0].startswith("not measured")
    )
    folded = (
        f"<details><summary>What each variant misses</summary><ul>{lines}</ul></details>"
        if lines
        else ""
    )
    if choice.nearest is None:
        return (
            '<section id="summary"><h2>Recommended variant</h2><p><strong>None.</strong> No variant'
            f" keeps all of the limits: {asked}.</p>{folded}</section>"
        )
    missed = escape("; ".join(choice.misses[choice.nearest.key]))
    return (
        f'<section id="summary"><h2>Best trade-off</h2>{_named(choice.nearest)}<p>No variant keeps'
        f" all of the limits ({asked}). This one comes nearest; it misses: <strong>{missed}"
        f"</strong>.</p>{_cards(choice.nearest)}{folded}{own}</section>"
    )


def _named(row: Row) -> str:
    return (
        f'<div class="pick"><strong>{escape(name_of(row))}</strong>'
        f"<code>{escape(row.key)}</code></div>"
    )


def _cards(row: Row) -> str:
    """Show what decides about a variant."""
    times = row.timing
    _, low, high = expected(times)
    whole = "from k-space to image" if row.end_to_end else "network only"
    cards = [
        _card(
            f"{times['p50_ms']:.1f} ms", f"per slice {whole}, p50 (anew {low:.1f} to {high:.1f})"
        ),
        _card(f"{times['p90_ms']:.1f} ms", f"nine of ten slices, {whole} (p90)"),
        _card(
            f"{row.quality['psnr']['mean']:.2f} dB", f"PSNR; SSIM {row.quality['ssim']['mean']:.4f}"
        ),
    ]
    if row.to_teacher:
        cards.append(_loss_card(row))
    peak = (row.memory or {}).get("peak", 0) / 2**20
    cards.append(_card(f"{peak:.0f} MiB", "peak memory of the whole process"))
    if row.size_bytes is not None:
        cards.append(_card(f"{row.size_bytes / 1024:.0f} KiB", "graph and weights on disk"))
    return f'<div class="cards">{"".join(cards)}</div>'


def _loss_card(row: Row) -> str:
    value, _, ends = loss_text(row).partition(" ")
    reach = f", 95 % interval {ends.strip('()')}" if ends else ""
    if value.startswith("-"):
        return _card(f"{value[1:]} dB", f"above the teacher in PyTorch (loss {value}{reach})")
    return _card(f"{value} dB", f"lost to the teacher in PyTorch{reach}")


def _pareto(report: Report) -> str:
    drawing = spelled(pareto_svg(report))
    if not drawing:
        return ""
    return (
        '<section id="pareto"><h2>Quality against latency</h2>'
        f'<figure class="chart">{drawing}<figcaption>Each mark is one network on one runtime;'
        " hollow marks are baselines (plain exports and peers). On the dashed line nothing else is"
        " both faster and better. The zero-filled images are left out: they lie far below."
        "</figcaption></figure></section>"
    )


def _measured(report: Report) -> list[Row]:
    return [row for row in report.rows if row.status is Status.MEASURED]


SHOWN: Final = (
    "psnr_db", "psnr_to_teacher_db", "ssim", "end_to_end_p50_ms", "end_to_end_p90_ms",
    "p50_ms", "peak_bytes", "size_bytes",
)  # fmt: skip
"""Figures of the page's first table, which is as wide as the page; the second has the others."""


def _table(report: Report) -> str:
    known = {figure.name: figure for figure in figures()}
    shown = with_values(report, [known[name] for name in SHOWN])
    others = [*main_figures(), *further_figures(report)]
    rest = with_values(report, [figure for figure in others if figure.name not in SHOWN])
    meanings = "".join(
        f"<dt>{escape(figure.head)}</dt><dd>{escape(figure.description)}</dd>"
        for figure in (*shown, *rest)
    )
    return (
        '<section id="table"><h2>All variants</h2><p class="faint">Click a head to sort; point at'
        " it to read what it means. Grey rows are baselines; the tinted row is the recommended"
        " one. A precision with a share, such as int8 25/35, ran in 25 of 35 layers (OpenVINO) or"
        " convolutions (others); the rest ran in float32.</p>"
        f"{_figures_table(report, shown, 'Table of all variants')}"
        "<details><summary>More figures: HFN, NMSE, other percentiles, throughput, cold start,"
        " share of the machine's peak</summary>"
        f"{_figures_table(report, rest, 'More figures of all variants')}</details>"
        f'<details class="legend"><summary>What the columns mean</summary><dl>{meanings}</dl>'
        "</details></section>"
    )


def _figures_table(report: Report, used: Sequence[Figure], label: str) -> str:
    heads = "".join(
        f'<th scope="col" class="text">{name}</th>' for name in ("network", "runtime", "precision")
    )
    for figure in used:
        unit = f"<small>{escape(figure.unit)}</small>" if figure.unit else ""
        heads += (
            f'<th scope="col" title="{escape(figure.description)}">'
            f"{escape(figure.title)}{unit}</th>"
        )
    lines = "".join(_line(report, row, used) for row in _measured(report))
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f'<table class="sortable sticky"><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody>'
        "</table></div>"
    )


def _line(report: Report, row: Row, used: Iterable[Figure]) -> str:
    kind = ""
    if row.key == report.recommended:
        kind = ' class="recommended"'
    elif row.variant in BASELINES:
        kind = ' class="baseline"'
    runtime = escape(runtime_text(row))
    precision = escape(precision_text(row))
    cells = (
        f'<th scope="row" data-value="{escape(row.network)}">{escape(row.network)}</th>'
        f'<td class="text" data-value="{runtime}">{runtime}</td>'
        f'<td class="text" data-value="{escape(row.precision)}">{precision}</td>'
    )
    network = network_of(row, report)
    for figure in used:
        value = figure.shown(row, network)
        raw = "" if value is None else f"{value:.6g}"
        cells += f'<td data-value="{raw}">{escape(figure.cell(row, network))}</td>'
    return f"<tr{kind}>{cells}</tr>"


def _missing(report: Report) -> str:
    rows = [row for row in report.rows if row.status is not Status.MEASURED]
    if not rows:
        return ""
    reasons: dict[str, list[Row]] = {}
    for row in rows:
        reasons.setdefault(f"{row.status}: {spelled(str(row.reason))}", []).append(row)
    lines = "".join(
        f'<tr><td class="text wrap">{escape(reason)}</td>'
        f'<td class="text wrap">{"; ".join(escape(name_of(row)) for row in group)}</td></tr>'
        for reason, group in reasons.items()
    )
    return (
        '<section id="missing"><h2>Not measured here, and why</h2><div class="scroll" tabindex="0"'
        ' role="region" aria-label="Variants that were not measured"><table><thead><tr>'
        '<th scope="col" class="text">reason</th><th scope="col" class="text">variants</th></tr>'
        f"</thead><tbody>{lines}</tbody></table></div></section>"
    )


def _histograms(report: Report) -> str:
    drawn: dict[bool, list[str]] = {False: [], True: []}
    for row in _measured(report):
        picture = histogram_svg(row)
        if picture:
            shown = f"<figure><b>{escape(name_of(row))}</b>{picture}</figure>"
            drawn[row.variant in BASELINES].append(shown)
    if not any(drawn.values()):
        return ""
    baselines = "".join(drawn[True])
    more = (
        f'<details><summary>Baselines</summary><div class="histograms">{baselines}</div></details>'
        if baselines
        else ""
    )
    return (
        '<section id="latency"><h2>How steady the latency is</h2><p class="faint">Network only,'
        " milliseconds, each with an axis of its own; the upright line is the median, the last bar"
        " holds everything slower than p99.</p>"
        f'<div class="histograms">{"".join(drawn[False])}</div>{more}</section>'
    )


def _tiles(tiles: Iterable[Tile], kind: str) -> str:
    shown = "".join(
        f'<figure><img src="{tile.uri}" alt="{escape(tile.alt)}" width="{tile.width}"'
        f' height="{tile.height}"><figcaption>{escape(tile.caption)}</figcaption></figure>'
        for tile in tiles
    )
    return f'<div class="{kind}">{shown}</div>'


def _slices(report: Report, figures: Sequence[SliceFigure]) -> str:
    if not figures:
        return ""
    blocks = "".join(
        f'<div class="slices"><h3>{escape(figure.title)}</h3>{_tiles(figure.tiles, "tiles")}'
        f"{_tiles(figure.zoom, 'tiles zoom')}</div>"
        for figure in figures
    )
    compared = any(row.to_teacher for row in report.rows)
    rank = "that lose most to the teacher" if compared else "with the lowest PSNR"
    central = report.settings.get("limit_slices")
    origin = "the first one that was measured" if central else "the first one of the volume"
    return (
        f'<section id="slices"><h2>Worst slices</h2><p>The slices of all test volumes {rank}: the'
        " worst that this variant does, not its average. White is the 99.5th percentile of the"
        " target; negative values are shown as black. Residues are |image - target|: black is none,"
        " light yellow the volume's maximum divided by the factor below each picture, or more.</p>"
        "<p>Which side is the patient's left is not marked. Not for diagnosis.</p><div"
        ' class="ramp" role="img" aria-label="Colour scale of the residues, black to yellow"></div>'
        '<p class="faint">Below each row: the region with the largest residue, enlarged; pixels are'
        f" not smoothed. Slices are counted from 0, {origin}.</p>{blocks}</section>"
    )


def _footer(report: Report) -> str:
    return (
        f"<footer><p>kdmri-edge {escape(str(report.provenance['kdmri_edge']))}, report schema"
        f" {report.schema_version}. The same figures are in report.json, report.csv and report.md."
        " Not a medical device.</p></footer>"
    )
