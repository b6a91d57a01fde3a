"""The tables of other people's networks, exported (`experiments.peer_networks`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = [
    "AS_IT_IS",
    "CONVERTER",
    "DYNAMO",
    "EAGER",
    "OURS",
    "PARSER",
    "RUNTIME",
    "TORCHSCRIPT",
    "markdown",
]

RUNTIME: Final = "ONNX Runtime"
OURS: Final = {
    RUNTIME: ("onnx", "fp32"),
    "OpenVINO": ("openvino", "fp32"),
    "OpenVINO, bf16": ("openvino", "bf16"),
    "OpenVINO, int8": ("openvino", "int8"),
    "TensorRT-RTX": ("trt", "fp32"),
}
"""Ways of `kdmri-edge export`: what each is called here, its target and precision."""

EAGER: Final = "PyTorch"
DYNAMO: Final = "torch.onnx, dynamo"
TORCHSCRIPT: Final = "torch.onnx, TorchScript"
CONVERTER: Final = "OpenVINO's converter"
PARSER: Final = "TensorRT-RTX's parser"
AS_IT_IS: Final = (DYNAMO, TORCHSCRIPT, CONVERTER, PARSER)
"""What others make of a network as it is."""


def _cell(row: Mapping[str, Any], name: str) -> str:
    found = row["ways"].get(name)
    if found is None:
        return ""
    if found["reason"]:
        return "fails"
    parts = []
    if name in row["milliseconds"]:
        parts.append(f"{row['milliseconds'][name]['median']:.0f} ms")
    if "difference" in found:
        parts.append(f"{found['difference']:.0e}")
    if found.get("dft_nodes"):
        parts.append(f"{found['dft_nodes']} DFT nodes")
    if found.get("engines"):
        parts.append("engine built")
    return ", ".join(parts) or "taken"


def _gains(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table of what is won over plain exports that hold transforms."""
    lines = []
    for row in rows:
        plain, ours = (row["milliseconds"].get(name) for name in (DYNAMO, RUNTIME))
        if plain is None or ours is None or not row["ways"][DYNAMO].get("dft_nodes"):
            continue
        cells = [row["network"], f"{plain['median'] / ours['median']:.2f}x", "", ""]
        share = row["ways"][RUNTIME].get("convolutions")
        if share is not None:
            cells[2:] = [
                f"{100 * share:.0f} %",
                f"{plain['median'] / (share * ours['median']):.2f}x",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    if not lines:
        return []
    return [
        "",
        "How much faster ONNX Runtime is on the export of this project than on the plain one, how"
        " much of that time are the network's own convolutions (by ONNX Runtime's profile), and how"
        " much faster an export could be at most, if all but these took no time:",
        "",
        "| network | faster than the plain export | of that, convolutions | at most |",
        "|---|---:|---:|---:|",
        *lines,
    ]


def markdown(report: Mapping[str, Any]) -> str:
    """Return the tables as GitHub Markdown: exports of this project, then networks as they are."""
    notes = []
    rows = [row for row in report["rows"] if not row["reason"]]
    lines = [
        f"| network | parameters | transforms | {EAGER} | {' | '.join(OURS)} |",
        "|---|---:|---:|---:" + "|---" * len(OURS) + "|",
    ]
    for row in report["rows"]:
        if row["reason"]:
            lines.append(f"| {row['network']} | | | |" + " |" * len(OURS))
            notes.append(f"- {row['network']}: {row['reason']}")
            continue
        transforms = {way.get("transforms") for way in row["ways"].values()} - {None}
        cells = [
            f"{row['network']} ({row['package']} {row['version']})",
            f"{row['parameters']:,}",
            ", ".join(map(str, sorted(transforms))),
            f"{row['milliseconds'][EAGER]['median']:.0f} ms",
            *(_cell(row, name) for name in OURS),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if any(name in row["ways"] for row in rows for name in AS_IT_IS):
        lines += [
            "",
            "The same networks as they are:",
            "",
            f"| network | {' | '.join(AS_IT_IS)} |",
            "|---" * (1 + len(AS_IT_IS)) + "|",
        ]
        for row in rows:
            cells = [row["network"], *(_cell(row, name) for name in AS_IT_IS)]
            lines.append(f"| {' | '.join(cells)} |")
    lines += _gains(rows)
    revisions: dict[str, list[str]] = {}
    for row in report["rows"]:
        if "measured" in row:
            revisions.setdefault(row["measured"]["revision"], []).append(row["network"])
        for name, way in row.get("ways", {}).items():
            if "measured" in way:
                label = f"{row['network']} ({name})"
                revisions.setdefault(way["measured"]["revision"], []).append(label)
    notes += [f"- At revision {one}: {', '.join(names)}" for one, names in revisions.items()]
    torches = {row["torch"] for row in rows if "torch" in row}
    notes += [
        f"- {row['network']}: with PyTorch {row['torch']}"
        for row in rows
        if len(torches) > 1 and "torch" in row
    ]
    notes += [
        f"- {row['network']}, {name}: {found['reason']}"
        for row in rows
        for name, found in row["ways"].items()
        if found["reason"]
    ]
    lines += [
        "",
        f"One slice of {report['matrix']} x {report['matrix']}, {report['coils']} coils where a"
        f" network reads k-space, {report['threads']} CPU thread(s); medians of queries in turns."
        " Beside the time stands the largest difference from PyTorch as a share of the image's"
        " range. Networks as they are run in ONNX Runtime, but for OpenVINO's converter.",
    ]
    return "\n".join([*lines, *(["", *notes] if notes else [])])
