"""How much the default export gains over a plain export with DFT nodes, in one run."""

from __future__ import annotations

from dataclasses import dataclass

from kdmri_bench.results.figures import NOTHING, spelled
from kdmri_bench.results.schema import PLAIN_EXPORT, Report, Row
from kdmri_edge.errors import BenchError

__all__ = [
    "Ratio",
    "markdown_ratios",
    "markdown_student",
    "ratios",
]

_PLAIN_RUNTIME = "ONNX Runtime"
_PYTORCH = "pytorch-f32"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """A pair of rows: the same network and runtime, ours and a baseline.

    Attributes:
        row: the default export.
        plain: the export with DFT nodes, asked for the same precision.
        ratio: p50 of `plain` over p50 of `row`, samples pooled over the rounds.
        round_ratios: the same within each round; their spread is the measurement's.
    """

    row: Row
    plain: Row
    ratio: float
    round_ratios: tuple[float, ...]


def ratios(report: Report, variant: str = PLAIN_EXPORT) -> list[Ratio]:
    """Pair every measured default row with a baseline on the same runtime.

    Args:
        report: what was measured.
        variant: one of `schema.BASELINES`.
    """
    plain = {
        (row.network, row.runtime, row.precision): row
        for row in report.rows
        if row.variant == variant and row.latency
    }
    result = []
    for row in report.rows:
        other = plain.get((row.network, row.runtime, row.precision))
        if row.variant != "default" or not row.latency or other is None or not other.latency:
            continue
        result.append(_paired(row, other))
    return result


def _paired(row: Row, other: Row) -> Ratio:
    """Compare two rows that have a latency."""
    ours, theirs = row.latency or {}, other.latency or {}
    pairs = zip(theirs["round_p50_ms"], ours["round_p50_ms"], strict=False)
    return Ratio(
        row=row,
        plain=other,
        ratio=float(theirs["p50_ms"]) / float(ours["p50_ms"]),
        round_ratios=tuple(float(a) / float(b) for a, b in pairs),
    )


def markdown_student(report: Report) -> str:
    """Return how fast the student is on each runtime, as a GitHub Markdown table.

    Beside the teacher's plain export in ONNX Runtime, which is what one would run without this
    project, and beside itself in float32 on the same runtime.

    Raises:
        BenchError: The report has no plain export of a teacher in ONNX Runtime.
    """
    measured = [row for row in report.rows if row.latency]
    start = next(
        (
            row
            for row in measured
            if (row.role, row.variant, row.runtime) == ("teacher", PLAIN_EXPORT, _PLAIN_RUNTIME)
        ),
        None,
    )
    if start is None or start.latency is None:
        raise BenchError(
            f"The report has no plain export of a teacher in {_PLAIN_RUNTIME}.",
            "Measure teacher and student together, with the plain exports.",
        )
    ours = [row for row in measured if row.role == "student" and row.variant == "default"]
    whole = {row.runtime: row for row in ours if row.precision == "f32"}
    lines = [
        "| student in | precision | p50 ms | faster than the teacher's plain export in"
        f" {_PLAIN_RUNTIME} ({start.latency['p50_ms']:.1f} ms) | faster than itself in fp32"
        " | PSNR dB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in ours:
        plain = _cell(_paired(row, start))
        itself = whole.get(row.runtime)
        own = NOTHING if itself in (None, row) else _cell(_paired(row, itself))
        lines.append(
            f"| {row.runtime} | {spelled(row.precision)} | {(row.latency or {})['p50_ms']:.1f}"
            f" | {plain} | {own} | {row.quality['psnr']['mean']:.2f} |"
        )
    slices, rounds = sum(v.slices for v in report.volumes), start.latency["round_p50_ms"]
    return "\n".join(
        [
            *lines,
            "",
            "Network only, one slice, all rows in one run of"
            f" {len(rounds)} interleaved rounds (ratio of each in parentheses);"
            f" PSNR on {slices} central slices of {len(report.volumes)} test volumes.",
        ]
    )


def _cell(pair: Ratio) -> str:
    rounds = ", ".join(f"{value:.2f}" for value in pair.round_ratios)
    return f"**{pair.ratio:.1f}x** ({rounds})"


def markdown_ratios(report: Report, variant: str = PLAIN_EXPORT) -> str:
    """Return the ratios as a GitHub Markdown table; see `ratios`."""
    lines = [
        f"| network | runtime | precision | {variant} p50 ms | kdmri-edge p50 ms | faster"
        f" | per round | DFT nodes in the {variant} | largest difference from PyTorch |",
        "|---|---|---|---:|---:|---:|---|---:|---:|",
    ]
    for pair in ratios(report, variant):
        row, plain = pair.row, pair.plain
        if row.latency is None or plain.latency is None:
            continue
        rounds = ", ".join(f"{value:.2f}x" for value in pair.round_ratios)
        nodes = NOTHING if plain.dft_nodes is None else str(plain.dft_nodes)
        lines.append(
            f"| {row.network} | {row.runtime} | {spelled(row.precision)}"
            f" | {plain.latency['p50_ms']:.1f} | {row.latency['p50_ms']:.1f}"
            f" | **{pair.ratio:.1f}x** | {rounds} | {nodes}"
            f" | {_largest(plain)} {_word(variant)}, {_largest(row)} default |"
        )
    return "\n".join(lines)


def _word(variant: str) -> str:
    return "plain" if variant == PLAIN_EXPORT else "peer"


def _largest(row: Row) -> str:
    found = row.difference or {}
    value = found.get("max_range_normalised")
    if not isinstance(value, float) or not str(found.get("from", _PYTORCH)).endswith(_PYTORCH):
        return NOTHING
    return f"{value:.1e}"
