"""What `data inspect` says to a person who knows the file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest

from kdmri_edge.data.datasets import find_volumes
from kdmri_edge.data.formats.bart import write_bart
from kdmri_edge.data.image import ImageRecord
from kdmri_edge.errors import DataError
from kdmri_edge.physics.masks import variable_density_lines
from tests.core.data.test_fastmri_evaluation import (
    centred_kspace,
    coil_images,
    reference_of,
    write,
)

Cli = Callable[..., Any]


def test_a_folder_is_listed(cli: Cli, tmp_path: Path) -> None:
    for name in ("b.npy", "a.npy"):
        np.save(tmp_path / name, np.random.default_rng(0).uniform(1, 9, (2, 8, 6)))
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "c.nii").write_bytes(b"junk")
    done = cli("data", "inspect", tmp_path, "--json")
    assert done.code == 1
    found = json.loads(done.out)
    assert [Path(facts["file"]).name for facts in found] == ["a.npy", "b.npy", "c.nii"]
    assert [facts.get("slices") for facts in found] == [2, 2, None]
    (tmp_path / "empty").mkdir()
    assert "is a folder" in cli("data", "inspect", tmp_path / "empty").out


def test_masks_are_described(cli: Cli, tmp_path: Path) -> None:
    mask = variable_density_lines(48, 4)
    np.save(tmp_path / "lines.npy", mask.samples)
    held = {
        name: {"shape": [48, 48], "phase_encode_axis": 0, "sampled_lines": lines}
        for name, lines in (("own", np.flatnonzero(mask.samples).tolist()), ("few", [0, 1, 47]))
    }
    (tmp_path / "masks.json").write_text(json.dumps(held))
    shown = cli("data", "inspect", tmp_path / "lines.npy", tmp_path / "masks.json")
    assert shown.code == 0, shown.err
    assert shown.out.count("12 of 48 lines, 4x, ") == 2
    assert f"{tmp_path / 'masks.json'}:few: 3 of 48 lines, 16x, 3 around the centre" in shown.out
    (facts,) = json.loads(cli("data", "inspect", tmp_path / "masks.json", "--json").out)
    assert list(facts["masks"]) == ["own", "few"]
    (tmp_path / "other.json").write_text('{"a": 1}')
    assert "is damaged" in cli("data", "inspect", tmp_path / "other.json").out
    np.save(tmp_path / "image.npy", np.eye(6) * 3)
    assert "magnitude images, 1 slice(s)" in cli("data", "inspect", tmp_path / "image.npy").out


def test_labels_and_made_up_directions_are_noted(cli: Cli, tmp_path: Path) -> None:
    image = np.random.default_rng(0).uniform(1, 9, (8, 6, 3)).astype(np.float32)
    labels = (4 * (image > 5) + 9 * (image > 7)).astype(np.uint8)
    turned = np.diag([-1.3, -1.3, 8, 1])
    for name, pixels, affine in (
        ("image", image, turned),
        ("labels", labels, turned),
        ("grid", image, np.diag([1.3, 1.3, 8, 1])),
    ):
        nibabel.save(nibabel.Nifti1Image(pixels, affine), tmp_path / f"{name}.nii")
    shown = {n: cli("data", "inspect", tmp_path / f"{n}.nii").out for n in ("image", "labels")}
    assert "note" not in shown["image"]
    assert "no more than 3 values: this looks like a mask of a lesion" in shown["labels"]
    assert "may be made up" in cli("data", "inspect", tmp_path / "grid.nii").out


def test_references_of_fastmri_are_named(cli: Cli, tmp_path: Path) -> None:
    images = coil_images()
    file = write(tmp_path / "a.h5", images, reconstruction_rss=reference_of(images))
    assert "reference: reconstruction_rss, 32 x 30" in cli("data", "inspect", file).out
    bare = write(tmp_path / "b.h5", images)
    assert "reference:" not in cli("data", "inspect", bare).out


def test_datasets_are_shown_with_their_shapes(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    values = np.random.default_rng(0).standard_normal((3, 8, 6)) * np.exp(0.3j)
    with h5py.File(path, "w") as file:
        file["FLAIR"], file["ksp"] = values, values[0]
    done = cli("data", "inspect", path)
    assert "FLAIR [3, 8, 6], ksp [8, 6]" in done.out
    assert f"for instance {path}:FLAIR:swh" in done.out
    assert "contrast: FLAIR" in cli("data", "inspect", f"{path}:FLAIR:swh").out
    assert "contrast" not in cli("data", "inspect", f"{path}:ksp:wh").out


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"kspace": np.ones((2, 3, 64, 36, 2), np.float32)}, "real and imaginary parts"),
        ({"kspace": np.ones((64, 36), np.complex64)}, "a.h5:kspace:wh"),
        ({"kspace": np.ones((3, 2, 4, 64, 36), np.complex64)}, "in a file of its own"),
        ({"kspace": np.ones((0, 3, 64, 36), np.complex64)}, "is empty"),
        ({"kspace": np.full((2, 3, 64, 36), np.inf, np.complex64)}, "NaN or infinite"),
        ({"reconstruction_rss": np.ones((2, 32, 32))}, "but reconstruction_rss. `kdmri-edge eval"),
        ({"reconstruction": np.ones((2, 32, 32))}, "but reconstruction. `kdmri-edge evaluate`"),
    ],
)
def test_strange_files_of_fastmri_are_one_sentence(
    cli: Cli, tmp_path: Path, held: dict[str, Any], said: str
) -> None:
    done = cli("data", "inspect", write(tmp_path / "a.h5", None, **held))
    assert done.code == 1
    assert said in done.out
    assert done.err == ""


def test_parts_by_name_are_complex_and_padding_is_noted(cli: Cli, tmp_path: Path) -> None:
    kspace = centred_kspace(coil_images())
    kspace[..., :5] = 0
    parts = np.rec.fromarrays([kspace.real, kspace.imag], names="real,imag")
    done = cli("data", "inspect", write(tmp_path / "a.h5", None, kspace=parts))
    assert done.code == 0, done.out
    assert "sampled: 36 of 36 lines" in done.out
    assert "5 of the lines are zeros at the edges" in done.out


def test_files_beside_the_point_are_named_as_what_they_are(cli: Cli, tmp_path: Path) -> None:
    write_bart(tmp_path / "a.cfl", ImageRecord(image=np.ones((1, 8, 6), np.complex64)))
    os.mkfifo(tmp_path / "pipe.nii")
    nibabel.save(nibabel.Nifti1Image(np.ones((8, 6, 2)), np.eye(4)), tmp_path / "packed.nii.gz")
    (tmp_path / "packed.nii.gz").rename(tmp_path / "packed.nii")
    nibabel.save(nibabel.Nifti1Image(np.ones((8, 6, 2)), np.eye(4)), tmp_path / "plain.nii")
    (tmp_path / "plain.nii").rename(tmp_path / "plain.nii.gz")
    (tmp_path / "none.json").write_text("{}")
    for name, said in (
        ("a.hdr", f"is the header of a.cfl. Give {tmp_path / 'a.cfl'}."),
        ("pipe.nii", "is a device or a pipe"),
        ("packed.nii", "is compressed. Rename it to packed.nii.gz."),
        ("plain.nii.gz", "is not compressed. Rename it to plain.nii."),
        ("none.json", "holds no mask"),
    ):
        done = cli("data", "inspect", tmp_path / name)
        assert done.code == 1
        assert said in done.out


def test_a_nifti_of_two_axes_is_one_slice(cli: Cli, tmp_path: Path) -> None:
    image = np.random.default_rng(0).uniform(1, 9, (8, 6)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(image, np.diag([-2, 3, 1, 1])), tmp_path / "a.nii")
    assert "1 slice(s) of 8 x 6" in cli("data", "inspect", tmp_path / "a.nii").out
    assert cli("data", "convert", tmp_path / "a.nii", tmp_path / "a.npy").code == 0
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), image[None])


def test_the_acquisition_of_fastmri_is_a_contrast_to_ask_for(tmp_path: Path) -> None:
    for number, kind in enumerate(("AXT2", "AXFLAIR", "AXT2")):
        write(tmp_path / f"file{number}.h5", coil_images(), acquisition=kind)
    found = find_volumes(tmp_path, "axt2")
    assert [(file.name, file.contrast) for file in found] == [("file0", "AXT2"), ("file2", "AXT2")]
    with pytest.raises(DataError, match="no volume of contrast 'AXT1'") as told:
        find_volumes(tmp_path, "AXT1")
    assert "AXFLAIR, AXT2" in told.value.remedy
