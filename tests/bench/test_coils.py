"""Networks with coils are measured on the k-space of simulated ones, each with its own input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kdmri_bench.measuring.fastmri import measures, with_references
from kdmri_bench.measuring.measure import _Bench
from kdmri_bench.measuring.worker import measure
from kdmri_bench.planning.rows import Plan
from kdmri_bench.planning.settings import BenchSettings
from kdmri_bench.planning.testdata import check_same_input, load_data
from kdmri_bench.results.schema import Row
from kdmri_edge.bring.network import bring_checkpoint
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.models.adapter import call
from kdmri_edge.models.checkpoint import load_checkpoint
from kdmri_edge.models.permission import allow_code
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.masks import Mask
from kdmri_edge.runtime.pipeline import Pipeline
from tests.export.networks import spec, write_checkpoint
from tests.multi_coil import images, scan, write_fastmri

NETWORKS = Path(__file__).resolve().parents[1] / "kspace_networks.py"
LINES = np.zeros(32, np.bool_)
LINES[np.r_[0:12, -12:0, 14, 17]] = True
MASK = Mask(samples=LINES, name="lines")


def test_each_makes_its_own_input_of_one_k_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("KDMRI_EDGE_CODE", "")
    torch.manual_seed(0)
    torch.save(call(allow_code(f"{NETWORKS}:FastMRI")).state_dict(), tmp_path / "weights.pt")
    of_kspace = bring_checkpoint(
        f"{NETWORKS}:FastMRI", weights=tmp_path / "weights.pt", mask=MASK, matrix=32
    )
    architecture = spec(channels=2, coils=True)
    sense = write_checkpoint(tmp_path / "sense.safetensors", architecture, MASK)
    specs = [load_checkpoint(path).spec for path in (of_kspace, sense)]
    check_same_input([(str(one.reads), one) for one in specs])
    volume = phantom_volume(5, slices=3, matrix=32)
    data = load_data([volume], mask=MASK, matrix=32, spec=specs[0])
    assert "simulated coils" in data.statement
    (case,) = data.cases
    assert case.kspace
    assert case.reception is not None
    kspace = case.reception.kspace()
    settings = BenchSettings(threads=1, samples=2, warmup=1, end_to_end=2, batches=(1, 2))
    bench = _Bench(cases=[case], settings=settings, workspace=tmp_path, worker="")
    bench.write_inputs()
    for index, source in enumerate((of_kspace, sense)):
        row = Row(key=str(index), network="n", role="student", runtime="PyTorch", precision="f32")
        bench.folder(index).mkdir()
        found = measure(bench.job(Plan(row=row, source=source), index, 3, 2, last=True))
        assert (len(found.latency_s), len(found.end_to_end_s)) == (3, 2)
        assert all(isinstance(rate, float) for rate in found.throughput.values())
        image = np.load(bench.output(index, 0))
        with Pipeline(source, threads=1) as pipeline:
            wanted = np.stack([pipeline.image(one, MASK) for one in kspace])
        np.testing.assert_allclose(image, wanted, atol=1e-5 * np.abs(wanted).max())


def test_measured_coils_are_measured_on_as_they_are(tmp_path: Path) -> None:
    seen = images(5, slices=5)[1]
    write_fastmri(tmp_path / "file1.h5", seen, "p1")
    architecture = spec(channels=2, coils=True)
    data = load_data(tmp_path, mask=MASK, matrix=32, spec=architecture, slices=2)
    assert "measured multi-coil" in data.statement
    (case,) = data.cases
    assert case.reception is not None
    np.testing.assert_allclose(  # the two slices around the middle, of all coils, undersampled
        case.reception.kspace(), image_to_kspace(seen[1:3]) * MASK.grid, atol=1e-4
    )
    sense = write_checkpoint(tmp_path / "sense.safetensors", architecture, MASK)
    settings = BenchSettings(threads=1, samples=1, warmup=0, end_to_end=0)
    bench = _Bench(cases=[case], settings=settings, workspace=tmp_path, worker="")
    bench.write_inputs()
    bench.folder(0).mkdir()
    row = Row(key="0", network="n", role="student", runtime="PyTorch", precision="f32")
    measure(bench.job(Plan(row=row, source=sense), 0, 1, 0, last=True))
    with Pipeline(sense, threads=1) as pipeline:
        given = pipeline.prepare(scan(seen[1:3]), undersample=True)
        wanted = np.abs(pipeline.images(given))  # what `run --undersample` gives of the file
    image = np.abs(np.load(bench.output(0, 0)))
    np.testing.assert_allclose(image, wanted, atol=1e-4 * wanted.max())
    scans = load_data([scan(seen)], mask=MASK, matrix=32, spec=architecture)
    assert scans.cases[0].count == 5


def test_measured_coils_have_figures_in_fastmris_convention(tmp_path: Path) -> None:
    seen = images(5, slices=3)[1]
    write_fastmri(tmp_path / "file1.h5", seen, "p1")
    architecture = spec(channels=2, coils=True)
    loaded = load_data(tmp_path, mask=MASK, matrix=32, spec=architecture)
    (case,) = with_references(loaded.cases, tmp_path)
    rss = np.sqrt((np.abs(seen) ** 2).sum(1))
    # of the target: where sensitivities are known it is the files' own reference
    assert measures(case, case.target)["psnr"] > 25
    assert measures(case, rss.astype(np.float32))["nmse"] == pytest.approx(0, abs=1e-9)
    assert measures(case, case.zero_filled)["psnr"] < measures(case, case.target)["psnr"]
