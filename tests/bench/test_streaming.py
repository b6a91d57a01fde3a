"""The soak and the streaming benchmark, small: what they count is real."""

from __future__ import annotations

import ismrmrd
import numpy as np
import pytest

from experiments import soak, streaming
from experiments.faults import FAULTS
from experiments.served import coil_scan, repeated
from kdmri_edge.errors import BenchError
from kdmri_edge.physics.masks import variable_density_lines


@pytest.mark.nightly
@pytest.mark.parametrize(("slices", "sessions"), [(70, 10), (2800, 40)])
def test_a_soak_loses_nothing_and_does_not_grow(slices: int, sessions: int) -> None:
    settings = soak.SoakSettings(slices=slices, sessions=sessions, at_once=3, matrix=48, coils=3)
    good = sessions - sessions // 10
    report = soak.soak(settings)
    assert (report["lost"], report["zero_filled"], report["wrong"], report["defects"]) == (0,) * 4
    assert report["good_sessions"] == good
    assert report["good_images"] == good * slices // sessions
    assert report["faults"] == dict.fromkeys(sorted(FAULTS), 1)
    # so few images fit into the socket's buffers: that nobody reads them need not show
    assert report["outcomes"]["complete"] in (good, good + 1)
    assert sum(report["outcomes"].values()) == good + len(FAULTS)
    assert report["growth"] < soak.GROWTH
    assert f"of {good * slices // sessions:,} images of good scans 0 lost" in soak.markdown(report)


def _image(number: int, values: np.ndarray) -> ismrmrd.Image:
    image = ismrmrd.Image.from_array(values.astype(np.float32))
    image.slice = number
    return image


def test_lost_doubled_swapped_and_foreign_images_are_counted() -> None:
    random = np.random.default_rng(0)
    wanted = [random.uniform(1, 2, (8, 8)) for _ in range(3)]
    good = [_image(n, 2 * wanted[n]) for n in range(3)]

    def counted(images: list[ismrmrd.Image]) -> tuple[int, int]:
        tally = soak._Tally()
        soak.count(tally, images, wanted, 3, gain=2.0)
        return tally.lost, tally.wrong

    assert counted(good) == (0, 0)
    assert counted(good[:2]) == (1, 0)
    assert counted([*good, good[0]]) == (0, 1)
    assert counted([good[0], _image(1, 2 * wanted[2]), good[2]]) == (0, 1)
    assert counted([_image(0, wanted[0]), *good[1:]]) == (0, 1)  # of a scan of another brightness


def test_a_slice_that_came_twice_is_not_all_of_them() -> None:
    wanted = [np.ones((4, 4))] * 3
    with pytest.raises(BenchError, match="twice"):
        streaming._difference([_image(n, wanted[0]) for n in (0, 0, 2)], wanted)


@pytest.mark.parametrize("sessions", [10, 50, 500])
def test_a_soak_has_faults_of_every_kind(sessions: int) -> None:
    settings = soak.SoakSettings(sessions=sessions)
    kinds = [settings.kinds(number) for number in range(sessions)]
    assert sum(map(bool, kinds)) == sessions // 10
    assert {name for names in kinds for name in names} == set(FAULTS)
    assert sum(map(len, kinds)) == max(len(FAULTS), sessions // 10)


def test_streaming_gives_the_images_of_the_file() -> None:
    report = streaming.measure(slices=5, coils=3, matrix=32, threads=1)
    assert report["largest_difference"] < 1e-5
    assert report["lines_per_slice"] == 8
    waits = report["last_line_to_image_ms"]
    assert 0 < waits["p50"] <= waits["p99"]
    text = streaming.markdown(report)
    assert "5 slices of 32 x 32 with 3 coils, 8 lines each" in text


@pytest.mark.parametrize("slices", [1, 3, 7])
def test_repeated_slices_are_numbered(slices: int) -> None:
    scan = coil_scan(variable_density_lines(32, 2, seed=0), 32, slices=2, coils=2)
    numbers = [int(line.idx.slice) for line in repeated(scan, slices)]
    assert numbers == [n for n in range(slices) for _ in range(16)]
    assert np.isfinite(scan.kspace).all()
