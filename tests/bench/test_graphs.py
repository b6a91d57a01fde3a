"""Graphs timed beside one another."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from experiments.graphs import main, markdown, measure
from kdmri_export.export import export_model
from kdmri_export.recipe import ExportRecipe
from tests.export.networks import write_checkpoint


def test_graphs_of_a_runtime_are_compared_with_its_first_one(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "student.safetensors")
    bundles = {}
    for name, target in (("one", "torchscript"), ("other", "torchscript"), ("graph", "onnx")):
        bundles[name] = tmp_path / name
        export_model(checkpoint, ExportRecipe(target=target), bundles[name])
    report = measure(bundles, rounds=2, queries=2, threads=1)
    assert [(row["name"], row["beside"]) for row in report["rows"]] == [
        ("one", "one"), ("other", "one"), ("graph", "graph"),
    ]  # fmt: skip
    one, other, graph = report["rows"]
    assert one["ratios"] == graph["ratios"] == [1.0, 1.0]
    assert other["ratios"] == [a / b for a, b in zip(other["ms"], one["ms"], strict=True)]
    assert graph["runtime"].startswith("ONNX Runtime")
    text = markdown(report)
    assert text.count("| 1 |\n") == 2
    assert "2 rounds" in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["folder"], "no bundle with a name"),
        (["a=x", "a=y"], "no bundle with a name"),
        (["a=nowhere"], "nowhere"),
    ],
)
def test_what_is_no_bundle_is_refused(given: list[str], message: str) -> None:
    shown = CliRunner().invoke(main, given)
    assert shown.exit_code == 1
    assert message in shown.output
    assert "Traceback" not in shown.output
