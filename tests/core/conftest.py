"""Fixtures of the core's tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from kdmri_edge import cli as command_line

ROOT = Path(__file__).resolve().parents[2]

# A distillation of seconds: 32 x 32 phantoms, a few steps per stage.
TINY = (
    "--matrix=32",
    "--acceleration=2",
    "--threads=1",
    "--accelerator=cpu",
    *(
        f"--set={assignment}"
        for assignment in (
            "teacher_steps=8",
            "attention_steps=6",
            "imitation_steps=6",
            "batches.size=4",
            "batches.strip=16",
            "optim.warmup=2",
            "phantom_volumes=3",
            "phantom_slices=3",
            "validate_every=2",
            "checkpoint_every=2",
            "precision=f32",
        )
    ),
)


_PROGRESS = re.compile(r".+: (\d+ of \d+|\d+ so far)(, .+)?\.|.+ \.\.\.")


@dataclass(frozen=True)
class Outcome:
    """What a command left on the screen."""

    code: int
    out: str
    err: str

    def check_refusal(self, *parts: str) -> None:
        """Assert one sentence (with its remedy) on standard error, exit 1, no traceback.

        Progress before it, which a machine shows that takes over two seconds, is passed by.
        """
        assert self.code == 1, self.err
        assert "Traceback" not in self.err
        said = self.err.strip().splitlines()
        lines = [line for line in said if not _PROGRESS.fullmatch(line)]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("Error: ")
        assert lines[0].endswith((".", "?", '"'))  # the last: a command to type
        for part in parts:
            assert part in lines[0]
        assert self.out == ""


@pytest.fixture
def tiny() -> tuple[str, ...]:
    """Options of `distill` that make it a matter of seconds."""
    return TINY


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Run the command line in this process, through its own error guard."""
    from kdmri_edge.utils import console

    def run(*arguments: object) -> Outcome:
        console.get_console.cache_clear()  # it would hold on to another test's standard error
        monkeypatch.setattr(sys, "argv", ["kdmri-edge", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            command_line.run()
        shown = capsys.readouterr()
        console.get_console.cache_clear()
        assert isinstance(stopped.value.code, int)
        return Outcome(stopped.value.code, shown.out, shown.err)

    return run


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start `python -m ...` as a user would, with one thread."""
    import torch

    threads = torch.get_num_threads()

    def begin(module: Sequence[object], **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", *map(str, module)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    yield begin
    torch.set_num_threads(threads)


@pytest.fixture
def brains(tmp_path: Path) -> Path:
    """A folder of three small volumes of three subjects."""
    folder = tmp_path / "brains"
    folder.mkdir()
    from kdmri_edge.data.phantom.volumes import phantom_volume

    for index in range(3):
        image = phantom_volume(5, slices=3, matrix=32, index=index).image
        np.save(folder / f"sub-{index:02d}_T1w.npy", image)
    return folder


@pytest.fixture(scope="session")
def tiny_bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """ONNX bundles of untrained networks, 32 x 32, by what they read."""
    from kdmri_export.export import export_model
    from kdmri_export.recipe import ExportRecipe
    from tests.export.networks import spec, write_checkpoint

    folder = tmp_path_factory.mktemp("bundles")
    made = {}
    for name, architecture, asked in (
        ("magnitude", spec(), {}),
        ("complex", spec(channels=2), {}),
        ("any-mask", spec(), {"mask_input": True}),
        ("any-matrix", spec(), {"any_matrix": True}),
    ):
        weights = write_checkpoint(folder / f"{name}.safetensors", architecture)
        recipe = ExportRecipe(target="onnx", **asked)
        made[name] = export_model(weights, recipe, folder / name).path
    return made
