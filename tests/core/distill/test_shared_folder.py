"""Several processes, or machines, train on one folder: each file is read by one of them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.distillation.data import find, gather
from kdmri_edge.distillation.preparation import Keeping
from kdmri_edge.distillation.request import Settings
from tests.core.conftest import Outcome
from tests.core.distill.test_two_processes import SHARDS
from tests.multi_coil import images, write_fastmri

Weights = Callable[[Path], dict[str, dict[str, Tensor]]]
Start = Callable[..., "subprocess.Popen[str]"]


def test_only_the_first_process_looks_through_the_folder(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    folder = tmp_path / "volumes"
    folder.mkdir()
    for number in range(4):
        image = phantom_volume(3, slices=2, matrix=40, index=number).image
        np.save(folder / f"sub-{number:02}_T1w.npy", image)
    wanted = settings(data=str(folder))
    found = find(wanted)
    assert found is not None
    kept = {"memory": 1, "folder": tmp_path / "cache"}
    first = gather(wanted, found, Keeping(**kept))  # type: ignore[arg-type]
    # the other never looks at those that test
    for file in found.test:
        file.path.unlink()
    other = gather(wanted, found, Keeping(**kept, rank=1, world=2))  # type: ignore[arg-type]
    assert [case.sha256 for case in other.train] == [case.sha256 for case in first.train]
    assert len(first.record["test"]) == 1
    assert other.record["test"] == []
    with pytest.raises(FileNotFoundError):
        gather(wanted, found, Keeping(**kept))  # type: ignore[arg-type]


@pytest.mark.nightly
def test_two_processes_on_sixty_files_give_the_weights_of_one(
    start: Start,
    cli: Callable[..., Outcome],
    tiny: tuple[str, ...],
    weights: Weights,
    tmp_path: Path,
) -> None:
    """One holds measured multi-coil files in memory, two prepare them in a folder of both."""
    folder = tmp_path / "multicoil_train"
    folder.mkdir()
    for number in range(60):
        write_fastmri(folder / f"file{number:03}.h5", images(number, slices=1)[1], f"p{number}")
    usual = [word for word in tiny if not word.startswith("--acceleration")]
    command = [
        "distill", f"--data={folder}", *usual, *SHARDS, "--acceleration=1.2", "--no-baseline",
        "--teacher=dccnn-d5c5-sense", "--student=dccnn-d3c5-sense", "--out",
    ]  # fmt: skip
    one = cli(*command, tmp_path / "one", "--data-cache", tmp_path / "unused")
    assert one.code == 0, one.err
    cache = tmp_path / "cache"
    apart = ("--devices=2", "--data-memory=1kB", f"--data-cache={cache}")
    two = start(["kdmri_edge", *command, tmp_path / "two", *apart])
    _, shown = two.communicate()
    assert two.returncode == 0, shown
    reference = weights(tmp_path / "one")
    for role, state in weights(tmp_path / "two").items():
        for key, value in state.items():
            assert torch.equal(value, reference[role][key]), (role, key)
    assert len(list(cache.glob("??/*/case.json"))) == 50  # training and validation, each once
