"""What a reader of a report needs to know about its figures, in sentences."""

from __future__ import annotations

from kdmri_bench.results.schema import Report

__all__ = ["busy_lines", "footnotes", "header_line", "seen_lines"]


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
    also = "" if ssim is None else f" (in SSIM {_share(ssim)})"
    return [f"From plain student to teacher are {gap:.2f} dB; distillation {_goes(closed)}{also}."]


def _goes(percent: float) -> str:
    """Say how far distillation goes: beyond the gap a percentage says little."""
    if percent > 100:
        return f"ends above the teacher ({percent:.0f} % of the gap)"
    if percent < 0:
        return f"ends below the plain student ({percent:.0f} % of the gap)"
    return f"closes {percent:.0f} %"


def _share(percent: float) -> str:
    return "above the teacher" if percent > 100 else f"{percent:.0f} %"


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
