"""The picture: what it shows, and that it shows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

from kdmri_bench.reporting.panel import FACTORS, compose, draw, median_slice
from kdmri_edge.data.case import Case, make_case
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.metrics import psnr
from kdmri_edge.physics.masks import variable_density_lines

MASK = variable_density_lines(64, 4, seed=1)


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case(phantom_volume(5, slices=5, matrix=64), MASK)


@pytest.fixture(scope="module")
def outputs(case: Case) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    peak = case.target.max()

    def noisy(sigma: float) -> NDArray[np.float32]:
        noise = sigma * peak * rng.standard_normal(case.target.shape)
        return (case.target + noise).astype(np.float32)

    return {"student": noisy(0.01), "teacher": noisy(0.005), "plain": noisy(0.02)}


def test_order_and_psnr(case: Case, outputs: dict[str, NDArray[np.float32]]) -> None:
    panel = compose(case, outputs, MASK)
    assert list(panel.images) == [
        "zero-filled", "target", "teacher", "plain student", "ours (distilled)",
    ]  # fmt: skip
    assert list(panel.residues) == list(panel.images)[2:]
    i = panel.slice
    error = np.mean((outputs["plain"][i] - case.target[i]) ** 2, dtype=np.float64)
    expected = 10 * np.log10(float(case.target.max()) ** 2 / error)
    assert panel.psnr["plain student"] == pytest.approx(expected, abs=1e-3)
    assert panel.factor in FACTORS
    assert panel.to_dict()["slice"] == i


def test_the_slice_is_the_one_with_median_error() -> None:
    target = np.ones((6, 8, 8), dtype=np.float32)
    target[5] = 0.0  # blank: does not count
    output = target.copy()
    for index, error in enumerate([0.5, 0.1, 0.3, 0.2, 0.4, 0.0]):
        output[index] += error
    assert median_slice(target, output) == 2


def test_the_scale_fits_the_largest_residue(
    case: Case, outputs: dict[str, NDArray[np.float32]]
) -> None:
    panel = compose(case, outputs, MASK)
    clipped = [np.mean(residue * panel.factor > 1) for residue in panel.residues.values()]
    assert max(clipped) <= 0.006
    coarse = compose(case, {**outputs, "plain": case.target * 1.4}, MASK)
    assert coarse.factor < panel.factor


def test_the_png_shows_different_pictures(
    case: Case, outputs: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    panel = compose(case, outputs, MASK)
    draw(panel, tmp_path / "panel.png", "subtitle")
    pixels = imread(tmp_path / "panel.png")[..., :3].mean(axis=-1)
    height, width = pixels.shape
    assert width > 1800
    assert height > 800
    columns = np.array_split(pixels[: height // 2], 5, axis=1)
    side = min(column.shape[1] for column in columns)
    columns = [column[40:, :side] for column in columns]
    for i in range(5):
        assert columns[i].std() > 0.02, i
        for j in range(i):
            assert np.abs(columns[i] - columns[j]).mean() > 1e-4, (i, j)
    lower = pixels[height // 2 :]
    teacher, plain = (
        lower[60:-60, round(width * (k + 0.1) / 5) : round(width * (k + 0.9) / 5)] for k in (2, 3)
    )
    assert plain.mean() > 1.5 * teacher.mean()  # four times the error on the same scale


def test_it_can_be_drawn_without_any_network(case: Case, tmp_path: Path) -> None:
    panel = compose(case, {}, MASK)
    draw(panel, tmp_path / "panel.png")
    assert (tmp_path / "panel.png").stat().st_size > 5000
    assert not panel.residues


def test_drawing_leaves_global_matplotlib_alone(case: Case, tmp_path: Path) -> None:
    import matplotlib as mpl

    before = mpl.get_backend()
    draw(compose(case, {}, MASK), tmp_path / "panel.png")
    assert mpl.get_backend() == before
    assert psnr(case.target, case.zero_filled) > 0
