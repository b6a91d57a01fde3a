"""Benchmarks in fastMRI's convention: the figures that `kdmri-edge evaluate` gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from kdmri_bench.benchmark import benchmark
from kdmri_bench.measuring.fastmri import ReferencedCase, with_references
from kdmri_bench.measuring.quality import volume_rows
from kdmri_bench.planning.settings import QUICK, BenchSettings
from kdmri_bench.planning.testdata import TestData, choose_files, load_cases, load_data
from kdmri_edge.data.evaluation import evaluate
from kdmri_edge.data.formats.hdf5.fastmri_images import as_stored, write_reconstruction
from kdmri_edge.errors import BenchError
from kdmri_edge.physics.masks import Mask, fastmri_mask
from kdmri_edge.runtime.pipeline import Pipeline
from tests.core.data.test_fastmri_evaluation import noisy
from tests.core.test_run_submission import single_coil
from tests.export.networks import spec, write_checkpoint
from tests.multi_coil import images, scan, write_fastmri


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(2):
        single_coil(tmp_path / "scans" / f"file{number}.h5")
    return tmp_path / "scans"


def loaded(folder: Path) -> TestData:
    files, _ = choose_files(folder)
    mask = fastmri_mask("random", 32, 4)
    return load_cases(files, mask=mask, matrix=32, spec=spec(channels=2))


def outputs_of(data: TestData) -> list[NDArray[np.float32]]:
    return [noisy(np.abs(case.target), n) for n, case in enumerate(data.cases)]


def test_figures_are_those_of_evaluate(folder: Path, tmp_path: Path) -> None:
    data = loaded(folder)
    cases = with_references(data.cases, folder)
    outputs = outputs_of(data)
    for case, output in zip(cases, outputs, strict=True):
        write_reconstruction(tmp_path / "made" / f"{case.name}.h5", as_stored(output, (32, 30)))
    rows = volume_rows(cases, outputs)
    found = evaluate(folder, tmp_path / "made")
    for row, volume in zip(rows, found.volumes, strict=True):
        assert row == {"name": volume.name.removesuffix(".h5"), **volume.metrics}
    own = volume_rows(data.cases, outputs)
    assert own[0]["nmse"] != pytest.approx(rows[0]["nmse"], rel=1e-6)  # without the crop
    part = cases[0].part(slice(1, 2))
    assert isinstance(part, ReferencedCase)
    assert part.reference.shape == (1, 32, 30)
    assert part.target.shape[0] == 1


def test_coils_are_compared_with_their_root_sum_of_squares(tmp_path: Path) -> None:
    """A pair that combines coils, on measured multi-coil files: the same as run and evaluate."""
    seen = images(5, slices=2)[1]
    (tmp_path / "scans").mkdir()
    write_fastmri(tmp_path / "scans" / "file1.h5", seen, "p1")
    lines = np.zeros(32, np.bool_)
    lines[np.r_[0:12, -12:0, 14]] = True
    mask = Mask(samples=lines, name="lines")
    architecture = spec(channels=2, coils=True)
    data = load_data(tmp_path / "scans", mask=mask, matrix=32, spec=architecture)
    cases = with_references(data.cases, tmp_path / "scans")
    sense = write_checkpoint(tmp_path / "sense.safetensors", architecture, mask)
    with Pipeline(sense, threads=1) as pipeline:
        given = pipeline.prepare(scan(seen), undersample=True)
        made = np.abs(pipeline.images(given))
    write_reconstruction(tmp_path / "made" / "file1.h5", as_stored(made, (32, 32)))
    (row,) = volume_rows(cases, [made])
    (volume,) = evaluate(tmp_path / "scans", tmp_path / "made").volumes
    assert volume.reference == "reconstruction_rss"
    assert row == {"name": "file1", **volume.metrics}
    # the fully sampled combination is its reference, but for what no coil sees
    whole = volume_rows(cases, [case.target for case in cases])
    assert whole[0]["nmse"] < 1e-3
    assert whole[0]["nmse"] < row["nmse"]


def test_what_has_no_such_figures_is_refused(folder: Path, tmp_path: Path) -> None:
    data = loaded(folder)
    turned = replace(data.cases[0], target=data.cases[0].target[:, ::-1])
    with pytest.raises(BenchError, match="is not that of its reference"):
        with_references([turned], folder)
    with h5py.File(folder / "file0.h5", "r+") as file:
        del file["reconstruction_esc"]
        file["kspace"][..., ::2] = 0
    with pytest.raises(BenchError, match="nothing to compare with"):
        with_references(data.cases, folder)
    np.save(tmp_path / "file0.npy", np.abs(data.cases[0].target))
    # a good file of another format is not called damaged
    with pytest.raises(
        BenchError, match=r"file0 has no figures.*file0\.npy is no file of fastMRI's"
    ):
        with_references(data.cases[:1], tmp_path / "file0.npy")
    with pytest.raises(BenchError, match="no volume file1"):
        with_references(data.cases[1:], tmp_path / "file0.npy")


def test_whole_volumes_of_files_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="whole volumes"):
        replace(QUICK, evaluation="fastmri")
    with pytest.raises(BenchError, match="no evaluation 'rss'"):
        BenchSettings(evaluation="rss")
    weights = write_checkpoint(tmp_path / "student.safetensors", spec(channels=2))
    settings = BenchSettings(evaluation="fastmri")
    with pytest.raises(BenchError, match="need the references"):
        benchmark(weights, "phantom", settings=settings)
