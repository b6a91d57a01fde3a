"""One row in a file of its own: left by a benchmark that is cut off, or sent by a device.

The file is JSON. `row` is that of report.json, `network` the row's network there; a row that was
measured elsewhere says so by `measured_on`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from kdmri_bench.results.schema import Row, finite, row_from
from kdmri_edge.errors import BenchError
from kdmri_edge.utils.files import damaged, read_json, refuse_newer, write_json

__all__ = ["FORMAT", "VERSION", "RowFile"]

FORMAT: Final = "kdmri-edge row"
VERSION: Final = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class RowFile:
    """A row and where it comes from.

    Attributes:
        row: as far as it is measured.
        network: `role`, `parameters` and `checkpoint_sha256` of what was measured, as far as known.
        measured_on: name of the machine or device; None for the machine that reads it.
        more: other keys of the file.
    """

    row: Row
    network: Mapping[str, Any] = field(default_factory=dict)
    measured_on: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the file, at once.

        Raises:
            OutputError: the place cannot be written to.
        """
        head = {"format": FORMAT, "version": VERSION, "measured_on": self.measured_on}
        body = {"network": dict(self.network), "row": asdict(self.row), **self.more}
        write_json(path, finite({**head, **body}))

    @classmethod
    def read(cls, path: Path) -> RowFile:
        """Read a file.

        Raises:
            BenchError: it is missing or damaged, something else, or of a newer version.
        """
        value = read_json(path, BenchError)
        if isinstance(value, dict) and "engine_sha256" in value:
            with damaged(path, BenchError):
                return cls._of_engine(value)
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise BenchError(
                f"{path} is no row of a benchmark.",
                "Give what the bundle's jetson.py or run_engine.py printed.",
            )
        refuse_newer(path, version := value.get("version"), VERSION, BenchError, named="version")
        if version != VERSION:
            raise BenchError(
                f"{path} is damaged: its version is {version!r}.", "Measure the row again."
            )
        with damaged(path, BenchError):
            known = {"format", "version", "measured_on", "network", "row"}
            place = value.get("measured_on")
            return cls(
                row=row_from(value["row"]),
                network=dict(value.get("network") or {}),
                measured_on=None if place is None else str(place),
                more={key: item for key, item in value.items() if key not in known},
            )

    @classmethod
    def _of_engine(cls, value: Mapping[str, Any]) -> RowFile:
        """Read what a bundle's run_engine.py or jetson.py prints: the row, and what it is of."""
        place = value.get("measured_on") or value["session"]["device"]
        more = {key: value[key] for key in ("machine", "jetson") if key in value}
        row = {"volumes": (), "load_s": (), **value}
        return cls(
            row=row_from(row),
            network=dict(value.get("about") or {}),
            measured_on=str(place),
            more=more,
        )
