"""Sessions: opening them, what they tell, and the scaling around a network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kdmri_edge.errors import BackendError, BundleError, CheckpointError, DataError
from kdmri_edge.models.checkpoint import load_reconstructor
from kdmri_edge.physics.operators import Form
from kdmri_edge.runtime.backends.pytorch import EagerSession
from kdmri_edge.runtime.networks import device_options
from kdmri_edge.runtime.session import Session, open_session, reconstruct
from kdmri_edge.runtime.targets import TARGETS
from kdmri_export.export import export_model
from kdmri_export.recipe import ExportRecipe
from tests.export.networks import write_checkpoint

Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("runtime") / "student.safetensors")


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    out = checkpoint.parent / "bundle"
    return export_model(checkpoint, ExportRecipe(target="torchscript", batch="dynamic"), out).path


@pytest.fixture(scope="module")
def onnx_bundle(checkpoint: Path) -> Path:
    out = checkpoint.parent / "onnx"
    return export_model(checkpoint, ExportRecipe(target="onnx"), out).path


@pytest.fixture
def volume() -> Array:
    return np.random.default_rng(1).standard_normal((3, 32, 32)).astype(np.float32)


class Recorder(Session):
    """Remembers what it is given and returns half of it."""

    info = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self.given: list[Array] = []

    def run(self, x_u: Array, *, operator: Array | None = None, maps: Array | None = None) -> Array:
        self.given.append(x_u)
        return x_u / 2


def test_every_slice_is_scaled_by_itself(volume: Array) -> None:
    volume *= np.array([1e-6, 1.0, 1e6], dtype=np.float32)[:, None, None]
    session = Recorder()
    output = reconstruct(session, volume)
    assert [given.shape for given in session.given] == [(1, 1, 32, 32)] * 3
    for given in session.given:
        assert given.dtype == np.float32
        assert np.abs(given).max() == pytest.approx(1.0)
    np.testing.assert_allclose(output, volume / 2, rtol=1e-6)


def test_complex_images_become_two_channels(volume: Array) -> None:
    image = (volume + 1j * volume[::-1]).astype(np.complex64)
    session = Recorder()
    output = reconstruct(session, image)
    assert output.dtype == np.complex64
    assert session.given[0].shape == (1, 2, 32, 32)
    np.testing.assert_allclose(output, image / 2, rtol=1e-6)


def test_blank_slice_stays_blank_and_finite(volume: Array) -> None:
    volume[1] = 0
    output = reconstruct(Recorder(), volume)
    assert np.isfinite(output).all()
    assert not output[1].any()


def test_batch_changes_the_calls_not_the_result(bundle: Path, volume: Array) -> None:
    session = Recorder()
    reconstruct(session, volume, batch=2)
    assert [len(given) for given in session.given] == [2, 1]
    exported = open_session(bundle, threads=1)
    one, all_at_once = reconstruct(exported, volume), reconstruct(exported, volume, batch=3)
    np.testing.assert_allclose(one, all_at_once, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3, 1e6])
def test_unit_of_the_data_does_not_matter(checkpoint: Path, volume: Array, factor: float) -> None:
    session = EagerSession(checkpoint, threads=1)
    expected = reconstruct(session, volume)
    output = reconstruct(session, volume * np.float32(factor)) / factor
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)


def test_input_that_is_no_volume_is_refused(volume: Array) -> None:
    with pytest.raises(DataError, match="shape"):
        reconstruct(Recorder(), volume[0])
    with pytest.raises(DataError, match="batch"):
        reconstruct(Recorder(), volume, batch=0)
    volume[2, 0, 0] = np.nan
    with pytest.raises(DataError, match="Slice 2"):
        reconstruct(Recorder(), volume)


@pytest.mark.parametrize("layout", ["default", "channels_last"])
@pytest.mark.parametrize("form", [None, Form.DFT, Form.FFT])
def test_eager_session_runs_the_checkpoint(
    checkpoint: Path, volume: Array, layout: str, form: Form | None
) -> None:
    session = open_session(checkpoint, threads=1, layout=layout, form=form)
    with torch.inference_mode():
        expected = load_reconstructor(checkpoint)(torch.from_numpy(volume[:, None])).numpy()
    np.testing.assert_allclose(session.run(volume[:, None]), expected, rtol=1e-4, atol=1e-5)
    info = session.info
    assert (info.backend, info.device, info.threads) == ("PyTorch", "CPU", 1)
    assert layout.replace("_", "-") in info.provider
    assert info.precision_executed == "f32"


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_halves_of_a_gpu_are_within_their_rounding(
    half: torch.dtype, checkpoint: Path, volume: Array
) -> None:
    """As on a GPU, by PyTorch's own kernels for halves on the CPU."""
    session = EagerSession(checkpoint, threads=1)
    exact = session.run(volume[:, None])
    session._half = half
    output = session.run(volume[:, None])
    error = np.abs(output - exact).max()
    assert 0 < error < 1e-2 * np.abs(exact).max() * (1 if half == torch.float16 else 8)


def test_halves_that_the_cpu_has_not_are_refused(checkpoint: Path) -> None:
    with pytest.raises(BackendError, match="no fp16 convolutions"):
        open_session(checkpoint, precision="fp16")


def test_a_resident_query_gives_the_image_of_run(checkpoint: Path, volume: Array) -> None:
    session = EagerSession(checkpoint, threads=1)
    made = []
    compute = session._compute
    session._compute = lambda *given: made.append(compute(*given)) or made[-1]  # type: ignore[method-assign]
    query = session.resident(volume[:, None])
    query()
    query()
    np.testing.assert_array_equal(made[0].numpy(), made[1].numpy())
    np.testing.assert_allclose(made[0].numpy(), session.run(volume[:, None]), atol=1e-6)
    assert Recorder().resident(volume[:, None]) is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "cuda"}, r"built without CUDA.*onnxruntime-gpu"),
        ({"device": "cuda", "provider": "tensorrt-rtx"}, r"onnxruntime-ep-nv-tensorrt-rtx"),
        ({"device": "cpu", "provider": "cuda"}, "no provider 'cuda' for 'cpu'"),
        ({"device": "npu"}, "no provider 'npu'"),
    ],
)
def test_providers_that_are_not_there_are_named_with_their_package(
    options: dict[str, str], says: str, onnx_bundle: Path
) -> None:
    with pytest.raises(BackendError, match=says):
        open_session(onnx_bundle, backend="onnxruntime", threads=1, **options)


def test_a_device_that_openvino_does_not_find_is_named(onnx_bundle: Path, volume: Array) -> None:
    session = open_session(onnx_bundle, backend="openvino", threads=1, device="cpu")
    assert session.info.device == "CPU"
    assert "cpu" in type(session).devices_here()
    for device in ("gpu", "npu"):
        if device not in type(session).devices_here():
            with pytest.raises(BackendError, match=f"finds no '{device}' here, only cpu"):
                open_session(onnx_bundle, backend="openvino", device=device)


def test_a_named_device_reaches_the_session(checkpoint: Path, onnx_bundle: Path) -> None:
    assert device_options(checkpoint, None, "cuda") == {"device": "cuda"}
    assert device_options(onnx_bundle, "openvino", "npu") == {"device": "npu"}
    assert device_options(onnx_bundle, None, "cuda") == {"device": "cuda"}
    assert device_options(onnx_bundle, None, "cpu") == {}
    assert device_options(onnx_bundle, None, None) == {}
    with pytest.raises(BackendError, match=r"OpenVINO runs on cpu, gpu, npu, not on 'cuda'"):
        device_options(onnx_bundle, "openvino", "cuda")


def test_eager_bf16_keeps_acquired_samples_in_float32(checkpoint: Path, volume: Array) -> None:
    if "bf16" not in EagerSession.precisions_here():
        pytest.skip("this CPU has no bf16")
    exact = EagerSession(checkpoint, threads=1).run(volume[:, None])
    session = EagerSession(checkpoint, precision="bf16", threads=1)
    output = session.run(volume[:, None])
    assert output.dtype == np.float32
    assert session.info.precision_executed.startswith("bf16")
    error = np.abs(output - exact)
    assert 1e-6 < error.max() < 0.05 * np.abs(exact).max()
    # What a real image's samples determine in full (a line and its mirror) is not rounded.
    mask = load_reconstructor(checkpoint).mask.samples
    both = mask & np.roll(mask[::-1], 1)
    lines = np.fft.fft(output - exact, axis=-2, norm="ortho")
    assert np.abs(lines[:, :, both]).max() < 1e-4
    assert np.abs(lines[:, :, ~both]).max() > 1e-3


def test_choices_that_do_not_exist_are_refused(checkpoint: Path, bundle: Path) -> None:
    with pytest.raises(BackendError, match="int3"):
        open_session(checkpoint, precision="int3")
    with pytest.raises(BackendError, match="layout"):
        open_session(checkpoint, layout="spiral")
    with pytest.raises(BackendError, match="bf16"):
        open_session(bundle, precision="bf16")
    with pytest.raises(BackendError, match="--target onnx"):
        open_session(bundle, backend="onnxruntime")


def test_source_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="manifest"):
        open_session(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        open_session(tmp_path / "no.safetensors")


def test_table_names_what_exists() -> None:
    for name, target in TARGETS.items():
        assert target.name == name
        assert target.graph_file.endswith(target.suffix)
        assert target.backend.precisions[0] == "f32"
        for path in (target.exporter, target.backend.session):
            module, _, attribute = path.partition(":")
            imported = __import__(module, fromlist=[attribute])
            assert callable(getattr(imported, attribute))


def test_table_session_and_bundle_load_no_runtime() -> None:
    heavy = ("torch", "onnx", "onnxruntime", "openvino")
    code = (
        "import sys, kdmri_edge.runtime.targets, kdmri_edge.runtime.bundle\n"
        "import kdmri_edge.runtime.session, kdmri_edge.runtime.backends.onnxruntime\n"
        "import kdmri_edge.runtime.backends.openvino, kdmri_export.commands.export\n"
        "import kdmri_export.commands.doctor\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    roots = [str(Path(__file__).resolve().parents[2] / part) for part in (".", "export")]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {roots!r}\n{code}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "[]", done.stderr
