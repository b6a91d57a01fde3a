"""Networks under masks that they were not trained with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from experiments import generality
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.distillation.batches import HELD_OUT
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.models.checkpoint import load_checkpoint, save_checkpoint
from kdmri_edge.physics.masks import Mask, random_lines


@pytest.fixture
def brains(tmp_path: Path) -> Path:
    folder = tmp_path / "brain"
    folder.mkdir()
    for number, subject in enumerate(("01", "04")):
        volume = phantom_volume(number, slices=2, matrix=32)
        np.save(folder / f"sub-{subject}_ses-1_T1w.npy", volume.image)
    return folder


def test_each_mask_is_really_used(
    make_run: Callable[..., Run], mask: Mask, brains: Path, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", mask, ("teacher", "student"))
    networks = {role: run.weights(role) for role in ("teacher", "student")}
    other = random_lines(32, 2.0, seed=1)
    report = generality.compare(networks, brains, "brain", masks=[mask, other])
    own, unseen = report["rows"]
    assert own["trained_with"] == ["teacher", "student"]
    assert unseen["trained_with"] == []
    for name in ("zero-filled", "teacher", "student"):
        assert own["figures"][name]["psnr"] != unseen["figures"][name]["psnr"]
    # untrained networks change little: more samples, better image
    assert unseen["figures"]["zero-filled"]["psnr"] > own["figures"]["zero-filled"]["psnr"]
    assert report["volumes"] == 1
    text = generality.markdown(report)
    assert "(its own)" in text
    assert f"{unseen['figures']['student']['psnr']:.2f}" in text


def test_a_network_of_any_mask_has_no_mask_of_its_own(
    make_run: Callable[..., Run], mask: Mask, brains: Path, tmp_path: Path
) -> None:
    file = make_run(tmp_path / "run", mask, ("student",)).weights("student")
    held = load_checkpoint(file)
    recipe = {"recipe": {"name": "edge", "masks": "lines"}}
    any_mask = replace(held, training={**held.training, **recipe})
    save_checkpoint(tmp_path / "any.safetensors", any_mask)
    networks = {"one": file, "any": tmp_path / "any.safetensors"}
    report = generality.compare(networks, brains, "brain", masks=[mask])
    assert report["rows"][0]["trained_with"] == ["one"]


def test_held_out_masks_are_no_training_masks() -> None:
    masks = generality.held_out_masks(240)
    assert len({mask.sha256 for mask in masks}) == 9
    assert generality._SEED < HELD_OUT


def test_the_command_wants_names(tmp_path: Path) -> None:
    result = CliRunner().invoke(generality.main, ["weights", "--data", str(tmp_path)])
    assert result.exit_code == 1
    assert "NAME=WEIGHTS" in result.output
