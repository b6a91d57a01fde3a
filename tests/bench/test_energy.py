"""Energy and GPU memory through stand-ins for the kernel's counters and for NVML."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdmri_bench.measuring import device as nvml
from kdmri_bench.measuring.device import Meter, Nvml, governor, open_nvml, rapl_reason


def package(root: Path, name: str, microjoules: int, wraps_at: int = 1000) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "max_energy_range_uj").write_text(f"{wraps_at}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def test_packages_are_added_up_and_their_parts_are_not(tmp_path: Path) -> None:
    first = package(tmp_path, "intel-rapl:0", 100)
    second = package(tmp_path, "intel-rapl:1", 900)
    package(tmp_path, "intel-rapl:0:0", 50)
    meter = Meter(root=tmp_path)
    first.write_text("400")
    second.write_text("200")  # has started anew at 1000
    found = meter.stop(4)
    assert found["joules"] == pytest.approx(600e-6)
    assert found["queries"] == 4
    assert "RAPL" in found["source"]
    assert rapl_reason(tmp_path) is None


def test_without_counters_there_is_a_reason_and_no_figure(tmp_path: Path) -> None:
    assert Meter(root=tmp_path / "nowhere").stop(1) == {}
    assert "shows no RAPL" in str(rapl_reason(tmp_path / "nowhere"))
    package(tmp_path, "intel-rapl:0", 1).unlink()
    assert "root alone" in str(rapl_reason(tmp_path))


class StandIn:
    """As much of pynvml as is used; the process is seen, or hidden as in a container."""

    NVMLError = RuntimeError

    def __init__(self, pid: int) -> None:
        self.pid, self.millijoules = pid, 5000

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's names
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, _: int) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=self.pid, usedGpuMemory=300)]

    def nvmlDeviceGetMemoryInfo(self, _: int) -> Any:  # noqa: N802
        return SimpleNamespace(used=900)

    def nvmlDeviceGetTotalEnergyConsumption(self, _: int) -> int:  # noqa: N802
        return self.millijoules


@pytest.mark.parametrize(
    ("own", "used", "source"), [(True, 300, "NVML, process"), (False, 900, "NVML, device")]
)
def test_gpu_memory_is_the_process_or_the_device(own: bool, used: int, source: str) -> None:
    gpu = Nvml(StandIn(os.getpid() if own else 1))
    assert gpu.memory() == used
    assert gpu.source == source


def test_gpu_energy_is_a_difference(tmp_path: Path) -> None:
    library = StandIn(1)
    meter = Meter(Nvml(library), root=tmp_path)
    library.millijoules += 2500
    assert meter.stop(10)["joules"] == pytest.approx(2.5)


def test_no_gpu_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    library = StandIn(1)

    def refuse() -> None:
        raise RuntimeError("NVML Shared Library Not Found")

    monkeypatch.setattr(library, "nvmlInit", refuse)
    monkeypatch.setattr(nvml, "require", lambda *_, **__: library)
    gpu, reason = open_nvml()
    assert gpu is None
    assert "Not Found" in str(reason)


def test_governor(tmp_path: Path) -> None:
    (tmp_path / "g").write_text("performance\n")
    assert governor(tmp_path / "g") == "performance"
    assert governor(tmp_path / "none") is None
