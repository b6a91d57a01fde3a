"""Which NVIDIA GPU this machine has, by its driver's tool or by a Jetson's own files."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Gpu", "find_gpu", "jetson", "parse_smi"]

_QUERY: Final = "name,compute_cap,driver_version,memory.total"
_MODEL: Final = Path("/proc/device-tree/model")
_RELEASE: Final = Path("/etc/nv_tegra_release")

_JETPACK: Final = {35: 5, 36: 6, 38: 7, 39: 7}
"""Release of Jetson Linux -> JetPack, see NVIDIA's archive of both."""

_JETSONS: Final = {"Thor": "sm110", "Orin": "sm87", "Xavier": "sm72"}
"""Compute capability by what a Jetson is called; its nvidia-smi, if any, does not tell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """A GPU.

    Attributes:
        name: As the driver or the device calls it.
        capability: Compute capability, "sm90"; None where nothing tells.
        driver: Version of the driver; None where nothing tells.
        memory_mib: Its own memory; None where it shares the CPU's.
        jetpack: Of a Jetson: version of JetPack; None for other GPUs, or where nothing tells.
        release: Of a Jetson: release of Jetson Linux, "R36.4.3"; None for other GPUs.
    """

    name: str
    capability: str | None = None
    driver: str | None = None
    memory_mib: int | None = None
    jetpack: int | None = None
    release: str | None = None

    @property
    def is_jetson(self) -> bool:
        """Whether it is part of a Jetson."""
        return self.release is not None


def parse_smi(text: str) -> Gpu | None:
    """Return the first GPU of what nvidia-smi prints for `_QUERY`, as CSV without units."""
    parts = [part.strip() for part in text.partition("\n")[0].rsplit(",", 3)]
    if len(parts) != len(_QUERY.split(",")):
        return None
    name, capability, driver, memory = parts
    number = capability.replace(".", "")
    return Gpu(
        name=name,
        capability=f"sm{number}" if number.isdigit() else None,
        driver=driver if driver[:1].isdigit() else None,
        memory_mib=int(memory) if memory.isdigit() else None,
    )


def jetson(model: str, release: str) -> Gpu | None:
    """Return a Jetson's GPU.

    Args:
        model: Contents of /proc/device-tree/model, "NVIDIA Jetson Orin Nano ...".
        release: Contents of /etc/nv_tegra_release, "# R36 (release), REVISION: 4.3, ...".
    """
    name = model.strip("\0 \n")
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", release)
    if "Jetson" not in name and found is None:
        return None
    known = (capability for word, capability in _JETSONS.items() if word in name)
    return Gpu(
        name=name or "NVIDIA Jetson",
        capability=next(known, None),
        jetpack=_JETPACK.get(int(found[1])) if found else None,
        release=f"R{found[1]}.{found[2]}" if found else "unknown",
    )


def find_gpu() -> Gpu | None:
    """Return the first NVIDIA GPU of this machine, None without one that can be found."""
    own = jetson(_text(_MODEL), _text(_RELEASE))
    if own is not None:
        return own
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_smi(done.stdout) if done.returncode == 0 else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
