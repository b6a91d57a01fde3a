"""Networks with coils on k-space that several coils measured: trained and compared directly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdmri_edge.data.case import Undersampling, measured_case
from kdmri_edge.data.scan import Scan
from kdmri_edge.distillation.batches import TrainingSlices
from kdmri_edge.distillation.data import gather
from kdmri_edge.distillation.engine import Engine
from kdmri_edge.distillation.preparation import Keeping
from kdmri_edge.distillation.request import Settings
from kdmri_edge.distillation.run import distill
from kdmri_edge.errors import DataError, MaskError
from kdmri_edge.models.specs import preset
from kdmri_edge.physics.coils import COILS
from kdmri_edge.physics.masks import variable_density_lines
from kdmri_edge.runtime.inputs import InputSpec, prepare_scan
from tests.multi_coil import images, scan, write_fastmri

MATRIX = 32
MASK = variable_density_lines(MATRIX, 1.2, centre_lines=24)
SENSE = preset("dccnn-d3c5-sense")
READS = InputSpec(spec=SENSE, mask=MASK, matrix=(MATRIX, MATRIX))


def noisy(coils: int = 4) -> Scan:
    """A scan whose coils have noise of different strength, and a measurement of it."""
    _, seen = images(coils=coils)
    random = np.random.default_rng(0)
    levels = np.linspace(0.2, 3, coils)[:, None].astype(np.float32)
    noise = random.normal(size=(2, coils, 500)).astype(np.float32)
    return scan(seen, noise=((noise[0] + 1j * noise[1]) * levels).astype(np.complex64))


class TestCase:
    @pytest.mark.parametrize("coils", [4, pytest.param(10, marks=pytest.mark.nightly)])
    def test_the_target_is_what_the_coils_saw(self, coils: int) -> None:
        image, seen = images(coils=coils)
        case = measured_case(scan(seen), MASK, MATRIX)
        assert case.maps is not None
        inside = (np.abs(case.maps) ** 2).sum(1) > 0.5
        body = np.abs(image) > 0.2 * np.abs(image).max()
        assert inside[body].mean() > 0.98  # sensitivities are known where there is signal
        both = inside & body
        np.testing.assert_allclose(
            np.abs(case.target)[both], np.abs(image)[both], atol=0.03 * np.abs(image).max()
        )
        assert case.maps.shape == (2, COILS, MATRIX, MATRIX)
        assert not case.maps[:, coils:].any()

    @pytest.mark.parametrize("coils", [pytest.param(4, marks=pytest.mark.nightly), 10])
    def test_the_input_is_that_of_the_road_of_scans(self, coils: int) -> None:
        """Whitening, compression, sensitivities and combination are what `run` does."""
        loaded = noisy(coils)
        case = measured_case(loaded, MASK, MATRIX)
        given = prepare_scan(loaded, READS, undersample=True)
        assert given.maps is not None
        assert case.maps is not None
        peak = np.abs(given.zero_filled).max()
        np.testing.assert_allclose(case.zero_filled, given.zero_filled, atol=1e-5 * peak)
        own = case.maps[:, : given.maps.shape[1]]
        np.testing.assert_allclose(own, given.maps, atol=1e-5)
        # and of networks that make their own input of the coils' k-space
        whole = Undersampling(SENSE, MASK, MATRIX, 0, kspace=True).case(loaded)
        assert whole.reception is not None
        kspace = whole.reception.kspace()
        assert kspace.shape == (2, loaded.coils, MATRIX, MATRIX)
        assert not kspace[:, :, ~MASK.samples].any()
        again = prepare_scan(replace(loaded, kspace=kspace, mask=MASK, noise=None), READS)
        np.testing.assert_allclose(again.zero_filled, given.zero_filled, atol=1e-4 * peak)
        np.testing.assert_allclose(whole.target, np.abs(case.target), atol=1e-5 * peak)

    def test_another_matrix_is_that_of_its_images(self) -> None:
        image, seen = images(matrix=40)
        case = measured_case(scan(seen), MASK, MATRIX)
        assert case.target.shape == (2, MATRIX, MATRIX)
        assert np.abs(case.target).max() == pytest.approx(np.abs(image).max(), rel=0.3)
        whole = np.abs(image).mean() * 40 * 40 / MATRIX**2
        assert np.abs(case.target).mean() == pytest.approx(whole * MATRIX**2 / 40**2, rel=0.1)

    def test_what_cannot_be_a_target_is_refused(self) -> None:
        _, seen = images()
        whole = scan(seen)
        with pytest.raises(DataError, match="is undersampled"):
            measured_case(replace(whole, kspace=whole.kspace * MASK.grid, mask=MASK), MASK, MATRIX)
        larger = variable_density_lines(48, 1.2, centre_lines=24)
        with pytest.raises(DataError, match="below the matrix"):
            measured_case(whole, larger, 48)
        gappy = variable_density_lines(MATRIX, 2.0)
        with pytest.raises(MaskError, match="sensitivities"):
            measured_case(whole, gappy, MATRIX)
        with pytest.raises(DataError, match="4 coils") as caught:
            Undersampling(preset("dccnn-d3c5"), MASK, MATRIX, 0).case(whole)
        assert "dccnn-d3c5-sense" in caught.value.remedy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients, of whom one was measured with more coils and a larger matrix."""
    place = tmp_path_factory.mktemp("multicoil")
    for n in range(3):
        other = {"coils": 10, "matrix": 36} if n == 1 else {}
        write_fastmri(place / f"file{n}.h5", images(n, **other)[1], f"patient{n}")
    return place


@pytest.fixture
def wanted(settings: Callable[..., Settings], folder: Path) -> Settings:
    names = {"teacher": "dccnn-d5c5-sense", "student": "dccnn-d3c5-sense"}
    specs: dict[str, Any] = {
        f"{role}_spec": replace(preset(name), width=4) for role, name in names.items()
    }
    steps = {"teacher_steps": 2, "attention_steps": 0, "imitation_steps": 2}
    return settings(data=str(folder), mask=MASK, baseline=False, **names, **specs, **steps)


def test_slices_of_files_and_of_memory_are_the_same(wanted: Settings, tmp_path: Path) -> None:
    held = gather(wanted, keeping=Keeping(folder=tmp_path))
    streamed = gather(wanted, keeping=Keeping(memory=1, folder=tmp_path))
    assert held.simulation == streamed.simulation == {}  # nothing is simulated
    slices = [TrainingSlices.from_cases(data.train, cache=data.cache) for data in (held, streamed)]
    numbers = list(range(len(slices[0].target)))
    for one, other in (
        [each.target[numbers] for each in slices],
        [each.zero_filled[numbers] for each in slices],
        [each.maps_of(numbers) for each in slices],
    ):
        np.testing.assert_array_equal(one, other)
    validation = streamed.validation[0].part(slice(None))
    np.testing.assert_array_equal(
        validation.maps_of(slice(1, 2)), held.validation[0].part(slice(1, 2)).maps_of(slice(None))
    )


@pytest.mark.nightly
def test_a_pair_is_trained_from_files_as_from_memory(
    wanted: Settings, tmp_path: Path, weights: Callable[[Path], dict[str, dict[str, Tensor]]]
) -> None:
    one = weights(distill(wanted, tmp_path / "held").path)
    engine = Engine(data_memory=1, data_cache=tmp_path / "cache")
    other = weights(distill(wanted, tmp_path / "streamed", engine=engine).path)
    assert one.keys() == other.keys() == {"teacher", "student"}
    for role, state in one.items():
        assert all(torch.equal(value, other[role][name]) for name, value in state.items()), role


@pytest.mark.nightly
def test_networks_of_one_image_are_told_what_to_use(
    settings: Callable[..., Settings], folder: Path
) -> None:
    with pytest.raises(DataError, match="coils") as caught:
        gather(settings(data=str(folder)))
    assert "dccnn-d3c5-sense" in caught.value.remedy
