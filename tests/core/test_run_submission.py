"""`run` on fastMRI's files: masks that are drawn for each, and what its leaderboards take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from kdmri_edge.physics.masks import fastmri_mask
from tests.core.data.test_fastmri_evaluation import coil_images, noisy, write

Cli = Callable[..., Any]


def single_coil(path: Path) -> Path:
    """A fully sampled file: 64 readouts of which 32 are image, 32 phase encodes, image 32 x 30."""
    images = coil_images()[:, 0, :, 2:-2]
    return write(path, images, reconstruction_esc=np.abs(images[:, 16:48, 1:31]))


def test_a_submission_holds_the_centre_of_what_run_makes(
    cli: Cli, tiny_bundles: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("file1.h5", "file2.h5"):
        single_coil(tmp_path / "scans" / name)
    given = ("run", tiny_bundles["complex"], tmp_path / "scans", "--undersample", "--threads", 1)
    done = cli(*given, "-o", tmp_path / "made", "--layout", "fastmri", "--json")
    assert done.code == 0, done.err
    one = ("run", tiny_bundles["complex"], tmp_path / "scans" / "file1.h5", *given[3:])
    assert cli(*one, "-o", tmp_path / "file1.npy").code == 0
    whole = np.load(tmp_path / "file1.npy")  # [S, phase encode, readout]
    with h5py.File(tmp_path / "made" / "file1.h5") as file:
        assert list(file) == ["reconstruction"]
        made = file["reconstruction"][()]
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, whole.transpose(0, 2, 1)[:, :, 1:31], atol=1e-6 * made.max())
    # lies where the reference has it: the error is that of a network, not of another place
    found = cli("evaluate", tmp_path / "scans", tmp_path / "made", "--json")
    assert found.code == 0, found.err
    right = json.loads(found.out)["mean"]["nmse"]
    with h5py.File(tmp_path / "made" / "file1.h5", "r+") as file:
        file["reconstruction"][...] = made[:, ::-1]
    turned = json.loads(cli("evaluate", tmp_path / "scans", tmp_path / "made", "--json").out)
    assert turned["volumes"][0]["metrics"]["nmse"] > 1.5 * right


def test_masks_are_drawn_for_each_file(
    cli: Cli, tiny_bundles: dict[str, Path], tmp_path: Path
) -> None:
    volumes = {}
    for name in ("a", "b"):
        volumes[name] = noisy(np.abs(coil_images()[:, 0, 16:48, :32]), ord(name)).clip(0)
        np.save(tmp_path / f"{name}.npy", volumes[name])
    given = ("run", tiny_bundles["any-mask"], tmp_path / "a.npy", tmp_path / "b.npy")
    drawn = ("--undersample", "--mask-family", "fastmri-random", "--json", "-o", tmp_path / "out")
    found = {}
    for seed in ("name", "7"):
        done = cli(*given, *drawn, "--mask-seed", seed)
        assert done.code == 0, done.err
        found[seed] = {Path(row["input"]).stem: row for row in json.loads(done.out)}
    assert [found["name"][n]["mask"] for n in "ab"] == [
        f"fastmri-random-4x-of-{n}.npy" for n in "ab"
    ]
    assert {found["7"][n]["mask"] for n in "ab"} == {"fastmri-random-4x-s7"}
    # and it is that mask which the file was undersampled with
    mask = fastmri_mask("random", 32, 4, seed="a.npy")
    np.save(tmp_path / "mask.npy", mask.samples)
    own = cli(
        *given[:3], "--undersample", "--mask", tmp_path / "mask.npy", "--json", "-o",
        tmp_path / "one.npy",
    )  # fmt: skip
    assert own.code == 0, own.err
    assert json.loads(own.out)[0]["figures"] == pytest.approx(found["name"]["a"]["figures"])


def test_what_cannot_be_submitted_or_drawn(
    cli: Cli, tiny_bundles: dict[str, Path], tmp_path: Path
) -> None:
    scan = single_coil(tmp_path / "scans" / "file1.h5")
    np.save(tmp_path / "a.npy", np.abs(coil_images()[:, 0, 16:48, :32]))
    own, any_mask = tiny_bundles["complex"], tiny_bundles["any-mask"]
    out = tmp_path / "out"
    drawn = (any_mask, tmp_path / "a.npy", "-o", out)
    for arguments, said in (
        ((own, scan, "--layout", "fastmri", "-o", tmp_path / "x.h5"), "Give a folder"),
        ((own, scan, "--layout", "fastmri", "-o", tmp_path / "scans"), "is an input"),
        ((*drawn, "--layout", "fastmri"), "no file of fastMRI's"),
        ((own, scan, "--mask-family", "random", "-o", out), "made for its own mask"),
        ((*drawn, "--mask-family", "random", "--mask-seed", "name"), "seeded by numbers"),
        ((*drawn, "--mask-family", "rondom"), "'random'"),
    ):
        cli("run", *arguments, "--undersample").check_refusal(said)
        assert not out.exists()
    for arguments, said in (
        (("--mask-family", "random"), "--undersample"),
        (("--undersample", "--mask-seed", "name"), "add --mask-family"),
        (("--undersample", "--mask-family", "random", "--mask-seed", "-3"), "neither"),
        (("--layout", "fastmri", "--complex"), "no --complex"),
        (("--complex", "--magnitude"), "give one"),
    ):
        done = cli("run", own, scan, "-o", out, *arguments)
        assert done.code == 2
        assert said in done.err
