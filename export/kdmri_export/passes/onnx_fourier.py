"""DFT nodes of an ONNX graph of any origin, written as products with DFT matrices.

ONNX keeps complex numbers as a last axis of two. A transform along an axis is then one product of
real numbers: the axis is brought beside the last one, both are taken as one of 2 N numbers, and
multiplied with the matrix whose 2 x 2 blocks are the complex factors. Runtimes multiply matrices
fast everywhere, while few have a DFT and fewer a fast one.

Where zero frequency is shifted right before or after (fftshift: two slices and a concatenation),
rows or columns of the matrix are shifted instead. Factors of normalisation stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import ExportError
from kdmri_edge.utils.extras import require
from kdmri_edge.utils.files import sha256_bytes
from kdmri_export.passes.fourier import dft_matrix, half_spectrum_matrix
from kdmri_export.passes.onnx_graph import (
    Scope,
    Shape,
    all_names,
    captured_names,
    drop_unread,
    first_line,
    forget_shapes,
    holds_transform,
    inner_graphs,
    int_attribute,
    is_transform,
    replace_messages,
)
from kdmri_export.passes.onnx_shifts import rewire, shift_after, shift_before, transform_axis

__all__ = ["LARGEST_FILE", "Replaced", "fix_shapes", "replace_transforms"]

LARGEST_FILE: Final = 2_000_000_000
"""Bytes: protobuf, which ONNX files are written in, ends at 2 GiB."""
_NORM_INVERSE: Final = 2
"""The normalisation of ONNX's inverse transform: it divides by the number of points."""


@dataclass(kw_only=True)
class Replaced:
    """What was done to a graph.

    Attributes:
        transforms: DFT nodes that became products.
        shifts: Shifts around them that are rows or columns of their matrices now.
        matrix_bytes: Of all matrices.
    """

    transforms: int = 0
    shifts: int = 0
    matrix_bytes: int = 0


def fix_shapes(model: Any, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give inputs of a graph fixed shapes; what the graph says of other sizes is forgotten.

    Args:
        model: An `onnx.ModelProto`, changed in place.
        shapes: By the names of inputs, which `runtime_check.check_shapes` has seen.
    """
    if not shapes:
        return
    for port in model.graph.input:
        if port.name in shapes:
            del port.type.tensor_type.shape.dim[:]
            for size in shapes[port.name]:
                port.type.tensor_type.shape.dim.add().dim_value = size
    del model.graph.value_info[:]
    for port in model.graph.output:
        port.type.tensor_type.ClearField("shape")


def replace_transforms(model: Any) -> Replaced:
    """Write all DFT nodes of a graph, and of the graphs that it holds, as products.

    Args:
        model: An `onnx.ModelProto` with its weights inside, changed in place. Local functions that
            hold a DFT are written out.

    Raises:
        ExportError: There is no DFT, or one cannot be a product: its axis has no fixed size, or
            is computed from inputs; the node is named.
    """
    onnx = require("onnx", extra="onnx")
    if any(holds_transform(function.node) for function in model.functions):
        inliner = require("onnx.inliner", extra="onnx")
        try:  # a function may be of another opset than the graph that calls it
            model.CopyFrom(inliner.inline_local_functions(model, convert_version=True))
        except Exception as error:  # of the C++ converter, whatever it does not know
            raise ExportError(
                "A local function of the graph holds a DFT, and cannot be written out"
                f" ({first_line(error)}).",
                "Write the graph again with its exporter, all in one opset.",
            ) from error
    if not holds_transform(model.graph.node):
        raise ExportError(
            "The graph holds no DFT node: there is nothing to rewrite.",
            "Give a graph that does; `kdmri-edge check` lists the operators of one.",
        )
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # of the C++ checker, whatever it finds
        raise ExportError(
            f"The shapes of the graph contradict each other ({first_line(error)}).",
            "Write the graph again with its exporter.",
        ) from error
    rewriter = _Rewriter(onnx, model)
    rewriter.graph(model.graph, inferred.graph, None)
    rewriter.finish()
    _state_outputs(onnx, model)
    return rewriter.replaced


def _state_outputs(onnx: Any, model: Any) -> None:
    """Say what shapes come out, where the graph does not: some runtimes want to be told."""
    if all(port.type.tensor_type.HasField("shape") for port in model.graph.output):
        return
    inferred = onnx.shape_inference.infer_shapes(model)
    for port, known in zip(model.graph.output, inferred.graph.output, strict=True):
        port.CopyFrom(known)


@dataclass
class _Plan:
    """One DFT as a product.

    Args:
        node: The DFT.
        axis: Counted from the front.
        points: How many it transforms.
        given: How many its input has along the axis.
        shape: Of the input.
        onesided: Half a spectrum is made of real points, or these of that.
        inverse: Its direction.
        before: Shift of the input that is folded in.
        after: Shift of the output that is folded in.
    """

    node: Any
    axis: int
    points: int
    given: int
    shape: Shape
    onesided: bool
    inverse: bool
    before: int = 0
    after: int = 0

    @property
    def to_real(self) -> bool:
        return self.onesided and self.inverse

    @property
    def read(self) -> int:
        """How many points of the input it reads at most."""
        return self.points // 2 + 1 if self.to_real else self.points

    def matrix(self) -> NDArray[np.complex128]:
        """Return the matrix, [rows, points that are read]."""
        shifts = {"before": self.before, "after": self.after}
        if self.to_real:
            made = half_spectrum_matrix(self.points, _NORM_INVERSE, **shifts)
        else:
            made = dft_matrix(
                self.points,
                inverse=self.inverse,
                norm=_NORM_INVERSE if self.inverse else 0,
                rows=self.points // 2 + 1 if self.onesided else None,
                **shifts,
            )
        found: NDArray[np.complex128] = made.numpy()[:, : min(self.given, self.read)]
        return found


@dataclass
class _Rewriter:
    """Rewrites the graphs of a model.

    Args:
        onnx: The package.
        model: To be changed.
    """

    onnx: Any
    model: Any
    replaced: Replaced = field(default_factory=Replaced)
    _names: set[str] = field(default_factory=set)
    _held: dict[str, str] = field(default_factory=dict)
    _before: set[str] = field(default_factory=set)

    def graph(self, graph: Any, inferred: Any, outer: Scope | None) -> None:
        """Rewrite one graph, and those that its nodes hold."""
        if not self._names:
            self._names = all_names(self.model.graph)
            self._before = captured_names(self.model.graph)
        scope = Scope(self.onnx, self.model, graph, inferred, outer)
        for node, twin in zip(list(graph.node), list(inferred.node), strict=True):
            for inner, known in zip(inner_graphs(node), inner_graphs(twin), strict=True):
                self.graph(inner, known, scope)
        plans = [self._planned(scope, node) for node in graph.node if is_transform(node)]
        for plan in plans:
            self._fold_before(scope, plan)
            self._fold_after(scope, plan)
        made = {id(plan.node): self._product(scope, plan) for plan in plans}
        nodes: list[Any] = []
        for node in graph.node:
            nodes.extend(made.get(id(node), [node]))
        replace_messages(graph.node, nodes)
        self.replaced.transforms += len(plans)

    def finish(self) -> None:
        """Drop what nothing reads any more."""
        graph = self.model.graph
        drop_unread(graph)
        read = captured_names(graph)
        ports = {port.name for port in graph.input}
        kept = [
            constant
            for constant in graph.initializer
            if constant.name in read | ports or constant.name not in self._before
        ]
        if len(kept) < len(graph.initializer):
            replace_messages(graph.initializer, kept)
        forget_shapes(graph)

    def _planned(self, scope: Scope, node: Any) -> _Plan:
        name = node.name or node.output[0]
        shape = scope.shape(node.input[0])
        fix = "Fix the sizes of the graph's inputs with --shape NAME=SIZES."
        if shape is None:
            raise ExportError(f"The shape that DFT node {name!r} transforms is not known.", fix)
        axis = transform_axis(scope, node)
        if axis is None:
            raise ExportError(
                f"The axis of DFT node {name!r} is no constant of the graph, or none that its"
                " input has.",
                "Write the graph with a fixed axis.",
            )
        if axis == len(shape) - 1:
            raise ExportError(
                f"DFT node {name!r} transforms the axis of real and imaginary parts.",
                "Transform another axis.",
            )
        if shape[-1] not in (1, 2):
            raise ExportError(
                f"The last axis of what DFT node {name!r} transforms is not known to be of one"
                " number (real) or two (complex).",
                fix,
            )
        given = shape[axis]
        if given is None:
            raise ExportError(
                f"DFT node {name!r} runs along axis {axis}, whose size is not fixed, so that there"
                " is no matrix for it.",
                fix,
            )
        onesided = bool(int_attribute(node, "onesided", 0))
        inverse = bool(int_attribute(node, "inverse", 0))
        points = 2 * (given - 1) if onesided and inverse else given
        if len(node.input) > 1 and node.input[1]:
            wanted = scope.value(node.input[1])
            if wanted is None or wanted.size != 1:
                raise ExportError(
                    f"The length of DFT node {name!r} is computed from the graph's inputs, so that"
                    " there is no matrix for it.",
                    fix,
                )
            points = int(wanted.reshape(-1)[0])
        if points < 1 or given < 1:
            raise ExportError(
                f"DFT node {name!r} transforms {min(points, given)} points.", "Give it some."
            )
        if onesided and not inverse and shape[-1] != 1:
            raise ExportError(
                f"DFT node {name!r} is to make half a spectrum of complex numbers.",
                "Half a spectrum is that of real numbers; leave onesided out.",
            )
        kind = scope.type(node.input[0])
        if kind not in self._kinds:
            raise ExportError(
                f"The type of what DFT node {name!r} transforms is not known.",
                "Write the graph again with its exporter.",
            )
        plan = _Plan(node, axis, points, given, shape, onesided, inverse)
        if 16 * min(given, plan.read) * points > LARGEST_FILE:
            raise ExportError(
                f"DFT node {name!r} transforms {points} points: its matrix would not fit into an"
                " ONNX file of 2 GB.",
                "Leave that graph as it is.",
            )
        return plan

    @property
    def _kinds(self) -> dict[int, Any]:
        """Types of values, and the types of matrices for them."""
        types = self.onnx.TensorProto
        return {
            types.FLOAT: np.float32,
            types.DOUBLE: np.float64,
            types.FLOAT16: np.float32,
            types.BFLOAT16: np.float32,
        }

    def _fold_before(self, scope: Scope, plan: _Plan) -> None:
        """Take shifts along the axis into the matrix, as long as only this transform reads them."""
        if plan.given != plan.read:  # filled up or cut: what is shifted is another number of points
            return
        while True:
            found = shift_before(scope, (plan.node,), str(plan.node.input[0]), plan.axis)
            if found is None:
                return
            plan.before += found.by
            self.replaced.shifts += 1
            for edges, old, new in found.edits:
                rewire(edges, old, new)
            scope.index()

    def _fold_after(self, scope: Scope, plan: _Plan) -> None:
        """Take shifts along the axis into the matrix, as long as nothing reads what they shift."""
        while True:
            found = shift_after(scope, str(plan.node.output[0]), plan.axis)
            if found is None:
                return
            plan.after += found.by
            self.replaced.shifts += 1
            for edges, made, name in found.edits:
                if made not in scope.outside:
                    rewire(edges, made, name)
                    continue
                last = scope.makers[made]  # its name has to stay
                last.op_type = "Identity"
                del last.attribute[:], last.input[:]
                last.input.append(name)
            scope.index()

    # --- writing ---

    def _product(self, scope: Scope, plan: _Plan) -> list[Any]:
        """Return the nodes that take the place of a DFT."""
        helper, types = self.onnx.helper, self.onnx.TensorProto
        source, result = str(plan.node.input[0]), str(plan.node.output[0])
        stem = plan.node.name or result
        kind = scope.type(source)
        rank, width = len(plan.shape), int(plan.shape[-1] or 0)
        matrix = plan.matrix()
        rows, columns = matrix.shape
        parts = 1 if plan.to_real else 2
        # [points, parts of these, frequencies, parts of those]
        blocks = np.zeros((columns, width, rows, parts))
        blocks[:, 0, :, 0] = matrix.real.T
        if width == 2:
            blocks[:, 1, :, 0] = -matrix.imag.T
        if parts == 2:
            blocks[:, 0, :, 1] = matrix.imag.T
            if width == 2:
                blocks[:, 1, :, 1] = matrix.real.T
        held = blocks.reshape(columns * width, rows * parts).astype(self._kinds[kind])
        nodes: list[Any] = []
        at = source

        def add(operator: str, *more: str, **attributes: Any) -> None:
            nonlocal at
            made = self._unique(f"{stem}_{operator.lower()}")
            nodes.append(helper.make_node(operator, [at, *more], [made], name=made, **attributes))
            at = made

        if kind in (types.FLOAT16, types.BFLOAT16):
            add("Cast", to=types.FLOAT)
        if plan.given > columns:
            bounds = [self._integers([n]) for n in (0, columns, plan.axis)]
            add("Slice", *bounds)
        order = list(range(rank))
        order.insert(rank - 2, order.pop(plan.axis))
        moved = plan.axis != rank - 2
        if moved:
            add("Transpose", perm=order)
        leading = [0] * (rank - 2)  # 0: as they are
        add("Reshape", self._integers([*leading, columns * width]))
        add("MatMul", self._matrix(held, f"dft_{plan.points}"))
        add("Reshape", self._integers([*leading, rows, parts]))
        if moved:
            add("Transpose", perm=[order.index(axis) for axis in range(rank)])
        if kind in (types.FLOAT16, types.BFLOAT16):
            add("Cast", to=kind)
        nodes[-1].output[0] = result
        return nodes

    def _unique(self, name: str) -> str:
        made, count = name, 1
        while made in self._names:
            count += 1
            made = f"{name}_{count}"
        self._names.add(made)
        return made

    def _matrix(self, array: NDArray[Any], name: str) -> str:
        """Keep a matrix, and count its bytes."""
        before = len(self._held)
        kept = self._constant(array, name)
        self.replaced.matrix_bytes += array.nbytes if len(self._held) > before else 0
        return kept

    def _integers(self, values: Sequence[int]) -> str:
        return self._constant(np.asarray(values, np.int64), "dft_sizes")

    def _constant(self, array: NDArray[Any], name: str) -> str:
        """Keep a constant, once, where graphs within others can read it as well."""
        key = f"{array.shape} {array.dtype} {sha256_bytes(array.tobytes())}"
        if key not in self._held:
            self._held[key] = self._unique(name)
            tensor = self.onnx.numpy_helper.from_array(array, self._held[key])
            self.model.graph.initializer.append(tensor)
        return self._held[key]
