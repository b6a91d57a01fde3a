from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from kdmri_edge.data.case import Case, make_case
from kdmri_edge.data.volume import Volume
from kdmri_edge.distillation.batches import TrainingSlices, batch_size, strips_allowed
from kdmri_edge.distillation.recipe import DistillRecipe
from kdmri_edge.errors import DataError
from kdmri_edge.models.specs import preset
from kdmri_edge.physics.masks import Mask, centre_block, variable_density_2d, variable_density_lines
from kdmri_edge.physics.operators import projection_matrix, zero_filled
from tests.drawing import draw

Make = Callable[..., DistillRecipe]


@pytest.fixture
def slices() -> TrainingSlices:
    """Each pixel tells where it is: slice * 10,000 + row * 100 + column."""
    n, h, w = np.meshgrid(range(5), range(6), range(32), indexing="ij")
    target = (n * 10_000 + h * 100 + w).astype(np.float32)
    return TrainingSlices(target, target + np.float32(0.5))


def _case(image: np.ndarray) -> Case:
    volume = Volume(image=image.astype(np.float32), name="x", subject="x")
    return make_case(volume, variable_density_lines(image.shape[1], 2.0))


@pytest.mark.parametrize("whole", [False, True])
def test_a_step_depends_on_nothing_before_it(
    slices: TrainingSlices, recipe: Make, whole: bool
) -> None:
    def at(step: int, seed: int = 0) -> torch.Tensor:
        made = recipe(seed=seed, batch=8)
        return draw(slices, made, step=step, whole=whole, flip=True)[1]

    for step in range(20):
        at(step)
    again = [at(step) for step in (7, 3)]
    assert torch.equal(again[0], at(7))
    assert torch.equal(again[1], at(3))
    assert not torch.equal(at(7), at(3))
    assert not torch.equal(at(7), at(7, seed=1))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_the_batch_of_one(
    slices: TrainingSlices, recipe: Make, world: int, whole: bool
) -> None:
    made = recipe(batch=8, strip=16)
    arguments = {"step": 5, "whole": whole, "flip": True}
    x, target = draw(slices, made, **arguments)
    shares = [draw(slices, made, **arguments, rank=r, world=world) for r in range(world)]
    assert len({len(s[0]) for s in shares}) == 1
    for index, together in enumerate((x, target)):
        joined = torch.empty_like(together)
        for rank, share in enumerate(shares):
            joined[rank::world] = share[index]
        assert torch.equal(joined, together)


def test_strips_come_whole_from_one_slice(slices: TrainingSlices, recipe: Make) -> None:
    made = recipe(batch=8, strip=10)
    starts, mirrored, chosen = set(), 0, set()
    for step in range(60):
        x, target = draw(slices, made, step=step, whole=False, flip=True)
        assert x.shape == target.shape == (8, 1, 6, 10)
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(x, target + 0.5)
        for strip in target[:, 0].numpy().astype(int):
            n, columns = strip[0, 0] // 10_000, strip[0] % 100
            np.testing.assert_array_equal(strip, n * 10_000 + 100 * np.arange(6)[:, None] + columns)
            step_along = np.diff(columns)
            assert abs(step_along.sum()) == 9
            assert len(set(step_along)) == 1
            mirrored += step_along[0] == -1
            starts.add(columns.min())
            chosen.add(n)
    assert chosen == set(range(5))
    assert min(starts) == 0
    assert max(starts) == 22  # the last column is seen
    assert 180 < mirrored < 300


def test_noise_reaches_what_is_sampled_alone(recipe: Make) -> None:
    """It lies on the sampled lines, of the strength asked for; the target stays clean."""
    random = np.random.default_rng(0)
    image = random.standard_normal((2, 6, 64, 48)).astype(np.float32)
    target = (image[0] + 1j * image[1]).astype(np.complex64)
    slices, made = TrainingSlices(target, target), recipe(batch=8, strip=24)
    mask = variable_density_lines(64, 2.0)
    projection = projection_matrix(mask).astype(np.complex64)
    options: dict[str, Any] = {"step": 3, "whole": False, "flip": True, "projection": projection}
    x_u, clean = draw(slices, made, **options)
    noisy, still = draw(slices, made, **options, noise=0.1)
    # The scale alone moved, as that of noisier data would.
    factor = (still * clean).sum((1, 2, 3)) / (clean**2).sum((1, 2, 3))
    torch.testing.assert_close(still, clean * factor[:, None, None, None])
    scale = slices.target.real.std() / clean.std((1, 2, 3))
    found = (noisy / factor[:, None, None, None] - x_u).numpy() * scale.numpy()[:, None, None, None]
    noise = found[:, 0] + 1j * found[:, 1]
    np.testing.assert_allclose(projection @ noise, noise, atol=1e-5)
    kept = mask.samples.mean()
    assert np.sqrt(np.mean(np.abs(noise) ** 2)) == pytest.approx(0.1 * np.sqrt(kept), rel=0.1)
    shares = [draw(slices, made, **options, noise=0.1, rank=r, world=2)[0] for r in range(2)]
    assert all(torch.equal(share, noisy[r::2]) for r, share in enumerate(shares))


def test_without_flip_nothing_is_mirrored(slices: TrainingSlices, recipe: Make) -> None:
    for step in range(10):
        _, target = draw(slices, recipe(), step=step, whole=False, flip=False)
        assert (torch.diff(target, dim=3) == 1).all()


@pytest.mark.parametrize(("strip", "count"), [(16, 4), (8, 2), (60, 8), (32, 8)])
def test_whole_slices_have_as_many_pixels(
    slices: TrainingSlices, recipe: Make, strip: int, count: int
) -> None:
    made = recipe(batch=8, strip=strip)
    x, _ = draw(slices, made, step=0, whole=True, flip=False)
    assert x.shape == (count, 1, 6, 32)
    assert batch_size(made, 32, whole=True) == count
    assert batch_size(made, 32, whole=False) == 8
    assert batch_size(recipe(batch=1, strip=8), 240, whole=True) == 1


def test_slices_are_scaled_by_their_own_zero_filled_image() -> None:
    image = np.random.default_rng(0).random((4, 32, 32)) * np.array([1, 2, 3, 4])[:, None, None]
    case = _case(image * 500)
    made = TrainingSlices.from_cases([case])
    np.testing.assert_allclose(np.abs(made.zero_filled).max((1, 2)), 1, rtol=1e-6)
    np.testing.assert_allclose(made.target * case.scale[:, None, None], case.target, rtol=1e-6)


def test_blank_slices_are_left_out() -> None:
    image = np.random.default_rng(0).random((4, 32, 32))
    image[1] *= 1e-3
    image[3] = 0
    made = TrainingSlices.from_cases([_case(image), _case(image)])
    assert len(made.target) == len(made.zero_filled) == 4


def test_no_slice_at_all() -> None:
    with pytest.raises(DataError, match="no slice with anatomy"):
        TrainingSlices.from_cases([])


@pytest.mark.parametrize(
    ("mask", "name", "allowed"),
    [
        (variable_density_lines(32, 2.0), "dccnn-d3c5", True),
        (variable_density_2d((32, 32), 2.0, centre=6), "dccnn-d3c5", False),
        (centre_block((32, 32), (8, 8)), "dccnn-d3c5", False),
        (centre_block((32, 32), (8, 8)), "vdsr-7", True),
    ],
)
def test_strips_need_lines_or_a_network_without_data_consistency(
    mask: Mask, name: str, allowed: bool
) -> None:
    assert strips_allowed(mask, preset(name)) is allowed


def test_a_network_without_data_consistency_sees_no_strip_inside(recipe: Make) -> None:
    """Away from the cut by its receptive radius, VDSR gives on a strip what it gives on a slice."""
    from kdmri_edge.models.build import build_model

    torch.manual_seed(0)
    network = build_model(preset("vdsr-7")).eval()
    radius = preset("vdsr-7").receptive_radius
    x = torch.randn(1, 1, 12, 48)
    with torch.inference_mode():
        whole, strip = network(x), network(x[..., 8:40])
    inside = slice(radius, 32 - radius)
    assert torch.allclose(strip[..., inside], whole[..., 8:40][..., inside], atol=1e-5)
    assert not torch.allclose(strip, whole[..., 8:40], atol=1e-5)


def test_mirroring_keeps_the_block_of_super_resolution() -> None:
    """Exactly for odd blocks; an even one has one frequency without its mirror."""
    image = np.random.default_rng(0).uniform(size=(1, 33, 33)).astype(np.float32)
    mask = centre_block((33, 33), (9, 9))
    of_mirrored = zero_filled(image[..., ::-1], mask)
    np.testing.assert_allclose(of_mirrored, zero_filled(image, mask)[..., ::-1], atol=1e-5)
