"""Joining rows that were measured on another device to a report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kdmri_bench.results.rowfile import RowFile
from kdmri_bench.results.schema import Network, Report, Status
from kdmri_edge.errors import BenchError
from kdmri_edge.physics.masks import Mask
from kdmri_edge.utils.files import damaged

__all__ = ["join"]


def join(report: Report, paths: Sequence[Path]) -> Report:
    """Return a report with rows that a device has sent.

    A row's key says where it was measured; one of the same key, imported before, is replaced. Time
    of another machine is not compared with this one's: there is no speed-up, no share of a peak,
    and such rows are not recommended.

    Args:
        report: of networks for the same mask and matrix.
        paths: what the bundle's jetson.py or run_engine.py printed.

    Raises:
        BenchError: a file is none of these, or its network is none of the report's.
    """
    rows = {row.key: row for row in report.rows}
    for path in paths:
        sent = RowFile.read(path)
        with damaged(path, BenchError):
            network = _network(report, sent, path)
        place = sent.measured_on or "another device"
        key = f"{network.name}/{sent.row.key.rpartition('/')[2]}@{_word(place)}"
        rows[key] = replace(
            sent.row,
            key=key,
            network=network.name,
            role=network.role,
            variant=f"on {place}",
            status=Status.MEASURED,
            measured_on=place,
            speedup=None,
            limit=None,
            to_teacher={},
        )
    return replace(report, rows=tuple(rows.values()))


def _network(report: Report, sent: RowFile, path: Path) -> Network:
    """Return the report's network that a row is of."""
    about = sent.network
    if not about:
        raise BenchError(
            f"{path} does not say which network it is of.",
            "Measure it again with the scripts of a bundle that this version exports.",
        )
    mask = Mask.from_dict(about["mask"]).sha256
    if mask != report.mask.get("sha256") or int(about["matrix"]) != report.matrix:
        raise BenchError(
            f"{path} is for another mask or matrix than the report.",
            "Join it to the report of networks for the same.",
        )
    role, size = str(about["role"]), int(about["parameters"])
    alike = [one for one in report.networks if one.role == role and one.parameters == size]
    if len(alike) != 1:
        raise BenchError(
            f"{path} is of a {role} of {size:,} parameters, of which the report has {len(alike)}.",
            "Join it to the report of that network.",
        )
    return alike[0]


def _word(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
