"""Training on a CUDA device; skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdmri_edge.distillation import replay
from kdmri_edge.distillation.engine import Engine
from kdmri_edge.distillation.recipe import Precision, Quantize
from kdmri_edge.distillation.request import Settings
from kdmri_edge.distillation.run import distill
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.models.checkpoint import MAXIMA, load_checkpoint

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

GPU = Engine(accelerator="cuda")
Weights = Callable[[Path], dict[str, dict[str, Tensor]]]
CASES: list[dict[str, Any]] = [
    {"precision": Precision.F32},
    {"precision": Precision.BF16, "reparameterise": True, "reparameterise_teacher": True},
    {"attention_steps": 0, "imitation_until": 0.5, "ema": 0.5},
    {"joint_steps": 5, "reparameterise": True, "reparameterise_teacher": True},
]


def _close(found: dict[str, dict[str, Tensor]], expected: dict[str, dict[str, Tensor]]) -> None:
    """Not to the bit: cuDNN may choose other kernels from run to run; biases move by rounding."""
    assert set(found) == set(expected)
    for role, state in expected.items():
        for name, value in state.items():
            if name.endswith("bias"):
                continue
            gap = float((found[role][name] - value).norm() / value.norm().clamp_min(1e-6))
            assert gap < 0.05, (role, name)


@pytest.mark.parametrize("changes", CASES)
def test_recorded_steps_train_as_steps_that_run(
    settings: Callable[..., Settings],
    weights: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:
    wanted = settings(**{"teacher_steps": 12, "imitation_steps": 12, **changes})
    distill(wanted, tmp_path / "recorded", engine=GPU)
    monkeypatch.setattr(replay, "_BEFORE", 10**9)
    distill(wanted, tmp_path / "run", engine=GPU)
    _close(weights(tmp_path / "recorded"), weights(tmp_path / "run"))


def test_a_gpu_trains_as_a_cpu(
    settings: Callable[..., Settings], weights: Weights, tmp_path: Path
) -> None:
    wanted = settings(precision=Precision.F32)
    distill(wanted, tmp_path / "gpu", engine=GPU)
    distill(wanted, tmp_path / "cpu", engine=Engine(accelerator="cpu"))
    _close(weights(tmp_path / "gpu"), weights(tmp_path / "cpu"))
    assert "CPU" not in Run(tmp_path / "gpu").meta["ran_on"]["device"]
    for role in ("teacher", "plain", "student"):
        held = load_checkpoint(Run(tmp_path / "gpu").weights(role))
        assert len(held.training[MAXIMA]) == held.spec.convs * held.spec.cascades


def test_int8_tuning_on_a_gpu(settings: Callable[..., Settings], tmp_path: Path) -> None:
    run = distill(settings(quantise=Quantize.INT8, quantise_steps=6), tmp_path / "run", engine=GPU)
    assert run.tuned("int8").is_file()


def test_a_run_begun_on_a_gpu_goes_on_on_a_cpu(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    wanted = settings()
    distill(wanted, tmp_path / "run", engine=GPU)
    (tmp_path / "run" / "student.safetensors").unlink()
    run = distill(wanted, tmp_path / "run", engine=Engine(accelerator="cpu"))
    assert [ran["device"] for ran in run.meta["resumed_on"]] == ["CPU"]
