"""Peers: a plain export really is plain, gives the same images, and is paired with ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments.peer_sessions import open_peer, plain_network, write_onnx
from experiments.peers import peer_plans
from experiments.ratios import markdown_ratios, ratios
from kdmri_bench.planning.sources import gather
from kdmri_bench.results.schema import PEER_EXPORT
from kdmri_bench.results.select import shipped_rows
from kdmri_edge.data.case import Case
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.scaling import network_input
from kdmri_edge.runtime.session import open_session
from tests.bench.reports import report, row


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, make_run: Callable[..., Run], mask: Mask) -> Run:
    return make_run(tmp_path_factory.mktemp("run"), mask, ("teacher", "student"))


def test_students_alone_have_peers_and_their_graph_has_transforms(
    run: Run, tmp_path: Path, cases: list[Case]
) -> None:
    plans = peer_plans(gather([run.path]), tmp_path)
    assert [plan.row.key.partition("/")[2] for plan in plans] == [
        "peer-onnxruntime-f32", "peer-openvino-f32", "peer-openvino-bf16", "peer-compile-f32",
    ]  # fmt: skip
    assert {plan.row.role for plan in plans} == {"student"}
    assert (plans[0].row.dft_nodes or 0) >= 2
    images = network_input(cases[0].zero_filled[:1], cases[0].scale[:1])
    expected = open_session(run.weights("student"), threads=1).run(images)
    graph = plans[0].source
    assert graph is not None
    for backend in ("onnxruntime", "openvino"):
        found = open_peer(graph, backend=backend, threads=1).run(images)
        np.testing.assert_allclose(found, expected, atol=2e-4, err_msg=backend)


def test_the_plain_network_calls_no_operator_of_ours(run: Run, tmp_path: Path) -> None:
    import torch

    network = plain_network(run.weights("student"), 32)
    program = torch.export.export(network, (torch.zeros(1, 1, 32, 32),), strict=False)
    names = {str(node.target) for node in program.graph.nodes}
    assert not [name for name in names if "kdmri" in name]
    assert [name for name in names if "fft" in name]


def test_an_export_that_fails_costs_the_peers_rows_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such operator\nlong text")

    monkeypatch.setattr("experiments.peer_sessions.write_onnx", fail)
    plans = peer_plans(gather([run.path]), tmp_path)
    assert [plan.source is None for plan in plans] == [True, True, True, False]
    assert plans[0].row.reason == "The export failed: no such operator"
    assert callable(write_onnx)


def test_ratios_pair_ours_with_the_peer_and_it_is_never_recommended() -> None:
    ours = row("student", "OpenVINO", 39.0, 8.0)
    peer = row("student", "OpenVINO", 39.0, 80.0, key="student/peer", variant=PEER_EXPORT)
    other = row("student", "OpenVINO", 39.0, 9.0, key="student/hint", variant="throughput hint")
    found = report(ours, peer, other)
    (pair,) = ratios(found, PEER_EXPORT)
    assert pair.row.key == ours.key
    assert pair.ratio == pytest.approx(10.0)
    assert "**10.0x**" in markdown_ratios(found, PEER_EXPORT)
    assert [r.key for r in shipped_rows(found)] == [ours.key, other.key]
