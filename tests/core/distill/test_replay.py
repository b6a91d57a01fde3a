"""Steps that are recorded and replayed: the same training as steps that run as they are.

What is replayed here is the recorded Python work itself, with the fixed inputs that a CUDA graph
would read; `test_gpu.py` records on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdmri_edge.distill import replay, stage
from kdmri_edge.distill.replay import Replayed
from kdmri_edge.distill.run import distill
from kdmri_edge.distill.settings import Settings

Weights = Callable[[Path], dict[str, dict[str, Tensor]]]


def test_replayed_work_reads_the_inputs_it_was_recorded_with() -> None:
    recorded = []

    def record(work: Callable[[], Any]) -> Callable[[], Any]:
        recorded.append(work)
        return work

    replayed = Replayed(lambda tensors: (tensors[0] * 2,), record, torch.device("cpu"))
    for number in range(9):
        (result,) = replayed([torch.full((2,), float(number))], kind=number >= 8)
        assert torch.equal(result, torch.full((2,), 2.0 * number))
    assert len(recorded) == 1
    (result,) = replayed([torch.ones(3)], kind=False)  # of another shape: another kind
    assert result.shape == (3,)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shards": 2},
        {"imitation_until": 0.5, "ema": 0.5, "attention_steps": 0},
        {"masks": "lines"},
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
    monkeypatch.setattr(stage, "recorder", lambda around: lambda work: work)
    with monkeypatch.context() as patch:
        patch.setattr(replay, "_BEFORE", 10**9)
        distill(wanted, tmp_path / "plain")
    distill(wanted, tmp_path / "replayed")
    expected, found = weights(tmp_path / "plain"), weights(tmp_path / "replayed")
    assert set(found) == {"teacher", "plain", "student"}
    for role, state in expected.items():
        for name, value in state.items():
            assert torch.equal(found[role][name], value), (role, name)
