"""How a benchmark is run: typed, checked, and recorded with the results."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from kdmri_edge.errors import BenchError
from kdmri_edge.runtime.targets import PRECISIONS

__all__ = [
    "EVALUATIONS",
    "FULL",
    "PROFILED",
    "QUICK",
    "USUAL",
    "BenchSettings",
    "Precision",
    "available_threads",
]


class Precision(StrEnum):
    """Precision that a runtime is asked to compute in; what it executed is read back."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    INT8 = "int8"

    @classmethod
    def of(cls, name: str) -> Precision:
        """Return the precision that users write as fp32, fp16, bf16 or int8 (f32 and f16 too).

        Raises:
            BenchError: there is none of that name.
        """
        try:
            return cls(PRECISIONS.get(name, name))
        except ValueError:
            raise BenchError(
                f"There is no precision {name!r}.", f"Give one of {', '.join(PRECISIONS)}."
            ) from None


USUAL: Final = (Precision.F32, Precision.BF16, Precision.INT8)
"""Measured unless others are asked for: CPUs have nothing to gain from float16."""


EVALUATIONS: Final = ("target", "fastmri")
"""What outputs may be compared with, see `BenchSettings`."""


def available_threads() -> int:
    """Number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchSettings:
    """Settings of a benchmark.

    Attributes:
        threads: threads of every backend; None takes every CPU that the process may use.
        precisions: which precisions to measure, where a backend has a choice.
        samples: timed queries per row, over all rounds.
        warmup: untimed queries before the first sample of each round.
        rounds: how often the sequence of rows is gone through (A B C A B C), so that a drift of
            the machine touches all rows alike.
        plain_export: also measure exports that keep DFT nodes, as a plain export would.
        limit_slices: central slices kept of each volume; None keeps all.
        every_way: also measure other ways of running the same network: memory layouts,
            torch.compile, throughput hints, and whatever a GPU offers.
        mode: what the settings are called: "quick", "full" or "custom".
        seconds: a row stops after so many per round, though it has fewer samples; None never.
        end_to_end: timed queries from k-space to image, over all rounds; 0 for none. The network's
            own time is taken within them; only what `samples` asks for beyond is run alone.
        batches: batch sizes of the offline throughput; empty for none.
        throughput_s: seconds for each batch size.
        compile: whether rows with torch.compile are measured, which compile for minutes.
        peaks_s: seconds for each of the machine's own limits; 0 measures none.
        profile: queries that every layer is timed in, after everything else and in processes of
            their own, since that slows a network; 0 for none.
        timeout_s: after so many seconds a row's process is ended and its row says so.
        restart: rows on the CPU start a process anew in each round. What differs from one process
            to the next is then part of the scatter between rounds, as for an independent timing.
            Otherwise, and on a GPU always, a row's process lives through all its rounds.
        limit_s: no row begins after so many seconds, each row is complete after its first round, so
            that later rounds may be missing, and CPUs measure the first batch alone; None sets no
            limit.
        evaluation: what outputs are compared with: "target", what the networks are taught, or
            "fastmri", the files' references in fastMRI's convention.

    Raises:
        BenchError: a value is out of range.
    """

    threads: int | None = None
    precisions: tuple[Precision, ...] = USUAL
    samples: int = 100
    warmup: int = 10
    rounds: int = 2
    plain_export: bool = False
    limit_slices: int | None = None
    every_way: bool = False
    mode: str = "custom"
    seconds: float | None = None
    end_to_end: int = 0
    batches: tuple[int, ...] = ()
    throughput_s: float = 1.0
    compile: bool = True
    peaks_s: float = 0.0
    profile: int = 0
    timeout_s: float = 1800.0
    restart: bool = False
    limit_s: float | None = None
    evaluation: str = "target"

    def __post_init__(self) -> None:
        """Check the ranges."""
        lowest = {
            "threads": (self.threads, 1),
            "samples": (self.samples, 1),
            "warmup": (self.warmup, 0),
            "rounds": (self.rounds, 1),
            "limit-slices": (self.limit_slices, 1),
            "batches": (min(self.batches, default=None), 1),
        }
        for name, (value, low) in lowest.items():
            if value is not None and value < low:
                raise BenchError(f"--{name} {value} is too small.", f"Give {low} or more.")
        if self.limit_s is not None and not self.limit_s > 0:
            raise BenchError(f"A limit of {self.limit_s:g} s is too short.", "Give more.")
        if not self.timeout_s > 0:
            raise BenchError(f"A timeout of {self.timeout_s:g} s is too short.", "Give more.")
        if self.evaluation not in EVALUATIONS:
            raise BenchError(
                f"There is no evaluation {self.evaluation!r}.",
                f"Give one of {', '.join(EVALUATIONS)}.",
            )
        if self.evaluation == "fastmri" and self.limit_slices is not None:
            raise BenchError(
                "fastMRI's figures are of whole volumes, and some slices alone are asked for.",
                "Leave the limit of slices out, or the evaluation.",
            )
        if not self.precisions:
            raise BenchError(
                "No precision is to be measured.", "Give --precision fp32, bf16 or int8."
            )

    @property
    def samples_per_round(self) -> list[int]:
        """The samples spread over the rounds as evenly as they go; no round is empty."""
        return _spread(self.samples, min(self.rounds, self.samples))

    @property
    def end_to_end_per_round(self) -> list[int]:
        """The same for the queries from k-space to image; a round may have none."""
        return _spread(self.end_to_end, len(self.samples_per_round))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, the number of threads resolved."""
        value = asdict(self)
        value["threads"] = self.threads or available_threads()
        value["precisions"] = [str(precision) for precision in self.precisions]
        return value


def _spread(count: int, rounds: int) -> list[int]:
    each, rest = divmod(count, rounds)
    return [each + (index < rest) for index in range(rounds)]


PROFILED: Final = 30
"""Queries that `bench --profile` times layers in."""

QUICK: Final = BenchSettings(
    mode="quick",
    samples=40,
    warmup=3,
    rounds=2,
    seconds=2.0,
    end_to_end=40,
    batches=(1,),
    throughput_s=1.0,
    compile=False,
    peaks_s=0.3,
    plain_export=True,
    every_way=True,
    limit_slices=4,
)
"""An answer in minutes: few samples, the central slices of each volume, no p99."""

FULL: Final = BenchSettings(
    mode="full",
    samples=1024,
    warmup=10,
    rounds=3,
    seconds=20.0,
    end_to_end=1024,
    batches=(1, 8, 32),
    throughput_s=5.0,
    peaks_s=1.0,
    plain_export=True,
    every_way=True,
    timeout_s=3600.0,
    restart=True,
)
"""For publication, unattended: 1,024 queries or 60 s for each row, whole volumes, every batch."""
