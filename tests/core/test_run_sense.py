"""Multi-coil scans by networks that combine coils: `run`, and the server's pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
import pytest

from kdmri_edge.data.formats.bart import write_bart_scan
from kdmri_edge.data.scan import Scan
from kdmri_edge.mrd.client import send_scan
from kdmri_edge.mrd.format.emit import encoding_of, readouts
from kdmri_edge.mrd.format.header import write_encoding
from kdmri_edge.mrd.format.images import fallback_of
from kdmri_edge.physics.masks import Mask
from kdmri_edge.runtime.pipeline import Pipeline
from kdmri_edge.runtime.session import open_session, reconstruct
from kdmri_export.export import export_model
from kdmri_export.recipe import ExportRecipe
from tests.core.mrd.conftest import running
from tests.export.networks import spec, write_checkpoint
from tests.sense_inputs import sense_input

Cli = Callable[..., Any]
SIZE = 32


def _mask() -> Mask:
    samples = np.zeros(SIZE, np.bool_)
    samples[np.r_[0:12, -12:0, 14, 17]] = True
    return Mask(samples=samples, name="lines")


def _scan(mask: Mask, name: str = "scan") -> Scan:
    """Smooth coils around a smooth object."""
    h, w = np.meshgrid(*[np.linspace(-1, 1, SIZE)] * 2, indexing="ij")
    image = np.exp(-4 * (h**2 + w**2)) * (1 + 0.3 * np.cos(9 * h)) * np.exp(0.5j * w)
    coils = [np.exp(-((h - a) ** 2) - (w - b) ** 2) for a, b in ((-1, 0), (1, 0), (0, 1))]
    kspace = np.fft.fft2(np.fft.ifftshift(image * np.array(coils), (-2, -1)), norm="ortho")
    kspace = (kspace * mask.samples[:, None])[None].astype(np.complex64)
    return Scan(kspace=kspace, mask=mask, name=name, subject=name)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sense")
    checkpoint = write_checkpoint(
        folder / "student.safetensors", spec(channels=2, coils=True), _mask()
    )
    return export_model(checkpoint, ExportRecipe(target="onnx"), folder / "bundle").path


def _expected(bundle: Path, scan: Scan) -> np.ndarray:
    given = sense_input(scan)
    session = open_session(bundle, threads=1)
    return reconstruct(session, given.zero_filled, maps=given.maps)


def test_a_scan_of_many_coils_is_reconstructed(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    scan = _scan(_mask())
    write_bart_scan(tmp_path / "scan.cfl", scan)
    done = cli(
        "run", bundle, tmp_path / "scan.cfl", "-o", tmp_path / "out.npy", "--complex", "--json"
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)[0]["held"] == "k-space of 3 coils"
    image = np.load(tmp_path / "out.npy")
    wanted = _expected(bundle, scan)
    assert image.dtype == np.complex64
    np.testing.assert_allclose(image, wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("target", ["onnx", "trt"])
def test_a_scan_is_compressed_to_the_coils_of_the_export(
    cli: Cli, target: str, tmp_path: Path
) -> None:
    weights = write_checkpoint(
        tmp_path / "student.safetensors", spec(channels=2, coils=True), _mask()
    )
    recipe = ExportRecipe(target=target, coils=2)
    path = export_model(weights, recipe, tmp_path / "bundle").path
    scan = _scan(_mask())
    write_bart_scan(tmp_path / "scan.cfl", scan)
    done = cli(
        "run",
        path,
        tmp_path / "scan.cfl",
        "-o",
        tmp_path / "out.npy",
        "--complex",
        "--backend",
        "onnxruntime",
    )
    assert done.code == 0, done.err
    given = sense_input(scan, coils=2)
    session = open_session(path, backend="onnxruntime", threads=1)
    wanted = reconstruct(session, given.zero_filled, maps=given.maps)
    close = {"atol": 1e-4 * np.abs(wanted).max()}
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), wanted, **close)
    outcome = Pipeline(path, backend="onnxruntime", threads=1).reconstruct(
        scan.kspace[0], scan.mask
    )
    assert outcome.fallback is None
    np.testing.assert_allclose(outcome.image, wanted[0], **close)


def test_a_whole_scan_is_undersampled_on_request(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    whole = _scan(Mask(samples=np.ones(SIZE, np.bool_), name="whole"))
    write_bart_scan(tmp_path / "scan.cfl", whole)
    arguments = ("run", bundle, tmp_path / "scan.cfl", "-o", tmp_path / "out.npy", "--complex")
    cli(*arguments).check_refusal("--undersample")
    assert cli(*arguments, "--undersample").code == 0
    wanted = _expected(bundle, _scan(_mask()))
    np.testing.assert_allclose(
        np.load(tmp_path / "out.npy"), wanted, atol=1e-4 * np.abs(wanted).max()
    )


def test_undersampling_twice_is_refused(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    write_bart_scan(tmp_path / "scan.cfl", _scan(_mask()))
    arguments = ("run", bundle, tmp_path / "scan.cfl", "-o", tmp_path / "out.npy", "--complex")
    cli(*arguments, "--undersample").check_refusal("Leave --undersample out")
    assert not (tmp_path / "out.npy").exists()


def test_images_are_no_input_of_such_a_network(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.ones((1, SIZE, SIZE), np.complex64))
    done = cli("run", bundle, tmp_path / "image.npy", "-o", tmp_path / "out.npy")
    done.check_refusal("combines coils")


def test_the_servers_pipeline_gives_what_run_gives(bundle: Path) -> None:
    scan = _scan(_mask())
    pipeline = Pipeline(bundle, threads=1)
    pipeline.warm_up()
    outcome = pipeline.reconstruct(scan.kspace[0], scan.mask)
    assert outcome.fallback is None
    wanted = _expected(bundle, scan)[0]
    np.testing.assert_allclose(outcome.image, wanted, atol=1e-4 * np.abs(wanted).max())


def _noise(coils: int = 3) -> np.ndarray:
    """Correlated noise, one coil far louder than the others."""
    rng = np.random.default_rng(3)
    white = rng.standard_normal((2, coils, 500)) * 1e-3
    mixing = np.eye(coils) + 0.3 * np.ones((coils, coils))
    mixing[0] *= 20
    return (mixing @ (white[0] + 1j * white[1])).astype(np.complex64)


def test_the_server_whitens_by_the_scans_noise(bundle: Path) -> None:
    scan = _scan(_mask())
    noisy = replace(scan, noise=_noise())
    pipeline = Pipeline(bundle, threads=1)
    xml = write_encoding(encoding_of(noisy))
    with running(pipeline) as server:
        (image,) = send_scan(xml, readouts(noisy), port=server.port).images
    assert fallback_of(image) is None
    wanted, plain = (np.abs(_expected(bundle, s)[0]) for s in (noisy, scan))
    np.testing.assert_allclose(image.data[0, 0], wanted, atol=1e-4 * wanted.max())
    # it is another combination of the coils, of the same unit
    assert np.abs(wanted - plain).max() > 0.02 * plain.max()
    assert 0.1 < wanted.max() / plain.max() < 10


def test_a_first_slice_that_is_not_reconstructed_leaves_the_others_whitened(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = replace(_scan(_mask()), noise=_noise())
    noisy = replace(one, kspace=np.repeat(one.kspace, 2, axis=0))
    lines = list(readouts(noisy))
    # the first slice has an asymmetric echo, which goes back zero-filled
    spoilt = next(line for line in lines if not line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT))
    spoilt.discard_pre = 2
    xml = write_encoding(encoding_of(noisy))
    with running(Pipeline(bundle, threads=1)) as server:
        images = send_scan(xml, lines, port=server.port).images
    assert [fallback_of(image) is None for image in images] == [False, True]
    wanted = np.abs(_expected(bundle, one)[0])
    np.testing.assert_allclose(images[1].data[0, 0], wanted, atol=1e-4 * wanted.max())


def test_noise_that_cannot_be_used_is_said(bundle: Path) -> None:
    scan = _scan(_mask())
    silent = replace(scan, noise=np.zeros((3, 50), np.complex64))
    xml = write_encoding(encoding_of(silent))
    with running(Pipeline(bundle, threads=1)) as server:
        reply = send_scan(xml, readouts(silent), port=server.port)
    (image,) = reply.images
    assert fallback_of(image) is None
    wanted = np.abs(_expected(bundle, scan)[0])
    np.testing.assert_allclose(image.data[0, 0], wanted, atol=1e-4 * wanted.max())
    assert any(text.startswith("WRN") and "not whitened" in text for text in reply.texts)


def test_a_mask_with_gaps_in_its_centre_falls_back(bundle: Path) -> None:
    samples = _mask().samples.copy()
    samples[3] = False
    gappy = Mask(samples=samples, name="gappy")
    outcome = Pipeline(bundle, threads=1).reconstruct(_scan(gappy).kspace[0], gappy)
    assert outcome.fallback is not None
    assert outcome.image.dtype == np.float32
