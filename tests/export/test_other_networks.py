"""Networks of other packages, modules of nobody's class, leave by the same road as ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from kdmri_edge.errors import ExportError
from kdmri_edge.models.build import build_model
from kdmri_edge.models.checkpoint import Checkpoint, save_checkpoint
from kdmri_edge.models.specs import NETWORKS
from kdmri_edge.physics.consistency import data_consistency
from kdmri_edge.runtime.bundle import GOLDEN_INPUT, GOLDEN_OUTPUT, Bundle
from kdmri_edge.runtime.session import open_session
from kdmri_export.export import export_model
from kdmri_export.recipe import ExportRecipe
from tests.core.models.test_protocol import FAMILY, PlainSpec
from tests.export.networks import lines

Export = Callable[..., Bundle]


class Residual(nn.Module):
    """Blocks with skips, groups, another padding, and data consistency in between."""

    def __init__(self, spec: PlainSpec) -> None:
        super().__init__()
        self.head = nn.Conv2d(1, 8, 3, padding="same")
        self.block = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 1),
        )
        self.mirrored = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.tail = nn.Conv2d(8, 1, 5, padding=2, bias=False)

    def forward(self, x_u: Tensor, operator: Tensor) -> Tensor:
        x = self.head(x_u)
        x = x + self.block(x)
        x = torch.relu(self.mirrored(x))
        x = self.twice(torch.relu(self.twice(x)))
        image = data_consistency(x_u + self.tail(x), x_u, operator, 1.0, "projection")
        further = self.tail(torch.relu(self.mirrored(torch.relu(self.head(image)))))
        made: Tensor = data_consistency(image + further, x_u, operator, 0.7, "projection")
        return made


class NoConvolution(nn.Module):
    def __init__(self, spec: PlainSpec) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x_u: Tensor, operator: Tensor) -> Tensor:
        made: Tensor = data_consistency(self.scale * x_u, x_u, operator, 1.0, "projection")
        return made


class NoChain(nn.Module):
    """One convolution: it hands its output to no other."""

    def __init__(self, spec: PlainSpec) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x_u: Tensor, operator: Tensor) -> Tensor:
        made: Tensor = data_consistency(self.conv(x_u), x_u, operator, 1.0, "projection")
        return made


class NoImage(nn.Module):
    """Gives something else than an image, each in another way."""

    def __init__(self, spec: PlainSpec, way: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.way = way

    def forward(self, x_u: Tensor, operator: Tensor) -> object:
        made = data_consistency(self.conv(x_u), x_u, operator, 1.0, "projection")
        match self.way:
            case "tuple":
                return made, x_u
            case "complex":
                return torch.complex(made, made)
            case "shape":
                return made[:, 0]
            case "nan":
                return made / 0
        x_u += made
        return x_u


def pair(spec: PlainSpec) -> nn.Module:
    return NoImage(spec, "tuple")


def complex_numbers(spec: PlainSpec) -> nn.Module:
    return NoImage(spec, "complex")


def another_shape(spec: PlainSpec) -> nn.Module:
    return NoImage(spec, "shape")


def not_a_number(spec: PlainSpec) -> nn.Module:
    return NoImage(spec, "nan")


def in_place(spec: PlainSpec) -> nn.Module:
    return NoImage(spec, "in place")


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """Export a module of this file, or the plain one, under a line mask of 32."""

    def make(name: str, target: str, precision: str, **options: bool) -> Bundle:
        place = "tests.core.models.test_protocol:Plain"
        build = place if name == "Plain" else f"tests.export.test_other_networks:{name}"
        monkeypatch.setitem(NETWORKS._rows, "plain", replace(FAMILY, build=build))
        monkeypatch.setattr(NETWORKS, "_built_in", NETWORKS._built_in | {"plain"})
        torch.manual_seed(0)
        spec = PlainSpec()
        checkpoint = Checkpoint(
            spec=spec, mask=lines(), matrix=32, role="student", training={"data": []},
            state=build_model(spec).state_dict(),
        )  # fmt: skip
        save_checkpoint(tmp_path / "student.safetensors", checkpoint)
        recipe = ExportRecipe(target=target, precision=precision, **options)
        return export_model(tmp_path / "student.safetensors", recipe, tmp_path / "bundle")

    return make


# TorchScript's kernels put out integers alone: the last of a chain computes in float.
CASES = {
    ("Plain", "torchscript", "f16"): 2,
    ("Plain", "torchscript", "int8"): 1,
    ("Plain", "trt", "int8"): 2,
    ("Residual", "onnx", "f32"): 0,
    ("Residual", "onnx", "f16"): 6,
    ("Residual", "onnx", "int8"): 6,
    ("Residual", "openvino", "int8"): 6,
    ("Residual", "torchscript", "f16"): 6,
    ("Residual", "torchscript", "int8"): 1,
}


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_any_module_is_exported_and_counts_what_was_transformed(
    export: Export, case: tuple[str, str, str]
) -> None:
    name, target, precision = case
    bundle = export(name, target, precision)
    assert bundle.manifest["transformed"]["convolutions"] == CASES[case]
    assert bundle.manifest["network"] == {"reads": "magnitude", "has_data_consistency": True}
    backend = {"trt": "onnxruntime"}.get(target)
    given, wanted = (np.load(bundle.path / part) for part in (GOLDEN_INPUT, GOLDEN_OUTPUT))
    image = open_session(bundle.path, backend=backend, threads=1).run(given)
    limit = {"f32": 1e-5, "f16": 1e-2, "int8": 0.05}[precision]
    assert np.abs(image - wanted).max() < limit * np.ptp(wanted)


@pytest.mark.parametrize(
    ("name", "target", "precision"),
    [
        ("NoConvolution", "onnx", "f16"),
        ("NoConvolution", "onnx", "int8"),
        ("NoChain", "torchscript", "int8"),
    ],
)
def test_a_precision_that_transforms_nothing_is_refused(
    export: Export, tmp_path: Path, name: str, target: str, precision: str
) -> None:
    with pytest.raises(ExportError, match=r"Nothing .* in (fp16|int8)") as caught:
        export(name, target, precision)
    assert "--precision fp32" in caught.value.remedy
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pair", "returned a tuple of 2"),
        ("complex_numbers", r"returned \[1, 1, 32, 32\] in complex numbers"),
        ("another_shape", r"returned \[1, 32, 32\] in float32"),
        ("not_a_number", "NaN or infinite values for a phantom"),
        ("in_place", "changes its input in place"),
    ],
)
@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_what_gives_no_image_is_refused_before_anything_is_written(
    export: Export, tmp_path: Path, name: str, said: str, precision: str
) -> None:
    with pytest.raises(ExportError, match=said) as caught:
        export(name, "onnx", precision)
    assert caught.value.what.startswith("The network cannot be exported: it ")
    assert not (tmp_path / "bundle").exists()


def test_halves_are_handed_on_without_casts(export: Export) -> None:
    bundle = export("Plain", "trt", "f16")
    casts = [n for n in onnx.load(bundle.graph).graph.node if n.op_type == "Cast"]
    assert len(casts) == 2


def test_one_node_is_kept_where_all_data_consistency_is_alike(export: Export) -> None:
    bundle = export("Plain", "onnx", "f32", keep_op=True)
    kept = [n for n in onnx.load(bundle.graph).graph.node if n.op_type == "DataConsistency"]
    assert len(kept) == 1
    with pytest.raises(ExportError, match="2 kinds of data consistency"):
        export("Residual", "onnx", "f32", keep_op=True)


def test_any_mask_is_an_input_of_any_network(export: Export) -> None:
    bundle = export("Residual", "onnx", "f32", mask_input=True)
    assert bundle.manifest["mask_input"] is True
