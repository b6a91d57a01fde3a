"""`kdmri-edge run` from and to the formats of a scanner: geometry, patients, phase."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdmri_edge.data.formats.registry import read_volume, write_image
from kdmri_edge.data.geometry import from_axes, regridded, voxel_size
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.scan import Scan
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.masks import Mask
from tests.core.data.written_dicom import write_series
from tests.export.networks import spec, write_checkpoint

Cli = Callable[..., Any]
OBLIQUE = from_axes((0.4, 0, 4), (-1, 0.2, 0.1), (0.2, 1, 0), (50, -60, 10))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained magnitude network for 32 x 32."""
    path: Path = write_checkpoint(tmp_path_factory.mktemp("made") / "student.safetensors")
    return path


@pytest.fixture
def larger() -> np.ndarray:
    """Magnitude images at 48 x 48."""
    image: np.ndarray = phantom_volume(5, slices=3, matrix=48).image
    return image


def test_affine_comes_through_resampling_into_nifti(
    cli: Cli, network: Path, larger: np.ndarray, tmp_path: Path
) -> None:
    write_image(tmp_path / "t1.nii.gz", larger, voxel_size(OBLIQUE), OBLIQUE)
    done = cli(
        "run", network, tmp_path / "t1.nii.gz", "-o", tmp_path / "o.nii", "--undersample",
        "--magnitude",
    )  # fmt: skip
    assert done.code == 0, done.err
    affine = read_volume(tmp_path / "o.nii").affine
    expected = regridded(OBLIQUE, old=(0, 24, 24), new=(0, 16, 16), step=(1, 1.5, 1.5))
    np.testing.assert_allclose(affine, expected, atol=1e-4)


def test_series_to_series_stays_with_its_patient(
    cli: Cli, network: Path, larger: np.ndarray, tmp_path: Path
) -> None:
    pydicom = pytest.importorskip("pydicom")
    write_series(tmp_path / "brain", (larger * 900).astype(int), OBLIQUE)
    done = cli("run", network, tmp_path / "brain", "-o", tmp_path / "out", "--undersample")
    assert done.code == 0, done.err
    assert "4711" not in done.out + done.err
    made = sorted((tmp_path / "out" / "brain.dcm").iterdir())
    header = pydicom.dcmread(made[0])
    assert header.PatientID == "MRN-4711"
    assert "student.safetensors" in header.DerivationDescription
    assert "undersampled" in header.DerivationDescription
    inside = read_volume(tmp_path / "out" / "brain.dcm").affine
    before = read_volume(tmp_path / "brain").affine
    assert inside is not None
    assert before is not None
    wanted = regridded(before, old=(0, 24, 24), new=(0, 16, 16), step=(1, 1.5, 1.5))
    # the same field of view, seen from one of its corners
    centres = [a @ [1, 15.5, 15.5, 1] for a in (inside, wanted)]
    np.testing.assert_allclose(*centres, atol=1e-3)


def test_raw_data_lies_where_its_vendor_or_the_user_says(
    cli: Cli, network: Path, tmp_path: Path
) -> None:
    """A Siemens scan as converters write it, one fully sampled coil of the network's matrix."""
    pytest.importorskip("ismrmrd")
    from tests.core.data.test_orientation import write_siemens_mrd

    image = phantom_volume(5, slices=2, matrix=32).image
    scan = Scan(
        kspace=image_to_kspace(image[:, None].astype(np.complex64)).astype(np.complex64),
        mask=Mask(samples=np.ones(32, np.bool_), name="all"),
        name="a", subject="a", affine=OBLIQUE,
    )  # fmt: skip
    write_siemens_mrd(tmp_path / "a.h5", scan)
    command = ("run", network, tmp_path / "a.h5", "-o", tmp_path / "o.nii", "--undersample",
               "--magnitude", "--no-cache")  # fmt: skip
    turned = regridded(OBLIQUE, old=(0, 16, 16), new=(0, 16, 16), step=(1, -1, -1))
    for options, wanted in (((), OBLIQUE), (("--orientation", "along"), turned)):
        done = cli(*command, *options)
        assert done.code == 0, done.err
        np.testing.assert_allclose(read_volume(tmp_path / "o.nii").affine, wanted, atol=1e-3)


def test_what_of_a_series_is_not_read_is_said(
    cli: Cli, network: Path, larger: np.ndarray, tmp_path: Path
) -> None:
    whole = (larger * 900).astype(int)
    for kind, pixels in (("M", whole), ("P", whole[:, ::-1])):
        write_series(tmp_path / kind, pixels, OBLIQUE, ImageType=["ORIGINAL", "PRIMARY", kind])
    for file in (tmp_path / "P").iterdir():
        file.rename(tmp_path / "M" / f"p{file.name}")
    command = ("run", network, tmp_path / "M", "-o", tmp_path / "o.npy", "--undersample")
    done = cli(*command, "--no-cache")
    assert done.code == 0, done.err
    assert "not read: 3 phase images" in done.out


def test_negative_pixels_that_dicom_does_not_hold_are_said(
    cli: Cli, network: Path, larger: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "t1.npy", larger)
    command = ("run", network, tmp_path / "t1.npy", "--undersample", "--no-cache", "-o")
    done = cli(*command, tmp_path / "o.npy", "--json")
    assert json.loads(done.out)[0]["lost"] == []
    image = np.load(tmp_path / "o.npy")
    share = 100 * np.mean(np.rint(image / image.max() * 65535) < 0)
    assert share > 1
    done = cli(*command, tmp_path / "o.dcm", "--json")
    assert json.loads(done.out)[0]["lost"] == [
        f"negative values ({share:.1f} % of the pixels, now 0)"
    ]
    done = cli(*command, tmp_path / "o.dcm", "--magnitude", "--json")
    assert json.loads(done.out)[0]["lost"] == []


def test_a_volume_below_the_matrix_is_refused_with_what_run_takes(
    cli: Cli, network: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "t1.npy", phantom_volume(5, slices=2, matrix=24).image)
    command = ("run", network, tmp_path / "t1.npy", "-o", tmp_path / "o.npy", "--undersample",
               "--no-cache")  # fmt: skip
    refused = cli(*command)
    refused.check_refusal("24 x 24, below the matrix of 32", "with --matrix any")
    assert "or less" not in refused.err
    assert cli(*command, "--matrix", "any").code == 0


def test_series_to_nifti_leaves_the_patient_behind(
    cli: Cli, network: Path, larger: np.ndarray, tmp_path: Path
) -> None:
    write_series(tmp_path / "brain", (larger * 900).astype(int), OBLIQUE)
    done = cli("run", network, tmp_path / "brain", "-o", tmp_path / "o.nii", "--undersample")
    assert done.code == 0, done.err
    raw = (tmp_path / "o.nii").read_bytes()
    assert b"4711" not in raw
    assert b"Doe" not in raw


def test_complex_reconstructions_are_written_as_magnitudes(cli: Cli, tmp_path: Path) -> None:
    network = write_checkpoint(tmp_path / "c.safetensors", spec(channels=2))
    image = phantom_volume(5, slices=2, matrix=32, complex_phase=True).image
    np.save(tmp_path / "x.npy", image)
    command = ("run", network, tmp_path / "x.npy", "--undersample", "--no-cache")
    refused = cli(*command, "-o", tmp_path / "o.dcm", "--complex")
    assert refused.code == 1
    assert "--complex" in refused.err
    assert not (tmp_path / "o.dcm").exists()
    for options in ((), ("--magnitude",)):  # the second is how it was asked for in version 0.1
        assert cli(*command, "-o", tmp_path / "o.dcm", *options).code == 0
    assert read_volume(tmp_path / "o.dcm").image.shape == (2, 32, 32)
    for name, options in (("m.npy", ()), ("c.npy", ("--complex",))):
        assert cli(*command, "-o", tmp_path / name, *options).code == 0
    whole = np.load(tmp_path / "c.npy")
    assert np.iscomplexobj(whole)
    np.testing.assert_allclose(np.load(tmp_path / "m.npy"), np.abs(whole), rtol=1e-6)
