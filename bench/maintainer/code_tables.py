"""Tables of the README that come from the code and the package itself, not from results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kdmri_edge.data.formats.registry import FORMATS
from kdmri_edge.models.shipped import served, shipped_networks
from kdmri_edge.runtime.targets import TARGETS

__all__ = ["TABLES", "formats", "shipped", "targets"]


def targets() -> str:
    """Return the table of export targets as GitHub Markdown."""
    lines = [
        "| `--target` | runs in | devices | `--precision` | extra |",
        "|---|---|---|---|---|",
    ]
    for target in TARGETS.values():
        backend = target.backend
        devices, offered = ", ".join(backend.devices), ", ".join(target.offered)
        lines.append(
            f"| `{target.name}` | {backend.title} | {devices} | {offered} | `{backend.extra}` |"
        )
    return "\n".join(lines)


def formats() -> str:
    """Return the table of file formats as GitHub Markdown."""
    lines = [
        "| format | files | read | written | a round trip keeps | extra |",
        "|---|---|---|---|---|---|",
    ]
    for row in FORMATS.values():
        suffixes = ", ".join(f"`{suffix}`" for suffix in row.suffixes)
        extra = f"`{row.extra}`" if row.extra else ""
        lines.append(
            f"| {row.name} | {suffixes} | {row.reads} | {row.writes} | {row.keeps} | {extra} |"
        )
    return "\n".join(lines)


def shipped() -> str:
    """Return the table of the package's trained networks as GitHub Markdown."""
    lines = [
        "| name | parameters | mask | recipe, steps | PSNR dB | SSIM | zero-filled dB |"
        " test volumes |",
        "|---|---:|---|---|---:|---:|---:|---|",
    ]
    for name, network in shipped_networks().items():
        entry = network.entry
        figures = entry["figures"]
        mean = figures["mean"]
        lines.append(
            f"| `{name}` | {entry['parameters']:,} | {served(entry)}{entry['mask']}"
            f" ({entry['nominal_acceleration']:.2f}x) | {entry['recipe']},"
            f" {sum(entry['steps'].values()):,} | {mean['psnr']:.2f} | {mean['ssim']:.4f} |"
            f" {figures['zero_filled']['psnr']:.2f} | {len(figures['volumes'])}"
            f" ({figures['split']}) |"
        )
    return "\n".join(lines)


TABLES: Final[dict[str, Callable[[], str]]] = {
    "targets": targets,
    "formats": formats,
    "shipped": shipped,
}
