"""Precisions act on every Conv2d, ConvTranspose2d and Linear of any network, and say on which."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from kdmri_edge.errors import ExportError, ParityError
from kdmri_edge.runtime.bundle import GOLDEN_INPUT, GOLDEN_OUTPUT, Bundle
from kdmri_edge.runtime.session import open_session
from kdmri_export import rounding_cost
from kdmri_export.recipe import ExportRecipe

Export = Callable[..., Bundle]


def at_night(*values: str) -> list[Any]:
    """Return parameters of which only the first one is tested for every change."""
    first, *others = values
    return [first, *(pytest.param(value, marks=pytest.mark.nightly) for value in others)]


PLAIN = """
from torch import nn
def net():
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
                         nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
"""

# Every kind of layer, and what is none of them.
MIXED = """
import torch
from torch import nn
from torch.nn import functional as F
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm = nn.InstanceNorm2d(8)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4)
        self.twice = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.mix = nn.Linear(8, 8)
        self.own = nn.Parameter(0.05 * torch.randn(8, 8, 3, 3))
        self.last = nn.Conv2d(8, 1, 1)
    def forward(self, x):
        y = F.leaky_relu(self.norm(self.head(x)), 0.1)
        z = torch.relu(self.grouped(torch.relu(self.down(y))))
        z = self.twice(torch.relu(self.twice(z)))
        y = y + self.up(z)
        y = y + self.mix(y.movedim(1, -1)).movedim(-1, 1)
        y = y + F.conv2d(y, self.own, padding=1)
        return x + self.last(y)
"""
KINDS = {"Conv2d": 5, "ConvTranspose2d": 1, "Linear": 1}


def written(tmp_path: Path, source: str, name: str) -> str:
    (tmp_path / "own.py").write_text(source)
    return f"{tmp_path / 'own.py'}:{name}"


def deviation(bundle: Bundle) -> float:
    given, wanted = (np.load(bundle.path / part) for part in (GOLDEN_INPUT, GOLDEN_OUTPUT))
    backend = "onnxruntime" if bundle.target.name == "trt" else None
    with open_session(bundle.path, backend=backend, threads=1) as session:
        image = session.run(given)
    return float(np.abs(image - wanted).max() / np.ptp(wanted))


def weights(bundle: Bundle) -> Counter[int]:
    """Count the tensors of more than one axis of a graph by their type."""
    held = onnx.load(bundle.graph).graph.initializer
    return Counter(tensor.data_type for tensor in held if len(tensor.dims) > 1)


class TestAPlainModule:
    """The mislabelled case: convolutions that no class of this library made."""

    @pytest.mark.parametrize("target", at_night("trt", "onnx"))
    def test_halves_are_halves(self, export_code: Export, tmp_path: Path, target: str) -> None:
        bundle = export_code(written(tmp_path, PLAIN, "net"), target, "f16")
        # for CPUs the last one is taken apart into two
        assert weights(bundle)[TensorProto.FLOAT16] == {"onnx": 4, "trt": 3}[target]
        assert bundle.manifest["transformed"]["layers"] == {"Conv2d": 3}
        assert 0 < deviation(bundle) < 1e-2

    @pytest.mark.parametrize("target", at_night("openvino", "onnx", "torchscript"))
    def test_integers_are_integers(self, export_code: Export, tmp_path: Path, target: str) -> None:
        bundle = export_code(written(tmp_path, PLAIN, "net"), target, "int8")
        executed = open_session(bundle.path, threads=1).info.precision_executed
        counted = re.search(r"int8 in (\d+)", executed)
        assert counted is not None
        assert int(counted[1]) >= 2  # the last one makes an image
        assert bundle.manifest["executed"]["precision"] == executed
        assert 0 < deviation(bundle) < 0.05


class TestEveryKind:
    @pytest.mark.parametrize("target", at_night("torchscript", "onnx", "openvino", "trt"))
    def test_halves(self, export_code: Export, tmp_path: Path, target: str) -> None:
        bundle = export_code(written(tmp_path, MIXED, "Net"), target, "f16")
        done = bundle.manifest["transformed"]
        assert done["layers"] == done["of"] == KINDS
        assert done["convolutions"] == 5
        assert done["left"] == {}
        assert done["functional"] == ["conv2d in line 23 of own.py"]
        assert 0 < deviation(bundle) < 1e-2

    @pytest.mark.parametrize("target", at_night("onnx", "openvino", "trt"))
    def test_integers(self, export_code: Export, tmp_path: Path, target: str) -> None:
        bundle = export_code(written(tmp_path, MIXED, "Net"), target, "int8")
        done = bundle.manifest["transformed"]
        assert done["layers"] == done["of"] == KINDS
        assert done["functional"] == ["conv2d in line 23 of own.py"]
        assert 0 < deviation(bundle) < 0.05
        if target != "onnx":
            return
        held = [i for i in onnx.load(bundle.graph).graph.initializer if len(i.dims) == 4]
        assert sum("twice" in i.name and i.data_type == TensorProto.INT8 for i in held) == 1
        executed = bundle.manifest["executed"]["precision"]
        counted = re.fullmatch(r"int8 in (\d)/\d convolutions, int8 in 1 products", executed)
        assert counted is not None, executed
        assert int(counted[1]) >= 6


NORMALISED = """
from torch import nn
def block(i, o, kind):
    norm = nn.BatchNorm2d(o) if kind == "batch" else nn.GroupNorm(2, o)
    return [nn.Conv2d(i, o, 3, padding=1), norm, nn.ReLU() if kind == "batch" else nn.SiLU()]
class Net(nn.Sequential):
    def __init__(self, kind):
        super().__init__(*block(1, 8, kind), *block(8, 8, kind), nn.Conv2d(8, 1, 3, padding=1))
    def forward(self, x):
        return x + 0.05 * super().forward(x)
def net(kind="batch"):
    return Net(kind)
"""


@pytest.mark.parametrize(("kind", "normalisations"), [("batch", 0), ("group", 2)])
def test_normalised_convolutions_run_in_integers(
    export_code: Export, tmp_path: Path, kind: str, normalisations: int
) -> None:
    """A batch normalisation becomes part of its convolution; others read rounded values."""
    bundle = export_code(written(tmp_path, NORMALISED, f"net?kind={kind}"), "onnx", "int8")
    counts = Counter(node.op_type for node in onnx.load(bundle.graph).graph.node)
    assert counts["BatchNormalization"] == 0
    assert counts["InstanceNormalization"] == normalisations
    executed = bundle.manifest["executed"]["precision"]
    assert executed.startswith("int8 in 3/")  # the last one, in taps, makes an image of its sums
    assert 0 < deviation(bundle) < 0.05


def test_copies_that_were_not_trained_are_layers_of_their_own(
    export_code: Export, tmp_path: Path
) -> None:
    """PyTorch's exporter holds equal weights once, under one of their names."""
    source = """
import copy
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.one = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.two, self.end = copy.deepcopy(self.one), nn.Conv2d(8, 1, 3, padding=1)
    def forward(self, x):
        return x + 0.1 * self.end(self.two(self.one(self.first(x).tanh()).tanh()).tanh())
"""
    bundle = export_code(written(tmp_path, source, "Net"), "onnx", "int8")
    names = {one.name for one in onnx.load(bundle.graph).graph.initializer}
    assert len({name for name in names if name.endswith((".integers", ".unsigned"))}) == 3
    assert bundle.manifest["transformed"]["layers"] == {"Conv2d": 4}
    assert re.search("int8 in [34]/", bundle.manifest["executed"]["precision"])
    assert 0 < deviation(bundle) < 0.05


def test_one_module_of_several_names_is_rounded_as_one(export_code: Export, tmp_path: Path) -> None:
    """An unrolled network hands one denoiser to each of its steps; the exporter names it by the
    last one."""
    source = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        denoiser = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, padding=1), nn.Tanh(),
            nn.Conv2d(8, 1, 3, padding=1),
        )
        self.steps = nn.ModuleList([denoiser] * 3)
    def forward(self, x):
        for step in self.steps:
            x = x + 0.1 * step(x)
        return x
"""
    bundle = export_code(written(tmp_path, source, "Net"), "onnx", "int8")
    names = {one.name for one in onnx.load(bundle.graph).graph.initializer}
    assert not [name for name in names if re.search(r"steps\.[12]", name)]
    assert bundle.manifest["transformed"]["layers"] == {"Conv2d": 3}
    assert re.search("int8 in [6-9]/", bundle.manifest["executed"]["precision"])
    assert 0 < deviation(bundle) < 0.05


class TestLayersThatStayInFloat:
    def test_they_are_named_by_patterns(self, export_code: Export, tmp_path: Path) -> None:
        code = written(tmp_path, MIXED, "Net")
        bundle = export_code(code, "onnx", "f16", floats=("grouped", "m?x"))
        done = bundle.manifest["transformed"]
        assert done["layers"] == {"Conv2d": 4, "ConvTranspose2d": 1}
        assert done["of"] == KINDS
        assert set(done["left"]) == {"module.grouped", "module.mix"}
        names = {
            one.name: one.data_type
            for one in onnx.load(bundle.graph).graph.initializer
            if "grouped" in one.name
        }
        assert set(names.values()) == {TensorProto.FLOAT}

    @pytest.mark.parametrize("target", at_night("onnx", "openvino"))
    def test_in_integers_their_neighbours_hand_on_floats(
        self, export_code: Export, tmp_path: Path, target: str
    ) -> None:
        bundle = export_code(written(tmp_path, PLAIN, "net"), target, "int8", floats=("0",))
        assert bundle.manifest["transformed"]["left"] == {"module.0": "asked for in float"}
        assert re.search("int8 in [1-3]/", bundle.manifest["executed"]["precision"])
        assert 0 < deviation(bundle) < 0.05

    def test_those_that_lose_most_are_found(
        self, export_code: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One channel is a thousand times as large as the others, and is taken away again."""
        source = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.good = nn.Conv2d(1, 8, 3, padding=1)
        self.odd = nn.Conv2d(9, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 1, 3, padding=1)
    def forward(self, x):
        y = torch.tanh(self.good(x))
        z = self.odd(torch.cat((y, torch.full_like(x, 300.0)), 1))
        z = z - z.detach().mean((2, 3), keepdim=True)
        return x + 3 * self.last(torch.tanh(z))
"""
        code = written(tmp_path, source, "Net")
        with pytest.raises(ParityError, match="--float auto"):
            export_code(code, "openvino", "int8")
        assert not (tmp_path / "openvino-int8").exists()
        bundle = export_code(code, "openvino", "int8", floats=("auto",))
        kept = bundle.manifest["kept_in_float"]
        assert kept["layers"] == ["module.odd"]
        assert kept["cost"]["module.odd"] == max(kept["cost"].values())
        assert kept["after"]["nrmse"] < kept["before"]["nrmse"]
        assert kept["cost_of"] == "image"
        assert bundle.manifest["transformed"]["layers"] == {"Conv2d": 2}
        monkeypatch.setattr(rounding_cost, "_MOST_BY_IMAGE", 2)
        kept = export_code(code, "onnx", "int8", floats=("auto",)).manifest["kept_in_float"]
        assert kept["cost_of"] == "layer"
        assert kept["layers"][0] == "module.odd"

    def test_the_rounding_of_outputs_is_foreseen(self, export_code: Export, tmp_path: Path) -> None:
        """ONNX Runtime rounds what layers put out as well, here before a tanh."""
        source = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 1, 3, padding=1)
    def forward(self, x):
        return x + self.last(torch.tanh(4 * self.second(torch.tanh(4 * self.first(x)))))
"""
        made = export_code(written(tmp_path, source, "Net"), "onnx", "int8", floats=("auto",))
        foreseen = made.manifest["kept_in_float"]["after"]["nrmse"]
        assert made.manifest["parity"]["figures"]["nrmse"] == pytest.approx(foreseen, rel=0.3)

    @pytest.mark.nightly
    def test_auto_keeps_none_where_none_has_to_be(
        self, export_code: Export, tmp_path: Path
    ) -> None:
        bundle = export_code(written(tmp_path, PLAIN, "net"), "onnx", "int8", floats=("auto",))
        assert bundle.manifest["kept_in_float"]["layers"] == []
        assert bundle.manifest["transformed"]["layers"] == {"Conv2d": 3}

    def test_a_layer_that_is_not_there(self, export_code: Export, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match="called 'grupped'; did you mean"):
            export_code(written(tmp_path, MIXED, "Net"), "onnx", "f16", floats=("grupped",))
        assert not (tmp_path / "onnx-f16").exists()

    @pytest.mark.parametrize(
        ("target", "precision", "floats", "said"),
        [
            ("onnx", "f32", ("head",), "In fp32 no layer"),
            ("openvino", "bf16", ("head",), "In bf16 no layer"),
            ("onnx", "f16", ("auto",), "for int8 alone"),
        ],
    )
    def test_where_it_makes_no_sense(
        self, target: str, precision: str, floats: tuple[str, ...], said: str
    ) -> None:
        with pytest.raises(ExportError, match=said):
            ExportRecipe(target=target, precision=precision, floats=floats)

    def test_all_of_them_are_nothing(self, export_code: Export, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match=r"Nothing .* in fp16 .*asked for in float"):
            export_code(written(tmp_path, PLAIN, "net"), "onnx", "f16", floats=("*",))


class TestNothingToTransform:
    """A precision that changed nothing is refused, with what there is instead."""

    @pytest.mark.parametrize("precision", at_night("f16", "int8"))
    @pytest.mark.parametrize(
        ("forward", "said"),
        [
            ("F.conv2d(x, self.weight, padding=1)", "conv2d in line 9 of own.py"),
            ("x + (x @ self.square)", "in line 9 of own.py"),
            ("x + F.linear(x, self.square * 2)", "linear in line 9 of own.py"),
        ],
    )
    def test_functions_are_named(
        self, export_code: Export, tmp_path: Path, forward: str, said: str, precision: str
    ) -> None:
        source = f"""from torch import nn
import torch
from torch.nn import functional as F
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(1, 1, 3, 3) / 9)
        self.square = nn.Parameter(torch.rand(32, 32) / 32)
    def forward(self, x): return {forward}
"""
        with pytest.raises(ExportError, match="Nothing") as caught:
            export_code(written(tmp_path, source, "Net"), "onnx", precision)
        assert said in caught.value.what
        assert "/own.py" not in caught.value.what
        assert not (tmp_path / f"onnx-{precision}").exists()

    def test_what_has_no_integer_kernel_is_named(self, export_code: Export, tmp_path: Path) -> None:
        source = """from torch import nn
def net(): return nn.ConvTranspose2d(1, 1, 3, padding=1)
"""
        with pytest.raises(ExportError, match="no integer kernel for overlapping"):
            export_code(written(tmp_path, source, "net"), "onnx", "int8")

    def test_integers_that_pytorch_computes_in_float(
        self, export_code: Export, tmp_path: Path
    ) -> None:
        with pytest.raises(ExportError, match="PyTorch's integer kernels need another"):
            export_code(written(tmp_path, NORMALISED, "net?kind=group"), "torchscript", "int8")


class TestWeightsThatAreComputed:
    @pytest.mark.parametrize("precision", at_night("int8", "f16"))
    def test_a_normalised_weight_is_folded(
        self, export_code: Export, tmp_path: Path, precision: str
    ) -> None:
        source = """
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
def net():
    return nn.Sequential(weight_norm(nn.Conv2d(1, 8, 3, padding=1)), nn.ReLU(),
                         weight_norm(nn.Conv2d(8, 8, 3, padding=1)), nn.ReLU(),
                         nn.Conv2d(8, 1, 3, padding=1))
"""
        bundle = export_code(written(tmp_path, source, "net"), "onnx", precision)
        assert bundle.manifest["transformed"]["layers"] == {"Conv2d": 3}
        assert 0 < deviation(bundle) < 0.05

    @pytest.mark.parametrize("precision", at_night("int8", "f16"))
    def test_a_weight_that_two_layers_have_stays(
        self, export_code: Export, tmp_path: Path, precision: str
    ) -> None:
        source = """
from torch import nn
def net():
    made = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
                         nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
                         nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
    made[4].weight = made[2].weight
    return made
"""
        bundle = export_code(written(tmp_path, source, "net"), "openvino", precision)
        left = bundle.manifest["transformed"]["left"]
        assert left == dict.fromkeys(("module.2", "module.4"), "its weight is used elsewhere, too")


class TestTorchScriptFollowsNoValues:
    """Its tracer fixes what a network decides by values; torch.export tells."""

    def test_by_values_is_refused(self, export_code: Export, tmp_path: Path) -> None:
        source = """from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
    def forward(self, x):
        return self.conv(x) if x.mean() > 0 else x
"""
        with pytest.raises(ExportError, match=r"values of its inputs in line 7 of .*own\.py"):
            export_code(written(tmp_path, source, "Net"), "torchscript", "f32")
        assert not (tmp_path / "torchscript-f32").exists()

    def test_by_shape_is_taken(self, export_code: Export, tmp_path: Path) -> None:
        source = """from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
    def forward(self, x):
        return self.conv(x) if x.shape[-1] % 2 == 0 else x
"""
        export_code(written(tmp_path, source, "Net"), "torchscript", "f32")
