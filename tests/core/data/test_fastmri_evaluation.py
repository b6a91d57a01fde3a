"""fastMRI's convention: references, central crops, figures as its public code has them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from kdmri_edge.data.evaluation import evaluate
from kdmri_edge.data.formats.hdf5.fastmri_images import (
    as_stored,
    centre_crop,
    image_size,
    read_reference,
)
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.errors import DataError

Cli = Callable[..., Any]
HEADER = (
    "<ismrmrdHeader><encoding>"
    "<encodedSpace><fieldOfView_mm><x>440</x></fieldOfView_mm></encodedSpace>"
    "<reconSpace><matrixSize><x>{rows}</x><y>{columns}</y><z>1</z></matrixSize>"
    "<fieldOfView_mm><x>220</x></fieldOfView_mm></reconSpace>"
    "</encoding></ismrmrdHeader>"
)
ROWS, COLUMNS, ENCODES = 32, 30, 36
"""Of the images; phase encodes are more than columns, readouts twice as many as rows."""


def coil_images(slices: int = 2, coils: int = 3) -> NDArray[np.complex64]:
    """What coils see, [S, C, 2 * ROWS, ENCODES]: an object off the middle of both axes."""
    r, c = np.meshgrid(np.linspace(-2, 2, 2 * ROWS), np.linspace(-1, 1, ENCODES), indexing="ij")
    places = np.linspace(-0.5, 0.5, slices)[:, None, None]
    image = np.exp(-3 * (r - 0.2) ** 2 - 5 * (c + 0.1 - 0.3 * places) ** 2) * np.exp(1j * r)
    seen = [np.exp(-((r - np.cos(a)) ** 2) - (c - np.sin(a)) ** 2) for a in range(coils)]
    return (image[:, None] * np.array(seen)[None]).astype(np.complex64)


def centred_kspace(images: NDArray[Any]) -> NDArray[np.complex64]:
    axes = (-2, -1)
    moved = np.fft.fft2(np.fft.ifftshift(images, axes), norm="ortho")
    return np.fft.fftshift(moved, axes).astype(np.complex64)


def reference_of(images: NDArray[Any]) -> NDArray[np.float32]:
    """The centre of the root sum of squares, by numbers: rows 16 to 47, columns 3 to 32."""
    return np.sqrt((np.abs(images[..., 16:48, 3:33]) ** 2).sum(1)).astype(np.float32)


def write(path: Path, images: NDArray[Any] | None, **held: Any) -> Path:
    """Write a file as fastMRI's are; of datasets and attributes what is named."""
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        if images is not None:
            file["kspace"] = centred_kspace(images)
            file["ismrmrd_header"] = HEADER.format(rows=ROWS, columns=COLUMNS)
        for name, value in held.items():
            if name == "acquisition":
                file.attrs[name] = value
            else:
                file[name] = value
    return path


def submit(path: Path, image: NDArray[Any]) -> Path:
    return write(path, None, reconstruction=image)


@pytest.mark.parametrize(("size", "kept"), [(8, 4), (8, 5), (9, 4), (9, 5), (7, 7)])
def test_the_centre_is_fastmris(size: int, kept: int) -> None:
    first = (size - kept) // 2  # fastmri.data.transforms.center_crop
    image = np.arange(size * 6.0).reshape(1, size, 6)
    np.testing.assert_array_equal(
        centre_crop(image, kept, 6)[0, :, 0], np.arange(first, first + kept) * 6.0
    )
    with pytest.raises(DataError, match=r"8 x 6 have no centre of 9 x 6"):
        centre_crop(np.zeros((1, 8, 6)), 9, 6)


def test_images_are_turned_as_its_files_have_them() -> None:
    image = np.zeros((1, 12, 10), np.complex64)
    image[0, 7, 2] = 3j  # phase encode 7, readout 2
    assert np.argwhere(as_stored(image, None)).tolist() == [[0, 2, 7]]
    assert np.argwhere(as_stored(image, (8, 8))).tolist() == [[0, 1, 5]]
    # fewer columns than asked for: a square of them, as for a few volumes of fastMRI's brains
    assert as_stored(np.ones((1, 6, 10)), (8, 8)).shape == (1, 6, 6)
    assert as_stored(-np.ones((1, 8, 8)), None).min() == 1


def test_a_reference_is_read_or_computed(tmp_path: Path) -> None:
    images = coil_images()
    rss = reference_of(images)
    kept = write(tmp_path / "a.h5", images, reconstruction_rss=2 * rss, acquisition="AXT2")
    made = write(tmp_path / "b.h5", images)
    one = write(tmp_path / "c.h5", images[:, 0], reconstruction_esc=rss, reconstruction_rss=3 * rss)
    assert image_size(kept) == image_size(made) == (ROWS, COLUMNS)
    found = {path.name: read_reference(path) for path in (kept, made, one)}
    assert [f.origin for f in found.values()] == [
        "reconstruction_rss",
        "k-space",
        "reconstruction_esc",
    ]
    assert [f.acquisition for f in found.values()] == ["AXT2", None, None]
    np.testing.assert_array_equal(found["a.h5"].image, 2 * rss)
    np.testing.assert_allclose(found["b.h5"].image, rss, atol=1e-6)
    np.testing.assert_array_equal(found["c.h5"].image, rss)
    np.testing.assert_array_equal(read_reference(one, "multicoil").image, 3 * rss)


def noisy(target: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    return (target + 0.03 * target.max() * random.standard_normal(target.shape)).astype(np.float32)


def test_figures_are_those_of_the_published_formulas(tmp_path: Path) -> None:
    volumes = [1e-4 * phantom_volume(3, slices=2, matrix=40, index=n).image for n in range(3)]
    expected = []
    for number, whole in enumerate(volumes):
        name = f"file{number}.h5"
        target, image = whole[:, :, 2:38], noisy(whole, number)  # 40 x 36, and 40 x 40
        write(tmp_path / "targets" / name, None, reconstruction_rss=target)
        submit(tmp_path / "made" / name, image)
        # fastmri.evaluate: both cropped to 36 x 36, maximum of the volume's target as range
        t, x = whole[:, 2:38, 2:38].astype(np.float64), image[:, 2:38, 2:38].astype(np.float64)
        expected.append(
            {
                "psnr": 10 * np.log10(t.max() ** 2 / np.mean((t - x) ** 2)),
                "ssim": np.mean(
                    [
                        structural_similarity(a, b, data_range=t.max())
                        for a, b in zip(t, x, strict=True)
                    ]
                ),
                "nmse": np.linalg.norm(t - x) ** 2 / np.linalg.norm(t) ** 2,
            }
        )
    found = evaluate(tmp_path / "targets", tmp_path / "made")
    assert [volume.name for volume in found.volumes] == ["file0.h5", "file1.h5", "file2.h5"]
    for measure in ("psnr", "ssim", "nmse"):
        wanted = [figures[measure] for figures in expected]
        given = [volume.metrics[measure] for volume in found.volumes]
        np.testing.assert_allclose(given, wanted, rtol=1e-9)
        assert found.mean[measure] == pytest.approx(np.mean(wanted))
        assert found.std[measure] == pytest.approx(np.std(wanted, ddof=1))
    one = evaluate(tmp_path / "targets" / "file1.h5", tmp_path / "made" / "file1.h5")
    assert one.volumes == found.volumes[1:2]
    assert set(one.std.values()) == {None}


@pytest.mark.nightly
def test_figures_are_those_of_the_package(tmp_path: Path) -> None:
    theirs = pytest.importorskip("fastmri.evaluate", exc_type=ImportError)
    random = np.random.default_rng(0)
    for number in range(6):
        slices, side = int(random.integers(1, 5)), int(random.integers(24, 60))
        whole = phantom_volume(9, slices=slices, matrix=64, index=number).image
        target = whole[:, 2:62, (64 - side) // 2 : (64 - side) // 2 + side]
        image = np.abs(noisy(target, number)) * 1e-5
        name, kind = f"file{number}.h5", ("AXT2", "AXFLAIR")[number % 2]
        write(
            tmp_path / "targets" / name,
            None,
            reconstruction_rss=(1e-5 * target).astype(np.float32),
            acquisition=kind,
        )
        submit(tmp_path / "made" / name, image.astype(np.float32))
    for kind in (None, "AXT2"):
        asked = argparse.Namespace(
            target_path=tmp_path / "targets",
            predictions_path=tmp_path / "made",
            acquisition=kind,
            acceleration=None,
        )
        means = theirs.evaluate(asked, "reconstruction_rss").means()
        found = evaluate(tmp_path / "targets", tmp_path / "made", acquisition=kind)
        assert len(found.volumes) == (6 if kind is None else 3)
        for measure in ("psnr", "ssim", "nmse"):
            wanted = np.squeeze(means[measure.upper()])
            assert found.mean[measure] == pytest.approx(float(wanted), rel=1e-4)


def test_the_command_prints_and_records(cli: Cli, tmp_path: Path) -> None:
    for name in ("b.h5", "a.h5"):
        images = coil_images()
        write(tmp_path / "targets" / name, images, acquisition="AXT2")
        submit(tmp_path / "made" / name, noisy(reference_of(images), 1))
    arguments = ("evaluate", tmp_path / "targets", tmp_path / "made")
    shown = cli(*arguments, "--out", tmp_path / "figures.json")
    assert shown.code == 0, shown.err
    lines = shown.out.splitlines()
    assert lines[0].split()[-3:] == ["dB", "SSIM", "NMSE"]
    assert [line.split()[0] for line in lines[1:3]] == ["a.h5", "b.h5"]
    kept = json.loads((tmp_path / "figures.json").read_text())
    assert f"{kept['mean']['psnr']:.2f}" in lines[3]
    asked = cli(*arguments, "--acquisition", "AXT2", "--json")
    assert json.loads(asked.out) == kept
    assert {volume["reference"] for volume in kept["volumes"]} == {"k-space"}


@pytest.mark.parametrize(
    ("target", "image", "options", "said"),
    [
        ({}, None, (), "lacks a.h5"),
        ({}, {"reconstruction": np.ones((2, 20, 20))}, (), "no centre of 30 x 30"),
        ({}, {"reconstruction": np.ones((1, 32, 30))}, (), "all slices"),
        ({}, {"reconstruction": np.full((2, 32, 30), np.nan)}, (), "NaN"),
        ({}, {"reconstruction": np.ones((2, 32, 30), complex)}, (), "real numbers"),
        ({}, {"image": np.ones((2, 32, 30))}, (), "no dataset 'reconstruction'"),
        ({}, {"reconstruction": np.ones((2, 32, 30))}, ("--acquisition", "AXT1"), "are AXT2"),
        ({"taken": slice(0, None, 2)}, {}, (), "undersampled k-space"),
        ({"only": ("reconstruction_rss", "reconstruction_esc")}, {}, (), "both references"),
        ({"only": ("reconstruction_rss",)}, {}, ("--challenge", "singlecoil"), "neither"),
        ({"only": ("volfs",)}, {}, (), "no file of fastMRI's"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    cli: Cli,
    tmp_path: Path,
    target: dict[str, Any],
    image: dict[str, Any] | None,
    options: tuple[str, ...],
    said: str,
) -> None:
    images = coil_images()
    file = tmp_path / "targets" / "a.h5"
    if "only" in target:
        write(file, None, **dict.fromkeys(target["only"], reference_of(images)))
    else:
        write(file, images, acquisition="AXT2")
    if "taken" in target:
        with h5py.File(file, "r+") as opened:
            opened["kspace"][..., target["taken"]] = 0
    (tmp_path / "made").mkdir()
    if image is not None:
        write(tmp_path / "made" / "a.h5", None, **(image or {"reconstruction": np.ones((2, 9, 9))}))
    done = cli("evaluate", tmp_path / "targets", tmp_path / "made", *options)
    done.check_refusal(said)


def test_exact_copies_are_perfect(cli: Cli, tmp_path: Path) -> None:
    rss = reference_of(coil_images())
    for name in ("a.h5", "b.h5"):
        write(tmp_path / "targets" / name, None, reconstruction_rss=rss)
        submit(tmp_path / "made" / name, rss)
    shown = cli("evaluate", tmp_path / "targets", tmp_path / "made")
    assert shown.err == ""
    assert shown.out.splitlines()[1].split()[-3:] == ["inf", "1.0000", "0.00000"]
    found = json.loads(cli("evaluate", tmp_path / "targets", tmp_path / "made", "--json").out)
    assert found["mean"]["psnr"] is None
    assert found["mean"]["nmse"] == 0


def test_folders_that_are_not_there(cli: Cli, tmp_path: Path) -> None:
    cli("evaluate", tmp_path / "none", tmp_path).check_refusal("does not exist")
    cli("evaluate", tmp_path, tmp_path).check_refusal("no HDF5 file")
