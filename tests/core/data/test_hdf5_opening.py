"""HDF5 of strangers: what leads out of the file, ends or stops libhdf5, or claims too much."""

from __future__ import annotations

import gzip
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import kdmri_edge as ke
from kdmri_edge.data.formats.hdf5.examine import objection
from kdmri_edge.data.formats.hdf5.opening import Examiner, open_hdf5
from kdmri_edge.errors import DataError

HOSTILE = Path(__file__).resolve().parents[2] / "data" / "hostile"


def hostile(name: str, folder: Path) -> Path:
    """Damaged files that ended or stopped h5py 3.16 with HDF5 2.0."""
    path = folder / name
    path.write_bytes(gzip.decompress((HOSTILE / f"{name}.gz").read_bytes()))
    return path


def external_storage(path: Path, secret: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("volfs", (4, 4, 1), "u1", external=[(str(secret), 0, 16)])


def external_link(path: Path, secret: Path) -> None:
    with h5py.File(secret, "w") as file:
        file["volfs"] = np.ones((4, 4, 2), np.float32)
    with h5py.File(path, "w") as file:
        file["volfs"] = h5py.ExternalLink(str(secret), "/volfs")


def virtual(path: Path, secret: Path) -> None:
    with h5py.File(secret, "w") as file:
        file["volfs"] = np.ones((4, 4, 2), np.float32)
    layout = h5py.VirtualLayout((4, 4, 2), np.float32)
    layout[:] = h5py.VirtualSource(str(secret), "volfs", (4, 4, 2))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("deep/volfs", layout)


def link_in_a_chain(path: Path, secret: Path) -> None:
    external_link(path, secret)
    with h5py.File(path, "a") as file:
        file.move("volfs", "out")
        file["volfs"] = h5py.SoftLink("/out")


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize(
    ("write", "said"),
    [
        (external_storage, "external storage"),
        (external_link, "a link to another file"),
        (link_in_a_chain, "a link to another file"),
        (virtual, "virtual dataset"),
    ],
)
def test_nothing_is_read_from_other_files(
    write: Callable[[Path, Path], None], said: str, trusted: bool, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(b"root:x:0:0:root:/root:/bin/sh")
    write(tmp_path / "a.h5", tmp_path / "secret")
    with pytest.raises(DataError, match=said):
        ke.read(tmp_path / "a.h5", trusted=trusted)


def test_links_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["volfs"] = np.ones((4, 4, 2), np.float32)
        file["group/gone"] = h5py.SoftLink("/nowhere")
    with pytest.raises(DataError, match=r"broken link \(/group/gone\)"):
        ke.read(tmp_path / "a.h5")


def test_links_within_a_file_are_followed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["group/data"] = np.ones((4, 4, 2), np.float32)
        file["group/self"] = file["group"]  # a circle
        file["group/up"] = h5py.SoftLink("/")
        file["volfs"] = h5py.SoftLink("/group/data")
    assert ke.read(tmp_path / "a.h5").matrix == (4, 4)


def test_a_file_that_makes_libhdf5_write_past_its_arrays_is_refused(tmp_path: Path) -> None:
    path = hostile("crash_412_mrdi.h5", tmp_path)
    with pytest.raises(DataError, match="of a kind that nothing reads"):
        ke.read(path)


def test_a_file_that_stops_libhdf5_is_refused_and_the_next_one_is_read(tmp_path: Path) -> None:
    examiner = Examiner(cpu_s=0.5)
    with h5py.File(tmp_path / "good.h5", "w") as file:
        file["volfs"] = np.ones((4, 4, 2), np.float32)
    try:
        assert examiner.ask(tmp_path / "good.h5") is None
        found = examiner.ask(hostile("hang.h5", tmp_path))
        assert found is not None
        assert "takes more than 0.5" in found.what
        assert examiner.ask(tmp_path / "good.h5") is None
    finally:
        examiner.close()


def test_a_file_that_ends_the_process_is_one_sentence(tmp_path: Path) -> None:
    program = tmp_path / "ends.py"
    program.write_text(
        "import sys\nprint('{}', flush=True)\n"
        "for line in sys.stdin:\n    if 'bad' in line: sys.exit(7)\n    print('{}', flush=True)\n"
    )
    (tmp_path / "good.h5").touch()
    (tmp_path / "bad.h5").touch()
    examiner = Examiner(program)
    try:
        assert examiner.ask(tmp_path / "good.h5") is None
        found = examiner.ask(tmp_path / "bad.h5")
        assert found is not None
        assert "it ends the library that reads it (exit code 7)" in found.what
        assert examiner.ask(tmp_path / "good.h5") is None
    finally:
        examiner.close()


def test_what_cannot_try_files_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.h5").touch()
    with pytest.raises(DataError, match="--trust-files"):
        Examiner(tmp_path / "absent.py").ask(tmp_path / "a.h5")


def test_a_changed_file_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["volfs"] = np.ones((4, 4, 2), np.float32)
    assert ke.read(path).matrix == (4, 4)
    path.unlink()
    external_link(path, tmp_path / "secret")
    with pytest.raises(DataError, match="another file"):
        ke.read(path)


def test_the_program_alone_needs_nothing_of_this_package(tmp_path: Path) -> None:
    """It starts for every command that reads HDF5, so it is small; and modules beside it hide no
    others of their names."""
    from kdmri_edge.data.formats.hdf5 import examine

    said = subprocess.run(
        [sys.executable, "-P", "-X", "importtime", str(examine.__file__)],
        input="", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout == "{}\n"
    assert "kdmri_edge" not in said.stderr.replace(str(examine.__file__), "")


def test_a_dataset_that_claims_more_than_is_stored_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("volfs", (1 << 14, 1 << 14, 3), "f4", chunks=(64, 64, 3))
    assert (tmp_path / "a.h5").stat().st_size < 1 << 14
    with pytest.raises(DataError, match="claims 3 GiB, of which the file holds 0 bytes"):
        ke.read(tmp_path / "a.h5", max_memory=1 << 40)
    with pytest.raises(DataError, match="--max-memory"):
        ke.read(tmp_path / "a.h5", max_memory=1 << 20)


def test_a_header_that_is_no_text_is_a_sentence(tmp_path: Path) -> None:
    pytest.importorskip("ismrmrd")
    from ismrmrd.hdf5 import acquisition_dtype

    for number, xml in enumerate((b"\xff\xfe<", b"", b"<ismrmrdHeader/>")):
        path = tmp_path / f"{number}.h5"
        with h5py.File(path, "w") as file:
            group = file.create_group("dataset")
            group.create_dataset("xml", data=[xml], dtype=h5py.special_dtype(vlen=bytes))
            group.create_dataset("data", (0,), maxshape=(None,), dtype=acquisition_dtype)
        with pytest.raises(DataError):
            ke.read(path)


def test_readouts_without_end_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("ismrmrd")
    from ismrmrd.hdf5 import acquisition_dtype

    from kdmri_edge.mrd.format.hdf5 import read_readouts

    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("dataset")
        group.create_dataset("xml", data=[b"<x/>"], dtype=h5py.special_dtype(vlen=bytes))
        group.create_dataset(
            "data", (10**11,), maxshape=(None,), dtype=acquisition_dtype, chunks=(256,)
        )
    with pytest.raises(DataError, match="claims"):
        next(read_readouts(tmp_path / "a.h5"))


def test_what_goes_wrong_while_a_file_is_open_is_a_sentence(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = 1
    with (
        pytest.raises(DataError, match=r"cannot be read as HDF5 \(KeyError\)"),
        open_hdf5(tmp_path / "a.h5") as file,
    ):
        file["absent"]


def test_a_good_file_has_no_objection(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("c", data=np.ones((64, 64, 8)), chunks=(8, 8, 8), compression=4)
        file.create_dataset("text", data=["a", "b"], dtype=h5py.string_dtype())
        file.create_dataset("nothing", data=h5py.Empty("f4"))
        file["pair"] = np.zeros(3, [("real", "f4"), ("imag", "f4")])
        file.attrs["axes"] = "swh"
    assert objection(str(tmp_path / "a.h5"), contents=True, largest=1 << 30) is None


@pytest.mark.nightly
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is bounded on Linux")
def test_a_compressed_piece_that_never_ends_is_unpacked_within_the_limit(tmp_path: Path) -> None:
    """A chunk says 16 KiB and unpacks to 1 GiB."""
    unpacked = zlib.compressobj(1)
    bomb = b"".join(unpacked.compress(bytes(1 << 24)) for _ in range(64)) + unpacked.flush()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("volfs", (64, 64, 1), "f4", chunks=(64, 64, 1), compression=1)
        data.id.write_direct_chunk((0, 0, 0), bomb)
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        ke.read(tmp_path / "a.h5", max_memory=1 << 20)
