"""Training many networks on a GPU that is lent for minutes: `python -m maintainer.lent_gpu`.

`pack` makes of a folder of volumes one small file, `unpack` a folder again: volumes at the matrix
that they are trained at, rounded to some bits of their largest value. `train` then trains what the
records of students need, side by side and most telling first, until it is done or stopped; each
training's state is kept, and the networks are evaluated elsewhere, on the volumes themselves.
`home` has the networks name the volumes themselves, not their packed copies, so that whoever tests
them sees what they were trained on. `report` says how long the trainings took.

Start NVIDIA's MPS before (`nvidia-cuda-mps-control -d`, with one CUDA_MPS_PIPE_DIRECTORY for it and
for `train`): without it the processes' kernels never run at once, they take turns.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
import statistics
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from experiments.script import Script, record
from kdmri_bench.reproduce.processes import Piece, train_side_by_side
from kdmri_bench.reproduce.protocol import TASKS, CaseSpec, Training, plan
from kdmri_edge.data.datasets import attribution_of, find_volumes, read_found
from kdmri_edge.data.formats.nifti import write_nifti
from kdmri_edge.data.image import ImageRecord
from kdmri_edge.data.resample import to_matrix
from kdmri_edge.data.sources import source_sha256
from kdmri_edge.data.volume import Volume
from kdmri_edge.distillation.engine import Engine
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.errors import BenchError, DataError
from kdmri_edge.models.checkpoint import load_checkpoint, save_checkpoint
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.files import atomic_path, writing

__all__ = ["STUDIES", "durations", "home", "pack", "sentence", "study", "unpack"]

_ATTRIBUTION: Final = "LICENSE.txt"
_SR_MATRIX: Final = TASKS["sr"].matrix


def pack(data: Path, out: Path, *, matrix: int, bits: int) -> Path:
    """Write the volumes of a folder into one file, a tar of compressed volumes.

    Args:
        data: Folder of magnitude volumes.
        out: The file.
        matrix: Side of the images; the largest that they are trained at.
        bits: Of the largest value of each volume; the rounding's error is half of 2^-bits of it.

    Raises:
        DataError: A volume is unreadable, complex, or below the matrix.
        BenchError: Not between 1 and 16 bits.
    """
    if not 1 <= bits <= 16:
        raise BenchError(f"--bits {bits} is not between 1 and 16.", "10 serve brains.")
    files = find_volumes(data)
    with atomic_path(out) as temporary, tarfile.open(temporary, "w") as archive:
        if text := attribution_of(data):
            _add(archive, _ATTRIBUTION, text.encode())
        with progress("Packing volumes", len(files)) as advance:
            for file in files:
                volume = to_matrix(read_found(file), matrix)
                _add(archive, f"{volume.name}.json", json.dumps(_about(volume, bits)).encode())
                _add(archive, f"{volume.name}.xz", _coded(volume, bits))
                advance(1)
    return out


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    # nothing else is told of it, so that the same volumes make the same file
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _about(volume: Volume, bits: int) -> dict[str, Any]:
    if np.iscomplexobj(volume.image):
        raise DataError(f"{volume.name} is complex.", "Pack magnitudes.")
    return {
        "subject": volume.subject,
        "shape": volume.image.shape,
        "step": float(volume.image.max()) / (2**bits - 1),
        "voxel_mm": volume.voxel_mm,
        "source": volume.sha256,
    }


def _coded(volume: Volume, bits: int) -> bytes:
    """Return differences along the readout, small ones as small numbers, low bytes first."""
    levels = np.rint(volume.image * ((2**bits - 1) / float(volume.image.max()))).astype(np.int32)
    steps = np.diff(levels, axis=-1, prepend=0)
    folded = np.where(steps < 0, -2 * steps - 1, 2 * steps).astype("<u4")
    return lzma.compress(folded.view(np.uint8).reshape(-1, 4)[:, :3].T.tobytes())


def _decoded(content: bytes, about: Mapping[str, Any]) -> NDArray[np.float32]:
    planes = np.frombuffer(lzma.decompress(content), np.uint8).reshape(3, -1).astype(np.int32)
    folded = planes[0] | planes[1] << 8 | planes[2] << 16
    steps = np.where(folded & 1, -(folded >> 1) - 1, folded >> 1).reshape(about["shape"])
    levels: NDArray[np.float32] = np.cumsum(steps, axis=-1).astype(np.float32)
    return levels * np.float32(about["step"])


def unpack(file: Path, out: Path, *, matrix: int | None = None) -> Path:
    """Write the volumes of a packed file as NIfTI files, each with its source's SHA-256.

    Args:
        file: What `pack` wrote.
        out: Folder for them.
        matrix: Side of the images; None for the packed ones.

    Raises:
        DataError: The file is none, or damaged, or its volumes are below the matrix.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(file, "r:") as archive:
            members = {entry.name: archive.extractfile(entry) for entry in archive}
            content = {name: stream.read() for name, stream in members.items() if stream}
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{file} holds no packed volumes: {error}.", "Make it with pack.") from None
    if _ATTRIBUTION in content:
        (out / _ATTRIBUTION).write_bytes(content[_ATTRIBUTION])
    names = [name.removesuffix(".json") for name in content if name.endswith(".json")]

    def write(name: str) -> None:
        try:
            about = json.loads(content[f"{name}.json"])
            image = _decoded(content[f"{name}.xz"], about)
        except (lzma.LZMAError, KeyError, ValueError) as error:
            raise DataError(f"{name} in {file} is damaged: {error}.", "Pack it again.") from None
        voxel_mm = None if about["voxel_mm"] is None else tuple(about["voxel_mm"])
        volume = Volume(image=image, name=name, subject=about["subject"], voxel_mm=voxel_mm)
        if matrix is not None:
            volume = to_matrix(volume, matrix)
        write_nifti(
            out / f"{name}.nii",
            ImageRecord(
                image=volume.image,
                voxel_mm=volume.voxel_mm,
                derivation=f"from {about['source']}",
            ),
        )

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, names))
    return out


_B: Final = Training(folder="kd-mri-teacher", recipe="kd-mri", distilled=False)
_PLAIN: Final = Training(
    folder="plain",
    recipe="kd-mri",
    distilled=False,
    teacher="dccnn-d3c5",  # trained by itself, as teachers are
    student="dccnn-d3c5",
)
_C: Final = Training(
    folder="teacher-c",
    recipe="carried",
    tuned=False,
    distilled=False,
    teacher="dccnn-d5c5-carried",
    student="dccnn-edge",
)


def _taught(student: str, recipe: str, by: Training) -> Training:
    return Training(
        folder=f"{student.removeprefix('dccnn-')}-from-{by.folder}",
        recipe=recipe,
        tuned=False,
        taught_by=by.folder,
        teacher=by.teacher,
        student=student,
    )


_HALF: Final = _taught("dccnn-edge-half", "carried-half", _B)
_HALF_C: Final = _taught("dccnn-edge-half", "carried-half", _C)
_EDGE_C: Final = _taught("dccnn-edge", "carried", _C)
_SMALL_C: Final = _taught("dccnn-edge-small", "carried-half", _C)
_VDSR_11: Final = Training(
    folder="vdsr-11", recipe="kd-mri-sr", tuned=False, distilled=False, teacher="vdsr-11",
    student="vdsr-7",
)  # fmt: skip
_VDSR_7: Final = _taught("vdsr-7", "edge-sr", _VDSR_11)
_VDSR_HALF: Final = _taught("vdsr-half", "edge-sr-half", _VDSR_11)

Wanted = tuple[str, int, str, int, tuple[Training, ...]]
"""Task, acceleration, split, seed, trainings."""

_FOLDS: Final = ("brain-fold-1", "brain-fold-2", "brain-fold-3")
STUDIES: Final[dict[str, tuple[Wanted, ...]]] = {
    "folds": tuple(("brain", 4, fold, 0, (_B, _C, _HALF, _PLAIN)) for fold in _FOLDS),
    "seeds": tuple(("brain", 4, "brain", seed, (_B, _HALF, _PLAIN)) for seed in range(3)),
    "from-c": (("brain", 4, "brain", 0, (_C, _EDGE_C, _HALF_C, _SMALL_C)),),
    "accelerations": tuple(
        ("brain", acceleration, "brain", 0, (_B, _HALF, _PLAIN)) for acceleration in (5, 8)
    ),
    "heart": tuple(
        ("cardiac", acceleration, "cardiac", 0, (_B, _HALF, _PLAIN)) for acceleration in (4, 5, 8)
    ),
    "sr": (("sr", 4, "brain", 0, (_VDSR_11, _VDSR_7, _VDSR_HALF)),),
}
"""What records of students need, by name."""


def study(
    names: Sequence[str], data: Path, masks: Path, out: Path, *, steps: int, settings: Sequence[str]
) -> list[Piece]:
    """Return the trainings of some studies, of each those first that wait for no other.

    Args:
        names: Keys of `STUDIES`, most telling first.
        data: Folder that holds the folders brain (240), brain-256 and cardiac.
        masks: The paper's masks.
        out: Folder of the runs.
        steps: Optimiser steps of every network.
        settings: `key=value` settings of every recipe.
    """
    found: list[Piece] = []
    for name in dict.fromkeys(names):
        first: list[Piece] = []
        then: list[Piece] = []
        for task, acceleration, split, seed, trainings in STUDIES[name]:
            case = _case(task, data, masks, acceleration, split, seed, steps, tuple(settings))
            folder = out / task / case.name
            for training in trainings:
                piece = Piece(
                    out=folder / training.folder,
                    settings=case.settings(training, folder),
                    title=f"{task} {case.name}: {training.folder}",
                    after=() if training.taught_by is None else (folder / training.taught_by,),
                )
                (then if piece.after else first).append(piece)
        found += [*first, *then]
    return found


def _case(
    task: str,
    data: Path,
    masks: Path,
    acceleration: int,
    split: str,
    seed: int,
    steps: int,
    settings: tuple[str, ...],
) -> CaseSpec:
    folder = data / (f"brain-{_SR_MATRIX}" if task == "sr" else task)
    any_case = plan(
        task,
        folder,
        masks=masks,
        accelerations=(acceleration,),
        folds=False,
        steps=steps,
        assignments=settings,
    )[0]
    return replace(any_case, split=split, seed=seed)


def home(runs: Path, data: Path) -> list[Path]:
    """Have checkpoints name the volumes that their training volumes were made from.

    Args:
        runs: Folder of runs, at any depth, that were trained on copies of the same names.
        data: The folder that was packed.

    Returns:
        The checkpoints that were changed.

    Raises:
        BenchError: A training volume has no namesake of the same subject in `data`.
        KdmriError: See `load_checkpoint` and `find_volumes`.
    """
    known = {file.name: file for file in find_volumes(data)}
    hashes = {name: source_sha256(file.path) for name, file in known.items()}
    changed = []
    for path in sorted(runs.rglob("*.safetensors")):
        held = load_checkpoint(path)
        volumes = [dict(one) for one in held.training["data"]]
        for one in volumes:
            file = known.get(one["name"])
            if file is None or file.subject != one["subject"]:
                raise BenchError(
                    f"{path} was trained on {one['name']} of subject {one['subject']}, which"
                    f" {data} does not hold.",
                    "Give the folder that was packed.",
                )
            one["sha256"] = hashes[one["name"]]
        volumes = list({one["name"]: one for one in volumes}.values())  # of several copies, once
        if volumes != held.training["data"]:
            save_checkpoint(path, replace(held, training={**held.training, "data": volumes}))
            changed.append(path)
    return changed


def durations(runs: Path) -> dict[str, Any]:
    """Return how long finished trainings took that ran side by side.

    Args:
        runs: Folder of the runs, at any depth.

    Raises:
        BenchError: It holds no finished run, or they were made by different revisions or devices.
    """
    found = []
    for file in sorted(runs.rglob("run.json")):
        run = Run(file.parent)
        if not run.complete:
            continue
        settings, origin = run.meta["settings"], run.meta["provenance"]
        stages: dict[str, tuple[int, float]] = {}
        with (file.parent / "log.csv").open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                stages[row["stage"]] = int(row["step"]), float(row["seconds"])
        found.append(
            {
                "network": settings["student" if settings["distilled"] else "teacher"],
                "split": settings["split"],
                "mask": settings["mask"]["name"],
                "seed": settings["recipe"]["seed"],
                "batches": {key: settings["recipe"]["batches"][key] for key in ("size", "strip")},
                "matrix": settings["matrix"],
                "steps": sum(steps for steps, _ in stages.values()),
                "seconds": sum(seconds for _, seconds in stages.values()),
                "began": origin["time_utc"],
                "ran_on": run.meta["ran_on"],
                "provenance": origin,
            }
        )
    same = {json.dumps([one["ran_on"], one["provenance"]["git"]]) for one in found}
    if len(same) != 1:
        what = "different devices or revisions" if found else "no finished trainings"
        raise BenchError(f"{runs} holds {what}.", "Give the runs of one call of train.")
    return {
        "schema": 1,
        "at_once": _at_once(found),
        "ran_on": found[0]["ran_on"],
        "provenance": found[0]["provenance"],
        "trainings": [
            {key: value for key, value in one.items() if key not in ("ran_on", "provenance")}
            for one in found
        ],
    }


def _at_once(found: Sequence[Mapping[str, Any]]) -> int:
    """Return how many trainings ran at the same time at most."""
    spans: list[tuple[float, float]] = [
        (begin := datetime.fromisoformat(one["began"]).timestamp(), begin + one["seconds"])
        for one in found
    ]
    return max(sum(begin <= at < end for begin, end in spans) for at, _ in spans)


def sentence(report: Mapping[str, Any]) -> str:
    """Say how long they took."""
    trainings = report["trainings"]
    counts = Counter(one["network"] for one in trainings)
    names = ", ".join(f"{count} `{name}`" for name, count in sorted(counts.items()))
    seconds, steps = (sorted(one[key] for one in trainings) for key in ("seconds", "steps"))
    pace = sorted(one["seconds"] / one["steps"] for one in trainings)
    slices = [o["batches"]["size"] * o["batches"]["strip"] / o["matrix"] for o in trainings]
    each = f"{steps[0]:,}" if steps[0] == steps[-1] else f"{steps[0]:,} to {steps[-1]:,}"
    return (
        f"On one {report['ran_on']['device']} ({report['ran_on']['precision']}) up to"
        f" {report['at_once']} trainings side by side: {len(trainings)} networks ({names}) of"
        f" {each} steps took {seconds[0] / 60:.1f} to {seconds[-1] / 60:.1f} minutes,"
        f" {1000 * statistics.median(pace):.0f} ms a step, which makes"
        f" {report['at_once'] * statistics.median(slices) / statistics.median(pace):.0f} slices per"
        " second in all."
    )


@click.group()
def main() -> None:
    """Train many networks on a GPU that is lent for minutes."""


@main.command("pack", cls=Script)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The file.")
@click.option("--matrix", type=int, default=256, show_default=True, help="Side of the images.")
@click.option("--bits", type=int, default=10, show_default=True, help="Of a volume's maximum.")
def _pack(data: Path, out: Path, matrix: int, bits: int) -> None:
    """Write the volumes of DATA into one small file."""
    click.echo(f"{pack(data, out, matrix=matrix, bits=bits).stat().st_size} bytes")


@main.command("unpack", cls=Script)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder.")
@click.option("--matrix", type=int, help="Side of the images.  [default: the packed ones]")
def _unpack(file: Path, out: Path, matrix: int | None) -> None:
    """Write the volumes of a packed FILE as NIfTI files."""
    click.echo(str(unpack(file, out, matrix=matrix)))


@main.command("train", cls=Script)
@click.argument("studies", nargs=-1, required=True, type=click.Choice(list(STUDIES)))
@click.option(
    "--data", type=click.Path(path_type=Path), required=True,
    help="Folder that holds the folders brain (240), brain-256 and cardiac.",
)  # fmt: skip
@click.option("--masks", type=click.Path(path_type=Path), required=True, help="The paper's masks.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the runs.")
@click.option("--steps", type=int, default=8000, show_default=True, help="Of every network.")
@click.option("--jobs", type=int, default=14, show_default=True, help="Trainings side by side.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Of all recipes.")
def _train(
    studies: tuple[str, ...],
    data: Path,
    masks: Path,
    out: Path,
    steps: int,
    jobs: int,
    settings: tuple[str, ...],
) -> None:
    """Train the networks of STUDIES; the same command goes on where it stopped."""
    todo = [
        piece
        for piece in study(studies, data, masks, out, steps=steps, settings=settings)
        if not ((piece.out / "run.json").is_file() and Run(piece.out).complete)
    ]
    train_side_by_side(todo, jobs, Engine(threads=1))


@main.command("home", cls=Script)
@click.argument("runs", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="What was packed.")
def _home(runs: Path, data: Path) -> None:
    """Have the networks in RUNS name the volumes themselves, not their packed copies."""
    for path in home(runs, data):
        click.echo(path)


@main.command("report", cls=Script)
@click.argument("runs", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder for report.json.")
def _report(runs: Path, out: Path | None) -> None:
    """Say how long the trainings in RUNS took."""
    report = durations(runs)
    record(report, out)
    click.echo(sentence(report))


if __name__ == "__main__":
    main()
