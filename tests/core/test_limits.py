"""What a file claims of its own size is compared with what is allowed before it is allocated."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kdmri_edge as ke
from kdmri_edge.errors import DataError, MaskError
from kdmri_edge.physics.masks import Mask, load_mask
from kdmri_edge.utils import reading

Cli = Callable[..., Any]
LARGE = 1 << 40


def npy(path: Path, shape: tuple[int, ...]) -> None:
    with path.open("wb") as stream:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(bytes(64))


def nifti(path: Path, shape: tuple[int, int, int]) -> None:
    nibabel = pytest.importorskip("nibabel")
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape(shape)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    raw = header.binaryblock + bytes(4) + bytes(1 << 16)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def bart(path: Path, sizes: str) -> None:
    path.with_suffix(".hdr").write_text(f"# Dimensions\n{sizes}\n")
    path.write_bytes(bytes(64))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.npy", lambda path: npy(path, (20_000, 400, 400))),
        ("a.nii", lambda path: nifti(path, (20_000, 400, 400))),
        ("a.nii.gz", lambda path: nifti(path, (20_000, 400, 400))),
        ("a.cfl", lambda path: bart(path, "400 400 1 1 1 1 1 1 1 1 1 1 1 20000")),
    ],
)
def test_claims_above_the_limit_are_refused(
    name: str, write: Callable[[Path], None], tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(DataError, match="--max-memory") as refusal:
        ke.read(tmp_path / name, max_memory=1 << 30)
    assert "1 GiB" in str(refusal.value)
    with pytest.raises(DataError) as refusal:  # allowed, but nothing of it is there
        ke.read(tmp_path / name, max_memory=LARGE)
    assert "--max-memory" not in str(refusal.value)


@pytest.mark.parametrize("sizes", ["1" * 6000, "-1", "100000000000 1", "1.5", "x", "2 " * 17, ""])
def test_odd_dimensions_of_bart_are_a_sentence(sizes: str, tmp_path: Path) -> None:
    bart(tmp_path / "a.cfl", sizes)
    with pytest.raises(DataError):
        ke.read(tmp_path / "a.cfl")


def test_a_header_of_bart_without_end_is_not_read_whole(tmp_path: Path) -> None:
    bart(tmp_path / "a.cfl", "4 2")
    with (tmp_path / "a.hdr").open("ab") as file:
        file.truncate(1 << 36)  # sparse
    with pytest.raises(DataError, match="all zero"):
        ke.read(tmp_path / "a.cfl")


@pytest.mark.parametrize("header", [b"{'descr': '<f4'", b"{" * 500, b"[" * 5000, b"\xff" * 40])
def test_broken_headers_of_npy_are_a_sentence(header: bytes, tmp_path: Path) -> None:
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as a NumPy array"):
        ke.read(tmp_path / "a.npy")
    with pytest.raises(MaskError, match="cannot be read as a mask"):
        load_mask(tmp_path / "a.npy")


def test_dicom_that_claims_more_is_refused(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    ke.write(tmp_path / "a.dcm", np.ones((1, 8, 8), np.float32))
    file = tmp_path / "a.dcm"
    data = pydicom.dcmread(file)
    data.Rows = data.Columns = 65_535
    data.NumberOfFrames = 2000
    data.save_as(file)
    with pytest.raises(DataError, match="claims"):
        ke.read(file, max_memory=LARGE)
    data.NumberOfFrames = "9" * 12
    data.save_as(file)
    with pytest.raises(DataError):
        ke.read(tmp_path / "a.dcm")


def test_dicom_that_is_compressed_as_a_whole_is_unpacked_within_the_limit(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    ke.write(tmp_path / "a.dcm", np.ones((1, 8, 8), np.float32))
    file = tmp_path / "a.dcm"
    data = pydicom.dcmread(file)
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data.save_as(file)
    assert ke.read(file).matrix == (8, 8)
    data.ImageComments = "x" * 9000
    data.save_as(file)
    with pytest.raises(DataError, match="claims"):
        ke.read(file, max_memory=4096)


def test_masks_of_absurd_sizes_are_refused() -> None:
    for shape in ([10**12], [10**5, 10**5], [], [1, 2, 3], [1e308], [-1]):
        with pytest.raises(MaskError):
            Mask.from_dict({"shape": shape, "sampled": [0], "name": "m"})


def test_sizes_as_users_write_them() -> None:
    assert reading.parse_size("8GiB", "x") == 8 * 2**30
    assert reading.parse_size("1.5 MB", "x") == 1_500_000
    assert reading.parse_size("4096", "x") == 4096
    for text in ("", "0", "-1", "8 XB", "1e3", "nan", "9" * 400):
        with pytest.raises(DataError):
            reading.parse_size(text, "x")


def test_the_limit_is_told_by_argument_environment_and_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(reading.MAX_MEMORY, raising=False)
    usual = reading.memory_limit()
    assert usual > 2**27
    monkeypatch.setenv(reading.MAX_MEMORY, "1MiB")
    assert reading.memory_limit() == 2**20
    with reading.limited(5):
        assert reading.memory_limit() == 5
    monkeypatch.setenv(reading.MAX_MEMORY, "much")
    with pytest.raises(DataError, match="KDMRI_MAX_MEMORY"):
        reading.memory_limit()


def test_commands_take_the_limit_and_leave_nothing_behind(cli: Cli, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 64, 64), np.float32))
    before = dict(os.environ)
    done = cli("data", "inspect", tmp_path / "a.npy", "--max-memory", "1KiB")
    assert done.code == 1
    assert "1 KiB are allowed" in done.out
    done = cli("data", "convert", tmp_path / "a.npy", tmp_path / "b.npy", "--max-memory", "1KiB")
    done.check_refusal("1 KiB are allowed")
    done = cli("data", "convert", tmp_path / "a.npy", tmp_path / "b.npy", "--max-memory", "much")
    done.check_refusal("--max-memory")
    assert not (tmp_path / "b.npy").exists()
    assert dict(os.environ) == before
    done = cli("data", "convert", tmp_path / "a.npy", tmp_path / "b.npy", "--max-memory", "1MiB")
    assert done.code == 0


def test_an_exception_of_any_kind_is_one_sentence() -> None:
    for error in (KeyError("x"), RecursionError(), MemoryError(), AssertionError(), OSError(5, "")):
        with pytest.raises(DataError, match=r"a\.x"), reading.reading("a.x", "nothing"):
            raise error
    with pytest.raises(ImportError), reading.reading("a.x", "nothing"):
        raise ImportError
