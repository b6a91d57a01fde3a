"""What a command prints of a finished benchmark: the page, the results, and what to type next."""

from __future__ import annotations

import json
from collections.abc import Sequence
from shlex import quote
from typing import TYPE_CHECKING

from kdmri_edge.utils.console import print_result, say, table_console, tell

if TYPE_CHECKING:
    from pathlib import Path

    from kdmri_bench.benchmark import Benchmark
    from kdmri_bench.planning.settings import BenchSettings
    from kdmri_bench.results.schema import Row

__all__ = ["export_command", "import_rows", "next_steps", "print_outcome", "print_rows"]


def print_outcome(done: Benchmark, *, as_json: bool) -> None:
    """Name the page first, then print the results and where the other files lie.

    Args:
        done: a benchmark that was saved.
        as_json: print the report as JSON on standard output, not as a table.
    """
    files = dict(done.files)
    page = files.pop("html", None)
    if page is not None:
        say(f"Page to open in a browser: {page}")
    if as_json:
        from kdmri_bench.reporting.notes import seen_lines

        for line in seen_lines(done.report):
            say(f"Warning: {line}")
        print_result(json.dumps(done.report.to_dict(), indent=1, ensure_ascii=False))
    else:
        from kdmri_bench.reporting.table import console_width, print_table

        print_table(done.report, table_console(width=console_width()))
    for kind, path in files.items():
        say(f"{kind}: {path}")


def import_rows(source: Path, rows: Sequence[Path], *, out: Path | None, as_json: bool) -> None:
    """Join rows of other devices to a report, write it, and print it.

    Args:
        source: the report's folder or file.
        rows: files of rows.
        out: folder to write to; None replaces the report.
        as_json: see `print_outcome`.

    Raises:
        BenchError: no report, no row, or a row of another network.
        OutputError: the folder cannot be written to.
    """
    from dataclasses import replace

    from kdmri_bench.benchmark import Benchmark
    from kdmri_bench.reporting.report import report_file, write_report
    from kdmri_bench.results.importing import join

    file = report_file(source)
    report = join(Benchmark.load(file).report, rows)
    panel = file.parent / "panel.png"
    picture = panel.read_bytes() if panel.is_file() else None
    done = Benchmark(report=report)
    print_outcome(
        replace(done, files=write_report(report, out or file.parent, picture)), as_json=as_json
    )


def print_rows(
    sources: Sequence[Path],
    settings: BenchSettings,
    patterns: Sequence[str],
    *,
    as_json: bool = False,
) -> None:
    """Print the keys of rows, what each is, and why those are not measured that cannot be.

    Args:
        sources: what would be measured, as it was named.
        settings: how.
        patterns: of the keys; empty lists all.
        as_json: print them as a list of objects; a row that can be measured has no reason.

    Raises:
        KdmriError: a network is missing or damaged, or a pattern names no row.
    """
    from kdmri_bench.planning.rows import chosen, draft_rows
    from kdmri_bench.planning.sources import gather
    from kdmri_bench.results.figures import runtime_text, spelled

    rows = [draft.plan.row for draft in chosen(draft_rows(gather(sources), settings), patterns)]
    if as_json:
        names = ("key", "network", "role", "runtime", "precision", "variant", "reason")
        listed = [{name: getattr(row, name) for name in names} for row in rows]
        print_result(json.dumps(listed, indent=1, ensure_ascii=False))
        return
    width = max(len(row.key) for row in rows)
    for row in rows:
        text = spelled(f"{runtime_text(row)}, {row.precision}")
        tell(f"{row.key:<{width}}  {row.reason or text}")


def next_steps(
    done: Benchmark, sources: Sequence[Path], *, again_on: Path | None = None
) -> list[str]:
    """Return the commands that follow a benchmark, ready to be typed.

    Args:
        done: a benchmark that was saved.
        sources: what was measured, as it was named.
        again_on: the data of a quick benchmark, which should be measured again; else None.
    """
    from kdmri_bench.results.select import choose, knows_loss, limits_of

    report = done.files["json"]
    limits = "--max-latency 20ms --max-memory 300MB"
    if knows_loss(done.report):  # without a teacher no variant keeps a limit on it
        limits += " --max-loss 0.1dB"
    steps = [f"kdmri-edge select {quote(str(report))} {limits}  # other limits, measured already"]
    row = done.recommended or choose(done.report, limits_of(done.report)).nearest
    command = None if row is None else export_command(row, sources)
    if command is not None:
        steps.append(f"{command}  # that variant as a bundle")
    if again_on is not None:
        named = " ".join(quote(str(source)) for source in sources)
        data = quote(str(again_on))
        own = done.report.settings.get("evaluation", "target")
        also = "" if own == "target" else f" --evaluation {own}"
        steps.append(f"kdmri-edge bench {named} --data {data}{also} --full  # for publication")
    return steps


def export_command(row: Row, sources: Sequence[Path]) -> str | None:
    """Return the command that writes a variant as a bundle; None for one that is no export.

    Args:
        row: of the report.
        sources: what was measured, as it was named: networks of the package, or one run. Of other
            sources it is not known which one a row belongs to.
    """
    from kdmri_edge.models.shipped import shipped_networks
    from kdmri_edge.runtime.targets import PRECISIONS, TARGETS

    target = next((t for t in TARGETS.values() if t.backend.title == row.runtime), None)
    users = {short: name for name, short in PRECISIONS.items()}
    if target is None or row.precision not in users or row.precision not in target.precisions:
        return None
    known = shipped_networks()
    alike = [s for s in map(str, sources) if s in known and known[s].entry["role"] == row.role]
    if len(alike) == 1 and all(str(source) in known for source in sources):
        source = alike[0]
    elif len(sources) == 1 and (sources[0] / "run.json").is_file():
        source = quote(str(sources[0]))
        source += "" if row.role == "student" else f" --model {row.role}"
    else:
        return None
    precision = "" if row.precision == "f32" else f" --precision {users[row.precision]}"
    return f"kdmri-edge export {source} --target {target.name}{precision}"
