"""Training in bf16 rounds convolutions, and not what data consistency is made of."""

from __future__ import annotations

import platform
from dataclasses import replace

import pytest
import torch
from torch import nn

from kdmri_edge.distillation.engine import Engine, in_bf16, make_fabric, resolve_precision
from kdmri_edge.distillation.loop import _WithFeatures
from kdmri_edge.distillation.recipe import Precision
from kdmri_edge.errors import BackendError
from kdmri_edge.models.build import build_model
from kdmri_edge.models.specs import preset


def test_images_and_operator_stay_float32_beside_convolutions_in_bf16() -> None:
    try:
        fabric = make_fabric(Engine(), Precision.BF16)
    except BackendError:
        pytest.skip("this CPU has no bf16 convolutions")
    assert in_bf16(fabric)
    network = build_model(replace(preset("dccnn-d3c5"), width=4, cascades=2))
    rounded: set[torch.dtype] = set()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            torch.nn.init.zeros_(module.weight)
            module.register_forward_hook(lambda *found: rounded.add(found[2].dtype))
    wrapped = fabric.setup_module(_WithFeatures(network))
    generator = torch.Generator().manual_seed(0)
    # Of convolutions that add nothing x_u is left: x_u - P x_u + x_u, with P = 1.
    x_u = torch.rand(1, 1, 16, 16, generator=generator)
    features = wrapped(x_u, torch.eye(16))
    assert rounded == {torch.bfloat16}
    image = features.output
    assert image.dtype is torch.float32
    assert torch.allclose(image, x_u, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("machine", "instructions", "computed", "chosen"),
    [
        ("x86_64", True, True, Precision.BF16),
        ("x86_64", False, True, Precision.F32),  # AVX-512 alone: it would be made of float32
        ("x86_64", False, False, Precision.F32),
        ("aarch64", False, True, Precision.BF16),
        ("aarch64", False, False, Precision.F32),
    ],
)
def test_a_cpu_trains_in_bf16_by_itself_where_it_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    instructions: bool,
    computed: bool,
    chosen: Precision,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: computed)
    assert resolve_precision(Precision.AUTO, "cpu") is chosen
    assert resolve_precision(Precision.F32, "cpu") is Precision.F32
    if computed:  # who asks for it gets it
        assert resolve_precision(Precision.BF16, "cpu") is Precision.BF16
    else:
        with pytest.raises(BackendError, match="no bf16 convolutions"):
            resolve_precision(Precision.BF16, "cpu")
