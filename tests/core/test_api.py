"""The public Python API: the issue's own lines, one road for every source, names that stay."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kdmri_edge as ke
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.scan import Scan
from kdmri_edge.physics.coils import expand
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.masks import Mask
from tests.core.mrd.scans import phantom_scan
from tests.export.networks import spec, write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
NAMESPACES = (
    *("kdmri_edge", "kdmri_edge.data", "kdmri_edge.distillation", "kdmri_edge.models"),
    *("kdmri_edge.physics", "kdmri_edge.runtime", "kdmri_export"),
)
Cli = Callable[..., Any]


def test_importing_it_needs_nothing_heavy() -> None:
    code = (
        "import sys, kdmri_edge as ke; ke.load, ke.read, ke.distill, ke.export, ke.benchmark\n"
        "print(*(m for m in ('torch', 'onnx', 'openvino', 'onnxruntime') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_public_name_is_there_and_documented() -> None:
    for namespace in NAMESPACES:
        module = importlib.import_module(namespace)
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value) or isinstance(value, type(ke.errors)):
                assert value.__doc__, f"{module.__name__}.{name}"
                of_its_class = type(value).__doc__ if type(value).__module__[:5] == "torch" else ""
                assert value.__doc__ != of_its_class, f"{module.__name__}.{name}"


def test_public_names_are_those_of_the_page() -> None:
    page = (ROOT / "docs" / "reference" / "public-names.md").read_text(encoding="utf-8")
    listed: dict[str, set[str]] = {}
    for line in page.splitlines():
        if found := re.match(r"## `([.\w]+)`", line):
            listed[found[1]] = section = set()
        elif found := re.match(r"- `(\w+)`", line):
            section.add(found[1])
    for namespace in NAMESPACES:
        module = importlib.import_module(namespace)
        assert listed[namespace] == set(module.__all__), namespace


def one_coil(mask: Mask) -> Scan:
    """A phantom without phase: what a magnitude network is made for."""
    image = phantom_volume(3, slices=2, matrix=32).image
    kspace = image_to_kspace(image.astype(np.complex64))[:, None] * mask.samples[:, None]
    return Scan(kspace=kspace.astype(np.complex64), mask=mask, name="one", subject="phantom")


@pytest.fixture(scope="module")
def bundles(
    tiny_bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Networks of every kind; coils are estimated from a centre without gaps."""
    folder = tmp_path_factory.mktemp("sense")
    wide = np.zeros(32, np.bool_)
    wide[np.r_[0:12, -12:0, 14, 17]] = True
    weights = write_checkpoint(
        folder / "sense.safetensors",
        spec(channels=2, coils=True),
        Mask(samples=wide, name="lines"),
    )
    made = ke.export(weights, target="onnx", out=folder / "sense")
    return {**tiny_bundles, "sense": made.path}


def test_sensitivities_can_be_given(bundles: dict[str, Path]) -> None:
    with ke.load(bundles["sense"], threads=1) as net:
        maps = np.full((2, 32, 32), 2**-0.5, np.complex64) * np.array([1, 1j])[:, None, None]
        image = phantom_volume(3, slices=1, matrix=32).image[0].astype(np.complex64)
        kspace = image_to_kspace(expand(image, maps)) * net.mask.samples[:, None]
        made = net.reconstruct(kspace[None], maps=maps)
        assert made.shape == (1, 32, 32)
        turned = net.reconstruct(kspace[None], maps=maps[::-1].copy())
        assert np.abs(made - turned).max() > 1e-2 * np.abs(made).max()
        with pytest.raises(ke.errors.DataError, match="one map per coil"):
            net.reconstruct(kspace[None], maps=maps[:1])


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda k: k.real, ke.errors.DataError, "complex"),
        (lambda k: k[None, None], ke.errors.DataError, "shape"),
        (lambda k: k[..., :30, :30], ke.errors.MaskError, "32"),
        (lambda k: k + np.complex64(1), ke.errors.MaskError, "does not take"),
        (lambda k: np.where(k == k.max(), np.nan, k), ke.errors.DataError, "NaN"),
        (lambda k: 0 * k, ke.errors.DataError, "zero"),
        (
            lambda k: np.where(k, np.exp(1j * np.arange(k.size).reshape(k.shape) ** 2), 0),
            ke.errors.DataError,
            "does not suit a network of real images",
        ),
        (lambda k: k.astype(np.complex128) * 1e300, ke.errors.DataError, "beyond those of"),
    ],
)
def test_mistakes_are_sentences(
    tiny_bundles: dict[str, Path], change: Callable[[Any], Any], error: type[Exception], said: str
) -> None:
    with ke.load(tiny_bundles["magnitude"], threads=1) as net:
        kspace = one_coil(net.mask).kspace
        with np.errstate(invalid="ignore"), pytest.raises(error, match=said):
            net.reconstruct(change(kspace))


def test_mistakes_with_masks_name_arguments_and_what_is_fully_sampled(
    tiny_bundles: dict[str, Path],
) -> None:
    every = np.ones(32, np.bool_)
    whole = image_to_kspace(phantom_volume(3, slices=2, matrix=32).image.astype(np.complex64))
    with ke.load(tiny_bundles["complex"], threads=1) as net:
        sampled = int(net.mask.samples.sum())
        with pytest.raises(ke.errors.MaskError) as found:
            net.reconstruct(whole, mask=every)
        assert "k-space is fully sampled" in found.value.what
        assert found.value.remedy == "To try that mask on it, add undersample=True."
        assert str(found.value) == f"{found.value.what} {found.value.remedy}"
        with pytest.raises(ke.errors.MaskError) as found:
            net.reconstruct(whole * net.mask.grid, mask=every)
        assert found.value.what == (
            f"The mask is fully sampled, and k-space has no sample in {32 - sampled} of its 32"
            " lines."
        )
        assert "Give the mask that was sampled" in found.value.remedy
        assert net.reconstruct(whole, mask=every, undersample=True).shape == (2, 32, 32)
    for name in ("any-mask", "any-matrix"):  # lines not acquired would be enforced as zeros
        with ke.load(tiny_bundles[name], threads=1) as net:
            real = image_to_kspace(phantom_volume(3, slices=2, matrix=32).image)
            with pytest.raises(ke.errors.MaskError, match="k-space has no sample in"):
                net.reconstruct(real * net.mask.grid, mask=every)


def test_kspace_is_taken_wherever_its_zero_frequency_is(
    tiny_bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Centred, and as plain fft2 gives it: detected and said, or told."""
    image = phantom_volume(3, slices=2, matrix=32).image.astype(np.complex64)
    axes = (-2, -1)
    own, plain = image_to_kspace(image), np.fft.fft2(image, norm="ortho")
    with ke.load(tiny_bundles["complex"], threads=1) as net:
        wanted = net.reconstruct(own, undersample=True)
        assert not capsys.readouterr().err
        for given, said in (
            (np.fft.fftshift(own, axes), "peaks in the middle"),
            (plain, "around their edges"),
            (np.fft.fftshift(plain, axes), "peaks in the middle"),
        ):
            made = net.reconstruct(given, undersample=True)
            np.testing.assert_allclose(made, wanted, atol=1e-3 * abs(wanted).max())
            assert said in capsys.readouterr().err.replace("\n", " ")
        told = net.reconstruct(np.fft.fftshift(own, axes), undersample=True, centred=True)
        np.testing.assert_array_equal(told, wanted)
        assert not capsys.readouterr().err
        sampled = net.mask.samples
        lines = np.fft.fftshift(own * sampled[:, None], axes)
        with_mask = net.reconstruct(lines, mask=np.fft.fftshift(sampled), centred=True)
        np.testing.assert_allclose(with_mask, wanted, atol=1e-3 * abs(wanted).max())
        with pytest.raises(ke.errors.MaskError):
            net.reconstruct(own * sampled[:, None], mask=np.fft.fftshift(sampled))


def test_a_mask_array_is_read_as_a_mask_file_is(tiny_bundles: dict[str, Path]) -> None:
    """Whole lines are lines, however an array holds them."""
    with ke.load(tiny_bundles["magnitude"], threads=1) as net:
        scan, lines = one_coil(net.mask), net.mask.samples
        wanted = net.reconstruct(scan)
        for mask in (
            lines.astype(int).tolist(),
            lines[None, None, :, None],  # fastMRI's axes
            np.repeat(lines[:, None], 32, axis=1),
        ):
            np.testing.assert_array_equal(net.reconstruct(scan.kspace, mask=mask), wanted)
        middle = np.fft.fftshift(np.repeat(lines[:, None], 32, axis=1))
        centred = np.fft.fftshift(scan.kspace, (-2, -1))
        made = net.reconstruct(centred, mask=middle, centred=True)
        np.testing.assert_array_equal(made, wanted)
        with pytest.raises(ke.errors.MaskError, match="last axis"):
            net.reconstruct(scan.kspace, mask=np.repeat(lines[None], 32, axis=0))


def test_a_closed_network_says_so(tiny_bundles: dict[str, Path]) -> None:
    net = ke.load(tiny_bundles["magnitude"], threads=1)
    assert "32 x 32" in repr(net)
    assert "ONNX Runtime fp32 on CPU" in repr(net)
    net.close()
    with pytest.raises(ke.errors.BackendError, match="closed"):
        net.reconstruct(one_coil(net.mask))


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(ke.errors.ModelError, match="dccnn-d3c5@brain-4x"):
        ke.load("dccnn-d3c5@brain-4")
    with pytest.raises(ke.errors.ModelError, match="architecture"):
        ke.load("dccnn-d3c5")
    with pytest.raises(ke.errors.ModelError, match="matrix=64 is nothing"):
        ke.load("dccnn-d3c5@brain-4x", matrix=64)  # type: ignore[arg-type]


def test_images_are_written_where_they_were_read(tmp_path: Path) -> None:
    scan = phantom_scan(Mask(samples=np.ones(32, np.bool_), name="all"))
    images = np.abs(np.random.default_rng(0).standard_normal((2, 32, 32))).astype(np.float32)
    ke.write(tmp_path / "o.nii.gz", images, like=scan)
    back = ke.read(tmp_path / "o.nii.gz")
    assert isinstance(back, ke.Volume)
    np.testing.assert_allclose(back.image, images, rtol=1e-6)
    assert scan.affine is not None
    np.testing.assert_allclose(back.affine, scan.affine, atol=1e-4)
    with pytest.raises(ke.errors.DataError, match="cannot have the place"):
        ke.write(tmp_path / "p.nii.gz", images[:1], like=scan)


def test_the_whole_path_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load, reconstruct, distil, export, benchmark, as README shows it; on the phantom."""
    from kdmri_bench.planning.settings import BenchSettings

    monkeypatch.chdir(tmp_path)
    net = ke.load("dccnn-d3c5@brain-4x", threads=2)
    brain = phantom_volume(1, slices=1, matrix=240).image
    kspace = image_to_kspace(brain[0]) * net.mask.samples[:, None]
    image = net.reconstruct(kspace, mask=net.mask)
    zero_filled = np.abs(ke.physics.kspace_to_image(kspace))
    assert ke.metrics.psnr(brain, image[None]) > ke.metrics.psnr(brain, zero_filled[None]) + 5
    small = ("teacher_steps=4", "attention_steps=2", "imitation_steps=2", "batches.size=4",
             "batches.strip=16", "phantom_volumes=3", "phantom_slices=2")  # fmt: skip
    run = ke.distill(
        teacher="dccnn-d5c5", student="dccnn-d3c5", data="phantom", matrix=32, acceleration=2,
        assignments=small, accelerator="cpu", threads=2, out="runs/mine",
    )  # fmt: skip
    bundle = ke.export(run.student, target="onnx", precision="int8", out="student-onnx")
    assert bundle.written == "int8"
    settings = BenchSettings(samples=2, warmup=1, rounds=1, end_to_end=0, seconds=None,
                             every_way=False, plain_export=False, peaks_s=0)  # fmt: skip
    volumes = [phantom_volume(9, slices=2, matrix=32)]
    report = ke.benchmark([bundle], volumes, settings=settings, threads=2)
    assert "int8" in report.table()
    files = report.save("report")
    assert files["json"].is_file()
    assert {row.status for row in report.rows} >= {"measured"}
