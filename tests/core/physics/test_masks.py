"""Sampling masks: families, accelerations, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdmri_edge.errors import MaskError
from kdmri_edge.physics.masks import (
    Mask,
    centre_block,
    equispaced_lines,
    load_mask,
    random_lines,
    variable_density_2d,
    variable_density_lines,
)


def centred(mask: Mask) -> np.ndarray:
    return np.fft.fftshift(mask.samples)


@given(height=st.integers(100, 400), acceleration=st.floats(2, 8), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_variable_density_lines(height: int, acceleration: float, seed: int) -> None:
    mask = variable_density_lines(height, acceleration, seed=seed)
    assert mask.samples.sum() == round(height / acceleration)
    middle = height // 2
    assert centred(mask)[middle - 5 : middle + 5].all()
    assert mask.samples[0]  # zero frequency sits at index 0
    assert mask == variable_density_lines(height, acceleration, seed=seed)


def test_variable_density_falls_off_from_the_centre() -> None:
    counts = sum(centred(variable_density_lines(240, 4, seed=s)).astype(int) for s in range(200))
    inner, outer = counts[90:115].mean(), counts[:25].mean()
    assert inner > 2 * outer > 0


@given(
    height=st.integers(100, 400), acceleration=st.sampled_from([4.0, 8.0]), seed=st.integers(0, 99)
)
@settings(max_examples=40, deadline=None)
def test_fastmri_families_have_their_acs(height: int, acceleration: float, seed: int) -> None:
    fraction = {4.0: 0.08, 8.0: 0.04}[acceleration]
    count = round(height * fraction)
    start = (height - count + 1) // 2
    for family in (random_lines, equispaced_lines):
        mask = family(height, acceleration, seed=seed)
        assert centred(mask)[start : start + count].all()


def test_random_lines_realise_the_acceleration_on_average() -> None:
    values = [random_lines(320, 4, seed=s).samples.mean() for s in range(100)]
    assert np.mean(values) == pytest.approx(0.25, abs=0.01)
    assert np.std(values) > 0.005  # it is a draw per line, not a fixed count


def test_equispaced_lines_are_equispaced_outside_the_acs() -> None:
    mask = centred(equispaced_lines(320, 4, seed=1))
    gaps = np.diff(np.flatnonzero(mask[:140]))
    assert set(gaps) <= {5, 6}  # spacing 4 * (26 - 320) / (26 * 4 - 320) = 5.44
    assert mask.mean() == pytest.approx(0.25, abs=0.01)


def test_two_dimensional_density() -> None:
    mask = variable_density_2d((96, 80), 5, centre=12, seed=3)
    assert not mask.is_lines
    assert mask.nominal_acceleration == pytest.approx(5, rel=0.01)
    assert np.fft.fftshift(mask.samples)[42:54, 34:46].all()


def test_acceleration_is_counted_not_claimed() -> None:
    samples = np.zeros(8, dtype=bool)
    samples[[0, 1, 2]] = True
    mask = Mask(samples=samples, name="one-sided")
    assert mask.nominal_acceleration == pytest.approx(8 / 3)
    assert mask.effective_acceleration == pytest.approx(8 / 5)  # mirrors 7 and 6 are known too


def test_effective_acceleration_of_the_papers_mask(real_data: Path) -> None:
    mask = load_mask(real_data / "masks" / "kd_mri_masks.json", "mrbrain_4x")
    assert mask.nominal_acceleration == 4.0
    assert mask.effective_acceleration == pytest.approx(240 / 95)


@pytest.mark.parametrize("family", [variable_density_lines, random_lines, equispaced_lines])
@pytest.mark.parametrize("acceleration", [0.5, 0, -1, float("nan"), float("inf")])
def test_acceleration_below_one_is_refused(family: object, acceleration: float) -> None:
    with pytest.raises(MaskError, match="below 1"):
        family(240, acceleration)  # type: ignore[operator]


def test_acceleration_one_samples_everything() -> None:
    assert variable_density_lines(240, 1).samples.all()
    assert equispaced_lines(240, 1, centre_fraction=0.08).samples.all()
    assert random_lines(240, 1, centre_fraction=0.08).samples.all()


def test_an_acceleration_that_the_centre_exceeds_is_refused() -> None:
    with pytest.raises(MaskError, match="centre lines"):
        variable_density_lines(64, 16)
    with pytest.raises(MaskError, match="ACS"):
        random_lines(320, 4, centre_fraction=0.5)
    with pytest.raises(MaskError, match="ACS"):
        equispaced_lines(320, 4, centre_fraction=0.5)
    with pytest.raises(MaskError, match="central"):
        variable_density_2d((32, 32), 8, centre=16)


def test_mask_round_trips_through_json() -> None:
    for mask in (variable_density_lines(240, 5), variable_density_2d((33, 40), 3)):
        again = Mask.from_dict(json.loads(json.dumps(mask.to_dict())))
        assert again == mask
        assert again.sha256 == mask.sha256
        assert again.name == mask.name


def test_mask_files(tmp_path: Path) -> None:
    mask = variable_density_lines(64, 3)
    np.save(tmp_path / "lines.npy", mask.samples)
    np.save(tmp_path / "wide.npy", np.repeat(mask.samples[:, None], 50, 1).astype(float))
    (tmp_path / "own.json").write_text(json.dumps(mask.to_dict()))
    entry = {
        "shape": [64, 50],
        "phase_encode_axis": 0,
        "sampled_lines": [int(i) for i in np.flatnonzero(mask.samples)],
        "zero_frequency_index": 0,
    }
    (tmp_path / "named.json").write_text(json.dumps({"a": entry, "b": entry}))
    assert load_mask(tmp_path / "lines.npy") == mask
    assert load_mask(tmp_path / "wide.npy") == mask
    assert load_mask(tmp_path / "own.json") == mask
    assert load_mask(tmp_path / "named.json", "b") == mask


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.npy", None, "does not exist"),
        ("broken.npy", b"\x93NUMPY nonsense", "cannot be read as a mask"),
        ("broken.json", b"{", "cannot be read as a mask"),
        ("list.json", b"[1]", "not a JSON object"),
        ("several.json", b'{"a": {}, "b": {}}', "a, b"),
        ("damaged.json", b'{"a": {"shape": [4, 4]}}', "damaged"),
    ],
)
def test_bad_mask_files(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(MaskError, match=message):
        load_mask(tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampled": [True, False, True]}, "no whole number"),
        ({"sampled": [1, 0, 1, 0]}, "stands twice"),
        ({"sampled": [0.9, 1.9]}, "no whole number"),
        ({"sampled": [0, -1]}, "outside 0 to 15"),
        ({"sampled": [0, 16]}, "outside 0 to 15"),
        ({"sampled": "0123"}, "no list"),
        ({"shape": "16"}, "no list"),
        ({"shape": ["4", 4]}, "no whole number"),
        ({"zero_frequency_index": 4}, "zero frequency elsewhere"),
        ({"shape": [24000, 24000]}, r"claims 2\.\d+ GiB of memory"),
    ],
)
def test_a_mask_is_what_its_file_says_or_refused(
    tmp_path: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDMRI_MAX_MEMORY", "100MiB")
    own = {"name": "own", "shape": [16], "sampled": [0, 1, 15], "zero_frequency_index": 0}
    assert Mask.from_dict(own).samples.sum() == 3
    named = {"a": {**own, "sampled_lines": own["sampled"], "phase_encode_axis": 0}}
    del named["a"]["sampled"]
    named["a"] |= {"sampled_lines" if key == "sampled" else key: v for key, v in changes.items()}
    for content in ({**own, **changes}, named):
        (tmp_path / "m.json").write_text(json.dumps(content))
        with pytest.raises(MaskError, match=message):
            load_mask(tmp_path / "m.json")


@pytest.mark.parametrize("array", [np.full(8, 2), np.zeros((2, 2, 2)), np.zeros(8), np.ones(0)])
def test_bad_mask_arrays(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "m.npy", array)
    with pytest.raises(MaskError):
        load_mask(tmp_path / "m.npy")


def test_mask_of_another_size_names_the_remedy() -> None:
    with pytest.raises(MaskError, match="to 64 x 64"):
        variable_density_lines(64, 3).check_matrix(240, 240)
    with pytest.raises(MaskError, match="32 x 40"):
        variable_density_2d((32, 40), 2, centre=4).check_matrix(32, 32)


@pytest.mark.parametrize(("shape", "block"), [((256, 256), (64, 64)), ((9, 12), (5, 4))])
def test_centre_block_is_the_middle_of_shifted_kspace(
    shape: tuple[int, int], block: tuple[int, int]
) -> None:
    mask = centre_block(shape, block)
    expected = np.zeros(shape, dtype=bool)
    start = [n // 2 - b // 2 for n, b in zip(shape, block, strict=True)]
    expected[start[0] : start[0] + block[0], start[1] : start[1] + block[1]] = True
    assert np.array_equal(np.fft.fftshift(mask.samples), expected)
    assert mask.nominal_acceleration == pytest.approx(np.prod(shape) / np.prod(block))


@pytest.mark.parametrize("block", [(0, 4), (4, 33)])
def test_centre_block_must_fit(block: tuple[int, int]) -> None:
    with pytest.raises(MaskError, match="does not fit"):
        centre_block((32, 32), block)


def test_an_archive_is_no_mask(tmp_path: Path) -> None:
    np.savez(tmp_path / "masks.npz", a=np.ones(8))
    with pytest.raises(MaskError, match="archive"):
        load_mask(tmp_path / "masks.npz")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "masks.npz").read_bytes()[:60])
    with pytest.raises(MaskError, match="cannot be read as a mask"):
        load_mask(tmp_path / "cut.npy")
