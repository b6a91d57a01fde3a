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
from importlib import metadata
from pathlib import Path
from typing import Any

from kdmri_edge.errors import BackendError, KdmriError
from kdmri_edge.utils.console import printable
from kdmri_edge.utils.extras import require

__all__ = ["PROGRAM", "Compiled", "compile_network", "compile_program", "main"]

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


class Compiled:
    """A network that Torch-TensorRT compiles at the first images of each shape.

    Args:
        network: A `Reconstructor` on the GPU; its convolutions are cast in place.
        precision: Of the convolutions: "f32", "f16" or "bf16".

    Attributes:
        build: The installed package and its version; the same module comes in a build for TensorRT
            and in one for TensorRT-RTX.

    Raises:
        BackendError: The network takes coil sensitivities or k-space, of which engines hold none.
    """

    def __init__(self, network: Any, precision: str) -> None:
        from kdmri_edge.models.protocol import InputKind
        from kdmri_export.passes.cast import DTYPES, cast_convolutions

        if network.spec.reads in (InputKind.SENSE, InputKind.KSPACE):
            raise BackendError(
                "Torch-TensorRT is offered for networks of one image alone.",
                "Use mode graph or eager.",
            )
        if precision in DTYPES:
            cast_convolutions(network, precision)
        self.build = _installed_build()
        self._network = network
        self._programs: dict[tuple[int, ...], Any] = {}

    def __call__(self, images: Any, operator: Any = None) -> Any:
        """Return the network's images for `images`, [B, C, H, W].

        Raises:
            BackendError: An operator is given, where engines hold that of their mask; or see
                `compile_network`.
        """
        if operator is not None:
            raise BackendError(
                "An engine of Torch-TensorRT holds its mask.", "Use mode graph for other masks."
            )
        shape = tuple(images.shape)
        if shape not in self._programs:
            _, self._programs[shape] = compile_network(self._network, images)
        return self._programs[shape](images)


def _installed_build() -> str:
    """Return package and version of the module torch_tensorrt."""
    packages = metadata.packages_distributions().get("torch_tensorrt", ["torch_tensorrt"])
    version = getattr(importlib.import_module("torch_tensorrt"), "__version__", "?")
    return f"{packages[0]} {version}"


def compile_program(checkpoint: Path, folder: Path, dc: str, precision: str) -> dict[str, Any]:
    """Compile a network for the GPU of this machine and save it as an exported program.

    Args:
        checkpoint: The .safetensors file.
        folder: Where the program goes.
        dc: Form of data consistency, as for `choose_form`.
        precision: Of the convolutions: "f32", "f16" or "bf16".

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
        print(f"Error: {printable(str(error))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
