"""What `doctor` says on a Hopper GPU, a Jetson, an Ada card, and without a GPU: one screen each.

Each file of doctor/ holds what the machine's own files and tools say, what was found by Python, and
where both come from.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from kdmri_edge.utils import gpus
from kdmri_edge.utils.gpus import Gpu, find_gpu, jetson, parse_smi
from kdmri_export.commands.doctor import built_with, show
from kdmri_export.gpu_advice import advise, described

FOLDER = Path(__file__).parent / "doctor"
SCREEN = (24, 100)


@pytest.fixture
def screen(capsys: pytest.CaptureFixture[str]) -> Callable[[str], list[str]]:
    def shown(name: str) -> list[str]:
        value = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        said, found = value["said"], value["found"]
        own = parse_smi(said["nvidia_smi"]) if "nvidia_smi" in said else None
        own = own or jetson(said.get("model", ""), said.get("release", ""))
        capsys.readouterr()
        show({**found, "nvidia": None if own is None else asdict(own)})
        return capsys.readouterr().out.splitlines()

    return shown


RIGHT = {
    "hopper": (
        ["NVIDIA H100 80GB HBM3, sm90 (fp32, fp16, bf16, int8), 80 GiB, driver 590.48.01",
         "PyTorch 2.11.0+cu130 uses it", "GPU: fused kernels (Triton 3.6.0)",
         "GPU: TensorRT: pip install", "TensorRT-RTX 1.7.1.116 has no kernels for sm90, only for"
         " sm75, sm80, sm86, sm89, sm120, sm121", "GPU: PyTorch with a CUDA graph"],
        ["--compute-capability sm90", "jetson.py"],
    ),
    "jetson": (
        ["NVIDIA Jetson Orin Nano", "sm87 (fp32, fp16, bf16, int8), JetPack 6, Jetson",
         "Jetson Linux R36.4.4",
         "memory shared", "trt, to run it: JetPack has it, for the system's own python3",
         "anywhere: export NETWORK --target trt --precision fp16, and copy",
         "python3 BUNDLE/jetson.py"],
        ["uses it", "--compute-capability", "CUDA graph", "edge[trt", "--builder"],
    ),
    "ada": (
        ["NVIDIA GeForce RTX 4080 SUPER, sm89 (fp32, fp16, bf16, int8), 16 GiB, driver 595.71.05",
         "PyTorch 2.13.0+cu130 uses it", "GPU: fused kernels (Triton 3.7.1)",
         'GPU: TensorRT-RTX: pip install "kdmri-edge[trt-rtx]"; then:',
         "--precision fp16 --builder rtx --compute-capability sm89",
         "GPU: PyTorch with a CUDA graph"],
        ["no kernels", "jetson.py", "libraries come from NVIDIA"],
    ),
    "none": (
        ["built for CPUs alone", "GPU: none here; engines for other machines", "here, for sm75"],
        ["uses it", "CUDA graph", "no kernels", "jetson.py"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_it_says_the_right_thing_in_one_screen(
    name: str, screen: Callable[[str], list[str]]
) -> None:
    lines = screen(name)
    assert len(lines) <= SCREEN[0]
    assert all(len(line) <= SCREEN[1] for line in lines), max(lines, key=len)
    right, wrong = RIGHT[name]
    for words in right:
        assert words in " ".join(" ".join(lines).split()), words
    for words in wrong:
        assert words not in " ".join(lines), words


def test_fused_kernels_are_a_way_where_triton_and_pytorch_have_the_gpu() -> None:
    card = Gpu(name="NVIDIA H100", capability="sm90")
    found = {"tensorrt": None, "rtx": None, "torch_uses_it": True, "triton": "3.6.0"}
    lines = advise(card, **found)  # type: ignore[arg-type]
    assert lines[-2].startswith("fused kernels (Triton 3.6.0), of a checkpoint: run NETWORK")
    assert lines[-2].endswith("--backend cuda")
    for changed in ({"triton": None}, {"torch_uses_it": False}):
        others = advise(card, **{**found, **changed})  # type: ignore[arg-type]
        assert not any("fused" in line for line in others)


def test_fixtures_say_where_they_come_from() -> None:
    files = sorted(FOLDER.glob("*.json"))
    assert {file.stem for file in files} == set(RIGHT)
    for file in files:
        origin = json.loads(file.read_text(encoding="utf-8"))["origin"]
        real = "https://" in origin[0] or "recorded by `kdmri-edge doctor" in origin[0]
        assert real, file.name  # a device's own words are those of a device


@pytest.mark.parametrize("name", RIGHT)
def test_fixtures_name_the_remedies_of_the_program(name: str) -> None:
    value = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    said, found = value["said"], value["found"]
    own = parse_smi(said["nvidia_smi"]) if "nvidia_smi" in said else None
    own = own or jetson(said.get("model", ""), said.get("release", ""))
    versions = found["builder_versions"]
    wanted = {name: None if versions[name] else way for name, way in built_with(own).items()}
    assert found["builder_remedies"] == wanted


def test_a_jetson_whose_python_has_tensorrt_is_told_nothing_of_it() -> None:
    gpu = Gpu(name="NVIDIA Jetson AGX Orin", capability="sm87", jetpack=7, release="R39.2.0")
    assert not any("not found" in line for line in advise(gpu, tensorrt="10.16.2", rtx=None))


@pytest.mark.parametrize(
    ("capability", "said"),
    [("sm75", "sm75 (fp32, fp16, int8)"), ("sm80", "sm80 (fp32, fp16, bf16, int8)"),
     (None, "compute capability unknown, driver")],
)  # fmt: skip
def test_bf16_is_named_where_a_gpu_has_it(capability: str | None, said: str) -> None:
    assert said in described(Gpu(name="a GPU", capability=capability, driver="590.1"))


def test_what_nvidia_smi_prints() -> None:
    found = parse_smi("NVIDIA RTX 6000, Ada, 8.9, 580.1, 49140\nanother, 9.0, 580.1, 1\n")
    assert found == Gpu(name="NVIDIA RTX 6000, Ada", capability="sm89", driver="580.1",
                        memory_mib=49140)  # fmt: skip
    unknown = parse_smi("Orin (nvgpu), [N/A], [N/A], [N/A]")
    assert unknown == Gpu(name="Orin (nvgpu)")
    for text in ("", "No devices were found", "a, b"):
        assert parse_smi(text) is None


@pytest.mark.parametrize(
    ("model", "release", "expected"),
    [
        ("NVIDIA Jetson AGX Thor Developer Kit\0", "# R38 (release), REVISION: 2.0, GCID: 1",
         ("sm110", 7, "R38.2.0")),
        ("NVIDIA Jetson AGX Orin\0", "# R35 (release), REVISION: 4.1, GCID: 1",
         ("sm87", 5, "R35.4.1")),
        ("NVIDIA Jetson Orin NX\0", "", ("sm87", None, "unknown")),
    ],
)  # fmt: skip
def test_jetsons(model: str, release: str, expected: tuple[Any, ...]) -> None:
    found = jetson(model, release)
    assert found is not None
    assert (found.capability, found.jetpack, found.release) == expected
    assert jetson("Raspberry Pi 5", "") is None


def test_an_old_jetpack_is_told_to_be_updated() -> None:
    gpu = Gpu(name="NVIDIA Jetson AGX Orin", capability="sm87", jetpack=5, release="R35.4.1")
    said = "\n".join(advise(gpu, tensorrt=None, rtx=None))
    assert "JetPack 5 has TensorRT 8" in said
    assert "TensorRT is not found" in said


def test_the_machine_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpus, "_MODEL", tmp_path / "model")
    monkeypatch.setattr(gpus, "_RELEASE", tmp_path / "release")
    assert find_gpu() is None
    program.write_text("#!/bin/sh\necho 'NVIDIA H100, 9.0, 580.1, 81559'\n")
    program.chmod(0o755)
    assert find_gpu() == Gpu(
        name="NVIDIA H100", capability="sm90", driver="580.1", memory_mib=81559
    )
    program.write_text("#!/bin/sh\nexit 9\n")
    assert find_gpu() is None
    (tmp_path / "model").write_text("NVIDIA Jetson Orin Nano\0")
    own = find_gpu()
    assert own is not None
    assert own.is_jetson
