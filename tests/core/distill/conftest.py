from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdmri_edge.distillation.log import StageProgress
from kdmri_edge.distillation.recipe import FORMER_KEYS, DistillRecipe, Precision
from kdmri_edge.distillation.request import PHANTOM, Settings
from kdmri_edge.distillation.run import distill
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.models.specs import preset
from kdmri_edge.physics.masks import variable_density_lines

MATRIX = 32


NARROW = 8
"""Maps of a layer, where nothing depends on them; presets have 32, as a plain student has."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread, as the subprocesses have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def recipe() -> Callable[..., DistillRecipe]:
    def make(**changes: Any) -> DistillRecipe:
        values: dict[str, Any] = {
            "name": "tiny",
            "teacher_steps": 8,
            "attention_steps": 6,
            "imitation_steps": 6,
            "batch": 4,
            "strip": 16,
            "warmup": 2,
            "phantom_volumes": 3,
            "phantom_slices": 3,
            "validate_every": 2,
            "checkpoint_every": 2,
            "precision": Precision.F32,
        }
        return DistillRecipe.from_dict({**values, **changes}, "this test")

    return make


@pytest.fixture
def settings(recipe: Callable[..., DistillRecipe]) -> Callable[..., Settings]:
    """Settings of a tiny distillation; keywords of the settings or (without groups) its recipe.

    Its networks have NARROW maps, or those of their presets with `narrow=False`.
    """

    def make(**changes: Any) -> Settings:
        known = {*DistillRecipe.__dataclass_fields__, *FORMER_KEYS}
        mine = {k: changes.pop(k) for k in list(changes) if k in known}
        teacher = changes.get("teacher", "dccnn-d5c5")
        student = changes.get("student", "dccnn-d3c5")
        width = {"width": NARROW} if changes.pop("narrow", True) else {}
        values: dict[str, Any] = {
            "data": PHANTOM,
            "contrast": None,
            "split": None,
            "matrix": MATRIX,
            "mask": variable_density_lines(MATRIX, 2.0),
            "teacher": teacher,
            "teacher_spec": replace(preset("dccnn-d5c5" if "." in teacher else teacher), **width),
            "student": student,
            "student_spec": replace(preset("dccnn-d3c5" if "." in student else student), **width),
            "baseline": True,
            "recipe": recipe(**mine),
        }
        return Settings(**{**values, **changes})

    return make


class PowerCut(BaseException):
    """Not an Exception, so that nothing on the way can swallow it."""


@pytest.fixture
def distill_until(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Settings, Path, tuple[str, int]], None]:
    """Distil until a power cut at (stage in its title, step)."""

    def run(wanted: Settings, out: Path, cut: tuple[str, int]) -> None:
        real = StageProgress.advance

        def advance(self: StageProgress, step: int, loss: float) -> None:
            real(self, step, loss)
            if cut[0] in self.title and cut[1] == step:
                raise PowerCut

        with monkeypatch.context() as patch:
            patch.setattr(StageProgress, "advance", advance)
            with pytest.raises(PowerCut):
                distill(wanted, out)

    return run


@pytest.fixture
def distill_with_cuts(
    distill_until: Callable[[Settings, Path, tuple[str, int]], None],
) -> Callable[[Settings, Path, list[tuple[str, int]]], Run]:
    """Distil with power cuts at (stage in its title, step), going on after each."""

    def run(wanted: Settings, out: Path, cuts: list[tuple[str, int]]) -> Run:
        for cut in cuts:
            distill_until(wanted, out, cut)
        return distill(wanted, out)

    return run


@pytest.fixture(scope="session")
def weights() -> Callable[[Path], dict[str, dict[str, Tensor]]]:
    """Load all networks of a run folder by role."""
    from safetensors.torch import load_file

    def load(run: Path) -> dict[str, dict[str, Tensor]]:
        return {file.stem: load_file(file) for file in sorted(run.glob("*.safetensors"))}

    return load
