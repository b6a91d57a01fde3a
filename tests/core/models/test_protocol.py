"""Networks of other packages: their specifications, and any module as a network."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdmri_edge.distillation.batches import strips_allowed
from kdmri_edge.distillation.request import Request
from kdmri_edge.errors import CheckpointError, ModelError, RecipeError
from kdmri_edge.models.build import build_model
from kdmri_edge.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from kdmri_edge.models.network import Network, as_network
from kdmri_edge.models.protocol import InputKind, NetworkFamily, NetworkSpec, SpecDefaults
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.models.specs import (
    NETWORKS,
    PRESETS,
    describe_spec,
    described_spec,
    preset,
    spec_from_dict,
)
from kdmri_edge.physics.consistency import data_consistency
from kdmri_edge.physics.masks import variable_density_lines

MASK = variable_density_lines(32, 3, centre_lines=4, seed=3)


@dataclass(frozen=True, kw_only=True)
class PlainSpec(SpecDefaults):
    """Three convolutions and data consistency."""

    width: int = 4
    kind: str = "plain"
    reads: InputKind = InputKind.MAGNITUDE
    has_data_consistency: bool = True
    receptive_radius: int | None = 2

    @property
    def parameters(self) -> int:
        return 9 * 2 * self.width * self.channels + self.width + self.channels

    def macs(self, height: int, width: int, **options: Any) -> dict[str, int]:
        return {"convolutions": 18 * self.width * height * width, "data_consistency": 0}

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "reads": str(self.reads)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> PlainSpec:
        return cls(**{**value, "reads": InputKind(value["reads"])})


class Plain(nn.Module):
    """Not derived from anything of this library."""

    def __init__(self, spec: PlainSpec) -> None:
        super().__init__()
        self.first = nn.Conv2d(spec.channels, spec.width, 3, padding=1)
        self.last = nn.Conv2d(spec.width, spec.channels, 3, padding=1)

    def forward(self, x_u: Tensor, operator: Tensor) -> Tensor:
        x = x_u + self.last(torch.relu(self.first(x_u)))
        made: Tensor = data_consistency(x, x_u, operator, 1.0, "projection")
        return made


FAMILY = NetworkFamily(
    name="plain",
    from_dict=PlainSpec.from_dict,
    build="tests.core.models.test_protocol:Plain",
    presets={"plain-4": PlainSpec()},
    recipe="imitation",
)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> PlainSpec:
    """The family as if a package had brought it."""
    monkeypatch.setitem(NETWORKS._rows, "plain", FAMILY)
    monkeypatch.setattr(NETWORKS, "_built_in", NETWORKS._built_in | {"plain"})
    return PlainSpec()


@pytest.mark.parametrize("name", PRESETS)
def test_built_in_specifications_keep_the_protocol(name: str) -> None:
    spec = PRESETS[name]
    assert isinstance(spec, NetworkSpec)
    assert spec_from_dict(spec.to_dict()) == spec
    reads = InputKind.SENSE if "sense" in name else (
        InputKind.COMPLEX if "complex" in name else InputKind.MAGNITUDE
    )  # fmt: skip
    assert (spec.reads, spec.channels) == (reads, 1 if reads is InputKind.MAGNITUDE else 2)
    assert spec.has_data_consistency is name.startswith("dccnn")
    assert spec.magnitude_input is name.startswith("vdsr")
    assert len(spec.attention_widths) == spec.cascades
    assert spec.macs(32, 32)["data_consistency"] > 0 or name.startswith("vdsr")


def test_what_a_specification_says_follows_from_what_it_reads(plain: PlainSpec) -> None:
    assert isinstance(plain, NetworkSpec)
    assert (plain.channels, plain.coils, plain.magnitude_input) == (1, False, False)
    assert replace(plain, has_data_consistency=False).magnitude_input
    coils = replace(plain, reads=InputKind.SENSE)
    assert (coils.channels, coils.coils) == (2, True)
    assert strips_allowed(MASK, plain)
    assert not strips_allowed(MASK, replace(plain, receptive_radius=None))


def test_a_family_is_found_by_its_presets_and_dictionaries(plain: PlainSpec) -> None:
    assert preset("plain-4") == plain
    assert spec_from_dict(plain.to_dict()) == plain
    assert list(PRESETS)[-1] == "plain-4"
    with pytest.raises(ModelError, match="did you mean 'plain-4'"):
        preset("plain-5")


def test_any_module_becomes_a_network_and_keeps_its_names(plain: PlainSpec) -> None:
    network = build_model(plain)
    assert isinstance(network, Network)
    assert isinstance(network, Plain)
    assert type(network).__name__ == "Plain"
    assert set(network.state_dict()) == set(Plain(plain).state_dict())
    reconstructor = Reconstructor(network, MASK)
    x_u = torch.rand(2, 1, 32, 32)
    features = network.features(x_u, reconstructor.operator)
    assert torch.equal(features.output, reconstructor(x_u))
    assert len(features.cascade_outputs) == plain.cascades == 1
    assert features.attention == []
    copied = copy.deepcopy(reconstructor)
    assert torch.equal(copied(x_u), reconstructor(x_u))
    assert [one.follows for one in copied.model.layers()] == [None, "first"]
    with pytest.raises(NotImplementedError):
        network.features_from(0, x_u, x_u, reconstructor.operator)


class _Image(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class _Any(nn.Module):
    def forward(self, *given: Tensor | None) -> Tensor:
        assert len(given) == 3
        assert given[0] is not None
        return given[0]


def test_a_module_takes_what_it_has_arguments_for(plain: PlainSpec) -> None:
    x_u, operator = torch.rand(1, 1, 8, 8), torch.eye(8)
    image = as_network(_Image(), replace(plain, has_data_consistency=False))
    assert torch.equal(image(x_u, operator, None), 2 * x_u)
    assert torch.equal(as_network(_Any(), plain)(x_u, operator, None), x_u)
    with pytest.raises(ModelError, match="takes 1 of its 2 arguments") as caught:
        as_network(_Image(), plain)
    assert "forward(self, x_u, operator)" in caught.value.remedy
    with pytest.raises(ModelError, match="builds str, no torch"):
        as_network("module", plain)  # type: ignore[arg-type]


def _save(path: Path, spec: NetworkSpec) -> Path:
    state = build_model(spec).state_dict()
    checkpoint = Checkpoint(spec=spec, mask=MASK, matrix=32, role="student",
                            training={"data": []}, state=state)  # fmt: skip
    save_checkpoint(path, checkpoint)
    return path


def test_a_checkpoint_of_a_family_that_is_gone_says_so(
    plain: PlainSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _save(tmp_path / "a.safetensors", plain)
    assert load_checkpoint(file).spec == plain
    monkeypatch.delitem(NETWORKS._rows, "plain")
    monkeypatch.setattr(NETWORKS, "_built_in", NETWORKS._built_in - {"plain"})
    with pytest.raises(CheckpointError, match="the network family 'plain' is not installed") as e:
        load_checkpoint(file)
    assert "Install the package that brings it" in e.value.remedy
    meta = {"spec": plain.to_dict(), "parameters": 7, "macs": {"convolutions": 3}}
    with pytest.raises(ModelError, match="not installed"):
        described_spec(meta)
    known = described_spec({**meta, "network": describe_spec(plain)})
    assert isinstance(known, NetworkSpec)
    assert (known.kind, known.channels, known.magnitude_input, known.parameters) == (
        "plain", 1, False, 7
    )  # fmt: skip
    assert known.to_dict() == plain.to_dict()


def test_damaged_specifications_are_sentences(plain: PlainSpec) -> None:
    for value, said in (
        ({}, "names no family"),
        ({"kind": "plain", "reads": "sound"}, "damaged"),
        ({"kind": "plain", "depth": 3, "reads": "complex"}, "damaged"),
        ({"kind": "dccnn", "depth": 3}, "unknown key 'depth'"),
    ):
        with pytest.raises(ModelError, match=said):
            spec_from_dict(value)


def test_a_family_whose_specifications_lack_something_is_named(
    plain: PlainSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = replace(FAMILY, from_dict=lambda value: object())  # type: ignore[arg-type,return-value]
    monkeypatch.setitem(NETWORKS._rows, "plain", broken)
    with pytest.raises(ModelError, match="lack 'attention_widths'"):
        spec_from_dict({"kind": "plain"})


def test_networks_of_two_families_are_paired_by_imitation_alone(plain: PlainSpec) -> None:
    from kdmri_edge.distillation.request import check_settings

    pair = {"teacher": "dccnn-d5c5", "student": "plain-4"}
    made = Request(**pair).settings()
    assert made.recipe.name == "imitation"
    check_settings(made, 1)
    for changes, said in (
        (("attention_steps=5",), "shows 5 tensors for it, the student 0"),
        (("distillation.imitation=cascades",), "has 5 cascades, the student 1"),
        (("joint_steps=5",), "Joint training"),
    ):
        with pytest.raises(RecipeError, match=said):
            check_settings(Request(**pair, assignments=changes).settings(), 1)
    for key, said in (("inherit", "other sizes"), ("bridge", "as many cascades")):
        asked = Request(**pair, assignments=(f"distillation.{key}=true",)).settings()
        with pytest.raises(ModelError, match=said):
            check_settings(asked, 1)
    with pytest.raises(RecipeError, match="takes no dilation"):
        Request(**pair, recipe="edge").settings()
    # Also one without data consistency teaches: each is given its own input.
    check_settings(Request(teacher="vdsr-11", student="plain-4").settings(), 1)
