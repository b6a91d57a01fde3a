"""Training on volumes that are resampled to several matrices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.distillation import loop
from kdmri_edge.distillation.batches import step_matrix
from kdmri_edge.distillation.data import gather
from kdmri_edge.distillation.recipe import DistillRecipe, load_recipe
from kdmri_edge.distillation.request import Settings, check_sharding
from kdmri_edge.distillation.run import distill
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.errors import DataError, RecipeError
from kdmri_edge.models.checkpoint import load_checkpoint, read_checkpoint_meta
from kdmri_edge.physics.redraw import redrawn
from kdmri_edge.runtime.scope import trained_for
from kdmri_edge.utils.config import as_toml

MIXED = [24, 32, [40, 28]]
SHAPES = [(24, 24), (32, 32), (40, 28)]


@pytest.fixture
def sized(settings: Callable[..., Settings]) -> Callable[..., Settings]:
    """Settings of a tiny distillation over three matrices."""

    def make(**changes: object) -> Settings:
        plain = settings(**changes)
        values = plain.recipe.to_dict()
        values["batches"] = {**values["batches"], "matrices": MIXED}
        recipe = DistillRecipe.from_dict(values, "this test")
        return Settings.from_dict({**plain.to_dict(), "recipe": recipe.to_dict()})

    return make


class TestKey:
    def test_numbers_and_pairs(self) -> None:
        recipe = load_recipe("edge", ["batches.matrices=[192, 240, [256, 208]]"])
        assert [str(one) for one in recipe.batches.matrices] == [
            "192 x 192", "240 x 240", "256 x 208",
        ]  # fmt: skip
        assert recipe.to_dict()["batches"]["matrices"] == [192, 240, [256, 208]]
        assert DistillRecipe.from_dict(recipe.to_dict(), "again") == recipe

    def test_written_as_toml_it_is_read_again(self, tmp_path: Path) -> None:
        recipe = load_recipe("edge", ["batches.matrices=[192, [256, 208]]"])
        file = tmp_path / "mixed.toml"
        file.write_text(as_toml(recipe))
        assert load_recipe(str(file)) == recipe

    @pytest.mark.parametrize("wrong", ["[8]", "[[240]]", "[[1, 2, 3]]", "['x']", "[true]", "240"])
    def test_mistakes_say_what_to_give(self, wrong: str) -> None:
        with pytest.raises(RecipeError, match=r"batches.matrices.*\[H, W\]|e.g. \[192, 240"):
            load_recipe("edge", [f"batches.matrices={wrong}"])

    def test_runs_of_one_matrix_keep_their_fingerprint(
        self, settings: Callable[..., Settings], sized: Callable[..., Settings]
    ) -> None:
        usual = DistillRecipe(name="x").flat()
        assert usual["batches.matrices"] == []
        assert settings().fingerprint([]) != sized().fingerprint([])


def test_steps_draw_all_matrices_by_seed_and_step_alone() -> None:
    drawn = [step_matrix(3, seed=1, step=step) for step in range(300)]
    assert set(Counter(drawn)) == {0, 1, 2}
    assert min(Counter(drawn).values()) > 70
    assert drawn == [step_matrix(3, seed=1, step=step) for step in range(300)]
    assert drawn != [step_matrix(3, seed=2, step=step) for step in range(300)]


def test_batches_are_of_their_matrix_and_its_mask(
    sized: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = sized(teacher_steps=8, attention_steps=0, imitation_steps=8, baseline=False)
    seen: list[tuple[int, ...]] = []
    real = loop.TrainStep._draw

    def drawn(self: loop.TrainStep, step: int) -> list:
        operator, x_u, target = real(self, step)
        # hard consistency of what was sampled: x_u is in the range of Re P of its own matrix
        assert operator.shape == (x_u.shape[2], x_u.shape[2])
        np.testing.assert_allclose((operator @ target).numpy(), x_u.numpy(), atol=1e-4)
        seen.append((int(x_u.shape[2]), int(x_u.shape[3])))
        return [operator, x_u, target]

    monkeypatch.setattr(loop.TrainStep, "_draw", drawn)
    run = distill(wanted, tmp_path / "run")
    drawn_at = [SHAPES[step_matrix(3, seed=wanted.recipe.seed, step=step)] for step in range(8)]
    assert [height for height, _ in seen] == 2 * [height for height, _ in drawn_at]
    assert {(24, 24), (32, 32), (40, 28)} & set(seen)  # whole slices, at the end of a stage
    meta = read_checkpoint_meta(run.weights("student"))
    assert list(trained_for(meta).matrices) == SHAPES
    assert meta["matrix"] == 32


def test_power_cuts_change_nothing(
    sized: Callable[..., Settings],
    distill_with_cuts: Callable[..., Run],
    tmp_path: Path,
) -> None:
    wanted = sized(baseline=False, attention_steps=0)
    whole = distill(wanted, tmp_path / "whole")
    again = distill_with_cuts(wanted, tmp_path / "cut", [("teacher", 3), ("imitation", 5)])
    for role in ("teacher", "student"):
        one, other = (load_checkpoint(run.weights(role)).state for run in (whole, again))
        for name, value in one.items():
            np.testing.assert_array_equal(value.numpy(), other[name].numpy())


def test_smaller_volumes_are_left_out(sized: Callable[..., Settings], tmp_path: Path) -> None:
    folder = tmp_path / "brains"
    folder.mkdir()
    for number, side in enumerate((36, 40, 40, 40)):
        image = phantom_volume(5, slices=2, matrix=side, index=number).image
        np.save(folder / f"sub-{number:02d}_T1w.npy", image)
    wanted = sized(data=str(folder))
    data = gather(wanted)
    small = [case for case in data.train if case.subject == "00"]
    counts = [len(cases) for cases in data.sized]
    assert counts[0] == counts[1] == len(data.train)
    assert counts[2] == len(data.train) - len(small)
    for cases, shape in zip(data.sized, SHAPES, strict=True):
        assert {case.target.shape[1:] for case in cases} == {shape}
        mask = redrawn(wanted.mask, *shape)
        assert mask.height == shape[0]
    for file in folder.iterdir():
        np.save(file, np.load(file)[:, :36, :36])
    with pytest.raises(DataError, match="as large as the matrix 40 x 28"):
        gather(wanted)


def test_batches_of_every_matrix_have_to_be_shared(sized: Callable[..., Settings]) -> None:
    with pytest.raises(RecipeError, match="cannot be shared evenly"):
        check_sharding(sized(), 4)
