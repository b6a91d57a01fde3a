"""Quantisation-aware distillation: a copy beside the student, which int8 exports take."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

from kdmri_edge.distillation.log import StageProgress
from kdmri_edge.distillation.recipe import Quantize
from kdmri_edge.distillation.request import Settings
from kdmri_edge.distillation.run import distill
from kdmri_edge.distillation.run_folder import Run, tuned_for
from kdmri_edge.errors import RecipeError, RunError
from kdmri_edge.models.checkpoint import MAXIMA, RANGES, load_checkpoint, load_reconstructor
from kdmri_edge.models.specs import preset
from kdmri_edge.quantisation.calibration import layer_of
from kdmri_edge.quantisation.scheme import BELOW, PARTS

Make = Callable[..., Settings]
Cli = Callable[..., Any]
Weights = Callable[[Path], dict[str, dict[str, Tensor]]]
WithCuts = Callable[[Settings, Path, list[tuple[str, int]]], Run]
FEW = {"teacher_steps": 2, "attention_steps": 0, "imitation_steps": 3, "baseline": False}
TUNED = {**FEW, "quantise": Quantize.INT8, "quantise_steps": 4}


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_the_copy_says_what_it_is_and_the_student_stays(
    settings: Make, weights: Weights, tmp_path: Path
) -> None:
    run = distill(settings(**TUNED), tmp_path / "tuned")
    other = distill(settings(**FEW), tmp_path / "float")
    one, two = weights(run.path), weights(other.path)
    assert set(one) == {*two, "student-int8"}
    assert _equal(one["student"], two["student"])
    assert run.roles() == ["teacher", "student"]
    tuned = load_checkpoint(run.tuned("int8"))
    assert tuned.role == "student"
    assert MAXIMA not in tuned.training
    assert tuned.training["steps"] == {"attention": 0, "imitation": 3, "int8": 4}
    assert set(tuned.training["quantised"]) == {"float", "untuned", "tuned"}
    layers = {f"cascades.{n}.convs.{k}" for n in range(5) for k in range(3)}
    below = {f"cascades.{n}.convs.0{BELOW}" for n in range(5)}  # phantoms are magnitudes
    assert set(tuned.training[RANGES]) == layers | below
    assert load_reconstructor(run.tuned("int8")).ranges == tuned.training[RANGES]


def _with_qat(made: Settings, **changes: Any) -> Settings:
    qat = replace(made.recipe.qat, **changes)
    return replace(made, recipe=replace(made.recipe, qat=qat))


def test_the_copy_learns_from_the_target_and_from_the_student(
    settings: Make, weights: Weights, tmp_path: Path
) -> None:
    copies = []
    for alpha in (0.0, 1.0):
        run = distill(_with_qat(settings(**TUNED), alpha=alpha), tmp_path / f"{alpha}")
        copies.append(weights(run.path)["student-int8"])
    assert not _equal(*copies)


def _leaving(settings: Make, layers: tuple[str, ...]) -> Settings:
    return _with_qat(settings(**TUNED), float_layers=layers)


def test_layers_of_a_copy_stay_in_float(settings: Make, tmp_path: Path, cli: Cli) -> None:
    left = ("cascades.0.convs.2", "cascades.[34].convs.2")
    run = distill(_leaving(settings, left), tmp_path / "run")
    names = {f"cascades.{n}.convs.{k}" for n in range(5) for k in range(3)}
    wanted = names - {f"cascades.{number}.convs.2" for number in (0, 3, 4)}
    ranges = load_checkpoint(run.tuned("int8")).training[RANGES]
    assert {layer_of(key) for key in ranges} == wanted
    with pytest.raises(RunError, match=r"another qat\.float_layers"):
        distill(settings(**TUNED), tmp_path / "run")
    out = tmp_path / "bundle"
    shown = cli("export", run.path, "--target", "onnx", "--precision", "int8", "--out", out)
    assert shown.code == 0, shown.err
    manifest = json.loads((out / "manifest.json").read_text())
    assert set(manifest["transformed"]["left"]) == names - wanted
    assert manifest["calibrated_on"] == "training with rounding"


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("cascades.0.conv.2", "did you mean 'cascades.0.convs.2'"),
        ("*", "nothing would be rounded"),
    ],
)
def test_layers_that_cannot_stay_in_float_are_told_before_anything_is_trained(
    layer: str, message: str, settings: Make, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        distill(_leaving(settings, (layer,)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_layers_of_a_copy_are_given_in_two_parts(
    settings: Make, tmp_path: Path, cli: Cli, weights: Weights
) -> None:
    fine = ("cascades.[34].convs.1",)
    run = distill(_with_qat(settings(**TUNED), fine_layers=fine), tmp_path / "run")
    ranges = load_checkpoint(run.tuned("int8")).training[RANGES]
    parts = {key: value for key, value in ranges.items() if key.endswith(PARTS)}
    assert parts == {f"cascades.{n}.convs.1{PARTS}": 8.0 for n in (3, 4)}
    plain = distill(settings(**TUNED), tmp_path / "plain")
    assert not _equal(*(weights(one.path)["student-int8"] for one in (run, plain)))
    with pytest.raises(RunError, match=r"another qat\.fine_layers"):
        distill(settings(**TUNED), tmp_path / "run")
    out = tmp_path / "bundle"
    shown = cli("export", run.path, "--target", "onnx", "--precision", "int8", "--out", out)
    assert shown.code == 0, shown.err
    held = {one.name: one for one in onnx.load(out / "model.onnx").graph.initializer}
    assert held["model.cascades.3.convs.1.weight.integers"].dims[1] == 2 * 8
    assert held["model.cascades.2.convs.1.weight.integers"].dims[1] == 8


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"fine_layers": ("cascades.0.conv.2",)}, "did you mean 'cascades.0.convs.2'"),
        (
            {"fine_layers": ("cascades.*.convs.2",), "float_layers": ("cascades.1.convs.2",)},
            r"cascades\.1\.convs\.2, which stays in float32",
        ),
    ],
)
def test_layers_that_cannot_be_in_two_parts_are_told_before_anything_is_trained(
    layers: dict[str, tuple[str, ...]], message: str, settings: Make, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        distill(_with_qat(settings(**TUNED), **layers), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fine", [(), ("cascades.0.convs.2",)])
def test_interrupted_tuning_of_before_fine_layers_can_be_gone_on_with(
    fine: tuple[str, ...],
    settings: Make,
    tmp_path: Path,
    distill_until: Callable[[Settings, Path, tuple[str, int]], None],
) -> None:
    """What an interrupted stage belongs to does not tell of a setting that was not there."""
    distill_until(_with_qat(settings(**TUNED), fine_layers=fine), tmp_path / "run", ("int8", 3))
    held = (tmp_path / "run" / "state" / "int8.safetensors").read_bytes()
    assert b"float_layers" in held
    assert (b"fine_layers" in held) is bool(fine)


@pytest.mark.parametrize("named", ["float_layers", "fine_layers"])
def test_layers_of_no_copy_are_refused(named: str, cli: Cli, tmp_path: Path) -> None:
    shown = cli(
        "distill", "--recipe", "quickstart", "--set", f'qat.{named}=["cascades.0.convs.2"]',
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert shown.code == 1
    assert "none is made" in shown.err


def test_a_finished_run_can_be_tuned_later(
    settings: Make, weights: Weights, tmp_path: Path
) -> None:
    together = distill(settings(**TUNED), tmp_path / "together")
    distill(settings(**FEW), tmp_path / "later")
    later = distill(settings(**TUNED), tmp_path / "later")
    one, two = weights(together.path), weights(later.path)
    assert one.keys() == two.keys()
    assert all(_equal(one[name], two[name]) for name in one)
    assert (
        load_checkpoint(together.tuned("int8")).training[RANGES]
        == load_checkpoint(later.tuned("int8")).training[RANGES]
    )
    # for TensorRT another copy, with other integers
    signed = replace(
        settings(**TUNED),
        recipe=settings(**{**TUNED, "quantise": Quantize.INT8_SIGNED}).recipe,
    )
    distill(signed, tmp_path / "later")
    three = weights(later.path)
    assert not _equal(three["student-int8-signed"], three["student-int8"])


def test_tuning_resumes_to_the_same_weights(
    settings: Make, weights: Weights, tmp_path: Path, distill_with_cuts: WithCuts
) -> None:
    wanted = settings(**TUNED)
    distill(wanted, tmp_path / "whole")
    distill_with_cuts(wanted, tmp_path / "cut", [("int8", 1), ("int8", 3), ("int8", 4)])
    one, other = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert _equal(one["student-int8"], other["student-int8"])


def test_a_given_student_is_tuned_and_not_trained(
    settings: Make, weights: Weights, tmp_path: Path
) -> None:
    first = distill(settings(**FEW, dilation=(1, 2, 1)), tmp_path / "first")
    given = settings(
        **TUNED,
        teacher=str(first.weights("teacher")),
        student=str(first.weights("student")),
        student_spec=load_checkpoint(first.weights("student")).spec,
    )
    assert given.student_spec.dilation == (1, 2, 1)
    second = distill(given, tmp_path / "second")
    one, two = weights(first.path), weights(second.path)
    assert _equal(one["student"], two["student"])
    assert load_checkpoint(second.tuned("int8")).spec.dilation == (1, 2, 1)


def test_a_copy_tuned_on_other_data_says_so(settings: Make, tmp_path: Path) -> None:
    first = distill(settings(**FEW), tmp_path / "first")
    start = load_checkpoint(first.weights("student"))
    given = settings(
        **TUNED,
        seed=5,  # other phantoms
        teacher=str(first.weights("teacher")),
        student=str(first.weights("student")),
        student_spec=start.spec,
    )
    second = distill(given, tmp_path / "second")
    tuned = load_checkpoint(second.tuned("int8")).training
    own = {item["sha256"] for item in second.meta["data"]["train"]}
    known = {item["sha256"] for item in start.training["data"]}
    assert not own & known
    assert {item["sha256"] for item in tuned["data"]} == own | known


def test_a_copy_is_not_silently_kept_where_another_is_asked_for(
    settings: Make, tmp_path: Path
) -> None:
    run = distill(settings(**TUNED), tmp_path / "run")
    before = run.tuned("int8").read_bytes()
    with pytest.raises(RunError, match=r"another qat\.steps"):
        distill(settings(**{**TUNED, "quantise_steps": 9}), tmp_path / "run")
    assert run.tuned("int8").read_bytes() == before


def test_tuning_that_was_added_goes_on_by_resume_alone(
    settings: Make, weights: Weights, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    distill(settings(**FEW), tmp_path / "run")
    real = StageProgress.advance

    def advance(self: StageProgress, step: int, loss: float) -> None:
        real(self, step, loss)
        if "int8" in self.title and step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StageProgress, "advance", advance)
        with pytest.raises(KeyboardInterrupt):
            distill(settings(**TUNED), tmp_path / "run")
    shown = cli("distill", "--resume", "--out", tmp_path / "run")
    assert shown.code == 0, shown.err
    whole = distill(settings(**TUNED), tmp_path / "whole")
    one, other = weights(tmp_path / "run"), weights(whole.path)
    assert _equal(one["student-int8"], other["student-int8"])


def test_a_run_outlives_the_networks_that_it_was_given(
    settings: Make, tmp_path: Path, cli: Cli
) -> None:
    first = distill(settings(**FEW), tmp_path / "first")
    imitation = settings(**FEW, teacher=str(first.weights("teacher")))
    distill(imitation, tmp_path / "second")
    shutil.rmtree(first.path)
    shown = cli(
        "distill", "--resume", "--out", tmp_path / "second", "--quantize", "int8",
        "--set", "qat.steps=2",
    )  # fmt: skip
    assert shown.code == 0, shown.err


def test_int8_exports_take_the_copy(settings: Make, tmp_path: Path, cli: Cli) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    run = distill(settings(**TUNED), tmp_path / "run")
    student = run.weights("student")
    assert tuned_for(student, "int8", signed=False) == run.tuned("int8")
    assert tuned_for(student, "int8", signed=True) == student
    assert tuned_for(student, "f16", signed=False) == student
    shown = cli("export", run.path, "--target", "onnx", "--precision", "int8", "--json")
    assert shown.code == 0, shown.err
    assert "student-int8.safetensors" in shown.err
    manifest = json.loads((run.exports_dir / "student-onnx-int8" / "manifest.json").read_text())
    assert manifest["calibrated_on"] == "training with rounding"
    # the file itself, named, stays what it is
    assert cli("export", student, "--target", "onnx", "--precision", "int8").code == 0
    manifest = json.loads((run.exports_dir / "student-onnx-int8" / "manifest.json").read_text())
    assert manifest["calibrated_on"] == "training volumes"


def test_mistakes_about_tuning(settings: Make, tmp_path: Path, cli: Cli) -> None:
    run = distill(settings(**FEW), tmp_path / "run")
    student, teacher = run.weights("student"), run.weights("teacher")
    common = ("distill", "--mask-family", "random", "--matrix", 32, "--out", tmp_path / "new")
    cli(*common, "--student", student).check_refusal("trained already", "--quantize int8")
    shown = cli(*common, "--student", student, "--quantize", "int8")
    shown.check_refusal("not trained yet", "--teacher")
    # drawn anew, the mask is not the networks'
    shown = cli(*common, "--student", student, "--teacher", teacher, "--quantize", "int8")
    shown.check_refusal("was trained for mask")
    cli(*common, "--student", "runs/none.onnx").check_refusal("does not exist")
    assert cli(*common, "--quantize", "int4").code == 2
    assert not (tmp_path / "new").exists()


def test_the_recipe_of_the_plain_student_needs_a_preset(settings: Make) -> None:
    assert settings(**FEW).plain_spec == preset("dccnn-d3c5")
