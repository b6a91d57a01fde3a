"""The page's last part: how it was measured, on what, and what that machine can do at most."""

from __future__ import annotations

from html import escape

from kdmri_bench.reporting.notes import footnotes
from kdmri_bench.results.figures import NOTHING, spelled
from kdmri_bench.results.schema import Report

__all__ = ["method"]


def method(report: Report) -> str:
    """Return the section as HTML."""
    origin = report.provenance
    machine, git = origin["machine"], origin["git"]
    dirty = " with uncommitted changes" if git["dirty"] else ""
    settings = report.settings
    versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    facts = {
        "Machine": f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB,"
        f" {machine['os']} ({', '.join(machine.get('cpu_features', ()))})",
        "Governor": report.governor or "not shown by the kernel",
        "Load before": "unknown" if report.load_average is None else f"{report.load_average:.1f}",
        "Threads": str(settings["threads"]),
        "Mode": f"{settings.get('mode', 'custom')}, {settings['rounds']} interleaved rounds",
        "Revision": f"{git['revision'] or 'unknown'}{dirty}, kdmri-edge {origin['kdmri_edge']}",
        "Versions": f"Python {origin['python']}, {versions}",
        "Seed": f"{origin['seed']} (of the bootstrap; nothing else is drawn)",
        "Volumes": ", ".join(f"{v.name} ({v.slices} slices)" for v in report.volumes),
    }
    rows = "".join(f"<dt>{key}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())
    notes = "".join(f"<li>{escape(line)}</li>" for line in [*footnotes(report), *_notes(report)])
    credit = {n.attribution for n in report.networks if n.attribution}
    thanks = "".join(
        f'<p class="faint credit">Training data: {escape(text)}</p>' for text in credit
    )
    return (
        f'<section id="method"><h2>How it was measured</h2><ul>{notes}</ul>{_peaks(report)}'
        f"<h3>Machine and software</h3><dl>{rows}</dl>{thanks}</section>"
    )


def _notes(report: Report) -> list[str]:
    return [
        "Every row has a process of its own, so that memory is that row's and a crash costs one"
        " row. Rounds go through all rows in turn, so that a slow minute does not fall on one.",
        "End to end: inverse Fourier transform of the sampled k-space, scaling, network, scaling"
        " back. Reading and writing files is not part of it.",
        "Cold start: from the start of the process to its first image, runtime and network loaded.",
        "Intervals: quality by a 95 % paired bootstrap over subjects, then volumes; latency:"
        " where an independent timing of the same row should fall, by the scatter between rounds of"
        " all rows of that runtime (95 %, if they scatter alike); with one round, its median's.",
        "A precision's share, as in int8 25/35, counts layers in OpenVINO, convolutions elsewhere.",
        *report.absent,
    ]


def _peaks(report: Report) -> str:
    kinds = ("f32", "bf16", "f16", "int8")
    lines = ""
    for name, found in report.peaks.items():
        if not isinstance(found, dict) or name == "memory":
            continue
        values = "".join(
            f"<td>{found[kind]:,.0f}</td>" if kind in found else f"<td>{NOTHING}</td>"
            for kind in kinds
        )
        if "reason" in found:
            said = f"not measured: {escape(str(found['reason']))}"
            values = f'<td class="text wrap" colspan="{len(kinds)}">{said}</td>'
        lines += f'<tr><th scope="row">{escape(name)}</th>{values}</tr>'
    if not lines:
        return ""
    heads = "".join(f'<th scope="col">{spelled(kind)}</th>' for kind in kinds)
    bandwidth = report.peaks.get("memory", {}).get("gb_per_s")
    memory = f" Memory: {bandwidth:.0f} GB/s (triad)." if bandwidth else ""
    return (
        '<h3>The machine\'s own limits, in the same run</h3><p class="faint">Square matrix products'
        f" of side {report.peaks.get('side')}, 10<sup>9</sup> multiply-accumulates a second;"
        f' "of peak" in the table refers to these. {NOTHING}: not measured in that runtime, or'
        f" no such arithmetic on this machine.{memory}</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Limits of the machine"><table>'
        f'<thead><tr><th scope="col" class="text">through</th>{heads}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )
