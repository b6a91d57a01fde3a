"""What to run networks with on a GPU, by what it is and what is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kdmri_edge.runtime.targets import TARGETS, as_users_write
from kdmri_edge.utils.gpus import Gpu
from kdmri_export.targets.tensorrt.engines import RTX_DEFAULT, without_bf16

__all__ = ["advise", "described", "engine_precisions"]

_OLDEST_JETPACK: Final = 6

_TRT: Final = 'pip install "kdmri-edge[trt]"'
_RTX: Final = 'pip install "kdmri-edge[trt-rtx]"'


def engine_precisions(gpu: Gpu) -> list[str]:
    """Return the precisions that TensorRT's engines can have on a GPU."""
    lacking = without_bf16([gpu.capability or ""])
    return [name for name in TARGETS["trt"].precisions if not (name == "bf16" and lacking)]


def described(gpu: Gpu) -> str:
    """Say in one line which GPU it is, and in which precisions it can compute."""
    parts = [gpu.name, "compute capability unknown"]
    if gpu.capability:
        parts[1] = f"{gpu.capability} ({as_users_write(', '.join(engine_precisions(gpu)))})"
    if gpu.is_jetson:
        jetpack = f"JetPack {gpu.jetpack}, " if gpu.jetpack else ""
        parts.append(f"{jetpack}Jetson Linux {gpu.release}, memory shared with the CPU")
    else:
        parts += [f"{gpu.memory_mib / 1024:.0f} GiB"] if gpu.memory_mib else []
        parts += [f"driver {gpu.driver}"] if gpu.driver else []
    return ", ".join(parts)


def advise(
    gpu: Gpu | None,
    *,
    tensorrt: str | None,
    rtx: str | None,
    rtx_knows: Sequence[str] = (),
    torch_uses_it: bool = False,
    triton: str | None = None,
) -> list[str]:
    """Say which ways there are, the best one first: a line each.

    Args:
        gpu: This machine's; None without one.
        tensorrt: Version of TensorRT that is installed, None for none.
        rtx: The same for TensorRT-RTX.
        rtx_knows: GPUs that the latter has kernels for; empty where it is not installed.
        torch_uses_it: Whether PyTorch finds the GPU.
        triton: Version of Triton that is installed, None for none.
    """
    if gpu is None:
        return ["none here; engines for other machines: export NETWORK --target trt --builder rtx"]
    if gpu.is_jetson:
        return _on_jetson(gpu, tensorrt)
    fused = "run NETWORK INPUT -o OUTPUT --backend cuda"
    kernels = f"fused kernels (Triton {triton}), of a checkpoint: {fused}"
    graph = "PyTorch with a CUDA graph: kdmri-edge bench NETWORK --data DIR --rows 'cuda-*'"
    build = "export NETWORK --target trt --precision fp16 --builder"
    full = f"TensorRT {tensorrt}: {build} tensorrt" if tensorrt else None
    missing = f"TensorRT: {_TRT} (its libraries come from NVIDIA)"
    own = gpu.capability
    known = rtx_knows or RTX_DEFAULT
    if own is not None and own in known:
        way = f"{build} rtx --compute-capability {own}"
        small = [f"TensorRT-RTX {rtx}, then:" if rtx else f"TensorRT-RTX: {_RTX}; then:", way]
        first = [*([full] if full else []), *small]
    elif rtx_knows:
        refused = f"TensorRT-RTX {rtx} has no kernels for {own}, only for {', '.join(rtx_knows)}"
        first = [full or missing, refused]
    else:
        first = [full or missing]
    by_torch = [*([kernels] if triton else []), graph] if torch_uses_it else []
    return [*first, *by_torch]


def _on_jetson(gpu: Gpu, tensorrt: str | None) -> list[str]:
    lines = [
        "anywhere: export NETWORK --target trt --precision fp16, and copy the bundle here",
        "here: python3 BUNDLE/jetson.py checks the device, builds the engine and times it",
    ]
    if tensorrt is None:
        lines.append(
            "TensorRT is not found, and need not be: jetson.py runs in the system's own python3"
        )
    if gpu.jetpack is not None and gpu.jetpack < _OLDEST_JETPACK:
        lines.append(f"JetPack {gpu.jetpack} has TensorRT 8: update it, 10.3 is the oldest taken")
    return lines
