"""Slices to images: the network's within its scope, the zero-filled one with a reason elsewhere."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdmri_edge.errors import BackendError
from kdmri_edge.physics.coils import compress, noise_weights
from kdmri_edge.physics.combining import combined, root_sum_of_squares
from kdmri_edge.physics.fourier import kspace_to_image
from kdmri_edge.physics.masks import Mask, variable_density_lines
from kdmri_edge.runtime.backends.onnxruntime import OnnxRuntimeSession
from kdmri_edge.runtime.pipeline import Pipeline, zero_filled_magnitude
from kdmri_edge.runtime.session import open_session, reconstruct
from tests.core.mrd.scans import every_line, phantom_scan


@pytest.fixture(scope="module")
def pipelines(tiny_bundles: dict[str, Path]) -> dict[str, Pipeline]:
    return {name: Pipeline(path, threads=1) for name, path in tiny_bundles.items()}


@pytest.fixture
def pipeline(pipelines: dict[str, Pipeline]) -> Pipeline:
    return pipelines["magnitude"]


def slice_of(mask: Mask, coils: int = 3) -> np.ndarray:
    kspace: np.ndarray = phantom_scan(mask, slices=1, coils=coils).kspace[0]
    return kspace


def test_a_magnitude_network_gets_the_real_part(pipeline: Pipeline, tiny_bundles) -> None:
    mask = pipeline.reads.mask
    kspace = slice_of(mask)
    outcome = pipeline.reconstruct(kspace, mask)
    assert outcome.fallback is None
    assert outcome.image.dtype == np.float32
    session = open_session(tiny_bundles["magnitude"], threads=1)
    wanted = reconstruct(session, combined(kspace, mask).real[None])[0]
    np.testing.assert_allclose(outcome.image, wanted, atol=1e-5 * np.abs(wanted).max())


def test_a_pipeline_that_shares_its_cpus_gives_the_same_image(
    pipeline: Pipeline, tiny_bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[bool] = []
    begin = OnnxRuntimeSession.__init__

    def watched(self: OnnxRuntimeSession, *args: object, spin: bool = True, **kept: object) -> None:
        given.append(spin)
        begin(self, *args, spin=spin, **kept)  # type: ignore[arg-type]

    monkeypatch.setattr(OnnxRuntimeSession, "__init__", watched)
    sharing = Pipeline(tiny_bundles["magnitude"], threads=2, sharing=True)
    Pipeline(tiny_bundles["magnitude"], threads=2)
    assert given == [False, True]
    mask = pipeline.reads.mask
    kspace = slice_of(mask)
    one, other = (p.reconstruct(kspace, mask).image for p in (sharing, pipeline))
    np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


def test_a_complex_network_gets_one_coil_as_it_is(pipelines, tiny_bundles) -> None:
    pipeline = pipelines["complex"]
    mask = pipeline.reads.mask
    kspace = slice_of(mask, coils=1)
    outcome = pipeline.reconstruct(kspace, mask)
    assert outcome.fallback is None
    session = open_session(tiny_bundles["complex"], threads=1)
    wanted = reconstruct(session, kspace_to_image(kspace).astype(np.complex64))[0]
    np.testing.assert_allclose(outcome.image, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("name", ["magnitude", "complex"])
def test_coils_are_whitened_before_they_are_combined(pipelines, name: str) -> None:
    """A loud coil counts less, for networks of one image too."""
    pipeline = pipelines[name]
    mask = pipeline.reads.mask
    rng = np.random.default_rng(4)
    parts = rng.standard_normal((2, 3, 400)) * np.array([30.0, 1.0, 2.0])[:, None]
    weights = noise_weights((parts[0] + 1j * parts[1]).astype(np.complex64))
    kspace = slice_of(mask)
    outcome = pipeline.reconstruct(kspace, mask, weights)
    assert outcome.fallback is None
    wanted = pipeline.reconstruct(compress(kspace, weights), mask).image
    np.testing.assert_array_equal(outcome.image, wanted)
    plain = pipeline.reconstruct(kspace, mask).image
    assert np.abs(outcome.image - plain).max() > 0.02 * np.abs(plain).max()
    one = kspace[:1]
    alone = pipeline.reconstruct(one, mask, noise_weights(parts[:1, 0].astype(np.complex64)))
    np.testing.assert_array_equal(alone.image, pipeline.reconstruct(one, mask).image)


def test_the_image_follows_the_unit_of_kspace(pipeline: Pipeline) -> None:
    mask = pipeline.reads.mask
    kspace = slice_of(mask)
    one = pipeline.reconstruct(kspace, mask).image
    for factor in (1e-6, 1e5):
        scaled = pipeline.reconstruct((kspace * np.float32(factor)), mask).image
        np.testing.assert_allclose(scaled / factor, one, atol=1e-4 * np.abs(one).max())


def test_another_mask_for_a_bundle_that_takes_masks(pipelines) -> None:
    pipeline = pipelines["any-mask"]
    first = pipeline.reads.mask
    images = {}
    for seed in range(12):  # more than are kept
        mask = variable_density_lines(32, 3, centre_lines=4, seed=seed)
        kspace = slice_of(mask)
        outcome = pipeline.reconstruct(kspace, mask)
        assert outcome.fallback is None
        images[seed] = (mask, kspace, outcome.image)
    for mask, kspace, image in images.values():
        np.testing.assert_array_equal(pipeline.reconstruct(kspace, mask).image, image)
    assert pipeline.reconstruct(slice_of(first), first).fallback is None


def _blind(pipeline: Pipeline) -> tuple[np.ndarray, Mask]:
    mask = variable_density_lines(32, 3, centre_lines=4, seed=77)
    return slice_of(mask), mask


def _large(pipeline: Pipeline) -> tuple[np.ndarray, Mask]:
    mask = every_line(36)
    return phantom_scan(mask, slices=1, matrix=36).kspace[0], mask


def _broken(pipeline: Pipeline) -> tuple[np.ndarray, Mask]:
    kspace = slice_of(pipeline.reads.mask)
    kspace[1, 0, 3] = np.nan
    return kspace, pipeline.reads.mask


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_blind, "another mask"),
        (_large, "matrix is 36 x 36, the network's 32 x 32"),
        (_broken, "NaN"),
    ],
)
def test_outside_the_scope_there_is_the_zero_filled_image(pipeline, make, said: str) -> None:
    kspace, mask = make(pipeline)
    outcome = pipeline.reconstruct(kspace, mask)
    assert outcome.fallback is not None
    assert said in outcome.fallback
    clean = np.nan_to_num(kspace, nan=0)
    wanted = root_sum_of_squares(kspace_to_image(clean).astype(np.complex64))
    np.testing.assert_allclose(outcome.image, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("failure", "said"),
    [(RuntimeError("secret"), "network failed (RuntimeError)"), (BackendError("It broke.", ""),
     "It broke.")],
)  # fmt: skip
def test_a_failing_network(pipeline, monkeypatch, failure: Exception, said: str) -> None:
    def fail(x_u: object, **_: object) -> None:
        raise failure

    monkeypatch.setattr(pipeline.session, "run", fail)
    mask = pipeline.reads.mask
    kspace = slice_of(mask)
    outcome = pipeline.reconstruct(kspace, mask)
    assert said in (outcome.fallback or "")
    np.testing.assert_array_equal(outcome.image, zero_filled_magnitude(kspace))


def test_a_network_that_gives_nan(pipeline, monkeypatch) -> None:
    monkeypatch.setattr(pipeline.session, "run", lambda x_u, **_: x_u * np.float32(np.nan))
    mask = pipeline.reads.mask
    outcome = pipeline.reconstruct(slice_of(mask), mask)
    assert "image holds NaN" in (outcome.fallback or "")
    assert np.isfinite(outcome.image).all()


def test_zero_filled_is_always_finite() -> None:
    kspace = np.full((2, 8, 8), 3e38 + 3e38j, np.complex64)
    kspace[0, 0, 0] = np.inf
    assert np.isfinite(zero_filled_magnitude(kspace)).all()


@pytest.mark.parametrize("concurrent", [True, False])
def test_slices_at_once_give_the_images_of_one_after_another(
    pipelines, concurrent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks and brightness differ; a runtime that takes one slice at a time is given no two."""
    pipeline = pipelines["any-mask"]
    masks = [variable_density_lines(32, 3, centre_lines=4, seed=seed) for seed in range(10)]
    slices = [slice_of(mask) * (1 + n) for n, mask in enumerate(masks)]
    wanted = [pipeline.reconstruct(*one).image for one in zip(slices, masks, strict=True)]
    inside = threading.Lock()
    run = type(pipeline.session).run

    def watched(*given: Any, **named: Any) -> Any:
        if concurrent:
            return run(*given, **named)
        assert inside.acquire(blocking=False)
        try:
            time.sleep(0.002)
            return run(*given, **named)
        finally:
            inside.release()

    monkeypatch.setattr(type(pipeline.session), "run", watched)
    monkeypatch.setattr(pipeline.session, "concurrent", concurrent)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(pipeline.reconstruct, slices, masks))
    for one, other in zip(found, wanted, strict=True):
        assert one.fallback is None
        np.testing.assert_allclose(one.image, other, atol=1e-6 * np.abs(other).max())
