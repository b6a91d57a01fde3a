"""Starting or resuming a distillation: what the command line and the library call."""

from __future__ import annotations

import shlex
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kdmri_edge.distillation.request import Request
from kdmri_edge.distillation.run_folder import RUNS_FOLDER, Run
from kdmri_edge.errors import DataError, Interrupted, OutputError, RunError
from kdmri_edge.physics.masks import Mask
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.extras import require
from kdmri_edge.utils.files import check_writable
from kdmri_edge.utils.reading import parse_size

if TYPE_CHECKING:
    from torch import nn

    from kdmri_edge.distillation.engine import Engine
    from kdmri_edge.distillation.recipe import DistillRecipe

__all__ = ["distill", "start"]


def distill(
    *,
    teacher: str | Path | nn.Module | None = None,
    student: str | Path | nn.Module | None = None,
    teacher_weights: str | Path | None = None,
    student_weights: str | Path | None = None,
    convention: str | None = None,
    start_from: str | Path | None = None,
    data: str | Path | None = None,
    acceleration: float | None = None,
    mask: Mask | str | Path | None = None,
    mask_family: str | None = None,
    mask_seed: int | None = None,
    matrix: int | None = None,
    contrast: str | None = None,
    split: str | Path | None = None,
    recipe: DistillRecipe | str | Path | None = None,
    assignments: tuple[str, ...] = (),
    quantize: str | None = None,
    baseline: bool | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    accelerator: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    threads: int | None = None,
    data_memory: int | str | None = None,
    data_cache: str | Path | None = None,
    data_workers: int = 2,
) -> Run:
    """Train a teacher and distil it into a compact student.

    What the first eighteen mean, and their defaults, stands at `Request`. When a run is resumed,
    what is left out is as it was begun.

    Args:
        teacher: Preset to train, or trained network to learn from; or code that makes a network,
            "FILE.py:factory", or a module.
        student: Preset to train, or trained student to tune for int8; or code, or a module.
        teacher_weights: Weights of a teacher that is named as code, which is then not trained.
        student_weights: Weights of such a student, to tune it for int8.
        convention: What `forward` of networks that are named as code takes.
        start_from: Trained network with whose weights the student starts.
        data: Folder of volumes, or "phantom".
        acceleration: Nominal acceleration of a drawn mask.
        mask: A mask, a file, or a network whose mask is taken.
        mask_family: Family of a drawn mask.
        mask_seed: Seed of the draw.
        matrix: Side of the square matrix.
        contrast: Use only volumes of this contrast.
        split: Name or file of the split by subject.
        recipe: A recipe, the name of a shipped one, or a TOML file.
        assignments: Changes of single keys of the recipe, each "KEY=VALUE".
        quantize: Also tune a copy of the student for this int8 export.
        baseline: Also train the student without a teacher.
        out: Run folder; None makes runs/TIME.
        resume: Go on with the run in `out`.
        accelerator: "auto", "cpu" or "cuda".
        devices: Processes (CPU) or GPUs on each host.
        num_nodes: Hosts.
        threads: CPU threads of each process; None leaves PyTorch's choice.
        data_memory: What slices may take of memory, in bytes or as "8GiB"; None is a quarter of
            the machine's. A data set that needs more is prepared in `data_cache`, from where its
            slices are read as batches need them; the weights are the same.
        data_cache: Folder for that; None is this program's cache folder.
        data_workers: Threads that prepare volumes, and read batches ahead.

    Returns:
        The finished run.

    Raises:
        KdmriError: A subclass of it for everything that a user can cause, see `start`.
        MissingExtraError: PyTorch or Lightning Fabric is not installed.
    """
    request = Request(
        teacher=teacher,
        student=student,
        teacher_weights=teacher_weights,
        student_weights=student_weights,
        convention=convention,
        start_from=start_from,
        data=data,
        acceleration=acceleration,
        mask=mask,
        mask_family=mask_family,
        mask_seed=mask_seed,
        matrix=matrix,
        contrast=contrast,
        split=split,
        recipe=recipe,
        assignments=assignments,
        quantize=quantize,
        baseline=baseline,
    )
    return start(
        request,
        None if out is None else Path(out),
        resume=resume,
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        threads=threads,
        data_memory=data_memory,
        data_cache=data_cache,
        data_workers=data_workers,
    )


def start(
    request: Request,
    out: Path | None = None,
    *,
    resume: bool = False,
    accelerator: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    threads: int | None = None,
    data_memory: int | str | None = None,
    data_cache: str | Path | None = None,
    data_workers: int = 2,
) -> Run:
    """Resolve a request, and train what it asks for.

    Args:
        request: What is asked for.
        out: Run folder; None makes runs/TIME.
        resume: Go on with the run in `out`.
        accelerator: See `distillation.engine.Engine`, as are the three that follow.
        devices: Processes (CPU) or GPUs on each host.
        num_nodes: Hosts.
        threads: CPU threads of each process.
        data_memory: See `distill`, as are the two that follow.
        data_cache: Folder for slices that memory does not hold.
        data_workers: Threads that prepare and read them.

    Returns:
        The finished run.

    Raises:
        Interrupted: Ctrl-C, after the state was saved; the message says how to go on.
        RunError: There is no run to resume, or one where a new one should be.
        OutputError: The folder cannot be made or written to.
        MissingExtraError: PyTorch or Lightning Fabric is not installed.
        KdmriError: See `Request.settings`, `Request.resumed` and `distillation.run.distill`.
    """
    memory = data_memory if isinstance(data_memory, int | None) else _size(data_memory)
    if data_workers < 1:
        raise DataError(f"{data_workers} threads read nothing.", "Give data_workers=1 or more.")
    if resume:
        if out is None:
            raise RunError("There is no run to go on with.", "Name its folder with --out.")
        settings = request.resumed(out)
    else:
        settings = request.settings()
        out = out or RUNS_FOLDER / datetime.now().strftime("%Y%m%d-%H%M%S")
        _check_new(out)
    require("torch", extra="train")
    require("lightning_fabric", extra="train")
    check_writable(out)  # found out now, not when the volumes have been read
    with progress("loading PyTorch"):
        from kdmri_edge.distillation.engine import Engine
        from kdmri_edge.distillation.run import distill as train

    engine = Engine(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        threads=threads,
        data_memory=memory,
        data_cache=None if data_cache is None else Path(data_cache),
        data_workers=data_workers,
    )
    try:
        return train(settings, out, engine=engine)
    except KeyboardInterrupt as stop:
        if not (out / "run.json").is_file():  # there is nothing yet to go on with
            raise
        what = str(stop) if isinstance(stop, Interrupted) else "Interrupted."
        raise Interrupted(f"{what} Go on with: {_resume_command(out, engine)}") from None


def _resume_command(out: Path, engine: Engine) -> str:
    """Return what to type to go on with a run, on the same machine in the same way."""
    words = ["kdmri-edge", "distill", "--resume", "--out", str(out)]
    usual = type(engine)()
    names = [field.name for field in fields(engine)]
    for name in names:
        value = getattr(engine, name)
        if value != getattr(usual, name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _size(text: str) -> int:
    return parse_size(text, "data_memory")


def _check_new(out: Path) -> None:
    """Refuse a folder that a new run cannot have."""
    place = next(path for path in (out, *out.parents, Path()) if path.exists())
    if not place.is_dir():
        raise OutputError(
            f"--out {out} cannot be made: {place} is a file.", "Choose another folder."
        )
    if (out / "run.json").exists():
        raise RunError(
            f"{out} already holds a run.", "Go on with it by --resume, or choose another --out."
        )
