"""Torch-TensorRT: a network as an exported program with TensorRT inside.

`python -m kdmri_export.targets.tensorrt.torch_program CHECKPOINT FOLDER DC PRECISION`, in a process
of its own: torch_tensorrt cannot even be imported without a GPU. What data consistency means to it
says `targets.tensorrt.torch_operators`, the one place of lowering for this target. Compiling
has not run on a GPU; the tests have a stand-in for torch_tensorrt.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from kdmri_edge.errors import BackendError, KdmriError
from kdmri_edge.utils.extras import require

__all__ = ["PROGRAM", "compile_network", "compile_program", "main"]

PROGRAM = "model.torch-tensorrt.ep"


def compile_network(network: Any, x_u: Any) -> tuple[Any, Any]:
    """Compile a network, its data consistency within the engine.

    Args:
        network: A `Reconstructor`.
        x_u: Images on the device that it is for.

    Returns:
        The module torch_tensorrt, and the compiled network.

    Raises:
        BackendError: torch_tensorrt is not installed, or left data consistency to PyTorch.
    """
    import torch

    from kdmri_export.targets.tensorrt.torch_operators import kept, register

    register()
    torch_tensorrt: Any = importlib.import_module("torch_tensorrt")
    with torch.no_grad():
        program = torch.export.export(network, (x_u,), strict=False)
        compiled = torch_tensorrt.dynamo.compile(
            program, inputs=[x_u], use_explicit_typing=True, disable_tf32=True
        )
    left = kept(compiled)
    if left:
        raise BackendError(
            f"torch_tensorrt {torch_tensorrt.__version__} left data consistency to PyTorch"
            f" (node {left[0]!r}).",
            "Use --builder tensorrt, or torch_tensorrt 2.8 to 2.13.",
        )
    return torch_tensorrt, compiled


def compile_program(checkpoint: Path, folder: Path, dc: str, precision: str) -> dict[str, Any]:
    """Compile a network for the GPU of this machine and save it as an exported program.

    Args:
        checkpoint: The .safetensors file.
        folder: Where the program goes.
        dc: Form of data consistency, as for `choose_form`.
        precision: Of the convolutions: "f32" or "f16".

    Returns:
        A record like that of build_engine.py; the program has been run once on random images, and
        compared with PyTorch on the same GPU.

    Raises:
        BackendError: There is no GPU, torch_tensorrt is not installed, or the program gives another
            image than PyTorch.
        MissingExtraError: torch is not installed.
    """
    torch: Any = require("torch", extra="train")
    if not torch.cuda.is_available():
        raise BackendError("Torch-TensorRT needs an NVIDIA GPU.", "Build it on the device.")
    from kdmri_edge.models.checkpoint import load_reconstructor, read_checkpoint_meta
    from kdmri_edge.physics.masks import Mask
    from kdmri_edge.physics.operators import choose_form
    from kdmri_edge.runtime.deviation import compare, tolerance_for
    from kdmri_export.passes.cast import DTYPES, cast_convolutions

    meta = read_checkpoint_meta(checkpoint)
    form = choose_form(Mask.from_dict(meta["mask"]), dc)
    network = load_reconstructor(checkpoint, form)
    if precision in DTYPES:
        cast_convolutions(network, precision)
    size = int(meta["matrix"])
    torch.manual_seed(0)
    x_u = torch.rand(1, network.spec.channels, size, size, device="cuda")
    network = network.cuda().eval()
    torch_tensorrt, compiled = compile_network(network, x_u)
    with torch.no_grad():
        reference = network(x_u)
        figures = compare(compiled(x_u).cpu().numpy(), reference.cpu().numpy())
    if figures.exceeded(tolerance_for(precision, form)[1]):
        raise BackendError(
            f"The program gives another image than PyTorch (max error {figures.max_error:.2g}).",
            "Report the versions of torch and torch_tensorrt.",
        )
    place = folder / PROGRAM
    torch_tensorrt.save(compiled, str(place), output_format="exported_program", inputs=[x_u])
    return {
        "engine": place.name,
        "bytes": place.stat().st_size,
        "sha256": hashlib.sha256(place.read_bytes()).hexdigest(),
        "builder": "torch_tensorrt",
        "version": torch_tensorrt.__version__,
        "device": torch.cuda.get_device_name(),
        "tf32": False,
        "engine_built": True,
        "engine_executed": True,
        "max_error": figures.max_error,
    }


def main(arguments: list[str]) -> int:
    """Compile, and print the record as JSON; return 1 after one sentence if that fails."""
    checkpoint, folder, dc, precision = arguments
    try:
        print(json.dumps(compile_program(Path(checkpoint), Path(folder), dc, precision)))
    except KdmriError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
