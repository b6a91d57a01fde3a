"""A checkpoint in PyTorch, as it was trained."""

from __future__ import annotations

from pathlib import Path

import torch

from kdmri_edge.checkpoint import load_reconstructor
from kdmri_edge.errors import BackendError
from kdmri_edge.physics.forms import Form
from kdmri_edge.runtime.session import Array, Session, SessionInfo, check_precision

__all__ = ["EagerSession"]

_LAYOUTS = {"default": torch.contiguous_format, "channels_last": torch.channels_last}


class EagerSession(Session):
    """PyTorch eager mode on the CPU.

    Args:
        checkpoint: The .safetensors file.
        precision: "f32", or "bf16" for autocast with data consistency in float32.
        threads: CPU threads.
        layout: Memory layout of the convolutions: "channels_last" or "default".
        form: Form of data consistency; None picks by the mask.

    Raises:
        BackendError: Unknown precision or layout, or a CPU without bf16.
    """

    def __init__(
        self,
        checkpoint: Path,
        *,
        precision: str = "f32",
        threads: int | None = None,
        layout: str = "channels_last",
        form: Form | None = None,
    ) -> None:
        check_precision(precision, ("f32", "bf16"), "PyTorch")
        if layout not in _LAYOUTS:
            raise BackendError(f"There is no layout {layout!r}.", f"Use {' or '.join(_LAYOUTS)}.")
        if precision not in self.precisions_here():
            raise BackendError("This CPU has no bf16 convolutions.", "Use precision f32.")
        if threads is not None:
            torch.set_num_threads(threads)
        self._format = _LAYOUTS[layout]
        self._layout = layout
        self._bf16 = precision == "bf16"
        model = load_reconstructor(checkpoint, form)
        self.sense = model.spec.coils
        self._model = model.to(memory_format=self._format)  # type: ignore[call-overload]

    @classmethod
    def precisions_here(cls) -> tuple[str, ...]:
        """Return "f32", and "bf16" where the CPU has it; see `Session.precisions_here`."""
        has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return ("f32", "bf16") if has_bf16 else ("f32",)

    @property
    def info(self) -> SessionInfo:
        """What really runs."""
        return SessionInfo(
            backend="PyTorch",
            version=torch.__version__,
            device="CPU",
            provider=f"eager, {self._layout.replace('_', '-')}",
            threads=torch.get_num_threads(),
            precision_requested="bf16" if self._bf16 else "f32",
            precision_executed="bf16 autocast, float32 data consistency" if self._bf16 else "f32",
        )

    @torch.inference_mode()
    def run(self, x_u: Array) -> Array:
        """Reconstruct; see `Session.run`."""
        images, *maps = (torch.from_numpy(array) for array in self.inputs(x_u))
        inputs = images.contiguous(memory_format=self._format)
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
            result: Array = self._model(inputs, None, *maps).float().contiguous().numpy()
        return result
