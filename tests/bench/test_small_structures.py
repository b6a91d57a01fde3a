"""What inserted structures in training do to lesions: what is asked for, measured and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from experiments import small_structures
from experiments.small_structures import _Measured, markdown, settings_of
from kdmri_bench.assessment.lesions import find_sections
from kdmri_edge.data.case import Case
from kdmri_edge.distillation.recipe import Insertion
from kdmri_edge.errors import BenchError

START, TEACHER = "dccnn-edge@brain-4x", "dccnn-d5c5@brain-4x"
SIDE = 32


def test_only_what_is_inserted_differs(tmp_path: Path) -> None:
    control, other = (
        settings_of(weight, tmp_path, start=START, teacher=TEACHER, steps=7)
        for weight in (None, 0.1)
    )
    assert control.recipe.insertion == Insertion()
    assert other.recipe.insertion == Insertion(share=0.5, largest=6.0, contrast_weight=0.1)
    assert control.difference(other) is not None
    assert {control.start_from, other.start_from} == {START}
    for settings in (control, other):
        assert settings.student == "dccnn-edge"
        assert settings.recipe.student_steps == 7
        assert settings.recipe.distillation.imitation_until == 0
        assert not settings.baseline


def _figures(median: float) -> dict[str, Any]:
    own = {"value": median, "low": None, "high": None}
    return {"sections": 9, "median": own, "low5": own, "lost": None, "behind": None}


def _report(losses: dict[str, tuple[float, float, float]]) -> dict[str, Any]:
    """Return a report of (validation PSNR, test PSNR, contrast) by network."""
    rows = {
        name: {
            "contrast_weight": float(name.partition("-")[2]) if "-" in name else None,
            "validation_psnr_db": validation,
            "test": {"psnr": test, "ssim": 0.97},
            "lesions": {"small": _figures(contrast), "all": _figures(contrast)},
        }
        for name, (validation, test, contrast) in losses.items()
    }
    names = [name for name in rows if "-" in name]
    return {
        "start": START,
        "teacher": TEACHER,
        "steps": 600,
        "seed": 0,
        "margin_db": 0.05,
        "wanted_points": 5.0,
        "chosen": small_structures._closest(rows, names),
        "small_pixels": 12,
        "mask": "mask",
        "test_subjects": ["04", "19"],
        "lesion_subjects": ["x07"],
        "lesion_contrast": "FLAIR",
        "trained_on": ["CPU"],
        "statement": "Said.",
        "rows": rows,
    }


@pytest.mark.parametrize(
    ("strong", "words"),
    [
        ((38.47, 39.62, 0.89), "weight 0.1. On the test subjects it changes PSNR by -0.040 dB"),
        ((38.40, 39.62, 0.89), "weight 0.05. On"),
        ((38.47, 39.62, 0.89), "keeps +6.0 percentage points (5 were wanted): accepted."),
        ((38.47, 39.60, 0.89), ": not accepted."),
        ((38.47, 39.62, 0.87), "keeps +4.0 percentage points (5 were wanted): not accepted."),
    ],
)
def test_validation_chooses_and_test_subjects_decide(
    strong: tuple[float, float, float], words: str
) -> None:
    report = _report(
        {
            "teacher": (38.45, 39.72, 0.82),
            "start": (38.50, 39.66, 0.83),
            "control": (38.50, 39.66, 0.83),
            "weight-0.05": (38.49, 39.65, 0.84),
            "weight-0.1": strong,
        }
    )
    text = markdown(report)
    assert words in text
    assert f"| {START} | 38.50 | 39.660 |" in text
    assert "| structures inserted, weight 0.1 |" in text


def test_none_is_chosen_where_all_cost_too_much() -> None:
    text = markdown(_report({"start": (38.5, 39.6, 0.8), "weight-0.1": (38.4, 39.6, 0.9)}))
    assert "none is chosen" in text


def _measured(folder: Path, mask: np.ndarray[Any, Any]) -> _Measured:
    target = np.ones(mask.shape, np.float32) + mask
    case = Case(
        name="x",
        subject="x",
        contrast=None,
        sha256="0",
        target=target,
        zero_filled=target,
        scale=np.ones(len(mask), np.float32),
    )
    sections = find_sections(target, mask).kept
    return _Measured(folder=folder, cases=[case], lesions=[case], sections=[sections])


def test_networks_are_compared_with_the_start(tmp_path: Path) -> None:
    mask = np.zeros((1, SIDE, SIDE), bool)
    mask[0, 8:11, 8:11] = mask[0, 20:26, 20:26] = True
    rows = [{"psnr": 40.0, "ssim": 0.97}]
    less = [{"psnr": 39.9, "ssim": 0.96}]
    found = _measured(tmp_path, mask).figures(
        {"start": {"rows": rows, "retained": [0.9, 1.0]},
         "other": {"rows": less, "retained": [0.8, 1.0]}}
    )  # fmt: skip
    lesions, test = found["other"]["lesions"], found["other"]["test"]
    assert [lesions[group]["sections"] for group in ("small", "all")] == [1, 2]
    assert lesions["small"]["median"]["value"] == pytest.approx(0.8)
    assert lesions["small"]["behind"]["value"] == pytest.approx(-0.1)
    assert test["psnr_change"]["value"] == pytest.approx(-0.1)
    large = mask & (np.arange(SIDE) > 15)
    with pytest.raises(BenchError, match="No section"):
        _measured(tmp_path, large).figures({"start": {"rows": rows, "retained": [1.0]}})


def test_strengths_that_are_none(tmp_path: Path) -> None:
    options = ["--data", str(tmp_path), "--lesions", str(tmp_path), "--weights", "strong"]
    done = CliRunner().invoke(small_structures.main, options)
    assert done.exit_code == 1
    assert "Write e.g. 0.05,0.1." in done.output
