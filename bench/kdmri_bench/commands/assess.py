"""`kdmri-edge assess`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from kdmri_bench.commands.options import (
    contrast_option,
    limit_slices_option,
    names,
    subjects_option,
    threads_option,
)
from kdmri_edge.commands.command import Command
from kdmri_edge.commands.options import json_option
from kdmri_edge.utils.console import print_result, say, tell

__all__ = ["assess"]


@click.command(cls=Command)
@click.argument("networks", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--data", "data", multiple=True, type=click.Path(path_type=Path),
    help="Folder of volumes, or one file; may be repeated. Of a folder that follows the run's split"
    " or a known one only the test subjects are taken. 'phantom' draws volumes.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path),
    help="Folder for assessment.html and assessment.json.  [default: ./kdmri-assessment]",
)  # fmt: skip
@click.option(
    "--teacher",
    help="The network that the others are compared with.  [default: the one that a student's"
    " checkpoint names, else the one that says it is a teacher, else that of the most operations]",
)
@click.option(
    "--sections", metavar="NAME,...",
    help="Measure these sections only.  [default: all; --list-sections names them]",
)  # fmt: skip
@click.option("--list-sections", is_flag=True, help="Measure nothing: list the sections.")
@click.option(
    "--margins", type=click.Path(path_type=Path), metavar="FILE.toml",
    help="Largest losses that count as none, stated before; quoted in the report with its hash."
    "  [default: the package's own]",
)  # fmt: skip
@click.option(
    "--compare", nargs=2, type=click.Path(path_type=Path), metavar="OLD NEW",
    help="May NEW replace OLD under the margins? Two networks, assessed on --data now; or two"
    " reports, of which nothing is measured. Of a run its student is meant. Exit code 0 if it may,"
    " 1 if it must not or if the data do not suffice to say so.",
)  # fmt: skip
@contrast_option
@subjects_option
@limit_slices_option("all")
@click.option(
    "--int8/--no-int8", default=True, show_default="int8",
    help="Assess the int8 copies of checkpoints as well.",
)  # fmt: skip
@click.option(
    "--in-pytorch", is_flag=True,
    help="Export nothing: run checkpoints in PyTorch, int8 with layers that round as an export's.",
)  # fmt: skip
@click.option(
    "--other-data", multiple=True, type=click.Path(path_type=Path),
    help="Data of other scanners or fields, for the section on robustness: a folder, a file, or"
    " FILE.h5:DATASET:AXES; may be repeated.",
)  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all that is drawn."
)
@threads_option("the runtime's choice")
@click.option(
    "--page-size", metavar="SIZE", default="1MB", show_default=True,
    help="Largest page: pictures that would make it larger are left out, the most telling last, and"
    " the page says how many. The figures of all are in the report.",
)  # fmt: skip
@json_option("Print the report as JSON.")
def assess(
    networks: tuple[Path, ...],
    data: tuple[Path, ...],
    out: Path | None,
    teacher: str | None,
    sections: str | None,
    list_sections: bool,
    margins: Path | None,
    compare: tuple[Path, Path] | None,
    contrast: str | None,
    subjects: str | None,
    limit_slices: int | None,
    int8: bool,
    in_pytorch: bool,
    other_data: tuple[Path, ...],
    seed: int,
    threads: int | None,
    page_size: str,
    as_json: bool,
) -> None:
    """Measure what compression does to images, for those who decide about its use.

    NETWORKS are networks of the package (`kdmri-edge models`), runs, checkpoints or bundles, for
    one mask and one matrix. Teacher and students stand side by side, each in float and as its int8
    copy, beside the zero-filled images. The report says of every figure on how many subjects it
    rests, and of what could not be measured why; its verdict follows margins that a file states
    beforehand, and is "inconclusive" where the data do not suffice.

    \b
    Examples:
      kdmri-edge assess dccnn-d5c5@brain-4x dccnn-edge@brain-4x --data DIR --out report
      kdmri-edge assess runs/mine --data DIR --margins margins.toml --limit-slices 8
      kdmri-edge assess --compare old/student.safetensors new/student.safetensors --data DIR
    """  # noqa: D301 - click wants the backspace itself
    if list_sections:
        from kdmri_bench.assessment.sections import SECTIONS

        width = max(len(name) for name in SECTIONS)
        for row in SECTIONS.values():
            tell(f"{row.name:<{width}}  {row.asks}")
        return
    if compare is not None and networks:
        raise click.UsageError("--compare names the networks itself: give no others.")
    if compare is not None and not data:
        sys.exit(_compare_reports(compare, margins, seed, as_json=as_json))
    if compare is None and not networks:
        raise click.UsageError("Missing argument 'NETWORKS': the networks to assess.")
    if not data:
        raise click.UsageError("Missing option '--data': the folder of the test volumes.")
    if compare is not None:
        networks = tuple(_one_network(path) for path in compare)
        if networks[0] == networks[1]:
            raise click.UsageError(f"--compare names {compare[0]} twice: name two networks.")
        teacher = str(networks[0])
    named = names("--sections", sections)
    if compare is not None and named:
        named.append("verdict")  # it is what was asked for
    from kdmri_bench.assessment.assess import assess as measure

    done = measure(
        list(networks),
        [str(place) for place in data],
        teacher=teacher,
        sections=named,
        margins=margins,
        contrast=contrast,
        subjects=names("--subjects", subjects),
        limit_slices=limit_slices,
        int8=int8,
        in_pytorch=in_pytorch,
        other_data=other_data,
        seed=seed,
        threads=threads,
        replaced=compare is not None,
        page_size=page_size,
        out=out or Path("kdmri-assessment"),
    )
    say(f"Page to open in a browser: {done.files['html']}")
    if done.files["html"].stat().st_size > done.page_size:
        from kdmri_bench.assessment.page import larger

        say(larger(done.page_size))
    if as_json:
        print_result(json.dumps(done.to_dict(), indent=1, ensure_ascii=False))
    else:
        from kdmri_bench.assessment.text import plain

        tell(plain(done))
    say(f"json: {done.files['json']}")
    if compare is not None:
        from kdmri_bench.assessment.compare import replacement_of
        from kdmri_bench.assessment.margins import load_margins

        answers = replacement_of(done, load_margins(margins))
        for answer in answers:
            say(str(answer))
        sys.exit(0 if all(answer.allowed for answer in answers) else 1)


def _one_network(path: Path) -> Path:
    """Return the network that is meant; of a run its student."""
    from kdmri_edge.models.shipped import is_reference
    from kdmri_edge.runtime.networks import locate

    return path if is_reference(str(path)) else locate(path)[0]


def _compare_reports(
    reports: tuple[Path, Path], margins: Path | None, seed: int, *, as_json: bool
) -> int:
    """Print whether the network of one report may replace that of another; 0 if it may."""
    from kdmri_bench.assessment.compare import compare_reports, is_report

    for path in reports:
        if not is_report(path):
            raise click.UsageError(
                f"{path} is no report of `kdmri-edge assess`; to compare networks, give --data."
            )
    answers = compare_reports(*reports, margins=margins, seed=seed)
    if as_json:
        print_result(json.dumps([answer.to_dict() for answer in answers], indent=1))
    else:
        for answer in answers:
            tell(str(answer))
    return 0 if all(answer.allowed for answer in answers) else 1
