"""A run: the folder that `kdmri-edge distill` writes (torch-free)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kdmri_edge.errors import RunError
from kdmri_edge.utils.files import read_json, refuse_newer, write_json

__all__ = [
    "ROLES",
    "RUNS_FOLDER",
    "RUN_FORMAT",
    "Run",
    "RunNetwork",
    "all_machines",
    "devices",
    "newest_run",
    "note_machine",
    "open_run",
    "tuned_for",
    "tuned_path",
]

RUN_FORMAT = 1
RUNS_FOLDER = Path("runs")
# What each network of a run is called in tables.
ROLES = {"teacher": "teacher", "plain": "plain student", "student": "distilled student"}


@dataclass(frozen=True)
class Run:
    """A folder with the networks of one distillation.

    Attributes:
        path: The folder; it holds run.json, one safetensors file per role, log.csv and, after
            exporting, exports/.
    """

    path: Path

    @cached_property
    def meta(self) -> Mapping[str, Any]:
        """Contents of run.json.

        Raises:
            RunError: It is missing, unreadable or of a newer format.
        """
        value = read_json(self.path / "run.json", RunError, finite=False)
        form = value.get("format") if isinstance(value, dict) else None
        refuse_newer(self.path / "run.json", form, RUN_FORMAT, RunError)
        if type(form) is not int or form < 1:
            raise RunError(
                f"{self.path / 'run.json'} is damaged: it names no format of a run.",
                "Copy the run again, or train it again.",
            )
        meta: Mapping[str, Any] = value
        return meta

    @property
    def complete(self) -> bool:
        """Whether everything that the run was asked for is trained.

        Raises:
            RunError: See `meta`.
        """
        return self.meta.get("status") == "complete"

    @property
    def exports_dir(self) -> Path:
        """Where exports of this run go."""
        return self.path / "exports"

    def roles(self) -> list[str]:
        """Return the roles whose weights are finished, in the order teacher, plain, student."""
        return [role for role in ROLES if self.has(role)]

    def has(self, role: str) -> bool:
        """Tell whether the weights of a role are finished."""
        return self.file(role).is_file()

    def file(self, role: str) -> Path:
        """Return where the checkpoint of a role lies or will lie."""
        return self.path / f"{role}.safetensors"

    @property
    def teacher(self) -> RunNetwork:
        """The teacher.

        Raises:
            RunError: It is not trained (yet).
        """
        return self.network("teacher")

    @property
    def plain(self) -> RunNetwork:
        """The student that was trained without a teacher.

        Raises:
            RunError: It is not trained (yet).
        """
        return self.network("plain")

    @property
    def student(self) -> RunNetwork:
        """The distilled student.

        Raises:
            RunError: It is not trained (yet).
        """
        return self.network("student")

    def network(self, role: str) -> RunNetwork:
        """Return a finished network, which can stand wherever a checkpoint's path can.

        Raises:
            RunError: It is not trained (yet).
        """
        self.weights(role)
        return RunNetwork(run=self, role=role)

    def tuned(self, quantise: str) -> Path:
        """Return where the student lies, or will lie, that was tuned with int8 rounding.

        Args:
            quantise: "int8" (CPUs) or "int8-signed" (TensorRT).
        """
        return tuned_path(self.file("student"), quantise)

    def weights(self, role: str) -> Path:
        """Return the checkpoint of a role.

        Raises:
            RunError: That network is not trained (yet).
        """
        file = self.file(role)
        if not file.is_file():
            raise RunError(
                f"Run {self.path} has no finished {ROLES.get(role, role)}.",
                f"Finish it: `kdmri-edge distill --resume --out {self.path}`.",
            )
        return file


@dataclass(frozen=True, kw_only=True)
class RunNetwork(os.PathLike[str]):
    """A finished network of a run; as a path it is its checkpoint.

    Attributes:
        run: The run.
        role: "teacher", "plain" or "student".
    """

    run: Run
    role: str

    @property
    def path(self) -> Path:
        """Its checkpoint."""
        return self.run.file(self.role)

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __str__(self) -> str:
        return f"{ROLES.get(self.role, self.role)} of {self.run.path}"


def open_run(path: Path) -> Run:
    """Open a run folder.

    Raises:
        RunError: The folder does not exist or is not a run.
    """
    if not (path / "run.json").is_file():
        known = "is not a run (it has no run.json)" if path.exists() else "does not exist"
        raise RunError(f"{path} {known}.", "Give a run's folder, as `kdmri-edge distill` wrote it.")
    run = Run(path)
    _ = run.meta
    return run


def tuned_path(checkpoint: Path, quantise: str) -> Path:
    """Return where the copy of a checkpoint lies that was tuned for "int8" or "int8-signed"."""
    return checkpoint.with_name(f"{checkpoint.stem}-{quantise}{checkpoint.suffix}")


def tuned_for(checkpoint: Path, precision: str, *, signed: bool) -> Path:
    """Return the checkpoint that an export should start from.

    Args:
        checkpoint: A network of a run or of the package.
        precision: Of the export.
        signed: Whether the target has signed integers alone (TensorRT).

    Returns:
        For int8 the copy beside it that was tuned for that rounding (`distill --quantize`), where
        there is one; else the checkpoint itself.
    """
    if precision != "int8":
        return checkpoint
    tuned = tuned_path(checkpoint, "int8-signed" if signed else "int8")
    return tuned if tuned.is_file() else checkpoint


def newest_run(root: Path = RUNS_FOLDER) -> Run:
    """Return the run under `root` whose networks were finished last.

    Raises:
        RunError: There is none.
    """
    runs = [Run(file.parent) for file in root.glob("*/run.json")]
    finished = [run for run in runs if run.roles()]
    if not finished:
        raise RunError(
            f"There is no finished run under {root}/.",
            "Make one with `kdmri-edge distill`, or name a run or checkpoint.",
        )
    return max(finished, key=lambda run: max(run.weights(r).stat().st_mtime for r in run.roles()))


def _what(ran: Mapping[str, Any]) -> tuple[Any, ...]:
    return ran.get("device"), ran.get("precision")


def all_machines(meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what ran, as `engine.describe` says it, of a run.json: first where it was begun."""
    return [dict(meta["ran_on"]), *map(dict, meta.get("resumed_on", []))]


def devices(files: Iterable[Path]) -> list[str]:
    """Return the devices and precisions that runs were trained on, each once.

    Args:
        files: Their run.json.

    Raises:
        RunError: One cannot be read.
    """
    found = {
        f"{ran['device']} ({ran['precision']})": None
        for file in sorted(files)
        for ran in all_machines(dict(read_json(file, RunError, finite=False)))
    }
    return list(found)


def note_machine(file: Path, ran: Mapping[str, Any]) -> None:
    """Write into a run.json what the run goes on on, where that is another device or precision.

    Args:
        file: The run.json.
        ran: What `engine.describe` says now.

    Raises:
        RunError: It cannot be read.
    """
    meta = dict(read_json(file, RunError, finite=False))
    known = all_machines(meta)
    if _what(ran) not in map(_what, known):
        write_json(file, {**meta, "resumed_on": [*known[1:], dict(ran)]})
