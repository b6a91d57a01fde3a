"""Quality of every target: figures of what really ran, against PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from experiments.targets import main, markdown, measure
from kdmri_bench.planning.sources import gather
from kdmri_edge.data.case import Case, coil_sets, make_case, simulated_case
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.errors import BenchError
from kdmri_edge.metrics import psnr
from kdmri_edge.models.checkpoint import MAXIMA, RANGES, load_checkpoint, save_checkpoint
from kdmri_edge.models.shipped import resolve
from kdmri_edge.physics.masks import Mask
from kdmri_export.export import export_model
from kdmri_export.recipe import ExportRecipe

NETWORK = "dccnn-d3c5@brain-4x"


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    (source,) = gather([Path(NETWORK)])
    volume = phantom_volume(7, slices=2, matrix=source.matrix)
    return [make_case(volume, source.mask)]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with a copy that was tuned for CPUs, badly: with ranges far too wide."""
    folder = tmp_path_factory.mktemp("student")
    start, copy = folder / "student.safetensors", folder / "student-int8.safetensors"
    start.write_bytes(resolve(NETWORK).read_bytes())
    held = load_checkpoint(start)
    tuned = {**held.training, RANGES: dict.fromkeys(held.training[MAXIMA], 8.0)}
    save_checkpoint(copy, replace(held, training=tuned))
    return start


@pytest.fixture(scope="module")
def report(student: Path, cases: list[Case]) -> dict[str, Any]:
    recipes = [
        ExportRecipe(target="onnx"),
        ExportRecipe(target="onnx", precision="int8"),
        ExportRecipe(target="trt", precision="int8"),
    ]
    return measure(gather([student]), cases, recipes)


@pytest.mark.nightly
def test_float_loses_nothing_and_integers_little(report: dict[str, Any]) -> None:
    (network,) = report["networks"]
    float_row, integers, _, signed = network["rows"]
    assert abs(float_row["loss_db"]["largest"]) < 1e-3
    for row in (integers, signed):
        assert 0 < abs(row["loss_db"]["mean"]) < 0.5
        assert row["bytes"] < float_row["bytes"]
    assert "int8" in integers["executed"]


@pytest.mark.nightly
def test_a_tuned_copy_has_a_row_beside_its_start(report: dict[str, Any]) -> None:
    (network,) = report["networks"]
    rows = network["rows"]
    assert [(row["target"], row["precision"], row["tuned"]) for row in rows] == [
        ("onnx", "f32", False), ("onnx", "int8", False), ("onnx", "int8", True),
        ("trt", "int8", False),
    ]  # fmt: skip
    assert rows[1]["loss_db"]["mean"] < rows[2]["loss_db"]["mean"]
    text = markdown(report)
    assert text.count("int8, tuned") == 1
    assert "rounded after training" in text


@pytest.mark.nightly
def test_loss_is_the_difference_of_what_the_volumes_say(report: dict[str, Any]) -> None:
    (network,) = report["networks"]
    for row in network["rows"]:
        own, ran = network["volumes"][0]["psnr"], row["volumes"][0]["psnr"]
        assert row["loss_db"]["mean"] == pytest.approx(own - ran)
        assert row["quality"]["psnr"]["mean"] == pytest.approx(ran)


@pytest.mark.nightly
def test_table_has_a_row_per_recipe_and_one_for_pytorch(report: dict[str, Any]) -> None:
    name = report["networks"][0]["network"]
    rows = [line for line in markdown(report).splitlines() if line.startswith(f"| {name} |")]
    assert len(rows) == 5
    assert len({line.count("|") for line in rows}) == 1


@pytest.mark.nightly
def test_networks_of_coils_are_measured_with_their_sensitivities() -> None:
    networks = gather([Path("dccnn-edge-sense@measured-4x")])
    (source,) = networks
    volume = phantom_volume(7, slices=1, matrix=source.matrix)
    case = simulated_case(
        volume, source.mask, seed=1, maps=coil_sets(*volume.matrix, seed=1, sets=2)
    )
    (network,) = measure(networks, [case], [ExportRecipe(target="onnx")])["networks"]
    (row,) = network["rows"]
    assert abs(row["loss_db"]["largest"]) < 1e-3
    zero_filled = psnr(np.abs(case.target), np.abs(case.zero_filled))
    assert row["quality"]["psnr"]["mean"] > zero_filled + 1


def test_an_unknown_precision_is_a_usage_error() -> None:
    result = CliRunner().invoke(main, [NETWORK, "--data", ".", "--precision", "int9"])
    assert result.exit_code == 2
    assert "int8" in result.output


def test_a_bundle_has_no_checkpoint_to_export(
    make_run: Callable[..., Run], mask: Mask, cases: list[Case], tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", mask, ("student",))
    bundle = export_model(run.weights("student"), ExportRecipe(target="onnx"), tmp_path / "bundle")
    with pytest.raises(BenchError, match="no checkpoint"):
        measure(gather([bundle.path]), cases)
