"""Putting networks into the package: all or nothing, measured, and never on training data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from kdmri_edge.cli import main
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.errors import BenchError
from kdmri_edge.models.build import build_model
from kdmri_edge.models.checkpoint import MAXIMA, Checkpoint, load_checkpoint, save_checkpoint
from kdmri_edge.models.shipped import resolve, shipped_networks
from kdmri_edge.models.specs import PRESETS
from kdmri_edge.physics.masks import Mask, variable_density_lines
from kdmri_edge.quantisation.calibration import layer_of
from kdmri_edge.utils.files import sha256_file
from maintainer.ship import preset_name, ship

MATRIX = 32
MASK = variable_density_lines(MATRIX, 2, seed=0)
SPLIT = 'name = "t"\ntrain = ["00"]\nvalidation = ["01"]\ntest = ["02"]\n'


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "brains"
    folder.mkdir()
    for index in range(3):
        image = phantom_volume(5, slices=3, matrix=MATRIX, index=index).image
        np.save(folder / f"sub-{index:02d}_T1w.npy", image)
    (tmp_path / "split.toml").write_text(SPLIT)
    return folder


def checkpoint(
    data: Path, preset: str, *, seed: int = 0, trained_on: str = "00", mask: Mask = MASK
) -> Path:
    """Write an untrained network that says that it was trained on a subject."""
    torch.manual_seed(seed)
    volume = data / f"sub-{trained_on}_T1w.npy"
    path = data.parent / f"{preset}-{seed}.safetensors"
    record = {"name": volume.stem, "subject": trained_on, "sha256": sha256_file(volume)}
    saved = Checkpoint(
        spec=PRESETS[preset],
        mask=mask,
        matrix=MATRIX,
        role="student",
        training={
            "data": [record],
            "attribution": "Nobody",
            "recipe": {"name": "kd-mri", "seed": seed},
            "steps": {"plain": 1},
            "provenance": {"git": {"revision": "abc"}},
        },
        state=build_model(PRESETS[preset]).state_dict(),
    )
    save_checkpoint(path, saved)
    return path


def test_the_dilation_does_not_change_the_name() -> None:
    for name, spec in PRESETS.items():
        assert preset_name(spec) == name
        assert preset_name(replace(spec, dilation=(1, *(2,) * (spec.convs - 2), 1))) == name
    with pytest.raises(BenchError, match="no preset"):
        preset_name(replace(PRESETS["dccnn-d3c5"], width=16))


def test_an_entry_per_network_and_earlier_places_stay(data: Path, tmp_path: Path) -> None:
    split, root = str(tmp_path / "split.toml"), tmp_path / "weights"
    student = checkpoint(data, "dccnn-d3c5")
    assert ship([student], "a", data, split, root) == ["dccnn-d3c5@a"]
    ship([checkpoint(data, "dccnn-d5c5")], "b", data, split, root)
    assert list(shipped_networks(root)) == ["dccnn-d3c5@a", "dccnn-d5c5@b"]
    shipped, given = load_checkpoint(resolve("dccnn-d3c5@a", root)), load_checkpoint(student)
    assert all(torch.equal(shipped.state[name], value) for name, value in given.state.items())
    assert set(shipped.training) - set(given.training) == {MAXIMA}
    assert {layer_of(key) for key in shipped.training[MAXIMA]} == {
        f"cascades.{cascade}.convs.{conv}" for cascade in range(5) for conv in range(3)
    }
    figures = shipped_networks(root)["dccnn-d3c5@a"].entry["figures"]
    (volume,) = figures["volumes"]
    assert volume["name"] == "sub-02_T1w"
    assert figures["mean"]["psnr"] == volume["psnr"]


def test_a_refusal_leaves_the_package_as_it_was(data: Path, tmp_path: Path) -> None:
    split, root = str(tmp_path / "split.toml"), tmp_path / "weights"
    ship([checkpoint(data, name) for name in ("dccnn-d5c5", "dccnn-d3c5")], "a", data, split, root)
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    leaking = checkpoint(data, "dccnn-d3c5", seed=1, trained_on="02")
    with pytest.raises(BenchError, match="trained on"):
        ship([checkpoint(data, "dccnn-d5c5", seed=1), leaking], "a", data, split, root)
    assert {file: file.read_bytes() for file in root.rglob("*") if file.is_file()} == before
    for reference in shipped_networks(root):
        resolve(reference, root)


def test_each_figure_says_where_it_comes_from(data: Path, tmp_path: Path) -> None:
    root = tmp_path / "weights"
    ship([checkpoint(data, "dccnn-d3c5")], "a", data, str(tmp_path / "split.toml"), root)
    entry = shipped_networks(root)["dccnn-d3c5@a"].entry
    assert "git" in entry["figures"]["provenance"]
    assert entry["trained_on_sha256"] == [sha256_file(data / "sub-00_T1w.npy")]
    (volume,) = entry["figures"]["volumes"]
    assert volume["sha256"] == sha256_file(data / "sub-02_T1w.npy")


def test_one_name_is_given_once_and_stays_inside(data: Path, tmp_path: Path) -> None:
    split, root = str(tmp_path / "split.toml"), tmp_path / "weights"
    two = [checkpoint(data, "dccnn-d3c5", seed=seed) for seed in (0, 1)]
    with pytest.raises(BenchError, match="Two networks"):
        ship(two, "a", data, split, root)
    with pytest.raises(BenchError, match="no place"):
        ship(two[:1], "../a", data, split, root)
    assert not root.exists()


@pytest.mark.parametrize("preset", ["dccnn-d3c5-complex", "dccnn-d3c5-sense"])
def test_complex_networks_are_measured_on_simulated_scans(
    data: Path, tmp_path: Path, preset: str
) -> None:
    root = tmp_path / "weights"
    mask = variable_density_lines(MATRIX, 1.2, centre_lines=24, seed=0)
    student = checkpoint(data, preset, mask=mask)
    ship([student], "a", data, str(tmp_path / "split.toml"), root)
    figures = shipped_networks(root)[f"{preset}@a"].entry["figures"]
    assert "simulated coils" in figures["statement"] or "smooth phase" in figures["statement"]
    # an untrained network with hard data consistency stays near the zero-filled image
    assert figures["mean"]["psnr"] == pytest.approx(figures["zero_filled"]["psnr"], abs=6)
    assert figures["zero_filled"]["psnr"] > 15


@pytest.mark.nightly
@pytest.mark.parametrize(
    "reference", [name for name in shipped_networks() if "-sense@" not in name]
)
def test_the_bench_gives_the_figures_of_the_index(
    reference: str, real_data: Path, tmp_path: Path
) -> None:
    """The bench's own worker process, not the code that wrote the index."""
    out = tmp_path / "bench"
    options = ["--data", str(real_data / "brain"), "--out", str(out)]
    options += ["--precision", "f32", "--samples", "1", "--warmup", "0", "--limit-slices", "1000"]
    options += ["--usual-only", "--without-plain-export"]  # whole volumes, once in each runtime
    result = CliRunner().invoke(main, ["bench", reference, *options])
    assert result.exception is None, result.output
    report = json.loads((out / "report.json").read_text())
    expected = shipped_networks()[reference].entry["figures"]
    assert report["split"] == expected["split"]
    psnr = {v["name"]: v["psnr"] for v in expected["volumes"]}
    measured = [row for row in report["rows"] if row["role"] != "zero-filled" and row["quality"]]
    assert "PyTorch" in {row["runtime"] for row in measured}
    for row in measured:
        assert row["quality"]["psnr"]["mean"] == pytest.approx(expected["mean"]["psnr"], abs=0.01)
        assert {v["name"]: v["psnr"] for v in row["volumes"]} == pytest.approx(psnr, abs=0.01)
