"""Readouts to slices: nothing lost, nothing moved, every mistake named."""

from __future__ import annotations

import dataclasses
import gc
import tracemalloc

import ismrmrd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ismrmrd import Acquisition

from kdmri_edge.errors import DataError
from kdmri_edge.mrd.format.assembler import Assembler, Capacity, Slice, TooLargeError
from kdmri_edge.mrd.format.emit import encoding_of, readouts
from kdmri_edge.mrd.format.header import read_encoding, write_encoding
from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image
from kdmri_edge.physics.masks import Mask
from tests.core.mrd.scans import every_line, noise_scan, reversed_readout, without_flags


def assembled(assembler: Assembler, acquisitions: list[Acquisition]) -> list[Slice]:
    done = [part for a in acquisitions if (part := assembler.add(a)) is not None]
    return sorted([*done, *assembler.finish()], key=lambda part: part.key)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(3, 9), width=st.integers(3, 9), coils=st.integers(1, 3),
    oversampling=st.integers(1, 3), averages=st.integers(1, 3), seed=st.integers(0, 99),
    order=st.randoms(use_true_random=False), flagged=st.booleans(),
)  # fmt: skip
def test_any_order_gives_the_scan_back(height, width, coils, oversampling, averages, seed, order,
                                       flagged):  # fmt: skip
    """Interleaved slices and averages, reversed lines, oversampling, odd sizes."""
    rng = np.random.default_rng(seed)
    mask = Mask(samples=(rng.random(height) < 0.7) | (np.arange(height) == 0), name="drawn")
    scan = noise_scan(2, coils, height, width, mask, seed)
    encoding = dataclasses.replace(encoding_of(scan, oversampling), averages=averages)
    lines = []
    for average in range(averages):
        turn = without_flags(readouts(scan, oversampling))
        for line in turn:
            line.idx.average = average
            line.data[:] *= average + 1
            if rng.random() < 0.5:
                reversed_readout(line)
        order.shuffle(turn)
        if flagged and average == averages - 1:  # a scanner flags whatever line is its last
            for number in (0, 1):
                [a for a in turn if a.idx.slice == number][-1].set_flag(ismrmrd.ACQ_LAST_IN_SLICE)
        lines += turn
    assembler = Assembler(encoding)
    found = assembled(assembler, lines)
    assert assembler.held == 0
    assert [part.key.slice for part in found] == [0, 1]
    wanted = scan.kspace * (averages + 1) / 2
    np.testing.assert_allclose(np.stack([p.kspace for p in found]), wanted, atol=1e-5)
    assert all(part.mask == mask and not part.partial_readout for part in found)


def test_a_slice_is_there_with_its_last_line() -> None:
    scan = noise_scan(slices=2)
    assembler = Assembler(encoding_of(scan))
    # fully sampled: no flag is needed
    given = without_flags(readouts(scan))
    order = given[0::2] + given[1::2]
    done = [assembler.add(line) is not None for line in order]
    assert [i for i, d in enumerate(done) if d] == [11, 15]


def test_undersampled_without_a_flag_waits_for_the_end() -> None:
    mask = Mask(samples=np.arange(8) % 2 == 0, name="half")
    scan = noise_scan(mask=mask)
    assembler = Assembler(encoding_of(scan))
    assert not any(assembler.add(line) for line in without_flags(readouts(scan)))
    assert [part.key.slice for part in assembler.finish()] == [0, 1]
    assert list(assembler.finish()) == []


def test_counters_separate_images() -> None:
    scan = noise_scan(slices=1)
    assembler = Assembler(encoding_of(scan))
    lines = []
    for name in ("repetition", "contrast", "phase", "set"):
        for line in readouts(scan):
            setattr(line.idx, name, 1)
            lines.append(line)
    found = assembled(assembler, lines)
    assert [tuple(part.key) for part in found] == [
        (0, 0, 0, 1, 0), (0, 0, 1, 0, 0), (0, 1, 0, 0, 0), (1, 0, 0, 0, 0)
    ]  # fmt: skip


def test_lines_are_sorted_by_their_flags() -> None:
    rng = np.random.default_rng(2)
    noise = (rng.standard_normal((2, 40)) + 1j).astype(np.complex64)
    scan = noise_scan(slices=1, noise=noise)
    imaging = list(readouts(scan))
    others = []
    for flag in (ismrmrd.ACQ_IS_PHASECORR_DATA, ismrmrd.ACQ_IS_NAVIGATION_DATA,
                 ismrmrd.ACQ_IS_DUMMYSCAN_DATA):  # fmt: skip
        other = Acquisition.from_array(np.ones((5, 3), np.complex64))  # any size will do
        other.set_flag(flag)
        others.append(other)
    calibration = Acquisition.from_array(imaging[3].data * 2)
    calibration.center_sample = 4
    calibration.idx.kspace_encode_step_1 = 3
    calibration.set_flag(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
    imaging[5].set_flag(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)
    assembler = Assembler(encoding_of(scan))
    (found,) = assembled(assembler, [*others, calibration, *imaging])
    np.testing.assert_array_equal(assembler.noise, noise)
    assert assembler.ignored == 3
    np.testing.assert_allclose(found.kspace, scan.kspace[0], atol=1e-6)
    assert found.reference is not None  # line 4 belongs to both
    assert found.reference.rows.tolist() == [(4 - 4) % 8, (3 - 4) % 8]
    np.testing.assert_array_equal(found.reference.lines[:, 0], found.kspace[:, 0])
    np.testing.assert_allclose(found.reference.lines[:, 1], 2 * scan.kspace[0, :, 6], atol=1e-6)


@pytest.mark.parametrize("mode", ["embedded", "separate", None])
def test_embedded_calibration_lines_fill_lines_that_are_not_imaged(mode: str | None) -> None:
    """Two-fold GRAPPA as scanners send it: the centre is whole with the calibration lines."""
    scan = noise_scan(slices=1, height=16)
    lines = without_flags(readouts(scan))
    kept = [line for line in lines if line.idx.kspace_encode_step_1 % 2 == 0]
    centre = [line for line in lines if line.idx.kspace_encode_step_1 in (5, 7, 9)]
    for line in centre:
        line.set_flag(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
    centre[-1].set_flag(ismrmrd.ACQ_LAST_IN_SLICE)
    xml = write_encoding(encoding_of(scan))
    if mode is not None:
        factor = (
            "<accelerationFactor><kspace_encoding_step_1>2</kspace_encoding_step_1>"
            "<kspace_encoding_step_2>1</kspace_encoding_step_2></accelerationFactor>"
        )
        told = f"{factor}<calibrationMode>{mode}</calibrationMode>"
        xml = xml.replace(
            "</trajectory>", f"</trajectory><parallelImaging>{told}</parallelImaging>"
        )
    assembler = Assembler(read_encoding(xml))
    given = [*kept, *centre]
    early = [assembler.add(line) for line in given]
    assert (early[-1] is not None) == (mode == "embedded")
    (found,) = [part for part in early if part is not None] or list(assembler.finish())
    assert (found.reference is None) == (mode == "embedded")
    steps = sorted([0, 2, 4, 6, 8, 10, 12, 14, *([5, 7, 9] if mode == "embedded" else [])])
    samples = np.zeros(16, np.bool_)
    samples[[(step - 8) % 16 for step in steps]] = True
    np.testing.assert_array_equal(found.mask.samples, samples)
    wanted = np.where(samples[:, None], scan.kspace[0], 0)
    np.testing.assert_allclose(found.kspace, wanted, atol=1e-6)


def test_asymmetric_echo_is_placed_by_its_centre_and_flagged() -> None:
    scan = noise_scan(slices=1)
    lines = []
    for line in readouts(scan):
        short = Acquisition.from_array(np.ascontiguousarray(line.data[:, 2:]), idx=line.idx)
        short.center_sample = line.center_sample - 2
        lines.append(short)
    (found,) = assembled(Assembler(encoding_of(scan)), lines)
    assert found.partial_readout
    wanted = np.fft.fftshift(scan.kspace[0], axes=-1)
    wanted[..., :2] = 0
    np.testing.assert_allclose(np.fft.fftshift(found.kspace, axes=-1), wanted, atol=1e-6)


def test_discarded_samples_are_left_out() -> None:
    scan = noise_scan(slices=1)
    lines = []
    for number, line in enumerate(readouts(scan)):
        long = np.pad(line.data, ((0, 0), (3, 1)), constant_values=7)
        made = Acquisition.from_array(long.astype(np.complex64), idx=line.idx)
        made.center_sample, made.discard_pre, made.discard_post = line.center_sample + 3, 3, 1
        if number % 2:
            made = reversed_readout(made)
            made.discard_pre, made.discard_post = 1, 3
        lines.append(made)
    (found,) = assembled(Assembler(encoding_of(scan)), lines)
    np.testing.assert_allclose(found.kspace, scan.kspace[0], atol=1e-6)
    assert not found.partial_readout


def test_oversampling_is_removed_in_the_image() -> None:
    """The cropped field of view is the image's own middle."""
    scan = noise_scan(slices=1, coils=1, height=6, width=12)
    lines = list(readouts(scan))
    encoding = dataclasses.replace(encoding_of(scan), width=6)
    (found,) = assembled(Assembler(encoding), lines)
    wanted = kspace_to_image(scan.kspace[0])[..., 3:9]
    np.testing.assert_allclose(kspace_to_image(found.kspace), wanted, atol=1e-5)
    np.testing.assert_allclose(found.kspace, image_to_kspace(wanted), atol=1e-5)


def test_header_round_trip() -> None:
    encoding = dataclasses.replace(encoding_of(noise_scan(), 2), averages=3, centre=5, last=6)
    assert read_encoding(write_encoding(encoding, slices=4)) == encoding


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("<trajectory>cartesian", "<trajectory>radial", "trajectory is radial"),
        (
            "<encodingLimits>",
            "<encodingLimits><kspace_encoding_step_2><minimum>0</minimum>"
            "<maximum>11</maximum><center>6</center></kspace_encoding_step_2>",
            "12 partitions",
        ),
        ("<x>8</x>", "<x>60000</x>", "encoded matrix is 60000 x 8"),
        ("<encoding>", "<coding>", "no MRD header"),
        ("<x>8</x>", "<x>eight</x>", "header"),
        ("<ismrmrdHeader", "<!DOCTYPE x><ismrmrdHeader", "declares entities"),
        ("<center>4</center>", "<center>40</center>", "centre 40"),
    ],
)
def test_headers_that_are_refused(old: str, new: str, said: str) -> None:
    xml = write_encoding(encoding_of(noise_scan()))
    assert old in xml
    with pytest.raises(DataError, match=said):
        read_encoding(xml.replace(old, new).replace("</encoding>", "</coding>")
                      if new == "<coding>" else xml.replace(old, new))  # fmt: skip


def test_vendors_elements_are_passed_over() -> None:
    xml = write_encoding(encoding_of(noise_scan()))
    extra = xml.replace("<encoding>", "<vendor><own>1</own></vendor><encoding>", 1)
    assert read_encoding(extra) == read_encoding(xml)


def _line(number: int = 0, coils: int = 2, samples: int = 8) -> Acquisition:
    line = Acquisition.from_array(np.ones((coils, samples), np.complex64))
    line.center_sample = samples // 2
    line.idx.kspace_encode_step_1 = number
    return line


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (_line(8), "Line 8 .* outside the 8 lines"),
        (_line(65535), "Line 65535 .* outside"),
        (_line(1, coils=3), "3 coils, those before it 2"),
        (_line(0), "Line 0 of slice 0 came twice"),
        (_line(1, samples=10), "10 samples with centre 5 lies outside the 8"),
        (_line(1, samples=0), "0 samples"),
    ],
)
def test_lines_that_are_refused(line: Acquisition, said: str) -> None:
    assembler = Assembler(encoding_of(noise_scan()))
    assert assembler.add(_line(0)) is None
    held = assembler.held
    with pytest.raises(DataError, match=said):
        assembler.add(line)
    assert assembler.held == held


def test_a_line_after_the_last_one() -> None:
    assembler = Assembler(encoding_of(noise_scan()))
    last = _line(0)
    last.set_flag(ismrmrd.ACQ_LAST_IN_SLICE)
    assert assembler.add(last) is not None
    with pytest.raises(DataError, match="after its last one"):
        assembler.add(_line(1))


def test_partitions_are_refused() -> None:
    line = _line(0)
    line.idx.kspace_encode_step_2 = 2
    with pytest.raises(DataError, match="partition 2"):
        Assembler(encoding_of(noise_scan())).add(line)


def test_capacity() -> None:
    encoding = encoding_of(noise_scan())
    with pytest.raises(DataError, match="larger than 100 bytes"):
        Assembler(encoding, Capacity(slice_bytes=100))
    with pytest.raises(DataError, match="larger than 600 bytes"):
        Assembler(encoding, Capacity(slice_bytes=600)).add(_line(0))
    assembler = Assembler(encoding, Capacity(open_bytes=1300))
    for number in (0, 1):
        assembler.add(_line(number))
    with pytest.raises(DataError, match="slices are open"):
        assembler.add(_line(2))
    few = Assembler(encoding, Capacity(open_slices=1))
    other = _line(0)
    other.idx.slice = 1
    few.add(_line(0))
    with pytest.raises(DataError, match="1 slices are open"):
        few.add(other)
    assert few.add(_line(1)) is None  # of the slice that is open


@pytest.mark.parametrize("kind", ["averages", "lines"])
def test_what_readouts_cost_beside_their_samples_is_held(kind: str) -> None:
    """Any number of averages of one slice adds up to a line; lines may be of a single sample."""
    encoding = dataclasses.replace(
        encoding_of(noise_scan()), lines=4096, centre=2048, last=4095, samples=1, width=1, rows=4096
    )

    def feed(assembler: Assembler) -> None:
        for number in range(2000):
            line = _line(0 if kind == "averages" else number, coils=1, samples=1)
            line.idx.average = number if kind == "averages" else 0
            assembler.add(line)

    assembler = Assembler(encoding)
    gc.collect()
    tracemalloc.start()
    try:
        feed(assembler)
        really = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0.5 * really < assembler.held < 2 * really
    few = Assembler(encoding, Capacity(open_bytes=100_000))
    with pytest.raises(TooLargeError, match="slices are open"):
        feed(few)
    assert few.held <= 100_000
    assert len(list(assembler.finish())) == 1
    assert assembler.held == 0


def test_slices_that_are_left_are_made_one_at_a_time() -> None:
    """A line of each of many slices is small; all their k-space at once would not be."""
    assembler = Assembler(encoding_of(noise_scan()))
    for number in range(5):
        line = _line(0)
        line.idx.slice = number
        assembler.add(line)
    held = assembler.held
    left = assembler.finish()
    assert next(left).key.slice == 0
    assert assembler.held == held * 4 // 5  # the others are lines still
    left.close()
    assert [part.key.slice for part in assembler.finish()] == [1, 2, 3, 4]


def test_masks_are_named_by_lines_of_the_full_matrix() -> None:
    """Partial Fourier: limits that start late leave unsampled lines."""
    scan = noise_scan(slices=1, mask=every_line(8))
    encoding = dataclasses.replace(encoding_of(scan), first=3)
    lines = [a for a in without_flags(readouts(scan)) if a.idx.kspace_encode_step_1 >= 3]
    assembler = Assembler(encoding)
    found = [part for line in lines if (part := assembler.add(line))]
    assert len(found) == 1
    assert np.fft.fftshift(found[0].mask.samples).tolist() == [False] * 3 + [True] * 5


def _noise(samples: int, coils: int = 2) -> Acquisition:
    line = Acquisition.from_array(np.full((coils, samples), 1 + 1j, np.complex64))
    line.set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    return line


class _Counted(list):  # type: ignore[type-arg]
    """Counts how often it is gone through."""

    turns = 0

    def __iter__(self):
        self.turns += 1
        return super().__iter__()


def test_noise_without_samples_is_not_kept() -> None:
    assembler = Assembler(encoding_of(noise_scan()))
    for _ in range(5000):
        assembler.add(_noise(0))
    assert assembler._noise == []
    assert assembler.noise is None
    assembler.add(_noise(3))
    assert assembler.noise is not None
    assert assembler.noise.shape == (2, 3)


def test_noise_is_bounded_without_going_through_what_is_kept() -> None:
    """Its samples come one at a time in the worst case."""
    assembler = Assembler(encoding_of(noise_scan()), Capacity(noise_samples=100))
    kept = assembler._noise = _Counted()
    for _ in range(150):
        assembler.add(_noise(1))
    assert kept.turns == 0
    assert len(kept) == 100
    assert assembler.noise is not None
    assert assembler.noise.shape == (2, 100)


def test_noise_is_joined_once_until_more_comes() -> None:
    assembler = Assembler(encoding_of(noise_scan()))
    for samples in (1, 2, 3):
        assembler.add(_noise(samples))
        assembler.add(_noise(5, coils=3))
    before = assembler.noise
    assert before is not None
    assert before.shape == (2, 6)
    assert assembler.noise is before
    assembler.add(_line(0))
    assert assembler.noise is before
    assembler.add(_noise(4))
    after = assembler.noise
    assert after is not None
    assert after.shape == (2, 10)
    assert assembler.other_noise == 3
    assembler.drop()
    assert assembler.noise is None
