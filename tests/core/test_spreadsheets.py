"""What a spreadsheet makes of cells."""

from __future__ import annotations

from typing import Any

import pytest

from kdmri_edge.utils.spreadsheets import cell


@pytest.mark.parametrize(
    "text",
    ['=HYPERLINK("http://a.example","x")', "+1+1", "-2+3", "@SUM(A1)", "\t=1+1", "\r=1+1",
     "\n=1+1", "-", "=1"],
)  # fmt: skip
def test_a_text_that_begins_like_a_formula_stays_a_text(text: str) -> None:
    assert cell(text) == "'" + text


@pytest.mark.parametrize(
    "value", [-1.5, 2, None, True, "-1.5", "+3", "-1e-05", "-inf", "volume = 1", "a-b", "", "'=1"]
)
def test_everything_else_is_as_it_was(value: Any) -> None:
    assert cell(value) is value
