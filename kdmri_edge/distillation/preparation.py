"""From files to what networks are trained on: in memory while it fits, else in a cache folder.

Which of the two does not change a bit of the weights, so that a run may be resumed either way.
"""

from __future__ import annotations

import contextvars
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kdmri_edge.data.case import Case, Undersampling
from kdmri_edge.data.datasets import VolumeFile, read_coils, read_found
from kdmri_edge.data.resample import is_large_enough, to_matrix
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.sources import split_dataset
from kdmri_edge.data.volume import Volume
from kdmri_edge.distillation.stored import (
    AnyCase,
    CaseStore,
    StoredCase,
    case_bytes,
    entry_key,
)
from kdmri_edge.errors import OutputError
from kdmri_edge.models.protocol import reads_coils
from kdmri_edge.utils.cache import cache_folder
from kdmri_edge.utils.console import progress, say
from kdmri_edge.utils.memory import give_memory_back
from kdmri_edge.utils.reading import machine_memory, size_in_words

__all__ = ["Item", "Keeping", "Prepared", "Wanted", "cases_of", "prepare"]

_PART: Final = 4
"""Of the machine's memory, the part that slices may take where nothing is said."""
_CACHE: Final = 2**30
"""Bytes of the slices that are kept in memory, where they do not all fit and nothing is said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Keeping:
    """Where a training keeps its slices.

    Attributes:
        memory: Bytes that they may take in memory; None is a quarter of the machine's, shared by
            the processes that train on it. A data set that needs more is prepared in the cache
            folder, of which so many bytes of slices are then kept in memory (by default 1 GiB).
        folder: The cache folder; None is that of this program.
        workers: Threads that prepare volumes, and that read batches ahead. h5py lets one of them
            through at a time; what takes long, Fourier transforms and sensitivities, runs beside
            each other. Processes would have to start Python anew (HDF5 does not survive a fork),
            and the user's program with it.
        rank: This process among those that train together.
        world: Their number: each begins with its own part of the volumes, and finds the others'.
        local: How many of them share this machine's memory.
    """

    memory: int | None = None
    folder: Path | None = None
    workers: int = 2
    rank: int = 0
    world: int = 1
    local: int = 1

    @property
    def limit(self) -> int:
        """Bytes that slices may take in this process's memory."""
        if self.memory is not None:
            return self.memory // self.local
        return machine_memory() // _PART // self.local

    @property
    def cached(self) -> int:
        """Bytes of slices that are kept in memory where not all of them are."""
        return self.limit if self.memory is not None else min(self.limit, _CACHE)

    @property
    def place(self) -> Path:
        """The cache folder."""
        return self.folder or cache_folder() / "slices"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A way in which volumes are undersampled.

    Attributes:
        undersampled: Does it.
        shape: The matrix that they are brought to.
        where_large: Volumes that are smaller than that are left out, and not refused.
    """

    undersampled: Undersampling
    shape: tuple[int, int]
    where_large: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """A volume to prepare.

    Attributes:
        file: Its file.
        wanted: In which ways; each gives one case.
        copies: How often its slices are held, where they are held in memory: training slices also
            as what batches are drawn from, at unit scale.
    """

    file: VolumeFile
    wanted: Sequence[Wanted]
    copies: int = 1


@dataclass(frozen=True, slots=True)
class Prepared:
    """What became of volumes.

    Attributes:
        cases: For each of them one case for each way; None where a volume is smaller.
        streamed: Whether they are in the cache folder.
        how: Where they are kept, in a sentence.
    """

    cases: Sequence[Sequence[AnyCase | None]]
    streamed: bool
    how: str


def cases_of(volume: Volume | Scan, wanted: Sequence[Wanted]) -> list[Case | None]:
    """Undersample a volume in some ways.

    Args:
        volume: Images, or for networks with coils measured k-space of several.
        wanted: The ways.

    Raises:
        DataError: See `to_matrix` and `Undersampling.case`.
        MaskError: See `Undersampling.case`.
    """
    at: dict[tuple[int, int], Volume | Scan] = {}
    made: list[Case | None] = []
    for way in wanted:
        if way.where_large and not is_large_enough(volume, way.shape):
            made.append(None)
            continue
        if way.shape not in at:
            # of a scan slice by slice, as it is undersampled
            at[way.shape] = volume if isinstance(volume, Scan) else to_matrix(volume, way.shape)
        made.append(way.undersampled.case(at[way.shape]))
    return made


def _made(item: Item) -> list[Case | None]:
    of_coils = any(reads_coils(way.undersampled.spec) for way in item.wanted)
    return cases_of(read_coils(item.file) if of_coils else read_found(item.file), item.wanted)


def _loaded(stored: Sequence[StoredCase | None]) -> list[Case | None]:
    return [None if case is None else case.part(slice(None)) for case in stored]


def prepare(items: Sequence[Item], keeping: Keeping) -> Prepared:
    """Read and undersample volumes.

    Args:
        items: The volumes.
        keeping: Where they are kept.

    Raises:
        DataError: A volume cannot be read, or does not suit a network.
        MaskError: See `Undersampling.case`.
        OutputError: The cache folder cannot be written to, or its disk has too little space.
    """
    work = _Work(items, keeping)
    with progress("Reading volumes", len(items)) as advance:
        if not work.known_too_large() and work.in_memory(advance):
            limit = size_in_words(keeping.limit)
            how = f"Slices are held in memory: {size_in_words(work.bytes)} of at most {limit}."
            return Prepared([work.held[n] for n in range(len(items))], False, how)
    stored = work.in_files()
    give_memory_back()  # of the threads that prepared them
    size = sum(case.bytes for cases in stored for case in cases if case is not None)
    how = (
        f"Slices take more than {size_in_words(keeping.limit)} of memory: they are read from"
        f" {keeping.place} ({size_in_words(size)}) as batches need them, and"
        f" {size_in_words(keeping.cached)} of them are kept."
    )
    return Prepared(stored, True, how)


class _Work:
    """Volumes on their way to be prepared."""

    def __init__(self, items: Sequence[Item], keeping: Keeping) -> None:
        self._items, self._keeping = items, keeping
        self._store = CaseStore(keeping.place)
        own = range(keeping.rank, len(items), keeping.world)
        # beginning with one's own: what others have made meanwhile is found
        self._order = [*own, *(n for n in range(len(items)) if n not in own)]
        self.held: dict[int, list[Case | None]] = {}
        self.bytes = 0

    def known_too_large(self) -> bool:
        """Whether all were prepared earlier, and do not fit into memory."""
        if not self._keeping.place.is_dir():
            return False
        size = 0
        for item in self._items:
            if (found := self._known(item)) is None:
                return False
            size += item.copies * sum(case.bytes for case in found if case is not None)
        return size > self._keeping.limit

    def _known(self, item: Item) -> list[StoredCase | None] | None:
        """Return what was prepared of a volume in an earlier run, None where nothing was."""
        sha256 = self._store.known_sha256(item.file.path)
        return None if sha256 is None else self._found(item, sha256)

    def in_memory(self, advance: Callable[[int], None]) -> bool:
        """Hold volumes until they are all there, or too large."""
        for n in self._order:
            item = self._items[n]
            known = self._known(item)  # where preparing was interrupted
            made = _made(item) if known is None else _loaded(known)
            self.held[n] = made
            self.bytes += item.copies * sum(case_bytes(case) for case in made if case is not None)
            if self.bytes > self._keeping.limit:
                return False
            advance(1)
        return True

    def in_files(self) -> list[list[StoredCase | None]]:
        """Prepare all of them in the cache folder; what is held goes there first."""
        done: dict[int, list[StoredCase | None]] = {}
        with progress("Preparing slices", len(self._items)) as advance:
            for n in list(self.held):
                done[n] = self._stored(n, self.held.pop(n))
                self._check_space(done)
                advance(1)
            if self._keeping.rank == 0 and self._missing(done):
                size = size_in_words(int(_each(done) * len(self._items)))
                say(
                    "The slices do not fit into the memory that they may take: they are prepared in"
                    f" {self._keeping.place}, about {size}."
                )
            rest = [n for n in self._order if n not in done]
            pool = ThreadPoolExecutor(self._keeping.workers, thread_name_prefix="prepare")
            try:
                # limits of files' sizes are the context's
                running = {
                    pool.submit(contextvars.copy_context().run, self._stored, n): n for n in rest
                }
                for future in as_completed(running):
                    done[running[future]] = future.result()
                    advance(1)
            finally:
                pool.shutdown(cancel_futures=True)
        return [done[n] for n in range(len(self._items))]

    def _check_space(self, done: Mapping[int, Sequence[StoredCase | None]]) -> None:
        free = shutil.disk_usage(self._keeping.place).free
        if _each(done) * (len(self._items) - len(done)) <= free:
            return
        needed = int(_each(done) * self._missing(done))
        if needed > free:
            raise OutputError(
                f"The slices take about {size_in_words(needed)} more, and {self._keeping.place} has"
                f" {size_in_words(free)} left.",
                "Name a folder with more space by --data-cache, or use fewer volumes.",
            )

    def _missing(self, done: Collection[int]) -> int:
        """Count the volumes that were not prepared in an earlier run."""
        rest = [item for n, item in enumerate(self._items) if n not in done]
        return sum(1 for item in rest if self._known(item) is None)

    def _stored(self, n: int, held: Sequence[Case | None] | None = None) -> list[StoredCase | None]:
        """Return a volume's cases in files, which are made unless they are there."""
        item = self._items[n]
        sha256 = self._store.sha256(item.file.path)
        if (found := self._found(item, sha256)) is not None:
            return found
        keys = [self._key(item, sha256, way) for way in item.wanted]
        with self._store.alone(keys):
            if (found := self._found(item, sha256)) is not None:
                return found  # another process has made them meanwhile
            made = _made(item) if held is None else held
            for key, way, case in zip(keys, item.wanted, made, strict=True):
                if case is None:
                    self._store.put_absent(key)
                elif self._case(item, key, way) is None:
                    self._store.put(key, case, simulated=way.undersampled.has_simulated(case.name))
        del made
        found = self._found(item, sha256)
        if found is None:
            raise OutputError(
                f"What was prepared of {item.file.path} is not in {self._keeping.place}.",
                "Leave that folder alone while a training runs.",
            )
        return found

    def _key(self, item: Item, sha256: str, way: Wanted) -> str:
        dataset = split_dataset(item.file.path)[1]
        facts = {**way.undersampled.facts(), "shape": way.shape, "dataset": dataset}
        return entry_key(sha256, facts)

    def _case(self, item: Item, key: str, way: Wanted) -> StoredCase | None:
        undersampled = way.undersampled
        found = self._store.find(
            key,
            name=item.file.name,
            subject=item.file.subject,
            maps=undersampled.maps if undersampled.simulates else None,
            mask=undersampled.mask,
        )
        if found is not None and found.simulated:
            undersampled.note_simulated(found.name)
        return found

    def _found(self, item: Item, sha256: str) -> list[StoredCase | None] | None:
        """Return a volume's cases; None where one is missing."""
        found: list[StoredCase | None] = []
        for way in item.wanted:
            key = self._key(item, sha256, way)
            case = self._case(item, key, way)
            if case is None and not (way.where_large and self._store.is_absent(key)):
                return None
            found.append(case)
        return found


def _each(done: Mapping[int, Sequence[StoredCase | None]]) -> float:
    """Bytes of a volume's files, on average; 0 of none."""
    sizes = [sum(case.bytes for case in cases if case) for cases in done.values()]
    return sum(sizes) / max(1, len(sizes))
