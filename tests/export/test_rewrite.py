"""`kdmri-edge rewrite`: DFT nodes of graphs of any origin as products, compared with NumPy."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from kdmri_edge.cli import main
from kdmri_edge.errors import ExportError, KdmriError, ParityError
from kdmri_export import runtime_check
from kdmri_export.graph_check import check_graph, load_graph
from kdmri_export.passes.onnx_fourier import fix_shapes, replace_transforms
from kdmri_export.rewrite import _with_float_ports, rewrite_graph
from kdmri_export.runtime_check import Verdict, ask_targets
from kdmri_export.targets.onnx import quiet

Dims = Sequence[int | str | None]
FLOAT = TensorProto.FLOAT


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    shape: Dims,
    *,
    constants: dict[str, Any] | None = None,
    opset: int = 18,
    kind: int = FLOAT,
    outputs: Sequence[str] = ("y",),
    **further: Any,
) -> onnx.ModelProto:
    """Return a model with one input x."""
    held = [numpy_helper.from_array(np.asarray(v), name) for name, v in (constants or {}).items()]
    ports = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
    graph = helper.make_graph(
        list(nodes), "g", [helper.make_tensor_value_info("x", kind, list(shape))], ports, held
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, **further)


def transform(
    axis: int, *, opset: int = 18, length: int | None = None, **flags: int
) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    """Return a DFT node as an opset has it, and its constants."""
    constants: dict[str, Any] = {}
    inputs = ["x", ""]
    if length is not None:
        constants["length"] = np.int64(length)
        inputs[1] = "length"
    if opset >= 20:
        constants["axis"] = np.int64(axis)
        inputs.append("axis")
    else:
        flags["axis"] = axis
    return [helper.make_node("DFT", inputs, ["y"], name="transform", **flags)], constants


def run(model: onnx.ModelProto, x: NDArray[Any]) -> list[NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    found: list[NDArray[Any]] = session.run(None, {"x": x})
    return found


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def complex_of(x: NDArray[Any]) -> NDArray[np.complex128]:
    wide = x.astype(np.float64)
    return wide[..., 0] + 1j * wide[..., 1] if x.shape[-1] == 2 else wide[..., 0].astype(complex)


def parts(z: NDArray[Any]) -> NDArray[np.float64]:
    return np.stack((z.real, z.imag), -1)


def drawn(shape: Sequence[int], kind: Any = np.float32) -> NDArray[Any]:
    return np.random.default_rng(7).standard_normal(tuple(shape)).astype(kind)


def close(found: NDArray[Any], wanted: NDArray[Any], share: float = 1e-5) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= share * max(float(np.abs(wanted).max()), 1.0)


# --- every form of one node ---------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    at=st.integers(0, 3),
    counted_back=st.booleans(),
    given_complex=st.booleans(),
    inverse=st.booleans(),
    onesided=st.booleans(),
    length=st.none() | st.integers(1, 9),
    opset=st.sampled_from([17, 18, 20, 22]),
    double=st.booleans(),
)
def test_a_transform_gives_what_numpy_gives(
    sizes: list[int],
    at: int,
    counted_back: bool,
    given_complex: bool,
    inverse: bool,
    onesided: bool,
    length: int | None,
    opset: int,
    double: bool,
) -> None:
    axis = at % len(sizes)
    assume(not (onesided and not inverse and given_complex))  # refused, as ONNX has it
    assume(not (onesided and inverse and length is None and sizes[axis] == 1))  # of no points
    shape = (*sizes, 2 if given_complex else 1)
    asked = axis - len(shape) if counted_back else axis
    nodes, constants = transform(
        asked, opset=opset, length=length, inverse=int(inverse), onesided=int(onesided)
    )
    kind = TensorProto.DOUBLE if double else FLOAT
    model = graph_of(nodes, shape, constants=constants, opset=opset, kind=kind)
    assert replace_transforms(model).transforms == 1
    assert not kinds(model)["DFT"]
    assert model.opset_import[0].version == opset
    x = drawn(shape, np.float64 if double else np.float32)
    z = complex_of(x)
    if inverse and onesided:
        wanted = np.fft.irfft(z, length, axis)[..., None]
    elif inverse:
        wanted = parts(np.fft.ifft(z, length, axis))
    elif onesided:
        wanted = parts(np.fft.rfft(z.real, length, axis))
    else:
        wanted = parts(np.fft.fft(z, length, axis))
    (found,) = run(model, x)
    assert found.dtype == x.dtype
    close(found, wanted, 1e-12 if double else 1e-5)


@pytest.mark.parametrize("opset", [18, 20])
def test_without_an_axis_the_one_of_the_opset_is_taken(opset: int) -> None:
    node = helper.make_node("DFT", ["x"], ["y"])
    model = graph_of([node], [2, 4, 6, 2], opset=opset)
    replace_transforms(model)
    x = drawn((2, 4, 6, 2))
    close(run(model, x)[0], parts(np.fft.fft(complex_of(x), axis=1 if opset == 18 else 2)))


def test_halves_are_transformed_in_float32() -> None:
    nodes, constants = transform(1)
    model = graph_of(nodes, [1, 64, 2], constants=constants, kind=TensorProto.FLOAT16)
    replace_transforms(model)
    x = drawn((1, 64, 2), np.float16)
    (found,) = run(model, x)
    assert found.dtype == np.float16
    close(found, parts(np.fft.fft(complex_of(x), axis=1)), 2e-3)
    (matrix,) = (i for i in model.graph.initializer if len(i.dims) == 2)
    assert matrix.data_type == FLOAT


# --- shifts and norms ---------------------------------------------------------------------------


def shift(
    source: str, result: str, axis: int, size: int, by: int, *, way: str
) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    """Return the nodes of numpy.roll along an axis, written in one of the ways of exporters."""
    first = -by % size
    name = f"{result}_parts"
    if way == "gather":
        index = (np.arange(size) + first) % size
        return [helper.make_node("Gather", [source, name], [result], axis=axis)], {name: index}
    a, b = f"{name}_a", f"{name}_b"
    join = helper.make_node("Concat", [a, b], [result], axis=axis)
    if way == "split":
        cut = helper.make_node("Split", [source, name], [b, a], axis=axis)
        return [cut, join], {name: np.asarray([first, size - first])}
    held = {
        f"{name}_{key}": np.asarray([value], np.int64)
        for key, value in {"axis": axis, "zero": 0, "cut": first, "end": 2**62}.items()
    }
    slices = [
        helper.make_node("Slice", [source, f"{name}_{at}", f"{name}_{to}", f"{name}_axis"], [made])
        for made, at, to in ((a, "cut", "end"), (b, "zero", "cut"))
    ]
    return [*slices, join], held


@given(
    sizes=st.tuples(st.integers(2, 7), st.integers(2, 7)),
    norm=st.sampled_from(["backward", "ortho", "forward"]),
    inverse=st.booleans(),
    before=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    after=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    ways=st.tuples(*[st.sampled_from(["slices", "split", "gather"])] * 4),
)
def test_shifted_transforms_of_two_axes_with_every_norm(
    sizes: tuple[int, int],
    norm: Any,
    inverse: bool,
    before: tuple[int, int],
    after: tuple[int, int],
    ways: tuple[str, str, str, str],
) -> None:
    """As PyTorch's exporter writes ifftshift, fftn of two axes and fftshift."""
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Any] = {"batch_axis": np.asarray([0])}
    at = "x"

    def add(operator: str, result: str, *inputs: str, **attributes: Any) -> None:
        nonlocal at
        nodes.append(helper.make_node(operator, [at, *inputs], [result], **attributes))
        at = result

    def roll(result: str, axis: int, size: int, by: int, way: str) -> None:
        nonlocal at
        made, held = shift(at, result, axis, size, by % size or 1, way=way)
        nodes.extend(made)
        constants.update(held)
        at = result

    roll("b0", 0, sizes[0], before[0], ways[0])
    roll("b1", 1, sizes[1], before[1], ways[1])
    add("Unsqueeze", "u", "batch_axis")
    for axis in (2, 1):
        add("DFT", f"t{axis}", axis=axis, inverse=int(inverse))
        size = sizes[axis - 1]
        power = {"backward": 0.0, "ortho": 0.5, "forward": 1.0}[norm]
        # ONNX's inverse divides by N, which is NumPy's "backward"
        constants[f"n{axis}"] = np.float32(float(size) ** (power if inverse else -power))
        add("Mul", f"s{axis}", f"n{axis}")
    add("Squeeze", "q", "batch_axis")
    roll("a0", 0, sizes[0], after[0], ways[2])
    roll("y", 1, sizes[1], after[1], ways[3])
    model = graph_of(nodes, [*sizes, 2], constants=constants)
    replaced = replace_transforms(model)
    assert replaced.shifts == 4
    left = kinds(model)
    assert not {"Concat", "Split", "Gather", "Slice", "DFT"} & set(left)
    assert left["MatMul"] == 2
    x = drawn((*sizes, 2))
    z = complex_of(x)
    for axis in (0, 1):
        z = np.roll(z, before[axis] % sizes[axis] or 1, axis)
    z = np.fft.ifft2(z, norm=norm) if inverse else np.fft.fft2(z, norm=norm)
    for axis in (0, 1):
        z = np.roll(z, after[axis] % sizes[axis] or 1, axis)
    close(run(model, x)[0], parts(z))


class Transforms(torch.nn.Module):
    """What networks call, by PyTorch's names; complex values are pairs outside."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        axes = (-2, -1)
        z = torch.view_as_complex(x)
        shifted = torch.fft.ifftshift(z, dim=axes)
        spectrum = torch.fft.fftn(shifted, dim=axes, norm="ortho")
        centred = torch.fft.fftshift(spectrum, dim=axes)
        back = torch.fft.ifftn(z, dim=axes, norm="forward")
        half = torch.fft.rfft(x[..., 0], dim=-1)
        real = torch.fft.irfft(torch.view_as_complex(x[..., :6, :]), n=9, dim=-1, norm="ortho")
        return tuple(
            torch.view_as_real(one) if one.is_complex() else one
            for one in (centred, back, half, real)
        )


def test_what_pytorch_exports_loses_its_transforms_and_their_shifts() -> None:
    x = torch.from_numpy(drawn((2, 10, 8, 2)))
    network = Transforms().eval()
    with quiet():
        exported = torch.onnx.export(network, (x,), dynamo=True, opset_version=18, verbose=False)
    assert exported is not None
    model = exported.model_proto
    replaced = replace_transforms(model)
    assert replaced.transforms == 6
    assert replaced.shifts == 4
    assert not kinds(model)["DFT"]
    for found, wanted in zip(run(model, x.numpy()), network(x), strict=True):
        close(found, wanted.numpy())


@pytest.mark.parametrize("way", ["slices", "split", "gather"])
def test_a_shift_that_something_else_reads_stays(way: str) -> None:
    nodes, constants = shift("x", "r", 1, 6, 2, way=way)
    nodes.append(helper.make_node("DFT", ["r"], ["t"], axis=1))
    nodes.append(helper.make_node("Add", ["t", "r"], ["y"]))
    model = graph_of(nodes, [1, 6, 2], constants=constants)
    replace_transforms(model)
    x = drawn((1, 6, 2))
    rolled = np.roll(complex_of(x), 2, 1)
    close(run(model, x)[0], parts(np.fft.fft(rolled, axis=1) + rolled))


def test_a_transform_that_something_else_reads_is_not_shifted() -> None:
    rolls, constants = shift("t", "r", 1, 6, 3, way="slices")
    nodes = [helper.make_node("DFT", ["x"], ["t"], axis=1), *rolls]
    nodes.append(helper.make_node("Add", ["t", "r"], ["y"]))
    model = graph_of(nodes, [1, 6, 2], constants=constants)
    assert replace_transforms(model).shifts == 0
    x = drawn((1, 6, 2))
    z = np.fft.fft(complex_of(x), axis=1)
    close(run(model, x)[0], parts(z + np.roll(z, 3, 1)))


def test_slices_that_are_no_shift_stay() -> None:
    def cut(result: str, start: int, end: int) -> tuple[onnx.NodeProto, dict[str, Any]]:
        names = [f"{result}{key}" for key in "set"]
        held = dict(zip(names, (np.asarray([n]) for n in (start, end, 1)), strict=True))
        return helper.make_node("Slice", ["x", *names], [result]), held

    (first, a), (second, b) = cut("a", 3, 6), cut("b", 0, 2)  # one point is missing
    join = helper.make_node("Concat", ["a", "b"], ["r"], axis=1)
    node = helper.make_node("DFT", ["r"], ["y"], axis=1)
    model = graph_of([first, second, join, node], [1, 6, 2], constants=a | b)
    assert replace_transforms(model).shifts == 0
    x = drawn((1, 6, 2))
    z = complex_of(x)
    close(run(model, x)[0], parts(np.fft.fft(np.concatenate((z[:, 3:], z[:, :2]), 1), axis=1)))


def test_one_matrix_serves_transforms_of_one_size() -> None:
    nodes = [
        helper.make_node("DFT", ["x"], ["a"], axis=1),
        helper.make_node("DFT", ["a"], ["b"], axis=2),
        helper.make_node("DFT", ["b"], ["y"], axis=2, inverse=1),
    ]
    model = graph_of(nodes, [1, 8, 8, 2])
    replaced = replace_transforms(model)
    assert replaced.matrix_bytes == 2 * 16 * 16 * 4  # one each way
    x = drawn((1, 8, 8, 2))
    close(run(model, x)[0], parts(np.fft.fft(complex_of(x), axis=1)))


# --- what surrounds a node ----------------------------------------------------------------------


def test_free_axes_beside_the_transform_stay_free() -> None:
    node = helper.make_node("DFT", ["x"], ["y"], axis=2)
    model = graph_of([node], ["batch", "coils", 6, "width", 2])
    replace_transforms(model)
    for shape in ((1, 3, 6, 4, 2), (2, 1, 6, 5, 2)):
        x = drawn(shape)
        close(run(model, x)[0], parts(np.fft.fft(complex_of(x), axis=2)))


def test_lengths_that_follow_from_shapes_are_computed() -> None:
    """As PyTorch's exporter writes rfft."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], start=1, end=2),
        helper.make_node("Squeeze", ["s", "zero"], ["n"]),
        helper.make_node("DFT", ["x", "n"], ["y"], axis=1, onesided=1),
    ]
    model = graph_of(nodes, ["batch", 7, 1], constants={"zero": np.asarray([0])})
    replace_transforms(model)
    assert set(kinds(model)) == {"Reshape", "MatMul"}
    x = drawn((2, 7, 1))
    close(run(model, x)[0], parts(np.fft.rfft(x[..., 0], axis=1)))


def branches(result: str) -> onnx.GraphProto:
    node = helper.make_node("DFT", ["x"], [result], axis=1, inverse=int(result == "b"))
    return helper.make_graph(
        [node], result, [], [helper.make_tensor_value_info(result, FLOAT, None)]
    )


def test_branches_of_a_condition_are_rewritten() -> None:
    node = helper.make_node(
        "If", ["c"], ["y"], then_branch=branches("a"), else_branch=branches("b")
    )
    model = graph_of([node], [1, 6, 2], constants={"c": np.asarray(False)})
    assert replace_transforms(model).transforms == 2
    x = drawn((1, 6, 2))
    close(run(model, x)[0], parts(np.fft.ifft(complex_of(x), axis=1)))


def test_bodies_of_loops_are_rewritten() -> None:
    body = helper.make_graph(
        [
            helper.make_node("DFT", ["v"], ["w"], axis=1, name="inside"),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", FLOAT, [1, 6, 2]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", FLOAT, [1, 6, 2]),
        ],
    )
    node = helper.make_node("Loop", ["n", "c", "x"], ["y"], body=body)
    model = graph_of([node], [1, 6, 2], constants={"n": np.int64(2), "c": np.asarray(True)})
    assert replace_transforms(model).transforms == 1
    x = drawn((1, 6, 2))
    twice = np.fft.fft(np.fft.fft(complex_of(x), axis=1), axis=1)
    close(run(model, x)[0], parts(twice))


@pytest.mark.parametrize("opset", [18, 20])
def test_local_functions_are_written_out(opset: int) -> None:
    """Those of an older opset than their graph's, too."""
    body = [helper.make_node("DFT", ["a"], ["b"], axis=1)]
    function = helper.make_function(
        "own", "Transform", ["a"], ["b"], body, [helper.make_opsetid("", 18)]
    )
    node = helper.make_node("Transform", ["x"], ["y"], domain="own")
    model = graph_of([node], [1, 6, 2], opset=opset)
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.functions.append(function)
    assert replace_transforms(model).transforms == 1
    x = drawn((1, 6, 2))
    close(run(model, x)[0], parts(np.fft.fft(complex_of(x), axis=1)))


# --- refusals -----------------------------------------------------------------------------------


def dft(**attributes: Any) -> list[onnx.NodeProto]:
    return [helper.make_node("DFT", ["x"], ["y"], name="transform", **attributes)]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: graph_of([helper.make_node("Relu", ["x"], ["y"])], [1, 4, 2]), "nothing to"),
        (lambda: graph_of(dft(axis=1), [1, "width", 2]), r"'transform' runs along axis 1.*--shape"),
        (lambda: graph_of(dft(axis=1), [1, 4, "parts"]), r"'transform'.*real.*--shape"),
        (lambda: graph_of(dft(axis=1, onesided=1), [1, 4, 2]), "half a spectrum of complex"),
        (lambda: graph_of(dft(axis=2), [1, 4, 2]), "real and imaginary|shapes"),
        (lambda: graph_of(dft(axis=7), [1, 4, 2]), "axis|shapes"),
        (lambda: graph_of(dft(axis=1), [1, 0, 2]), "0 points"),
        (lambda: graph_of(dft(axis=1), [1, 30_000, 2]), "2 GB"),
        (
            lambda: graph_of(
                [helper.make_node("DFT", ["x", "", "x"], ["y"], name="transform")], [1, 4, 2],
                opset=20,
            ),
            "'transform'|shapes",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_a_product_is_refused_by_name(
    make: Callable[[], onnx.ModelProto], said: str
) -> None:
    with pytest.raises(ExportError, match=said):
        replace_transforms(make())


def test_a_shape_fixes_a_free_axis() -> None:
    model = graph_of(dft(axis=1), ["batch", "width", 2])
    fix_shapes(model, {"x": (1, 5, 2)})
    replace_transforms(model)
    x = drawn((1, 5, 2))
    close(run(model, x)[0], parts(np.fft.fft(complex_of(x), axis=1)))


# --- files and the command ----------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("Add", ["x", "w"], ["a"]),
        helper.make_node("DFT", ["a"], ["b"], axis=1),
        helper.make_node("DFT", ["b"], ["y"], axis=2),
    ]
    model = graph_of(nodes, ["batch", 12, 10, 2], constants={"w": drawn((12, 10, 2))})
    place = tmp_path / "given.onnx"
    onnx.save(model, place, save_as_external_data=True, location="given.weights", size_threshold=0)
    return place


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["rewrite", *map(str, arguments)])


def refuses(part: str, *arguments: object) -> None:
    error = call(*arguments).exception
    assert isinstance(error, KdmriError), error
    assert part in str(error)


def test_command_tells_parity_and_times(file: Path) -> None:
    out = file.with_name("made.onnx")
    done = call(file, "-o", out, "--time", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["transforms"] == 2
    assert told["max_error"] <= told["tolerance"]["max_error"]
    assert told["against"].startswith("ONNX Runtime 1.")
    assert told["before_ms"] > 0
    assert told["after_ms"] > 0
    model = onnx.load(out, load_external_data=False)  # weights are inside
    assert not kinds(model)["DFT"]
    assert {i.data_location for i in model.graph.initializer} == {TensorProto.DEFAULT}
    assert told["file_bytes"] == out.stat().st_size
    refuses("nothing to rewrite", out, "-o", file.with_name("again.onnx"))


def test_mistakes_leave_nothing_behind(file: Path) -> None:
    before = sorted(file.parent.iterdir())
    out = file.with_name("made.onnx")
    refuses("to be rewritten", file, "-o", file)
    refuses("does not exist", file.with_name("none.onnx"), "-o", out)
    refuses("?x12x10x2", file, "-o", out, "--shape", "x=1x12x10x3")
    refuses("no input 'z'", file, "-o", out, "--shape", "z=1")
    assert call(file, "-o", out, "--shape", "x").exit_code == 2
    assert sorted(file.parent.iterdir()) == before
    file.with_name("given.weights").write_bytes(b"short")
    refuses("weights", file, "-o", out)
    file.with_name("given.weights").unlink()
    refuses("given.weights", file, "-o", out)
    assert not out.exists()


def test_another_result_is_not_written(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate is fed a rewriting that forgets the inverse's direction."""
    from kdmri_export.passes import onnx_fourier

    right = onnx_fourier.dft_matrix
    monkeypatch.setattr(
        onnx_fourier, "dft_matrix", lambda *a, **k: right(*a, **{**k, "inverse": True})
    )
    out = file.with_name("made.onnx")
    with pytest.raises(ParityError, match="max_error"):
        rewrite_graph(file, out)
    assert not out.exists()


def test_what_onnx_runtime_lacks_is_compared_with_the_reference(tmp_path: Path) -> None:
    model = graph_of(dft(axis=1, inverse=1, onesided=1), [1, 5, 2])
    given = tmp_path / "irfft.onnx"
    onnx.save(model, given)
    made = rewrite_graph(given, tmp_path / "out.onnx", timed=True)
    assert made.against.startswith(("ONNX's reference", "ONNX Runtime"))
    if made.against.startswith("ONNX's"):
        assert made.before_ms is None


def test_results_beyond_memory_are_not_compared(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_check, "_LARGEST_RESULTS", 900)
    refuses("too large to be compared", file, "-o", file.with_name("made.onnx"))
    model = load_graph(file)
    answer = ask_targets(file, model, {"onnx": (), "openvino": ()})["openvino"]
    assert answer.verdict is Verdict.TAKEN
    assert answer.difference is None


def test_what_holds_no_number_is_not_called_equal(tmp_path: Path) -> None:
    """A root of negative numbers is tried with positive ones; texts are left aside."""
    text = helper.make_node("Constant", [], ["z"], value_string="a text")
    for name, first, sign in (("root", "Identity", 1.0), ("nothing", "Abs", -1.0)):
        nodes = [
            helper.make_node(first, ["x"], ["a"]),
            helper.make_node("Mul", ["a", "sign"], ["b"]),
            helper.make_node("Sqrt", ["b"], ["c"]),
            helper.make_node("DFT", ["c"], ["y"], axis=1),
            text,
        ]
        model = graph_of(nodes, [1, 6, 2], constants={"sign": np.float32(sign)}, outputs=("y",))
        model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.STRING, []))
        onnx.save(model, tmp_path / f"{name}.onnx")
    made = rewrite_graph(tmp_path / "root.onnx", tmp_path / "out.onnx")
    assert 0 < made.max_error < 1e-5
    with pytest.raises(ExportError, match="no finite number"):
        rewrite_graph(tmp_path / "nothing.onnx", tmp_path / "no.onnx")
    assert not (tmp_path / "no.onnx").exists()


@pytest.mark.parametrize("seed", range(60))
def test_changed_bytes_are_one_sentence(seed: int, tmp_path: Path) -> None:
    """What a reader of ONNX files meets: nothing but this project's errors comes out."""
    nodes, constants = shift("x", "r", 1, 6, 2, way="slices")
    nodes.append(
        helper.make_node("If", ["c"], ["y"], then_branch=branches("a"), else_branch=branches("b"))
    )
    nodes.append(helper.make_node("DFT", ["r"], ["z"], axis=1))
    model = graph_of(
        nodes, [1, 6, 2], constants={**constants, "c": np.asarray(True)}, outputs=("y", "z")
    )
    content = bytearray(model.SerializeToString())
    generator = np.random.default_rng(seed)
    for _ in range(int(generator.integers(1, 6))):
        match generator.integers(3):
            case 0:
                content[generator.integers(len(content))] = generator.integers(256)
            case 1:
                del content[generator.integers(len(content)) :][:3]
            case _:
                at = int(generator.integers(len(content)))
                content[at:at] = generator.bytes(3)
    place = tmp_path / "changed.onnx"
    place.write_bytes(bytes(content))
    said = "."
    try:
        replace_transforms(load_graph(place))
    except KdmriError as error:
        said = str(error)
    assert said.endswith(".")
    assert "\n" not in said


@pytest.mark.parametrize(("nodes", "opset"), [("ai.onnx", "ai.onnx"), ("ai.onnx", ""),
                                              ("", "ai.onnx")])  # fmt: skip
def test_the_standard_domain_may_be_written_out(nodes: str, opset: str, tmp_path: Path) -> None:
    made, constants = transform(1)
    made.append(helper.make_node("Mul", ["y", "two"], ["z"]))
    for node in made:
        node.domain = nodes
    model = graph_of(made, (2, 8, 2), constants={**constants, "two": np.float32(2)}, outputs=["z"])
    model.opset_import[0].domain = opset
    onnx.save(model, tmp_path / "written-out.onnx")
    counts, findings = check_graph(tmp_path / "written-out.onnx", "onnx")
    assert (counts, findings) == ({"DFT": 1, "Mul": 1}, [])
    loaded = load_graph(tmp_path / "written-out.onnx")
    assert replace_transforms(loaded).transforms == 1
    x = drawn((2, 8, 2))
    close(run(loaded, x)[0], parts(2 * np.fft.fft(complex_of(x), axis=1)))


def test_bfloat16_is_compared_in_numbers_that_numpy_has(tmp_path: Path) -> None:
    made, constants = transform(1)
    kind = TensorProto.BFLOAT16
    wide = _with_float_ports(graph_of(made, (2, 8, 2), constants=constants, kind=kind))
    assert {p.type.tensor_type.elem_type for p in (*wide.graph.input, *wide.graph.output)} == {
        FLOAT
    }
    x = drawn((2, 8, 2))
    onnx.save(wide, tmp_path / "wide.onnx")
    evaluator = ReferenceEvaluator(str(tmp_path / "wide.onnx"))
    [found] = cast("Any", evaluator.run(None, {wide.graph.input[0].name: x}))
    close(found, parts(np.fft.fft(complex_of(x), axis=1)), share=0.02)
    plain = graph_of(made, (2, 8, 2), constants=constants)
    assert _with_float_ports(plain) is plain


@pytest.mark.nightly  # four processes
def test_graphs_in_bfloat16_are_compared_by_what_computes_them(tmp_path: Path) -> None:
    made, constants = transform(1)
    made.append(helper.make_node("Mul", ["y", "two"], ["z"]))
    kind = TensorProto.BFLOAT16
    two = np.float32(2).astype(helper.tensor_dtype_to_np_dtype(kind))
    model = graph_of(made, (2, 8, 2), constants={**constants, "two": two}, outputs=["z"], kind=kind)
    onnx.save(model, tmp_path / "rounded.onnx")
    done = rewrite_graph(tmp_path / "rounded.onnx", tmp_path / "out.onnx")
    assert done.transforms == 1
    assert done.against.startswith("ONNX's reference implementation")  # no CPU kernel has it
    written = onnx.load(tmp_path / "out.onnx")
    ports = (*written.graph.input, *written.graph.output)
    assert {port.type.tensor_type.elem_type for port in ports} == {kind}
    assert kinds(written)["DFT"] == 0
