"""Quantised graphs: which nodes, which integers, and that runtimes really compute with them."""

from __future__ import annotations

import copy
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from kdmri_edge.errors import BackendError, CheckpointError, ExportError
from kdmri_edge.models.checkpoint import MAXIMA, RANGES, load_checkpoint, save_checkpoint
from kdmri_edge.models.network import as_network
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.models.specs import ModelSpec
from kdmri_edge.quantisation.calibration import HIGHEST, LOWEST, activation_maxima
from kdmri_edge.quantisation.equalisation import equalise
from kdmri_edge.quantisation.fake_quantisation import add_fake_quantisation
from kdmri_edge.quantisation.scheme import BELOW, in_two_parts
from kdmri_edge.runtime.backends.onnxruntime import OnnxRuntimeSession
from kdmri_edge.runtime.backends.torchscript import silence_warnings
from kdmri_edge.runtime.bundle import GOLDEN_INPUT, GOLDEN_OUTPUT
from kdmri_edge.runtime.session import open_session
from kdmri_export.export import export_model
from kdmri_export.graph_check import check_graph
from kdmri_export.passes.divide import divide_outputs
from kdmri_export.passes.integer import quantise_convolutions
from kdmri_export.passes.narrow import decompose_narrow_convs
from kdmri_export.passes.quantise import quantise_graph, round_outputs, share_ranges, sum_integers
from kdmri_export.recipe import ExportRecipe
from kdmri_export.targets.onnx import to_model, write
from tests.export.networks import UnetSpec, lines, network, spec, write_checkpoint
from tests.export.parity_cases import images

SIZE = (32, 24)


def model(*, unsigned: bool, maxima: dict[str, list[float]] | None = None) -> Any:
    reconstructor = network(spec(), lines(), size=SIZE)
    if maxima is not None:
        reconstructor.maxima = maxima
    return to_model(
        reconstructor,
        torch.rand(1, 1, *SIZE),
        ExportRecipe(target="onnx", precision="int8"),
        narrow=False,
        unsigned=unsigned,
    )[0]


@pytest.mark.parametrize("unsigned", [True, False])
def test_all_convolutions_are_quantised_and_images_are_split(unsigned: bool) -> None:
    graph = model(unsigned=unsigned).graph
    counts = Counter(node.op_type for node in graph.node)
    assert counts["Conv"] == 4
    assert counts["QuantizeLinear"] == 2 + 4  # rounded images; what each convolution reads
    assert counts["DequantizeLinear"] == 2 + 8  # the same, and its weight
    assert counts["Concat"] == 2
    makers = {output: node for node in graph.node for output in node.output}
    read = [makers.get(node.input[0]) for node in graph.node if node.op_type == "Conv"]
    assert all(maker and maker.op_type == "DequantizeLinear" for maker in read)
    kinds = {i.name: i.data_type for i in graph.initializer}
    points = {kinds[name] for name in kinds if name.endswith("input_zero_point")}
    assert points == {TensorProto.UINT8 if unsigned else TensorProto.INT8}


def test_signed_graphs_are_given_maps_beside_an_image_in_two_parts() -> None:
    graph = to_model(
        network(spec(carried=3), lines(), size=SIZE),
        torch.rand(1, 1, *SIZE),
        ExportRecipe(target="trt", precision="int8"),
        narrow=False,
        unsigned=False,
    )[0].graph
    counts = Counter(node.op_type for node in graph.node)
    assert (counts["Split"], counts["QuantizeLinear"]) == (0, 2 + 4)
    held = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    assert held["model.cascades.1.convs.0.weight.integers"].shape[1] == 2 * (2 + 3)


@pytest.mark.parametrize("shuffle", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_maps_beside_an_image_are_rounded_with_it_and_not_split(shuffle: int) -> None:
    architecture = spec(carried=3, shuffle=shuffle)
    graph = to_model(
        network(architecture, lines(), size=SIZE),
        torch.rand(1, 1, *SIZE),
        ExportRecipe(target="onnx", precision="int8"),
        narrow=False,
    )[0].graph
    counts = Counter(node.op_type for node in graph.node)
    assert counts["Split"] == 0
    assert counts["QuantizeLinear"] == 2 + 4  # images, and what each convolution reads
    # both images of the second cascade; and image, what rounding took from it, maps
    assert counts["Concat"] == 1 + 2
    held = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    read = held["model.cascades.1.convs.0.weight.integers"].shape[1]
    assert read == 2 * 2 * shuffle**2 + architecture.carried


@pytest.mark.parametrize(
    "architecture",
    [
        spec(carried=3),
        pytest.param(spec(), marks=pytest.mark.nightly),
        pytest.param(spec(carried=3, channels=2), marks=pytest.mark.nightly),
        spec(carried=3, shuffle=2),
    ],
)
def test_onnx_runtime_sums_the_integers_that_it_may_not_round(
    architecture: ModelSpec, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    made = network(architecture, lines(), size=SIZE)
    recipe = ExportRecipe(target="onnx", precision="int8")
    whole, _ = to_model(made, torch.rand(1, architecture.channels, *SIZE), recipe)
    apart = copy.deepcopy(whole)
    divide_outputs(apart)
    sum_integers(apart)
    onnx.checker.check_model(apart, full_check=True)
    x_u = images(1, architecture.channels, SIZE)
    found, executed = {}, {}
    for name, graph in (("whole", whole), ("apart", apart)):
        onnx.save(graph, tmp_path / f"{name}.onnx")
        session = OnnxRuntimeSession(tmp_path / f"{name}.onnx", precision="int8", threads=1)
        found[name], executed[name] = session.run(x_u), session.info.precision_executed
    with torch.no_grad():
        image = made(torch.from_numpy(x_u)).numpy()
    cost = np.abs(found["whole"] - image).mean()
    # the same integers: a sum on the edge between two may fall to either side
    assert np.abs(found["apart"] - found["whole"]).mean() < 0.1 * cost
    # one that writes an image only, in taps, which are shifted; and for maps one of their own
    maps = architecture.carried > 0
    shifted = 2 if architecture.shuffle == 1 else 0
    assert executed["apart"] == f"int8 in {4 + maps}/{4 + maps + shifted} convolutions"
    assert executed["whole"].startswith("int8 in 2/")


class _Parts(nn.Module):
    """Takes apart what one convolution writes, as networks with carried maps do."""

    def __init__(self, *, groups: int, bias: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.middle = nn.Conv2d(8, 24, 3, padding=1, groups=groups, bias=bias)
        self.last = nn.Conv2d(24, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.middle(torch.relu(self.first(x)))
        return x + self.last(torch.cat((y[:, :8], torch.relu(y[:, 8:])), 1))


@pytest.mark.parametrize(("groups", "bias"), [(2, True), (1, False)])
def test_other_convolutions_whose_output_is_taken_apart(
    groups: int, bias: bool, tmp_path: Path
) -> None:
    """Groups do not read all channels, and may not be divided; a bias may be missing."""
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    given = as_network(_Parts(groups=groups, bias=bias), UnetSpec())
    made = Reconstructor(given, lines()).eval()
    x_u = images(1, 1, SIZE)
    made.maxima = activation_maxima(given, [(torch.from_numpy(x_u), made.operator)])
    recipe = ExportRecipe(target="onnx", precision="int8")
    write(made, torch.rand(1, 1, *SIZE), tmp_path / "g.onnx", recipe)
    found = OnnxRuntimeSession(tmp_path / "g.onnx", precision="int8", threads=1).run(x_u)
    with torch.no_grad():
        wanted = made(torch.from_numpy(x_u)).numpy()
    assert np.abs(found - wanted).mean() < 0.02 * np.abs(wanted - x_u).mean()


def test_an_image_before_other_channels_is_told_from_them() -> None:
    """Of networks that concatenate otherwise, or elsewhere."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 5, 3, 3)).astype(np.float32)
    port, made = (
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 8, 8])
        for name, channels in (("read", 5), ("made", 4))
    )
    node = onnx.helper.make_node("Conv", ["read", "c.weight"], ["made"], "conv", pads=[1] * 4)
    constants = [numpy_helper.from_array(weight, "c.weight")]
    graph = onnx.helper.make_graph([node], "g", [port], [made], constants)
    given = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    x = rng.uniform(-1, 1, (1, 5, 8, 8)).astype(np.float32)
    (wanted,) = ReferenceEvaluator(given).run(None, {"read": x})
    quantise_graph(given, {"c": 1.0}, unsigned=True, images={"c": 2})
    onnx.checker.check_model(given, full_check=True)
    (found,) = ReferenceEvaluator(given).run(None, {"read": x})
    assert [n.op_type for n in given.graph.node].count("Split") == 1
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()


@pytest.mark.parametrize("fine", [False, True])
def test_what_is_read_in_two_parts_is_not_rounded_before(fine: bool) -> None:
    """Behind something other than a ReLU, ONNX Runtime's kernel would round it to eight bits."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) / 9, f"{name}.weight")
        for name, shape in (("a", (20, 1, 3, 3)), ("b", (20, 20, 3, 3)), ("c", (1, 20, 3, 3)))
    ]
    make, same = onnx.helper.make_node, {"pads": [1] * 4}
    nodes = [
        make("Conv", ["read", "a.weight"], ["x"], "a", **same),
        make("LeakyRelu", ["x"], ["y"], "leaky"),
        make("Conv", ["y", "b.weight"], ["z"], "b", **same),
        make("LeakyRelu", ["z"], ["w"], "leaky too"),
        make("Conv", ["w", "c.weight"], ["made"], "c", **same),
    ]
    read, made = (
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 16, 16])
        for name in ("read", "made")
    )
    graph = onnx.helper.make_graph(nodes, "g", [read], [made], weights)
    given = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    x = rng.uniform(-1, 1, (1, 1, 16, 16)).astype(np.float32)
    (wanted,) = ReferenceEvaluator(given).run(None, {"read": x})
    ranges = {"a": 1.0, "b": 1.5, "c": 3.0}
    ranges |= {f"{name}{half}": 3.0 for name in "ab" for half in (HIGHEST, LOWEST)}
    if fine:
        ranges["b:parts"] = 20.0
    quantise_graph(given, ranges, unsigned=True, images={"a": 1, "b": 0, "c": 0})
    round_outputs(given, ranges)
    onnx.checker.check_model(given, full_check=True)
    rounded = {node.name for node in given.graph.node if node.op_type == "QuantizeLinear"}
    assert ("a.a.output.Q" in rounded) is not fine
    assert "b.b.output.Q" in rounded
    (found,) = ReferenceEvaluator(given).run(None, {"read": x})
    assert np.abs(found - wanted).mean() < 0.1 * np.abs(wanted).mean()


def test_weights_are_rounded_per_output_channel() -> None:
    reconstructor = network(spec(), lines(), size=SIZE)
    held = {i.name: numpy_helper.to_array(i) for i in model(unsigned=True).graph.initializer}
    equalise(reconstructor.model, reconstructor.maxima)
    name = "model.cascades.1.convs.1.weight"
    integers, scale = held[f"{name}.integers"], held[f"{name}.scale"]
    assert name not in held
    assert integers.dtype == np.int8
    assert np.abs(integers).reshape(len(integers), -1).max(1).tolist() == [127] * len(integers)
    weight = reconstructor.state_dict()[name].numpy()
    assert np.abs(integers * scale[:, None, None, None] - weight).max() <= scale.max() / 2 * 1.001


def test_signed_graphs_suit_tensorrt_and_unsigned_ones_do_not() -> None:
    assert not check_graph(model(unsigned=False), "trt")[1]
    findings = check_graph(model(unsigned=True), "trt")[1]
    assert findings
    assert "signed" in findings[0].why


@pytest.mark.parametrize("fine", [False, True], ids=["", "fine"])
@pytest.mark.parametrize("below", [None, 0.3])
@pytest.mark.parametrize("architecture", [spec(), spec(carried=3)], ids=["dccnn", "carried maps"])
def test_torchscript_computes_what_training_with_rounding_did(
    architecture: ModelSpec, below: float | None, fine: bool
) -> None:
    """But for the last bit: rounding half to even meets sums in another order."""
    trained = network(architecture, lines(), size=SIZE)
    ranges = equalise(trained.model, trained.maxima)
    read = [one.name for one in trained.model.layers() if not one.rectified]
    if below is not None:
        ranges |= {f"{name}{BELOW}": below * ranges[name] for name in read}
    if fine:
        ranges |= in_two_parts(
            trained.model, ranges, unsigned=True, also=["cascades.1.convs.0", "cascades.1.convs.1"]
        )
    exported = copy.deepcopy(trained)
    add_fake_quantisation(trained.model, ranges, unsigned=True)
    # the reference kernels: others may saturate on CPUs without integer dot products
    usual = torch.backends.quantized.engine
    torch.backends.quantized.engine = "qnnpack"
    try:
        with silence_warnings(), torch.no_grad():
            written = quantise_convolutions(exported, ranges)
            decompose_narrow_convs(exported)
            x_u = torch.from_numpy(images(1, 1, SIZE))
            wanted, given = trained(x_u), exported(x_u)
    finally:
        torch.backends.quantized.engine = usual
    assert float((wanted - given).abs().mean()) < 1e-3 * float(wanted.abs().mean())
    why = written.left["cascades.1.convs.0"] if fine else ""
    assert ("read in two parts" in why) is fine


def test_maxima_of_another_network_are_refused() -> None:
    with pytest.raises(ExportError, match=r"cascades\.0\.convs\.0"):
        quantise_convolutions(network(spec(), lines(), size=SIZE), {"cascades.7.convs.1": 1.0})
    with pytest.raises(ExportError, match=r"cascades\.7\.convs\.1"):
        model(unsigned=True, maxima={"cascades.7.convs.1": [1.0]})


@pytest.mark.parametrize("target", ["torchscript", "onnx", "openvino"])
class TestBundles:
    def test_runs_in_integers_and_in_nothing_else(self, target: str, tmp_path: Path) -> None:
        checkpoint = write_checkpoint(tmp_path / "student.safetensors")
        recipe = ExportRecipe(target=target, precision="int8")
        out = tmp_path / recipe.bundle_name("student")
        bundle = export_model(checkpoint, recipe, out)
        assert out.name == f"student-{target}-int8"
        assert bundle.manifest["precision"] == "int8"
        assert bundle.manifest["calibrated_on"] == "phantom"  # the checkpoint brings no maxima
        session = open_session(bundle.path, threads=1)
        assert re.search(r"int8 in [1-9]", session.info.precision_executed)
        given, wanted = (np.load(bundle.path / name) for name in (GOLDEN_INPUT, GOLDEN_OUTPUT))
        output = session.run(given)
        assert 0 < np.abs(output - wanted).max() < 0.1 * np.ptp(wanted)
        with pytest.raises(BackendError, match="int8"):
            open_session(bundle.path, precision="f32")

    def test_float_bundle_does_not_run_in_integers(self, target: str, tmp_path: Path) -> None:
        checkpoint = write_checkpoint(tmp_path / "student.safetensors")
        bundle = export_model(checkpoint, ExportRecipe(target=target), tmp_path / "bundle")
        with pytest.raises(BackendError, match="--precision int8"):
            open_session(bundle.path, precision="int8")


@pytest.mark.parametrize(
    ("tuned", "target"), [("int8-signed", "torchscript"), ("int8-signed", "onnx"), ("int8", "trt")]
)
def test_copies_tuned_for_other_integers_are_refused(
    tuned: str, target: str, tmp_path: Path
) -> None:
    path = write_checkpoint(tmp_path / "student.safetensors")
    held = load_checkpoint(path)
    training = {**held.training, "recipe": {"quantise": tuned}}
    names = {f"cascades.{n}.convs.{m}": 3.0 for n in range(2) for m in range(2)}
    save_checkpoint(path, replace(held, training={**training, RANGES: names}))
    recipe = ExportRecipe(target=target, precision="int8")
    with pytest.raises(ExportError, match=f"tuned for {tuned}"):
        export_model(path, recipe, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    # a float student of the same run holds no such ranges
    save_checkpoint(path, replace(held, training=training))
    export_model(path, ExportRecipe(target="onnx", precision="int8"), tmp_path / "bundle")


@pytest.mark.parametrize(
    ("key", "held"),
    [
        *((MAXIMA, held) for held in (1.0, "3", None, [], ["x"], [[1.0]], [-1.0], [True])),
        *((MAXIMA, held) for held in ([float("nan")], [10**400], [1.0, 2.0])),
        *((RANGES, held) for held in ([1.0], "3", None, -1.0, True, float("inf"), 10**400)),
    ],
)
def test_magnitudes_that_are_none_are_refused(key: str, held: object, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "student.safetensors")
    checkpoint = load_checkpoint(path)
    sound = {MAXIMA: {0: [3.0], 1: [3.0] * 4}, RANGES: {0: 3.0, 1: 3.0}}[key]
    known: dict[str, object] = {
        f"cascades.{n}.convs.{m}": sound[m] for n in range(2) for m in range(2)
    }
    known["cascades.0.convs.0"] = held
    save_checkpoint(path, replace(checkpoint, training={**checkpoint.training, key: known}))
    recipe = ExportRecipe(target="onnx", precision="int8")
    with pytest.raises(CheckpointError, match=r"activations of 'cascades\.0\.convs\.0' is no"):
        export_model(path, recipe, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("key", [MAXIMA, RANGES])
@pytest.mark.parametrize("held", [-1.0, 0.5, 6.0, True, "1", None, 1e300, float("nan"), [1.0]])
def test_parts_that_are_no_channels_are_refused(key: str, held: object, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "student.safetensors", spec(carried=3))
    checkpoint = load_checkpoint(path)
    sound = {MAXIMA: [3.0], RANGES: 3.0}[key]
    known: dict[str, object] = {"cascades.0.convs.0": sound, "cascades.1.convs.0:parts": held}
    save_checkpoint(path, replace(checkpoint, training={**checkpoint.training, key: known}))
    recipe = ExportRecipe(target="onnx", precision="int8")
    with pytest.raises(CheckpointError, match="no number of channels"):
        export_model(path, recipe, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("key", [MAXIMA, RANGES])
def test_magnitudes_that_are_no_table_or_half_of_it_are_refused(key: str, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "student.safetensors")
    checkpoint = load_checkpoint(path)
    sound = {MAXIMA: {0: [3.0], 1: [3.0] * 4}, RANGES: {0: 3.0, 1: 3.0}}[key]
    known = {f"cascades.{n}.convs.{m}": sound[m] for n in range(2) for m in range(2)}
    half = {**known, "cascades.0.convs.0:highest": sound[1]}
    recipe = ExportRecipe(target="onnx", precision="int8")
    for held, error, said in (
        (half, CheckpointError, "highest"),
        ([1], CheckpointError, "no table"),
    ):
        save_checkpoint(path, replace(checkpoint, training={**checkpoint.training, key: held}))
        with pytest.raises(error, match=said):
            export_model(path, recipe, tmp_path / "bundle")


def test_layers_of_equal_weights_share_how_far_an_image_reaches_below_zero() -> None:
    weights = {"a": torch.ones(4, 1, 3, 3), "b": torch.ones(4, 1, 3, 3)}
    both = {"a": 1.0, "b": 2.0, "a:below": 0.1, "b:below": 0.3}
    found, _ = share_ranges(both, weights)
    assert found == {"a": 2.0, "b": 2.0, "a:below": 0.3, "b:below": 0.3}
    # of one it is not known, and nothing of its image may be cut off
    found, _ = share_ranges({"a": 1.0, "b": 2.0, "b:below": 0.3}, weights)
    assert found == {"a": 2.0, "b": 2.0}


def test_maxima_travel_with_the_checkpoint(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "student.safetensors")
    checkpoint = load_checkpoint(path)
    wide = {0: [3.0], 1: [3.0] * 4}  # by the channels that each convolution reads
    maxima = {f"cascades.{n}.convs.{m}": wide[m] for n in range(2) for m in range(2)}
    save_checkpoint(path, replace(checkpoint, training={**checkpoint.training, MAXIMA: maxima}))
    bundle = export_model(path, ExportRecipe(target="onnx", precision="int8"), tmp_path / "bundle")
    assert bundle.manifest["calibrated_on"] == "training volumes"
    held = {i.name: numpy_helper.to_array(i) for i in onnx.load(bundle.graph).graph.initializer}
    scale = held["model.cascades.0.convs.0.input_scale"]
    assert float(scale) == pytest.approx(3.0 / 127)


def test_maps_that_an_older_version_measured_are_not_rounded_with_their_image(
    tmp_path: Path,
) -> None:
    """It measured what the layers write that write image and maps; no runtime rounds both alike."""
    made = network(spec(carried=3), lines(), size=SIZE)
    path = write_checkpoint(tmp_path / "student.safetensors", spec(carried=3))
    held = load_checkpoint(path)
    behind = {f"cascades.0.convs.1:{what}": [3.0] * 4 for what in ("highest", "lowest")}
    training = {**held.training, MAXIMA: {**made.maxima, **behind}}
    save_checkpoint(path, replace(held, training=training))
    recipe = ExportRecipe(target="onnx", precision="int8", floats=("auto",))
    bundle = export_model(path, recipe, tmp_path / "bundle")
    assert bundle.manifest["calibrated_on"] == "training volumes"
    kept = bundle.manifest["kept_in_float"]
    assert kept["layers"] == []
    constants = {i.name for i in onnx.load(bundle.graph).graph.initializer}
    assert not any(
        name.startswith("model.cascades.0.") and ".output_" in name for name in constants
    )
    given, wanted = (np.load(bundle.path / name) for name in (GOLDEN_INPUT, GOLDEN_OUTPUT))
    output = open_session(bundle.path, threads=1).run(given)
    assert np.abs(output - wanted).max() < 0.1 * np.ptp(wanted)


def test_precisions_that_a_target_lacks_are_refused() -> None:
    with pytest.raises(ExportError, match="fp32, fp16, int8"):
        ExportRecipe(target="torchscript", precision="bf16")
    with pytest.raises(ExportError, match="int3"):
        ExportRecipe(target="onnx", precision="int3")
