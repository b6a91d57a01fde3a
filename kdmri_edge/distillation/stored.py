"""Undersampled volumes in a cache folder, read slice by slice: for data that memory does not hold.

What a network is given of a volume (zero-filled images, targets, scales, sensitivities of measured
coils) is computed once and written as one folder of .npy files, whose slices are then read one at a
time, wherever they lie in the file. The users' own files would be the wrong place to read batches
from: .nii.gz cannot be sought in, a slice of 16 coils holds several times what the network reads of
it, h5py lets one thread through at a time, and ESPIRiT takes a second for every slice.

A folder is named by a hash of the volume's file and of all that its contents depend on. It is
written under a temporary name and renamed, one process at a time, so that it is whole or not there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from kdmri_edge.data.case import Case, Measurement, Reception
from kdmri_edge.data.formats.dicom.files import dicom_files
from kdmri_edge.data.sources import source_sha256, split_dataset
from kdmri_edge.errors import DataError
from kdmri_edge.physics.masks import Mask
from kdmri_edge.utils.files import (
    atomic_directory,
    read_json,
    sha256_bytes,
    sha256_file,
    write_json,
    writing,
)

__all__ = [
    "AnyCase",
    "CaseStore",
    "Rows",
    "SliceCache",
    "StoredCase",
    "case_bytes",
    "entry_key",
    "rows_of",
]

FORMAT: Final = 1
"""Of the folders; another one where what is written in them has changed."""
_COMPUTED_BY: Final = ("data", "physics", "mrd/format")
"""Packages whose source is part of a folder's name: another version may compute other bits."""

_META: Final = "case.json"
_OF_SLICES: Final = ("target", "zero_filled", "image", "maps", "coils")
"""Arrays of which single slices are read; the others hold a number for each slice."""
_NUMBERS: Final = ("scale", "peaks", "received", "noise", "seeds")
_SETTLED_NS: Final = 10**8
"""A file that was changed later than that may change again without its time showing it."""


def entry_key(sha256: str, facts: Mapping[str, Any]) -> str:
    """Name the folder of a volume's case.

    Args:
        sha256: Of the volume's file.
        facts: All that the case depends on besides, plain JSON values.
    """
    known = [FORMAT, _code(), np.__version__, sha256, facts]
    return sha256_bytes(json.dumps(known, sort_keys=True).encode())[:40]


@cache
def _code() -> str:
    """Hash the source that cases are computed by."""
    root = Path(__file__).parents[1]
    files = (file for part in _COMPUTED_BY for file in sorted((root / part).rglob("*.py")))
    return sha256_bytes("".join(map(sha256_file, files)).encode())


def case_bytes(case: Case) -> int:
    """Return the bytes of memory that a volume's slices take."""
    arrays = _arrays(case)
    return sum(arrays[name].nbytes for name in _OF_SLICES if name in arrays)


def _own_maps(case: Case) -> bool:
    """Whether each slice has sensitivities of its own, which are those of measured coils."""
    return case.maps is not None and case.reception is None


def _arrays(case: Case) -> dict[str, NDArray[Any]]:
    """Return what is written of a case; sets of simulated coils follow from the run's seed."""
    arrays: dict[str, NDArray[Any]] = {
        "target": case.target,
        "zero_filled": case.zero_filled,
        "scale": case.scale,
        "peaks": case.peaks,
    }
    if case.received is not None:
        arrays["received"] = case.received
    if _own_maps(case) and case.maps is not None:
        arrays["maps"] = case.maps
    if isinstance(case.reception, Measurement):
        arrays["coils"] = case.reception.coils
    elif case.reception is not None:
        arrays["received"] = case.reception.received
        arrays["noise"], arrays["seeds"] = case.reception.noise, case.reception.seeds
        if case.kspace:  # else the images with their phase are the targets
            arrays["image"] = case.reception.image
    return arrays


@dataclass(frozen=True, slots=True)
class _Placed:
    """Where the slices of an array lie: file, offset of the first, shape and type of each."""

    file: Path
    offset: int
    count: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, file: Path) -> _Placed:
        with file.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            if version != (1, 0):
                raise ValueError(f"version {version}")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            if fortran or dtype.hasobject:
                raise ValueError("another order of its values")
            return cls(file, stream.tell(), shape[0], shape[1:], dtype)

    def read(self, first: int, count: int) -> NDArray[Any]:
        """Return slices [count, ...]; `ValueError` where the file is shorter than it says."""
        size = int(np.prod(self.shape, dtype=np.int64))
        offset = self.offset + first * size * self.dtype.itemsize
        values = np.fromfile(self.file, self.dtype, count * size, offset=offset)
        return values.reshape(count, *self.shape)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredCase:
    """A `Case` in files.

    Attributes:
        name: The volume's name.
        subject: Whom it shows.
        contrast: For instance "T1w", None where unknown.
        sha256: Of the volume's source file.
        folder: Where it lies.
        kspace: Whether networks are given the coils' k-space.
        simulated: Whether phase, coils or noise were added to the volume.
        numbers: Of each slice: scale, peaks, received, noise, seeds, as far as there are.
        maps: Sets of simulated sensitivities that all volumes share; None without.
        mask: Which samples are taken.
        bytes: Of its files.
    """

    name: str
    subject: str
    contrast: str | None
    sha256: str
    folder: Path
    kspace: bool
    simulated: bool
    numbers: Mapping[str, NDArray[Any]]
    placed: Mapping[str, _Placed]
    maps: NDArray[np.complex64] | None
    mask: Mask
    bytes: int

    @property
    def count(self) -> int:
        """Number of slices."""
        return len(self.numbers["scale"])

    @property
    def peaks(self) -> NDArray[np.float32]:
        """Largest magnitude of each slice's zero-filled image, float32 [S]."""
        return self.numbers["peaks"]

    def read(self, name: str, first: int = 0, count: int | None = None) -> NDArray[Any]:
        """Read some slices of "target", "zero_filled", "image", "maps" or "coils".

        Raises:
            DataError: They are no longer there.
        """
        placed = self.placed[name]
        try:
            return placed.read(first, placed.count if count is None else count)
        except (OSError, ValueError) as error:
            raise DataError(
                f"The slices of {self.name} are no longer whole in {self.folder} ({error}).",
                "Start the training again with --resume: they are prepared anew.",
            ) from error

    def part(self, slices: slice) -> Case:
        """Read some of the slices."""
        numbers = range(self.count)[slices]
        own = {name: values[slices] for name, values in self.numbers.items()}

        def some(name: str) -> NDArray[Any]:
            if numbers.step == 1:
                return self.read(name, numbers.start, len(numbers))
            return np.concatenate([self.read(name, n, 1) for n in numbers])

        target = some("target")
        received: NDArray[np.intp] | None = own.get("received")
        maps = self.maps
        reception: Reception | Measurement | None = None
        if "coils" in self.placed:
            reception = Measurement(coils=some("coils"))
        elif "maps" in self.placed:
            maps, received = some("maps"), np.arange(len(numbers))
        elif received is not None and maps is not None:
            reception = Reception(
                image=some("image") if self.kspace else target,
                maps=maps,
                received=received,
                noise=own["noise"],
                seeds=own["seeds"],
                mask=self.mask,
            )
        return Case(
            name=self.name,
            subject=self.subject,
            contrast=self.contrast,
            sha256=self.sha256,
            target=target,
            zero_filled=some("zero_filled"),
            scale=own["scale"],
            maps=None if self.kspace else maps,
            received=None if self.kspace or maps is None else received,
            reception=reception,
            kspace=self.kspace,
        )


AnyCase = Case | StoredCase
"""A volume, in memory or in files: both have `count`, `part` and `peaks`."""


class SliceCache:
    """The slices that were read last, up to a number of bytes; for several threads.

    Args:
        limit: In bytes; 0 keeps none.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._slices: OrderedDict[tuple[Path, str, int], NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        """Bytes of the slices that are kept."""
        return self._held

    def get(self, key: tuple[Path, str, int], read: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return a slice, read-only, which is read if it is not there."""
        with self._lock:
            if (known := self._slices.get(key)) is not None:
                self._slices.move_to_end(key)
                return known
        found = read()  # outside of the lock: others read meanwhile
        found.flags.writeable = False
        with self._lock:
            if key not in self._slices and found.nbytes <= self._limit:
                self._slices[key] = found
                self._held += found.nbytes
            while self._held > self._limit:
                _, dropped = self._slices.popitem(last=False)
                self._held -= dropped.nbytes
        return found


class Rows:
    """An array of slices of several volumes, read when they are asked for: [N, ...].

    It is indexed by a number, or by numbers, as an array would be.

    Args:
        cases: The volumes.
        name: Which of their arrays.
        places: Volume and slice of each row.
        cache: Where slices are kept.
        scaled: Whether each slice is divided by its scale.
    """

    def __init__(
        self,
        cases: Sequence[StoredCase],
        name: str,
        places: Sequence[tuple[int, int]],
        cache: SliceCache,
        *,
        scaled: bool,
    ) -> None:
        self._cases, self._name, self._places = cases, name, places
        self._cache, self._scaled = cache, scaled
        first = cases[places[0][0]].placed[name]
        self.shape: tuple[int, ...] = (len(places), *first.shape)
        self.dtype: np.dtype[Any] = first.dtype

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, numbers: Any) -> NDArray[Any]:
        if isinstance(numbers, int | np.integer):
            return self._row(int(numbers))
        if isinstance(numbers, slice):
            numbers = range(len(self))[numbers]
        return np.stack([self._row(int(n)) for n in numbers])

    def _row(self, number: int) -> NDArray[Any]:
        volume, place = self._places[number]
        case = self._cases[volume]

        def read() -> NDArray[Any]:
            values = case.read(self._name, place, 1)
            # as volumes in memory are divided, so that the bits are the same
            own = slice(place, place + 1)
            scale = case.numbers["scale"][own].reshape(-1, *[1] * (values.ndim - 1))
            divided: NDArray[Any] = (values / scale)[0] if self._scaled else values[0]
            return divided

        return self._cache.get((case.folder, self._name, place), read)


class CaseStore:
    """Volumes that were prepared, in a folder.

    Args:
        folder: The cache folder; it is made where it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _place(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def _remembered(self, path: Path) -> tuple[Path, bool]:
        """Return where a hash is remembered, by place, size and time; and whether it may be."""
        file, _ = split_dataset(path)
        files = dicom_files(file)
        if file.suffix.lower() == ".cfl":
            files = [file, file.with_suffix(".hdr")]
        stats = [(os.path.abspath(each), each.stat()) for each in files]
        facts = [[name, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns] for name, s in stats]
        place = self.folder / "hashes" / f"{sha256_bytes(json.dumps(facts).encode())[:40]}.json"
        newest = max(s.st_mtime_ns for _, s in stats)
        return place, time.time_ns() - newest > _SETTLED_NS

    def known_sha256(self, path: Path) -> str | None:
        """Return the SHA-256 of a file that was read earlier and has not changed; else None."""
        try:
            return str(read_json(self._remembered(path)[0], DataError)["sha256"])
        except (OSError, DataError, LookupError, TypeError, ValueError):
            return None

    def sha256(self, path: Path) -> str:
        """Return `source_sha256`, remembered as long as size and time of the files stay.

        Hashing a data set of a terabyte takes most of an hour; it is done once.
        """
        if (known := self.known_sha256(path)) is not None:
            return known
        found = source_sha256(path)
        place, settled = self._remembered(path)
        if settled:
            write_json(place, {"sha256": found})
        return found

    def find(
        self,
        key: str,
        *,
        name: str,
        subject: str,
        maps: NDArray[np.complex64] | None,
        mask: Mask,
    ) -> StoredCase | None:
        """Return a volume that was prepared earlier, None where it was not, or not wholly.

        Args:
            key: See `entry_key`.
            name: Of the volume, as its place in the data gives it.
            subject: Likewise.
            maps: Sets of simulated coils of the run.
            mask: Which samples are taken.
        """
        folder = self._place(key)
        try:
            meta = json.loads((folder / _META).read_text(encoding="utf-8"))
            sizes: dict[str, int] = meta["files"]
            if any((folder / file).stat().st_size != size for file, size in sizes.items()):
                return None
            numbers = {
                each: np.load(folder / f"{each}.npy", allow_pickle=False)
                for each in _NUMBERS
                if f"{each}.npy" in sizes
            }
            placed = {
                each: _Placed.of(folder / f"{each}.npy")
                for each in _OF_SLICES
                if f"{each}.npy" in sizes
            }
            return StoredCase(
                name=name,
                subject=subject,
                contrast=meta["contrast"],
                sha256=meta["sha256"],
                folder=folder,
                kspace=meta["kspace"],
                simulated=meta["simulated"],
                numbers=numbers,
                placed=placed,
                maps=maps,
                mask=mask,
                bytes=sum(sizes.values()),
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None  # not there, or damaged: it is made again

    def put(self, key: str, case: Case, *, simulated: bool) -> None:
        """Write a volume.

        Raises:
            OutputError: The folder cannot be written to, or the disk is full.
        """
        with atomic_directory(self._place(key)) as folder:
            for name, values in _arrays(case).items():
                np.save(folder / f"{name}.npy", np.ascontiguousarray(values), allow_pickle=False)
            meta = {
                "format": FORMAT,
                "sha256": case.sha256,
                "contrast": case.contrast,
                "kspace": case.kspace,
                "simulated": simulated,
                "files": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
            }
            (folder / _META).write_text(json.dumps(meta, indent=1), encoding="utf-8")

    def _absence(self, key: str) -> Path:
        return self._place(key).with_name(f"{key}.absent")

    def put_absent(self, key: str) -> None:
        """Note that a volume gives no case with this key, since it is smaller than the matrix."""
        with writing(self._absence(key)):
            self._absence(key).touch()

    def is_absent(self, key: str) -> bool:
        """Tell whether that was noted."""
        return self._absence(key).exists()

    @contextlib.contextmanager
    def alone(self, keys: Sequence[str]) -> Iterator[None]:
        """Be the only process that prepares what has one of these keys; others wait.

        The system takes locks back when a process ends, however it ends; what a killed one has
        left is removed here.

        Raises:
            OutputError: The folder cannot be written to.
        """
        with contextlib.ExitStack() as held:
            for key in sorted(set(keys)):  # in one order, so that no two wait for each other
                place = self._place(key)
                with writing(place):
                    place.parent.mkdir(parents=True, exist_ok=True)
                    lock = FileLock(place.with_name(f"{key}.lock"))
                    # a file system without locks: work may be done twice, and renames stay whole
                    with contextlib.suppress(NotImplementedError):
                        held.enter_context(lock)
                for leftover in place.parent.glob(f".{key}.*.tmp*"):
                    shutil.rmtree(leftover, ignore_errors=True)
            yield


def rows_of(
    cases: Sequence[StoredCase], places: Sequence[tuple[int, int]], cache: SliceCache
) -> dict[str, Any]:
    """Return the fields of `batches.TrainingSlices` for slices that are read when they are drawn.

    Args:
        cases: The volumes.
        places: Volume and slice of each row.
        cache: Where slices are kept.
    """
    first = cases[0]

    def rows(name: str, *, scaled: bool = True) -> Rows:
        return Rows(cases, name, places, cache, scaled=scaled)

    def numbers(name: str) -> NDArray[Any]:
        return np.array([cases[n].numbers[name][s] for n, s in places])

    target = rows("target")
    maps: Any = first.maps
    received: NDArray[Any] | None = None
    reception: Reception | Measurement | None = None
    if "coils" in first.placed:
        reception = Measurement(coils=cast(Any, rows("coils")))
    elif "maps" in first.placed:
        maps, received = rows("maps", scaled=False), np.arange(len(places))
    elif maps is not None:
        received = numbers("received")
        reception = Reception(
            # indexed by numbers alone, which it can be
            image=cast(Any, rows("image") if first.kspace else target),
            maps=maps,
            received=received,
            noise=numbers("noise") / numbers("scale"),
            seeds=numbers("seeds"),
            mask=first.mask,
        )
    return {
        "target": target,
        "zero_filled": rows("zero_filled"),
        "maps": None if first.kspace else maps,
        "received": None if first.kspace else received,
        "reception": reception,
        "kspace": first.kspace,
    }
