"""What rounding costs each layer, and which layers are better left in float32."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from kdmri_edge.errors import ExportError
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.quantisation.fake_quantisation import add_fake_quantisation
from kdmri_edge.runtime.deviation import TOLERANCES, Figures, Tolerance, compare
from kdmri_export.parity import Golden
from kdmri_export.passes.fold import fold_batch_normalisations, fold_parametrizations
from kdmri_export.passes.quantise import choose_quantised, ranges_of

__all__ = ["Kept", "layers_to_keep"]

# Part of the gate's limits that is used up: kernels round sums a little otherwise.
_PART: Final = 0.7
# The same where outputs are rounded as well, which is not looked at here and costs more.
_PART_WITH_OUTPUTS: Final = 0.4


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Layers that stay in float32.

    Attributes:
        layers: Their names, the costliest first.
        cost: What rounding each layer of the network alone costs: root-mean-square deviation of the
            image over its own root-mean-square.
        before: Deviation with all layers rounded.
        after: Deviation without those that are kept.
    """

    layers: Sequence[str]
    cost: dict[str, float]
    before: Figures
    after: Figures

    def to_dict(self) -> dict[str, Any]:
        """Return what the manifest says."""
        figures = {"before": self.before, "after": self.after}
        return {
            "layers": list(self.layers),
            "cost": self.cost,
            **{
                key: {name: asdict(value)[name] for name in ("max_error", "nrmse")}
                for key, value in figures.items()
            },
        }


def layers_to_keep(
    reconstructor: Reconstructor,
    data: Golden,
    *,
    unsigned: bool,
    outputs: bool = False,
    floats: Sequence[str] = (),
) -> Kept:
    """Keep the layers in float32 that rounding costs most, until the rest passes the parity gate.

    Rounding is that of PyTorch's own arithmetic (`quantisation.fake_quantisation`), which exports
    follow; the images are the golden slices.

    Args:
        reconstructor: The network, with its activation maxima or ranges; it stays as it is.
        data: Golden slices.
        unsigned: Round as for CPUs, else as for TensorRT.
        outputs: The export rounds what layers put out as well (`passes.quantise.round_outputs`).
        floats: Patterns of layers that stay in float32 in any case.

    Raises:
        ExportError: Nothing would be left to round, or a pattern fits no layer.
    """
    network = copy.deepcopy(reconstructor)
    fold_parametrizations(network.model)
    fold_batch_normalisations(network.model)
    choice = choose_quantised(network.model, network.ranges or network.maxima, floats)
    ranges = ranges_of(network)
    wanted = _image(network, data)

    def deviation(names: Collection[str]) -> Figures:
        rounded = copy.deepcopy(network)
        chosen = {name: ranges[name] for name in names}
        add_fake_quantisation(rounded.model, chosen, unsigned=unsigned)
        return compare(_image(rounded, data), wanted)

    left = [one.name for one in choice.layers]
    before = after = deviation(left)
    limit = _limit(_PART_WITH_OUTPUTS if outputs else _PART)
    cost: dict[str, float] = {}
    kept: list[str] = []
    if after.exceeded(limit):
        cost = {name: deviation([name]).nrmse for name in left}
        order = sorted(left, key=lambda name: -cost[name])
        while after.exceeded(limit) and len(kept) < len(order) - 1:
            kept.append(order[len(kept)])
            left.remove(kept[-1])
            after = deviation(left)
        if after.exceeded(limit):
            raise ExportError(
                "Rounding any layer of this network to eight bits costs more than an export may"
                f" ({order[-1]} alone: NRMSE {after.nrmse:.2g}).",
                "Train a copy with rounding (`kdmri-edge distill --quantize int8`), or export with"
                " --precision fp16.",
            )
    return Kept(layers=kept, cost=cost, before=before, after=after)


def _limit(part: float) -> Tolerance:
    whole = TOLERANCES["int8"]
    # compared with the network's own image alone
    return Tolerance(
        max_error=part * whole.max_error, nrmse=part * whole.nrmse, psnr_db=1.0, ssim=1.0
    )


def _image(network: Reconstructor, data: Golden) -> NDArray[np.float32]:
    """Return the images [S, C, H, W] of golden slices, made one by one as exports make them."""
    maps = data.network_maps
    made = []
    with torch.inference_mode():
        for number, x_u in enumerate(torch.from_numpy(data.network_input)):
            further = {} if maps is None else {"maps": torch.from_numpy(maps[number, None])}
            made.append(network(x_u[None], **further).numpy())
    return np.concatenate(made)
