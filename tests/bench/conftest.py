"""A run of tiny, untrained networks and phantom cases for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdmri_edge.data.case import Case, make_case
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.models.specs import ModelSpec
from kdmri_edge.physics.masks import Mask, variable_density_lines

MATRIX = 32
SPECS = {
    role: ModelSpec(kind="dccnn", cascades=2, convs=convs, width=4, attention_tap=convs - 1)
    for role, convs in (("teacher", 3), ("plain", 2), ("student", 2))
}


@pytest.fixture(scope="session")
def mask() -> Mask:
    return variable_density_lines(MATRIX, 4, centre_lines=4, seed=3)


@pytest.fixture(scope="session")
def cases(mask: Mask) -> list[Case]:
    volumes = [phantom_volume(seed, slices=3, matrix=MATRIX) for seed in (1, 2)]
    return [make_case(volume, mask) for volume in volumes]


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Run]:
    """Return `write_run`."""
    return write_run


def write_run(path: Path, mask: Mask, roles: tuple[str, ...], seen: str = "0" * 64) -> Run:
    """Write a finished run of untrained networks whose training data have the hash `seen`."""
    import torch

    from kdmri_edge.models.build import build_model
    from kdmri_edge.models.checkpoint import Checkpoint, save_checkpoint

    path.mkdir(parents=True, exist_ok=True)
    item = {"name": "seen", "subject": "trained", "contrast": None, "sha256": seen}
    data = {"split": "tiny", "train": [item], "validation": [], "test": []}
    for seed, role in enumerate(roles):
        torch.manual_seed(seed)
        checkpoint = Checkpoint(
            spec=SPECS[role],
            mask=mask,
            matrix=MATRIX,
            role=role,
            training={"data": [item], "attribution": "Nobody"},
            state=build_model(SPECS[role]).state_dict(),
        )
        save_checkpoint(path / f"{role}.safetensors", checkpoint)
    meta = {"format": 1, "status": "complete", "matrix": MATRIX, "mask": mask.to_dict(),
            "data": data, "attribution": None}  # fmt: skip
    (path / "run.json").write_text(json.dumps(meta))
    return Run(path)


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    """Two volumes of strangers at a matrix above the networks'."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, seed in (("sub-x_T1w", 4), ("sub-y_T1w", 5)):
        np.save(folder / f"{name}.npy", phantom_volume(seed, slices=4, matrix=40).image)
    return folder
