"""Architectures by name, with and without fields that are changed."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from kdmri_edge.errors import ModelError
from kdmri_edge.models.specs import PRESETS, ModelSpec, preset


@pytest.mark.parametrize(
    ("name", "base", "changes"),
    [
        ("dccnn-d3c5?width=16", "dccnn-d3c5", {"width": 16}),
        ("dccnn-d3c5?", "dccnn-d3c5", {}),
        (
            "dccnn-edge?width=48&carried=16&shuffle=2&dilation=[1,1,1]",
            "dccnn-edge",
            {"width": 48, "carried": 16, "shuffle": 2, "dilation": (1, 1, 1)},
        ),
        ("dccnn-edge?dilation=2", "dccnn-edge", None),
        (
            "dccnn-edge?convs=4",
            "dccnn-edge",
            {"convs": 4, "dilation": (1, 1, 1, 1), "attention_tap": 3},
        ),
        ("dccnn-d5c5?noise_weight=3", "dccnn-d5c5", {"noise_weight": 3.0}),
        ("dccnn-d5c5?residual=false", "dccnn-d5c5", {"residual": False}),
        ("vdsr-7?width=24", "vdsr-7", {"width": 24}),
    ],
)
def test_fields_can_be_changed(name: str, base: str, changes: dict[str, object] | None) -> None:
    """What is not named stays; a dilation of another number of convolutions is refused."""
    known = PRESETS[base]
    assert isinstance(known, ModelSpec)
    if changes is None:
        with pytest.raises(ModelError, match="dilation"):
            preset(name)
        return
    assert preset(name) == replace(known, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dccnn-egde?width=16", "did you mean 'dccnn-edge'"),
        ("dccnn-edge?widht=16", "did you mean 'width'"),
        ("dccnn-edge?kind=vdsr", "'kind', which no architecture has"),
        ("dccnn-edge?width=wide", "width of .* must be a whole number"),
        ("dccnn-edge?width=true", "width of .* must be a whole number"),
        ("dccnn-edge?width=16.0", "width of .* must be a whole number"),
        ("dccnn-edge?width=0", "width = 0 is out of range"),
        ("dccnn-edge?width=16&width=24", "is no argument of its own"),
        ("dccnn-edge?width", "is no argument of its own"),
        ("dccnn-edge?residual=1", "residual of .* must be true or false"),
        ("dccnn-edge?dilation=[1,2.5,1]", "must be whole numbers"),
        ("dccnn-d3c5?carried=8", "carried = 8 is out of range"),
        ("dccnn-edge?solver_steps=4", "solver_steps = 4 .* several coils"),
        ("dccnn-edge?solver_weight=0.0", "from 0.001 to 10; .* several coils"),
        ("dccnn-edge-sense?solver_steps=17", "0, or a number up to 16"),
        ("dccnn-edge?kernel=4", "an odd number from 1 to 255"),
        ("dccnn-d3c5?noise_weight=much", "must be a number or none"),
    ],
)
def test_wrong_changes_are_refused(name: str, said: str) -> None:
    """One sentence names the field."""
    with pytest.raises(ModelError, match=said) as refused:
        preset(name)
    assert not re.search("Traceback|TypeError", str(refused.value))
