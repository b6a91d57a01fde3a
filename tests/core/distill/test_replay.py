"""Steps that are recorded and replayed: the same training as steps that run as they are.

What is replayed here is the recorded Python work itself, with the fixed inputs that a CUDA graph
would read; `test_gpu.py` records on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdmri_edge.distillation import loop as stage
from kdmri_edge.distillation import replay
from kdmri_edge.distillation.losses import DistillationLoss
from kdmri_edge.distillation.recipe import Masks
from kdmri_edge.distillation.replay import Replayed
from kdmri_edge.distillation.request import Settings
from kdmri_edge.distillation.run import distill
from kdmri_edge.distillation.stages import Batch
from kdmri_edge.models.network import Features

Weights = Callable[[Path], dict[str, dict[str, Tensor]]]


class FakeRecorder:
    """Does recorded work again as Python, with the inputs and kind it was recorded with."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, work: Callable[[], Any]) -> Callable[[], Any]:
        self.recorded += 1
        return work

    def running(self) -> AbstractContextManager[None]:
        return nullcontext()


def test_replayed_work_reads_the_inputs_it_was_recorded_with() -> None:
    record = FakeRecorder()
    replayed = Replayed(
        lambda tensors, kind: (tensors[0] * (3 if kind else 2),), record, torch.device("cpu")
    )
    for number in range(18):
        given = torch.full((2,), float(number))
        (result,) = replayed([given], kind=number >= 9)
        assert torch.equal(result, given * (3 if number >= 9 else 2))
    assert record.recorded == 2
    (result,) = replayed([torch.ones(3)], kind=False)  # of another shape: another kind
    assert result.shape == (3,)
    replayed.forget()
    replayed([torch.ones(2)], kind=False)
    assert record.recorded == 2


def test_the_criterion_changes_at_the_switch_and_nowhere_else(
    settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is recorded is told on which side of the switch it is, not where exactly."""
    seen: list[float] = []
    real = DistillationLoss.imitation

    def imitation(self: DistillationLoss, student: Features, batch: Batch) -> Tensor:
        seen.append(batch.progress)
        return real(self, student, batch)

    monkeypatch.setattr(DistillationLoss, "imitation", imitation)
    monkeypatch.setattr(stage, "recorder", lambda context: FakeRecorder())
    distill(settings(imitation_steps=20, imitation_until=0.4), tmp_path / "run")
    assert seen == [0.0] * 8 + [0.4] * 12


@pytest.mark.parametrize(
    "changes",
    [
        {"shards": 2},
        {"optim": {"optimizer": "muon"}},
        pytest.param({}, marks=pytest.mark.nightly),
        pytest.param(
            {"imitation_until": 0.5, "ema": 0.5, "attention_steps": 0}, marks=pytest.mark.nightly
        ),
        pytest.param({"masks": Masks.LINES}, marks=pytest.mark.nightly),
    ],
)
def test_replayed_steps_train_the_same_networks(
    settings: Callable[..., Settings],
    weights: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:
    extra: dict[str, Any] = {"matrix": 96} if "masks" in changes else {}
    if extra:
        from kdmri_edge.physics.masks import variable_density_lines

        extra["mask"] = variable_density_lines(96, 3.0)
    wanted = settings(**{"teacher_steps": 10, "imitation_steps": 10, **changes, **extra})
    monkeypatch.setattr(stage, "recorder", lambda context: FakeRecorder())
    with monkeypatch.context() as patch:
        patch.setattr(replay, "_BEFORE", 10**9)
        distill(wanted, tmp_path / "plain")
    distill(wanted, tmp_path / "replayed")
    expected, found = weights(tmp_path / "plain"), weights(tmp_path / "replayed")
    assert set(found) == {"teacher", "plain", "student"}
    for role, state in expected.items():
        for name, value in state.items():
            assert torch.equal(found[role][name], value), (role, name)
