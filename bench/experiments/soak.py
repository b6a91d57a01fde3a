"""A server under many scans, some of them faulty: `python -m experiments.soak`.

The server runs in a process of its own. Several clients at a time send it scans over loopback; in
place of one scan in ten stand faulty clients, one after another, which divide all the ways of
`experiments.faults` among them. Counted are the images of good scans that are lost, zero-filled or
wrong, and how the server's resident set grows after a first round of good scans.
"""

from __future__ import annotations

import dataclasses
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from ismrmrd import Image
from numpy.typing import NDArray

from experiments.faults import FAULTS, misbehave
from experiments.script import Script, record
from experiments.served import NETWORK, ServerProcess, coil_scan, make_bundle, repeated
from kdmri_edge.data.scan import Scan
from kdmri_edge.errors import BenchError
from kdmri_edge.mrd.client import send_scan
from kdmri_edge.mrd.format.emit import encoding_of
from kdmri_edge.mrd.format.header import write_encoding
from kdmri_edge.mrd.format.images import fallback_of
from kdmri_edge.runtime.pipeline import Pipeline
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.provenance import provenance

__all__ = ["GROWTH", "SoakSettings", "main", "markdown", "soak"]

SCHEMA: Final = 1
_BASE: Final = 5  # different slices, which a scan repeats
_GAINS: Final = 7  # brightnesses of scans; more than run at once, or none would tell them apart
# Two threads, so that slices are reconstructed beside each other.
_OPTIONS: Final = ("--threads", "2", "--stall", "2", "--opening", "2", "--idle", "4",
                   "--deadline", "60")  # fmt: skip
_CLOSE: Final = 1e-4  # of an image's maximum: far above rounding, far below any mix-up
GROWTH: Final = 0.05
"""Of the server's resident set: what more is called a leak."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SoakSettings:
    """What is sent.

    Attributes:
        slices: Of all scans together.
        sessions: Scans, the faulty ones among them.
        at_once: Clients at a time.
        matrix: Side of the slices in pixels.
        coils: Receive channels.
        faulty: One scan in so many is faulty.
    """

    slices: int = 10_000
    sessions: int = 50
    at_once: int = 4
    matrix: int = 64
    coils: int = 4
    faulty: int = 10

    def kinds(self, number: int) -> tuple[str, ...]:
        """Return the faults that stand in place of scan `number`; none where it is a good one.

        Every kind of fault occurs in a soak that has a faulty session at all, and where there are
        more such sessions than kinds, the kinds come again.
        """
        if number % self.faulty != self.faulty - 1:
            return ()
        turn, turns, names = number // self.faulty, self.sessions // self.faulty, tuple(FAULTS)
        return names[turn::turns] if turns < len(names) else (names[turn % len(names)],)


def soak(settings: SoakSettings) -> dict[str, Any]:
    """Soak a server.

    Returns:
        Counts of images, sessions and faults, and the resident set over the sessions in MiB.

    Raises:
        BenchError: The server does not start, or its sessions do not end.
        KdmriError: The network cannot be exported.
    """
    with tempfile.TemporaryDirectory() as place:
        bundle = make_bundle(Path(place), settings.matrix)
        pipeline = Pipeline(bundle, threads=1)
        scan = coil_scan(pipeline.reads.mask, settings.matrix, slices=_BASE, coils=settings.coils)
        wanted = [np.abs(pipeline.reconstruct(k, scan.mask).image) for k in scan.kspace]
        sessions = str(2 * settings.at_once)
        with ServerProcess(bundle, *_OPTIONS, "--sessions", sessions) as server:
            return _report(settings, _sent(settings, server, scan, wanted), server)


@dataclass(slots=True)
class _Tally:
    """What came of a soak's good scans."""

    good_sessions: int = 0
    expected: int = 0
    lost: int = 0
    zero_filled: int = 0
    wrong: int = 0
    faults: dict[str, int] | None = None
    resident: list[int] | None = None


def _sent(
    settings: SoakSettings, server: ServerProcess, scan: Scan, wanted: list[NDArray[Any]]
) -> _Tally:
    each = max(1, settings.slices // settings.sessions)
    xml = write_encoding(encoding_of(scan), slices=each)
    tally = _Tally(faults={}, resident=[])

    # each scan is as bright as no other at the time: an image of another scan is a wrong one
    scans = [dataclasses.replace(scan, kspace=scan.kspace * _gain(n)) for n in range(_GAINS)]

    def one(number: int) -> tuple[tuple[str, ...], list[Image]]:
        scan = scans[number % _GAINS]
        kinds = settings.kinds(number)
        for name in kinds:
            misbehave(name, xml, list(repeated(scan, each)), server.port)
        if kinds:
            return kinds, []
        return kinds, send_scan(xml, repeated(scan, each), port=server.port, timeout_s=120).images

    def take(number: int, found: tuple[tuple[str, ...], list[Image]]) -> None:
        kinds, images = found
        assert tally.faults is not None
        for name in kinds:
            tally.faults[name] = tally.faults.get(name, 0) + 1
        if kinds:
            return
        tally.good_sessions += 1
        tally.expected += each
        count(tally, images, wanted, each, _gain(number))

    with ThreadPoolExecutor(settings.at_once) as clients:
        warm = [clients.submit(one, 0) for _ in range(2 * settings.at_once)]
        for done in warm:
            done.result()
        connections = len(warm)
        server.sessions(connections)
        assert tally.resident is not None
        tally.resident.append(server.resident())
        with progress("Scans", settings.sessions) as advance:
            for begun in range(0, settings.sessions, settings.at_once):
                numbers = range(begun, min(begun + settings.at_once, settings.sessions))
                for number, found in zip(numbers, clients.map(one, numbers), strict=True):
                    take(number, found)
                    advance(1)
                connections += sum(max(1, len(settings.kinds(number))) for number in numbers)
                server.sessions(connections)
                tally.resident.append(server.resident())
    return tally


def _gain(number: int) -> float:
    """How bright a scan is."""
    return 1.0 + number % _GAINS


def count(
    tally: _Tally, images: list[Image], wanted: list[NDArray[Any]], each: int, gain: float = 1.0
) -> None:
    """Count what a good scan got back: an image that came twice is a wrong one.

    Args:
        tally: Of the soak.
        images: What came back.
        wanted: Images of the slices that scans repeat, at gain 1.
        each: Slices of a scan.
        gain: Of this scan.
    """
    seen = {int(image.slice) for image in images}
    tally.lost += len(set(range(each)) - seen)
    tally.zero_filled += sum(fallback_of(image) is not None for image in images)
    tally.wrong += len(images) - len(seen)
    tally.wrong += sum(not _is(image, wanted, gain) for image in images)


def _is(image: Image, wanted: list[NDArray[Any]], gain: float) -> bool:
    reference = gain * wanted[int(image.slice) % len(wanted)]
    difference = float(np.abs(image.data[0, 0] - reference).max())
    return difference <= _CLOSE * float(reference.max())


def _report(settings: SoakSettings, tally: _Tally, server: ServerProcess) -> dict[str, Any]:
    resident = tally.resident or [0]
    sessions = [event for event in server.events() if event["event"] == "session"]
    outcomes = [str(event["outcome"]) for event in sessions[2 * settings.at_once :]]
    return {
        "schema": SCHEMA,
        "network": NETWORK,
        "slices": settings.slices,
        "sessions": settings.sessions,
        "at_once": settings.at_once,
        "matrix": settings.matrix,
        "coils": settings.coils,
        "server": list(_OPTIONS),
        "good_sessions": tally.good_sessions,
        "good_images": tally.expected,
        "lost": tally.lost,
        "zero_filled": tally.zero_filled,
        "wrong": tally.wrong,
        "faults": dict(sorted((tally.faults or {}).items())),
        "outcomes": {name: outcomes.count(name) for name in sorted(set(outcomes))},
        "defects": sum(event["event"] == "defect" for event in server.events()),
        "resident_mib": [round(value / 2**20, 2) for value in resident],
        "growth": resident[-1] / resident[0] - 1,
        "provenance": provenance(0),
    }


def markdown(report: dict[str, Any]) -> str:
    """Return the result as sentences."""
    resident = report["resident_mib"]
    bad = report["sessions"] - report["good_sessions"]
    clients = sum(report["faults"].values())
    return (
        f"{report['slices']:,} slices of {report['matrix']} x {report['matrix']} with"
        f" {report['coils']} coils in {report['sessions']} scans, {report['at_once']} at a time, of"
        f" which {bad} faulty ({clients} faulty clients of {len(report['faults'])} kinds:"
        f" {', '.join(report['faults'])}): of {report['good_images']:,} images of good scans"
        f" {report['lost']} lost, {report['zero_filled']} zero-filled,"
        f" {report['wrong']} wrong. The server's resident set went from {resident[0]:.0f} to"
        f" {resident[-1]:.0f} MiB ({100 * report['growth']:+.1f} %)."
    )


@click.command(cls=Script)
@click.option("--slices", default=10_000, show_default=True, type=click.IntRange(1))
@click.option("--sessions", default=50, show_default=True, type=click.IntRange(1))
@click.option("--at-once", default=4, show_default=True, type=click.IntRange(1, 64))
@click.option("--matrix", default=64, show_default=True, type=click.IntRange(32, 1024))
@click.option("--coils", default=4, show_default=True, type=click.IntRange(1, 128))
@click.option("--out", type=click.Path(path_type=Path), help="Write report.json into this folder.")
def main(slices: int, sessions: int, at_once: int, matrix: int, coils: int,
         out: Path | None) -> None:  # fmt: skip
    """Send a server many scans, one in ten of them faulty."""
    settings = SoakSettings(
        slices=slices, sessions=sessions, at_once=at_once, matrix=matrix, coils=coils
    )
    report = soak(settings)
    record(report, out)
    click.echo(markdown(report))
    if report["lost"] or report["zero_filled"] or report["wrong"] or report["defects"]:
        raise BenchError("Images of good scans were lost.", "See report.json with --out.")
    if report["growth"] > GROWTH:
        raise BenchError(
            f"The server's resident set grew by {report['growth']:.1%}.",
            "More than 5 % over a long soak is a leak; a short one has not levelled off yet.",
        )


if __name__ == "__main__":
    main()
