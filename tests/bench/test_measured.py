"""Networks on measured k-space, on a small scan that stands in for a measured one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from experiments.measured import markdown, measure, networks_of
from kdmri_edge.data.formats.bart import write_bart_scan
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.simulation import coil_maps
from kdmri_edge.errors import BenchError
from kdmri_edge.metrics import METRICS
from kdmri_edge.models.build import build_model
from kdmri_edge.models.checkpoint import Checkpoint, save_checkpoint
from kdmri_edge.models.shipped import ShippedNetwork
from kdmri_edge.models.specs import PRESETS
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.masks import Mask, variable_density_lines

SIZE = 48
MASK = variable_density_lines(SIZE, 1.5, centre_lines=24, seed=0)
WHOLE = Mask(samples=np.ones(SIZE, np.bool_), name="whole")


def network(kind: str, folder: Path) -> dict[str, ShippedNetwork]:
    """An untrained student."""
    torch.manual_seed(0)
    spec = replace(PRESETS[f"dccnn-d3c5-{kind}"], cascades=1)
    path = folder / f"{kind}.safetensors"
    saved = Checkpoint(
        spec=spec,
        mask=MASK,
        matrix=SIZE,
        role="student",
        training={},
        state=build_model(spec).state_dict(),
    )
    save_checkpoint(path, saved)
    name = f"dccnn-d3c5-{kind}@here"
    entry = {"spec": spec.to_dict(), "parameters": spec.parameters}
    return {name: ShippedNetwork(reference=name, path=path, entry=entry)}


def scan(coils: int, name: str) -> Scan:
    image = phantom_volume(1, slices=2, matrix=SIZE).image[1:]
    maps = coil_maps(coils, SIZE, SIZE, seed=3)
    kspace = image_to_kspace(image[:, None] * maps).astype(np.complex64)
    return Scan(kspace=kspace, mask=WHOLE, name=name, subject=name, contrast="T1w")


@pytest.mark.nightly
def test_the_table_holds_what_was_run(tmp_path: Path) -> None:
    pytest.importorskip("sigpy")
    write_bart_scan(tmp_path / "coils.cfl", scan(6, "coils"))
    single = scan(1, "one").kspace[:, 0]
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["FSE"] = np.fft.fftshift(single, (-2, -1))
    report = measure(
        [tmp_path / "coils.cfl"],
        network("sense", tmp_path),
        tmp_path / "out",
        single_sources=[f"{tmp_path}/one.h5:FSE:shw"],
        single_networks=network("complex", tmp_path),
    )
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    coils = report["multi_coil"]
    assert coils["largest_difference_between_formats"] < 1e-5
    assert coils["session"]["backend"] == "ONNX Runtime"
    rows = {row["name"]: row for row in coils["rows"]}
    names = ["zero-filled", "SENSE (SigPy)", "l1-wavelet (SigPy)", "dccnn-d3c5-sense@here"]
    assert list(rows) == names
    # coils fill the gaps between lines, so iterative SENSE is far above the zero-filled image
    assert rows["SENSE (SigPy)"]["psnr"] > rows["zero-filled"]["psnr"] + 3
    (one,) = report["single_coil"]["rows"][-1:]
    assert one["name"] == "dccnn-d3c5-complex@here"
    assert all(np.isfinite(row[metric]) for row in rows.values() for metric in METRICS)
    pictures = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert pictures == ["panel-coils.png", "panel-one-fse.png"]
    text = markdown(report)
    assert "**6 coils**" in text
    assert "`dccnn-d3c5-sense@here`" in text


def test_networks_that_are_not_shipped_are_named() -> None:
    with pytest.raises(BenchError, match="No sense network is shipped as @nowhere"):
        networks_of("nowhere", "sense")
