"""TorchScript graphs, from Python without this project and from C++."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import kdmri_edge as ke
from kdmri_edge.errors import BundleError, ModelError
from kdmri_edge.models.permission import keep_program
from kdmri_edge.runtime.backends.torchscript import TorchScriptSession
from kdmri_edge.runtime.bundle import GOLDEN_INPUT, GOLDEN_OUTPUT, Bundle
from kdmri_edge.runtime.graphs.torchscript import refused
from kdmri_edge.runtime.verify import verify_bundle
from kdmri_export.export import export_model
from kdmri_export.recipe import ExportRecipe
from tests.export.networks import MATRIX, lines, write_checkpoint
from tests.export.parity_cases import ParityCases

# -I keeps the checkout off the path; the import hook makes sure of it.
CLEAN = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("kdmri"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import numpy, torch
model = torch.jit.load(sys.argv[1])
given, expected = (torch.from_numpy(numpy.load(f)) for f in sys.argv[2:])
print(float((model(given) - expected).abs().max()))
"""


@pytest.fixture(scope="module", params=["f32", "int8"])
def bundle(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Bundle:
    folder = tmp_path_factory.mktemp("torchscript")
    checkpoint = write_checkpoint(folder / "student.safetensors")
    recipe = ExportRecipe(target="torchscript", precision=request.param)
    return export_model(checkpoint, recipe, folder / "bundle")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on this machine")
    home = Path(torch.__file__).parent
    program = tmp_path_factory.mktemp("cpp") / "run"
    command = [
        compiler, "-std=c++20", "-O0", str(Path(__file__).with_name("libtorch_main.cpp")),
        f"-I{home / 'include'}", f"-I{home / 'include/torch/csrc/api/include'}",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        f"-L{home / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{home / 'lib'}",
        "-o", str(program),
    ]  # fmt: skip
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-2000:]
    return program


def _allowed(bundle: Bundle) -> float:
    """What others than this project may deviate by from the golden output."""
    if bundle.written == "f32":
        return 1e-5
    return 0.1 * float(np.ptp(np.load(bundle.path / GOLDEN_OUTPUT)))


class TestTorchScript(ParityCases):
    target = "torchscript"
    in_float = ("U-Net",)  # its kernels put out integers alone, and every convolution is normalised

    def test_damaged_graph_is_refused(self, tmp_path: Path) -> None:
        place = tmp_path / "model.pt"
        place.write_bytes(b"PK but no archive of TorchScript")
        with pytest.raises(ModelError, match="is no plain TorchScript archive"):
            TorchScriptSession(place)
        keep_program(place)  # allowed by its user, it is damaged all the same
        with pytest.raises(BundleError, match=r"model\.pt"):
            TorchScriptSession(place)

    def test_call_stacks_stay_at_home(self, tmp_path: Path) -> None:
        _, graph = self.write("magnitude", tmp_path)
        with zipfile.ZipFile(graph) as archive:
            for name in archive.namelist():
                assert b"site-packages" not in archive.read(name), name


class Newer(nn.Module):
    """One with an operator for which libtorch writes archives of a newer format."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + nn.functional.gelu(self.conv(x))


def test_archives_of_newer_operators_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version of the format stands in another place of them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = ke.export(Newer(), target="torchscript", for_mask=lines(), out=tmp_path / "bundle")
    with zipfile.ZipFile(made.graph) as archive:
        assert any(name.endswith("/.data/version") for name in archive.namelist())
    assert refused(made.graph) is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another user's"))
    assert verify_bundle(made.path)


def test_loads_in_python_with_torch_alone(bundle: Bundle) -> None:
    files = [str(bundle.path / name) for name in ("model.pt", GOLDEN_INPUT, GOLDEN_OUTPUT)]
    done = subprocess.run(
        [sys.executable, "-I", "-c", CLEAN, *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < _allowed(bundle)


@pytest.mark.nightly  # compiled against all of libtorch's headers
def test_loads_from_cpp(bundle: Bundle, program: Path, tmp_path: Path) -> None:
    arguments = [str(program), str(bundle.graph)]
    for name in (GOLDEN_INPUT, GOLDEN_OUTPUT):
        raw = tmp_path / f"{name}.raw"
        np.load(bundle.path / name).tofile(raw)
        arguments.append(str(raw))
    shape = [str(n) for n in (1, MATRIX, MATRIX)]
    done = subprocess.run([*arguments, *shape], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < _allowed(bundle)


def test_kernels_of_integers_are_chosen_for_the_graph_alone(bundle: Bundle) -> None:
    before = torch.backends.quantized.engine
    provider = TorchScriptSession(bundle.graph, precision=bundle.written).info.provider
    assert torch.backends.quantized.engine == before
    assert provider.startswith("libtorch")
    assert ("integers" in provider) == (bundle.written == "int8")
