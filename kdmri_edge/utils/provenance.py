"""Where a number comes from: revision, machine, library versions and seed, as plain JSON."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kdmri_edge import __version__
from kdmri_edge.utils.memory import physical_memory

__all__ = ["cpu", "git_revision", "machine", "provenance", "versions"]

_LIBRARIES = (
    "numpy",
    "torch",
    "lightning-fabric",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "scikit-image",
    "safetensors",
)


def _git(*arguments: str) -> str | None:
    """Ask git about the folder that this package lies in; None outside a checkout."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).resolve().parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def git_revision() -> dict[str, Any]:
    """Return `{"revision": str | None, "dirty": bool | None}` of this project's own checkout.

    An installed wheel that happens to lie in somebody else's checkout reports None. Files under
    bench/results do not count as changes: they are what is being written.
    """
    inside = _git("ls-files", "--error-unmatch", "__init__.py")
    revision = _git("rev-parse", "HEAD") if inside else None
    if revision is None:
        return {"revision": None, "dirty": None}
    status = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/bench/results")
    return {"revision": revision, "dirty": bool(status)}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cpu_features() -> list[str]:
    """Return the vector extensions that decide which kernels a runtime picks."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    flags = set(text.partition("\nflags")[2].partition("\n")[0].split())
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    return [name for name in wanted if name in flags]


def cpu() -> str:
    """Name this machine's CPU with its vector extensions: what compiled code is made for."""
    return f"{_cpu_model()} ({', '.join(_cpu_features())})"


def machine() -> dict[str, Any]:
    """Describe this machine without naming it."""
    memory = physical_memory() / 2**30
    return {
        "cpu": _cpu_model(),
        "cpu_features": _cpu_features(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "os": f"{platform.system()} {platform.machine()}",
        **({"gpus": found} if (found := _gpus()) else {}),
    }


def _gpus() -> list[str]:
    """Return the CUDA devices; only where this process has PyTorch anyway, which takes seconds."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def versions() -> dict[str, str]:
    """Return the versions of the installed libraries that influence results."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    torch = sys.modules.get("torch")
    if torch is not None:  # it also says its build, +cpu or +cu130, which its metadata may not
        found["torch"] = str(torch.__version__)
    return found


def provenance(seed: int | None = None) -> dict[str, Any]:
    """Return everything that has to stand beside a published figure.

    Args:
        seed: The seed of the computation, None where nothing was drawn at random.
    """
    return {
        "kdmri_edge": __version__,
        "git": git_revision(),
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": machine(),
        "versions": versions(),
        "seed": seed,
    }
