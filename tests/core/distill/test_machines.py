"""A run remembers every machine that it was trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kdmri_edge.distillation.request import Settings
from kdmri_edge.distillation.run import distill
from kdmri_edge.distillation.run_folder import all_machines, note_machine
from kdmri_edge.errors import RunError
from kdmri_edge.utils.files import read_json, write_json

GPU = {"device": "GPU", "processes": 1, "threads": 4, "precision": "bf16"}
CPU = {"device": "CPU", "processes": 1, "threads": 2, "precision": "float32"}


def test_each_machine_is_named_once(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    write_json(file, {"ran_on": GPU, "status": "running"})
    begun = file.read_bytes()
    note_machine(file, {**GPU, "threads": 16})
    assert file.read_bytes() == begun
    for ran in (CPU, CPU, {**CPU, "precision": "bf16"}, GPU):
        note_machine(file, ran)
    found = all_machines(dict(read_json(file, RunError)))
    assert found == [GPU, CPU, {**CPU, "precision": "bf16"}]


def test_a_run_resumed_elsewhere_says_so_once_it_trains(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    file = tmp_path / "run" / "run.json"
    run = distill(settings(), tmp_path / "run")
    write_json(file, {**dict(read_json(file, RunError)), "ran_on": GPU})
    looked_at = distill(settings(), tmp_path / "run")
    assert all_machines(looked_at.meta) == [GPU]
    run.file("student").unlink()
    again = distill(settings(), tmp_path / "run")
    assert [ran["device"] for ran in all_machines(again.meta)] == ["GPU", "CPU"]
