"""A student whose middle convolution stands for several of its teacher's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kdmri_edge.errors import ModelError
from kdmri_edge.models.build import Network, build_model
from kdmri_edge.models.initialisation import bridge, inherit_ends, stacks
from kdmri_edge.models.specs import ModelSpec, preset

PAIRS = [
    ("dccnn-d5c5", "dccnn-d3c5"),
    *(
        pytest.param(*pair, marks=pytest.mark.nightly)
        for pair in (("dccnn-d5c5-complex", "dccnn-d3c5-complex"), ("vdsr-11", "vdsr-7"))
    ),
]


def _operator(spec: ModelSpec, size: int) -> Tensor:
    """Some projection: data consistency of either kind takes its real or both parts."""
    basis = torch.linalg.qr(torch.randn(size, size // 2)).Q
    real = basis @ basis.T
    return real if spec.channels == 1 else torch.block_diag(real, real)


def _images(spec: ModelSpec, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(4, spec.channels, 24, 20, generator=generator)


def _pass_on(conv: nn.Module) -> None:
    """Make a convolution hand on what it reads."""
    assert isinstance(conv, nn.Conv2d)
    with torch.no_grad():
        nn.init.dirac_(conv.weight)
        assert conv.bias is not None
        conv.bias.zero_()


def _pair(big: str, small: str, **changes: object) -> tuple[Network, Network]:
    torch.manual_seed(0)
    return build_model(preset(big)), build_model(replace(preset(small), **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(("big", "small"), PAIRS)
def test_what_one_convolution_can_do_it_does(big: str, small: str) -> None:
    teacher, student = _pair(big, small)
    skipped = teacher.spec.convs - student.spec.convs
    middle = student.spec.convs // 2
    for stack in stacks(teacher):  # all but the last of those that are bridged do nothing
        for conv in stack.convs[middle : middle + skipped]:
            _pass_on(conv)
    operator = _operator(teacher.spec, 24)
    bridge(student, teacher, _images(teacher.spec, 1), operator)
    other = _images(teacher.spec, 2)
    with torch.no_grad():
        wanted, made = (n.features(other, operator).output for n in (teacher, student))
        change = (wanted - other).abs().max()
    assert (made - wanted).abs().max() < 0.01 * change


@pytest.mark.parametrize(("big", "small"), PAIRS)
@pytest.mark.parametrize("dilation", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_it_starts_nearer_to_its_teacher(big: str, small: str, dilation: int) -> None:
    teacher, student = _pair(big, small)
    spread = [1] * student.spec.convs
    spread[len(spread) // 2] = dilation
    student = build_model(replace(student.spec, dilation=tuple(spread)))
    operator = _operator(teacher.spec, 24)
    other = _images(teacher.spec, 2)

    def error() -> float:
        with torch.no_grad():
            wanted, made = (n.features(other, operator).output for n in (teacher, student))
        return float((made - wanted).square().mean())

    inherit_ends(student, teacher)
    before = error()
    bridge(student, teacher, _images(teacher.spec, 1), operator)
    assert error() < 0.5 * before


@pytest.mark.nightly
def test_the_same_images_give_the_same_weights() -> None:
    teacher, student = _pair("dccnn-d5c5", "dccnn-d3c5")
    operator, images = _operator(teacher.spec, 24), _images(teacher.spec, 1)
    results = []
    for _ in range(2):
        bridge(student, teacher, images, operator)
        results.append({k: v.clone() for k, v in student.state_dict().items()})
    assert all(torch.equal(results[0][k], results[1][k]) for k in results[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 16}, "same width"),
        ({"cascades": 4}, "as many cascades"),
        ({"convs": 5, "attention_tap": 3}, "fewer convolutions"),
        ({"convs": 2, "attention_tap": 1}, "fewer convolutions"),
        ({"dilation": (2, 1, 1)}, "middle convolution"),
        ({"dilation": (1, 1, 2)}, "middle convolution"),
        ({"dilation": (1, 2, 1) * 4 + (1, 2, 2)}, "middle convolution"),
    ],
)
def test_other_pairs_are_refused(changes: dict[str, object], words: str) -> None:
    if "convs" in changes or "cascades" in changes:
        changes = {"dilation": (), **changes}
    teacher, student = _pair("dccnn-d5c5", "dccnn-d3c5", **changes)
    with pytest.raises(ModelError, match=words):
        bridge(student, teacher, _images(teacher.spec, 1), _operator(teacher.spec, 24))
