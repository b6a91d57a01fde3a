"""A network that has seen only the embedded phantom has to work on real brains."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdmri_edge.data.case import make_case
from kdmri_edge.data.datasets import find_volumes, load_volumes
from kdmri_edge.distillation.recipe import load_recipe
from kdmri_edge.distillation.request import PHANTOM, Settings
from kdmri_edge.distillation.run import distill
from kdmri_edge.metrics import psnr
from kdmri_edge.models.specs import preset
from kdmri_edge.physics.masks import load_mask
from kdmri_edge.runtime.session import open_session, reconstruct

GAIN_DB = 6.0


@pytest.mark.nightly
def test_phantom_training_gains_six_decibels_on_real_brains(
    real_data: Path, tmp_path: Path
) -> None:
    mask = load_mask(real_data / "masks" / "kd_mri_masks.json", "mrbrain_4x")
    steps = [
        "teacher_steps=0",
        "attention_steps=0",
        "imitation_steps=1200",
        "distillation.alpha=1.0",
        "phantom_volumes=48",
    ]
    settings = Settings(
        data=PHANTOM, contrast=None, split=None, matrix=240, mask=mask,
        teacher="dccnn-d5c5", teacher_spec=preset("dccnn-d5c5"),
        student="dccnn-d3c5", student_spec=preset("dccnn-d3c5"),
        baseline=False, recipe=load_recipe("kd-mri", steps),
    )  # fmt: skip
    run = distill(settings, tmp_path / "run")
    session = open_session(run.weights("student"))
    files = [f for f in find_volumes(real_data / "brain") if f.subject in ("20", "09")]
    gains = {}
    for volume in load_volumes(files, 240):
        case = make_case(volume, mask)
        output = reconstruct(session, case.zero_filled)
        gains[case.name] = psnr(case.target, output) - psnr(case.target, case.zero_filled)
    assert len(gains) == 3
    assert sum(gains.values()) / len(gains) >= GAIN_DB, gains
