"""What the benchmark and the process of one row say to each other, as JSON files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Job", "JobResult"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a worker does.

    Attributes:
        source: bundle folder or checkpoint file.
        backend: the runtime's name, None for the source's own.
        precision: to ask the backend for.
        threads: of the backend.
        options: further arguments of `open_session`.
        query: .npy file, float32 [1, C, H, W], normalised: the input that is timed.
        warmup: untimed queries.
        samples: timed queries.
        volumes: pairs of .npy files: zero-filled volume [S, H, W] to read and reconstruction to
            write; empty to measure time and memory only.
    """

    source: str
    backend: str | None
    precision: str
    threads: int
    query: str
    warmup: int
    samples: int
    options: Mapping[str, Any] = field(default_factory=dict)
    volumes: tuple[tuple[str, str], ...] = ()

    def write(self, path: Path) -> None:
        """Write the job for a worker."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read what `write` wrote."""
        value = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**value, "volumes": tuple((a, b) for a, b in value["volumes"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class JobResult:
    """What a worker found, or why it could not.

    Attributes:
        error: the reason, None when all went well; then the rest is filled in.
        absent: with an error: this machine lacks a package, a device or a precision; nothing broke.
        load_s: seconds from nothing to a session that is ready, imports of the runtime included.
        latency_s: durations of the timed queries, seconds.
        memory: bytes: `baseline` (resident before the runtime was imported), `loaded` (after the
            session was opened), `peak` (largest until the last timed query), `above_baseline`
            (peak - baseline); and `source`.
        info: what the session says about itself (`SessionInfo`).
    """

    error: str | None = None
    absent: bool = False
    load_s: float = 0.0
    latency_s: tuple[float, ...] = ()
    memory: Mapping[str, Any] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the result for the parent."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> JobResult:
        """Read what `write` wrote.

        Raises:
            ValueError: the file is not a result.
        """
        value = json.loads(path.read_text(encoding="utf-8"))
        try:
            return cls(**{**value, "latency_s": tuple(value["latency_s"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"{path.name} is not a result ({error})") from error
