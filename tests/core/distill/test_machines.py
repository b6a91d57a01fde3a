"""A run remembers every machine that it was trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kdmri_edge.distill.machines import all_machines, resumed_on
from kdmri_edge.distill.run import distill
from kdmri_edge.distill.settings import Settings
from kdmri_edge.errors import RunError
from kdmri_edge.files import read_json, write_json

GPU = {"device": "GPU", "processes": 1, "threads": 4, "precision": "bf16"}
CPU = {"device": "CPU", "processes": 1, "threads": 2, "precision": "float32"}


def test_each_machine_is_named_once() -> None:
    meta = {"ran_on": GPU, "status": "running"}
    assert resumed_on(meta, {**GPU, "threads": 16}) == meta
    onward = resumed_on(meta, CPU)
    assert all_machines(onward) == [GPU, CPU]
    assert resumed_on(onward, CPU) == onward
    assert all_machines(resumed_on(onward, {**CPU, "precision": "bf16"}))[1:] == [
        CPU,
        {**CPU, "precision": "bf16"},
    ]


def test_a_run_resumed_elsewhere_says_so(settings: Callable[..., Settings], tmp_path: Path) -> None:
    run = distill(settings(), tmp_path / "run")
    meta = dict(read_json(tmp_path / "run" / "run.json", RunError))
    write_json(tmp_path / "run" / "run.json", {**meta, "ran_on": GPU, "status": "running"})
    run.file("student").unlink()
    again = distill(settings(), tmp_path / "run")
    assert [ran["device"] for ran in all_machines(again.meta)] == ["GPU", "CPU"]
