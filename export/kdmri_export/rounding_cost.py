"""What rounding costs each layer, and which layers are better left in float32."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdmri_edge.errors import ExportError
from kdmri_edge.models.network import Network
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.quantisation.calibration import HIGHEST, LOWEST, of_layers, open_layers
from kdmri_edge.quantisation.fake_quantisation import add_fake_quantisation
from kdmri_edge.quantisation.scheme import LARGEST
from kdmri_edge.runtime.deviation import TOLERANCES, Figures, Tolerance, compare
from kdmri_export.parity import Golden
from kdmri_export.passes.fold import fold_batch_normalisations, fold_parametrizations
from kdmri_export.passes.quantise import asymmetric, choose_quantised, ranges_of

__all__ = ["Kept", "layers_to_keep"]

# Part of the gate's limits that is used up: kernels round sums a little otherwise.
_PART: Final = 0.7
# Layers that are tried one by one, each with an inference of the whole network.
_MOST_BY_IMAGE: Final = 32


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Layers that stay in float32.

    Attributes:
        layers: Their names, the costliest first.
        cost: What rounding each layer of the network alone costs: root-mean-square deviation over
            the root-mean-square, of the image or of what the layer puts out.
        by_image: Whether it is that of the image. Networks of many layers are gone through once,
            and each layer is judged by its own output.
        before: Deviation with all layers rounded.
        after: Deviation without those that are kept.
    """

    layers: Sequence[str]
    cost: dict[str, float]
    by_image: bool
    before: Figures
    after: Figures

    def to_dict(self) -> dict[str, Any]:
        """Return what the manifest says."""
        figures = {"before": self.before, "after": self.after}
        return {
            "layers": list(self.layers),
            "cost": self.cost,
            "cost_of": "image" if self.by_image else "layer",
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
    ranges = ranges_of(network, unsigned=unsigned)
    written = set(open_layers(network.model, choice.structure))
    wanted = _image(network, data)

    def deviation(names: Collection[str]) -> Figures:
        rounded = copy.deepcopy(network)
        chosen = of_layers(ranges, names)
        add_fake_quantisation(rounded.model, chosen, unsigned=unsigned)
        if outputs:
            _round_outputs(rounded.model, ranges, written.intersection(names))
        return compare(_image(rounded, data), wanted)

    layers = [one.name for one in choice.layers]
    before = after = deviation(layers)
    limit = _limit(_PART)
    cost: dict[str, float] = {}
    kept = 0
    order = layers
    by_image = len(layers) <= _MOST_BY_IMAGE
    if before.exceeded(limit):
        if by_image:
            cost = {name: deviation([name]).nrmse for name in layers}
        else:
            cost = _layer_errors(network, data, layers, ranges, unsigned)
        order = sorted(layers, key=lambda name: -cost[name])
        too_few, kept = 0, len(order) - 1
        after = deviation(order[kept:])
        if after.exceeded(limit):
            raise ExportError(
                "Rounding any layer of this network to eight bits costs more than an export may"
                f" ({order[-1]} alone: NRMSE {after.nrmse:.2g}).",
                "Train a copy with rounding (`kdmri-edge distill --quantize int8`), or export with"
                " --precision fp16.",
            )
        while kept - too_few > 1:
            middle = (kept + too_few) // 2
            found = deviation(order[middle:])
            if found.exceeded(limit):
                too_few = middle
            else:
                kept, after = middle, found
    return Kept(layers=order[:kept], cost=cost, by_image=by_image, before=before, after=after)


def _round_outputs(network: Network, ranges: Mapping[str, float], names: Collection[str]) -> None:
    """Let layers round what they put out as `passes.quantise.round_outputs` has graphs do.

    Where a ReLU follows, graphs round behind it, with half of this step or less.
    """

    def rounding(name: str) -> Callable[..., Tensor]:
        step, point = asymmetric(ranges[name + LOWEST], ranges[name + HIGHEST])
        size, lowest = float(step), -int(point)

        def hook(module: nn.Module, given: Any, made: Tensor) -> Tensor:
            return (made / size).round().clamp(lowest, lowest + LARGEST["u8"]) * size

        return hook

    for name in names:
        if name + HIGHEST in ranges:
            network.get_submodule(name).register_forward_hook(rounding(name))


def _limit(part: float) -> Tolerance:
    whole = TOLERANCES["int8"]
    # compared with the network's own image alone
    return Tolerance(
        max_error=part * whole.max_error, nrmse=part * whole.nrmse, psnr_db=1.0, ssim=1.0
    )


def _layer_errors(
    network: Reconstructor,
    data: Golden,
    layers: Collection[str],
    ranges: Mapping[str, float],
    unsigned: bool,
) -> dict[str, float]:
    """Return how far each layer's output is off if what it reads and its weights are rounded.

    All layers read what they read in float32; root-mean-square error over root-mean-square.
    """
    rounded = copy.deepcopy(network)
    add_fake_quantisation(rounded.model, of_layers(ranges, layers), unsigned=unsigned)
    powers = {name: np.zeros(2) for name in layers}

    def watch(name: str) -> Any:
        layer = rounded.model.get_submodule(name)

        def hook(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            error = layer(*given) - output
            powers[name] += [float(error.square().sum()), float(output.square().sum())]

        return network.model.get_submodule(name).register_forward_hook(hook)

    hooks = [watch(name) for name in layers]
    try:
        _image(network, data)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: math.sqrt(error / max(own, 1e-30)) for name, (error, own) in powers.items()}


def _image(network: Reconstructor, data: Golden) -> NDArray[np.float32]:
    """Return the images [S, C, H, W] of golden slices, made one by one as exports make them."""
    maps = data.network_maps
    made = []
    with torch.inference_mode():
        for number, x_u in enumerate(torch.from_numpy(data.network_input)):
            further = {} if maps is None else {"maps": torch.from_numpy(maps[number, None])}
            made.append(network(x_u[None], **further).numpy())
    return np.concatenate(made)
