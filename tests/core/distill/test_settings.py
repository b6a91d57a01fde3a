from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from kdmri_edge.distillation.request import Request, Settings
from kdmri_edge.distillation.start import distill
from kdmri_edge.errors import KdmriError, MaskError, RunError
from kdmri_edge.models.shipped import shipped_networks
from kdmri_edge.physics.masks import MASK_FAMILIES, Mask, variable_density_lines
from tests.core.conftest import TINY

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
    ({"learning_rate": 1e-3}, "optim.learning_rate"),
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
    del older["recipe"]["distillation"]["imitation_until"]
    assert Settings.from_dict(older).fingerprint([]) == made.fingerprint([])
    assert settings(imitation_until=0.5).fingerprint([]) != made.fingerprint([])
    assert settings(alpha=0.4).fingerprint([]) != settings(alpha=0.3).fingerprint([])


def test_a_request_has_the_defaults_that_the_command_shows() -> None:
    from kdmri_edge.commands.distill import distill as command

    shown = {p.name: p for p in command.params}
    asked = Request(**{name: shown[name].default for name in ("data", "teacher")})
    made = Request().settings()
    assert f"[default: {made.student};" in str(shown["student"].help)
    assert asked.settings() == made
    assert (made.matrix, round(made.mask.nominal_acceleration)) == (240, 4)
    assert made.recipe.name == "carried"
    families = shown["mask_family"].type
    assert isinstance(families, click.Choice)
    assert list(families.choices) == list(MASK_FAMILIES)
    assert Request(mask_family=str(shown["mask_family"].default)).settings() == made


@pytest.mark.parametrize("further", [(), ("--list-keys",)], ids=["run", "keys"])
def test_a_convention_is_said_of_code_alone(
    cli: Callable[..., Any], tmp_path: Path, further: tuple[str, ...]
) -> None:
    """Presets have their own, and would be trained as if nothing had been said."""
    out = tmp_path / "run"
    done = cli("distill", "--convention", "image", *TINY, "--out", out, *further)
    done.check_refusal("Convention", "code alone")
    assert not out.exists()


# fastMRI's are what its public code draws, however many lines those are
@pytest.mark.parametrize("family", [f for f in MASK_FAMILIES if not f.startswith("fastmri-")])
@pytest.mark.parametrize("coils", [False, True])
def test_a_family_draws_masks_of_its_acceleration(family: str, coils: bool) -> None:
    networks = {True: "-sense", False: ""}[coils]
    pair = {"teacher": f"dccnn-d5c5{networks}", "student": f"dccnn-d3c5{networks}"}
    request = Request(**pair, mask_family=family, matrix=128, acceleration=3, mask_seed=7)
    mask = request.settings().mask
    assert mask.nominal_acceleration == pytest.approx(3, rel=0.1)
    again = Request(**pair, mask_family=family, matrix=128, acceleration=3, mask_seed=7)
    assert again.settings().mask == mask
    with pytest.raises(MaskError, match="no family of masks 'spiral'"):
        Request(mask_family="spiral").settings()


def test_the_mask_of_a_network_can_be_taken() -> None:
    from kdmri_edge.models.checkpoint import read_checkpoint_meta

    network = shipped_networks()["dccnn-d3c5@brain-4x"]
    wanted = Mask.from_dict(read_checkpoint_meta(network.path)["mask"])
    for mask in (network.reference, network.path, wanted):
        made = Request(mask=mask).settings()
        assert made.mask == wanted
        assert made.matrix == wanted.height
    with pytest.raises(KdmriError, match="did you mean 'dccnn-d3c5@brain-4x'"):
        Request(mask="dccnn-d3c5@brian-4x").settings()


def test_the_library_trains_and_resumes_what_the_command_does(tmp_path: Path) -> None:
    changes = tuple(word.removeprefix("--set=") for word in TINY if word.startswith("--set="))
    out = tmp_path / "run"
    run = distill(
        matrix=32, acceleration=2, baseline=False, assignments=changes, out=out, threads=1,
        accelerator="cpu",
    )  # fmt: skip
    assert run.roles() == ["teacher", "student"]
    assert distill(out=out, resume=True, acceleration=2).path == out
    with pytest.raises(RunError, match="another 'mask'"):
        distill(out=out, resume=True, acceleration=3)
    with pytest.raises(RunError, match="already holds a run"):
        distill(out=out)
    with pytest.raises(RunError, match="no run to go on with"):
        distill(resume=True)
