"""What `kdmri-edge reproduce` trains: decided in full before anything runs (torch-free).

The comparison of KD-MRI made fair. In every case (data, acceleration, split, seed) five networks
are trained on the same volumes with the same number of optimiser steps, all stages counted:

- teacher (a): the heavy network as the paper trains it, recipe `paper-teacher`;
- teacher (b): the same network with our tuning and tricks, recipe `kd-mri`;
- plain student: the compact network with the same tuning and tricks and no teacher;
- KD-MRI student: the paper's three steps, taught by teacher (b);
- edge student: recipe `edge`, taught by teacher (b).

On request four more, whose cascades hand feature maps on (recipes `carried`, `carried-half`):
teacher (c), the students `dccnn-edge` and `dccnn-edge-small`, which it teaches, and the student
`dccnn-edge-half`, which teacher (b) teaches. Their rows stand beside the paper's.

A part of the networks can be asked for by name; figures of the others may stand in the same folder
from earlier calls, if they were trained with the same settings on the same volumes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from kdmri_edge.data.datasets import BRAIN_FOLDS, find_parts
from kdmri_edge.distillation.recipe import DistillRecipe, load_recipe
from kdmri_edge.distillation.request import Settings
from kdmri_edge.errors import BenchError, DataError, MaskError
from kdmri_edge.models.specs import preset
from kdmri_edge.physics.masks import Mask, centre_block, load_mask, variable_density_lines

__all__ = [
    "CARRIED",
    "CARRIED_NETWORKS",
    "NETWORKS",
    "TASKS",
    "TRAININGS",
    "CaseSpec",
    "Network",
    "Task",
    "Training",
    "plan",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A kind of data with its networks.

    Attributes:
        name: What the command calls it.
        matrix: Side of the square image matrix.
        teacher: Preset of the heavy network.
        student: Preset of the compact network.
        split: The fixed split.
        folds: Splits that together test every subject once; empty where there are none.
        folds_at: Acceleration at which the folds are trained.
        paper_masks: Prefix of the paper's masks in the mask file; None draws masks of their family.
        block: Side of the central block of k-space that is kept (super-resolution); None for masks.
        suffix: Of the recipes kd-mri and edge where these networks are tuned otherwise.
        contrasts: Contrasts that are also reported alone.
        has_carried: Whether there are networks that hand feature maps on for it.
    """

    name: str
    matrix: int
    teacher: str
    student: str
    split: str
    folds: tuple[str, ...] = ()
    folds_at: int = 4
    paper_masks: str | None = None
    block: int | None = None
    suffix: str = ""
    contrasts: tuple[str, ...] = ()
    has_carried: bool = False


TASKS: Final[dict[str, Task]] = {
    "brain": Task(
        name="brain",
        matrix=240,
        teacher="dccnn-d5c5",
        student="dccnn-d3c5",
        split="brain",
        folds=tuple(f"brain-fold-{number}" for number in range(1, len(BRAIN_FOLDS) + 1)),
        paper_masks="mrbrain",
        contrasts=("T1w", "T2w", "FLAIR"),
        has_carried=True,
    ),
    "cardiac": Task(
        name="cardiac",
        matrix=256,
        teacher="dccnn-d5c5",
        student="dccnn-d3c5",
        split="cardiac",
        has_carried=True,
    ),
    "sr": Task(
        name="sr",
        matrix=256,
        teacher="vdsr-11",
        student="vdsr-7",
        split="brain",
        block=64,
        suffix="-sr",
        contrasts=("T1w", "T2w", "FLAIR"),
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """One call of `distill`.

    Attributes:
        folder: Name of its run folder within the case's.
        recipe: Shipped recipe.
        tuned: Whether it is ours, and the task has its own of it (`Task.suffix`).
        taught_by: Folder whose teacher it takes; None trains its own.
        baseline: Whether it trains the plain student.
        distilled: Whether it distils a student.
        teacher: Preset of its teacher; None for the task's.
        student: Preset of its student; None for the task's.
    """

    folder: str
    recipe: str
    tuned: bool = True
    taught_by: str | None = None
    baseline: bool = False
    distilled: bool = True
    teacher: str | None = None
    student: str | None = None


TRAININGS: Final = (
    Training(folder="paper-teacher", recipe="paper-teacher", tuned=False, distilled=False),
    Training(folder="kd-mri", recipe="kd-mri", baseline=True),
    Training(folder="edge", recipe="edge", taught_by="kd-mri"),
)

_TEACHER_C: Final = "dccnn-d5c5-carried"

CARRIED: Final = (
    Training(
        folder="teacher-c",
        recipe="carried",
        tuned=False,
        distilled=False,
        teacher=_TEACHER_C,
        student="dccnn-edge",
    ),
    *(
        Training(
            folder=folder,
            recipe="carried",
            tuned=False,
            taught_by="teacher-c",
            teacher=_TEACHER_C,
            student=student,
        )
        for folder, student in (
            ("carried", "dccnn-edge"),
            ("carried-small", "dccnn-edge-small"),
        )
    ),
    Training(
        folder="carried-half",
        recipe="carried-half",
        tuned=False,
        taught_by="kd-mri",
        student="dccnn-edge-half",
    ),
)
"""Trainings of networks that hand feature maps on, which are made on request."""

_TEACHER_B_ALONE: Final = Training(folder="kd-mri-teacher", recipe="kd-mri", distilled=False)
"""Teacher (b) where neither student of its run folder is asked for; the same weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """A row of the table.

    Attributes:
        title: What the table calls it.
        folder: Training that it comes from.
        role: Its role there.
        alone: Training that makes nothing else, for where no other network of `folder` is wanted.
    """

    title: str
    folder: str
    role: str
    alone: Training | None = None


NETWORKS: Final[dict[str, Network]] = {
    "teacher-a": Network(
        title="teacher (a), as the paper trains it", folder="paper-teacher", role="teacher"
    ),
    "teacher-b": Network(
        title="teacher (b), tuned", folder="kd-mri", role="teacher", alone=_TEACHER_B_ALONE
    ),
    "plain": Network(title="plain student", folder="kd-mri", role="plain"),
    "kd-mri": Network(title="KD-MRI student", folder="kd-mri", role="student"),
    "edge": Network(title="edge student", folder="edge", role="student"),
}

CARRIED_NETWORKS: Final[dict[str, Network]] = {
    "teacher-c": Network(
        title="teacher (c), with carried maps", folder="teacher-c", role="teacher"
    ),
    "carried": Network(title="student dccnn-edge", folder="carried", role="student"),
    "carried-small": Network(
        title="student dccnn-edge-small", folder="carried-small", role="student"
    ),
    "carried-half": Network(title="student dccnn-edge-half", folder="carried-half", role="student"),
}
"""Rows of networks that hand feature maps on; absent where these are not trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseSpec:
    """One case: everything that its trainings share.

    Attributes:
        task: The kind of data.
        data: Folder of the volumes.
        acceleration: Nominal acceleration.
        split: Name of the split.
        seed: Seed of weights and batches.
        mask: Sampling pattern.
        steps: Optimiser steps of every network; None keeps each recipe's own.
        assignments: Further `key=value` settings of every recipe.
        contrast: Train and test on volumes of this contrast only; None for all.
        carried: Whether the networks that hand feature maps on are trained, too.
        wanted: Names of the networks that are trained; empty for all.
    """

    task: Task
    data: Path
    acceleration: int
    split: str
    seed: int
    mask: Mask
    steps: int | None
    assignments: tuple[str, ...] = ()
    contrast: str | None = None
    carried: bool = False
    wanted: tuple[str, ...] = ()

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that it trains, in the order of the table."""
        known = (*NETWORKS, *CARRIED_NETWORKS)
        if self.wanted:
            return tuple(name for name in known if name in self.wanted)
        return known if self.carried else tuple(NETWORKS)

    @property
    def trainings(self) -> tuple[Training, ...]:
        """Its trainings, in an order in which they can follow each other."""
        if not self.wanted:
            return (*TRAININGS, *CARRIED) if self.carried else TRAININGS
        return _trainings_of(self.networks)

    @property
    def name(self) -> str:
        """Name of the case's folder."""
        return f"{self.acceleration}x-{self.split}-seed{self.seed}"

    def recipe(self, training: Training) -> DistillRecipe:
        """Return a training's recipe with the seed and the steps of the case.

        Raises:
            RecipeError: An assignment is wrong.
        """
        name = training.recipe + (self.task.suffix if training.tuned else "")
        recipe = replace(load_recipe(name, self.assignments), seed=self.seed)
        return recipe if self.steps is None else with_steps(recipe, self.steps)

    def settings(self, training: Training, folder: Path) -> Settings:
        """Return the request of one training.

        Args:
            training: Which.
            folder: The case's folder.
        """
        wanted, student = training.teacher or self.task.teacher, training.student
        student, teacher = student or self.task.student, wanted
        if training.taught_by is not None:
            # Absolute, so that going on from another working directory asks for the same.
            teacher = str((folder / training.taught_by / "teacher.safetensors").resolve())
        return Settings(
            data=str(self.data),
            contrast=self.contrast,
            split=self.split,
            matrix=self.task.matrix,
            mask=self.mask,
            teacher=teacher,
            teacher_spec=preset(wanted),
            student=student,
            student_spec=preset(student),
            baseline=training.baseline,
            recipe=self.recipe(training),
            distilled=training.distilled,
        )


def known_trainings() -> tuple[Training, ...]:
    """Return every training that a case can have, of folders of their own."""
    rows = (NETWORKS | CARRIED_NETWORKS).values()
    return (*TRAININGS, *CARRIED, *(row.alone for row in rows if row.alone is not None))


def _trainings_of(networks: tuple[str, ...]) -> tuple[Training, ...]:
    """Return what trains some networks and the teachers that they need, and as little else.

    Where all that is wanted of a run folder is its teacher, that is trained in a folder of its own.
    """
    rows = NETWORKS | CARRIED_NETWORKS
    by_folder = {training.folder: training for training in (*TRAININGS, *CARRIED)}
    students = {rows[name].folder for name in networks if rows[name].alone is None}
    alone = {row.folder: row.alone for row in rows.values() if row.alone is not None}
    needed = {rows[name].folder for name in networks}
    needed |= {taught_by for folder in needed if (taught_by := by_folder[folder].taught_by)}
    moved = {
        folder: training
        for folder, training in alone.items()
        if folder in needed and folder not in students
    }
    found = []
    for training in by_folder.values():
        if training.folder not in needed:
            continue
        made = moved.get(training.folder, training)
        teacher = moved.get(made.taught_by or "")
        found.append(made if teacher is None else replace(made, taught_by=teacher.folder))
    return tuple(found)


def with_steps(recipe: DistillRecipe, steps: int) -> DistillRecipe:
    """Give teacher and student `steps` optimiser steps each; stages keep their proportions.

    Raises:
        BenchError: Fewer than 4 steps.
    """
    if steps < 4:
        raise BenchError(f"{steps} steps train nothing.", "Give --steps 4 or more.")
    joint, attention = (
        round(steps * part / recipe.student_steps)
        for part in (recipe.joint_steps, recipe.attention_steps)
    )
    return replace(
        recipe,
        teacher_steps=steps,
        joint_steps=joint,
        attention_steps=attention,
        imitation_steps=steps - joint - attention,
    )


def _mask(task: Task, acceleration: int, masks: Path | None) -> Mask:
    if task.block is not None:
        return centre_block((task.matrix, task.matrix), (task.block, task.block))
    if task.paper_masks is None:
        return variable_density_lines(task.matrix, float(acceleration), seed=0)
    if masks is None:
        raise MaskError(
            f"The paper's masks for {task.name} are not beside the data.",
            "Give the file kd_mri_masks.json with --masks.",
        )
    if not masks.is_file():
        raise MaskError(f"Mask file {masks} does not exist.", "Check the path given to --masks.")
    return load_mask(masks, f"{task.paper_masks}_{acceleration}x")


def plan(
    task_name: str,
    data: Path,
    *,
    masks: Path | None = None,
    accelerations: tuple[int, ...] = (4, 5, 8),
    folds: bool = True,
    seeds: int = 1,
    steps: int | None = None,
    assignments: tuple[str, ...] = (),
    contrast: str | None = None,
    carried: bool = False,
    networks: tuple[str, ...] = (),
) -> list[CaseSpec]:
    """Lay out all cases, most telling first: the fixed split, its folds, other accelerations.

    Args:
        task_name: Key of `TASKS`.
        data: Folder of the volumes.
        masks: The paper's masks (JSON); None looks for ../masks/kd_mri_masks.json beside `data`.
        accelerations: Nominal accelerations; without effect on super-resolution, whose block says.
        folds: Also train the task's folds, at the acceleration where it has them.
        seeds: How many seeds, from 0.
        steps: Optimiser steps of every network; None keeps the recipes' own.
        assignments: Further `key=value` settings of every recipe.
        contrast: Train and test on volumes of this contrast only; None for all.
        carried: Also train the networks that hand feature maps on.
        networks: Train these alone, keys of `NETWORKS` and `CARRIED_NETWORKS`, and the teachers
            that they need; empty for all.

    Raises:
        BenchError: Unknown task or network, no acceleration, no seed, no networks of that kind, a
            subject of a split is missing, or the networks would get unequal numbers of steps.
        DataError: The folder does not exist, or holds no volume.
        MaskError: A mask is missing.
    """
    if task_name not in TASKS:
        raise BenchError(f"There is no task {task_name!r}.", f"Tasks are {', '.join(TASKS)}.")
    task = TASKS[task_name]
    if not data.exists():
        raise DataError(f"{data} does not exist.", "Check the path given to --data.")
    if not accelerations or min(accelerations) < 2:
        raise BenchError("Accelerations must be 2 or more.", "Give e.g. --accelerations 4,5,8.")
    known = (*NETWORKS, *CARRIED_NETWORKS)
    if strange := [name for name in networks if name not in known]:
        raise BenchError(
            f"There is no network {strange[0]!r} in this comparison.",
            f"Networks are {', '.join(known)}.",
        )
    if (carried or set(networks) & set(CARRIED_NETWORKS)) and not task.has_carried:
        raise BenchError(
            f"Task {task.name!r} has no networks that hand feature maps on.",
            f"Leave {'--carried' if carried else 'them'} out.",
        )
    if seeds < 1:
        raise BenchError("There must be at least one seed.", "Give --seeds 1 or more.")
    beside = data.parent / "masks" / "kd_mri_masks.json"
    masks = masks or (beside if beside.is_file() else None)
    cases = []
    if task.block is not None:
        accelerations = (round((task.matrix / task.block) ** 2),)
    for acceleration in dict.fromkeys(accelerations):
        mask = _mask(task, acceleration, masks)
        extra = task.folds if folds and acceleration == task.folds_at else ()
        cases += [
            CaseSpec(
                task=task,
                data=data,
                acceleration=acceleration,
                split=split,
                seed=seed,
                mask=mask,
                steps=steps,
                assignments=assignments,
                contrast=contrast,
                carried=carried,
                wanted=networks,
            )
            for split in (task.split, *extra)
            for seed in range(seeds)
        ]
    # All that can be wrong is found now, not after hours of training.
    for split in dict.fromkeys(case.split for case in cases):
        _check_subjects(data, split, contrast, whole=split in task.folds)
    for case in cases:
        _check_steps(case)
    return cases


def _check_subjects(data: Path, split: str, contrast: str | None, *, whole: bool) -> None:
    """Refuse a folder without the subjects that a split trains and tests on.

    The pooled folds claim that every subject was tested once, so they need all of them (`whole`).
    """
    parts = find_parts(data, contrast=contrast, split=split)
    present = {file.subject for file in (*parts.train, *parts.validation, *parts.test)}
    absent = sorted(parts.split.subjects - present) if whole else []
    if absent:
        raise BenchError(
            f"{data} holds no volume of subject {absent[0]}, whom split {split!r} needs.",
            "Give the whole folder, or leave the folds out with --no-folds.",
        )
    if not parts.test:
        raise BenchError(
            f"{data} holds no test subject of split {split!r}.", "Give the whole folder."
        )


def _check_steps(case: CaseSpec) -> None:
    """Refuse recipes that would give one network more steps than another, or fail late."""
    # Here, since it needs PyTorch, which readers of reports do without.
    from kdmri_edge.distillation.request import check_settings

    recipes = [case.recipe(training) for training in case.trainings]
    for training in case.trainings:
        check_settings(case.settings(training, Path()), 1)
    counts = {n for r in recipes for n in (r.teacher_steps, r.student_steps)}
    if len(counts) > 1:
        raise BenchError(
            f"The networks would get unequal numbers of optimiser steps"
            f" ({', '.join(map(str, sorted(counts)))}), which is no fair comparison.",
            "Give one number for all with --steps.",
        )
