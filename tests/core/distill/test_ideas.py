"""Ideas that a recipe may switch on: each one acts, and can be interrupted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from torch import Tensor

from kdmri_edge.distillation.batches import add_noise, sees_other_mask, step_noise
from kdmri_edge.distillation.losses import Joint, distance, relation_transfer, similarity
from kdmri_edge.distillation.recipe import Transfer
from kdmri_edge.distillation.request import Settings
from kdmri_edge.distillation.run import distill
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.distillation.state import WeightAverage
from kdmri_edge.errors import ModelError, RecipeError
from kdmri_edge.models.build import build_model
from kdmri_edge.models.dccnn import DCCNN
from kdmri_edge.models.specs import preset
from kdmri_edge.physics.consistency import operator_tensor
from kdmri_edge.physics.masks import variable_density_2d, variable_density_lines
from kdmri_edge.physics.operators import Form

NARROW = replace(preset("dccnn-d5c5"), width=16)
Cuts = Callable[[Settings, Path, list[tuple[str, int]]], Run]


def test_similarity_is_the_metric() -> None:
    rng = np.random.default_rng(0)
    image = rng.random((2, 1, 24, 20), np.float32)
    target = np.clip(image + 0.1 * rng.standard_normal(image.shape, np.float32), 0, 1)
    inside = [
        structural_similarity(
            a[0].astype(np.float64), b[0].astype(np.float64), data_range=1.0, win_size=7
        )
        for a, b in zip(image, target, strict=True)
    ]
    found = similarity(torch.from_numpy(image), torch.from_numpy(target))
    assert float(found) == pytest.approx(np.mean(inside), abs=1e-4)


def test_l1_with_ssim_prefers_structure() -> None:
    rng = np.random.default_rng(0)
    target = torch.from_numpy(rng.random((1, 1, 32, 32), np.float32))
    shifted, noisy = target + 0.02, target + 0.02 * torch.sign(torch.randn_like(target))
    apart = [distance("l1-ssim", image, target) for image in (target, shifted, noisy)]
    assert float(apart[0]) == pytest.approx(0, abs=1e-6)
    assert apart[0] < apart[1] < apart[2]


def test_relation_ignores_where_features_are() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 4, 6, 5, generator=generator)
    moved = 3 * maps.roll(2, dims=3)
    assert float(relation_transfer([moved], [maps])) == pytest.approx(0, abs=1e-5)
    assert float(relation_transfer([maps.roll(1, dims=1)], [maps])) > 0.1


def test_average_forgets_the_first_weights() -> None:
    layer = torch.nn.Linear(2, 1, bias=False)
    average = WeightAverage(layer, 0.75)
    expected = layer.weight.detach().clone()
    for number in range(40):
        with torch.no_grad():
            layer.weight.fill_(float(number))
        average.update()
        kept = min(0.75, (1 + number) / (10 + number))
        expected = kept * expected + (1 - kept) * number
    average.apply()
    torch.testing.assert_close(layer.weight.detach(), expected)
    assert layer.weight[0, 0].item() == pytest.approx(39 - 0.75 / 0.25, abs=0.01)


def test_other_masks_come_as_often_as_asked() -> None:
    seen = [sees_other_mask(0.25, seed=3, step=step) for step in range(2000)]
    assert 0.2 < np.mean(seen) < 0.3
    assert not any(sees_other_mask(0.0, seed=3, step=step) for step in range(100))


def test_noise_is_of_every_strength_up_to_the_largest() -> None:
    strengths = np.array([step_noise(0.02, seed=3, step=step) for step in range(2000)])
    assert strengths.min() >= 0
    assert strengths.max() < 0.02
    assert np.quantile(strengths, [0.25, 0.5, 0.75]) == pytest.approx(
        [0.005, 0.01, 0.015], abs=1e-3
    )
    assert step_noise(0.0, seed=3, step=5) == 0


@given(
    strength=st.floats(0.01, 10),
    shape=st.sampled_from([(64, 64), (2, 64, 48)]),
    dtype=st.sampled_from([np.float32, np.complex64]),
)
def test_noise_has_the_strength_asked_for(
    strength: float, shape: tuple[int, ...], dtype: type[np.generic]
) -> None:
    clean = np.full((3, *shape), 5, dtype)
    noisy = add_noise(clean, strength, seed=1, step=2, places=range(1, 7, 2))
    assert noisy.dtype == dtype
    assert (clean == 5).all()
    found = noisy - clean
    assert np.sqrt(np.mean(np.abs(found) ** 2)) == pytest.approx(strength, rel=0.05)
    assert abs(found.mean()) < 0.1 * strength
    assert not np.array_equal(found[0], found[1])
    alone = add_noise(clean[1:2], strength, seed=1, step=2, places=range(3, 4))
    np.testing.assert_array_equal(alone[0], noisy[1])


def test_chains_begin_with_the_teacher_and_end_with_the_student() -> None:
    torch.manual_seed(0)
    teacher, student = (build_model(preset(name)) for name in ("dccnn-d5c5", "dccnn-d3c5"))
    assert isinstance(teacher, DCCNN)
    assert isinstance(student, DCCNN)
    operator = operator_tensor(variable_density_lines(32, 2.0), Form.PROJECTION, 1)
    x_u = torch.rand(1, 1, 32, 24)
    with torch.no_grad():
        features = Joint(teacher, student).features(x_u, operator)
        own = teacher.features(x_u, operator)
        torch.testing.assert_close(features.output, own.output)
        torch.testing.assert_close(features.cascade_outputs[0], student(x_u, operator))
        last = student.features_from(4, own.cascade_outputs[3], x_u, operator).output
        torch.testing.assert_close(features.cascade_outputs[4], last)
    assert len(features.cascade_outputs) == 5


@pytest.mark.parametrize(
    ("changes", "cuts"),
    [
        (
            {
                "joint_steps": 4,
                "reparameterise": True,
                "reparameterise_teacher": True,
                "ema": 0.5,
                "noise": 0.1,
            },
            [("jointly", 2), ("teacher dccnn", 3), ("imitation", 4)],
        ),
        pytest.param({"ema": 0.5}, [("teacher", 3), ("plain", 5)], marks=pytest.mark.nightly),
        pytest.param({"noise": 0.1}, [("imitation", 3)], marks=pytest.mark.nightly),
        pytest.param(
            {"bridge": True, "reparameterise": True, "dilation": (1, 2, 1)},
            [("imitation", 3)],
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            {"loss": "l1-ssim", "transfer": Transfer.RELATION},
            [("relation", 3)],
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            {"dilation": (1, 2, 1, 1, 3, 1, 1, 1, 1, 1, 2, 1, 2, 2, 1)},
            [("imitation", 3)],
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_an_interrupted_idea_goes_on(
    settings: Callable[..., Settings],
    distill_with_cuts: Cuts,
    weights: Callable[[Path], dict[str, dict[str, Tensor]]],
    tmp_path: Path,
    changes: dict[str, Any],
    cuts: list[tuple[str, int]],
) -> None:
    wanted = settings(**changes)
    distill_with_cuts(wanted, tmp_path / "cut", cuts)
    distill(wanted, tmp_path / "whole")
    distill(settings(), tmp_path / "without")
    cut, whole = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert set(cut) == set(whole)
    for role, state in whole.items():
        for name, value in state.items():
            assert torch.equal(cut[role][name], value), (role, name)
    usual = weights(tmp_path / "without")["student"]
    assert any(not torch.equal(usual[name], whole["student"][name]) for name in usual)


def test_joint_steps_count_for_both(settings: Callable[..., Settings], tmp_path: Path) -> None:
    run = distill(settings(joint_steps=4), tmp_path / "run")
    from kdmri_edge.models.checkpoint import load_checkpoint

    steps = {role: load_checkpoint(run.weights(role)).training["steps"] for role in run.roles()}
    assert steps["teacher"] == {"joint": 4, "teacher": 4}
    assert steps["student"] == {"joint": 4, "attention": 6, "imitation": 6}
    assert steps["plain"] == {"plain": 16}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"joint_steps": 9}, "9 joint steps are more"),
        ({"joint_steps": 4, "teacher": "vdsr-11", "student": "vdsr-7"}, "DC-CNN"),
        (
            {
                "transfer": Transfer.RELATION,
                "teacher_spec": NARROW,
            },
            "16 feature maps",
        ),
        ({"other_masks": 0.5}, "matrix of 32 is too small"),
        ({"noise": 0.1, "teacher": "vdsr-11", "student": "vdsr-7"}, "--set batches.noise=0"),
        (
            {"noise": 0.1, "mask": variable_density_2d((32, 32), 2.0, centre=6)},
            "--set batches.noise=0",
        ),
        ({"dilation": (1, 2)}, "3 numbers, or 15"),
    ],
)
def test_what_would_fail_late_is_refused_at_once(
    settings: Callable[..., Settings], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as error:
        distill(settings(**changes), tmp_path / "run")
    assert message in f"{error.value.what} {error.value.remedy}"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"bridge": True, "dilation": (2, 1, 1)}, "distillation.bridge=false"),
        ({"bridge": True, "teacher_spec": NARROW}, "distillation.bridge=false"),
        ({"inherit": True, "teacher_spec": NARROW}, "distillation.inherit=false"),
    ],
)
def test_what_cannot_be_taken_over_is_refused_at_once(
    settings: Callable[..., Settings], tmp_path: Path, changes: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(ModelError) as error:
        distill(settings(**changes), tmp_path / "run")
    assert remedy in error.value.remedy
    assert not (tmp_path / "run").exists()


def test_a_finished_teacher_has_no_joint_steps(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    teacher = distill(settings(baseline=False, distilled=False), tmp_path / "first")
    given = str(teacher.weights("teacher"))
    with pytest.raises(RecipeError, match="finished teacher"):
        distill(settings(teacher=given, joint_steps=4), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_dilation_by_cascade_is_what_a_network_sees() -> None:
    pattern = (1, 2, 1, 1, 3, 1, 1, 1, 1, 1, 2, 1, 2, 2, 1)
    spec = replace(preset("dccnn-d3c5"), dilation=pattern)
    network = build_model(spec)
    assert isinstance(network, DCCNN)
    found = [conv.dilation[0] for cascade in network.cascades for conv in cascade.convs]  # type: ignore[union-attr]
    assert tuple(found) == pattern
    assert spec.receptive_radius == sum(pattern)
    assert spec.dilation_of(1) == (1, 3, 1)
