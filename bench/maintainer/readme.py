"""Figures of README.md and docs/ from recorded results: `python -m maintainer.readme [--check]`.

A generated block lies between `<!-- begin:NAME -->` and `<!-- end:NAME -->`; NAME is `KIND:STEM`,
where STEM is a folder of bench/results that holds report.json, and KIND one of

- `table`: the benchmark's table with its notes;
- `ran`: the same without the rows that are absent;
- `small`: the teacher in PyTorch and OpenVINO, and all networks in OpenVINO in int8;
- `details`: the figures that the table leaves out: percentiles, end to end, throughput, peak;
- `recommended`: which variant the report recommends, in one sentence;
- `pareto`: quality against latency, drawn beside the report as pareto.svg;
- `student`: how fast the student is beside what one would run without this project;
- `ratios`: how much faster the default export is than a plain export with DFT nodes;
- `peers`: the same against `python -m experiments.peers`;
- `facts`: revision, machine, versions and seed of that report, in one sentence;
- `reproduce`: the tables of `kdmri-edge reproduce`;
- `ablation`: what each idea is worth;
- `generality`: what it costs to serve any mask;
- `any-matrix`: networks at matrices that they were not trained at;
- `small-structures`: what structures inserted in training do to lesions;
- `peer-networks`: exports of networks of other projects, beside what others make of them;
- `throughput`: how fast training is beside a plain loop;
- `lent-gpu`: how long trainings side by side took on a GPU;
- `slice-rate`: slices reconstructed per second, now and before;
- `graphs`: what graphs take beside one another, an earlier version's among them;
- `duration`: what a distillation takes at that rate;
- `precisions`: what every target and precision costs in quality;
- `cold`: time and memory from a process's start to its first image;
- `soak`: a server under many scans, some of them faulty;
- `fuzz`: what readers make of damaged files;
- `protocols`: an examination of several protocols, streamed to one server of several bundles;
- `streaming`: a scan streamed to a server beside its file;
- `streaming-data`: training on more data than memory holds;
- `measured`: networks on k-space that a scanner measured;
- `scope`: whether certificates are right on slices of the network's kind and of others;
- `lesions`: what networks keep of the contrast of real lesions;
- `lesions-summary`: the same in a few rows, to stand beside PSNR;
- `inserted`: how well model observers detect lesions that were inserted;
- `inserted-drops`: at which size students fall behind their teacher in that;
- `assessment`: verdict and tables of an assessment, of its assessment.json.

The blocks `targets`, `formats` and `shipped` need no report: they are the tables of export targets,
of file formats and of the package's trained networks (`code_tables`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from experiments.ratios import markdown_ratios, markdown_student
from experiments.script import Script
from kdmri_bench.assessment.assess import REPORT as ASSESSMENT
from kdmri_bench.reporting.page.charts import pareto_svg
from kdmri_bench.reporting.report import read_report
from kdmri_bench.reporting.table import markdown_details, markdown_table, recommendation
from kdmri_bench.results.schema import PEER_COMPILE, PEER_EXPORT, Report, Status
from kdmri_edge.errors import BenchError
from kdmri_edge.utils.extras import load_attribute
from kdmri_edge.utils.files import atomic_path, read_json
from maintainer.code_tables import TABLES

__all__ = ["BLOCKS", "draw_pictures", "facts", "generate", "main", "pages"]

_BLOCK = re.compile(
    r"(?P<begin><!-- begin:(?P<name>\S+) -->)(?P<body>.*?)(?P<end><!-- end:(?P=name) -->)", re.S
)
_OPENING = re.compile(r"<!-- (?:begin|end):(\S+) -->")

# The networks were drawn and trained with seeds; to say that nothing was random would mislead.
_NO_SEED: Final = "the measuring draws nothing at random, the networks' seeds are in their weights"


def facts(report: Report) -> str:
    """Say in one sentence where a report comes from."""
    origin: dict[str, Any] = dict(report.provenance)
    git, machine = origin["git"], origin["machine"]
    revision = str(git["revision"] or "unknown")[:12]
    dirty = " with uncommitted changes" if git["dirty"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    seed = _NO_SEED if origin["seed"] is None else f"seed {origin['seed']}"
    return (
        f"Measured on {str(origin['time_utc'])[:10]} at revision {revision}{dirty}, kdmri-edge"
        f" {origin['kdmri_edge']}, Python {origin['python']}, {versions}; {machine['cpu']},"
        f" {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['os']},"
        f" {report.settings['threads']} threads; {seed}."
    )


_SMALL: Final = {
    "teacher": (("PyTorch", "f32"), ("OpenVINO", "f32"), ("OpenVINO", "int8")),
    "student": (("OpenVINO", "int8"),),
}


def small(report: Report) -> str:
    """Return what distillation and int8 are worth, in a few rows of a report.

    Raises:
        BenchError: A row was not measured.
    """
    lines = [
        "| network | runtime | precision | PSNR dB | SSIM | ms a slice | memory MiB | size KiB |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    measured = {
        (row.network, row.runtime, row.precision): row
        for row in report.rows
        if row.status is Status.MEASURED and row.variant == "default"
    }
    networks = {row.network: _SMALL[row.role] for row in report.rows if row.role in _SMALL}
    for key in ((name, *way) for name, ways in networks.items() for way in ways):
        row = measured.get(key)
        if row is None or not (row.quality and row.latency and row.memory and row.size_bytes):
            raise BenchError(f"The report lacks {' '.join(key)}.", "Measure that row as well.")
        precision = {"f32": "fp32"}.get(row.precision, row.precision)
        quality = {name: value["mean"] for name, value in row.quality.items()}
        lines.append(
            f"| {row.network} | {row.runtime} | {precision} | {quality['psnr']:.2f} |"
            f" {quality['ssim']:.4f} | {row.latency['p50_ms']:.1f} |"
            f" {row.memory['peak'] / 2**20:.0f} | {row.size_bytes / 1024:.0f} |"
        )
    machine = report.provenance["machine"]
    lines += ["", f"{machine['cpu']}, {report.settings['threads']} threads, matrix"
              f" {report.matrix}; memory is the process's peak, loading included."]  # fmt: skip
    return "\n".join(lines)


def _peers(report: Report) -> str:
    return "\n\n".join(markdown_ratios(report, name) for name in (PEER_EXPORT, PEER_COMPILE))


BLOCKS: Final[dict[str, Callable[[Report], str]]] = {
    "table": markdown_table,
    "ran": partial(markdown_table, absent=False),
    "small": small,
    "details": markdown_details,
    "recommended": recommendation,
    "ratios": markdown_ratios,
    "student": markdown_student,
    "peers": _peers,
    "facts": facts,
}


def origin_line(provenance: dict[str, Any]) -> str:
    """Say in one sentence where results come from that are no benchmark of runtimes."""
    git, machine = provenance["git"], provenance["machine"]
    dirty = " with uncommitted changes" if git["dirty"] else ""
    return (
        f"Written on {str(provenance['time_utc'])[:10]} at revision"
        f" {str(git['revision'] or 'unknown')[:12]}{dirty}, torch"
        f" {provenance['versions'].get('torch', 'absent')}; {machine['cpu']},"
        f" {machine['cores']} cores."
    )


def _reproduce(report: dict[str, Any]) -> str:
    from kdmri_bench.reproduce.report import SCHEMA, markdown

    if report.get("schema") != SCHEMA or "groups" not in report:
        raise BenchError(
            f"A report has schema {report.get('schema')!r}; that of `reproduce` is {SCHEMA}.",
            "Write it anew with `kdmri-edge reproduce --report-only`.",
        )
    return f"{markdown(report)}  \n{origin_line(report['provenance'])}"


_LAZY: Final = {
    "ablation": "experiments.ablation:markdown",
    "non-inferiority": "experiments.non_inferiority:markdown",
    "generality": "experiments.generality:markdown",
    "any-matrix": "experiments.any_matrix:markdown",
    "small-structures": "experiments.small_structures:markdown",
    "streaming-data": "experiments.streaming_data:markdown",
    "peer-networks": "experiments.peer_tables:markdown",
    "throughput": "experiments.throughput:sentence",
    "lent-gpu": "maintainer.lent_gpu:sentence",
    "slice-rate": "experiments.slice_rate:markdown",
    "graphs": "experiments.graphs:markdown",
    "duration": "experiments.throughput:duration",
    "cold": "experiments.cold_start:markdown",
    "precisions": "experiments.targets:markdown",
    "soak": "experiments.soak:markdown",
    "fuzz": "experiments.fuzz:markdown",
    "calibration": "experiments.calibration:markdown",
    "protocols": "experiments.protocols:markdown",
    "streaming": "experiments.streaming:markdown",
    "measured": "experiments.measured:markdown",
    "scope": "experiments.scope:markdown",
    "lesions": "experiments.lesions:markdown",
    "lesions-summary": "experiments.lesions:summary",
    "inserted": "experiments.inserted_lesions:markdown",
    "inserted-drops": "experiments.inserted_lesions:drops",
    "assessment": "kdmri_bench.assessment.text:markdown",
}
"""Kind -> what makes its text of the recorded values; imported only where it is used."""


def _recorded(text: str, report: dict[str, Any]) -> str:
    """Return the text of a report, and where it comes from."""
    return f"{load_attribute(text)(report)} {origin_line(report['provenance'])}"


RAW_BLOCKS: Final[dict[str, Callable[[dict[str, Any]], str]]] = {
    "reproduce": _reproduce,
    **{kind: partial(_recorded, text) for kind, text in _LAZY.items()},
}


def _body(name: str, results: Path, folder: Path) -> str:
    """Make the contents of one block of a page in `folder`."""
    if name in TABLES:
        return TABLES[name]()
    kind, _, stem = name.partition(":")
    file = results / stem / (ASSESSMENT if kind == "assessment" else "report.json")
    if stem and kind == "pareto":
        picture = Path(os.path.relpath(results / stem / "pareto.svg", folder)).as_posix()
        return f"![PSNR against latency of every variant]({picture})"
    if stem and kind in BLOCKS:
        return BLOCKS[kind](read_report(file))
    if stem and kind in RAW_BLOCKS:
        return RAW_BLOCKS[kind](dict(read_json(file, BenchError, finite=False)))
    kinds = (*BLOCKS, "pareto", *RAW_BLOCKS)
    raise BenchError(
        f"Block {name!r} is of an unknown kind.",
        f"Kinds are {', '.join(TABLES)}, {', '.join(f'{kind}:STEM' for kind in kinds)}.",
    )


def draw_pictures(text: str, results: Path) -> dict[Path, str]:
    """Return the pictures that blocks of `text` show: path -> SVG.

    Raises:
        BenchError: a missing or damaged report.
    """
    stems = [b["name"].partition(":")[2] for b in _BLOCK.finditer(text)
             if b["name"].startswith("pareto:")]  # fmt: skip
    return {
        results / stem / "pareto.svg": pareto_svg(
            read_report(results / stem / "report.json"), standalone=True
        )
        for stem in stems
    }


def generate(text: str, results: Path, folder: Path = Path()) -> str:
    """Return `text` with every generated block made anew.

    Args:
        text: contents of a page.
        results: the folder that holds STEM/report.json.
        folder: the folder of the page, from which pictures are named.

    Raises:
        BenchError: an unknown kind of block, a block without end, or a missing or damaged report.
    """
    matched = [match for block in _BLOCK.finditer(text) for match in [block["name"]] * 2]
    loose = next((name for name in _OPENING.findall(text) if name not in matched), None)
    if loose is not None:
        raise BenchError(
            f"Block {loose!r} lacks its begin or end marker.",
            f"Write <!-- begin:{loose} --> and <!-- end:{loose} -->.",
        )

    def block(match: re.Match[str]) -> str:
        body = _body(match["name"], results, folder)
        return f"{match['begin']}\n{body}\n{match['end']}"

    return _BLOCK.sub(block, text)


def pages(root: Path = Path()) -> list[Path]:
    """Return the files with generated blocks below a checkout of the project."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


@click.command(cls=Script)
@click.option(
    "--readme",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A page; may be repeated [README.md and docs/].",
)
@click.option("--results", default=Path("bench/results"), type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 when a file is stale.")
def main(files: tuple[Path, ...], results: Path, check: bool) -> None:
    """Make the generated blocks of README.md and docs/ anew from bench/results."""
    for file in files or pages():
        if not file.is_file():
            raise BenchError(f"{file} does not exist.", "Name the file with --readme.")
        before = file.read_text(encoding="utf-8")
        after = generate(before, results, file.parent)
        if check and before != after:
            raise BenchError(f"{file} is stale.", "Run: python -m maintainer.readme")
        for picture, drawing in draw_pictures(before, results).items():
            if not check:
                with atomic_path(picture) as temporary:
                    temporary.write_text(drawing + "\n", encoding="utf-8")
        if before != after:
            with atomic_path(file) as temporary:
                temporary.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
