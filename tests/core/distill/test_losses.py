from __future__ import annotations

import pytest
import torch

from kdmri_edge.distillation.losses import (
    attention_map,
    attention_transfer,
    distance,
    imitation,
    root_mean_square,
)
from kdmri_edge.distillation.recipe import LOSSES, Imitation
from kdmri_edge.models.network import Features


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _features(seed: int) -> Features:
    stages = [_random(2, 1, 9, 8, seed=seed + i) for i in range(3)]
    return Features(stages[-1], stages, [_random(2, 4, 8, 6, seed=seed + 9 + i) for i in range(3)])


def test_attention_map_has_unit_norm_per_image() -> None:
    activations = _random(3, 5, 8, 6) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None, None]
    norms = torch.linalg.vector_norm(attention_map(activations), dim=1)
    torch.testing.assert_close(norms, torch.ones(3))


def test_attention_map_is_the_sum_of_squares() -> None:
    activations = _random(1, 5, 8, 6)
    energy = sum(activations[0, c].double() ** 2 for c in range(5)).flatten()
    expected = energy / energy.norm()
    torch.testing.assert_close(attention_map(activations)[0].double(), expected, rtol=1e-5, atol=0)


def test_attention_map_does_not_see_the_rest_of_the_batch() -> None:
    activations = _random(3, 5, 8, 6)
    changed = activations.clone()
    changed[1:] *= 100
    assert torch.equal(attention_map(activations)[0], attention_map(changed)[0])


def test_attention_transfer_ignores_scale_and_number_of_channels() -> None:
    student, teacher = _features(0).attention, _features(50).attention
    plain = attention_transfer(student, teacher)
    torch.testing.assert_close(attention_transfer([7 * s for s in student], teacher), plain)
    doubled = [torch.cat([t, t], 1) for t in teacher]
    torch.testing.assert_close(attention_transfer(student, doubled), plain)
    assert attention_transfer(student, student) == 0


def test_attention_transfer_teaches_the_student_only() -> None:
    student = [a.requires_grad_() for a in _features(0).attention]
    teacher = [a.requires_grad_() for a in _features(50).attention]
    attention_transfer(student, teacher).backward()
    assert all(s.grad is not None and s.grad.abs().max() > 0 for s in student)
    assert all(t.grad is None for t in teacher)


def test_attention_transfer_wants_equally_many_cascades() -> None:
    with pytest.raises(ValueError, match="zip"):
        attention_transfer(_features(0).attention, _features(0).attention[:2])


@pytest.mark.parametrize("loss", list(LOSSES))
def test_distance_is_a_mean(loss: str) -> None:
    image, target = _random(2, 1, 9, 8), _random(2, 1, 9, 8, seed=1)
    difference = (image - target).double()
    expected = (difference**2 if loss == "mse" else difference.abs()).mean()
    if loss != "l1-ssim":  # of which test_ideas knows
        assert float(distance(loss, image, target)) == pytest.approx(float(expected), rel=1e-6)
    halves = [distance(loss, image[i], target[i]) for i in range(2)]
    torch.testing.assert_close(sum(halves) / 2, distance(loss, image, target))
    assert distance(loss, image.bfloat16(), target).dtype is torch.float32


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("kind", list(Imitation))
def test_imitation_acts(kind: Imitation, loss: str) -> None:
    """Its gradient is of the size of the reconstruction's (the published code's is not)."""
    student, teacher = _features(0), _features(50)
    target = _random(2, 1, 9, 8, seed=99)
    output = student.output.requires_grad_()
    (pull,) = torch.autograd.grad(imitation(kind, loss, student, teacher), output)
    (reconstruct,) = torch.autograd.grad(distance(loss, output, target), output)
    share = 3 if kind is Imitation.CASCADES else 1
    assert 0.5 < share * float(pull.norm() / reconstruct.norm()) < 2


def test_imitation_of_cascades_reaches_each_of_them() -> None:
    student, teacher = _features(0), _features(50)
    stages = [s.requires_grad_() for s in student.cascade_outputs]
    imitation(Imitation.CASCADES, "l1", student, teacher).backward()
    assert all(s.grad is not None and s.grad.abs().max() > 0 for s in stages)
    assert imitation(Imitation.CASCADES, "l1", student, student) == 0
    assert imitation(Imitation.FINAL, "mse", teacher, teacher) == 0


def test_root_mean_square_is_each_images_own_and_has_a_gradient_at_zero() -> None:
    image, target = torch.zeros(2, 1, 4, 6, requires_grad=True), torch.zeros(2, 1, 4, 6)
    target[0], target[1, 0, 0, 0] = 0.5, 2.0
    found = root_mean_square(image, target)
    assert float(found.detach()) == pytest.approx((0.5 + 2 / 24**0.5) / 2, rel=1e-5)
    root_mean_square(image, torch.zeros_like(target)).backward()
    assert image.grad is not None
    assert torch.isfinite(image.grad).all()
