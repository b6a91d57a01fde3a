"""What a run says beside its stages' progress: its request, expected duration and end."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kdmri_edge.distillation.data import TrainingData
from kdmri_edge.distillation.recipe import Quantize
from kdmri_edge.distillation.request import PHANTOM, Settings
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.models.protocol import InputKind, NetworkSpec, same_input
from kdmri_edge.models.specs import spec_from_dict
from kdmri_edge.utils.console import PhaseTimes, duration, say

__all__ = [
    "Forecast",
    "StageCost",
    "announce_request",
    "announce_times",
    "next_commands",
    "stage_costs",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCost:
    """How long a stage takes, compared with others.

    Attributes:
        stage: Its name.
        steps: Its optimiser steps.
        each: Cost of one of them, in multiply-accumulates for an image of the run's matrix.
        evaluated: Slices that its network is evaluated on, for validation and int8 ranges.
        forward: Cost of one of these, likewise.
    """

    stage: str
    steps: int
    each: float
    evaluated: int
    forward: float


def stage_costs(settings: Settings, *, watched: int, finished: int) -> list[StageCost]:
    """Return what the stages of a run cost, in the order in which they are trained.

    A training step costs three forward passes (one forward, two for both gradients); a teacher that
    is imitated adds a forward pass of its own.

    Args:
        settings: The run's.
        watched: Slices of the validations during training.
        finished: Slices that a finished network is evaluated on.
    """
    recipe = settings.recipe
    teacher, plain, student = (
        float(sum(spec.macs(settings.matrix, settings.matrix).values()))
        for spec in (
            settings.teacher_spec,
            settings.plain_spec if settings.student_checkpoint is None else settings.student_spec,
            settings.student_spec,
        )
    )
    # Joint training runs the student from after each of the teacher's cascades to the end.
    chains = student * (settings.student_spec.cascades + 1) / 2
    costs: list[StageCost] = []

    def add(stage: str, steps: int, each: float, forward: float, further: int = 0) -> None:
        validations = -(-steps // recipe.validate_every)
        cost = StageCost(
            stage=stage,
            steps=steps,
            each=each,
            evaluated=validations * watched + further,
            forward=forward,
        )
        if steps:
            costs.append(cost)

    if settings.teacher_checkpoint is None:
        alone = recipe.teacher_steps - recipe.joint_steps
        add("joint", recipe.joint_steps, 3 * (teacher + chains), teacher, finished)
        add("teacher", alone, 3 * teacher, teacher, finished)
    if settings.baseline:
        add("plain", recipe.student_steps, 3 * plain, plain, finished)
    if settings.distilled and settings.student_checkpoint is None:
        until = recipe.distillation.imitation_until
        add("attention", recipe.attention_steps, 3 * student + teacher, student)
        imitation = 3 * student + until * teacher
        add("imitation", recipe.imitation_steps, imitation, student, finished)
    if settings.distilled and recipe.qat.quantize is not Quantize.NONE:
        add(str(recipe.qat.quantize), recipe.qat.steps, 4 * student, student, finished)
    return costs


class Forecast:
    """Says once how long a run will take, from the first optimiser steps that it does.

    Args:
        costs: The stages that are still to be trained, in order.
    """

    # The first steps allocate memory and choose kernels; so many after them are looked at.
    _FIRST, _STEPS = 3, 10
    # What is over sooner needs no forecast.
    _SHORT = 60.0

    def __init__(self, costs: Sequence[StageCost]) -> None:
        self._costs = list(costs)
        self._seen = 0
        self._began = 0.0
        self.said = False

    def stepped(self, stage: str, finished: int, evaluate: Callable[[], int]) -> None:
        """Note that a step has ended.

        Args:
            stage: Its stage's name.
            finished: Steps of that stage that are done, earlier ones included.
            evaluate: Evaluates the stage's network on some slices, and returns how many; 0 where
                there are none. It is called once at most.
        """
        if self.said:
            return
        self._seen += 1
        if self._seen == self._FIRST:
            self._began = time.perf_counter()
        if self._seen < self._FIRST + self._STEPS:
            return
        self.said = True
        each = (time.perf_counter() - self._began) / self._STEPS
        places = [n for n, cost in enumerate(self._costs) if cost.stage == stage]
        if not places:
            return
        own, *later = self._costs[places[0] :]
        steps = own.steps - finished + sum(cost.steps for cost in later)
        training = each * (
            own.steps - finished + sum(cost.steps * cost.each for cost in later) / own.each
        )
        if training < self._SHORT:
            return
        began = time.perf_counter()
        slices = evaluate()
        of_training = f"{duration(training)} for the {steps:,} optimiser steps to come"
        if not slices:
            say(f"Expected: about {of_training}; finishing each network takes its time besides.")
            return
        each_cost = (time.perf_counter() - began) / slices / own.forward
        evaluation = each_cost * sum(cost.evaluated * cost.forward for cost in (own, *later))
        say(
            f"Expected: about {duration(training + evaluation)}: {of_training},"
            f" {duration(evaluation)} for validation and int8 ranges."
        )


def announce_request(settings: Settings, data: TrainingData) -> None:
    """Say what will be trained, and on what."""
    record = data.record
    source = "the phantom" if settings.data == PHANTOM else settings.data
    say(f"Data: {source}, split {record['split']!r}, by subject:")
    counted = {
        part: f", {sum(case.count for case in cases)} slices"
        for part, cases in (("train", data.train), ("validation", data.validation))
    }
    for part, title in (("train", "training"), ("validation", "validation"), ("test", "test")):
        volumes = record.get(part, [])
        subjects = _listed(sorted({str(volume["subject"]) for volume in volumes}))
        kept = " (kept for `kdmri-edge bench`)" if part == "test" else ""
        count = "1 volume" if len(volumes) == 1 else f"{len(volumes)} volumes"
        say(f"  {title}: {subjects}; {count}{counted.get(part, '')}{kept}")
    if data.kept:
        say(data.kept)
    mask = settings.mask
    effective = (
        f", {mask.effective_acceleration:.2f}x effective (zero-phase images)"
        if settings.student_spec.reads is InputKind.MAGNITUDE
        else ""
    )
    say(
        f"Mask: {mask.name}, {mask.nominal_acceleration:.2f}x nominal{effective};"
        f" matrix {settings.matrix} x {settings.matrix}."
    )
    say("Networks:")
    for line in _networks(settings):
        say(f"  {line}")


def _listed(names: Sequence[str], most: int = 12) -> str:
    shown = ", ".join(names[:most]) or "none"
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"


def _networks(settings: Settings) -> list[str]:
    """Return a line for each network: what it is, its parameters and its steps."""
    recipe = settings.recipe

    def line(title: str, name: str, spec: NetworkSpec, what: str) -> str:
        return f"{title} {name}: {spec.parameters:,} parameters, {what}"

    finished = "trained already"
    teacher_steps = f"{recipe.teacher_steps} steps"
    lines = [
        line(
            "teacher",
            settings.teacher,
            settings.teacher_spec,
            teacher_steps if settings.teacher_checkpoint is None else finished,
        )
    ]
    if settings.baseline:
        steps = f"{recipe.student_steps} steps without a teacher"
        lines.append(line("plain student", settings.student, settings.plain_spec, steps))
    if settings.distilled:
        stages = {
            "joint": recipe.joint_steps,
            str(recipe.distillation.transfer): recipe.attention_steps,
            "imitation": recipe.imitation_steps,
        }
        what = ", ".join(f"{steps} of {name}" for name, steps in stages.items() if steps)
        what = f"{recipe.student_steps} steps ({what})"
        what = what if settings.student_checkpoint is None else finished
        lines.append(line("student", settings.student, settings.student_spec, what))
        if recipe.qat.quantize is not Quantize.NONE:
            floats = ", ".join(recipe.qat.float_layers)
            left = f", without rounding {floats}" if floats else ""
            parts = ", ".join(recipe.qat.fine_layers)
            fine = f", with {parts} in two parts" if parts else ""
            tuned = f"its copy for {recipe.qat.quantize}: {recipe.qat.steps} steps"
            lines.append(f"{tuned}{left}{fine}")
    return lines


def announce_times(times: PhaseTimes) -> None:
    """Say where the time went."""
    say(f"Time: {duration(times.whole)}.")
    for line in times.lines():
        say(line)


def next_commands(run: Run) -> list[str]:
    """Return what can be typed when a run is finished."""
    place = shlex.quote(str(run.path))
    data = run.meta["settings"]["data"]
    with_data = "" if data == PHANTOM else f" --data {shlex.quote(data)}"
    measured = place
    teacher, student = (
        spec_from_dict(run.meta["settings"][f"{role}_spec"]) for role in ("teacher", "student")
    )
    if not same_input(teacher, student):  # a benchmark gives one input to all
        roles = [role for role in run.roles() if role != "teacher"]
        measured = " ".join(shlex.quote(str(run.weights(role))) for role in roles)
    commands = [
        f"kdmri-edge export {place} --target onnx",
        f"kdmri-edge bench {measured}{with_data}",
    ]
    if with_data:  # first: `export` takes the calibration along
        split = run.meta["settings"]["split"]
        with_split = "" if split is None else f" --split {shlex.quote(str(split))}"
        commands.insert(0, f"kdmri-edge calibrate {place}{with_data}{with_split}")
    return commands
