"""The section on whole volumes: what averages say, which hide what small structures lose."""

from __future__ import annotations

from typing import Final

from kdmri_bench.assessment.networks import ZERO_FILLED
from kdmri_bench.assessment.sections import Measure, Section, over_subjects
from kdmri_bench.assessment.study import Study
from kdmri_edge.errors import DataError
from kdmri_edge.metrics import psnr, ssim
from kdmri_edge.utils.console import progress

__all__ = ["NAME", "measure"]

NAME: Final = "volumes"
TITLE: Final = "Quality of whole volumes"

_FIGURES: Final = (
    ("psnr_db", "PSNR", "dB", 2, psnr),
    ("ssim", "SSIM", "", 4, ssim),
)

DIFFERENCES: Final = tuple(name for name, *_ in _FIGURES)
"""What margins can be stated for."""


def measure(study: Study) -> Section:
    """Measure PSNR and SSIM of each volume, and what candidates lose of them."""
    values: dict[str, dict[str, list[float]]] = {}
    left_out: dict[str, str] = {}
    with progress("Quality of volumes", len(study.keys)) as advance:
        for key in study.keys:
            made = study.images(key)
            own: dict[str, list[float]] = {name: [] for name, *_ in _FIGURES}
            for volume, image in zip(study.volumes, made, strict=True):
                for name, _, _, _, function in _FIGURES:
                    try:
                        own[name].append(function(volume.target, image))
                    except DataError as error:  # a blank target: nothing can be said of it
                        own[name].append(float("nan"))
                        left_out[volume.case.name] = str(error)
            values[key] = own
            advance(1)
    measures: list[Measure] = []
    for key in study.keys:
        measures += [
            over_subjects(
                name, title, key, values[key][name], study.subjects,
                unit=unit, digits=digits, seed=study.options.seed,
            )
            for name, title, unit, digits, _ in _FIGURES
        ]  # fmt: skip
    for pair in study.pairs():
        ours, theirs = values[pair.candidate.key], values[pair.reference.key]
        measures += [
            over_subjects(
                name, f"change in {title}", pair.candidate.key,
                [a - b for a, b in zip(ours[name], theirs[name], strict=True)],
                study.subjects, against=pair.reference.key, unit=unit, digits=digits + 1,
                seed=study.options.seed,
            )
            for name, title, unit, digits, _ in _FIGURES
        ]  # fmt: skip
    if not any(measure.value is not None for measure in measures):
        why = next(iter(left_out.values()), "there is no volume.")
        return Section.without(NAME, TITLE, f"No volume can be measured: {why}")
    notes = tuple(f"{name} is left out: {why}" for name, why in left_out.items())
    return Section(
        name=NAME,
        title=TITLE,
        measured=(
            "PSNR and SSIM of each volume against its fully sampled images by fastMRI's conventions"
            " (arXiv:1811.08839: the volume's maximum as range, windows of 7 x 7), mean over"
            f" volumes. {ZERO_FILLED.capitalize()} images stand beside for what the networks add."
            " These averages hide what happens to small structures; other sections show that."
        ),
        findings=notes,
        measures=tuple(measures),
    )
