"""What inserted structures in training do to lesions: what is asked for, measured and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from experiments import small_structures
from experiments.small_structures import markdown, settings_of
from kdmri_bench.assessment.data import AssessedVolume
from kdmri_bench.assessment.lesions import AnnotatedVolume, find_sections
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


def test_what_is_retained_is_measured_against_the_start() -> None:
    image = np.ones((1, SIDE, SIDE), np.float32)
    mask = np.zeros(image.shape, bool)
    mask[0, 8:11, 8:11] = mask[0, 20:26, 20:26] = True
    target = image + mask
    case = Case(
        name="x",
        subject="x",
        contrast=None,
        sha256="",
        target=target,
        zero_filled=target,
        scale=np.ones(1, np.float32),
    )
    volume = AnnotatedVolume(
        volume=AssessedVolume(case=case), kind="mask", sections=find_sections(target, mask), index=0
    )
    half = image + np.float32(0.5) * mask
    found = small_structures._lesions([volume], {"start": [target], "flat": [half]})
    assert found["start"]["all"]["sections"] == 2
    assert found["start"]["small"]["sections"] == 1
    assert found["flat"]["small"]["median"]["value"] == pytest.approx(0.5)
    assert found["flat"]["small"]["behind"]["value"] == pytest.approx(-0.5)
    big = find_sections(target, mask & (np.arange(SIDE) > 15))
    with pytest.raises(BenchError, match="No section"):
        small_structures._lesions(
            [AnnotatedVolume(volume=volume.volume, kind="mask", sections=big, index=0)],
            {"start": [target]},
        )


def test_strengths_that_are_none(tmp_path: Path) -> None:
    options = ["--data", str(tmp_path), "--lesions", str(tmp_path), "--weights", "strong"]
    done = CliRunner().invoke(small_structures.main, options)
    assert done.exit_code == 1
    assert "Write e.g. 0.05,0.1." in done.output
