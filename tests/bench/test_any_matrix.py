"""Networks at matrices that they were not trained at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments import any_matrix
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.errors import BenchError
from kdmri_edge.physics.masks import Mask


@pytest.fixture
def brains(tmp_path: Path) -> Path:
    folder = tmp_path / "brain"
    folder.mkdir()
    for number, (subject, matrix) in enumerate((("01", 40), ("04", 32), ("19", 40))):
        volume = phantom_volume(number, slices=2, matrix=matrix)
        np.save(folder / f"sub-{subject}_ses-1_T1w.npy", volume.image)
    return folder


def test_each_matrix_is_measured_on_what_is_large_enough(
    make_run: Callable[..., Run], mask: Mask, brains: Path, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", mask, ("student",))
    networks = {"student": run.weights("student")}
    matrices = ((24, 24), (32, 32), (40, 28))
    report = any_matrix.compare(
        networks, brains, "brain", matrices=matrices, targets=("torchscript",), slices=1
    )
    assert [row["matrix"] for row in report["rows"]] == [[24, 24], [32, 32], [32, 32], [40, 28]]
    assert [len(row["volumes"]) for row in report["rows"]] == [2, 2, 2, 1]
    own, other = report["rows"][1:3]
    assert Mask.from_dict(own["mask"]) == mask
    assert Mask.from_dict(other["mask"]) != mask
    assert own["beyond_training"] == {"student": []}
    assert "40 x 28" in report["rows"][3]["beyond_training"]["student"][1]
    for row in report["rows"]:
        made = row["figures"]["student"]["torchscript"]["psnr"]
        assert made != row["figures"]["zero-filled"]["psnr"]
    text = any_matrix.markdown(report)
    assert f"{own['figures']['student']['torchscript']['psnr']:.2f}" in text
    assert "student at 32 x 32" in text
    with pytest.raises(BenchError, match="as large as 64 x 64"):
        any_matrix.compare(networks, brains, "brain", matrices=((64, 64),))
