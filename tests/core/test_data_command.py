"""`kdmri-edge data inspect` and `data convert` as they are typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdmri_edge.data.formats.registry import write_image
from kdmri_edge.data.geometry import from_axes

Cli = Callable[..., Any]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "sub-01_T1w.npy"
    np.save(path, np.random.default_rng(0).uniform(1, 9, (2, 8, 6)).astype(np.complex64) * 1j)
    return path


def test_inspect_for_people(cli: Cli, images: Path) -> None:
    done = cli("data", "inspect", images)
    assert done.code == 0, done.err
    for words in ("NumPy", "complex images, 2 slice(s) of 8 x 6", "subject: 01", "run takes it as"):
        assert words in done.out


def test_directions_are_words(cli: Cli, tmp_path: Path) -> None:
    affine = from_axes((0, 0, 4), (-1.5, 0, 0), (0, -0.5, 0), (50, 60, 10))
    write_image(tmp_path / "a.nii", np.ones((3, 8, 6), np.float32), None, affine)
    shown = cli("data", "inspect", tmp_path / "a.nii").out
    assert "axes point: superior, left, posterior (slice, phase encode, readout)" in shown
    assert "voxel: 4 x 1.5 x 0.5 mm (slice, phase encode, readout)" in shown


def test_inspect_for_machines(cli: Cli, images: Path) -> None:
    done = cli("data", "inspect", images, "--json")
    (facts,) = json.loads(done.out)
    assert (facts["format"], facts["slices"], facts["matrix"]) == ("NumPy", 2, [8, 6])
    assert facts["taken"] is True


def test_one_bad_file_does_not_hide_the_others(cli: Cli, images: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.nii").write_bytes(b"junk")
    done = cli("data", "inspect", tmp_path / "bad.nii", images, "--json")
    assert done.code == 1
    bad, good = json.loads(done.out)
    assert "cannot be read" in bad["error"]
    assert good["format"] == "NumPy"
    shown = cli("data", "inspect", tmp_path / "bad.nii", images)
    assert shown.code == 1
    assert "cannot be used" in shown.out
    assert "Traceback" not in shown.out + shown.err


def test_convert_says_what_is_not_in_it(cli: Cli, images: Path, tmp_path: Path) -> None:
    done = cli("data", "convert", images, tmp_path / "a.nii.gz", "--magnitude")
    assert done.code == 0, done.err
    assert "magnitude images, 2 slice(s)" in done.out
    assert "Not in it: phase." in done.out
    again = cli("data", "convert", images, tmp_path / "b.nii.gz", "--json")
    assert json.loads(again.out)["lost"] == []


def test_convert_refuses_in_one_sentence(cli: Cli, images: Path, tmp_path: Path) -> None:
    cli("data", "convert", images, tmp_path / "a.dcm").check_refusal("phase", "--magnitude")
    cli("data", "convert", tmp_path / "no.npy", tmp_path / "a.nii").check_refusal("does not exist")


@pytest.mark.parametrize("name", ["T1w.nii.gz", "sub-01_T1w.npy"])
def test_images_are_not_called_kspace(cli: Cli, images: Path, tmp_path: Path, name: str) -> None:
    """A user who says that it is k-space would else have images without a word."""
    if name != images.name:
        write_image(tmp_path / name, np.load(images))
    said = (f"{name} holds images, not k-space", "--kspace")
    cli("data", "convert", tmp_path / name, tmp_path / "y.cfl", "--kspace").check_refusal(*said)
    assert not (tmp_path / "y.cfl").exists()
    done = cli("data", "inspect", tmp_path / name, "--kspace")
    assert done.code == 1
    assert f"cannot be used: {tmp_path / name} holds images" in done.out


@pytest.mark.parametrize("words", [(), ("inspect",), ("convert",)])
def test_usage_errors_exit_2(cli: Cli, words: tuple[str, ...]) -> None:
    assert cli("data", *words).code == 2
