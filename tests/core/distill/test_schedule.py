from __future__ import annotations

from collections.abc import Callable

import pytest

from kdmri_edge.distillation.loop import rate
from kdmri_edge.distillation.recipe import DistillRecipe, Schedule

Make = Callable[..., DistillRecipe]


def test_warm_up_is_linear_and_reaches_the_peak(recipe: Make) -> None:
    made = recipe(warmup=10, learning_rate=1e-2)
    rates = [rate(made, step, 100) for step in range(10)]
    assert rates == pytest.approx([1e-3 * (i + 1) for i in range(10)])


def test_cosine_falls_from_the_peak_to_the_final_fraction(recipe: Make) -> None:
    made = recipe(warmup=10, learning_rate=1e-2, final_rate=0.1)
    rates = [rate(made, step, 1000) for step in range(10, 1000)]
    assert rates[0] == pytest.approx(1e-2)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(1e-3, rel=1e-2)
    assert rate(made, 505, 1000) == pytest.approx((1e-2 + 1e-3) / 2, rel=1e-2)


def test_constant(recipe: Make) -> None:
    made = recipe(schedule=Schedule.CONSTANT, warmup=0, learning_rate=1e-2)
    assert {rate(made, step, 50) for step in range(50)} == {1e-2}


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_short_stages_have_positive_rates(recipe: Make, steps: int) -> None:
    made = recipe(warmup=100)
    rates = [rate(made, step, steps) for step in range(steps)]
    assert all(0 < r <= made.optim.learning_rate for r in rates)


def test_steps_of_the_published_schedule(recipe: Callable[..., DistillRecipe]) -> None:
    made = recipe(schedule=Schedule.STEP, warmup=0, learning_rate=1e-3)
    rates = [rate(made, step, 150) for step in range(150)]
    assert rates[0] == rates[39] == 1e-3
    assert [rates[n] for n in (40, 80, 120, 149)] == pytest.approx([1e-4, 1e-5, 1e-6, 1e-6])
