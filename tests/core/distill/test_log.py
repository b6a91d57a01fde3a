from __future__ import annotations

from pathlib import Path

from kdmri_edge.distillation.log import COLUMNS, TrainingLog


def _filled(path: Path) -> TrainingLog:
    log = TrainingLog(path)
    for stage in ("teacher", "plain"):
        for step in (10, 20, 30):
            log.add(stage, step, 0.5 / step, 1e-3, 30.0 if step == 30 else None, 1.5)
    return log


def test_rows(tmp_path: Path) -> None:
    log = _filled(tmp_path / "log.csv")
    rows = log.rows()
    assert [(r["stage"], r["step"]) for r in rows[:3]] == [
        ("teacher", "10"),
        ("teacher", "20"),
        ("teacher", "30"),
    ]
    assert tuple(rows[0]) == COLUMNS
    assert rows[0]["validation_psnr_db"] == ""
    assert rows[2]["validation_psnr_db"] == "30.000"
    assert float(rows[1]["loss"]) == 0.025


def test_rewind_touches_one_stage_only(tmp_path: Path) -> None:
    log = _filled(tmp_path / "log.csv")
    log.rewind("plain", 15)
    assert [(r["stage"], int(r["step"])) for r in log.rows()] == [
        ("teacher", 10),
        ("teacher", 20),
        ("teacher", 30),
        ("plain", 10),
    ]
    log.rewind("teacher", 0)
    assert [r["stage"] for r in log.rows()] == ["plain"]


def test_opening_again_keeps_the_rows(tmp_path: Path) -> None:
    _filled(tmp_path / "log.csv")
    assert len(TrainingLog(tmp_path / "log.csv").rows()) == 6


def test_half_a_last_line_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    _filled(file)
    file.write_text(file.read_text() + "attention,10,0.0")
    log = TrainingLog(file)
    assert len(log.rows()) == 6
    log.rewind("attention", 0)
    log.add("attention", 10, 0.1, 1e-3, None, 0.1)
    assert [r["stage"] for r in log.rows()].count("attention") == 1
    assert all(len(line.split(",")) == len(COLUMNS) for line in file.read_text().splitlines())
