"""`run`, `serve`, `bench` and the Python API give one image, whatever the scan was read from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import kdmri_edge as ke
from kdmri_bench.measuring.isolation import Job
from kdmri_bench.measuring.worker import _end_to_end
from kdmri_edge.data.case import make_case
from kdmri_edge.data.formats.bart import write_bart_scan
from kdmri_edge.data.formats.registry import FORMATS, write_image
from kdmri_edge.data.scan import Scan
from kdmri_edge.models.adapter import call
from kdmri_edge.models.permission import allow_code
from kdmri_edge.mrd.format.hdf5 import write_scan
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.masks import Mask
from kdmri_edge.runtime.pipeline import Pipeline
from kdmri_edge.runtime.session import reconstruct
from tests.core.data.written import write_h5
from tests.core.data.written_dicom import write_series
from tests.core.data.written_twix import whole, write_twix
from tests.core.mrd.scans import phantom_scan
from tests.export.networks import spec, write_checkpoint

Cli = Callable[..., Any]
Array = NDArray[Any]
SIZE = 32


@pytest.fixture(scope="module")
def networks(
    tiny_bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Networks of every kind; coils are estimated from a centre without gaps."""
    folder = tmp_path_factory.mktemp("networks")
    wide = np.zeros(SIZE, np.bool_)
    wide[np.r_[0:12, -12:0, 14, 17]] = True
    sense = write_checkpoint(
        folder / "sense.safetensors", spec(channels=2, coils=True), Mask(samples=wide, name="lines")
    )
    finer = write_checkpoint(folder / "vdsr.safetensors", spec(kind="vdsr"))
    code = f"{Path(__file__).parents[1] / 'kspace_networks.py'}:FastMRI"
    torch.manual_seed(0)
    torch.save(call(allow_code(code)).state_dict(), folder / "weights.pt")
    options = {"weights": folder / "weights.pt", "for_mask": Mask(samples=wide, name="lines")}
    kspace = ke.export(code, target="onnx", out=folder / "k-space", coils=3, **options)
    return {
        **tiny_bundles,
        "k-space": kspace.path,
        "sense": ke.export(sense, target="onnx", out=folder / "sense").path,
        "super-resolution": ke.export(finer, target="onnx", out=folder / "vdsr").path,
    }


def images(*, phase: bool) -> Array:
    image = ke.data.phantom_volume(3, slices=2, matrix=SIZE, complex_phase=phase).image
    return np.asarray(image / np.abs(image).max())


def centred(kspace: Array) -> Array:
    return np.asarray(np.fft.fftshift(kspace, axes=(-2, -1)), np.complex64)


# How a file of each format with images comes about, complex ones where it holds them.
IMAGES: dict[str, Callable[[Path, Array], Path]] = {
    "NIfTI": lambda folder, x: written(folder / "x.nii.gz", x),
    "NumPy": lambda folder, x: written(folder / "x.npy", x),
    "BART": lambda folder, x: written(folder / "x.cfl", x),
    "HDF5": lambda folder, x: layout(folder / "x.h5", x),
    "DICOM": lambda folder, x: series(folder / "series", x),
}


def written(path: Path, image: Array) -> Path:
    write_image(path, image)
    return path


def layout(path: Path, image: Array) -> Path:
    write_h5(path, image)
    return path


def series(folder: Path, image: Array) -> Path:
    pytest.importorskip("pydicom")
    write_series(folder, np.round(np.abs(image) * 4000).astype(int))
    return folder


# How a file of each format with k-space comes about; those of one coil, and of several.
SCANS: dict[str, Callable[[Path, Scan], Path]] = {
    "HDF5": lambda folder, scan: mrd(folder / "scan.h5", scan),
    "HDF5, fastMRI": lambda folder, scan: fastmri(folder / "file.h5", scan),
    "BART": lambda folder, scan: bart(folder / "scan.cfl", scan),
    "Siemens TWIX": lambda folder, scan: twix(folder / "meas.dat", scan),
}


def mrd(path: Path, scan: Scan) -> Path:
    write_scan(path, scan)
    return path


def bart(path: Path, scan: Scan) -> Path:
    if scan.coils == 1:
        pytest.skip("one coil of BART may be images")
    write_bart_scan(path, scan)
    return path


def fastmri(path: Path, scan: Scan) -> Path:
    """Stored with the readout along the axis before the last, of one coil without that axis."""
    kspace = np.swapaxes(centred(scan.kspace), -2, -1)
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace[:, 0] if scan.coils == 1 else kspace
        file.attrs["acquisition"] = "AXT1"
        file["ismrmrd_header"] = "<ismrmrdHeader/>"
    return path


def twix(path: Path, scan: Scan) -> Path:
    lines = whole(centred(scan.kspace))
    taken = np.tile(np.fft.fftshift(scan.mask.samples), len(scan.kspace))
    write_twix(path, [line for line, kept in zip(lines, taken, strict=True) if kept])
    return path


def test_every_format_that_is_read_is_tried_here() -> None:
    holding = {name for name, row in FORMATS.items() if FORMATS.origin(name) is None and row.scan}
    assert holding == {name.partition(",")[0] for name in SCANS}
    assert {*FORMATS} - {"Siemens TWIX"} <= {*IMAGES}


def same(found: Array, wanted: Array) -> None:
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max(), rtol=0)


def by_command(cli: Cli, network: Path, file: Path, out: Path, *options: str) -> Array:
    done = cli("run", network, file, "-o", out, "--complex", "--threads", 1, *options)
    assert done.code == 0, done.err
    return np.asarray(np.load(out))


def by_server(pipeline: Pipeline, kspace: Array, mask: Mask) -> Array:
    outcomes = [pipeline.reconstruct(one, mask) for one in kspace.astype(np.complex64)]
    assert [outcome.fallback for outcome in outcomes] == [None] * len(kspace)
    return np.stack([outcome.image for outcome in outcomes])


def by_benchmark(pipeline: Pipeline, network: Path, kspace: Array, folder: Path) -> Array:
    """Return the first slice, as the benchmark times it from k-space to image."""
    np.save(folder / "kspace.npy", kspace[0])
    job = Job(
        source=str(network), backend=None, precision="f32", threads=1, query="", warmup=0,
        samples=1, kspace=str(folder / "kspace.npy"), end_to_end=1,
    )  # fmt: skip
    return np.asarray(_end_to_end(job, pipeline.session)())


@pytest.mark.parametrize("network", ["magnitude", "complex", "any-mask", "super-resolution"])
@pytest.mark.parametrize("name", IMAGES)
def test_images_of_every_format(
    cli: Cli, networks: dict[str, Path], name: str, network: str, tmp_path: Path
) -> None:
    phase = network == "complex" and name not in ("DICOM", "HDF5")  # which hold magnitudes
    file = IMAGES[name](tmp_path, images(phase=phase))
    volume = ke.read(file)
    assert isinstance(volume, ke.Volume)
    with Pipeline(networks[network], threads=1) as pipeline, ke.load(networks[network]) as net:
        reads = pipeline.reads
        kspace = image_to_kspace(volume.image)[:, None]
        wanted = by_server(pipeline, kspace * reads.mask.grid, reads.mask)
        options = {"magnitude": reads.spec.magnitude_input}
        case = make_case(volume, reads.mask, reads.spec.channels, **options)
        same(reconstruct(pipeline.session, case.zero_filled), wanted)
        same(by_benchmark(pipeline, networks[network], kspace, tmp_path), wanted[:1])
        same(net.reconstruct(volume, undersample=True), wanted)
    found = by_command(cli, networks[network], file, tmp_path / "o.npy", "--undersample")
    same(found, wanted)


@pytest.mark.parametrize("coils", [1, 3])
@pytest.mark.parametrize("network", ["magnitude", "complex", "sense", "k-space", "any-mask"])
@pytest.mark.parametrize("name", SCANS)
def test_scans_of_every_format(
    cli: Cli, networks: dict[str, Path], name: str, network: str, coils: int, tmp_path: Path
) -> None:
    if network == "k-space" and coils == 1:
        pytest.skip("its graph takes three coils, and normalises each")
    with Pipeline(networks[network], threads=1) as pipeline, ke.load(networks[network]) as net:
        mask = pipeline.reads.mask
        if coils == 3:
            scan = phantom_scan(mask, coils=3)
        else:
            kspace = image_to_kspace(images(phase=network == "complex"))[:, None] * mask.grid
            scan = Scan(kspace=kspace.astype(np.complex64), mask=mask, name="one", subject="p")
        file = SCANS[name](tmp_path, scan)
        held = ke.read(file)
        assert isinstance(held, Scan)
        assert (held.mask, held.coils) == (mask, coils)
        wanted = by_server(pipeline, held.kspace, mask)
        same(net.reconstruct(held), wanted)
        same(net.reconstruct(held.kspace, mask=mask), wanted)
        same(net.reconstruct(held.kspace, mask=mask.samples), wanted)
        if coils == 1 and network != "sense":
            same(net.reconstruct(held.kspace[0, 0]), wanted[0])
        if coils == 1 or network in ("sense", "k-space"):
            same(by_benchmark(pipeline, networks[network], held.kspace, tmp_path), wanted[:1])
    same(by_command(cli, networks[network], file, tmp_path / "o.npy"), wanted)


@pytest.mark.parametrize("name", ["HDF5", "HDF5, fastMRI", "Siemens TWIX"])
def test_one_fully_sampled_coil_is_brought_to_the_matrix(
    cli: Cli, networks: dict[str, Path], name: str, tmp_path: Path
) -> None:
    whole_mask = Mask(samples=np.ones(48, np.bool_), name="all")
    image = ke.data.phantom_volume(3, slices=2, matrix=48, complex_phase=True).image
    kspace = image_to_kspace(image)[:, None].astype(np.complex64)
    scan = Scan(kspace=kspace, mask=whole_mask, name="one", subject="p")
    file = SCANS[name](tmp_path, scan)
    with ke.load(networks["complex"], threads=1) as net:
        wanted = net.reconstruct(ke.read(file), undersample=True)
    assert wanted.shape == (2, SIZE, SIZE)
    found = by_command(cli, networks["complex"], file, tmp_path / "o.npy", "--undersample")
    same(found, wanted)
