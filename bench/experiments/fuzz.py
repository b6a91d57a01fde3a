"""Damaged files for every reader: `python -m experiments.fuzz`.

Good files of every kind (`experiments.specimens`) are damaged by what a seed draws, and read. Right
is an image or a `KdmriError`; any other exception is a defect, and so are a crash of the process, a
reader that takes longer than 5 s, and memory that grows. Each kind of file has a process of its
own, which is watched.
"""

from __future__ import annotations

import json
import queue
import random
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import psutil

from experiments.script import Script, record
from experiments.specimens import Specimen, clear, specimens
from kdmri_edge.errors import BenchError, KdmriError
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.files import read_json, write_json
from kdmri_edge.utils.provenance import provenance

__all__ = ["GROWTH", "HANG_S", "Attempt", "attempt", "fuzz", "main", "markdown"]

SCHEMA: Final = 1
HANG_S: Final = 5.0
"""A reader that takes longer hangs."""
GROWTH: Final = 0.05
"""Of a process's resident set, over all but the first fifth of its files: what more is a leak."""
_KILL_S: Final = 60.0
_START_S: Final = 240.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """What came of a damaged file.

    Attributes:
        outcome: "read", "refused", or "defect".
        error: Class of the exception; empty where it was read.
        said: Its message; of a defect the traceback.
        seconds: How long it took.
    """

    outcome: str
    error: str
    said: str
    seconds: float


def attempt(specimen: Specimen, seed: int, place: Path) -> Attempt:
    """Damage a file as a seed draws it, and read it.

    Args:
        specimen: The file.
        seed: Of the damage.
        place: A folder to write it into.
    """
    folder = place / f"case-{seed}"  # a name of its own: what was said of a file is remembered
    path = specimen.written(folder, random.Random(f"{specimen.name} {seed}"))
    began = time.monotonic()
    outcome, error, said = "read", "", ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            specimen.read(path)
    except KdmriError as refusal:
        outcome, error, said = "refused", type(refusal).__name__, str(refusal)
    except Exception as defect:
        outcome, error, said = "defect", type(defect).__name__, traceback.format_exc()
    finally:
        clear(folder)
    return Attempt(outcome=outcome, error=error, said=said, seconds=time.monotonic() - began)


def _resident() -> int:
    """Bytes of this process and of those that it started."""
    own = psutil.Process()
    return sum(one.memory_info().rss for one in (own, *own.children(recursive=True)))


def _work(name: str, bundle: Path, first: int, last: int) -> None:
    """Be the process of one kind of file: say on standard output what begins, and what came."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "specimens"
        place.mkdir()
        specimen = next(one for one in specimens(place, bundle) if one.name == name)
        specimen.read(specimen.written(Path(folder) / "whole"))
        warm = first + (last - first) // 5
        for seed in range(first, last):
            print(json.dumps({"seed": seed}), flush=True)
            found = attempt(specimen, seed, Path(folder))
            line: dict[str, Any] = {
                "outcome": found.outcome,
                "error": found.error,
                "said": found.said[-2000:] if found.outcome == "defect" else "",
                "seconds": round(found.seconds, 3),
            }
            if seed in (warm, last - 1):
                line["resident"] = _resident()
            print(json.dumps(line), flush=True)


def _lines(process: subprocess.Popen[str]) -> Iterator[dict[str, Any] | None]:
    """Yield what a process says; None where it says nothing for too long."""
    assert process.stdout is not None
    said: queue.Queue[str] = queue.Queue()
    stream = process.stdout

    def listen() -> None:
        for line in stream:
            said.put(line)
        said.put("")

    threading.Thread(target=listen, daemon=True).start()
    patience = _START_S
    while True:
        try:
            line = said.get(timeout=patience)
        except queue.Empty:
            yield None
            return
        if not line:
            return
        patience = _KILL_S
        yield json.loads(line)


def _of_kind(name: str, bundle: Path, count: int, seed: int) -> dict[str, Any]:
    """Fuzz one kind of file in processes that are watched.

    Raises:
        BenchError: The process does not start.
    """
    outcomes: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    troubles: list[dict[str, Any]] = []
    resident: list[int] = []
    slowest, hangs = 0.0, 0
    first, last = seed, seed + count
    while first < last:
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.fuzz", "--kind", name, "--bundle", str(bundle),
             "--seed", str(first), "--mutations", str(last - first)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        at, silent = None, False
        for line in _lines(process):
            if line is None:
                silent = True
                process.kill()
                break
            if "seed" in line:
                at = int(line["seed"])
                continue
            first = (first if at is None else at) + 1
            outcomes[line["outcome"]] += 1
            slowest = max(slowest, line["seconds"])
            resident += [line["resident"]] if "resident" in line else []
            if line["outcome"] == "refused":
                refused[line["error"]] += 1
            if line["outcome"] == "defect":
                troubles.append({"seed": at, "error": line["error"], "said": line["said"]})
            if line["seconds"] > HANG_S:
                hangs += 1
                troubles.append({"seed": at, "error": f"{line['seconds']} s", "said": ""})
            at = None
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        if at is None and first < last:
            raise BenchError(f"The fuzzing of {name} did not start.", "See what it printed.")
        if at is not None:  # it ended within a case
            outcomes["hang" if silent else "crash"] += 1
            hangs += silent
            troubles.append({"seed": at, "error": "hang" if silent else str(process.returncode),
                             "said": ""})  # fmt: skip
            first, resident = at + 1, []
    return {
        "kind": name,
        "mutations": count,
        "seed": seed,
        "read": outcomes["read"],
        "refused": dict(sorted(refused.items())),
        "defects": outcomes["defect"],
        "crashes": outcomes["crash"],
        "hangs": hangs,
        "slowest_s": slowest,
        "resident_mib": [round(value / 2**20, 1) for value in resident],
        "growth": resident[-1] / resident[0] - 1 if len(resident) > 1 else 0.0,
        "troubles": troubles,
    }


def fuzz(names: list[str], bundle: Path, mutations: int, seed: int,
         parts: Path | None = None) -> dict[str, Any]:  # fmt: skip
    """Fuzz kinds of files, one after another.

    Args:
        names: Of `specimens`.
        bundle: Whose manifest is damaged.
        mutations: Of each kind.
        seed: The first; each file has its own from there on.
        parts: A folder that keeps what is finished, so that the same call goes on.

    Returns:
        Counts for each kind and in all.

    Raises:
        BenchError: A process does not start.
    """
    kinds = []
    with progress("Kinds of files", len(names)) as advance:
        for name in names:
            kept = None if parts is None else parts / f"{name.replace(', ', '-')}.json"
            if kept is not None and kept.is_file():
                kinds.append(read_json(kept, BenchError))
            else:
                kinds.append(_of_kind(name, bundle, mutations, seed))
                if kept is not None:
                    write_json(kept, kinds[-1])
            advance(1)

    def total(key: str) -> int:
        return sum(kind[key] for kind in kinds)

    return {
        "schema": SCHEMA,
        "kinds": kinds,
        "mutations": total("mutations"),
        "read": total("read"),
        "refused": sum(sum(kind["refused"].values()) for kind in kinds),
        "defects": total("defects"),
        "crashes": total("crashes"),
        "hangs": total("hangs"),
        "slowest_s": max(kind["slowest_s"] for kind in kinds),
        "growth": max(kind["growth"] for kind in kinds),
        "provenance": provenance(seed),
    }


def markdown(report: dict[str, Any]) -> str:
    """Return the result as sentences."""
    names = "; ".join(kind["kind"] for kind in report["kinds"])
    return (
        f"{report['mutations']:,} damaged files of {len(report['kinds'])} kinds ({names}):"
        f" {report['refused']:,} refused in a sentence, {report['read']:,} read;"
        f" {report['defects']} other exceptions, {report['crashes']} crashes,"
        f" {report['hangs']} longer than"
        f" {HANG_S:g} s (slowest {report['slowest_s']:.1f} s); resident set"
        f" {100 * report['growth']:+.1f} % where it grew most."
    )


@click.command(cls=Script)
@click.option("--mutations", default=1000, show_default=True, type=click.IntRange(1),
              help="Of each kind of file.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--only", multiple=True, help="This kind of file alone; may be repeated.")
@click.option("--parts", type=click.Path(path_type=Path),
              help="Keep what is finished in this folder; the same command goes on.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Write report.json into this folder.")
@click.option("--kind", hidden=True)
@click.option("--bundle", type=click.Path(path_type=Path), hidden=True)
def main(mutations: int, seed: int, only: tuple[str, ...], parts: Path | None, out: Path | None,
         kind: str | None, bundle: Path | None) -> None:  # fmt: skip
    """Damage files of every kind and read them."""
    if kind is not None and bundle is not None:
        _work(kind, bundle, seed, seed + mutations)
        return
    from experiments.served import make_bundle

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        made = make_bundle(place, 32)
        (place / "specimens").mkdir()
        names = [one.name for one in specimens(place / "specimens", made)]
        unknown = [name for name in only if name not in names]
        if unknown:
            raise BenchError(f"There is no kind {unknown[0]!r}.", f"There are {', '.join(names)}.")
        report = fuzz(list(only) or names, made, mutations, seed, parts)
    record(report, out)
    click.echo(markdown(report))
    for one in report["kinds"]:
        for trouble in one["troubles"][:3]:
            click.echo(f"{one['kind']} {trouble['seed']}: {trouble['error']}\n{trouble['said']}")
    if report["defects"] or report["crashes"] or report["hangs"]:
        raise BenchError("Damaged files had other ends than a sentence.", "They stand above.")
    if report["growth"] > GROWTH:
        raise BenchError(f"Memory grew by {report['growth']:.1%}.", "More than 5 % is a leak.")


if __name__ == "__main__":
    main()
