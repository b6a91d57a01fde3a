"""From a stream of readouts to slices: the one assembler of files and of the server.

Slices may be interleaved in any way. What belongs to one image is told by the counters slice,
contrast, phase (cardiac), repetition and set; averages of a line are averaged. A slice is complete
when every line of the header's limits has come as often as there are averages, or with the flag
"last in slice" on its last average; accelerated scans need that flag, or wait for the end.

Of a whole file nothing is decided before its end: headers leave out how many averages there are,
and sequences set the flag on the last line of an average or of an interleave. A slice is complete
there when the file has ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import ismrmrd
import numpy as np
from ismrmrd import Acquisition
from ismrmrd.acquisition import AcquisitionHeader
from numpy.typing import NDArray

from kdmri_edge.errors import DataError
from kdmri_edge.mrd.format.header import Encoding
from kdmri_edge.mrd.format.readouts import Purpose, calibrates, purpose_of, readout
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.reference import ReferenceLines

__all__ = ["Assembler", "Capacity", "Key", "Slice", "TooLargeError"]

_MIB: Final = 2**20
_NOISE: Final = 4  # noise may take this part of what a slice may
# Bytes that Python takes beside the samples, as measured: to know a readout by its line and its
# average, and to keep a line. Of readouts of few samples, or of many averages, they are nearly all.
_READOUT: Final = 192
_LINE: Final = 256
_LAST: Final = 1 << (ismrmrd.ACQ_LAST_IN_SLICE - 1)


class Key(NamedTuple):
    """Which image a readout belongs to, by its counters."""

    set: int
    contrast: int
    phase: int
    repetition: int
    slice: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """How much an assembler may hold.

    Attributes:
        slice_bytes: K-space of one slice, all coils. Noise may take a fourth of it.
        open_bytes: Lines of all slices that are not complete, and what is kept to know them by.
        open_slices: Slices that are not complete; the smallest lines cost some memory too.
        noise_samples: Noise per coil; what comes above it is left out.
    """

    slice_bytes: int = 256 * _MIB
    open_bytes: int = 2048 * _MIB
    open_slices: int = 16_384
    noise_samples: int = 1 << 18


class TooLargeError(DataError):
    """A scan that needs more than the capacity; what has come of it makes no image."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Slice:
    """The k-space of one image.

    Attributes:
        key: Its counters.
        kspace: complex64 [C, H, W] under the conventions of `physics.fourier`, averages averaged;
            zero where nothing was sampled. Calibration lines that are embedded in the scan fill
            lines that were not imaged.
        mask: The lines that were sampled.
        reference: Calibration lines apart from the image, of this slice: its own ones, or those
            that came last where only the first repetition, contrast or set has some. None without
            any, and where they are part of the image.
        head: Header of the readout nearest to zero frequency: geometry, times, user values.
        partial_readout: Some readout did not cover all of k-space (an asymmetric echo), so that
            whole lines of `mask` promise more than there is.
    """

    key: Key
    kspace: NDArray[np.complex64]
    mask: Mask
    reference: ReferenceLines | None
    head: AcquisitionHeader
    partial_readout: bool


@dataclass(slots=True)
class _Open:
    """A slice that is being filled."""

    lines: dict[int, NDArray[Any]] = field(default_factory=dict)  # sums over averages
    count: Counter[int] = field(default_factory=Counter)
    came: set[tuple[int, int]] = field(default_factory=set)  # (line, average)
    calibration: dict[int, NDArray[Any]] = field(default_factory=dict)
    both: set[int] = field(default_factory=set)  # lines of the image that calibrate, too
    held: int = 0  # bytes
    head: AcquisitionHeader | None = None
    distance: int = 1 << 30
    partial: bool = False


class Assembler:
    """Sorts readouts into slices.

    Args:
        encoding: What the scan's header says.
        capacity: How much may be held.
        whole: The readouts are those of a whole file: slices come from `finish` alone, and what is
            held is bounded by the file, not by the capacity's open slices.

    Attributes:
        ignored: How many readouts of phase correction, navigators and the like came.
        elsewhere: How many of those belong to another encoding space than the first.

    Raises:
        TooLargeError: One slice of such a matrix is larger than the capacity.
        DataError: A stream is of several partitions: its first images would be sent before it shows
            whether they are used.
    """

    def __init__(
        self, encoding: Encoding, capacity: Capacity | None = None, *, whole: bool = False
    ) -> None:
        if encoding.partitions > 1 and not whole:
            raise DataError(
                f"The scan encodes {encoding.partitions} partitions.",
                "This reads Cartesian 2-D multi-slice scans.",
            )
        self.encoding = encoding
        self.ignored = self.elsewhere = 0
        self._whole = whole
        self._capacity = capacity or Capacity()
        self._open: dict[Key, _Open] = {}
        self._done: set[Key] = set()
        self._references: dict[int, ReferenceLines] = {}  # by slice, the last that were complete
        self._noise: list[NDArray[Any]] = []
        self._noise_samples = self._noise_bytes = 0
        self._coils: int | None = None
        self._held = 0
        self._check_size(1)

    @property
    def noise(self) -> NDArray[np.complex64] | None:
        """complex64 [C, N] of the noise readouts so far; None without one.

        Noise of other coils than the image's (an adjustment with another coil plugged in) is left
        out, since no channel of one can be told to be a channel of the other. It is the same array
        until more noise comes: every slice asks for it.
        """
        coils = self._coils or (len(self._noise[0]) if self._noise else 0)
        fitting = [part for part in self._noise if len(part) == coils]
        if len(fitting) > 1:
            # in place of its parts, so that it is not held twice; first, since the first tells the
            # coils until an image does
            joined = np.concatenate(fitting, axis=1)
            self._noise = [joined, *(part for part in self._noise if len(part) != coils)]
            return joined
        return fitting[0] if fitting else None

    @property
    def other_noise(self) -> int | None:
        """Number of coils of noise readouts that `noise` leaves out; None where it leaves none."""
        coils = self._coils
        others = {len(part) for part in self._noise if coils is not None and len(part) != coils}
        return max(others, default=None)

    @property
    def held(self) -> int:
        """Bytes of what is kept of slices that are not complete, and of reference lines."""
        return self._held

    @property
    def claimed(self) -> int:
        """Bytes of the k-space of the slices that are not complete, once `finish` makes it."""
        of_one = int(self._coils or 0) * self.encoding.lines * self.encoding.width * 8
        return of_one * sum(1 + bool(entry.calibration) for entry in self._open.values())

    def add(self, acquisition: Acquisition) -> Slice | None:
        """Take the next readout; return the slice that it completes.

        Raises:
            DataError: It lies outside the encoded space, has another number of coils than those
                before it, comes twice, or comes after its slice was complete. The assembler is as
                it was before.
            TooLargeError: More is open than the capacity allows.
        """
        purpose = purpose_of(acquisition)
        if purpose is Purpose.OTHER:
            self.ignored += 1
            self.elsewhere += acquisition.encoding_space_ref != 0
            return None
        if purpose is Purpose.NOISE:
            self._keep_noise(acquisition)
            return None
        self._check_coils(int(acquisition.active_channels))
        index = acquisition.idx
        row = self._row(int(index.kspace_encode_step_1), int(index.kspace_encode_step_2))
        key = Key(index.set, index.contrast, index.phase, index.repetition, index.slice)
        if purpose is Purpose.IMAGE and key in self._done:
            raise DataError(
                f"A line of slice {key.slice} came after its last one.",
                "Each line comes once per average; check the flags of the last line.",
            )
        if not self._whole and key not in self._open and self._full:
            raise TooLargeError(
                f"{len(self._open)} slices are open.",
                "Set the flag of the last line in each slice.",
            )
        line, whole = readout(acquisition, self.encoding)
        entry = self._open.get(key) or _Open()
        if purpose is Purpose.CALIBRATION:
            if key not in self._done and row not in entry.calibration:
                self._hold(entry, line.nbytes + _LINE)
                entry.calibration[row] = line
                self._open[key] = entry
            # the last line of a slice may be such a one
            embedded = self.encoding.embedded_calibration and bool(entry.lines)
            return self._finish(key) if embedded and self._is_last(acquisition, entry) else None
        average = int(index.average)
        if (row, average) in entry.came:
            raise DataError(
                f"Line {int(index.kspace_encode_step_1)} of slice {key.slice} came twice.",
                "Each line comes once per average.",
            )
        self._hold(entry, _READOUT + (0 if row in entry.lines else line.nbytes + _LINE))
        self._open[key] = entry
        entry.lines[row] = entry.lines[row] + line if row in entry.lines else line
        entry.count[row] += 1
        entry.came.add((row, average))
        if calibrates(acquisition):
            entry.both.add(row)
        entry.partial |= not whole
        distance = abs(int(index.kspace_encode_step_1) - self.encoding.centre)
        if distance < entry.distance:
            entry.distance, entry.head = distance, acquisition.getHead()
        return self._finish(key) if self._is_last(acquisition, entry) else None

    def drop(self) -> None:
        """Let go of all that is held: no slice comes any more."""
        self._open.clear()
        self._references.clear()
        self._noise.clear()
        self._noise_samples = self._noise_bytes = 0
        self._held = 0

    def finish(self) -> Iterator[Slice]:
        """Yield the slices that are not complete, in order; the stream has ended.

        Each is made when it is asked for: one line of a slice is small, its whole k-space is not.
        """
        for key in sorted(key for key, entry in self._open.items() if entry.lines):
            yield self._finish(key)

    @property
    def _full(self) -> bool:
        return len(self._open) >= self._capacity.open_slices

    def _is_last(self, acquisition: Acquisition, entry: _Open) -> bool:
        if self._whole:
            return False
        encoding = self.encoding
        if len(entry.came) == (encoding.last - encoding.first + 1) * encoding.averages:
            return True
        flagged = bool(int(acquisition.flags) & _LAST)
        return flagged and int(acquisition.idx.average) >= encoding.averages - 1

    def _check_coils(self, coils: int) -> None:
        if self._coils is None:
            if coils < 1:
                raise DataError("A readout has no coils.", "Check active_channels.")
            self._check_size(coils)
            self._coils = coils
        elif coils != self._coils:
            raise DataError(
                f"A readout has {coils} coils, those before it {self._coils}.",
                "All readouts of a scan have the same coils.",
            )

    def _check_size(self, coils: int) -> None:
        lines, width = self.encoding.lines, self.encoding.width
        if coils * lines * width * 8 > self._capacity.slice_bytes:
            raise TooLargeError(
                f"A slice of {coils} coils and {lines} x {width} samples is larger than"
                f" {self._capacity.slice_bytes} bytes.",
                "Raise the limit (--slice-memory) if the scan is real.",
            )

    def _row(self, step_1: int, step_2: int) -> int:
        """Return the row of a line: zero frequency at 0."""
        height, offset = self.encoding.lines, step_1 - self.encoding.centre
        if step_2 != 0 or not -(height // 2) <= offset < height - height // 2:
            raise DataError(
                f"Line {step_1} (partition {step_2}) lies outside the {height} lines that are"
                f" encoded around {self.encoding.centre}.",
                "Check the encoding limits of the header.",
            )
        return offset % height

    def _keep_noise(self, acquisition: Acquisition) -> None:
        if not int(acquisition.active_channels):
            raise DataError("A readout has no coils.", "Check active_channels.")
        data = acquisition.data
        enough = (
            self._noise_samples >= self._capacity.noise_samples
            or self._noise_bytes >= self._capacity.slice_bytes // _NOISE
        )
        # one without samples tells nothing, and no count would ever end them
        if enough or not data.size:
            return
        self._noise.append(data.copy())
        self._noise_samples += data.shape[1]
        self._noise_bytes += data.nbytes

    def _hold(self, entry: _Open, size: int) -> None:
        if not self._whole and self._held + size > self._capacity.open_bytes:
            raise TooLargeError(
                f"{len(self._open)} slices are open, of {self._held} bytes.",
                "Set the flag of the last line in each slice, or raise the limit (--scan-memory).",
            )
        self._held += size
        entry.held += size

    def _finish(self, key: Key) -> Slice:
        entry = self._open.pop(key)
        self._done.add(key)
        self._held -= entry.held
        shape = (int(self._coils or 0), self.encoding.lines, self.encoding.width)
        kspace = np.zeros(shape, np.complex64)
        samples = np.zeros(shape[1], np.bool_)
        for row, line in entry.lines.items():
            kspace[:, row] = line if entry.count[row] == 1 else line / entry.count[row]
            samples[row] = True
        if self.encoding.embedded_calibration:
            for row, line in entry.calibration.items():
                if not samples[row]:
                    kspace[:, row], samples[row] = line, True
            reference = None
        else:
            reference = self._reference(key.slice, entry, kspace)
        assert entry.head is not None
        return Slice(
            key=key,
            kspace=kspace,
            mask=Mask(samples=samples, name="as acquired"),
            reference=reference,
            head=entry.head,
            partial_readout=entry.partial,
        )

    def _reference(
        self, number: int, entry: _Open, kspace: NDArray[np.complex64]
    ) -> ReferenceLines | None:
        """Return the reference lines of a slice that is complete, and keep them for its others."""
        if entry.calibration:
            both = entry.both - entry.calibration.keys()
            lines = {**entry.calibration, **{row: kspace[:, row] for row in both}}
            before = self._references.get(number)
            found = _joined(lines)
            self._references[number] = found
            self._held += found.lines.nbytes - (0 if before is None else before.lines.nbytes)
            return found
        if number not in self._references:
            for key, other in self._open.items():  # of a repetition that goes on
                if key.slice == number and other.calibration:
                    return _joined(other.calibration)
        return self._references.get(number)


def _joined(lines: Mapping[int, NDArray[Any]]) -> ReferenceLines:
    rows = sorted(lines)
    return ReferenceLines(
        rows=np.array(rows, np.intp), lines=np.stack([lines[row] for row in rows], axis=1)
    )
