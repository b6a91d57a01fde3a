"""Devices and precision of a training, through Lightning Fabric."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from kdmri_edge.distill.recipe import Precision
from kdmri_edge.errors import BackendError

__all__ = ["Engine", "describe", "make_fabric", "resolve_precision"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """Where to train.

    Attributes:
        accelerator: "auto", "cpu" or "cuda".
        devices: Processes on each host: CPU processes, or GPUs.
        num_nodes: Hosts.
        threads: CPU threads of each process; None leaves PyTorch's choice.
    """

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    threads: int | None = None


def _cpu_has_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def resolve_precision(wanted: Precision, device: str) -> Precision:
    """Return the precision that will really run.

    Raises:
        BackendError: bf16 is asked for and the device has none.
    """
    has = torch.cuda.is_bf16_supported() if device == "cuda" else _cpu_has_bf16()
    if wanted is Precision.AUTO:
        return Precision.BF16 if has else Precision.F32
    if wanted is Precision.BF16 and not has:
        raise BackendError(
            f"This {'GPU' if device == 'cuda' else 'CPU'} has no bf16 convolutions.",
            "Use --set precision=f32.",
        )
    return wanted


def make_fabric(engine: Engine, precision: Precision) -> Fabric:
    """Return a launched Fabric; with several processes each one continues from here.

    Raises:
        BackendError: The accelerator or that many devices are not there.
    """
    has_cuda = torch.cuda.is_available()
    accelerator = ("cuda" if has_cuda else "cpu") if engine.accelerator == "auto" else (
        engine.accelerator
    )
    if accelerator == "cuda" and not has_cuda:
        raise BackendError("PyTorch finds no CUDA device here.", "Use --accelerator cpu.")
    if accelerator == "cuda" and engine.devices > torch.cuda.device_count():
        raise BackendError(
            f"--devices {engine.devices} asks for more GPUs than the"
            f" {torch.cuda.device_count()} here.",
            "Lower --devices.",
        )
    if engine.threads is not None:
        torch.set_num_threads(engine.threads)
    resolved = resolve_precision(precision, accelerator)
    several = engine.devices * engine.num_nodes > 1
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # Advice about cluster schedulers and idle workers is not for this loop, which has neither.
        warnings.simplefilter("ignore")
        fabric = Fabric(
            accelerator=accelerator,
            devices=engine.devices,
            num_nodes=engine.num_nodes,
            # Attention transfer leaves the last convolution of the last cascade without gradient.
            strategy=DDPStrategy(find_unused_parameters=True) if several else "auto",
            precision="bf16-mixed" if resolved is Precision.BF16 else "32-true",
        )
        fabric.launch()
    return fabric


def describe(fabric: Fabric) -> dict[str, Any]:
    """Return what is really running, for run.json and for the person watching."""
    device = fabric.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    bf16 = "bf16" in str(fabric._precision.precision)
    return {
        "device": name,
        "processes": fabric.world_size,
        "threads": torch.get_num_threads(),
        "precision": "bf16 convolutions, float32 data consistency" if bf16 else "float32",
    }
