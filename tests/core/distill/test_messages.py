"""What a run says of itself: request, expected duration, times and what comes next."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kdmri_edge.distillation import messages
from kdmri_edge.distillation.log import TrainingLog
from kdmri_edge.distillation.messages import Forecast, StageCost, next_commands, stage_costs
from kdmri_edge.distillation.recipe import Qat, Quantize
from kdmri_edge.distillation.request import Settings
from kdmri_edge.distillation.run import distill

Make = Callable[..., Settings]


def test_costs_are_of_the_stages_that_are_trained(settings: Make, tmp_path: Path) -> None:
    wanted = settings(narrow=False)
    wanted = replace(
        wanted, recipe=replace(wanted.recipe, qat=Qat(quantize=Quantize.INT8, steps=3))
    )
    costs = {cost.stage: cost for cost in stage_costs(wanted, watched=5, finished=7)}
    out = tmp_path / "run"
    distill(wanted, out)
    trained = {row["stage"]: int(row["step"]) for row in TrainingLog(out / "log.csv").rows()}
    assert {name: cost.steps for name, cost in costs.items()} == trained
    # every second step, the last one too, is validated
    assert costs["teacher"].evaluated == 4 * 5 + 7
    assert costs["attention"].evaluated == 3 * 5  # the network is not finished by it
    assert costs["int8"].evaluated == 2 * 5 + 7
    student, teacher = costs["plain"].forward, costs["teacher"].forward
    assert costs["plain"].each == 3 * student
    assert costs["attention"].each == 3 * student + teacher
    # 5 cascades of 5 convolutions, 32 feature maps, and P of 32 x 32
    convolutions = 9 * 32 * 32 * (2 * 32 + 3 * 32 * 32)
    assert teacher == 5 * (convolutions + 32**3)


def test_networks_that_are_given_cost_nothing(settings: Make) -> None:
    given = settings(teacher="teacher.safetensors", baseline=False)
    assert [c.stage for c in stage_costs(given, watched=0, finished=0)] == [
        "attention",
        "imitation",
    ]
    assert stage_costs(replace(given, distilled=False), watched=0, finished=0) == []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the test sets; what is said is taken from `capsys`."""
    now = [0.0]
    monkeypatch.setattr(messages.time, "perf_counter", lambda: now[0])
    return now


def _cost(stage: str, steps: int, each: float, evaluated: int = 0) -> StageCost:
    return StageCost(stage=stage, steps=steps, each=each, evaluated=evaluated, forward=each / 3)


def test_expected_duration(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    costs = [_cost("teacher", 213, 6.0, evaluated=50), _cost("plain", 200, 3.0, evaluated=100)]
    forecast = Forecast(costs)

    def evaluate() -> int:
        clock[0] += 8.0
        return 4

    for step in range(1, 101):
        clock[0] += 10.0 if step < 3 else 1.0  # the first ones are not representative
        forecast.stepped("teacher", step, evaluate)
    # 200 steps of the teacher at 1 s, 200 of the student at 0.5 s; 50 slices at 2 s, 100 at 1 s
    assert capsys.readouterr().err == (
        "Expected: about 8 min: 5 min for the 400 optimiser steps to come, 3 min for validation"
        " and int8 ranges.\n"
    )


def test_stages_that_were_trained_before_an_interruption_are_not_expected(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    forecast = Forecast([_cost("teacher", 900, 6.0), _cost("plain", 200, 3.0)])
    for step in range(100, 200):
        clock[0] += 1.0
        forecast.stepped("plain", step, lambda: 0)
    assert capsys.readouterr().err.startswith(
        "Expected: about 88 s for the 88 optimiser steps to come"
    )


def test_what_is_short_is_not_forecast(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    forecast = Forecast([_cost("teacher", 50, 6.0)])
    for step in range(1, 51):
        clock[0] += 1.0
        forecast.stepped("teacher", step, lambda: pytest.fail("nothing has to be tried out"))
    assert capsys.readouterr().err == ""


def test_a_run_says_what_it_does_and_where_the_time_went(
    settings: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = distill(settings(distilled=False, narrow=False), tmp_path / "a b")
    said = capsys.readouterr().err
    assert "Data: the phantom, split 'phantom', by subject:" in said
    assert re.search(r"^  training: .*; \d+ volumes?, \d+ slices$", said, re.MULTILINE)
    assert re.search(r"^  validation: .*; \d+ volumes?, \d+ slices$", said, re.MULTILINE)
    assert "2.00x nominal" in said
    assert "matrix 32 x 32." in said
    assert "  teacher dccnn-d5c5: 141,765 parameters, 8 steps\n" in said
    assert "  plain student dccnn-d3c5: 49,285 parameters, 12 steps without a teacher\n" in said
    assert "imitation" not in said
    assert re.search(r"^Time: \d+ s\.$", said, re.MULTILINE)
    place = f"'{run.path}'"
    assert next_commands(run) == [
        f"kdmri-edge export {place} --target onnx",
        f"kdmri-edge bench {place}",
    ]  # and no calibration: the phantom is no folder
    run.meta["settings"] |= {"data": "my volumes", "split": "mine.toml"}
    calibrate, _, bench = next_commands(run)
    assert calibrate == f"kdmri-edge calibrate {place} --data 'my volumes' --split mine.toml"
    assert bench == f"kdmri-edge bench {place} --data 'my volumes'"
