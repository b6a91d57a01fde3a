"""The fused kernel, by Triton's interpreter on the CPU, against PyTorch's convolutions."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdmri_edge.errors import BackendError, MissingExtraError
from kdmri_edge.models import PRESETS
from kdmri_edge.runtime.session import open_session
from kdmri_edge.utils.extras import available
from tests.export.networks import write_checkpoint

TRITON = available("triton")
needs_triton = pytest.mark.skipif(not TRITON, reason="Triton is not installed")

# The interpreter is chosen when Triton is imported, so that a process of its own has to be.
STACKS = """
import sys
import torch
from kdmri_edge.models import PRESETS, build_model
from kdmri_edge.models.blocks import ConvStack
from kdmri_edge.runtime.backends.fused import LIMITS, FusedStack

torch.set_num_threads(1)
torch.manual_seed(0)
height, width = map(int, sys.argv[2].split("x"))
kept = LIMITS if len(sys.argv) < 4 else {torch.float16: LIMITS[torch.float16]}
for name in sys.argv[1].split(","):
    network = build_model(PRESETS[name])
    stacks = [one for one in network.modules() if isinstance(one, ConvStack)]
    # The first reads the image alone, the others what is carried, too.
    for stack in stacks[: len(kept)]:
        x = torch.randn(2, stack.convs[0].in_channels, height, width)
        for dtype, limit in kept.items():
            with torch.inference_mode():
                wanted, made = stack(x)[0], FusedStack(stack, dtype)(x)[0]
            error = float((made - wanted).abs().max() / (wanted.max() - wanted.min()))
            assert made.shape == wanted.shape
            assert 0 < error < limit, (name, dtype, error)
"""

COMPILED = """
import sys
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kdmri_edge.runtime.backends.fused import _stack

half = getattr(tl, sys.argv[2])
constants = dict(FIRST=1, LAST=1, GATHERED=16, INNER=32, WRITTEN=16, LAYERS=3, TILE=16, HALO=3,
                 BLOCK=64, HALF=half, PRODUCT=half)
short = {"float16": "*fp16", "bfloat16": "*bf16"}[sys.argv[2]]
kinds = dict(x="*fp32", out="*fp32", work=short, weights=short, biases="*fp32", dilations="*i32",
             height="i32", width="i32", across="i32") | dict.fromkeys(constants, "constexpr")
places = {(_stack.arg_names.index(name),): value for name, value in constants.items()}
source = ASTSource(fn=_stack, signature=kinds, constexprs=places)
made = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32))
assert made.asm["cubin"]
assert "mma" in made.asm["ptx"]
"""

SESSION = """
import sys
from pathlib import Path
import numpy as np
from kdmri_edge.runtime.session import open_session

x = np.random.default_rng(0).random((1, 1, 32, 32), np.float32)
exact = open_session(Path(sys.argv[1]), threads=1).run(x)
for precision, limit in (("fp16", 1e-2), ("bf16", 3e-2)):
    session = open_session(
        Path(sys.argv[1]), threads=1, backend="cuda", precision=precision, device="cpu"
    )
    error = np.abs(session.run(x) - exact).max() / np.ptp(exact)
    assert 0 < error < limit, error
    assert "kernels, float32 data consistency" in session.info.precision_executed
    assert "fused kernels" in session.info.provider
usual = open_session(Path(sys.argv[1]), threads=1, backend="cuda", device="cpu")
assert usual.info.precision_requested == "f16"
"""

WRONG = """
import pytest, torch
from kdmri_edge.errors import BackendError
from kdmri_edge.models import PRESETS, build_model
from kdmri_edge.runtime.backends import fused

network = build_model(PRESETS["dccnn-d3c5"])
usual = fused.FusedStack._biases
fused.FusedStack._biases = lambda self, convs: usual(self, convs) + 0.5
with pytest.raises(BackendError, match="cascades.0 gives other values than PyTorch"):
    fused.fuse(network, torch.float16)
with pytest.raises(BackendError, match="no stack"):
    fused.fuse(torch.nn.Linear(2, 2), torch.float16)
stack = network.cascades[0]
stack.convs[1] = torch.nn.Conv2d(32, 32, 5, padding=2)
with pytest.raises(BackendError, match="3 x 3"):
    fused.FusedStack(stack, torch.float16)
"""


def interpreted(code: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{code}", *arguments],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@needs_triton
def test_the_kernel_gives_what_pytorch_gives() -> None:
    interpreted(STACKS, "dccnn-d3c5", "3x17", "quick")


@needs_triton
@pytest.mark.nightly
@pytest.mark.parametrize("name", PRESETS)
def test_of_every_preset(name: str) -> None:
    interpreted(STACKS, name, "9x17")


@needs_triton
@pytest.mark.nightly
@pytest.mark.parametrize("size", ["17x33", "16x16", "1x40"])
def test_at_odd_sizes(size: str) -> None:
    interpreted(STACKS, "dccnn-edge", size)


@needs_triton
@pytest.mark.nightly
def test_a_network_is_run_by_it(tmp_path: Path) -> None:
    interpreted(SESSION, str(write_checkpoint(tmp_path / "student.safetensors")))


@needs_triton
@pytest.mark.nightly
def test_other_values_and_other_networks_are_refused() -> None:
    interpreted(WRONG)


@pytest.mark.nightly
@needs_triton
@pytest.mark.parametrize(("capability", "half"), [("80", "bfloat16"), ("90", "float16")])
def test_it_compiles_for_a_gpu_that_is_not_there(capability: str, half: str) -> None:
    """For its matrix units, by the assembler that Triton brings; the interpreter takes more."""
    environment = {**os.environ, "TRITON_DEFAULT_FP_FUSION": "1"}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", COMPILED, capability, half],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_without_a_gpu_or_triton_it_is_refused(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "student.safetensors")
    expected = BackendError if TRITON else MissingExtraError
    with pytest.raises(expected, match=r"CUDA devices alone|kdmri-edge\[gpu\]"):
        open_session(checkpoint, backend="cuda", device="cpu")


def test_it_runs_checkpoints_alone(
    cli: Callable[..., Any], tiny_bundles: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path / "student.safetensors")
    bundle = next(iter(tiny_bundles.values()))
    with pytest.raises(BackendError, match=r"not on 'cuda'\. .*makes its kernels of a checkpoint"):
        open_session(bundle, backend="cuda")
    np.save(tmp_path / "x.npy", np.ones((32, 32), np.complex64))
    scan, out = str(tmp_path / "x.npy"), str(tmp_path / "y.npy")
    done = cli("run", str(checkpoint), scan, "-o", out, "--backend", "cuda", "--device", "cpu")
    done.check_refusal("CUDA devices alone" if TRITON else "kdmri-edge[gpu]")
