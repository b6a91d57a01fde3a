"""Damaged files of every kind end in an image or in one sentence (`experiments.fuzz`)."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdmri_edge.errors import KdmriError

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("ismrmrd")
pytest.importorskip("twixtools")

from experiments import fuzz
from experiments.specimens import Specimen, specimens

BUNDLE = Path(__file__).resolve().parents[1] / "data" / "v0_1" / "bundles" / "onnx-f32"
# twixtools leaves files open that it cannot read
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> list[Specimen]:
    bundle = Path(shutil.copytree(BUNDLE, tmp_path_factory.mktemp("fuzz") / "bundle"))
    return list(specimens(tmp_path_factory.mktemp("specimens"), bundle))


def attempts(
    kinds: list[Specimen], seeds: range, place: Path
) -> Iterator[tuple[str, int, fuzz.Attempt]]:
    for kind in kinds:
        for seed in seeds:
            yield kind.name, seed, fuzz.attempt(kind, seed, place)


def test_whole_files_are_read(kinds: list[Specimen], tmp_path: Path) -> None:
    for number, kind in enumerate(kinds):
        kind.read(kind.written(tmp_path / str(number)))
    assert len(kinds) >= 20
    assert {"manifest", "signature", "public key"} <= {kind.name for kind in kinds}


@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(1000, 1200),
                                                          marks=pytest.mark.nightly)])  # fmt: skip
def test_damaged_files_are_sentences(kinds: list[Specimen], seeds: range, tmp_path: Path) -> None:
    found = list(attempts(kinds, seeds, tmp_path))
    defects = [(name, seed, one.said) for name, seed, one in found if one.outcome == "defect"]
    assert not defects, defects[0][2]
    assert {one.outcome for _, _, one in found} == {"read", "refused"}
    assert not list(tmp_path.iterdir())


def test_damage_is_the_same_for_a_seed(kinds: list[Specimen], tmp_path: Path) -> None:
    for kind in kinds:
        hurt = []
        for number in (0, 1):
            kind.written(tmp_path / f"{kind.name}-{number}", random.Random("3"))
            hurt.append((tmp_path / f"{kind.name}-{number}" / kind.damaged).read_bytes())
        assert hurt[0] == hurt[1]


def test_other_exceptions_are_defects_and_count(tmp_path: Path) -> None:
    def read(path: Path) -> object:
        text = path.read_text(errors="replace")
        if len(text) % 3 == 0:
            raise KeyError(text)
        if len(text) % 3 == 1:
            raise KdmriError("It is odd.", "Make it even.")
        return text

    kind = Specimen(name="own", files={"a": b"0123456789"}, damaged="a", opened="a",
                    damage=lambda data, draw: data[: draw.randrange(3)], read=read)  # fmt: skip
    outcomes = [fuzz.attempt(kind, seed, tmp_path) for seed in range(30)]
    assert {one.outcome for one in outcomes} == {"read", "refused", "defect"}
    assert all("KeyError" in one.said for one in outcomes if one.outcome == "defect")


@pytest.mark.nightly
def test_a_watched_process_records_what_came_and_goes_on(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(BUNDLE, tmp_path / "bundle"))
    report = fuzz.fuzz(["NumPy", "mask, JSON"], bundle, 30, 5, tmp_path / "parts")
    assert report["mutations"] == 60
    assert report["read"] + report["refused"] == 60
    assert (report["defects"], report["crashes"], report["hangs"]) == (0, 0, 0)
    assert "60 damaged files of 2 kinds (NumPy; mask, JSON)" in fuzz.markdown(report)
    again = fuzz.fuzz(["NumPy"], tmp_path / "absent", 30, 5, tmp_path / "parts")
    assert again["kinds"] == report["kinds"][:1]
