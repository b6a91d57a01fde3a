"""Memory and energy of the first NVIDIA GPU, through NVML."""

from __future__ import annotations

import os
from typing import Any

from kdmri_edge.errors import MissingExtraError
from kdmri_edge.extras import require

__all__ = ["Nvml", "open_nvml"]


class Nvml:
    """The first GPU as NVML sees it.

    Args:
        library: the module `pynvml`, initialised.

    Attributes:
        source: where the figure of `memory` comes from.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._device = library.nvmlDeviceGetHandleByIndex(0)
        self.source = "NVML, device"
        self.memory()

    def memory(self) -> int:
        """Return bytes in use: this process's own, or all of the device's where NVML hides those.

        In a container NVML numbers processes as the host does, so that one's own is not found.
        """
        own = os.getpid()
        try:
            for process in self._library.nvmlDeviceGetComputeRunningProcesses(self._device):
                if process.pid == own and process.usedGpuMemory is not None:
                    self.source = "NVML, process"
                    return int(process.usedGpuMemory)
        except self._library.NVMLError:
            pass
        return int(self._library.nvmlDeviceGetMemoryInfo(self._device).used)

    def joules(self) -> float | None:
        """Return the device's energy since its driver was loaded; None where it has no meter."""
        try:
            return float(self._library.nvmlDeviceGetTotalEnergyConsumption(self._device)) * 1e-3
        except self._library.NVMLError:
            return None


def open_nvml() -> tuple[Nvml | None, str | None]:
    """Open NVML.

    Returns:
        The GPU and None, or None and the reason.
    """
    try:
        library: Any = require("pynvml", extra="gpu")
    except MissingExtraError:
        return None, "NVML is not read: the package nvidia-ml-py is not installed"
    try:
        library.nvmlInit()
        return Nvml(library), None
    except library.NVMLError as error:
        return None, f"NVML finds no GPU ({error})"
