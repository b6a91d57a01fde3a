"""Charts as inline SVG: quality against latency, and distributions of latency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any, Final

from kdmri_bench.results.figures import recorded_name, variant_name
from kdmri_bench.results.repeatability import ROUNDING
from kdmri_bench.results.schema import BASELINES, ZERO_FILLED, Report, Row

__all__ = ["front", "histogram_svg", "pareto_svg"]

# Colour and shape say the same, for readers who do not tell colours apart (Okabe and Ito).
_SHAPES: Final = {"teacher": "square", "student": "circle", "plain": "triangle"}
_STANDALONE: Final = """<style>
svg { --ink: #16202b; --faint: #55606e; --line: #d9dee5; --sheet: #fff;
  --teacher: #0072b2; --student: #d55e00; --plain: #00805f; }
@media (prefers-color-scheme: dark) { svg { --ink: #e6ebf1; --faint: #9fabb9; --line: #2c3642;
  --sheet: #0d1117; --teacher: #56b4e9; --student: #f08c3c; --plain: #36c8a0; } }
</style>"""
_WIDTH, _HEIGHT = 960, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 44, 52


def _points(report: Report) -> list[tuple[Row, float, float]]:
    found = []
    for row in report.rows:
        psnr = row.quality.get("psnr", {}).get("mean")
        if row.role != ZERO_FILLED and row.latency and psnr is not None:
            found.append((row, float(row.timing["p50_ms"]), float(psnr)))
    return found


def front(report: Report) -> list[Row]:
    """Return the rows that no other one beats in both latency and PSNR, fastest first.

    Baselines are no candidates, and a gain below `ROUNDING` is none.
    """
    kept: list[Row] = []
    best = -math.inf
    for row, _, psnr in sorted(_points(report), key=lambda point: (point[1], -point[2])):
        if psnr > best + ROUNDING["psnr"] and row.variant not in BASELINES:
            kept.append(row)
            best = psnr
    return kept


def _marker(shape: str, x: float, y: float, size: float) -> str:
    if shape == "square":
        return (
            f'<rect x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size}" height="{2 * size}"/>'
        )
    if shape == "triangle":
        a, b = size * 1.2, size
        return f'<path d="M{x:.1f} {y - a:.1f}L{x + a:.1f} {y + b:.1f}L{x - a:.1f} {y + b:.1f}Z"/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}"/>'


def _log_ticks(low: float, high: float) -> list[float]:
    steps = [m * 10**e for e in range(-3, 6) for m in (1, 2, 5)]
    return [step for step in steps if low <= step <= high]


def _ticks(low: float, high: float) -> list[float]:
    raw = (high - low) / 5
    unit = 10 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw)
    first = math.ceil(low / step)
    return [index * step for index in range(first, math.floor(high / step) + 1)]


def pareto_svg(report: Report, *, standalone: bool = False) -> str:
    """Draw quality against latency; precisions are written as the report has them.

    Args:
        report: what was measured.
        standalone: bring the colours along, for a file of its own.

    Returns:
        An SVG element; empty text where nothing was timed.
    """
    points = _points(report)
    if not points:
        return ""
    low, high = min(p[1] for p in points) / 1.25, max(p[1] for p in points) * 1.35
    bottom, top = min(p[2] for p in points), max(p[2] for p in points)
    margin = max(0.2 * (top - bottom), 0.05)  # room for labels
    bottom, top = bottom - margin, top + margin

    def at(milliseconds: float, psnr: float) -> tuple[float, float]:
        x = math.log(milliseconds / low) / math.log(high / low)
        y = (psnr - bottom) / (top - bottom)
        return _LEFT + x * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - y * (
            _HEIGHT - _TOP - _BOTTOM
        )

    kept = front(report)
    keys = {row.key for row in kept}
    whole = all(row.end_to_end for row, _, _ in points)
    kind = "from k-space to image" if whole else "network only where no more is known"
    parts = [_grid(low, high, bottom, top, at, kind)]
    line = " ".join(
        "{:.1f},{:.1f}".format(*at(t, q)) for r, t, q in _sorted(points) if r.key in keys
    )
    if kept:  # a report may hold baselines alone
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="var(--faint)" stroke-dasharray="5 4"/>'
        )
    for row, milliseconds, psnr in points:
        x, y = at(milliseconds, psnr)
        baseline = row.variant in BASELINES
        fill = "none" if baseline else f"var(--{row.role})"
        said = f"{recorded_name(row)}: {milliseconds:.1f} ms, {psnr:.2f} dB"
        parts.append(
            f'<g fill="{fill}" stroke="var(--{row.role})" stroke-width="1.5" fill-opacity=".85">'
            f"<title>{escape(said)}</title>"
            f"{_marker(_SHAPES.get(row.role, 'circle'), x, y, 5.5)}</g>"
        )
    parts.append(_labels(report, points, keys, at))
    parts.append(_legend(report))
    text = f"Quality against latency of {len(points)} variants"
    if kept:
        text += (
            f"; the fastest on the front is {recorded_name(kept[0])}, the best"
            f" {recorded_name(kept[-1])}"
        )
    style = _STANDALONE if standalone else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
        f' font-family="system-ui, sans-serif" font-size="12.5" aria-label="{escape(text)}.">'
        f"{style}{''.join(parts)}</svg>"
    )


def _sorted(points: Sequence[tuple[Row, float, float]]) -> list[tuple[Row, float, float]]:
    return sorted(points, key=lambda point: point[1])


def _grid(low: float, high: float, bottom: float, top: float, at: Any, kind: str) -> str:
    right, foot = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for tick in _log_ticks(low, high):
        x, _ = at(tick, bottom)
        parts.append(
            f'<path d="M{x:.1f} {_TOP}V{foot}" stroke="var(--line)"/>'
            f'<text x="{x:.1f}" y="{foot + 18}" text-anchor="middle" fill="var(--faint)">'
            f"{tick:g}</text>"
        )
    ticks = _ticks(bottom, top)
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]))) if len(ticks) > 1 else 2
    for tick in ticks:
        _, y = at(low, tick)
        parts.append(
            f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="var(--line)"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="var(--faint)">'
            f"{tick:.{digits}f}</text>"
        )
    parts.append(
        f'<text x="{right}" y="{_HEIGHT - 10}" text-anchor="end" fill="var(--ink)">'
        f"latency of one slice {kind}, p50 in ms (logarithmic); left is better</text>"
        f'<text x="{_LEFT}" y="{_TOP - 12}" fill="var(--ink)">'
        "PSNR in dB, mean of volumes; up is better</text>"
    )
    return "".join(parts)


def _labels(
    report: Report, points: Sequence[tuple[Row, float, float]], keys: set[str], at: Any
) -> str:
    """Name the front's rows and the recommended one, clear of all marks and of each other."""
    parts: list[str] = []
    marks = [at(milliseconds, psnr) for _, milliseconds, psnr in points]
    taken = [(x - 9, y - 9, x + 9, y + 9) for x, y in marks]
    for row, milliseconds, psnr in _sorted(points):
        chosen = row.key == report.recommended
        if row.key not in keys and not chosen:
            continue
        x, y = at(milliseconds, psnr)
        if chosen:
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="11" fill="none" stroke="var(--ink)"'
                ' stroke-width="2"/>'
            )
        text = f"{row.runtime} {row.precision}" + (" (recommended)" if chosen else "")
        left, middle = _place(x, y, 7.4 * len(text), taken)
        taken.append((left, middle - 8, left + 7.4 * len(text), middle + 8))
        weight = "700" if chosen else "400"
        parts.append(
            f'<text x="{left:.1f}" y="{middle + 4:.1f}" fill="var(--ink)" font-weight="{weight}"'
            f' paint-order="stroke" stroke="var(--sheet)" stroke-width="3">{escape(text)}</text>'
        )
    return "".join(parts)


def _place(
    x: float, y: float, width: float, taken: Sequence[tuple[float, float, float, float]]
) -> tuple[float, float]:
    """Return the left end and the middle line of a label near a mark, where nothing else is."""
    for away in range(20, 120, 16):
        for middle in (y - away, y + away):
            for left in (x - 8, x - width / 2, x - width + 8):
                inside = left >= _LEFT and left + width <= _WIDTH - _RIGHT
                if not inside or not _TOP - 2 <= middle - 8 <= middle + 8 <= _HEIGHT - _BOTTOM:
                    continue
                if not any(
                    left < right and a < left + width and middle - 8 < low and high < middle + 8
                    for a, high, right, low in taken
                ):
                    return left, middle
    return min(x, _WIDTH - _RIGHT - width), y - 20


def _legend(report: Report) -> str:
    x: float = _WIDTH - _RIGHT
    parts: list[str] = []
    entries = [(network.role, network.name) for network in report.networks]
    for role, name in reversed(entries):
        width = 7.0 * len(name)
        x -= width
        parts.append(
            f'<g fill="var(--{role})">{_marker(_SHAPES.get(role, "circle"), x - 12, 16, 5)}</g>'
            f'<text x="{x:.1f}" y="20" fill="var(--ink)">{escape(name)}</text>'
        )
        x -= 34
    return "".join(parts)


def histogram_svg(row: Row) -> str:
    """Draw a row's latencies, network only; empty text where the report has no histogram."""
    histogram = (row.latency or {}).get("histogram")
    if not histogram or not row.latency:
        return ""
    counts = [float(count) for count in histogram["counts"]]
    edges = [float(edge) for edge in histogram["edges_ms"]]
    width, height, foot = 240, 74, 16
    tall = max(counts) or 1.0
    step = width / len(counts)
    bars = "".join(
        f'<rect x="{index * step:.1f}" y="{(height - foot) * (1 - count / tall):.1f}"'
        f' width="{max(step - 0.8, 0.5):.1f}" height="{(height - foot) * count / tall:.1f}"/>'
        for index, count in enumerate(counts)
        if count
    )
    span = edges[-1] - edges[0]

    def x(value: float) -> float:
        return min((value - edges[0]) / span, 1.0) * step * (len(counts) - 1)

    median = x(float(row.latency["p50_ms"]))
    text = (
        f"{variant_name(row)}: {row.latency['samples']} queries from {edges[0]:.2f} ms,"
        f" p50 {row.latency['p50_ms']:.2f} ms, p90 {row.latency['p90_ms']:.2f} ms"
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(text)}"'
        f' font-size="10.5"><g fill="var(--bar)">{bars}</g>'
        f'<path d="M0 {height - foot}H{width}" stroke="var(--line)"/>'
        f'<path d="M{median:.1f} 0V{height - foot}" stroke="var(--ink)" stroke-width="1.5"/>'
        f'<text x="0" y="{height - 3}" fill="var(--faint)">{edges[0]:.1f}</text>'
        f'<text x="{width}" y="{height - 3}" text-anchor="end" fill="var(--faint)">'
        f"{edges[-1]:.1f} ms and more</text></svg>"
    )
