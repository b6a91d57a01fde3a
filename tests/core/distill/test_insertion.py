"""Small structures in training: what is inserted, and what networks are given of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdmri_edge.distillation.batches import TrainingSlices, drawn, inserted_into, parts, seen
from kdmri_edge.distillation.insertion import Place, insert
from kdmri_edge.distillation.losses import contrast_error
from kdmri_edge.distillation.recipe import DistillRecipe, Insertion
from kdmri_edge.distillation.request import Settings
from kdmri_edge.distillation.run import distill
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.errors import CheckpointError, ModelError, RecipeError, RunError
from kdmri_edge.models.checkpoint import load_checkpoint, save_checkpoint
from kdmri_edge.models.specs import preset
from kdmri_edge.physics.masks import variable_density_2d, variable_density_lines
from kdmri_edge.physics.operators import projection_matrix, zero_filled
from kdmri_edge.utils.files import sha256_file

Cuts = Callable[[Settings, Path, list[tuple[str, int]]], Run]
Weights = Callable[[Path], dict[str, dict[str, Tensor]]]

SIDE = 64
MASK = variable_density_lines(SIDE, 2.0)
ALWAYS = {"share": 1.0, "most": 3, "smallest": 2.0, "largest": 6.0, "contrast_weight": 0.1}


def head(dtype: type[np.generic] = np.float32, count: int = 4) -> np.ndarray[Any, Any]:
    """Return slices [S, H, W] with tissue in the middle and air around it."""
    random = np.random.default_rng(0)
    image = np.zeros((count, SIDE, SIDE), dtype)
    tissue = random.uniform(0.5, 1.0, (count, SIDE - 16, SIDE - 16))
    if np.iscomplexobj(image):
        tissue = tissue * np.exp(1j * random.uniform(0, 1, tissue.shape))
    image[:, 8:-8, 8:-8] = tissue
    return image


@given(
    wanted=st.builds(
        Insertion,
        share=st.just(1.0),
        most=st.integers(1, 6),
        smallest=st.floats(1, 4),
        largest=st.floats(4, 9),
        contrast=st.floats(0.05, 1),
    ),
    step=st.integers(0, 1000),
    start=st.integers(0, SIDE - 24),
)
def test_contrast_is_that_of_what_is_inserted(wanted: Insertion, step: int, start: int) -> None:
    place = Place(number=0, start=start, columns=24)
    found = insert([head()[0]], [place], wanted, strip=24, seed=1, step=step)
    changed = np.argwhere(found.factors[0] != 1)
    assert (abs(found.factors - 1) <= (1 + wanted.contrast) ** wanted.most - 1 + 1e-6).all()
    assert len(changed) > 0 or wanted.smallest < 2
    for weights in found.contrasts[0]:
        # Of what is the same everywhere there is no contrast, and nothing beside the strip counts.
        assert abs(float(weights.sum())) < 1e-5
        assert not weights[:, :start].any()
        assert not weights[:, start + 24 :].any()


@given(strength=st.floats(-0.5, 0.5), shift=st.floats(-1, 1), step=st.integers(0, 50))
def test_error_in_contrast(strength: float, shift: float, step: int) -> None:
    """An image that keeps a part of each structure's contrast is wrong by the rest."""
    wanted = Insertion(share=1.0, most=1, smallest=3.0, largest=8.0, contrast=0.5)
    place = Place(number=0, start=0, columns=SIDE)
    flat = np.ones((SIDE, SIDE), np.float32)
    found = insert([flat], [place], wanted, strip=SIDE, seed=1, step=step)
    contrasts = torch.from_numpy(found.contrasts)
    target = torch.from_numpy(found.factors)[:, None]
    contrast = float((found.factors * found.contrasts[:, 0]).sum())
    image = 1 + (1 - strength) * (target - 1) + shift
    error = contrast_error(image, target, contrasts)
    expected = abs(strength * contrast)
    assert float(error) == pytest.approx(expected, abs=1e-5)


def test_where_nothing_is_inserted_there_is_no_error_and_no_gradient() -> None:
    image = torch.rand(2, 2, 8, 8, requires_grad=True)
    error = contrast_error(image, torch.rand(2, 2, 8, 8), torch.zeros(2, 3, 8, 8))
    error.backward()
    assert float(error.detach()) == 0
    assert image.grad is not None
    assert torch.equal(image.grad, torch.zeros_like(image))


def test_share_of_the_images() -> None:
    places = [Place(number=n, start=0, columns=SIDE) for n in range(200)]
    images = [head()[0]] * len(places)
    found = insert(images, places, Insertion(share=0.3), strip=SIDE, seed=0, step=0)
    changed = (found.factors != 1).any((1, 2))
    assert 0.2 < changed.mean() < 0.4
    sign = found.factors[changed].reshape(changed.sum(), -1)
    assert (sign.max(1) > 1.05).any()
    assert (sign.min(1) < 0.95).any()


def test_air_alone_gets_nothing() -> None:
    place = Place(number=0, start=0, columns=8)  # beside the head
    found = insert([head()[0]], [place], Insertion(share=1.0), strip=8, seed=0, step=0)
    assert (found.factors == 1).all()
    assert not found.contrasts.any()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_images_are_sampled_with_what_is_inserted(
    recipe: Callable[..., DistillRecipe], dtype: type[np.generic], whole: bool
) -> None:
    """Noise of the input stays as it is; targets have the structures, and no noise."""
    made = recipe(batch=8, strip=24, insertion=ALWAYS)
    target = head(dtype)
    random = np.random.default_rng(1)
    noise = (0.1 * random.standard_normal(target.shape)).astype(dtype)
    clean = zero_filled(target, MASK)
    slices = TrainingSlices(target, clean + noise)
    share = {"step": 3, "whole": whole, "flip": True}
    own = parts(slices, made, **share)
    inserted = inserted_into(slices, made, own, step=3)
    complex_p = projection_matrix(MASK)
    projection = complex_p if np.iscomplexobj(target) else complex_p.real
    x_u, image = drawn(
        slices, made, **share, inserted=inserted, own_projection=projection.astype(dtype)
    )
    numbers = [part.slice for part in own]
    factors = inserted.factors
    assert (factors != 1).any((1, 2)).all()
    expected = zero_filled(target[numbers] * factors, MASK) + noise[numbers]
    scale = abs(expected).max((1, 2))[:, None, None]
    assert len(numbers) == (3 if whole else 8)

    def shown(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        cut = seen(images / scale, own)
        both = [cut.real, cut.imag] if np.iscomplexobj(cut) else [cut]
        return np.stack(both, 1)

    np.testing.assert_allclose(x_u, shown(expected), atol=1e-5)
    np.testing.assert_allclose(image, shown(target[numbers] * factors), atol=1e-5)


def test_processes_share_the_structures_of_one(recipe: Callable[..., DistillRecipe]) -> None:
    made = recipe(batch=8, strip=24, insertion={**ALWAYS, "share": 0.5})
    slices = TrainingSlices(head(), head())
    whole = inserted_into(slices, made, parts(slices, made, step=5, whole=False, flip=True), step=5)
    for rank in range(2):
        own = parts(slices, made, step=5, whole=False, flip=True, rank=rank, world=2)
        found = inserted_into(slices, made, own, step=5)
        np.testing.assert_array_equal(found.factors, whole.factors[rank::2])
        np.testing.assert_array_equal(found.contrasts, whole.contrasts[rank::2])


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_steps": 0, "imitation_steps": 4},
        pytest.param({"noise": 0.05, "joint_steps": 4}, marks=pytest.mark.nightly),
        pytest.param(
            {
                "teacher": "dccnn-d5c5-complex",
                "teacher_spec": replace(preset("dccnn-d5c5-complex"), width=8),
                "attention_steps": 0,
                "imitation_steps": 6,
            },
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_an_interrupted_run_goes_on(
    settings: Callable[..., Settings],
    distill_with_cuts: Cuts,
    weights: Weights,
    tmp_path: Path,
    changes: dict[str, Any],
) -> None:
    changes = {"teacher_steps": 4, "baseline": False, **changes}
    wanted = settings(insertion={**ALWAYS, "share": 0.7}, **changes)
    distill_with_cuts(wanted, tmp_path / "cut", [("teacher", 3), ("imitation", 3)])
    distill(wanted, tmp_path / "whole")
    cut, whole = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    for role, state in whole.items():
        for name, value in state.items():
            assert torch.equal(cut[role][name], value), (role, name)
    distill(settings(**changes), tmp_path / "without")
    for role, state in weights(tmp_path / "without").items():
        assert any(not torch.equal(state[name], whole[role][name]) for name in state), role


def test_a_student_goes_on_from_finished_weights(
    settings: Callable[..., Settings], distill_with_cuts: Cuts, weights: Weights, tmp_path: Path
) -> None:
    first = distill(settings(baseline=False), tmp_path / "first")
    gone = tmp_path / "gone.safetensors"
    shutil.copyfile(first.weights("student"), gone)
    few = {"attention_steps": 0, "imitation_steps": 4, "learning_rate": 1e-6, "warmup": 0}
    wanted = settings(
        teacher=str(first.weights("teacher")), start_from=str(gone), baseline=False, **few
    )
    assert wanted.fingerprint([]) != replace(wanted, start_from=None).fingerprint([])
    whole = distill(wanted, tmp_path / "whole")
    before, after = weights(first.path)["student"], weights(whole.path)["student"]
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-5, rtol=0)
        assert after[name].shape == value.shape
    assert any(not torch.equal(after[name], before[name]) for name in before)
    training = load_checkpoint(whole.weights("student")).training
    assert training["start"]["name"] == "gone.safetensors"
    assert training["start"]["steps"] == load_checkpoint(gone).training["steps"]
    assert training["teacher"] == {
        "name": "teacher.safetensors", "sha256": sha256_file(whole.weights("teacher")),
    }  # fmt: skip
    own = load_checkpoint(first.weights("student")).training["teacher"]
    assert own["sha256"] == sha256_file(first.weights("teacher"))
    assert own["name"] == "dccnn-d5c5"

    distill_with_cuts(wanted, tmp_path / "cut", [("imitation", 2)])
    for name, value in after.items():
        assert torch.equal(weights(tmp_path / "cut")["student"][name], value)
    # The file may move, or go: a run has its own copy.
    moved = tmp_path / "moved.safetensors"
    shutil.move(gone, moved)
    distill(replace(wanted, start_from=str(moved)), tmp_path / "whole")
    distill(wanted, tmp_path / "whole")

    # Another mask needs another teacher; the student's weights serve for any.
    other = variable_density_lines(32, 2.0, seed=5)
    with pytest.raises(CheckpointError, match=r"Teacher .* was trained for mask"):
        distill(replace(wanted, start_from=str(moved), mask=other), tmp_path / "other")
    again = str(whole.weights("student"))
    elsewhere = replace(wanted, start_from=again, mask=other, teacher="dccnn-d5c5")
    found = load_checkpoint(distill(elsewhere, tmp_path / "other").weights("student"))
    assert found.mask == other
    assert found.training["start"]["start"] == training["start"]
    for name, value in after.items():
        torch.testing.assert_close(found.state[name], value, atol=1e-5, rtol=0)
    # Other weights under the old name are noticed.
    shutil.copyfile(first.weights("teacher"), gone)
    with pytest.raises((RunError, ModelError)):
        distill(wanted, tmp_path / "whole")


def test_first_weights_must_suit(settings: Callable[..., Settings], tmp_path: Path) -> None:
    first = distill(settings(baseline=False), tmp_path / "first")
    teacher = str(first.weights("teacher"))
    with pytest.raises(ModelError, match=r"convs is 5, not 3"):
        distill(settings(start_from=teacher), tmp_path / "run")
    with pytest.raises(ModelError, match=r"without weights"):
        distill(settings(start_from="dccnn-d3c5"), tmp_path / "run")
    broken = load_checkpoint(first.weights("student"))
    name = next(iter(broken.state))
    broken.state[name].view(-1)[0] = torch.nan
    save_checkpoint(tmp_path / "broken.safetensors", broken)
    with pytest.raises(CheckpointError, match=rf"NaN or infinite values \({name}\)"):
        distill(settings(start_from=str(tmp_path / "broken.safetensors")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"insertion": ALWAYS, "teacher": "vdsr-11", "student": "vdsr-7"}, "insertion.share=0"),
        (
            {"insertion": ALWAYS, "mask": variable_density_2d((32, 32), 2.0, centre=6)},
            "insertion.share=0",
        ),
        ({"insertion": {"contrast_weight": 0.1}}, "none are inserted"),
    ],
)
def test_what_would_do_nothing_is_refused(
    settings: Callable[..., Settings], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as error:
        distill(settings(**changes), tmp_path / "run")
    assert message in f"{error.value.what} {error.value.remedy}"
    assert not (tmp_path / "run").exists()


def test_the_smallest_is_not_larger_than_the_largest() -> None:
    with pytest.raises(RecipeError, match=r"smallest structure .* larger than"):
        Insertion(smallest=8.0, largest=4.0)


def test_without_insertion_a_recipe_is_the_run_that_it_was(
    settings: Callable[..., Settings],
) -> None:
    made = settings()
    older = made.to_dict()
    del older["recipe"]["insertion"]
    assert "start_from" not in older
    assert Settings.from_dict(older).fingerprint([]) == made.fingerprint([])
    assert settings(insertion=ALWAYS).fingerprint([]) != made.fingerprint([])
