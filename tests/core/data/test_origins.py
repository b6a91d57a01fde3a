"""K-space whose zero frequency, or whose image, lies elsewhere than is usual."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from kdmri_edge.data.formats.registry import read_scan
from kdmri_edge.data.origins import zero_first
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.masks import variable_density_lines

AXES = (-2, -1)


def head(size: int) -> np.ndarray:
    """An image [2, H, W] that is not square, with air around it."""
    image = phantom_volume(3, slices=2, matrix=size).image
    return image[:, 1:].astype(np.complex64)


def forms(image: np.ndarray) -> dict[str, np.ndarray]:
    """The k-space of an image as programs store it."""
    own, plain = image_to_kspace(image), np.fft.fft2(image, norm="ortho")
    return {
        "first": own,
        "centred": np.fft.fftshift(own, AXES),
        "plain": plain,
        "plain, centred": np.fft.fftshift(plain, AXES),
    }


@pytest.mark.parametrize("size", [48, 49])
@pytest.mark.parametrize("form", ["first", "centred", "plain", "plain, centred"])
@pytest.mark.parametrize("usual", [False, True])
@pytest.mark.parametrize("lines", [False, True])
def test_every_form_comes_out_as_one(
    size: int, form: str, usual: bool, lines: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    image = head(size)
    wanted = image_to_kspace(image)
    mask = variable_density_lines(size - 1, 3, centre_lines=8).grid if lines else np.ones(1, bool)
    given = forms(image)[form] * (np.fft.fftshift(mask) if "centred" in form else mask)
    found, shifted = zero_first(given, "it", centred=None, usual=usual)
    assert shifted == ("centred" in form)
    np.testing.assert_allclose(found, wanted * mask, atol=1e-4 * abs(wanted).max())
    said = capsys.readouterr().err.replace("\n", " ")
    assert ("zero frequency is taken to be there" in said) == (shifted != usual)
    assert ("around their edges" in said) == ("plain" in form)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_units_do_not_matter(scale: float) -> None:
    """Squares of either are beyond float32."""
    centred = forms(head(48))["centred"].astype(np.complex64) * np.float32(scale)
    assert zero_first(centred, "it", centred=None, usual=False)[1]


def test_what_is_told_is_taken_and_doubted(capsys: pytest.CaptureFixture[str]) -> None:
    centred = forms(head(48))["centred"]
    found, _ = zero_first(centred, "it", centred=True, usual=False)
    np.testing.assert_array_equal(found, np.fft.ifftshift(centred, AXES))
    assert not capsys.readouterr().err
    zero_first(centred, "it", centred=False, usual=False)
    assert "its energy peaks in the middle" in capsys.readouterr().err


@pytest.mark.parametrize("usual", [False, True])
def test_noise_and_small_matrices_tell_nothing(
    usual: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    for shape in ((2, 64, 48), (8, 8), (1, 4, 20, 200)):
        noise = random.normal(size=shape) + 1j * random.normal(size=shape)
        found, shifted = zero_first(noise, "it", centred=None, usual=usual)
        assert shifted == usual
        np.testing.assert_array_equal(found, np.fft.ifftshift(noise, AXES) if usual else noise)
    zero, _ = zero_first(np.zeros((32, 32), complex), "it", centred=None, usual=usual)
    assert not zero.any()
    assert not capsys.readouterr().err


@pytest.mark.parametrize("form", ["first", "plain"])
def test_files_that_are_not_centred(
    tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """BART, fastMRI's layout and a dataset with its axes: each says it, and reads it."""
    image = head(48)
    kspace, wanted = forms(image)[form].astype(np.complex64), image_to_kspace(image)
    sizes = [kspace.shape[2], kspace.shape[1], 1, 1, *[1] * 9, 2, 1, 1]
    kspace.tofile(tmp_path / "a.cfl")
    (tmp_path / "a.hdr").write_text(f"# Dimensions\n{' '.join(map(str, sizes))}\n")
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["kspace"] = np.swapaxes(kspace, 1, 2)[:, None]
    with h5py.File(tmp_path / "p.h5", "w") as file:
        file["raw"] = kspace
    for path in (tmp_path / "a.cfl", tmp_path / "f.h5", Path(f"{tmp_path}/p.h5:raw:shw")):
        found = read_scan(path)
        np.testing.assert_allclose(found.kspace[:, 0], wanted, atol=1e-4 * abs(wanted).max())
        assert "peaks at index 0" in capsys.readouterr().err.replace("\n", " ")
