"""`kdmri-edge assess`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kdmri_edge.utils.console import say

__all__ = ["assess"]


@click.command()
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
    help="The network that the others are compared with.  [default: the one that says it is a"
    " teacher, else the one of the most operations]",
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
@click.option("--contrast", help="Assess on this contrast only, e.g. FLAIR.")
@click.option("--subjects", help="Assess on exactly these subjects, comma-separated.")
@click.option(
    "--limit-slices", type=click.IntRange(min=1),
    help="Take N slices around the middle of each volume; all of them without this.",
)  # fmt: skip
@click.option(
    "--int8/--no-int8", default=True, show_default="int8",
    help="Assess the int8 copies of checkpoints as well.",
)  # fmt: skip
@click.option(
    "--in-pytorch", is_flag=True,
    help="Export nothing: run checkpoints in PyTorch, int8 with layers that round as an export's.",
)  # fmt: skip
@click.option(
    "--other-data", multiple=True, type=click.Path(path_type=Path, exists=True),
    help="Data of other scanners or fields, for the section on robustness; may be repeated.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of all that is drawn.")
@click.option("--threads", type=int, help="CPU threads.  [default: the runtime's choice]")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def assess(
    networks: tuple[Path, ...],
    data: tuple[Path, ...],
    out: Path | None,
    teacher: str | None,
    sections: str | None,
    list_sections: bool,
    margins: Path | None,
    contrast: str | None,
    subjects: str | None,
    limit_slices: int | None,
    int8: bool,
    in_pytorch: bool,
    other_data: tuple[Path, ...],
    seed: int,
    threads: int | None,
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
    """  # noqa: D301 - click wants the backspace itself
    if list_sections:
        from kdmri_bench.assessment.sections import SECTIONS

        width = max(len(name) for name in SECTIONS)
        for row in SECTIONS.values():
            click.echo(f"{row.name:<{width}}  {row.asks}")
        return
    if not networks:
        raise click.UsageError("Missing argument 'NETWORKS': the networks to assess.")
    if not data:
        raise click.UsageError("Missing option '--data': the folder of the test volumes.")
    from kdmri_bench.assessment.assess import assess as measure

    done = measure(
        list(networks),
        [str(place) for place in data],
        teacher=teacher,
        sections=_list(sections),
        margins=margins,
        contrast=contrast,
        subjects=_list(subjects),
        limit_slices=limit_slices,
        int8=int8,
        in_pytorch=in_pytorch,
        other_data=other_data,
        seed=seed,
        threads=threads,
        out=out or Path("kdmri-assessment"),
    )
    say(f"Page to open in a browser: {done.files['html']}")
    if as_json:
        click.echo(json.dumps(done.to_dict(), indent=1, ensure_ascii=False))
    else:
        from kdmri_bench.assessment.text import plain

        click.echo(plain(done))
    say(f"json: {done.files['json']}")


def _list(text: str | None) -> list[str]:
    """Split a comma-separated option."""
    return [] if text is None else [name.strip() for name in text.split(",") if name.strip()]
