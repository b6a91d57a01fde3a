"""What the report says of figures that are known: written by hand, no network is trained."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdmri_bench.measuring import quality
from kdmri_bench.reproduce import protocol, run
from kdmri_bench.reproduce.protocol import (
    CARRIED,
    CARRIED_NETWORKS,
    NETWORKS,
    TRAININGS,
    CaseSpec,
    plan,
)
from kdmri_bench.reproduce.report import (
    _closed,
    best_published,
    csv_text,
    evaluation,
    groups,
    markdown,
)
from kdmri_edge.data.datasets import find_parts
from kdmri_edge.errors import BenchError
from kdmri_edge.models.specs import preset
from kdmri_edge.utils.files import write_json
from maintainer import readme

SUBJECTS = ("01", "03", "04", "09", "12", "19", "20")
CONTRASTS = ("T1w", "FLAIR")


@pytest.fixture
def brains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty files: their names are all that is looked at here."""
    task = replace(protocol.TASKS["brain"], matrix=48, paper_masks=None)
    monkeypatch.setitem(protocol.TASKS, "brain", task)
    folder = tmp_path / "brain"
    folder.mkdir()
    for subject in SUBJECTS:
        for contrast in CONTRASTS:
            (folder / f"sub-{subject}_ses-1_{contrast}.nii.gz").touch()
    return folder


def _finish(case: CaseSpec, out: Path, gain: dict[str, float]) -> None:
    """Write figures: every volume's own level, and what each network gains over zero filling."""
    files = find_parts(case.data, split=case.split).test
    for name in ("zero-filled", *NETWORKS):
        rows = [
            {
                "name": file.name,
                "subject": file.subject,
                "contrast": file.contrast,
                "psnr": 28.0 + int(file.subject) / 10 + gain.get(name, 0.0) + case.seed,
                "ssim": 0.7 + gain.get(name, 0.0) / 100,
                "nmse": 0.05,
                "hfn": 0.5,
            }
            for file in files
        ]
        write_json(evaluation(out / case.name, name), {"rows": rows})


GAIN = {"teacher-a": 9.5, "teacher-b": 10.0, "plain": 9.0, "kd-mri": 9.5, "edge": 9.95}


def test_folds_test_every_subject_once_and_pool(brains: Path, tmp_path: Path) -> None:
    cases = plan("brain", brains, accelerations=(4,), steps=8)
    for case in cases:
        _finish(case, tmp_path, GAIN)
    fixed, pooled = groups(cases, tmp_path)
    assert fixed["subjects"] == ["04", "19"]
    assert fixed["indication"]
    assert pooled["subjects"] == list(SUBJECTS)
    assert pooled["volumes"] == len(SUBJECTS) * len(CONTRASTS)
    assert list(pooled["by_contrast"]) == list(CONTRASTS)
    gaps = {t: pooled["gap_closed"]["edge"][t]["psnr"]["value"] for t in ("teacher-a", "teacher-b")}
    assert gaps == {"teacher-a": pytest.approx(190), "teacher-b": pytest.approx(95)}
    change = pooled["differences"]["teacher-b"]["psnr"]
    # Paired: the subjects differ by up to 1.9 dB, their differences not at all.
    assert (change["low"], change["high"]) == (pytest.approx(-0.05), pytest.approx(-0.05))
    assert change["verdict"] == "non-inferior"
    assert fixed["differences"]["teacher-b"]["psnr"]["verdict"] == "inconclusive"


def test_a_worse_student_is_called_inferior(brains: Path, tmp_path: Path) -> None:
    cases = plan("brain", brains, accelerations=(4,), steps=8)
    for case in cases:
        _finish(case, tmp_path, {**GAIN, "edge": 9.5})
    pooled = groups(cases, tmp_path)[1]
    assert pooled["differences"]["teacher-b"]["psnr"]["verdict"] == "inferior"
    assert pooled["differences"]["teacher-b"]["ssim"]["verdict"] == "inferior"
    assert pooled["differences"]["teacher-a"]["psnr"]["verdict"] == "non-inferior"


def test_a_group_waits_for_all_of_its_cases(brains: Path, tmp_path: Path) -> None:
    cases = plan("brain", brains, accelerations=(4, 5), steps=8)
    for case in cases[:3]:
        _finish(case, tmp_path, GAIN)
    report = run._report(cases, tmp_path)
    assert [group["title"] for group in report["groups"]] == ["4x, fixed split"]
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "Not finished yet: 12 networks of 4x-brain-fold-3-seed0, 5x-brain-seed0." in table


def test_seeds_are_averaged_within_a_volume(brains: Path, tmp_path: Path) -> None:
    cases = plan("brain", brains, accelerations=(4,), folds=False, seeds=2, steps=8)
    for case in cases:
        _finish(case, tmp_path, GAIN)
    (group,) = groups(cases, tmp_path)
    assert group["seeds"] == [0, 1]
    assert group["volumes"] == 4
    # Levels 28.4 and 29.9 for subjects 04 and 19, and seed 1 is 1 dB above seed 0.
    assert group["table"]["plain"]["psnr"]["mean"] == pytest.approx(29.15 + 9.0 + 0.5)


def test_no_gap_is_said_and_not_divided_by(brains: Path, tmp_path: Path) -> None:
    cases = plan("brain", brains, accelerations=(4,), folds=False, steps=8)
    _finish(cases[0], tmp_path, {**GAIN, "teacher-b": 8.0})
    report = run._report(cases, tmp_path)
    gap = report["groups"][0]["gap_closed"]["edge"]["teacher-b"]["psnr"]
    assert gap == {"value": None, "low": None, "high": None}
    assert "| no gap | no gap |" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_a_gap_below_the_margin_is_not_shared_out(brains: Path, tmp_path: Path) -> None:
    cases = plan("brain", brains, accelerations=(4,), folds=False, steps=8)
    _finish(cases[0], tmp_path, {**GAIN, "teacher-b": GAIN["plain"] + 0.05})
    run._report(cases, tmp_path)
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table.count("gap of 0.05 dB, below the margin") == 2


def test_one_volume_has_no_intervals(brains: Path, tmp_path: Path) -> None:
    cases = plan("brain", brains, accelerations=(4,), folds=False, steps=8)
    _finish(cases[0], tmp_path, GAIN)
    report = run._report(cases, tmp_path)
    several = markdown(report)
    (group,) = report["groups"]
    alone = markdown({**report, "groups": [{**group, "volumes": 1}]})
    figure = re.compile(r"teacher \(b\), tuned: [+-][0-9.]+ \(")
    assert figure.search(several)
    assert not figure.search(alone)
    assert re.search(r"teacher \(b\), tuned: [+-][0-9.]+ dB", alone)


def test_tables_show_the_papers_figures_and_every_network(brains: Path, tmp_path: Path) -> None:
    cases = plan("brain", brains, accelerations=(4,), steps=8)
    for case in cases:
        _finish(case, tmp_path, GAIN)
    report = run._report(cases, tmp_path)
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| the paper's, on its own data | 66 % | |" in table
    assert (
        "SFT-KD-Recon), on its own data | student 40.08 dB: 105 % to its teacher as usually trained"
        " (40.05 dB), 80 % to the teacher of its own method (40.23 dB) | |" in table
    )
    for network in NETWORKS.values():
        assert f"| {network.title} |" in table
    assert "Every network had 8 optimiser steps" in table
    rows = list(csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text(encoding="utf-8"))))
    assert len(rows) == (2 + 7) * len(CONTRASTS) * (1 + len(NETWORKS))
    assert report["steps"] == 8


def test_the_readme_shows_a_stored_report(brains: Path, tmp_path: Path) -> None:
    cases = plan("brain", brains, accelerations=(4,), folds=False, steps=8)
    results = tmp_path / "results"
    _finish(cases[0], results / "brain", GAIN)
    run._report(cases, results / "brain")
    text = "<!-- begin:reproduce:brain -->\n<!-- end:reproduce:brain -->"
    made = readme.generate(text, results)
    assert "| edge student | 39.10" in made
    assert readme.generate(made, results) == made
    file = results / "brain" / "report.json"
    file.write_text(json.dumps({"schema": 99}), encoding="utf-8")
    with pytest.raises(BenchError, match="99"):
        readme.generate(text, results)


def test_one_formula_for_the_gap() -> None:
    """The vectorised formula of the intervals is that of the bench's tables."""
    drawn = np.random.default_rng(0).normal(38.0, 1.0, (20, 3))
    for student, plain, teacher in drawn:
        summaries = [
            {name: {"mean": float(mean)} for name in ("psnr", "ssim", "nmse", "hfn")}
            for mean in (teacher, plain, student)
        ]
        wanted = quality.gap_closed(*summaries)["psnr"]
        found = float(_closed(np.array([[student, plain, teacher]]))[0])
        assert found == pytest.approx(np.nan if wanted is None else wanted, nan_ok=True)


def test_a_missing_subject_is_found_before_training(brains: Path) -> None:
    for contrast in CONTRASTS:
        (brains / f"sub-12_ses-1_{contrast}.nii.gz").unlink()
    with pytest.raises(BenchError, match="subject 12"):
        plan("brain", brains, accelerations=(4,))
    assert plan("brain", brains, accelerations=(4,), folds=False)  # two train without it
    for subject in ("04", "19"):
        for contrast in CONTRASTS:
            (brains / f"sub-{subject}_ses-1_{contrast}.nii.gz").unlink()
    with pytest.raises(BenchError, match="no test subject"):
        plan("brain", brains, accelerations=(4,), folds=False)


def test_unequal_steps_are_refused(brains: Path) -> None:
    unequal = ("imitation_steps=5000",)
    with pytest.raises(BenchError, match=r"unequal.*--steps"):
        plan("brain", brains, accelerations=(4,), assignments=unequal)
    # One number for all mends it.
    assert plan("brain", brains, accelerations=(4,), assignments=unequal, steps=100)


def test_an_acceleration_asked_twice_is_trained_once(brains: Path) -> None:
    (case,) = plan("brain", brains, accelerations=(5, 5))
    assert case.acceleration == 5


def test_one_contrast_alone(brains: Path, tmp_path: Path) -> None:
    (case,) = plan("brain", brains, accelerations=(5,), contrast="T1w")
    training = protocol.TRAININGS[0]
    assert case.settings(training, tmp_path).contrast == "T1w"


def test_super_resolution_keeps_the_central_block(brains: Path) -> None:
    (case,) = plan("sr", brains)
    assert case.acceleration == 16
    assert case.mask.nominal_acceleration == pytest.approx(16)
    assert case.settings(protocol.TRAININGS[2], brains).student == "vdsr-7"


def test_networks_with_carried_maps_have_rows_where_they_are_there(
    brains: Path, tmp_path: Path
) -> None:
    cases = plan("brain", brains, accelerations=(4,), folds=False, steps=8, carried=True)
    _finish(cases[0], tmp_path, GAIN)
    report = run._report(cases, tmp_path)
    absent = [f"{cases[0].name}: {name}" for name in CARRIED_NETWORKS]
    assert report["missing"] == absent
    without = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| teacher (c), with carried maps | \N{EN DASH} |" in without
    assert "gap closed (PSNR) to teacher (c), with carried maps | \N{EN DASH} |" in without
    assert "not trained here: teacher (c), with carried maps; student dccnn-edge;" in without

    given = {"teacher-c": 11.0, "carried": 10.6}
    (case,) = cases
    for name, gain in given.items():
        rows = json.loads(evaluation(tmp_path / case.name, "plain").read_text())["rows"]
        more = [{**row, "psnr": row["psnr"] - GAIN["plain"] + gain} for row in rows]
        write_json(evaluation(tmp_path / case.name, name), {"rows": more})
    report = run._report(cases, tmp_path)
    (group,) = report["groups"]
    gaps = group["gap_closed"]
    assert gaps["carried"]["teacher-c"]["psnr"]["value"] == pytest.approx(80)
    assert gaps["carried"]["teacher-b"]["psnr"]["value"] == pytest.approx(160)
    assert gaps["edge"]["teacher-c"]["psnr"]["value"] == pytest.approx(47.5)
    found = group["carried_differences"]["carried"]
    assert found["teacher-b"]["psnr"]["value"] == pytest.approx(0.6)
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| KD-MRI student | edge student | student dccnn-edge |" in table
    assert "160 % (160 to 160): above the teacher" in table
    assert "- Student dccnn-edge minus teacher (c), with carried maps: -0.400" in table
    assert "not trained here: student dccnn-edge-small; student dccnn-edge-half." in table
    rows = csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text(encoding="utf-8")))
    assert {row["network"] for row in rows} == {"zero-filled", *NETWORKS, *given}


def test_super_resolution_has_no_networks_with_carried_maps(brains: Path) -> None:
    with pytest.raises(BenchError, match="Leave --carried out"):
        plan("sr", brains, carried=True)


def test_carried_networks_get_the_same_steps_and_their_own_teacher(brains: Path) -> None:
    (case,) = plan("brain", brains, accelerations=(4,), folds=False, steps=8, carried=True)
    assert case.trainings[: len(TRAININGS)] == TRAININGS
    for training in CARRIED:
        recipe = case.recipe(training)
        assert recipe.teacher_steps == recipe.student_steps == 8
        settings = case.settings(training, Path("folder"))
        # The one at half the resolution is measured against teacher (b), which teaches it.
        half = training.folder == "carried-half"
        assert settings.teacher_spec == preset("dccnn-d5c5" if half else "dccnn-d5c5-carried")
        assert not settings.baseline
    students = [case.settings(training, Path("folder")).student for training in CARRIED[1:]]
    assert students == ["dccnn-edge", "dccnn-edge-small", "dccnn-edge-half"]


def test_the_best_published_student_is_above_its_usual_teacher() -> None:
    """What is published of it in dB and in percent agrees, by the one gap that both follow from."""
    found = best_published("brain")
    assert found is not None
    at = found["by_acceleration"]["4"]
    psnr, percent = at["psnr_db"], at["percent"]
    assert psnr["usual_teacher"] < psnr["student"] < psnr["own_teacher"]
    # The plain student that both percentages leave: of rounded figures, within their rounding.
    gaps = np.array([psnr["usual_teacher"], psnr["own_teacher"]])
    shares = np.array([percent["usual_teacher"], percent["own_teacher"]]) / 100
    plain = (psnr["student"] - shares * gaps) / (1 - shares)
    assert plain[0] == pytest.approx(plain[1], abs=0.1)
    assert best_published("sr") is None


def test_the_table_of_volumes_holds_no_formula_of_a_file() -> None:
    formula, figures = "=1+1", {"psnr": -1.5, "ssim": 0.5, "nmse": 0.25, "hfn": 2}
    row = {"name": formula, "subject": "+a", "contrast": None, **figures}
    text = csv_text({"groups": [{"title": "-t", "rows": {"@n": [row]}}]})
    (found,) = csv.DictReader(io.StringIO(text))
    assert list(found.values()) == ["'-t", "'@n", "'=1+1", "'+a", "", "-1.5", "0.5", "0.25", "2"]
