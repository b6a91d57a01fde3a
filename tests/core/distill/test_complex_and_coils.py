"""Distilling complex and multi-coil networks, on phantoms of 48 x 48."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdmri_edge.data.case import coil_sets, simulated_case
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.distillation.batches import TrainingSlices
from kdmri_edge.distillation.data import gather
from kdmri_edge.distillation.recipe import DistillRecipe, Masks
from kdmri_edge.distillation.request import Settings
from kdmri_edge.distillation.run import distill
from kdmri_edge.errors import MaskError
from kdmri_edge.models.checkpoint import MAXIMA, load_checkpoint
from kdmri_edge.models.specs import preset
from kdmri_edge.physics.consistency import sense_consistency, sense_operator_tensor
from kdmri_edge.physics.masks import variable_density_lines
from kdmri_edge.physics.operators import Form, projection_matrix
from tests.drawing import draw

SIZE = 48
MASK = variable_density_lines(SIZE, 1.5, centre_lines=24)
Make = Callable[..., Settings]


@pytest.fixture(scope="module")
def slices() -> TrainingSlices:
    maps = coil_sets(SIZE, SIZE, seed=1, coils=3, sets=4)
    volumes = [phantom_volume(5, slices=4, matrix=SIZE, index=index) for index in range(2)]
    return TrainingSlices.from_cases(
        [simulated_case(volume, MASK, seed=0, maps=maps) for volume in volumes]
    )


def pair(settings: Make, kind: str, **changes: Any) -> Settings:
    names = {"teacher": f"dccnn-d5c5-{kind}", "student": f"dccnn-d3c5-{kind}"}
    specs = {f"{role}_spec": preset(name) for role, name in names.items()}
    return settings(matrix=SIZE, mask=MASK, strip=24, **names, **specs, **changes)


@pytest.mark.parametrize("whole", [False, True])
def test_strips_carry_their_own_coils(
    slices: TrainingSlices, recipe: Callable[..., DistillRecipe], whole: bool
) -> None:
    """With P of the own mask, one step of data consistency from the target is the target."""
    options: dict[str, Any] = {"step": 2, "whole": whole, "flip": True}
    made = recipe(strip=20, batch=6)
    projection = projection_matrix(MASK).astype(np.complex64)
    x_u, target, maps = draw(slices, made, **options, projection=projection)
    assert x_u.shape == target.shape == (len(x_u), 2, SIZE, SIZE if whole else 20)
    assert maps.shape == (len(x_u), 3, 2, *x_u.shape[2:])
    operator = sense_operator_tensor(MASK, Form.PROJECTION)
    kept = sense_consistency(target, x_u, maps, operator, 1.0, "projection")
    torch.testing.assert_close(kept, target, rtol=0, atol=1e-5)
    noisy, clean, same = draw(slices, made, **options)
    assert torch.equal(same, maps)
    assert 0 < (noisy - x_u).abs().max() < 0.5
    if whole:
        assert not torch.equal(clean, target)  # scaled by what noise leaves
    for rank in range(2):  # processes share it
        share = draw(slices, made, **options, rank=rank, world=2)
        assert torch.equal(share[2], maps[rank::2])


@pytest.mark.parametrize("kind", [pytest.param("complex", marks=pytest.mark.nightly), "sense"])
def test_a_tiny_run_learns(settings: Make, kind: str, tmp_path: Path) -> None:
    wanted = pair(
        settings, kind, teacher_steps=0, attention_steps=0, imitation_steps=60, alpha=1.0,
        baseline=False, phantom_volumes=5, phantom_slices=4,
    )  # fmt: skip
    run = distill(wanted, tmp_path / "run")
    checkpoint = load_checkpoint(run.weights("student"))
    cases = gather(wanted).validation
    errors = [np.mean(np.abs(c.zero_filled - c.target) ** 2) for c in cases]
    before = np.mean(
        [
            20 * np.log10(np.abs(c.target).max()) - 10 * np.log10(e)
            for c, e in zip(cases, errors, strict=True)
        ]
    )
    assert checkpoint.training["validation_psnr_db"] > before + 1
    assert checkpoint.training["simulation"]["phase"] == "smooth and local"
    assert ("coils" in checkpoint.training["simulation"]) == (kind == "sense")
    assert len(checkpoint.training[MAXIMA]["cascades.0.convs.0"]) == 2


@pytest.mark.parametrize("kind", ["complex", "sense"])
def test_all_three_networks_of_a_pair(settings: Make, kind: str, tmp_path: Path) -> None:
    few = {"teacher_steps": 2, "attention_steps": 1, "imitation_steps": 1, "validate_every": 5}
    runs = [distill(pair(settings, kind, **few), tmp_path / str(n)) for n in range(2)]
    assert runs[0].roles() == ["teacher", "plain", "student"]
    for role in runs[0].roles():
        one, again = (load_checkpoint(run.weights(role)) for run in runs)
        assert one.spec.coils == (kind == "sense")
        for name, value in one.state.items():
            assert torch.equal(value, again.state[name]), (role, name)


def test_over_many_masks(settings: Make, tmp_path: Path) -> None:
    size = 96
    wanted = pair(
        settings, "sense", teacher_steps=1, attention_steps=0, imitation_steps=1,
        baseline=False, masks=Masks.LINES,
    )  # fmt: skip
    large = Settings(
        **{
            **{name: getattr(wanted, name) for name in Settings.__dataclass_fields__},
            "matrix": size,
            "mask": variable_density_lines(size, 3, centre_lines=24),
        }
    )
    assert distill(large, tmp_path / "run").roles() == ["teacher", "student"]


def test_a_mask_without_calibration_lines_is_refused(settings: Make, tmp_path: Path) -> None:
    wanted = pair(settings, "sense")
    narrow = variable_density_lines(SIZE, 2, centre_lines=10)
    values = {name: getattr(wanted, name) for name in Settings.__dataclass_fields__}
    with pytest.raises(MaskError, match="24 lines around zero frequency"):
        distill(Settings(**{**values, "mask": narrow}), tmp_path / "run")


def test_the_command_draws_a_mask_that_coils_can_be_estimated_from(
    cli: Callable[..., Any], tiny: tuple[str, ...], tmp_path: Path
) -> None:
    names = ("--teacher=dccnn-d5c5-sense", "--student=dccnn-d3c5-sense")
    few = ("--set=teacher_steps=1", "--set=attention_steps=0", "--set=imitation_steps=1")
    options = ("--acceleration=1.6", "--matrix=48", "--no-baseline")
    usual = [word for word in tiny if not word.startswith(("--acceleration", "--matrix"))]
    for family in ("variable-density", "random", "equispaced"):
        out = tmp_path / family
        done = cli(
            "distill", *usual, *names, *few, *options, f"--mask-family={family}", f"--out={out}"
        )
        assert done.code == 0, done.err
    odd = ("--recipe=edge", f"--out={tmp_path / 'odd'}")
    cli("distill", *usual, names[0], *odd, *options).check_refusal("cannot start as", "reads sense")
