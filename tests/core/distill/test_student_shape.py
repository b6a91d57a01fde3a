"""What a recipe does to the student: dilation, branches folded on saving, no attention stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdmri_edge.distillation import loop as steps
from kdmri_edge.distillation.recipe import Imitation
from kdmri_edge.distillation.request import Settings
from kdmri_edge.distillation.run import distill
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.errors import RecipeError
from kdmri_edge.models.checkpoint import load_checkpoint
from kdmri_edge.models.specs import preset

Make = Callable[..., Settings]
Weights = Callable[[Path], dict[str, dict[str, Tensor]]]
WithCuts = Callable[[Settings, Path, list[tuple[str, int]]], Run]
FEW = {"teacher_steps": 2, "attention_steps": 0, "imitation_steps": 4, "baseline": False}


def test_the_recipe_dilates_the_student_alone(settings: Make, tmp_path: Path) -> None:
    wanted = settings(**FEW, dilation=(1, 2, 1))
    assert Settings.from_dict(wanted.to_dict()) == wanted
    run = distill(replace(wanted, baseline=True), tmp_path)
    assert load_checkpoint(run.weights("plain")).spec == preset("dccnn-d3c5")
    assert load_checkpoint(run.weights("student")).spec.dilation == (1, 2, 1)
    assert load_checkpoint(run.weights("teacher")).spec.dilation == (1,) * 5


def test_dilation_of_another_length_is_refused(settings: Make) -> None:
    with pytest.raises(RecipeError, match="2 numbers does not suit a network of 3 convolutions"):
        settings(dilation=(1, 2))


def test_branches_are_folded_when_the_student_is_saved(settings: Make, tmp_path: Path) -> None:
    wanted = settings(**FEW, narrow=False, reparameterise=True, imitation=Imitation.CASCADES)
    run = distill(wanted, tmp_path / "branches")
    student = load_checkpoint(run.weights("student"))
    assert sum(t.numel() for t in student.state.values()) == preset("dccnn-d3c5").parameters
    plain = distill(settings(**FEW, narrow=False, imitation=Imitation.CASCADES), tmp_path / "plain")
    other = load_checkpoint(plain.weights("student"))
    assert student.state.keys() == other.state.keys()
    assert not torch.equal(*(s.state["cascades.0.convs.1.weight"] for s in (student, other)))


def test_a_teacher_with_branches_is_folded_too(settings: Make, tmp_path: Path) -> None:
    few = {**FEW, "distilled": False, "narrow": False}
    run = distill(settings(**few, reparameterise_teacher=True), tmp_path / "branches")
    other = distill(settings(**few), tmp_path / "plain")
    one, two = (load_checkpoint(r.weights("teacher")).state for r in (run, other))
    assert sum(t.numel() for t in one.values()) == preset("dccnn-d5c5").parameters
    assert not torch.equal(one["cascades.0.convs.1.weight"], two["cascades.0.convs.1.weight"])


def test_branches_resume_to_the_same_weights(
    settings: Make, weights: Weights, tmp_path: Path, distill_with_cuts: WithCuts
) -> None:
    wanted = settings(**{**FEW, "attention_steps": 3}, reparameterise=True)
    distill(wanted, tmp_path / "whole")
    cuts = [("attention", 1), ("attention", 3), ("imitation", 3), ("imitation", 4)]
    distill_with_cuts(wanted, tmp_path / "cut", cuts)
    one, other = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    unequal = [k for k, v in one["student"].items() if not torch.equal(v, other["student"][k])]
    assert not unequal


def test_a_teacher_alone_and_its_student_later(
    settings: Make, weights: Weights, tmp_path: Path
) -> None:
    alone = distill(settings(**FEW, distilled=False), tmp_path / "run")
    assert alone.roles() == ["teacher"]
    later = distill(settings(**FEW), tmp_path / "run")
    assert later.roles() == ["teacher", "student"]
    together = distill(settings(**FEW), tmp_path / "together")
    for role in ("teacher", "student"):
        one, other = weights(later.path)[role], weights(together.path)[role]
        assert all(torch.equal(one[k], other[k]) for k in one)


def test_the_student_leaves_its_teacher_in_time(
    settings: Make, weights: Weights, tmp_path: Path
) -> None:
    def student(name: str, **changes: Any) -> dict[str, Tensor]:
        return weights(distill(settings(**FEW, **changes), tmp_path / name).path)["student"]

    alone = student("alone", alpha=1.0)
    never = student("never", imitation_until=0.0)
    half = student("half", imitation_until=0.5)
    always = student("always")
    assert all(torch.equal(alone[k], never[k]) for k in alone)
    assert any(not torch.equal(half[k], never[k]) for k in half)
    assert any(not torch.equal(half[k], always[k]) for k in half)


@pytest.mark.parametrize("branches", [False, True])
def test_without_a_teachers_help_it_is_the_plain_student(
    settings: Make, weights: Weights, tmp_path: Path, branches: bool
) -> None:
    """Same first weights, same batches: only what it is taught makes the difference."""
    few = {**FEW, "baseline": True, "narrow": False, "reparameterise": branches}
    trained = weights(distill(settings(**few, alpha=1.0), tmp_path / "alone").path)
    assert all(torch.equal(trained["student"][k], v) for k, v in trained["plain"].items())
    imitation = weights(distill(settings(**few, alpha=0.9), tmp_path / "taught").path)
    assert any(not torch.equal(imitation["student"][k], v) for k, v in imitation["plain"].items())


def test_a_later_stage_goes_on_with_the_batches(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, real = [], steps.drawn

    def drawn(*arguments: Any, step: int, **options: Any) -> Any:
        chosen.append(step)
        return real(*arguments, step=step, **options)

    monkeypatch.setattr(steps, "drawn", drawn)
    distill(settings(teacher_steps=5, attention_steps=2, imitation_steps=3), tmp_path)
    assert chosen == [*range(5)] * 3
