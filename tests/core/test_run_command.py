"""`kdmri-edge run`: files in, reconstructions out, without PyTorch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
import torch

import kdmri_edge as ke
from kdmri_edge.data.formats.registry import read_volume, write_image
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.errors import BackendError
from kdmri_edge.physics.masks import Mask, variable_density_lines
from kdmri_edge.physics.operators import zero_filled
from kdmri_edge.runtime.backends.openvino import OpenVinoSession
from kdmri_edge.runtime.bundle import MANIFEST, SCHEMA, open_bundle
from kdmri_edge.runtime.networks import where_it_runs
from kdmri_edge.runtime.pipeline import Pipeline
from kdmri_edge.runtime.session import open_session, reconstruct
from kdmri_edge.utils.extras import available
from kdmri_export.export import export_model
from kdmri_export.recipe import ExportRecipe
from tests.export.networks import spec, write_checkpoint

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles of untrained networks by name, and the checkpoint of the first."""
    folder = tmp_path_factory.mktemp("exports")
    made = {"checkpoint": write_checkpoint(folder / "student.safetensors")}
    for name, architecture in {
        "magnitude": None,
        "complex": spec(channels=2),
        "sr": spec(kind="vdsr"),
    }.items():
        weights = write_checkpoint(folder / f"{name}.safetensors", architecture)
        made[name] = export_model(weights, ExportRecipe(target="onnx"), folder / name).path
    return made


@pytest.fixture
def bundle(exports: dict[str, Path]) -> Path:
    return exports["magnitude"]


@pytest.fixture
def mask(bundle: Path) -> Mask:
    return open_bundle(bundle).mask


@pytest.fixture
def whole() -> np.ndarray:
    """Fully sampled magnitude images [S, H, W]."""
    image: np.ndarray = phantom_volume(5, slices=3, matrix=32).image
    return image


def expected(bundle: Path, x_u: np.ndarray) -> np.ndarray:
    return reconstruct(open_session(bundle, threads=1), x_u)


def test_complex_zero_filled_image(cli: Cli, bundle: Path, mask: Mask, whole: np.ndarray,
                                   tmp_path: Path) -> None:  # fmt: skip
    x_u = zero_filled(whole.astype(np.complex64), mask)
    np.save(tmp_path / "x.npy", x_u)
    done = cli("run", bundle, tmp_path / "x.npy", "-o", tmp_path / "out.npy", "--threads", 1)
    assert done.code == 0, done.err
    assert "ONNX Runtime" in done.err
    assert "fp32" in done.err
    assert "3 slice(s) of complex zero-filled images" in done.out
    wanted = expected(bundle, x_u.real)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), wanted, rtol=1e-5, atol=1e-5)


def test_an_image_with_phase_is_no_magnitude(
    cli: Cli, bundle: Path, mask: Mask, whole: np.ndarray, tmp_path: Path
) -> None:
    turned = whole * np.exp(1j * np.linspace(0, 3, whole.shape[-1]))
    np.save(tmp_path / "x.npy", zero_filled(turned.astype(np.complex64), mask))
    done = cli("run", bundle, tmp_path / "x.npy", "-o", tmp_path / "out.npy")
    done.check_refusal("carries phase", "dccnn-d3c5-complex")
    assert not (tmp_path / "out.npy").exists()


def test_what_the_output_cannot_hold_is_said(
    cli: Cli, bundle: Path, whole: np.ndarray, tmp_path: Path
) -> None:
    nibabel.save(nibabel.Nifti1Image(np.moveaxis(whole, 0, 2), np.eye(4)), tmp_path / "x.nii")
    arguments = ("run", bundle, tmp_path / "x.nii", "--undersample")
    done = cli(*arguments, "-o", tmp_path / "out.npy")
    assert "left out: position and orientation, voxel size" in done.out
    done = cli(*arguments, "-o", tmp_path / "out.nii")
    assert "left out" not in done.out


def test_kspace(cli: Cli, bundle: Path, mask: Mask, whole: np.ndarray, tmp_path: Path) -> None:
    _write_kspace(tmp_path / "scan.h5", whole, mask)
    done = cli("run", bundle, tmp_path / "scan.h5", "-o", tmp_path / "out.nii.gz")
    assert done.code == 0, done.err
    assert "of k-space" in done.out
    image = np.moveaxis(nibabel.load(tmp_path / "out.nii.gz").get_fdata(), 2, 0)
    wanted = expected(bundle, zero_filled(whole, mask))
    np.testing.assert_allclose(image, wanted, atol=1e-3 * wanted.max())


def test_undersample_says_what_it_is_worth(
    cli: Cli, bundle: Path, mask: Mask, tmp_path: Path
) -> None:
    larger = phantom_volume(5, slices=2, matrix=48).image
    write_image(tmp_path / "t1.nii.gz", larger, (4.0, 1.0, 1.0))
    out = tmp_path / "made" / "t1.nii.gz"
    done = cli(
        "run", bundle, tmp_path / "t1.nii.gz", "-o", tmp_path / "made", "--undersample", "--json"
    )
    assert done.code == 0, done.err
    (record,) = json.loads(done.out)
    assert record["output"] == str(out)
    assert record["slices"] == 2
    assert record["session"]["provider"] == "CPUExecutionProvider"
    assert record["figures"]["zero_filled_psnr_db"] > 10
    again = nibabel.load(out)
    assert again.shape == (32, 32, 2)
    assert again.header.get_zooms() == pytest.approx((1.5, 1.5, 4.0))


def test_folder_of_mixed_formats(cli: Cli, exports: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "scans"
    source.mkdir()
    image = phantom_volume(5, slices=2, matrix=32, complex_phase=True).image
    x_u = zero_filled(image, open_bundle(exports["complex"]).mask)
    np.save(source / "a.npy", x_u)
    write_image(source / "b.nii", x_u)
    (source / "notes.txt").write_text("not a volume")
    done = cli("run", exports["complex"], source, "-o", tmp_path / "out", "--complex")
    assert done.code == 0, done.err
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["a.npy", "b.nii.gz"]
    first, second = (read_volume(tmp_path / "out" / n).image for n in ("a.npy", "b.nii.gz"))
    assert np.iscomplexobj(first)
    np.testing.assert_array_equal(first, second)


def test_super_resolution_takes_magnitudes(
    cli: Cli, exports: dict[str, Path], whole: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "low.npy", whole)
    done = cli("run", exports["sr"], tmp_path / "low.npy", "-o", tmp_path / "out.npy")
    assert done.code == 0, done.err
    np.testing.assert_allclose(
        np.load(tmp_path / "out.npy"), expected(exports["sr"], whole), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_one_graph_on_several_backends(
    cli: Cli, bundle: Path, mask: Mask, whole: np.ndarray, tmp_path: Path, backend: str
) -> None:
    x_u = zero_filled(whole.astype(np.complex64), mask)
    np.save(tmp_path / "x.npy", x_u)
    done = cli(
        "run", bundle, tmp_path / "x.npy", "-o", tmp_path / "out.npy", "--backend", backend
    )  # fmt: skip
    assert done.code == 0, done.err
    wanted = expected(bundle, x_u.real)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), wanted, atol=1e-4 * wanted.max())


def test_checkpoint_runs_where_it_is_fastest_or_in_pytorch(
    cli: Cli, exports: dict[str, Path], whole: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "t1.npy", whole)
    place = tmp_path / "out.npy"
    command = ("run", exports["checkpoint"], tmp_path / "t1.npy", "-o", place, "--undersample")
    images = []
    for options, runtime, said in (
        ((), "OpenVINO", "Exporting"),
        ((), "OpenVINO", "been replaced"),
        (("--backend", "openvino"), "OpenVINO", "been replaced"),
        (("--device", "cpu"), "OpenVINO", "been replaced"),
        (("--no-cache",), "PyTorch", "been replaced"),
        (("--backend", "torch"), "PyTorch", "been replaced"),
    ):
        done = cli(*command, *options)
        assert done.code == 0, done.err
        assert runtime in done.err
        assert said in done.err
        assert ("Exporting" in done.err) == (said == "Exporting")
        images.append(np.load(place))
    for image in images[1:]:
        np.testing.assert_allclose(image, images[0], atol=1e-5 * images[0].max())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ("--backend", "onnxruntime"),
            ("dccnn-edge@brain-4x runs on torch or cuda, not on 'onnxruntime'", "--target onnx`"),
        ),
        (
            ("--backend", "openvino", "--no-cache"),
            ("dccnn-edge@brain-4x runs on torch or cuda", "--target openvino`"),
        ),
        (("--precision", "int4"), ("OpenVINO has no precision 'int4'", "int8")),
        (("--backend", "openvino", "--device", "cuda"), ("OpenVINO runs on cpu, gpu, npu",)),
        (("--backend", "torch", "--precision", "int8"), ("PyTorch has no precision 'int8'",)),
    ],
)
def test_what_a_network_does_not_run_on_is_refused_by_its_name(
    cli: Cli, whole: np.ndarray, tmp_path: Path, options: tuple[str, ...], says: tuple[str, ...]
) -> None:
    np.save(tmp_path / "t1.npy", whole)
    done = cli("run", "dccnn-edge@brain-4x", tmp_path / "t1.npy", "-o", tmp_path / "out.npy",
               "--undersample", *options)  # fmt: skip
    done.check_refusal(*says)
    assert ".safetensors" not in done.err
    assert "Exporting" not in done.err


def test_a_device_of_the_fastest_runtime_is_asked_there(
    cli: Cli, exports: dict[str, Path], whole: np.ndarray, tmp_path: Path
) -> None:
    absent = {"gpu", "npu"} - set(OpenVinoSession.devices_here())
    if not absent:
        pytest.skip("OpenVINO finds both devices here")
    np.save(tmp_path / "t1.npy", whole)
    done = cli("run", exports["checkpoint"], tmp_path / "t1.npy", "-o", tmp_path / "out.npy",
               "--undersample", "--device", min(absent))  # fmt: skip
    done.check_refusal(f"finds no '{min(absent)}' here")


def test_cuda_stays_with_pytorch_where_onnx_runtime_is_fastest(
    exports: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdmri_edge.runtime.networks.fastest_target", lambda: "onnx")
    checkpoint = exports["checkpoint"]
    assert where_it_runs(checkpoint, device="cuda")[0] == checkpoint
    with pytest.raises(BackendError, match="ONNX Runtime has no precision 'bf16'"):
        where_it_runs(checkpoint, backend="onnxruntime", precision="bf16")


def test_serve_takes_a_checkpoint_where_run_does(
    cli: Cli, exports: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ismrmrd")
    pytest.importorskip("prometheus_client")
    runtimes = []

    class Started:
        def __init__(self, pipeline: Pipeline, *_: object, **__: object) -> None:
            runtimes.append(pipeline.session.info.backend)

        def serve(self) -> None:
            pass

        def stop(self) -> None:
            pass

    monkeypatch.setattr("kdmri_edge.mrd.server.server.Server", Started)
    monkeypatch.setattr("kdmri_edge.mrd.server.telemetry.log_to_stderr", lambda **_: None)
    for options in ((), ("--backend", "torch")):
        done = cli("serve", exports["checkpoint"], *options)
        assert done.code == 0, done.err
    assert runtimes == ["OpenVINO", "PyTorch"]


def test_bundle_whose_runtime_is_absent_runs_elsewhere_and_says_so(
    cli: Cli, exports: dict[str, Path], whole: np.ndarray, tmp_path: Path
) -> None:
    if available("tensorrt"):
        pytest.skip("TensorRT is installed here")
    bundle = export_model(
        exports["checkpoint"], ExportRecipe(target="trt"), tmp_path / "bundle"
    ).path
    np.save(tmp_path / "t1.npy", whole)
    place = tmp_path / "out.npy"
    arguments = ("run", bundle, tmp_path / "t1.npy", "-o", place, "--undersample")
    done = cli(*arguments, "--device", "cpu")  # where TensorRT is no choice
    assert done.code == 0, done.err
    assert "ONNX Runtime" in done.err
    if not available("tensorrt_rtx"):
        cli(*arguments, "--device", "cuda").check_refusal("kdmri-edge[trt]")
    done = cli(*arguments)
    assert done.code == 0, done.err
    runs = "TensorRT-RTX" if available("tensorrt_rtx") and available("cuda") else "ONNX Runtime"
    assert runs in done.err
    place.unlink()
    cli(*arguments, "--backend", "tensorrt").check_refusal("kdmri-edge[trt]")
    assert not place.exists()
    with ke.load(bundle) as net:
        assert net.info.backend == runs


def without_pytorch(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process that can import neither PyTorch nor an exporter."""
    blocked = ("torch", "lightning_fabric", "onnx", "onnxscript", "safetensors", "matplotlib")
    code = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        f"sys.argv = {['kdmri-edge', *map(str, arguments)]!r}\n"
        "from kdmri_edge.cli import run\n"
        "run()\n"
    )
    paths = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_neither_pytorch_nor_an_exporter_is_imported(
    bundle: Path, whole: np.ndarray, tmp_path: Path, backend: str
) -> None:
    np.save(tmp_path / "t1.npy", whole)
    place = tmp_path / "out.npy"
    options = ("--undersample", "--backend", backend)
    done = without_pytorch("run", bundle, tmp_path / "t1.npy", "-o", place, *options)
    assert done.returncode == 0, done.stderr
    assert place.is_file()


@pytest.mark.parametrize(
    ("target", "backend"),
    [("onnx", "onnxruntime"), ("onnx", "openvino"), ("openvino", "openvino")],
)
def test_bundles_are_verified_without_pytorch(
    exports: dict[str, Path], target: str, backend: str, tmp_path: Path
) -> None:
    recipe = ExportRecipe(target=target)
    bundle = export_model(exports["checkpoint"], recipe, tmp_path / "bundle").path
    done = without_pytorch("verify", bundle, "--backend", backend, "--json")
    assert done.returncode == 0, done.stderr
    rows = [row for row in json.loads(done.stdout)["rows"] if row["status"] != "absent"]
    assert {(row["backend"], row["status"]) for row in rows} == {(backend, "passed")}


def test_bundle_that_takes_masks(
    cli: Cli, exports: dict[str, Path], whole: np.ndarray, tmp_path: Path
) -> None:
    checkpoint = exports["checkpoint"]
    bundle = export_model(
        checkpoint, ExportRecipe(target="onnx", mask_input=True), tmp_path / "b"
    ).path
    scanned = variable_density_lines(32, 2, centre_lines=4, seed=9)
    np.save(tmp_path / "mask.npy", scanned.samples.astype(np.uint8))
    x_u = zero_filled(whole.astype(np.complex64), scanned)
    np.save(tmp_path / "x.npy", x_u)
    arguments = ("run", bundle, tmp_path / "x.npy", "-o", tmp_path / "out.npy")
    cli(*arguments).check_refusal("mask")
    done = cli(*arguments, "--mask", tmp_path / "mask.npy")
    assert done.code == 0, done.err
    wanted = reconstruct(open_session(bundle, mask=scanned, threads=1), x_u.real)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), wanted, rtol=1e-5, atol=1e-5)
    assert json.loads(cli("verify", bundle, "--json").out)["passed"]
    fixed = ("run", exports["magnitude"], *arguments[2:], "--mask", tmp_path / "mask.npy")
    cli(*fixed).check_refusal("--mask input")


def _write_kspace(path: Path, whole: np.ndarray, mask: Mask) -> None:
    kspace = np.fft.fft2(whole, norm="ortho") * mask.samples[None, :, None]
    with h5py.File(path, "w") as file:
        file["volfs"] = np.moveaxis(whole, 0, 2)
        file["kspace_volus_3x"] = np.moveaxis(kspace, 0, 2).astype(np.complex64)


def test_kspace_brings_its_own_mask(
    cli: Cli, exports: dict[str, Path], whole: np.ndarray, tmp_path: Path
) -> None:
    recipe = ExportRecipe(target="onnx", mask_input=True)
    bundle = export_model(exports["checkpoint"], recipe, tmp_path / "b").path
    scans = tmp_path / "scans"
    scans.mkdir()
    masks = [variable_density_lines(32, rate, centre_lines=4, seed=3) for rate in (2, 3)]
    for number, mask in enumerate(masks):
        _write_kspace(scans / f"sub-{number}.h5", whole, mask)
    arguments = ("run", bundle, scans, "-o", tmp_path / "out", "--json")
    results = json.loads(cli(*arguments).out)
    for mask, result in zip(masks, results, strict=True):
        session = open_session(bundle, mask=mask, threads=1)
        wanted = reconstruct(session, zero_filled(whole, mask))
        np.testing.assert_allclose(
            np.load(result["output"]), wanted, atol=1e-4 * np.abs(wanted).max()
        )
    # what the user says of the scan goes before what the file says
    np.save(tmp_path / "mask.npy", masks[1].samples.astype(np.uint8))
    cli(*arguments, "--mask", tmp_path / "mask.npy").check_refusal("another mask")


class TestMistakes:
    @pytest.fixture
    def refuse(self, cli: Cli, bundle: Path, tmp_path: Path) -> Callable[..., None]:
        def run(given: np.ndarray | Path, *parts: str, more: tuple[object, ...] = ()) -> None:
            source = given if isinstance(given, Path) else tmp_path / "in.npy"
            if not isinstance(given, Path):
                np.save(source, given)
            options = more or ("-o", tmp_path / "out.npy")
            outcome = cli("run", bundle, source, *options)
            outcome.check_refusal(*parts)
            assert not (tmp_path / "out.npy").exists()

        return run

    def test_magnitude(self, refuse: Cli, whole: np.ndarray) -> None:
        refuse(whole, "magnitude", "--undersample")

    def test_other_mask(self, refuse: Cli, whole: np.ndarray) -> None:
        other = variable_density_lines(32, 2, centre_lines=4, seed=9)
        refuse(zero_filled(whole.astype(np.complex64), other), "mask", "--undersample")

    def test_other_matrix(self, refuse: Cli, whole: np.ndarray) -> None:
        refuse(whole[:, :30, :].astype(np.complex64), "30", "32")

    def test_other_readout(self, refuse: Cli, mask: Mask, whole: np.ndarray) -> None:
        x_u = zero_filled(whole.astype(np.complex64), mask)
        refuse(x_u[:, :, :30], "shape", "matrix")

    def test_missing_file(self, refuse: Cli, tmp_path: Path) -> None:
        refuse(tmp_path / "no.npy", "no.npy", "does not exist")

    def test_undersampled_twice(self, refuse: Cli, mask: Mask, whole: np.ndarray,
                                tmp_path: Path) -> None:  # fmt: skip
        kspace = np.fft.fft2(whole, norm="ortho") * mask.samples[None, :, None]
        with h5py.File(tmp_path / "s.h5", "w") as file:
            file["volfs"] = np.moveaxis(whole, 0, 2)
            file["kspace_volus_3x"] = np.moveaxis(kspace, 0, 2).astype(np.complex64)
        refuse(
            tmp_path / "s.h5", "--undersample", more=("-o", tmp_path / "out.npy", "--undersample")
        )

    def test_unknown_suffix(self, refuse: Cli, whole: np.ndarray, tmp_path: Path) -> None:
        refuse(whole, ".nii.gz", more=("-o", tmp_path / "out.png"))

    def test_input_as_output(self, refuse: Cli, whole: np.ndarray, tmp_path: Path) -> None:
        refuse(whole, "is an input", more=("-o", tmp_path / "in.npy"))

    def test_two_of_one_name(self, refuse: Cli, whole: np.ndarray, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        np.save(tmp_path / "other" / "in.npy", whole)
        refuse(
            whole, "one by one", more=(tmp_path / "other" / "in.npy", "-o", tmp_path / "folder")
        )  # fmt: skip

    def test_backend_that_does_not_take_the_graph(
        self, refuse: Cli, whole: np.ndarray, tmp_path: Path
    ) -> None:
        more = ("-o", tmp_path / "out.npy", "--backend", "torch")
        refuse(whole, "--target torchscript", more=more)

    def test_other_acceleration(self, refuse: Cli, whole: np.ndarray, tmp_path: Path) -> None:
        _write_kspace(
            tmp_path / "s.h5", whole, variable_density_lines(32, 2, centre_lines=4, seed=3)
        )
        refuse(tmp_path / "s.h5", "mask", more=("-o", tmp_path / "out.npy"))

    def test_tampered_and_missing_files(
        self, cli: Cli, bundle: Path, whole: np.ndarray, tmp_path: Path
    ) -> None:
        copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
        np.save(tmp_path / "in.npy", whole)
        command = ("run", copy, tmp_path / "in.npy", "-o", tmp_path / "out.npy", "--undersample")
        graph = copy / "model.onnx"
        graph.write_bytes(graph.read_bytes() + b"\0")
        cli(*command).check_refusal("model.onnx", "SHA-256", "again")
        graph.unlink()
        cli(*command).check_refusal("model.onnx", "Copy the bundle again")
        assert not (tmp_path / "out.npy").exists()

    @pytest.mark.parametrize("command", ["run", "verify"])
    def test_newer_manifest(
        self, command: str, cli: Cli, bundle: Path, whole: np.ndarray, tmp_path: Path
    ) -> None:
        copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
        manifest = json.loads((copy / MANIFEST).read_text())
        (copy / MANIFEST).write_text(json.dumps({**manifest, "schema": SCHEMA + 1}))
        np.save(tmp_path / "in.npy", whole)
        rest = (tmp_path / "in.npy", "-o", tmp_path / "out.npy") if command == "run" else ()
        cli(command, copy, *rest).check_refusal(f"schema {SCHEMA + 1}", "Update kdmri-edge")

    def test_device_that_no_backend_has(
        self, refuse: Cli, whole: np.ndarray, tmp_path: Path
    ) -> None:
        base = ("-o", tmp_path / "out.npy", "--device", "npu", "--backend")
        refuse(whole, "ONNX Runtime runs on cpu, cuda", "'npu'", more=(*base, "onnxruntime"))
        base = ("-o", tmp_path / "out.npy", "--device", "cuda", "--backend")
        refuse(whole, "OpenVINO runs on cpu, gpu, npu", "'cuda'", more=(*base, "openvino"))

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_checkpoint_on_a_device_that_is_not_there(
        self, cli: Cli, exports: dict[str, Path], whole: np.ndarray, tmp_path: Path
    ) -> None:
        np.save(tmp_path / "in.npy", whole)
        command = ("run", exports["checkpoint"], tmp_path / "in.npy", "-o", tmp_path / "out.npy")
        cli(*command, "--undersample", "--device", "cuda").check_refusal("CUDA", "CPU")
        done = cli(*command, "--undersample", "--device", "cpu")
        assert done.code == 0, done.err
        assert "on CPU" in done.err

    def test_no_bundle(self, cli: Cli, tmp_path: Path) -> None:
        cli("run", tmp_path / "no", tmp_path / "a.npy", "-o", tmp_path / "b.npy").check_refusal(
            "no", "does not exist"
        )
