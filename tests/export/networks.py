"""Small untrained networks, and checkpoints of them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdmri_edge.data.simulation import coil_maps
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.models.build import build_model
from kdmri_edge.models.checkpoint import Checkpoint, save_checkpoint
from kdmri_edge.models.network import Network, as_network
from kdmri_edge.models.protocol import InputKind, NetworkSpec, SpecDefaults
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.models.specs import ModelSpec
from kdmri_edge.physics.masks import Mask, variable_density_2d, variable_density_lines
from kdmri_edge.physics.operators import Form
from kdmri_edge.physics.scaling import network_maps
from kdmri_edge.quantisation.calibration import activation_maxima

MATRIX = 32
UNET = Path(__file__).resolve().parents[2] / "examples" / "own_network" / "unet.py"


@dataclass(frozen=True)
class UnetSpec(SpecDefaults):
    """The U-Net of examples/, which knows nothing of this library, as a network of it."""

    kind: str = "unet"
    reads: InputKind = InputKind.MAGNITUDE
    has_data_consistency: bool = False
    parameters: int = 0
    receptive_radius: int | None = None
    width: int = 4

    def macs(self, height: int, width: int, **_: Any) -> dict[str, int]:
        return {"convolutions": 0, "data_consistency": 0}

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> UnetSpec:
        return cls(**value)


def _unet(architecture: UnetSpec) -> Network:
    found = importlib.util.spec_from_file_location("own_unet", UNET)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    made = module.UNet(width=architecture.width)
    torch.nn.init.normal_(made.last.weight, std=0.1)  # as if it were trained
    return as_network(made, architecture)


def spec(
    *,
    channels: int = 1,
    kind: str = "dccnn",
    noise_weight: float | None = None,
    coils: bool = False,
    cascades: int = 2,
    carried: int = 0,
    shuffle: int = 1,
    solver_steps: int = 0,
) -> ModelSpec:
    return ModelSpec(
        kind="dccnn-carrying" if carried else kind,
        cascades=1 if kind == "vdsr" else cascades,
        convs=2,
        width=4,
        attention_tap=1,
        channels=channels,
        noise_weight=noise_weight,
        coils=coils,
        carried=carried,
        shows_zero_filled=carried > 0,
        shuffle=shuffle,
        solver_steps=solver_steps,
        solver_weight=0.3,
    )


def lines(height: int = MATRIX, acceleration: float = 3) -> Mask:
    return variable_density_lines(height, acceleration, centre_lines=4, seed=3)


def points(height: int = MATRIX, width: int = MATRIX, seed: int = 1) -> Mask:
    return variable_density_2d((height, width), 3, centre=6, seed=seed)


COILS = 3


def maps(batch: int, size: tuple[int, int], coils: int = COILS) -> NDArray[np.float32]:
    """Sensitivities as a network is given them, another set for each image."""
    return network_maps(np.stack([coil_maps(coils, *size, seed=seed) for seed in range(batch)]))


def network(
    architecture: NetworkSpec,
    mask: Mask,
    form: Form | None = None,
    size: tuple[int, int] | None = None,
    *,
    any_mask: bool = False,
) -> Reconstructor:
    """Draw a network; `size` of an image also calibrates it."""
    torch.manual_seed(0)
    own = isinstance(architecture, UnetSpec)
    model = _unet(architecture) if own else build_model(architecture)
    made = Reconstructor(model, mask, form, any_mask=any_mask).eval()
    if size is not None:
        x_u = torch.randn(2, architecture.channels, *size)
        further = (torch.from_numpy(maps(2, size)),) if architecture.coils else ()
        made.maxima = activation_maxima(made.model, [(x_u, made.operator, *further)])
    return made


def write_checkpoint(
    path: Path, architecture: ModelSpec | None = None, mask: Mask | None = None, seed: int = 0
) -> Path:
    torch.manual_seed(seed)
    architecture = architecture or spec()
    checkpoint = Checkpoint(
        spec=architecture,
        mask=mask or lines(),
        matrix=MATRIX,
        role=path.stem,
        training={"data": [], "attribution": "Nobody"},
        state=build_model(architecture).state_dict(),
    )
    save_checkpoint(path, checkpoint)
    return path


def write_run(path: Path, roles: tuple[str, ...]) -> Run:
    path.mkdir(parents=True)
    for seed, role in enumerate(roles):
        write_checkpoint(path / f"{role}.safetensors", seed=seed)
    (path / "run.json").write_text(json.dumps({"format": 1, "status": "complete"}))
    return Run(path)
