"""Programs of torch.export, what AOTInductor compiles of them, and who may load them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from kdmri_edge.cli import main
from kdmri_edge.errors import BackendError, BundleError, ExportError, ModelError
from kdmri_edge.models.permission import allow_program, is_program, keep_program, permitted_program
from kdmri_edge.runtime.backends import pt2
from kdmri_edge.runtime.backends.pt2 import Pt2Session, package_of
from kdmri_edge.runtime.bundle import GOLDEN_INPUT, GOLDEN_OUTPUT, Bundle, write_manifest
from kdmri_edge.runtime.session import open_session, reconstruct
from kdmri_edge.runtime.verify import verify_bundle
from kdmri_edge.utils.files import sha256_file
from kdmri_export.export import export_model
from kdmri_export.recipe import ExportRecipe
from tests.export.networks import spec, write_checkpoint
from tests.export.parity_cases import EVERY_TIME, GRAPH, ParityCases

EXAMPLE = Path(__file__).resolve().parents[2] / "export" / "examples" / "pt2_cpp"
COMPILER = shutil.which("g++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no g++ on this machine")


class TestPt2(ParityCases):
    """The program itself; what is compiled of it has the class below."""

    target = "pt2"
    options: ClassVar[Mapping[str, Any]] = {"compiled": False}
    # A program runs the operators that TorchScript runs, which has all of them for every change.
    at_night: ClassVar[Mapping[str, Collection[str]]] = {
        GRAPH: set(EVERY_TIME) - {"magnitude", "sense, few lines, odd"}
    }

    def test_damaged_program_is_refused(self, tmp_path: Path) -> None:
        place = tmp_path / "model.pt2"
        place.write_bytes(b"PK but no archive")
        keep_program(place)
        with pytest.raises(BundleError, match=r"model\.pt2 cannot be loaded"):
            Pt2Session(place)

    def test_call_stacks_stay_at_home(self, tmp_path: Path) -> None:
        _, graph = self.write("magnitude", tmp_path)
        with zipfile.ZipFile(graph) as archive:
            for name in archive.namelist():
                assert b"site-packages" not in archive.read(name), name
                assert b"kdmri_edge/" not in archive.read(name), name

    def test_says_that_the_program_ran(self, tmp_path: Path) -> None:
        _, graph = self.write("magnitude", tmp_path)
        assert self.open(graph).info.provider == "exported program (not compiled)"


@needs_compiler
@pytest.mark.nightly  # a compiler works for most of a minute on each
class TestCompiled(ParityCases):
    target = "pt2"

    def test_says_that_the_package_ran(self, tmp_path: Path) -> None:
        _, graph = self.write("magnitude", tmp_path)
        assert self.open(graph).info.provider.startswith("AOTInductor, ")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One that is compiled: for half a minute, so that what needs it waits for the night."""
    if COMPILER is None:
        pytest.skip("no g++ on this machine")
    folder = tmp_path_factory.mktemp("pt2")
    checkpoint = write_checkpoint(folder / "student.safetensors", spec(cascades=1))
    return export_model(checkpoint, ExportRecipe(target="pt2"), folder / "bundle")


@pytest.mark.nightly
def test_what_was_compiled_runs_and_says_so(bundle: Bundle) -> None:
    package = package_of(bundle.graph)
    assert package.name in bundle.manifest["files"]
    assert bundle.manifest["parity"]["ran"].startswith("torch.export 2.")
    assert "AOTInductor" in bundle.manifest["parity"]["ran"]
    session = open_session(bundle.path, threads=1)
    given, wanted = (np.load(bundle.path / name) for name in (GOLDEN_INPUT, GOLDEN_OUTPUT))
    np.testing.assert_allclose(session.run(given), wanted, atol=1e-5)
    with pytest.raises(BackendError, match="matrix"):
        session.run(given[..., :-1])
    with pytest.raises(BackendError, match="matrix"):
        session.run(np.concatenate((given, given)))
    (row,) = verify_bundle(bundle.path)["rows"]
    assert row["status"] == "passed"


@pytest.mark.nightly
def test_nothing_of_this_machine_is_in_the_package(bundle: Bundle) -> None:
    with zipfile.ZipFile(package_of(bundle.graph)) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            for path in (str(Path(torch.__file__).parents[2]), str(Path.home()), "/tmp/"):
                assert path.encode() not in content, (name, path)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (pt2.MADE_WITH, "2.11.0", "compiled with PyTorch 2.11.0"),
        (pt2.MADE_FOR, "Neoverse-N1", "compiled for Neoverse-N1"),
    ],
)
def test_a_package_of_another_machine_is_left_alone_and_that_is_said(
    bundle: Bundle, key: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = pt2._metadata
    monkeypatch.setattr(pt2, "_metadata", lambda package: {**read(package), key: value})
    session = Pt2Session(bundle.graph, threads=1)
    assert session.info.provider.startswith("exported program (")
    assert said in session.info.provider
    given, wanted = (np.load(bundle.path / name) for name in (GOLDEN_INPUT, GOLDEN_OUTPUT))
    np.testing.assert_allclose(session.run(given), wanted, atol=1e-5)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that is not compiled."""
    folder = tmp_path_factory.mktemp("pt2")
    checkpoint = write_checkpoint(folder / "student.safetensors")
    return export_model(checkpoint, ExportRecipe(target="pt2", compiled=False), folder / "bundle")


class TestPermission:
    @pytest.fixture(autouse=True)
    def elsewhere(self, program: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Go on as another machine, which was sent the bundle."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))

    def test_a_program_from_elsewhere_is_not_loaded(
        self, program: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded: list[object] = []
        monkeypatch.setattr(torch.export, "load", loaded.append)
        monkeypatch.setattr(torch._inductor, "aoti_load_package", loaded.append)
        with pytest.raises(ModelError, match=r"model\.pt2 .* holds code") as caught:
            open_session(program.path)
        assert f"--code '{program.path}'" in caught.value.remedy
        with pytest.raises(ModelError):
            verify_bundle(program.path)
        assert not loaded

    def test_what_is_allowed_is_loaded(self, program: Bundle) -> None:
        done = CliRunner().invoke(main, ["--code", str(program.path), "verify", str(program.path)])
        assert done.exit_code == 0, done.output
        assert verify_bundle(program.path)["passed"]  # and stays allowed

    def test_the_program_alone_does_not_allow_what_lies_beside_it(
        self, program: Bundle, tmp_path: Path
    ) -> None:
        copied = tmp_path / "bundle"
        shutil.copytree(program.path, copied)
        package_of(copied / "model.pt2").write_bytes(b"machine code")
        write_manifest(copied, program.manifest)
        allow_program(copied / "model.pt2")
        permitted_program(copied / "model.pt2")
        with pytest.raises(ModelError, match="aotinductor"):
            open_session(copied)
        allow_program(copied)  # all that is in the folder
        with pytest.raises(BundleError, match=r"aotinductor\.pt2 cannot be loaded"):
            open_session(copied)

    @pytest.mark.parametrize(
        ("give", "said"),
        [
            (lambda x: (x, x), "gives a tuple, not an image"),
            (lambda x: x[..., :4, :4], r"gives \[1, 1, 4, 4\] in float32"),
            (lambda x: torch.complex(x, x), "in complex64"),
        ],
    )
    def test_a_program_of_something_else(
        self, give: Callable[[torch.Tensor], object], said: str, tmp_path: Path
    ) -> None:
        class Other(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> object:
                return give(x)

        place = tmp_path / "model.pt2"
        torch.export.save(torch.export.export(Other(), (torch.ones(1, 1, 8, 8),)), place)
        allow_program(place)
        with Pt2Session(place) as session, pytest.raises(BackendError, match=said):
            reconstruct(session, np.ones((1, 8, 8), np.float32))

    @pytest.mark.parametrize("shapes", ["5", "null", "[1, 2]", '[["a"]]', "[[1, null]"])
    def test_shapes_that_a_package_does_not_say(self, shapes: str) -> None:
        with pytest.raises(ValueError, match=r"shape|delimiter"):
            pt2._shapes(shapes)
        assert pt2._shapes("[[1, null]]") == [[1, None]]

    def test_another_content_is_another_program(self, tmp_path: Path) -> None:
        place = tmp_path / "model.pt2"
        place.write_bytes(b"one")
        keep_program(place)
        permitted_program(place)
        place.write_bytes(b"two")
        with pytest.raises(ModelError, match=sha256_file(place)[:12]):
            permitted_program(place)
        with pytest.raises(BundleError, match="does not exist"):
            permitted_program(tmp_path / "none.pt2")

    def test_what_is_no_program(self, tmp_path: Path) -> None:
        assert not is_program("own.py:Net")
        assert not is_program(str(tmp_path))
        assert is_program("somewhere/model.pt2")
        with pytest.raises(ModelError, match="holds none"):
            allow_program(tmp_path)
        error = CliRunner().invoke(main, ["--code", "none.pt2", "models"]).exception
        assert isinstance(error, ModelError)


def test_int8_is_refused_with_the_reason() -> None:
    with pytest.raises(ExportError, match="torchao"):
        ExportRecipe(target="pt2", precision="int8")


@pytest.mark.nightly  # in a process of its own
def test_without_a_compiler_the_program_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from kdmri_export.export import export_model\n"
        "from kdmri_export.recipe import ExportRecipe\n"
        "given, out = map(Path, sys.argv[1:])\n"
        "bundle = export_model(given, ExportRecipe(target='pt2'), out)\n"
        "print(bundle.manifest['parity']['ran'])\n"
    )
    checkpoint = write_checkpoint(tmp_path / "student.safetensors")
    done = subprocess.run(  # which compiler there is is found once in a process
        [sys.executable, "-c", code, str(checkpoint), str(tmp_path / "bundle")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Not compiled by AOTInductor" in done.stderr
    assert "exported program (not compiled)" in done.stdout
    assert not package_of(tmp_path / "bundle" / "model.pt2").exists()


@pytest.mark.nightly  # compiled against all of libtorch's headers
@pytest.mark.skipif(
    not all(map(shutil.which, ("cmake", "g++"))), reason="no cmake or g++ on this machine"
)
def test_loads_from_cpp(bundle: Bundle, tmp_path: Path) -> None:
    build, prefix = tmp_path / "build", torch.utils.cmake_prefix_path
    for command in (
        ["cmake", "-S", EXAMPLE, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}"],
        ["cmake", "--build", build],
    ):
        made = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stdout + made.stderr

    def ran(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(build / "reconstruct"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = ran(bundle.path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["max_error"] < 1e-5
    assert ran().returncode == 2
    other = tmp_path / "other"
    shutil.copytree(bundle.path, other)
    np.save(other / GOLDEN_INPUT, np.zeros((1, 1, 8, 8), np.float32))
    assert "another shape" in ran(other).stderr
