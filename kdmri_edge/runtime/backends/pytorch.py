"""A checkpoint in PyTorch: eager, compiled, as a CUDA graph, or by Torch-TensorRT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdmri_edge.errors import BackendError
from kdmri_edge.models.blocks import channels_last
from kdmri_edge.models.checkpoint import load_reconstructor
from kdmri_edge.models.protocol import InputKind
from kdmri_edge.physics.operators import Form
from kdmri_edge.runtime.session import Array, Session, SessionInfo, check_precision
from kdmri_edge.runtime.targets import as_users_write
from kdmri_edge.utils.cuda import no_cuda
from kdmri_edge.utils.extras import load_attribute, require, require_torch_tensorrt

__all__ = ["CudaGraph", "EagerSession", "FusedSession", "check_torch_tensorrt"]

_WARM_UP = 3  # cuDNN and the allocator settle before the recording, as PyTorch's notes ask


_Recorded = tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]


class CudaGraph:
    """A function of one CUDA tensor, recorded at the first call with each shape.

    Args:
        function: What is recorded; its output lies where it lay before after each replay.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._recorded: dict[tuple[torch.Size, ...], _Recorded] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the output for `inputs`, valid until the next call."""
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in self._recorded:
            self._recorded[shapes] = self._record([tensor.clone() for tensor in inputs])
        graph, given, output = self._recorded[shapes]
        for own, tensor in zip(given, inputs, strict=True):
            own.copy_(tensor)
        graph.replay()
        return output

    def _record(self, given: list[Tensor]) -> _Recorded:
        aside: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                self._function(*given)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self._function(*given)
        return graph, given, output


_LAYOUTS = {"default": torch.contiguous_format, "channels_last": torch.channels_last}
_MODES = {
    "eager": "eager",
    "compile": "torch.compile",
    "graph": "CUDA graph",
    "fused": "fused kernels (Triton), CUDA graph",
    "torch-tensorrt": "Torch-TensorRT",
}
_COMPILED = "kdmri_export.targets.tensorrt.torch_program:Compiled"
_DEVICES = ("cpu", "cuda")
_HALVES = {"bf16": torch.bfloat16, "f16": torch.float16}


def _one_of(value: str, offered: tuple[str, ...], what: str) -> None:
    if value not in offered:
        raise BackendError(f"There is no {what} {value!r}.", f"Use {' or '.join(offered)}.")


def _check_fused(device: str, precision: str) -> None:
    """Refuse fused kernels where they do not run.

    Raises:
        BackendError: No CUDA device and no interpreter, or a precision that is no half.
        MissingExtraError: Triton is not installed.
    """
    triton = require("triton", extra="gpu")
    if device != "cuda" and not triton.knobs.runtime.interpret:
        raise BackendError("Fused kernels run on CUDA devices alone.", "Use mode eager.")
    if precision not in _HALVES:
        raise BackendError("Fused kernels compute in fp16 or bf16.", "Name --precision fp16.")


def check_torch_tensorrt(device: str) -> None:
    """Refuse Torch-TensorRT where it does not run.

    Raises:
        BackendError: No CUDA device, or Torch-TensorRT is not installed.
    """
    if device != "cuda":
        raise BackendError("Torch-TensorRT runs on CUDA devices alone.", "Use mode eager.")
    require_torch_tensorrt()


class EagerSession(Session):
    """PyTorch on the CPU or on a CUDA device.

    Float32 on CUDA is float32: TF32 is off, for it would round what data consistency holds exact.

    Args:
        checkpoint: The .safetensors file.
        precision: "f32", or "bf16", on CUDA also "f16", for autocast with data consistency in
            float32.
        threads: CPU threads.
        layout: Memory layout of the convolutions: "channels_last" or "default".
        form: Form of data consistency; None picks by the mask.
        device: "cpu" or "cuda".
        mode: "eager", "compile" (torch.compile, at the first query), or, on CUDA, "graph" (the
            kernels are recorded once and replayed), "fused" (the convolutions of a cascade are
            one kernel, in halves; see `runtime.backends.fused`; recorded, too) or "torch-tensorrt"
            (compiled by Torch-TensorRT, in either of its builds, at the first query).

    Raises:
        BackendError: Unknown precision, layout, device or mode; a CPU without bf16; no CUDA device.
    """

    def __init__(
        self,
        checkpoint: Path,
        *,
        precision: str = "f32",
        threads: int | None = None,
        layout: str = "channels_last",
        form: Form | None = None,
        device: str = "cpu",
        mode: str = "eager",
    ) -> None:
        check_precision(precision, ("f32", *_HALVES), "PyTorch")
        _one_of(layout, tuple(_LAYOUTS), "layout")
        _one_of(device, _DEVICES, "device")
        _one_of(mode, tuple(_MODES), "mode")
        if device == "cuda" and not torch.cuda.is_available():
            raise no_cuda("Or use the CPU.")
        if mode == "graph" and device != "cuda":
            raise BackendError("CUDA graphs run on CUDA devices alone.", "Use mode eager.")
        if mode == "fused":
            _check_fused(device, precision)
        if mode == "torch-tensorrt":
            check_torch_tensorrt(device)
        on_cpu = device == "cpu" and mode != "fused"
        if on_cpu and precision not in self.precisions_here():
            name = as_users_write(precision)
            raise BackendError(f"This CPU has no {name} convolutions.", "Run it in fp32.")
        if threads is not None:
            torch.set_num_threads(threads)
        if device == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        self._device, self._mode, self._layout = device, mode, layout
        self._format = _LAYOUTS[layout]
        self._precision, self._half = precision, _HALVES.get(precision)
        model = load_reconstructor(checkpoint, form).to(device)
        if mode == "fused":
            from kdmri_edge.runtime.backends.fused import fuse

            fuse(model, _HALVES[precision])
            self._half = None  # what surrounds the kernels is float32
        self.sense, self.kspace = model.spec.coils, model.spec.reads is InputKind.KSPACE
        self._model: nn.Module = channels_last(model) if layout == "channels_last" else model
        self._forward: Callable[..., Tensor] = self._model
        if mode == "compile":
            self._forward = torch.compile(self._model)
        if mode == "torch-tensorrt":
            self._compiled = load_attribute(_COMPILED)(model, precision)
            self._forward, self._half = self._compiled, None  # its layers are cast
        recorded = device == "cuda" and mode in ("graph", "fused")
        self._graph = CudaGraph(self._compute) if recorded else None
        self._warm = mode != "compile"

    @classmethod
    def precisions_here(cls) -> tuple[str, ...]:
        """Return "f32", and "bf16" where the CPU has it; see `Session.precisions_here`."""
        has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return ("f32", "bf16") if has_bf16 else ("f32",)

    @property
    def info(self) -> SessionInfo:
        """What really runs."""
        on_cpu = self._device == "cpu"
        how = self._compiled.build if self._mode == "torch-tensorrt" else _MODES[self._mode]
        parts = [how, self._layout.replace("_", "-")]
        return SessionInfo(
            backend="PyTorch",
            version=torch.__version__,
            device="CPU" if on_cpu else torch.cuda.get_device_name(),
            provider=", ".join(parts if on_cpu else [*parts, "TF32 off"]),
            threads=torch.get_num_threads(),
            precision_requested=self._precision,
            precision_executed=self._executed(),
        )

    def _executed(self) -> str:
        if self._precision == "f32":
            return "f32"
        how = {"fused": "kernels", "torch-tensorrt": "layers"}.get(self._mode, "autocast")
        return f"{self._precision} {how}, float32 data consistency"

    def _compute(self, images: Tensor, *further: Tensor) -> Tensor:
        # without an operator of the scan's, the network has its own
        given = further if self.operator is not None else (None, *further)
        with torch.autocast(self._device, self._half, enabled=self._half is not None):
            output: Tensor = self._forward(images, *given)
        return output.float().contiguous()

    def _release(self) -> None:
        del self._model, self._forward, self._graph

    @torch.inference_mode()
    def _placed(self, given: list[Array]) -> list[Tensor]:
        """Return the inputs on the device, in the layout that the network is run in."""
        images, *further = (torch.from_numpy(array).to(self._device) for array in given)
        if not self.kspace:  # of which the memory formats of images are none
            images = images.contiguous(memory_format=self._format)
        return [images, *further]

    def resident(self, x_u: Array, *, maps: Array | None = None) -> Callable[[], object]:
        """Return a query whose data lies on the device already, and whose image stays there."""
        given = self._placed(self.inputs(x_u, maps=maps))
        compute = self._graph or self._compute

        def query() -> None:
            with torch.inference_mode():
                compute(*given)
                if self._device == "cuda":
                    torch.cuda.synchronize()

        return query

    @torch.inference_mode()
    def run(self, x_u: Array, *, operator: Array | None = None, maps: Array | None = None) -> Array:
        """Reconstruct; see `Session.run`."""
        given = self._placed(self.inputs(x_u, operator=operator, maps=maps))
        compute = self._graph or self._compute
        try:
            output = compute(*given)
        except Exception as error:
            if self._warm:
                raise
            said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise BackendError(
                f"torch.compile does not work here ({said}).", "Install a C++ compiler."
            ) from error
        self._warm = True
        result: Array = output.cpu().numpy()  # waits until the device is done
        return result


class FusedSession(EagerSession):
    """A checkpoint on a CUDA device, the convolutions of each cascade as one kernel.

    Args:
        checkpoint: The .safetensors file.
        precision: Of the convolutions: "f16" or "bf16".
        device: "cuda"; "cpu" with Triton's interpreter alone (TRITON_INTERPRET=1), which is slow.
        **options: As for `EagerSession`, `mode` excepted.

    Raises:
        BackendError: See `EagerSession`; or the network is none of stacks of convolutions.
        MissingExtraError: Triton is not installed.
    """

    def __init__(
        self, checkpoint: Path, *, precision: str = "f16", device: str = "cuda", **options: Any
    ) -> None:
        super().__init__(checkpoint, precision=precision, device=device, mode="fused", **options)

    @classmethod
    def precisions_here(cls) -> tuple[str, ...]:
        """Return "f16" and "bf16" where there is a CUDA device."""
        return tuple(sorted(_HALVES, reverse=True)) if torch.cuda.is_available() else ()
