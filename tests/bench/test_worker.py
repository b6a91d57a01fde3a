"""The process of a row, run in this one: end to end, throughput, batches that a graph refuses."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdmri_bench.measuring.isolation import Job
from kdmri_bench.measuring.latency import FEWEST, throughput
from kdmri_bench.measuring.worker import _end_to_end, measure
from kdmri_bench.planning.exports import export_for
from kdmri_bench.planning.sources import from_checkpoint
from kdmri_edge.data.case import Case
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.errors import BackendError
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.scaling import network_input
from kdmri_edge.runtime.session import Session, open_session, reconstruct


@pytest.fixture(scope="module")
def weights(
    tmp_path_factory: pytest.TempPathFactory, make_run: Callable[..., Run], mask: Mask
) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), mask, ("student",)).weights("student")


@pytest.fixture(scope="module")
def bundles(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    scratch = tmp_path_factory.mktemp("exports")
    source = from_checkpoint(weights)
    return {
        batch: export_for(source, "openvino", dc="auto", scratch=scratch, batch=batch)
        for batch in ("1", "dynamic")
    }


@pytest.fixture
def job(cases: list[Case], bundles: dict[str, Path], tmp_path: Path) -> Job:
    case = cases[0]
    np.save(tmp_path / "query.npy", network_input(case.zero_filled[:1], case.scale[:1]))
    np.save(tmp_path / "kspace.npy", image_to_kspace(case.target[:1]))
    return Job(
        source=str(bundles["1"]), backend=None, precision="f32", threads=1, warmup=1, samples=6,
        query=str(tmp_path / "query.npy"), kspace=str(tmp_path / "kspace.npy"), end_to_end=5,
        batches=(1, 2), throughput_s=0.01, dynamic=str(bundles["dynamic"]), spawned=time.time(),
    )  # fmt: skip


def test_a_row_has_every_figure(job: Job) -> None:
    found = measure(job)
    assert (len(found.latency_s), len(found.end_to_end_s)) == (6, 5)
    assert set(found.throughput) == {"1", "2"}
    assert all(isinstance(rate, float) and rate > 0 for rate in found.throughput.values())
    # the first five are parts of the queries from k-space to image
    parts = list(zip(found.latency_s, found.end_to_end_s, strict=False))
    assert all(0 < network < whole for network, whole in parts)
    assert 0 < found.first_s < found.cold_s
    assert found.memory["peak"] >= found.memory["baseline"]
    assert found.info["provider"] == "CPU"


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_throughput_counts_the_slices_that_were_reconstructed(batch: int) -> None:
    class Counting(Session):
        slices = 0
        info = None  # type: ignore[assignment]

        def run(self, x_u, *, operator=None, maps=None):  # type: ignore[no-untyped-def]
            time.sleep(0.002)
            self.slices += len(x_u)
            return x_u

    session = Counting()
    query = np.zeros((1, 1, 4, 4), np.float32)
    began = time.perf_counter()
    found = throughput(session, lambda: session, query, batches=(batch,), seconds=0.05)
    spent = time.perf_counter() - began
    rate = found[str(batch)]
    assert isinstance(rate, float)
    # the first call warms up and is not counted; nothing else may be missing, or be there twice
    counted = session.slices - batch
    assert counted / spent <= rate <= 1.3 * counted / 0.05


def test_queries_of_data_that_lies_on_the_device_are_timed_apart(job: Job, weights: Path) -> None:
    eager = {"source": str(weights), "dynamic": None, "resident": True, "end_to_end": 0,
             "throughput_s": 0.001}  # fmt: skip
    found = measure(Job(**{**{name: getattr(job, name) for name in job.__slots__}, **eager}))
    assert len(found.resident_s) == job.samples
    assert set(found.resident_rates) == {"1", "2"}
    assert all(isinstance(rate, float) and rate > 0 for rate in found.resident_rates.values())


def test_one_time_limit_holds_for_both_kinds_of_queries(job: Job) -> None:
    changes = {"seconds": 0.0, "samples": 50, "end_to_end": 50, "batches": ()}
    found = measure(Job(**{**{name: getattr(job, name) for name in job.__slots__}, **changes}))
    assert len(found.latency_s) == len(found.end_to_end_s) == FEWEST


def test_a_batch_that_the_graph_refuses_has_its_reason(job: Job) -> None:
    found = measure(Job(**{**{n: getattr(job, n) for n in job.__slots__}, "dynamic": None}))
    assert isinstance(found.throughput["1"], float)
    assert "--batch dynamic" in str(found.throughput["2"])
    assert found.error is None


def test_from_kspace_comes_the_image_that_the_volume_gives(
    job: Job, cases: list[Case], bundles: dict[str, Path]
) -> None:
    session = open_session(bundles["1"], threads=1)
    whole = _end_to_end(job, session)()
    expected = reconstruct(session, cases[0].zero_filled[:1])
    np.testing.assert_allclose(whole, expected, atol=1e-4 * cases[0].target.max())


@pytest.mark.parametrize("hint", ["LATENCY", "THROUGHPUT"])
def test_several_at_a_time_give_the_same_images_in_order(
    bundles: dict[str, Path], cases: list[Case], hint: str
) -> None:
    images = network_input(cases[0].zero_filled, cases[0].scale)
    batches = [images[index : index + 1] for index in (0, 1, 2, 1, 0)]
    session = open_session(bundles["1"], threads=1, hint=hint)
    found = session.run_all(batches)
    for batch, output in zip(batches, found, strict=True):
        np.testing.assert_allclose(output, session.run(batch), atol=1e-6)
    with pytest.raises(BackendError):
        session.run_all([np.concatenate(batches)])


def test_an_unknown_hint_is_refused(bundles: dict[str, Path]) -> None:
    with pytest.raises(BackendError, match="SPEED"):
        open_session(bundles["1"], hint="SPEED")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"device": "tpu"}, "device 'tpu'"), ({"mode": "fast"}, "mode 'fast'"),
     ({"mode": "graph"}, "CUDA devices alone")],
)  # fmt: skip
def test_pytorch_says_what_it_cannot_do(weights: Path, options: dict[str, str], words: str) -> None:
    with pytest.raises(BackendError, match=words):
        open_session(weights, threads=1, **options)


def test_without_a_gpu_cuda_is_refused(weights: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(BackendError, match=r"no CUDA device|built for CPUs alone"):
        open_session(weights, threads=1, device="cuda")


@pytest.mark.nightly
def test_torch_compile_gives_the_same_image(weights: Path, cases: list[Case]) -> None:
    images = network_input(cases[0].zero_filled, cases[0].scale)
    found = open_session(weights, threads=1, mode="compile")
    np.testing.assert_allclose(
        found.run(images), open_session(weights, threads=1).run(images), atol=1e-5
    )
    assert found.info.provider.startswith("torch.compile")


def test_a_session_that_cannot_be_reopened_costs_the_larger_batches_alone(
    weights: Path, cases: list[Case]
) -> None:
    def fail() -> object:
        raise BackendError("No such graph.", "Export it.")

    images = network_input(cases[0].zero_filled[:1], cases[0].scale[:1])
    session = open_session(weights, threads=1)
    found = throughput(session, fail, images, batches=(1, 4), seconds=0.0)  # type: ignore[arg-type]
    assert isinstance(found["1"], float)
    assert found["4"] == "No such graph. Export it."
