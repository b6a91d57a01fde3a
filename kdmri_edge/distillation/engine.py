"""Devices and precision of a training, through Lightning Fabric."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.plugins.precision.amp import MixedPrecision
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.utilities.rank_zero import rank_zero_only

from kdmri_edge.distillation.preparation import Keeping
from kdmri_edge.distillation.recipe import Precision
from kdmri_edge.errors import BackendError
from kdmri_edge.utils.console import get_console, say
from kdmri_edge.utils.cuda import no_cuda
from kdmri_edge.utils.memory import keep_freed_memory

__all__ = [
    "Engine",
    "announce",
    "describe",
    "in_bf16",
    "is_first_process",
    "launched",
    "make_fabric",
    "resolve_precision",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """Where to train.

    Attributes:
        accelerator: "auto", "cpu" or "cuda".
        devices: Processes on each host: CPU processes, or GPUs.
        num_nodes: Hosts.
        threads: CPU threads of each process; None leaves PyTorch's choice.
        data_memory: Bytes that slices may take in memory on each host, see `Keeping`.
        data_cache: Folder for slices that memory does not hold; None is this program's own.
        data_workers: Threads that prepare and read them.
    """

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    threads: int | None = None
    data_memory: int | None = None
    data_cache: Path | None = None
    data_workers: int = 2

    @property
    def processes(self) -> int:
        """Processes on all hosts together."""
        return self.devices * self.num_nodes

    def keeping(self, rank: int) -> Keeping:
        """Return where a process keeps its slices.

        Args:
            rank: Of the process among all of them.
        """
        return Keeping(
            memory=self.data_memory,
            folder=self.data_cache,
            workers=self.data_workers,
            rank=rank,
            world=self.processes,
            local=self.devices,
        )


def _cpu_computes_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _cpu_has_bf16() -> bool:
    """Tell whether the CPU has instructions for bf16.

    PyTorch computes it on every x86-64 CPU with AVX-512, but where it has to make it of float32 a
    training step takes about three times as long as in float32.
    """
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported())
    return _cpu_computes_bf16()


def resolve_precision(wanted: Precision, device: str) -> Precision:
    """Return the precision that will really run.

    Raises:
        BackendError: bf16 is asked for and the device has none.
    """
    # emulated, as on GPUs before Ampere, it is slower than float32
    on_gpu = device == "cuda"
    has = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else _cpu_has_bf16()
    if wanted is Precision.AUTO:
        return Precision.BF16 if has else Precision.F32
    if wanted is Precision.BF16 and not (has if on_gpu else _cpu_computes_bf16()):
        raise BackendError(
            f"This {'GPU' if on_gpu else 'CPU'} has no bf16 convolutions.",
            "Use --set precision=f32.",
        )
    return wanted


def _check_launch(engine: Engine) -> None:
    """Refuse numbers of processes that do not agree with what started this one."""
    if TorchElasticEnvironment.detect():
        started = int(os.environ["WORLD_SIZE"])
        if started != engine.processes:
            raise BackendError(
                f"torchrun started {started} processes, --devices {engine.devices} and"
                f" --num-nodes {engine.num_nodes} make {engine.processes}.",
                "Give torchrun's --nproc-per-node as --devices and its --nnodes as --num-nodes.",
            )
    elif engine.num_nodes > 1 and not SLURMEnvironment.detect():
        raise BackendError(
            f"--num-nodes {engine.num_nodes} needs a launcher on every host.",
            "Start the command on each of them with torchrun (or in a Slurm job).",
        )


class _Bf16Convolutions(MixedPrecision):
    """Autocast alone: Fabric's own would round what a network is given, too.

    The zero-filled image, P and the sensitivities belong to data consistency, which is float32.
    """

    def convert_input(self, data: Any) -> Any:
        """Return what a network is given, as it is."""
        return data


def _arithmetic(precision: Precision, device: str) -> dict[str, Any]:
    """Return what Fabric is told about a precision."""
    if precision is Precision.BF16:
        return {"plugins": _Bf16Convolutions("bf16-mixed", device)}
    return {"precision": "32-true"}


def make_fabric(engine: Engine, precision: Precision) -> Fabric:
    """Return a launched Fabric; with several processes each one continues from here.

    Raises:
        BackendError: The accelerator or that many devices are not there, or torchrun started
            another number of processes.
    """
    _check_launch(engine)
    has_cuda = torch.cuda.is_available()
    accelerator = (
        ("cuda" if has_cuda else "cpu") if engine.accelerator == "auto" else (engine.accelerator)
    )
    if accelerator == "cuda" and not has_cuda:
        raise no_cuda("Or use --accelerator cpu.")
    if accelerator == "cuda" and engine.devices > torch.cuda.device_count():
        raise BackendError(
            f"--devices {engine.devices} asks for more GPUs than the"
            f" {torch.cuda.device_count()} here.",
            "Lower --devices.",
        )
    resolved = resolve_precision(precision, accelerator)
    several = engine.processes > 1
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # Advice about cluster schedulers and idle workers is not for this loop, which has neither.
        warnings.simplefilter("ignore")
        fabric = Fabric(
            accelerator=accelerator,
            devices=engine.devices,
            num_nodes=engine.num_nodes,
            strategy=DDPStrategy() if several else "auto",
            **_arithmetic(resolved, accelerator),
        )
        fabric.launch()
    if several:
        # Of weights with one input channel, whose strides may be written in two ways.
        warnings.filterwarnings("ignore", "Grad strides do not match", UserWarning)
    if accelerator == "cpu":
        keep_freed_memory()
    else:
        # PyTorch's default for convolutions, TF32, has 10 bits of fraction: what is called float32,
        # validation always, would not be it.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True  # shapes stay the same for thousands of steps
    if engine.threads is not None:  # after launching, which sets a number of its own
        torch.set_num_threads(engine.threads)
    if not fabric.is_global_zero:
        get_console().quiet = True
    return fabric


@contextlib.contextmanager
def launched(engine: Engine, precision: Precision) -> Iterator[Fabric]:
    """Yield `make_fabric`'s result; when the first process fails, the others it started end too.

    Without this they would wait for it in a collective operation, and Fabric's watchdog, which
    kills everything once one process is gone, might do so before the error is printed.
    """
    fabric = make_fabric(engine, precision)
    try:
        yield fabric
    except BaseException:
        started = getattr(fabric.strategy.launcher, "procs", [])
        others = list(started)
        started.clear()  # what the watchdog watches
        for process in others:
            process.kill()
            process.wait()
        raise
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def in_bf16(fabric: Fabric) -> bool:
    """Tell whether convolutions are computed in bf16."""
    return "bf16" in str(fabric._precision.precision)


def is_first_process() -> bool:
    """Tell whether this is the process that speaks; true also outside a distributed run."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def describe(fabric: Fabric) -> dict[str, Any]:
    """Return what is really running, for run.json and for the person watching."""
    device = fabric.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    bf16 = in_bf16(fabric)
    return {
        "device": name,
        "processes": fabric.world_size,
        "threads": torch.get_num_threads(),
        "precision": "bf16 convolutions, float32 data consistency" if bf16 else "float32",
    }


def announce(fabric: Fabric) -> dict[str, Any]:
    """Say what is really running; return it as `describe` does."""
    ran = describe(fabric)
    threads = "1 thread" if ran["threads"] == 1 else f"{ran['threads']} threads"
    processes = "" if ran["processes"] == 1 else f"{ran['processes']} processes of "
    say(f"Training on {ran['device']}: {processes}{threads}, {ran['precision']}.")
    return ran
