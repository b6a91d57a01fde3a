"""Exports in a process of their own: a crash or a hang costs one export, not the benchmark."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from kdmri_bench.planning.exporter import Exporter, Refused, attempt
from kdmri_bench.planning.exports import export_for
from kdmri_bench.planning.rows import plan_rows
from kdmri_bench.planning.settings import BenchSettings, Precision
from kdmri_bench.planning.sources import from_checkpoint
from kdmri_bench.results.schema import Status
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.errors import BackendError
from kdmri_edge.physics.masks import Mask
from kdmri_edge.runtime.bundle import open_bundle

STAND_IN = """
import os, signal, time
from pathlib import Path
from kdmri_edge.errors import MissingExtraError

def good(name="bundle"):
    print("a library that prints")
    return Path(name) / str(os.getpid())

def crash():
    os.kill(os.getpid(), signal.SIGSEGV)

def leave():
    raise SystemExit(3)

def fail():
    raise ValueError("no lowering\\nmany more lines")

def lack():
    raise MissingExtraError("openvino", "openvino")

def hang():
    time.sleep(60)
"""


@pytest.fixture
def works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "export_stand_in.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "export_stand_in", raising=False)
    return importlib.import_module("export_stand_in")


@pytest.fixture
def make() -> Iterator[Exporter]:
    with Exporter(threads=1, timeout_s=30) as exporter:
        yield exporter


def test_one_process_makes_one_export_after_the_other(make: Exporter, works: ModuleType) -> None:
    first, second = make(works.good), make(partial(works.good, "other"))
    assert isinstance(first, Path)
    assert isinstance(second, Path)
    assert second.parent == Path("other")
    assert first.name == second.name


@pytest.mark.parametrize(
    ("name", "words"), [("crash", "SIGSEGV"), ("leave", "status 3"), ("hang", "after 0.5 s")]
)
def test_the_death_of_the_process_costs_one_export(
    name: str, words: str, works: ModuleType
) -> None:
    with Exporter(threads=1, timeout_s=0.5 if name == "hang" else 30) as make:
        refused = make(getattr(works, name))
        assert isinstance(refused, Refused)
        assert words in refused.reason
        assert not refused.absent
        make._timeout_s = 30
        assert isinstance(make(works.good), Path)


@pytest.mark.parametrize("inside", [True, False], ids=["here", "in another process"])
def test_what_an_exporter_raises_is_the_reason(
    inside: bool, works: ModuleType, make: Exporter
) -> None:
    run: Callable[..., Path | Refused] = attempt if inside else make
    assert run(works.fail) == Refused("The export failed: ValueError: no lowering")
    lacking = run(works.lack)
    assert isinstance(lacking, Refused)
    assert lacking.absent
    assert "kdmri-edge[openvino]" in lacking.reason
    assert isinstance(run(works.good), Path)


@pytest.mark.nightly
def test_rows_are_planned_with_it(
    make: Exporter, make_run: Callable[..., Run], mask: Mask, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", mask, ("student",))
    source = from_checkpoint(run.weights("student"))
    settings = BenchSettings(precisions=(Precision.F32,), batches=(1, 2))
    plans = plan_rows([source], settings, tmp_path / "exports", make=make)
    found = {plan.row.key.partition("/")[2]: plan for plan in plans}
    onnx = found["onnx-f32"]
    assert onnx.row.status is Status.MEASURED
    assert onnx.source is not None
    assert open_bundle(onnx.source).manifest["target"] == "onnx"
    assert onnx.dynamic is not None
    batched = onnx.dynamic()
    assert isinstance(batched, Path)
    assert open_bundle(batched).manifest["batch"] == "dynamic"


def test_a_missing_device_is_absent_not_broken() -> None:
    def lack() -> Path:
        raise BackendError("No such device.", "Take another.")

    assert attempt(lack) == Refused("No such device. Take another.", absent=True)
    assert export_for.__module__ == "kdmri_bench.planning.exports"  # pickled by this name
