"""Which slices are watched while a network learns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdmri_edge.data.case import Case
from kdmri_edge.distillation.loop import thinned


def _case(number: int, count: int) -> Case:
    images = np.full((count, 2, 2), number, np.float32)
    return Case(
        name=str(number), subject=str(number), contrast=None, sha256=str(number), target=images,
        zero_filled=images, scale=np.arange(count, dtype=np.float32),
    )  # fmt: skip


@given(st.lists(st.integers(1, 40), min_size=1, max_size=250), st.integers(1, 40))
def test_about_as_many_slices_as_asked_for_whatever_the_volumes(
    counts: list[int], slices: int
) -> None:
    kept = thinned([_case(n, count) for n, count in enumerate(counts)], slices)
    total = sum(len(case.target) for case in kept)
    assert 0.5 * min(slices, sum(counts)) <= total <= 2 * slices
    for case in kept:
        assert len(case.target) == len(case.scale) == len(case.zero_filled) > 0


def test_many_volumes_are_not_left_without_any() -> None:
    kept = thinned([_case(n, 36) for n in range(199)], 24)
    assert 20 <= len(kept) <= 28
    assert len({case.subject for case in kept}) == len(kept)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_volumes_are_all_there(count: int) -> None:
    kept = thinned([_case(n, 60) for n in range(count)], 24)
    assert [case.subject for case in kept] == [str(n) for n in range(count)]
    spread = np.diff(np.concatenate([60 * n + case.scale for n, case in enumerate(kept)]))
    assert len(set(spread)) == 1
