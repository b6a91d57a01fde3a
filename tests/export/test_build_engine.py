"""What build_engine.py asks of a builder, and what it refuses before anything is built."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from kdmri_edge.errors import ExportError
from kdmri_edge.runtime.bundle import open_bundle
from kdmri_export import jobs
from kdmri_export.export import export_model
from kdmri_export.recipe import ExportRecipe
from kdmri_export.targets.tensorrt import build_engine, engines
from kdmri_export.targets.tensorrt.build_engine import TIMING, main
from tests.export.networks import write_checkpoint


class Config:
    """Notes flags, and keeps a timing cache as TensorRT does."""

    def __init__(self, mismatch: bytes) -> None:
        self.flags: set[str] = set()
        self.mismatch = mismatch
        self.cache: bytes | None = None

    def set_flag(self, flag: str) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: str) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: str, limit: int) -> None:
        self.limit = limit

    def create_timing_cache(self, content: bytes) -> bytes:
        return content

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache == self.mismatch:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: (self.cache or b"") + b"+1")


def tensorrt(configs: list[Config], mismatch: bytes = b"of another GPU") -> ModuleType:
    """A builder that takes every graph."""
    network = SimpleNamespace(num_inputs=0)
    maker = SimpleNamespace(
        create_network=lambda flags: network,
        create_builder_config=lambda: configs.append(Config(mismatch)) or configs[-1],
        build_serialized_network=lambda network, config: b"engine",
    )
    trt = ModuleType("tensorrt")
    for name, value in {
        "__version__": "10.3.0",
        "Logger": type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None}),
        "Builder": lambda logger: maker,
        "OnnxParser": lambda network, logger: SimpleNamespace(parse=lambda graph: True),
        "NetworkDefinitionCreationFlag": SimpleNamespace(STRONGLY_TYPED=1),
        "BuilderFlag": SimpleNamespace(TF32="TF32", VERSION_COMPATIBLE="VERSION_COMPATIBLE"),
        "MemoryPoolType": SimpleNamespace(WORKSPACE="WORKSPACE"),
    }.items():
        setattr(trt, name, value)
    return trt


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(b"graph")
    return tmp_path


def test_the_timing_cache_is_kept_beside_the_engine(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[Config] = []
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt(configs))
    for expected in (b"+1", b"+1+1"):
        assert main(["--bundle", str(folder)]) == 0
        assert (folder / TIMING).read_bytes() == expected
    (folder / TIMING).write_bytes(b"of another GPU")
    assert main(["--bundle", str(folder)]) == 0
    assert (folder / TIMING).read_bytes() == b"+1"  # begun anew
    assert all(not config.flags for config in configs)


def test_an_engine_can_be_version_compatible(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[Config] = []
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt(configs))
    assert main(["--bundle", str(folder), "--version-compatible"]) == 0
    assert configs[0].flags == {"VERSION_COMPATIBLE"}
    assert json.loads((folder / "model.tensorrt.json").read_text())["version_compatible"] is True


@pytest.mark.nightly
def test_what_is_built_on_the_device_does_not_alter_a_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = write_checkpoint(tmp_path / "student.safetensors")
    bundle = export_model(weights, ExportRecipe(target="trt"), tmp_path / "bundle")
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt([]))
    assert main(["--bundle", str(bundle.path)]) == 0
    assert (bundle.path / TIMING).is_file()
    assert open_bundle(bundle.path).digest == bundle.digest


RTX = SimpleNamespace(
    __version__="1.7.1",
    ComputeCapability=SimpleNamespace(
        __members__=dict.fromkeys(("NONE", "CURRENT", "SM75", "SM86", "SM120"))
    ),
)


@pytest.mark.parametrize(
    ("here", "asked", "says"),
    [
        (("NVIDIA H100", "sm90"), None, "NVIDIA H100, sm90.*sm75, sm86, sm120.*--builder tensorrt"),
        (("NVIDIA H100", "sm90"), "sm86", None),  # for another machine
        (("RTX A5000", "sm86"), None, None),
        (None, None, None),  # no GPU here: TensorRT-RTX decides
        (None, "sm90", "knows no sm90: it builds for sm75, sm86, sm120"),
    ],
)
def test_a_gpu_without_kernels_is_said_before_building(
    here: tuple[str, str] | None, asked: str | None, says: str | None,
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    class ReachedError(Exception):
        pass

    def logger(level: int) -> None:
        raise ReachedError

    rtx = ModuleType("tensorrt_rtx")
    vars(rtx).update(vars(RTX), Logger=logger)
    logger.ERROR = 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)
    monkeypatch.setattr(build_engine, "gpu_here", lambda: here)
    arguments = ["--bundle", str(folder), "--builder", "rtx"]
    arguments += ["--compute-capability", asked] if asked else []
    if says is None:
        with pytest.raises(ReachedError):
            main(arguments)
    else:
        assert main(arguments) == 1
        import re

        assert re.search(says, capsys.readouterr().err)
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("here", "refused"),
    [
        (("Quadro RTX 6000", "sm75"), True),
        (("NVIDIA A100", "sm80"), False),
        (("NVIDIA RTX PRO 6000", "sm120"), False),
        (None, False),  # a Jetson, whose nvidia-smi does not tell
    ],
)
def test_a_gpu_without_bf16_is_said_before_building(
    here: tuple[str, str] | None, refused: bool, folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt([]))
    monkeypatch.setattr(build_engine, "gpu_here", lambda: here)
    (folder / "model.onnx").write_bytes(b"graph" + build_engine.WRITTEN_IN_BF16)
    assert main(["--bundle", str(folder)]) == int(refused)
    said = capsys.readouterr().err
    if refused:
        assert "bf16, which this GPU (Quadro RTX 6000, sm75) does not have" in said
        assert [path.name for path in folder.iterdir()] == ["model.onnx"]
    (folder / "model.onnx").write_bytes(b"graph")
    assert main(["--bundle", str(folder)]) == 0  # in any other precision it is built


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (["--version-compatible", "--builder", "rtx", "--compute-capability", "sm86"],
         "--builder tensorrt"),
        (["--compute-capability", "sm86"], "--builder rtx"),
    ],
)  # fmt: skip
def test_options_of_the_other_builder_are_refused(
    option: list[str], says: str, folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rtx = ModuleType("tensorrt_rtx")
    vars(rtx).update(vars(RTX))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt([]))
    assert main(["--bundle", str(folder), *option]) == 1
    assert says in capsys.readouterr().err


def test_nvidia_smi_tells_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build_engine.gpu_here() is None  # there is none
    for text, expected in (
        ("NVIDIA H100 80GB HBM3, 9.0", ("NVIDIA H100 80GB HBM3", "sm90")),
        ("NVIDIA RTX PRO 6000, Server, 12.0", ("NVIDIA RTX PRO 6000, Server", "sm120")),
        ("Orin (nvgpu), [N/A]", None),
    ):
        program.write_text(f"#!/bin/sh\necho '{text}'\n")
        program.chmod(0o755)
        assert build_engine.gpu_here() == expected


def test_an_export_is_refused_by_what_the_installed_builder_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "known_capabilities", lambda: ["sm75", "sm86"])
    weights = write_checkpoint(tmp_path / "student.safetensors")

    def planned(*names: str) -> tuple[str, ...]:
        (job,) = jobs.plan_exports(
            weights, targets=["trt"], builder="rtx", compute_capabilities=names
        )
        assert job.recipe.engines is not None
        return job.recipe.engines.compute_capabilities

    assert planned("all") == ("sm75", "sm86")
    assert planned("sm86", "all") == ("sm86", "sm75")
    with pytest.raises(ExportError, match=r"no sm90\. It builds for sm75, sm86;"):
        planned("sm86", "sm90")


@pytest.mark.skipif(engines.probe("rtx") is not None, reason="TensorRT-RTX is not installed")
def test_the_installed_builder_lists_its_gpus() -> None:
    known = engines.known_capabilities()
    assert {"sm86", "sm89", "sm120"} <= set(known)
    assert "sm90" not in known or len(known) > 6
