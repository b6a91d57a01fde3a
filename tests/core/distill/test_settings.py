from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from kdmri_edge.distillation.request import Settings
from kdmri_edge.errors import KdmriError, RunError
from kdmri_edge.physics.masks import variable_density_lines

Make = Callable[..., Settings]


def test_round_trip_through_json(settings: Make) -> None:
    made = settings(split="brain", contrast="T1w", seed=3)
    assert Settings.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize("key", ["mask", "teacher_spec", "recipe", "data"])
def test_damage_is_told(settings: Make, key: str) -> None:
    value = settings().to_dict()
    del value[key]
    with pytest.raises(RunError, match="damaged"):
        Settings.from_dict(value)
    with pytest.raises(KdmriError):
        Settings.from_dict({**settings().to_dict(), key: {}} if key != "data" else {})


CHANGES = [
    ({"seed": 1}, "seed"),
    ({"learning_rate": 1e-3}, "learning_rate"),
    ({"mask": variable_density_lines(32, 2.0, seed=1)}, "mask"),
    ({"baseline": False}, "baseline"),
    ({"student": "dccnn-d5c5"}, "student"),
    ({"contrast": "T1w"}, "contrast"),
    ({"split": "brain"}, "split"),
]


@pytest.mark.parametrize(("change", "name"), CHANGES)
def test_whatever_decides_the_weights_is_noticed(
    settings: Make, change: dict[str, object], name: str
) -> None:
    one, other = settings(), settings(**change)
    assert one.difference(other) == name
    assert other.difference(one) == name
    assert one.fingerprint(["a"]) != other.fingerprint(["a"])


@pytest.mark.parametrize("change", [{"validate_every": 9}, {"checkpoint_every": 9}, {"data": "x"}])
def test_whatever_does_not_is_free(settings: Make, change: dict[str, object]) -> None:
    one, other = settings(), settings(**change)
    assert one.difference(other) is None
    assert one.fingerprint(["a", "b"]) == other.fingerprint(["a", "b"])


def test_fingerprint_covers_the_volumes(settings: Make) -> None:
    assert settings().fingerprint(["a", "b"]) != settings().fingerprint(["a", "c"])
    assert settings().fingerprint(["a", "b"]) != settings().fingerprint(["a"])
    assert settings().fingerprint(["a"]) == settings().fingerprint(["a"])


def test_a_key_at_its_default_does_not_make_another_run(settings: Callable[..., Settings]) -> None:
    """So a later version with one more key goes on with the runs of this one."""
    made = settings()
    older = made.to_dict()
    del older["recipe"]["imitation_until"]
    assert Settings.from_dict(older).fingerprint([]) == made.fingerprint([])
    assert settings(imitation_until=0.5).fingerprint([]) != made.fingerprint([])
    assert settings(alpha=0.4).fingerprint([]) != settings(alpha=0.3).fingerprint([])
