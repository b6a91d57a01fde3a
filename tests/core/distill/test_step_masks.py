"""Training over masks: another mask at every step, the same one after every restart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdmri_edge.data.case import make_case
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.distillation.batches import ACCELERATIONS, TrainingSlices, step_mask
from kdmri_edge.distillation.recipe import DistillRecipe, Masks
from kdmri_edge.distillation.request import Settings
from kdmri_edge.distillation.run import distill
from kdmri_edge.errors import RecipeError
from kdmri_edge.models.checkpoint import load_checkpoint
from kdmri_edge.models.specs import preset
from kdmri_edge.physics.consistency import operator_tensor
from kdmri_edge.physics.masks import centre_block, variable_density_2d, variable_density_lines
from kdmri_edge.physics.operators import Form
from tests.drawing import draw

H = 96


def test_a_step_has_one_mask_and_steps_differ() -> None:
    masks = [step_mask(H, seed=0, step=step) for step in range(40)]
    assert masks == [step_mask(H, seed=0, step=step) for step in range(40)]
    assert len({mask.sha256 for mask in masks}) == 40
    assert len({mask.name.split("-")[0] for mask in masks}) >= 2
    low, high = ACCELERATIONS
    found = [mask.nominal_acceleration for mask in masks]
    assert min(found) > 0.8 * low
    assert max(found) < 1.6 * high  # fastMRI's random lines come in a random number
    assert all(mask.is_lines and mask.samples[0] for mask in masks)


@pytest.mark.parametrize("whole", [False, True])
def test_its_own_mask_gives_the_batch_of_the_slices(
    recipe: Callable[..., DistillRecipe], whole: bool
) -> None:
    mask = variable_density_lines(H, 4.0)
    case = make_case(phantom_volume(0, slices=4, matrix=H), mask)
    slices = TrainingSlices.from_cases([case])
    projection = operator_tensor(mask, Form.PROJECTION, 1).numpy()
    options = {"step": 3, "whole": whole, "flip": True}
    plain = draw(slices, recipe(), **options)  # type: ignore[arg-type]
    anew = draw(slices, recipe(), **options, projection=projection)  # type: ignore[arg-type]
    for one, other in zip(plain, anew, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_the_batch_belongs_to_its_mask(recipe: Callable[..., DistillRecipe]) -> None:
    case = make_case(phantom_volume(0, slices=4, matrix=H), variable_density_lines(H, 4.0))
    slices = TrainingSlices.from_cases([case])
    mask = step_mask(H, seed=0, step=5)
    operator = operator_tensor(mask, Form.PROJECTION, 1)
    x_u, target = draw(slices, recipe(), step=5, whole=True, flip=True, projection=operator.numpy())
    assert torch.allclose(operator @ target, x_u, atol=1e-5)
    assert np.allclose(x_u.abs().amax((1, 2, 3)), 1.0, atol=1e-5)


def test_a_run_over_masks(settings: Callable[..., Settings], tmp_path: Path) -> None:
    few = {"teacher_steps": 2, "attention_steps": 1, "imitation_steps": 2, "baseline": False}
    shape = {"matrix": H, "mask": variable_density_lines(H, 4.0)}
    any_mask = distill(settings(**few, **shape, masks=Masks.LINES), tmp_path / "any")
    own = distill(settings(**few, **shape), tmp_path / "own")
    one, other = (load_checkpoint(run.weights("student")) for run in (any_mask, own))
    assert one.training["recipe"]["batches"]["masks"] == "lines"
    key = "cascades.0.convs.1.weight"
    assert not torch.equal(one.state[key], other.state[key])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "too small"),  # a matrix of 32
        (
            {
                "matrix": H, "mask": centre_block((H, H), (24, 24)), "teacher": "vdsr-11",
                "student": "vdsr-7", "teacher_spec": preset("vdsr-11"),
                "student_spec": preset("vdsr-7"),
            },
            "line",
        ),
        (
            {
                "matrix": H, "mask": variable_density_lines(H, 4.0), "teacher": "vdsr-11",
                "student": "vdsr-7", "teacher_spec": preset("vdsr-11"),
                "student_spec": preset("vdsr-7"),
            },
            "takes no mask",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_over_masks_is_refused_before_it_starts(
    settings: Callable[..., Settings], tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        distill(settings(masks=Masks.LINES, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_needs_a_line_mask(settings: Callable[..., Settings], tmp_path: Path) -> None:
    wanted = settings(masks=Masks.LINES, mask=variable_density_2d((32, 32), 2.0, centre=4))
    with pytest.raises(RecipeError, match="line masks"):
        distill(wanted, tmp_path / "run")
