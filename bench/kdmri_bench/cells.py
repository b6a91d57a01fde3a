"""The figures of a row as text: one place for the terminal's table and the README's."""

from __future__ import annotations

from kdmri_bench.schema import Report, Row, Status

__all__ = [
    "HEADERS",
    "NOTHING",
    "busy_lines",
    "cells",
    "footnotes",
    "header_line",
    "precision_text",
    "seen_lines",
    "variant_name",
]

NOTHING = "–"  # noqa: RUF001 (an en dash in an empty cell, on purpose)
MIB = 2**20
HEADERS = (
    "network", "runtime", "precision", "PSNR dB", "SSIM", "NMSE", "HFN",
    "p50 ms", "p90 ms", "speed-up", "peak MiB (own)", "size KiB",
)  # fmt: skip


def variant_name(row: Row) -> str:
    """Return network, runtime, precision and what is special: "student, OpenVINO bf16"."""
    special = "" if row.variant == "default" else f", {row.variant}"
    return f"{row.network}, {row.runtime} {row.precision}{special}"


def precision_text(row: Row) -> str:
    """Share of the asked precision in what was executed: "bf16 in 28/30 layers" is "bf16 28/30".

    Where all layers run in it there is no share to tell.
    """
    if row.status is not Status.MEASURED or not row.session:
        return row.precision
    executed = str(row.session.get("precision_executed") or row.precision)
    parts = [part.split() for part in executed.split(",")]
    own = next((part for part in parts if part[0].lower() == row.precision), parts[0])
    share = [word for word in own if "/" in word and len(set(word.split("/"))) > 1]
    # "f16 weights, f32 arithmetic": what is asked for is stored, not computed with
    stored = own[1:2] if own[1:2] == ["weights"] else []
    return " ".join([own[0], *stored, *share])


def _psnr(row: Row) -> str:
    std = row.quality.get("psnr", {}).get("std")
    text = _mean(row, "psnr", 2)
    return text if std is None else f"{text} ±{std:.2f}"


def _mean(row: Row, name: str, digits: int) -> str:
    value = row.quality.get(name, {}).get("mean")
    return NOTHING if value is None else f"{value:.{digits}f}"


def _milliseconds(row: Row, name: str) -> str:
    if row.latency is None:
        return NOTHING
    if row.latency.get(name) is None:
        return NOTHING
    value = float(row.latency[name])
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _memory(row: Row) -> str:
    if row.memory is None:
        return NOTHING
    return f"{row.memory['peak'] / MIB:.0f} ({row.memory['above_baseline'] / MIB:.0f})"


def cells(row: Row) -> tuple[str, ...]:
    """Return one text per header."""
    runtime = row.runtime if row.variant == "default" else f"{row.runtime}, {row.variant}"
    return (
        row.network,
        runtime,
        precision_text(row),
        _psnr(row),
        _mean(row, "ssim", 4),
        _mean(row, "nmse", 5),
        _mean(row, "hfn", 4),
        _milliseconds(row, "p50_ms"),
        _milliseconds(row, "p90_ms"),
        NOTHING if row.speedup is None else f"{row.speedup:.2f}x",
        _memory(row),
        NOTHING if row.size_bytes is None else f"{row.size_bytes / 1024:.0f}",
    )


def header_line(report: Report) -> str:
    """One sentence on data, mask and method."""
    slices = sum(volume.slices for volume in report.volumes)
    subjects = len({volume.subject for volume in report.volumes})
    nominal = float(report.mask["nominal_acceleration"])
    effective = float(report.mask["effective_acceleration"])
    return (
        f"{len(report.volumes)} test volume(s) of {subjects} subject(s), {slices} slices,"
        f" matrix {report.matrix}, mask {report.mask['name']}: {nominal:.2f}x nominal,"
        f" {effective:.2f}x effective. {report.statement}"
    )


def footnotes(report: Report) -> list[str]:
    """What a reader needs to know about the columns."""
    machine = report.provenance["machine"]
    settings = report.settings
    spread = "± standard deviation between volumes (n - 1), " if len(report.volumes) > 1 else ""
    lines = [
        f"Quality: mean over volumes, {spread}from each runtime's own output.",
        f"Latency: network only, one slice, {_samples(report)} after"
        f" {settings['warmup']} warm-up queries, in {len(_rounds(report))} interleaved round(s),"
        f" {settings['threads']} thread(s), {machine['cpu']}.{_speedup(report)}{_noise(report)}",
        "Memory: peak resident set of the row's own process, loading included"
        " (own: above that process before the runtime was imported).",
    ]
    eager = next((r.session for r in report.rows if r.runtime == "PyTorch" and r.session), None)
    if eager is not None:
        lines.append(f"PyTorch {eager.get('version')}: {eager.get('provider')}.")
    for network in report.networks:
        macs = sum(network.macs.values()) / 1e9
        lines.append(f"{network.name}: {network.parameters:,} parameters, {macs:.2f} GMAC a slice.")
    lines.extend(_gap(report))
    return lines


def _samples(report: Report) -> str:
    """Say how many samples were really taken: slow rows stop at the time limit of a round."""
    taken = [int(row.latency["samples"]) for row in report.rows if row.latency]
    fewest, most = min(taken, default=0), max(taken, default=0)
    return f"{most:,} samples" if fewest == most else f"{fewest:,} to {most:,} samples"


def _speedup(report: Report) -> str:
    measured = any(row.speedup is not None for row in report.rows)
    return " Speed-up: against the teacher in PyTorch, same run." if measured else ""


def _noise(report: Report) -> str:
    """How far the machine's own unrest may have moved the figures."""
    spread: dict[str, float] = {}
    for row in report.rows:
        medians = row.latency["round_p50_ms"] if row.latency else []
        if len(medians) > 1:
            spread[row.key] = max(medians) / min(medians) - 1
    text = ""
    if spread:
        key = max(spread, key=lambda name: spread[name])
        text = f" Between rounds p50 differs by up to {100 * spread[key]:.0f} % ({key})."
    return "".join([text, *(f" {line}" for line in busy_lines(report))])


def busy_lines(report: Report) -> list[str]:
    """One warning where other work wanted the CPUs before the benchmark began."""
    load, cores = report.load_average, report.provenance["machine"]["cores"]
    if load is None or not cores or load <= 0.5 * cores:
        return []
    return [f"The machine was busy before (load {load:.1f} on {cores} CPUs): measure again."]


def _gap(report: Report) -> list[str]:
    """Say how much of the gap distillation closes, and how wide the gap is."""
    closed = report.gap_closed.get("psnr")
    if closed is None:
        return []
    rows = {r.role: r.quality["psnr"]["mean"] for r in reversed(report.rows) if r.quality}
    gap = float(rows["teacher"] or 0.0) - float(rows["plain"] or 0.0)
    ssim = report.gap_closed.get("ssim")
    also = "" if ssim is None else f" ({ssim:.0f} % in SSIM)"
    return [
        f"From plain student to teacher are {gap:.2f} dB; distillation closes {closed:.0f} %{also}."
    ]


def _rounds(report: Report) -> list[float]:
    return next((row.latency["round_p50_ms"] for row in report.rows if row.latency), [])


def seen_lines(report: Report) -> list[str]:
    """One warning for each test volume that a network was trained on."""
    return [
        f"{volume.name} was in the training data of {', '.join(volume.seen_in_training)}:"
        " its figures are no test result."
        for volume in report.volumes
        if volume.seen_in_training
    ]
