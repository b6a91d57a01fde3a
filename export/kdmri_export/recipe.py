"""What an export is asked for (torch-free)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kdmri_edge.errors import ExportError
from kdmri_edge.physics.coils import COILS
from kdmri_edge.runtime.targets import TARGETS, Target, as_users_write
from kdmri_export.targets.tensorrt.engines import TORCH_TENSORRT, EngineRequest, without_bf16

__all__ = ["AUTO", "BATCHES", "ExportRecipe"]

BATCHES: Final = ("1", "dynamic")
AUTO: Final = "auto"
"""What stands for the layers that lose most by rounding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportRecipe:
    """Settings of an export.

    Attributes:
        target: Name of the target.
        dc: Form of data consistency: "auto", "projection", "dft" or "fft".
        batch: "1", or "dynamic" for any number of slices per call.
        precision: Of the graph's convolutions; one of the target's.
        mask_input: Take the operator of data consistency as a second input, so that one graph
            serves every mask of the network's kind and matrix.
        any_matrix: Leave height and width of the images free. With data consistency its operator
            is then an input, as `mask_input` has it, and so are DFT matrices where its form takes
            some: they belong to a matrix.
        keep_op: Keep data consistency as one node, `kdmri::DataConsistency`, whose meaning is a
            model-local function, instead of spelling it out; for targets whose row says so.
        multiple: Of graphs of any matrix: what their sides are multiples of. What an export asks
            for is 1; `export.export_model` finds the smallest that the network takes.
        coils: Of multi-coil networks: coils that scans are compressed to, at most; targets whose
            graphs have a fixed number of coils have this one.
        compiled: For targets that compile their graphs: do so, where there is a C++ compiler.
        engines: For targets that build engines: which ones to build; None builds none.
        floats: Patterns of the names of layers that stay in float32 while others are written in
            another precision; "auto" among them lets int8 exports choose, by what rounding costs.
    """

    target: str
    dc: str = "auto"
    batch: str = "1"
    precision: str = "f32"
    mask_input: bool = False
    any_matrix: bool = False
    multiple: int = 1
    keep_op: bool = False
    coils: int = COILS
    compiled: bool = True
    engines: EngineRequest | None = None
    floats: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check what can be checked before a network is read.

        Raises:
            ExportError: Unknown target, or a batch, precision or engine that it does not have.
        """
        known = self.row
        if self.batch not in BATCHES:
            raise ExportError(f"There is no batch {self.batch!r}.", f"Use {' or '.join(BATCHES)}.")
        if self.precision not in known.precisions:
            why = known.lacks.get(self.precision)
            raise ExportError(
                f"Target {self.target!r} has no precision {as_users_write(self.precision)!r}"
                f"{f': {why}' if why else ''}.",
                f"It has {', '.join(known.offered)}.",
            )
        if self.coils < 1:
            raise ExportError(f"A graph of {self.coils} coils makes no sense.", "Use 1 or more.")
        if self.keep_op and not known.keeps_op:
            raise ExportError(
                f"Target {self.target!r} has no node for data consistency.",
                "Leave --keep-op out: its operators are then written out.",
            )
        if self.any_matrix and not known.any_matrix:
            raise ExportError(
                f"Target {self.target!r} has graphs of one matrix.",
                "Leave --matrix any out, or export for another target, e.g. onnx.",
            )
        if self.keep_op and self.any_matrix:
            raise ExportError(
                "One node for data consistency belongs to one matrix.",
                "Leave --keep-op out: its operators are then written out.",
            )
        if self.engines is not None and not known.builds_engines:
            raise ExportError(f"Target {self.target!r} has no engines.", "Leave the builder out.")
        if self.floats and self.written == "f32":
            raise ExportError(
                f"In {as_users_write(self.precision)} no layer can be left in float32 by itself.",
                "Leave the layers out, or export in fp16 or int8.",
            )
        if self.automatic and not self.quantised:
            raise ExportError(
                "What rounding costs a layer is measured for int8 alone.",
                "Name the layers that are to stay in float32.",
            )
        asked = self.engines.compute_capabilities if self.engines else ()
        if self.written == "bf16" and (lacking := without_bf16(asked)):
            raise ExportError(
                f"{' and '.join(lacking)} cannot compute in bf16.",
                "Name GPUs of compute capability 8.0 or newer, e.g. sm86, or export in fp16.",
            )
        builder = self.engines.builder if self.engines else None
        if builder == TORCH_TENSORRT and self.floats:
            raise ExportError(
                "Torch-TensorRT programs have all layers in one precision.",
                "Leave the layers out, or use --builder tensorrt.",
            )
        free = self.dynamic or self.mask_input or self.any_matrix
        if builder == TORCH_TENSORRT and (free or self.quantised):
            raise ExportError(
                "Torch-TensorRT programs are built for one slice, a fixed mask and matrix, fp32,"
                " fp16 or bf16.",
                "Use --builder tensorrt for others.",
            )

    @property
    def row(self) -> Target:
        """The target's row of the table."""
        return TARGETS.named(self.target)

    @property
    def quantised(self) -> bool:
        """Whether the convolutions are of integers."""
        return self.precision == "int8"

    @property
    def automatic(self) -> bool:
        """Whether layers that lose too much by rounding are found out."""
        return AUTO in self.floats

    @property
    def signed(self) -> bool:
        """Whether the target has signed integers alone (TensorRT)."""
        return self.row.builds_engines

    @property
    def written(self) -> str:
        """Precision that the graph itself is written in."""
        return self.row.written(self.precision)

    @property
    def executed(self) -> str:
        """Precision that the runtime is asked for; around halves it computes in float32."""
        return "f32" if self.written in ("f16", "bf16") else self.precision

    @property
    def dynamic(self) -> bool:
        """Whether the graph takes any batch."""
        return self.batch == "dynamic"

    def bundle_name(self, stem: str) -> str:
        """Return the usual folder name of a bundle: what differs from the defaults is in it.

        Args:
            stem: The network's role, or the name of its checkpoint.
        """
        marks = [as_users_write(self.precision)] if self.precision != "f32" else []
        marks += [self.dc] if self.dc != "auto" else []
        marks += [self.batch] if self.batch != "1" else []
        marks += ["matrices"] if self.any_matrix else ["masks"] if self.mask_input else []
        marks += ["op"] if self.keep_op else []
        marks += ["float"] if self.floats else []
        marks += [f"{self.coils}coils"] if self.coils != COILS else []
        return "-".join([stem, self.target, *marks])
