"""Exported programs without complex numbers and Fourier transforms give PyTorch's images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdmri_edge.errors import ExportError
from kdmri_export.passes.complex_numbers import RealProgram, without_complex
from kdmri_export.passes.fourier import dft_matrix
from kdmri_export.passes.tracing import trace

TOLERANCE = 1e-4  # of the range of the images
BATCH = torch.export.Dim("batch", min=1)


def as_real(value: Any) -> Any:
    """Return a complex tensor with a last axis of 2."""
    if isinstance(value, Tensor) and value.is_complex():
        return torch.view_as_real(value.resolve_conj())
    return value


def lowered(network: nn.Module, *inputs: Tensor, shapes: Any = None) -> RealProgram:
    """Return the program of a network, which holds nothing complex."""
    made = without_complex(trace(network.eval(), inputs, dynamic_shapes=shapes))
    for node in made.program.graph.nodes:
        for value in pytree.tree_leaves(node.meta.get("val")):
            assert not (isinstance(value, Tensor) and value.is_complex()), node
        assert "fft" not in str(node.target)
        assert node.users or node.op in ("placeholder", "output") or "assert" in node.name
    return made


def check(network: nn.Module, made: RealProgram, *inputs: Tensor) -> None:
    with torch.no_grad():
        expected = network(*inputs)
        found = made.program.module()(*(as_real(one) for one in inputs))
    expected = pytree.tree_leaves(expected)
    found = pytree.tree_leaves(found)
    assert [one.shape for one in found] == [as_real(one).shape for one in expected]
    for a, b in zip(found, expected, strict=True):
        b = as_real(b)
        assert a.dtype == b.dtype
        assert float((a - b).abs().max()) <= TOLERANCE * float(b.max() - b.min())


def check_onnx(network: nn.Module, made: RealProgram, *inputs: Tensor) -> Any:
    """Write, run and compare the graph; return its nodes' types."""
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from kdmri_export.targets.onnx import OPSET, quiet

    with quiet(), torch.no_grad():
        exported = torch.onnx.export(made.program, opset_version=OPSET, dynamo=True, verbose=False)
        expected = [as_real(one) for one in pytree.tree_leaves(network(*inputs))]
    assert exported is not None
    model = exported.model_proto
    complex_types = (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)
    assert not any(one.data_type in complex_types for one in model.graph.initializer)
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    assert not any(one.type.tensor_type.elem_type in complex_types for one in values)
    types = [node.op_type for node in model.graph.node]
    assert "DFT" not in types
    session = onnxruntime.InferenceSession(model.SerializeToString())
    given = [as_real(one).numpy() for one in inputs]
    feed = {port.name: one for port, one in zip(session.get_inputs(), given, strict=True)}
    for a, b in zip(session.run(None, feed), expected, strict=True):
        image = b.numpy()
        assert np.abs(a - image).max() <= TOLERANCE * np.ptp(image)
    return types


# --- Fourier transforms -------------------------------------------------------------------------

NORMS = {"backward": 0, "ortho": 1, "forward": 2}
sizes = st.integers(1, 12)


@given(size=sizes, inverse=st.booleans(), norm=st.sampled_from(list(NORMS)), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_a_matrix_is_the_transform(size: int, inverse: bool, norm: str, seed: int) -> None:
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.complex128)
    # what PyTorch calls backward scales the inverse alone, forward the other
    scaled = {"backward": 2 if inverse else 0, "ortho": 1, "forward": 0 if inverse else 2}[norm]
    matrix = dft_matrix(size, inverse=inverse, norm=scaled)
    transform = torch.fft.ifft if inverse else torch.fft.fft
    torch.testing.assert_close(matrix @ x, transform(x, norm=norm), rtol=1e-12, atol=1e-12)


@given(size=sizes, before=st.integers(-12, 12), after=st.integers(-12, 12))
@settings(max_examples=30, deadline=None)
def test_shifts_are_part_of_a_matrix(size: int, before: int, after: int) -> None:
    x = torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=torch.complex128)
    matrix = dft_matrix(size, inverse=False, before=before, after=after)
    expected = torch.fft.fft(x.roll(before)).roll(after)
    torch.testing.assert_close(matrix @ x, expected, rtol=1e-12, atol=1e-12)


class Transforms(nn.Module):
    """All transforms of PyTorch, of one norm."""

    def __init__(self, norm: str, axes: tuple[int, ...], longer: int) -> None:
        super().__init__()
        self.norm, self.axes, self.longer = norm, axes, longer

    def forward(self, x: Tensor, real: Tensor) -> Any:
        fft, norm, axes = torch.fft, self.norm, self.axes
        last = axes[-1]
        size = x.shape[last] + self.longer
        even_or_odd = 2 * x.shape[last] - 1 + self.longer
        return {
            "fft": fft.fft(x, n=size, dim=last, norm=norm),
            "ifft": fft.ifft(x, dim=last, norm=norm),
            "fft2": fft.fft2(x, norm=norm),
            "ifft2": fft.ifft2(real, norm=norm),
            "fftn": fft.fftn(x, dim=axes, norm=norm),
            "ifftn": fft.ifftn(x, dim=axes, norm=norm),
            "rfft": fft.rfft(real, n=size, dim=last, norm=norm),
            "rfftn": fft.rfftn(real, dim=axes, norm=norm),
            "irfft": fft.irfft(x, n=even_or_odd, dim=last, norm=norm),
            "irfftn": fft.irfftn(x, dim=axes, norm=norm),
            "hfft": fft.hfft(x, dim=last, norm=norm),
            "ihfft": fft.ihfft(real, dim=last, norm=norm),
            "shifted": fft.fftshift(fft.ifftn(fft.ifftshift(x, dim=axes), dim=axes), dim=axes),
            "of a real shifted": fft.fftshift(fft.rfft(fft.ifftshift(real, dim=-1)), dim=(0, -1)),
            "back": fft.ifftshift(fft.irfft(fft.fftshift(x, dim=-1)), dim=-1),
        }


@pytest.mark.parametrize(
    ("norm", "axes", "shape", "longer"),
    [
        ("backward", (-2, -1), (2, 4, 5), 1),
        ("ortho", (0, 2), (3, 2, 6), -1),
        ("forward", (2, 0, 1), (2, 5, 3), 2),
    ],
)
def test_all_transforms(
    norm: str, axes: tuple[int, ...], shape: tuple[int, ...], longer: int
) -> None:
    torch.manual_seed(1)
    network = Transforms(norm, axes, longer)
    inputs = (torch.randn(*shape, dtype=torch.complex64), torch.randn(*shape))
    made = lowered(network, *inputs)
    assert made.complex_inputs == ("x",)
    check(network, made, *inputs)


class Centred(nn.Module):
    """The transform between an image and k-space whose zero frequency is in the middle."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self.style = style

    def forward(self, x: Tensor) -> Tensor:
        def shifted(x: Tensor, by: Any) -> Tensor:
            for axis in (-3, -2):
                size = x.shape[axis]
                shift = by(size) % size
                if self.style == "slices":
                    parts = (x.narrow(axis, size - shift, shift), x.narrow(axis, 0, size - shift))
                    x = torch.cat(parts, dim=axis)
                else:
                    x = torch.roll(x, shift, axis)
            return x

        x = shifted(x, lambda size: (size + 1) // 2)
        x = torch.view_as_real(torch.fft.fftn(torch.view_as_complex(x), dim=(-2, -1), norm="ortho"))
        return shifted(x, lambda size: size // 2)


@pytest.mark.parametrize(
    ("style", "shape"), [("slices", (1, 6, 4, 2)), ("slices", (5, 7, 2)), ("roll", (2, 5, 6, 2))]
)
def test_shifts_next_to_a_transform_cost_nothing(style: str, shape: tuple[int, ...]) -> None:
    network, x = Centred(style), torch.randn(*shape)
    made = lowered(network, x)
    check(network, made, x)
    names = [str(node.target) for node in made.program.graph.nodes]
    assert not [name for name in names if "slice" in name or "cat" in name or "roll" in name]
    assert sum("matmul" in name for name in names) == 8


@pytest.mark.parametrize(("size", "inverse"), [(8, False), (8, True), (10, False)])
def test_large_matrices_are_taken_apart(
    size: int, inverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdmri_export.passes.fourier._LARGE", 8)

    class Shifted(nn.Module):
        def forward(self, z: Tensor) -> Any:
            transform = torch.fft.ifftn if inverse else torch.fft.fftn
            z = transform(torch.roll(z, (3, 1), (-1, -2)), dim=(-2, -1), norm="ortho")
            z = torch.roll(z, (5, 2), (-1, -2))
            return transform(z, dim=0)

    z = torch.randn(size, size, size, dtype=torch.complex64)
    made = lowered(Shifted(), z)
    check(Shifted(), made, z)
    count = 4 if size == 8 else 2  # 10 is no multiple of four
    assert all(one.shape == (size // count, size // count) for one in made.program.buffers())
    products = [node for node in made.program.graph.nodes if "matmul" in str(node.target)]
    assert len(products) == 3 * 4 * count


class ReadTwice(nn.Module):
    def forward(self, x: Tensor) -> Any:
        y = torch.fft.fft(torch.fft.ifftshift(x, dim=-1))
        return torch.fft.fftshift(y, dim=-1), y, torch.fft.fftshift(y, dim=0)


def test_a_result_that_is_read_unshifted_too_is_not_shifted() -> None:
    x = torch.randn(4, 5, dtype=torch.complex64)
    check(ReadTwice(), lowered(ReadTwice(), x), x)


def test_matrices_are_shared() -> None:
    class Often(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = torch.fft.fft2(x, norm="ortho")
                x = torch.fft.ifft2(x * x.abs(), norm="ortho")
            return x

    x = torch.randn(2, 6, 6, dtype=torch.complex64)
    made = lowered(Often(), x)
    check(Often(), made, x)
    assert made.transforms == 6
    # cosines once; sines of one sign each
    assert len(made.program.state_dict) == 3


# --- whole networks -----------------------------------------------------------------------------


class Unrolled(nn.Module):
    """As E2E-VarNet (Sriram et al. 2020): complex data as a last axis of 2, maps, a gradient."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(2, 2, 3, padding=1) for _ in range(2))
        self.register_buffer("mask", (torch.arange(width) % 3 == 0).view(1, 1, 1, width, 1))
        self.register_buffer("maps", torch.randn(1, 3, height, width, 2) * 0.5)

    def _transform(self, x: Tensor, inverse: bool) -> Tensor:
        transform = torch.fft.ifft2 if inverse else torch.fft.fft2
        x = torch.fft.ifftshift(x, dim=(-3, -2))
        x = torch.view_as_real(transform(torch.view_as_complex(x), norm="ortho"))
        return torch.fft.fftshift(x, dim=(-3, -2))

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        real = a[..., 0] * b[..., 0] - a[..., 1] * b[..., 1]
        imag = a[..., 0] * b[..., 1] + a[..., 1] * b[..., 0]
        return torch.stack((real, imag), dim=-1)

    def forward(self, kspace: Tensor) -> Tensor:
        given = kspace
        conj = self.maps * torch.tensor([1.0, -1.0])
        for conv in self.convs:
            image = self._product(self._transform(kspace, True), conj).sum(1, keepdim=True)
            image = image + conv(image[:, 0].permute(0, 3, 1, 2)).permute(0, 2, 3, 1).unsqueeze(1)
            kspace = self._transform(self._product(image.contiguous(), self.maps), False)
            kspace = torch.where(self.mask, given, kspace)
        coils = self._transform(kspace, True)
        return torch.sqrt((coils**2).sum(-1).sum(1))


def test_complex_data_as_a_last_axis_of_2_with_a_free_batch() -> None:
    torch.manual_seed(2)
    network = Unrolled(8, 9)
    made = lowered(network, torch.randn(2, 3, 8, 9, 2), shapes=({0: BATCH},))
    assert made.transforms == 5
    assert made.complex_inputs == () == made.complex_outputs
    for batch in (1, 3):
        inputs = torch.randn(batch, 3, 8, 9, 2)
        check(network, made, inputs)
    types = check_onnx(network, made, inputs)
    # along H the k-space that is given alone: see test_hybrid_space
    assert types.count("MatMul") == 5 * 4 + 4
    assert set(network.state_dict()) <= set(made.program.state_dict)


class Views(nn.Module):
    """What networks do with data whose last axis of 2 is real and imaginary part."""

    def forward(self, z: Tensor, mask: Tensor, weight: Tensor) -> Any:
        x = torch.view_as_real(torch.fft.fft(torch.view_as_complex(z)))
        x = torch.where(mask, x - z, torch.zeros(1, 1, 1)) * weight + x / 2
        channels = x.permute(0, 2, 1).reshape(-1, 2, z.shape[1]) * torch.tensor([[2.0], [3.0]])
        x = x + channels.permute(0, 2, 1)
        energy = (x**2).sum(-1) + (x**2).sum(dim=-1, keepdim=True)[..., 0]
        coils = (x - 1.5).sum(dim=0, keepdim=True)
        back = torch.fft.ifft(torch.view_as_complex(coils.contiguous()))
        return energy, back.abs(), coils.sum((0, 1)), channels, x[..., 1], x.sum((0, 2))


def test_parts_of_a_last_axis_are_followed() -> None:
    inputs = torch.randn(2, 6, 2), torch.rand(6, 1) > 0.5, torch.randn(1)
    made = lowered(Views(), *inputs, shapes=({0: BATCH}, None, None))
    inputs = torch.randn(3, 6, 2), *inputs[1:]
    check(Views(), made, *inputs)
    wheres = [node for node in made.program.graph.nodes if "where" in str(node.target)]
    assert [node.meta["val"].ndim for node in wheres] == [2, 2]  # not along an axis of 2


class Moves(nn.Module):
    """What moves and chooses along other axes than that of real and imaginary part."""

    def forward(self, z: Tensor) -> Tensor:  # [B, 2, H, W]
        x = z.permute(0, 2, 3, 1).contiguous().roll((1, -2), (1, 2))
        x = torch.cat((x[:, 1:], x[:, :1].flip(1)), dim=-3)
        centre = torch.zeros_like(x)
        centre[:, :, 2:4] = x[:, :, 2:4]
        x = (
            (x - centre)
            .unsqueeze(-3)
            .reshape(-1, x.shape[1], 1, x.shape[2], 2)
            .permute(2, 0, 1, 3, 4)
        )
        return torch.view_as_complex(x[0].contiguous()).abs()


def test_parts_are_followed_along_other_axes() -> None:
    shown = torch.randn(2, 2, 5, 6)
    made = lowered(Moves(), shown)
    check(Moves(), made, shown)
    for (
        node
    ) in made.program.graph.nodes:  # the axis of both parts is nowhere made, but for its size
        if "stack" in str(node.target):
            assert all("zeros_like" in str(user.target) for user in node.users)


def test_a_free_axis_that_is_2_in_the_example_is_no_pair_of_parts() -> None:
    class Batch(nn.Module):
        def forward(self, x: Tensor) -> Any:
            turned = x.permute(1, 0)
            return turned.sum(-1), (turned * turned).sum(-1)

    made = lowered(Batch(), torch.randn(2, 3), shapes=({0: BATCH},))
    check(Batch(), made, torch.randn(5, 3))


class ComplexConv(nn.Module):
    """A complex convolution as two real ones."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.real = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.imag = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        real = self.real(z.real) - self.imag(z.imag)
        return torch.complex(real, self.real(z.imag) + self.imag(z.real))


class Throughout(nn.Module):
    """Complex tensors from the input to the output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = ComplexConv(1, 4), ComplexConv(4, 1)
        self.plain = nn.Conv2d(1, 1, 3, padding=1, dtype=torch.complex64)
        self.phase = nn.Parameter(torch.randn(1, 8, dtype=torch.complex64))
        self.step = nn.Parameter(torch.tensor(0.3))

    def forward(self, kspace: Tensor, mask: Tensor) -> Any:
        image = torch.fft.ifft2(kspace, norm="ortho")
        z = self.first(image)
        z = z * torch.relu(z.abs() - 0.1) / (z.abs() + 1e-6)
        z = image + self.second(z) * torch.exp(1j * self.phase.real) + 0.1 * self.plain(image)
        error = torch.fft.fft2(z, norm="ortho") * mask - kspace
        z = z - self.step * torch.fft.ifft2(error, norm="ortho")
        z[..., 0] = 0
        both = torch.cat((z, z.conj() * self.phase), dim=1)
        return torch.einsum("bchw,bdhw->bcd", both, both.conj()), z, z.abs().square().sum((2, 3))


def test_complex_tensors_throughout() -> None:
    torch.manual_seed(3)
    network = Throughout()
    inputs = torch.randn(2, 1, 6, 8, dtype=torch.complex64), (torch.rand(6, 1) > 0.5).float()
    made = lowered(network, *inputs, shapes=({0: BATCH}, None))
    assert made.complex_inputs == ("kspace",)
    assert made.complex_outputs == (0, 1)
    assert {"phase_real", "phase_imag", "plain.weight_imag", "step"} <= set(made.program.state_dict)
    inputs = torch.randn(3, 1, 6, 8, dtype=torch.complex64), inputs[1]
    check(network, made, *inputs)
    check_onnx(network, made, *inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_transforms_are_in_float32_whatever_the_precision_around(dtype: torch.dtype) -> None:
    class Cast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            wide = x.float() if dtype is torch.float16 else x
            z = torch.fft.fft2(torch.view_as_complex(wide))
            return torch.view_as_real(z).to(dtype) * 2

    x = torch.randn(2, 8, 8, 2).to(dtype)
    made = lowered(Cast(), x)
    products = [node for node in made.program.graph.nodes if "matmul" in str(node.target)]
    assert products
    assert all(node.meta["val"].dtype is torch.float32 for node in products)
    with torch.no_grad():
        found, expected = made.program.module()(x), Cast()(x)
    assert found.dtype is dtype
    assert float((found - expected).abs().max()) <= 1e-3 * float(expected.abs().max())


def test_inputs_keep_their_names_and_outputs_their_structure() -> None:
    class Structured(nn.Module):
        def forward(self, kspace: Tensor, scale: float, *, maps: Tensor) -> dict[str, Any]:
            return {"image": kspace * scale * maps, "parts": [kspace.real, None]}

    inputs = (torch.randn(2, 3, dtype=torch.complex64), 2.0)
    maps = torch.randn(2, 3, dtype=torch.complex64)
    made = without_complex(trace(Structured(), inputs, {"maps": maps}))
    assert made.program.graph_signature.user_inputs == ("kspace", "maps")
    assert made.complex_inputs == ("kspace", "maps")
    assert made.complex_outputs == (0,)
    with torch.no_grad():
        found = made.program.module()(as_real(inputs[0]), as_real(maps))
        expected = Structured()(*inputs, maps=maps)
    torch.testing.assert_close(found["image"], as_real(expected["image"]))
    assert found["parts"][1] is None


def test_a_real_network_stays_as_it_is() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.InstanceNorm2d(2)).eval()
    x = torch.randn(2, 1, 8, 8)
    made = lowered(network, x)
    assert made.transforms == 0
    check(network, made, x)
    layers = {str(node.target) for node in made.program.graph.nodes}
    assert {"aten.conv2d.default", "aten.instance_norm.default"} <= layers


# --- what cannot be done ------------------------------------------------------------------------


class Inverse(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return torch.linalg.inv(z).abs()  # the line at fault


class TensorPower(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return (z**z).abs()  # the line at fault


class Writes(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        z[..., 0] = 0
        return z.abs()


@pytest.mark.parametrize("network", [Inverse(), TensorPower()])
def test_an_operator_without_a_form_is_named_with_its_line(network: nn.Module) -> None:
    program = trace(network, (torch.randn(3, 3, dtype=torch.complex64),))
    with pytest.raises(ExportError) as raised:
        without_complex(program)
    text = raised.value.what
    assert str(raised.value) == f"{text} {raised.value.remedy}"
    assert "aten." in text
    assert __file__ in text
    assert "# the line at fault" in text
    assert "view_as_real" in raised.value.remedy


def test_a_transform_along_a_free_axis_is_refused() -> None:
    class Free(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.fft.fft2(z).abs()

    shapes = ({1: torch.export.Dim("height", min=2)},)
    program = trace(Free(), (torch.randn(2, 6, 4, dtype=torch.complex64),), dynamic_shapes=shapes)
    with pytest.raises(ExportError, match=r"line \d+ of .*fft2.*axis 1, whose size is not fixed"):
        without_complex(program)


def test_writing_into_an_input_is_refused() -> None:
    program = trace(Writes(), (torch.randn(2, 3, dtype=torch.complex64),))
    with pytest.raises(ExportError, match="`z` in place"):
        without_complex(program)
