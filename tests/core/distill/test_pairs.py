"""Teacher and student of different inputs, families and numbers of cascades."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdmri_edge.bring.trial import phantom_inputs
from kdmri_edge.distillation.data import gather
from kdmri_edge.distillation.losses import (
    DistillationLoss,
    imitation,
    in_units_of,
    on_common_ground,
    paired,
)
from kdmri_edge.distillation.messages import next_commands
from kdmri_edge.distillation.recipe import Imitation
from kdmri_edge.distillation.request import Request, Settings, check_settings
from kdmri_edge.distillation.run import distill
from kdmri_edge.distillation.stages import Batch
from kdmri_edge.distillation.taps import Given, check_image
from kdmri_edge.errors import KdmriError, ModelError, RecipeError
from kdmri_edge.models.build import build_model
from kdmri_edge.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from kdmri_edge.models.network import Features, as_network
from kdmri_edge.models.specs import preset
from kdmri_edge.physics.masks import variable_density_lines

UNET = Path(__file__).resolve().parents[3] / "examples" / "own_network" / "unet.py"
MASK = variable_density_lines(48, 1.5, centre_lines=24)
FEW = (
    *("teacher_steps=2", "imitation_steps=3", "batches.size=4", "batches.strip=24"),
    *("optim.warmup=1", "phantom_volumes=3", "phantom_slices=3", "validate_every=2"),
    *("checkpoint_every=1", "precision=f32"),
)
Weights = Callable[[Path], dict[str, dict[str, Tensor]]]


def asked(teacher: str, student: str, *changes: str, **options: Any) -> Settings:
    return Request(
        teacher=teacher, student=student, mask=MASK, assignments=(*FEW, *changes), **options
    ).settings()


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        (5, 5, [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]),
        (3, 5, [(1, 2), (2, 3), (3, 5)]),
        (5, 3, [(2, 1), (3, 2), (5, 3)]),
        (2, 12, [(1, 6), (2, 12)]),
        (1, 4, [(1, 4)]),
        (4, 5, [(1, 1), (2, 3), (3, 4), (4, 5)]),
    ],
)
def test_cascades_are_paired_evenly(
    student: int, teacher: int, pairs: list[tuple[int, int]]
) -> None:
    ours, theirs = paired(range(1, student + 1), range(1, teacher + 1))
    assert list(zip(ours, theirs, strict=True)) == pairs


def test_every_pairing_ends_with_the_last_and_names_none_twice() -> None:
    for student in range(1, 14):
        for teacher in range(1, 14):
            ours, theirs = paired(range(student), range(teacher))
            assert (ours[-1], theirs[-1]) == (student - 1, teacher - 1)
            assert ours == sorted(set(ours))
            assert theirs == sorted(set(theirs))


def test_images_meet_as_magnitudes() -> None:
    single, double = _random(2, 1, 6, 5), _random(2, 2, 6, 5, seed=1)
    for one, other in (((single, double)), ((double, single))):
        found = on_common_ground(one, other)
        assert [image.shape[1] for image in found] == [1, 1]
    assert torch.equal(on_common_ground(single, double)[0], single)
    magnitude = torch.complex(double[:, :1], double[:, 1:]).abs()
    torch.testing.assert_close(on_common_ground(double, single)[0], magnitude)
    assert on_common_ground(double, double) == (double, double)


def test_a_black_pixel_has_a_gradient_that_is_finite() -> None:
    image = torch.zeros(1, 2, 4, 4, requires_grad=True)
    features = Features(image, [image], [])
    target = torch.ones(1, 1, 4, 4)
    imitation(Imitation.FINAL, "l1", features, Features(target, [target], [])).backward()
    assert image.grad is not None
    assert torch.isfinite(image.grad).all()


def test_units_follow_from_the_targets() -> None:
    image = _random(3, 1, 6, 5).abs()
    angle = _random(3, 1, 6, 5, seed=1)
    turned = torch.cat([image * angle.cos(), image * angle.sin()], 1)
    factors = torch.tensor([0.5, 3.0, 1e-3])[:, None, None, None]
    image[2] = 0
    turned[2] = 0
    shown = Features(turned / factors, [turned / factors] * 2, [])
    found = in_units_of(image, shown, turned / factors)
    torch.testing.assert_close(found.output[:2], turned[:2])
    torch.testing.assert_close(found.cascade_outputs[0][:2], turned[:2])
    assert torch.equal(found.output[2], torch.zeros(2, 6, 5))


KINDS = [
    pytest.param("dccnn-d5c5-complex", "dccnn-d3c5", id="complex to magnitude"),
    pytest.param("dccnn-d5c5", "dccnn-d3c5-complex", id="magnitude to complex"),
    pytest.param("dccnn-d5c5-sense", "dccnn-d3c5", id="coils to magnitude"),
    pytest.param("dccnn-d5c5-sense", "dccnn-d3c5-complex", id="coils to complex"),
    pytest.param("dccnn-d5c5", "dccnn-d3c5-sense", id="magnitude to coils"),
    pytest.param(f"{UNET}:UNet?width=3", "dccnn-d3c5", id="without data consistency"),
]


@pytest.mark.parametrize(("teacher", "student"), KINDS)
def test_both_see_the_same_slices_in_their_own_way(
    teacher: str, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Batch] = []
    real = DistillationLoss.imitation

    def spy(self: DistillationLoss, features: Features, batch: Batch) -> Tensor:
        seen.append(batch)
        return real(self, features, batch)

    monkeypatch.setattr(DistillationLoss, "imitation", spy)
    settings = asked(teacher, student, "batches.whole_slices=0.4", "batches.shards=2")
    run = distill(settings, tmp_path / "run")
    assert run.roles() == ["teacher", "plain", "student"]
    strips = settings.teacher_spec.receptive_radius is not None
    widths = [batch.x_u.shape[-1] for batch in seen]
    assert widths == ([24] * 4 + [48] * 2 if strips else [48] * 6)
    for batch in seen:
        other = batch.teacher
        assert other is not None
        for inputs, spec in ((batch, settings.student_spec), (other, settings.teacher_spec)):
            assert inputs.x_u.shape[1] == inputs.target.shape[1] == spec.channels
            assert (inputs.maps is not None) == spec.coils
            # What its operator keeps of its target is close to what it reads (noise is small).
            assert inputs.x_u.shape == inputs.target.shape
        shown = in_units_of(batch.target, Features(other.target, [], []), other.target).output
        own, theirs = on_common_ground(batch.target, shown)
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-5)
        assert not torch.equal(batch.target, other.target)  # in a unit of its own


def test_only_simulated_data_is_said_to_be(tmp_path: Path) -> None:
    run = distill(asked("dccnn-d5c5-sense", "dccnn-d3c5", baseline=False), tmp_path / "run")
    teacher, student = (load_checkpoint(run.weights(role)).training for role in run.roles())
    assert teacher["simulation"]["coils"]
    assert "simulation" not in student
    assert "simulation" not in run.meta
    bench = [line for line in next_commands(run) if " bench " in line]
    assert bench == [f"kdmri-edge bench {run.path}/student.safetensors"]


def test_a_pair_that_reads_the_same_is_given_it_once() -> None:
    assert gather(asked("dccnn-d5c5", "dccnn-d3c5")).teacher is None
    assert gather(asked("dccnn-d5c5-complex", "dccnn-d3c5")).teacher is not None


def test_the_plain_student_is_that_of_any_other_teacher(tmp_path: Path, weights: Weights) -> None:
    """Its data, and what it meets of them, are what a student's teacher does not change."""
    runs = [
        distill(asked(teacher, "dccnn-d3c5", "distillation.dilation=[]"), tmp_path / teacher)
        for teacher in ("dccnn-d5c5-complex", "dccnn-d5c5-sense")
    ]
    one, other = (weights(run.path) for run in runs)
    assert all(torch.equal(value, other["plain"][name]) for name, value in one["plain"].items())
    assert any(not torch.equal(v, other["student"][name]) for name, v in one["student"].items())


def test_interrupted_runs_go_on(
    distill_with_cuts: Callable[..., Any], weights: Weights, tmp_path: Path
) -> None:
    wanted = asked("dccnn-d5c5-complex", "dccnn-d3c5", baseline=False)
    whole = weights(distill(wanted, tmp_path / "whole").path)
    cuts = [("teacher", 1), ("imitation", 1), ("imitation", 2)]
    cut = weights(distill_with_cuts(wanted, tmp_path / "cut", cuts).path)
    for role, state in whole.items():
        assert all(torch.equal(value, cut[role][name]) for name, value in state.items()), role


def test_cascades_of_different_numbers(tmp_path: Path) -> None:
    settings = asked("dccnn-d5c5", "dccnn-d3c5", "distillation.imitation=cascades",
                     "attention_steps=2", recipe="kd-mri", baseline=False)  # fmt: skip
    fewer = replace(preset("dccnn-d3c5"), cascades=3)
    run = distill(replace(settings, student_spec=fewer), tmp_path / "run")
    assert load_checkpoint(run.weights("student")).spec.cascades == 3


def test_over_many_masks_and_with_noise(tmp_path: Path) -> None:
    mask = variable_density_lines(96, 3, centre_lines=24)
    given = {"teacher": "dccnn-d5c5-sense", "student": "dccnn-d3c5", "mask": mask}
    few = ("batches.other_masks=1", "batches.noise=0.05", "teacher_steps=1", "imitation_steps=2")
    wanted = Request(**given, assignments=(*FEW, *few), baseline=False).settings()
    assert distill(wanted, tmp_path / "run").roles() == ["teacher", "student"]


@pytest.mark.parametrize(
    ("teacher", "student", "changes", "said"),
    [
        ("dccnn-d5c5-complex", "dccnn-d3c5", ("distillation.inherit=true",), "cannot start as"),
        ("dccnn-d5c5-complex", "dccnn-d3c5", ("distillation.bridge=true",), "cannot start as"),
        ("dccnn-d5c5-complex", "dccnn-d3c5", ("joint_steps=1",), "Joint training mixes"),
        ("vdsr-11", "dccnn-d3c5", ("batches.other_masks=1",), "takes no mask"),
        ("vdsr-11", "dccnn-d3c5", ("batches.noise=0.1",), "this run has none of"),
        ("vdsr-11", "dccnn-d3c5", ("distillation.imitation=cascades",), "no image between"),
    ],
)
def test_what_does_not_go_together(
    teacher: str, student: str, changes: tuple[str, ...], said: str
) -> None:
    with pytest.raises(KdmriError, match=said):
        check_settings(asked(teacher, student, *changes), 1)


def test_strangers_are_paired_by_imitation_unless_asked_otherwise() -> None:
    for teacher, student, name in (
        ("dccnn-d5c5", "dccnn-d3c5", "edge"),
        ("dccnn-d5c5-complex", "dccnn-d3c5", "imitation"),
        ("vdsr-11", "dccnn-d3c5", "imitation"),
        ("vdsr-11", "vdsr-7", "edge-sr"),
        ("vdsr-11", "vdsr-half", "edge-sr-half"),
        ("dccnn-d5c5", "dccnn-edge", "carried"),
        ("dccnn-d5c5-carried", "dccnn-edge-small", "carried-half"),
        ("dccnn-d5c5", "dccnn-edge?shuffle=2", "carried-half"),
        ("dccnn-d5c5-carried", "dccnn-d3c5", "imitation"),
        ("dccnn-d5c5-sense", "dccnn-edge", "imitation"),
    ):
        assert Request(teacher=teacher, student=student).settings().recipe.name == name
    with pytest.raises(RecipeError, match="cannot start as"):
        check_settings(Request(teacher="dccnn-d5c5-complex", recipe="edge").settings(), 1)


@pytest.mark.parametrize(
    ("recipe", "student"),
    [
        (None, "dccnn-edge"),
        ("carried", "dccnn-edge"),
        ("imitation", "dccnn-edge"),
        ("edge", "dccnn-d3c5"),
        ("kd-mri", "dccnn-d3c5"),
        ("quickstart", "dccnn-d3c5"),
    ],
)
def test_the_student_of_a_run_that_names_none_can_be_taught_by_its_recipe(
    recipe: str | None, student: str
) -> None:
    settings = Request(recipe=recipe).settings()
    assert settings.student == student
    check_settings(settings, 1)


@pytest.mark.parametrize("key", ["bridge=true", "inherit=true", "dilation=[1,2,1]"])
def test_keys_of_the_paper_student_choose_it(key: str) -> None:
    settings = Request(assignments=(f"distillation.{key}",)).settings()
    assert (settings.student, settings.recipe.name) == ("dccnn-d3c5", "edge")
    check_settings(settings, 1)


def test_a_teacher_of_nan_is_refused(tmp_path: Path) -> None:
    network = build_model(preset("dccnn-d5c5-complex"))
    next(iter(network.parameters())).data.fill_(float("nan"))
    checkpoint = Checkpoint(
        spec=network.spec, mask=MASK, matrix=48, role="teacher", training={},
        state=network.state_dict(),
    )  # fmt: skip
    save_checkpoint(tmp_path / "teacher.safetensors", checkpoint)
    wanted = asked(str(tmp_path / "teacher.safetensors"), "dccnn-d3c5")
    with pytest.raises(ModelError, match="NaN or infinite"):
        distill(wanted, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_teacher_of_another_size_is_refused() -> None:
    class Cut(nn.Module):
        def forward(self, x_u: Tensor) -> Tensor:
            return x_u[..., 1:-1]

    network = as_network(Cut(), preset("vdsr-7"))
    given = Given(*phantom_inputs(network.spec, MASK, 48, network))
    with pytest.raises(ModelError, match=r"gives \[2, 1, 48, 46\] for a phantom, not an image"):
        check_image(network, given, 48, "Teacher cut.py:Cut")
