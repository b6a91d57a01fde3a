"""Data consistency for Torch-TensorRT, which needs a GPU and is stood in for here.

The stand-in does what `torch_tensorrt.dynamo.compile` does before it builds engines, with PyTorch
itself: decompositions from its own table, then constants folded; and it counts the engines: a node
without a converter ends one and begins another.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch._inductor.constant_folding import ConstantFolder, replace_node_with_constant

from kdmri_edge.errors import BackendError
from kdmri_export.targets.tensorrt import torch_program
from kdmri_export.targets.tensorrt.torch_operators import decompositions, kept, register
from kdmri_export.targets.tensorrt.torch_program import Compiled, compile_network
from tests.export.networks import maps, network
from tests.export.parity_cases import CASES, images

pytestmark = [
    # of torch.export about its own parts
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]
aten = torch.ops.aten
# Of those that Torch-TensorRT converts, what these networks need.
CONVERTERS = {
    aten.add.Tensor, aten.cat.default, aten.clone.default, aten.convolution.default,
    aten.expand.default, aten.matmul.default, aten.mul.Tensor, aten.neg.default,
    aten.permute.default, aten.relu.default, aten.reshape.default, aten.select.int,
    aten.slice.Tensor, aten.sub.Tensor, aten.sum.dim_IntList, aten.unsqueeze.default,
    aten.view.default,
}  # fmt: skip


def engines(compiled: torch.nn.Module) -> int:
    """Count the engines that the nodes of a lowered graph make."""
    count, inside = 0, False
    for node in compiled.graph.nodes:  # type: ignore[union-attr]
        if node.op == "call_function":
            converted = node.target in CONVERTERS
            count += converted and not inside
            inside = converted
    return count


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    """Install the stand-in; return its table of decompositions."""
    names = ("torch_tensorrt", "torch_tensorrt.dynamo", "torch_tensorrt.dynamo.lowering")
    root, dynamo, lowering = modules = [ModuleType(name) for name in names]
    for module in modules:
        module.__spec__ = ModuleSpec(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    found: dict[Any, Any] = {aten.alias.default: lambda x: x}  # one of its own

    def compile(program: Any, inputs: list[torch.Tensor], **options: bool) -> torch.nn.Module:
        assert options == {"use_explicit_typing": True, "disable_tf32": True}
        usual = torch.export.default_decompositions()
        for whole in (aten.matmul.default, aten.linear.default):  # it has converters for them
            usual.pop(whole, None)
        lowered = program.run_decompositions({**dict(usual.items()), **found}).module()
        folder = ConstantFolder(lowered, skip_constructors=False)
        folder.run()
        for node, constant in folder.node_replacements.items():
            replace_node_with_constant(lowered, node, constant)
        lowered.graph.eliminate_dead_code()
        lowered.recompile()
        return lowered  # type: ignore[no-any-return]

    vars(root).update(dynamo=dynamo, __version__="2.13.0")
    vars(dynamo).update(lowering=lowering, compile=compile)
    vars(lowering).update(TORCH_TRT_DECOMPOSITIONS=found)
    return found


# Of ours: a U-Net has operators beside those that the stand-in converts.
ONE_IMAGE = [name for name in CASES if "sense" not in name and name != "U-Net"]


@pytest.mark.parametrize("name", ONE_IMAGE)
def test_a_network_becomes_one_engine(name: str, table: dict[Any, Any]) -> None:
    architecture, mask, form, size = CASES[name]
    made = network(architecture, mask, form)
    x_u = torch.from_numpy(images(1, architecture.channels, size))
    _, compiled = compile_network(made, x_u)
    assert engines(compiled) == 1
    assert kept(compiled) == []
    for node in compiled.graph.nodes:
        kind = getattr(node.meta.get("val"), "dtype", torch.float32)
        assert kind == torch.float32, node.name  # nothing of how the DFT matrices are made is left
    with torch.no_grad():
        np.testing.assert_allclose(compiled(x_u), made(x_u), atol=2e-5)


@pytest.mark.parametrize("name", [name for name in CASES if "sense" in name])
def test_networks_that_combine_coils(name: str, table: dict[Any, Any]) -> None:
    """Compiled by somebody himself; the export refuses them for this builder."""
    architecture, mask, form, size = CASES[name]
    made = network(architecture, mask, form)
    given = torch.from_numpy(images(1, 2, size)), None, torch.from_numpy(maps(1, size))
    register()
    program = torch.export.export(made, given, strict=False)
    compiled = sys.modules["torch_tensorrt"].dynamo.compile(
        program, inputs=[], use_explicit_typing=True, disable_tf32=True
    )
    assert engines(compiled) == 1
    with torch.no_grad():
        np.testing.assert_allclose(compiled(*given), made(*given), atol=2e-5)


def test_without_it_there_are_several_and_the_program_is_refused(
    table: dict[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture, mask, form, size = CASES["magnitude"]
    made = network(architecture, mask, form)
    x_u = torch.from_numpy(images(1, 1, size))
    monkeypatch.setattr("kdmri_export.targets.tensorrt.torch_operators.register", lambda: None)
    with pytest.raises(BackendError, match=r"2\.13\.0 left data consistency.*--builder tensorrt"):
        compile_network(made, x_u)
    program = torch.export.export(made, (x_u,), strict=False)
    compiled = sys.modules["torch_tensorrt"].dynamo.compile(
        program, inputs=[], use_explicit_typing=True, disable_tf32=True
    )
    assert engines(compiled) == architecture.cascades
    assert len(kept(compiled)) == architecture.cascades


def test_registered_twice_it_stays_as_it_is(table: dict[Any, Any]) -> None:
    before = dict(table)
    register()
    register()
    assert table == {**before, **decompositions()}


def test_absent_or_changed_torch_tensorrt_is_one_sentence(
    table: dict[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(sys.modules["torch_tensorrt.dynamo.lowering"], "TORCH_TRT_DECOMPOSITIONS")
    with pytest.raises(BackendError, match=r"no table.*2\.8 to 2\.13"):
        register()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, p=None: None if "tensorrt" in n else find(n, p)
    )
    with pytest.raises(BackendError, match="pip install torch-tensorrt"):
        register()


class TestInTheBenchmark:
    """What `mode="torch-tensorrt"` of the PyTorch session calls."""

    def test_each_shape_is_compiled_once(
        self, table: dict[Any, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        architecture, mask, form, size = CASES["magnitude"]
        made = network(architecture, mask, form)
        shapes: list[tuple[int, ...]] = []

        def counted(network: Any, images: Any) -> tuple[Any, Any]:
            shapes.append(tuple(images.shape))
            return compile_network(network, images)

        monkeypatch.setattr(torch_program, "compile_network", counted)
        compiled = Compiled(made, "f32")
        assert compiled.build.endswith("2.13.0")
        one, three = (torch.from_numpy(images(n, 1, size)) for n in (1, 3))
        with torch.no_grad():
            for given in (one, three, one):
                np.testing.assert_allclose(compiled(given), made(given), atol=2e-5)
        assert shapes == [tuple(one.shape), tuple(three.shape)]

    def test_halves_are_cast_and_data_consistency_is_not(self, table: dict[Any, Any]) -> None:
        architecture, mask, form, size = CASES["magnitude"]
        wanted = network(architecture, mask, form)
        x_u = torch.from_numpy(images(1, 1, size))
        with torch.no_grad():
            whole = wanted(x_u)
            half = Compiled(network(architecture, mask, form), "f16")(x_u)
        error = float((half - whole).abs().max() / (whole.max() - whole.min()))
        assert half.dtype == torch.float32
        assert 1e-6 < error < 1e-2  # another image than in float32, and nearly the same

    def test_other_inputs_are_refused(self, table: dict[Any, Any]) -> None:
        architecture, mask, form, size = CASES["magnitude"]
        compiled = Compiled(network(architecture, mask, form), "f32")
        x_u = torch.from_numpy(images(1, 1, size))
        with pytest.raises(BackendError, match="holds its mask"):
            compiled(x_u, torch.eye(x_u.shape[-2]))
        several = next(name for name in CASES if "sense" in name)
        architecture, mask, form, _ = CASES[several]
        with pytest.raises(BackendError, match="networks of one image"):
            Compiled(network(architecture, mask, form), "f32")
