"""Quantisation-aware distillation: a copy of the student tuned with its int8 export's rounding.

The copy imitates the float student itself, on whole slices. A finished student lies in the minimum
of its own losses: on brains at 4x, following those once more, or training on strips, cost 0.003 to
0.012 dB, while imitating itself gains on the validation volumes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from kdmri_edge.console import say
from kdmri_edge.data.cases import Case
from kdmri_edge.distill.calibration import training_maxima
from kdmri_edge.distill.losses import distance
from kdmri_edge.distill.recipe import Loss, Quantise
from kdmri_edge.distill.stage import channels_last, train
from kdmri_edge.distill.stages import Batch, Criterion, Stage, Surroundings
from kdmri_edge.distill.validation import validation_psnr
from kdmri_edge.models.build import Network
from kdmri_edge.models.equalise import equalise
from kdmri_edge.models.features import Features
from kdmri_edge.models.rounding import round_network, unround

__all__ = ["Tuned", "tune"]


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What tuning gave.

    Attributes:
        network: The float network whose int8 export computes what was trained.
        ranges: Largest magnitude that each convolution reads.
        figures: Validation PSNR in dB of the float student, of its int8 export without tuning and
            with it; None without validation volumes.
    """

    network: Network
    ranges: Mapping[str, float]
    figures: Mapping[str, float | None]


def tune(student: Network, around: Surroundings, validation: list[Case]) -> Tuned:
    """Tune a copy of a finished student with rounding; it starts as its post-training int8 export.

    Args:
        student: The float student, on the device; it stays as it is.
        around: Surroundings of the run; the recipe says which integers, and how many steps.
        validation: Whole validation volumes; may be empty.

    Raises:
        KdmriError: See `train`.
    """
    recipe = around.recipe
    rounded = copy.deepcopy(student).requires_grad_(True)
    around.fabric.to_device(rounded)
    float_psnr = _psnr(rounded, around, validation)
    maxima = training_maxima(rounded, around.operator, around.slices)
    ranges = equalise(rounded, maxima)
    round_network(rounded, ranges, unsigned=recipe.quantise is Quantise.INT8)
    around.fabric.to_device(rounded)
    before = _psnr(rounded, around, validation)
    stage = Stage(
        name=str(recipe.quantise),
        title=f"student in {recipe.quantise}",
        steps=recipe.quantise_steps,
        criterion=_like(student, around.fabric),
        first=recipe.student_steps,
        rate=recipe.quantise_rate,
    )
    own = {key: value for key, value in recipe.to_dict().items() if key.startswith("quantise")}
    key = f"{around.key} {json.dumps(own, sort_keys=True)}"
    whole = replace(recipe, whole_slices=1.0)
    train(rounded, stage, replace(around, key=key, recipe=whole))
    after = _psnr(rounded, around, validation)
    if float_psnr is not None and before is not None and after is not None:
        say(
            f"student in {recipe.quantise}: {after:.2f} dB on the validation volumes"
            f" ({before:.2f} before tuning, {float_psnr:.2f} in float)."
        )
    learned = unround(rounded)
    figures: dict[str, Any] = {"float": float_psnr, "untuned": before, "tuned": after}
    return Tuned(network=rounded, ranges=learned, figures=figures)


def _like(student: Network, fabric: Fabric) -> Criterion:
    """Return the loss against what the float student makes of the same batch."""
    reference = channels_last(copy.deepcopy(student).eval().requires_grad_(False))
    fabric.to_device(reference)

    def loss(rounded: Features, batch: Batch) -> Tensor:
        with torch.no_grad(), fabric.autocast():
            wanted = reference.features(batch.x_u, batch.operator, batch.maps).output
        return distance(Loss.L1, rounded.output, wanted)

    return loss


def _psnr(network: Network, around: Surroundings, validation: list[Case]) -> float | None:
    return validation_psnr(network, around.operator, validation) if validation else None
