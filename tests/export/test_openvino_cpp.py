"""The C++ example: built with the machine's compiler, it reproduces the golden output."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from kdmri_edge.runtime.bundle import GOLDEN_OUTPUT
from kdmri_edge.utils.extras import require
from kdmri_export.export import export_model
from kdmri_export.recipe import ExportRecipe
from tests.export.networks import write_checkpoint

EXAMPLE = Path(__file__).resolve().parents[2] / "export" / "examples" / "openvino_cpp"
TOOLS = ("cmake", "g++", "make")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)} on this machine")


def done(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = tmp_path_factory.mktemp("build")
    place = Path(str(require("openvino", extra="openvino").__file__)).parent / "cmake"
    made = done("cmake", "-S", EXAMPLE, "-B", build, f"-DOpenVINO_DIR={place}")
    assert made.returncode == 0, made.stderr
    made = done("cmake", "--build", build)
    assert made.returncode == 0, made.stdout + made.stderr
    return build / "reconstruct"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    checkpoint = write_checkpoint(tmp_path / "student.safetensors")
    return export_model(checkpoint, ExportRecipe(target="openvino"), tmp_path / "bundle").path


@pytest.mark.nightly
def test_golden_output_is_reproduced(program: Path, bundle: Path) -> None:
    ran = done(program, bundle)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["max_error"] < 1e-5


@pytest.mark.nightly
def test_another_image_is_an_error(program: Path, bundle: Path) -> None:
    wrong = np.load(bundle / GOLDEN_OUTPUT)
    np.save(bundle / GOLDEN_OUTPUT, wrong + np.float32(0.1 * np.ptp(wrong)))
    ran = done(program, bundle)
    assert ran.returncode == 1
    assert ran.stderr.startswith("Error: ")


def test_mistakes_are_sentences(program: Path, tmp_path: Path) -> None:
    assert done(program).returncode == 2
    ran = done(program, tmp_path)
    assert ran.returncode == 1
    assert "golden_input.npy" in ran.stderr
