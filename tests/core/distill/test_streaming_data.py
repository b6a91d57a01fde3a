"""Data sets that memory does not hold: prepared in a folder, and the same to the last bit."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from kdmri_edge.data.case import Case, Undersampling
from kdmri_edge.data.datasets import find_volumes
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.distillation import preparation
from kdmri_edge.distillation.batches import TrainingSlices
from kdmri_edge.distillation.data import TrainingData, gather
from kdmri_edge.distillation.engine import Engine
from kdmri_edge.distillation.log import TrainingLog
from kdmri_edge.distillation.prefetch import Prefetch
from kdmri_edge.distillation.preparation import Item, Keeping, Wanted, prepare
from kdmri_edge.distillation.recipe import DistillRecipe
from kdmri_edge.distillation.request import Request, Settings
from kdmri_edge.distillation.run import distill
from kdmri_edge.distillation.start import start
from kdmri_edge.distillation.stored import SliceCache, StoredCase
from kdmri_edge.errors import DataError, OutputError
from kdmri_edge.models.specs import preset
from kdmri_edge.physics.masks import variable_density_lines
from tests.drawing import draw

MATRIX = 32
Make = Callable[..., Settings]
Weights = Callable[[Path], dict[str, dict[str, Tensor]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five magnitude volumes, one of them smaller than 40 x 40, one with a blank slice."""
    place = tmp_path_factory.mktemp("volumes")
    for number in range(5):
        volume = phantom_volume(3, slices=3, matrix=36 if number == 1 else 40, index=number)
        image = volume.image.copy()
        if number == 2:
            image[1] = 0
        np.save(place / f"sub-{number:02}_T1w.npy", image)
    return place


def prepared(wanted: Settings, cache: Path, memory: int | None = 1, **more: Any) -> TrainingData:
    return gather(wanted, keeping=Keeping(memory=memory, folder=cache, **more))


def of_kind(settings: Make, kind: str, folder: Path, **more: Any) -> Settings:
    values: dict[str, Any] = {"teacher_steps": 2, "attention_steps": 0, "imitation_steps": 2}
    values |= {"data": str(folder), "baseline": False}
    if kind == "sense":
        values["mask"] = variable_density_lines(MATRIX, 1.2, centre_lines=24)
        for role, name in {"teacher": "dccnn-d5c5-sense", "student": "dccnn-d3c5-sense"}.items():
            values |= {role: name, f"{role}_spec": replace(preset(name), width=4)}
    if kind == "two inputs":
        name = "dccnn-d5c5-complex"
        values |= {"teacher": name, "teacher_spec": replace(preset(name), width=4)}
    return settings(**{**values, **more})


class Both(NamedTuple):
    held: TrainingSlices
    streamed: TrainingSlices


def both(wanted: Settings, tmp_path: Path, **more: Any) -> Both:
    held, streamed = prepared(wanted, tmp_path, None), prepared(wanted, tmp_path, **more)
    assert held.cache is None
    assert streamed.cache is not None
    assert held.record == streamed.record
    assert held.simulation == streamed.simulation
    return Both(
        TrainingSlices.from_cases(held.train),
        TrainingSlices.from_cases(streamed.train, cache=streamed.cache),
    )


@pytest.mark.parametrize("kind", ["magnitude", "sense"])
def test_batches_are_those_of_memory_to_the_last_bit(
    settings: Make, recipe: Callable[..., DistillRecipe], folder: Path, tmp_path: Path, kind: str
) -> None:
    slices = both(of_kind(settings, kind, folder), tmp_path)
    assert len(slices.streamed.target) == len(slices.held.target) > 0
    made = recipe(batch=4, strip=16)
    projection = np.eye(MATRIX, dtype=np.float32)
    for step in range(3):
        for options in ({}, {"projection": projection, "noise": 0.1}):
            one, other = (
                draw(each, made, step=step, whole=step == 2, flip=True, **options)  # type: ignore[arg-type]
                for each in slices
            )
            assert len(one) == len(other) == (3 if kind == "sense" else 2)
            assert all(map(torch.equal, one, other))


def test_slices_for_networks_of_kspace_and_whole_volumes_are_the_same(
    folder: Path, tmp_path: Path
) -> None:
    mask = variable_density_lines(MATRIX, 1.2, centre_lines=24)
    spec = preset("dccnn-d3c5-sense")
    way = Wanted(Undersampling(spec, mask, MATRIX, 0, kspace=True), (MATRIX, MATRIX))
    items = [Item(file, [way]) for file in find_volumes(folder)[:2]]
    held, streamed = (
        [case for (case,) in prepare(items, Keeping(memory=memory, folder=tmp_path)).cases if case]
        for memory in (None, 1)
    )
    assert [type(case) for case in (held[0], streamed[0])] == [Case, StoredCase]
    slices = Both(TrainingSlices.from_cases(held), TrainingSlices.from_cases(streamed))
    np.testing.assert_array_equal(*(each.network_input([2, 0]) for each in slices))
    np.testing.assert_array_equal(*(each.zero_filled[1] for each in slices))
    for one, other in zip(held, streamed, strict=True):
        assert one.count == other.count
        np.testing.assert_array_equal(one.peaks, other.peaks)
        for part in (slice(None), slice(1, None, 2)):
            some, same = one.part(part), other.part(part)
            np.testing.assert_array_equal(some.target, same.target)
            np.testing.assert_array_equal(some.scale, same.scale)
            np.testing.assert_array_equal(
                some.network_input(slice(None)), same.network_input(slice(None))
            )


@pytest.mark.parametrize("kind", ["two inputs", pytest.param("sense", marks=pytest.mark.nightly)])
def test_weights_are_those_of_memory(
    settings: Make, weights: Weights, folder: Path, tmp_path: Path, kind: str
) -> None:
    wanted = of_kind(settings, kind, folder)
    held = distill(wanted, tmp_path / "held")
    engine = Engine(data_memory=1, data_cache=tmp_path / "cache")
    streamed = distill(wanted, tmp_path / "streamed", engine=engine)
    one, other = weights(held.path), weights(streamed.path)
    assert one.keys() == other.keys() == {"teacher", "student"}
    for role, state in one.items():
        assert all(torch.equal(value, other[role][name]) for name, value in state.items()), role
    rows = TrainingLog(streamed.path / "log.csv").rows()
    assert all(0 <= float(row["waiting"]) <= 1 for row in rows)


@pytest.mark.nightly
def test_a_streamed_run_goes_on_in_memory_and_back(
    settings: Make,
    weights: Weights,
    folder: Path,
    tmp_path: Path,
    distill_until: Callable[..., None],
) -> None:
    wanted = of_kind(settings, "magnitude", folder, teacher_steps=6, checkpoint_every=2)
    engine = Engine(data_memory=1, data_cache=tmp_path / "cache")
    whole = distill(wanted, tmp_path / "whole", engine=engine)
    distill_until(wanted, tmp_path / "cut", ("teacher", 3))
    again = distill(wanted, tmp_path / "cut", engine=engine)
    one, other = weights(whole.path), weights(again.path)
    for role, state in one.items():
        assert all(torch.equal(value, other[role][name]) for name, value in state.items()), role


def test_volumes_smaller_than_a_matrix_are_left_out_there(
    settings: Make, folder: Path, tmp_path: Path
) -> None:
    wanted = of_kind(settings, "magnitude", folder)
    values = wanted.recipe.to_dict()
    values["batches"] = {**values["batches"], "matrices": [24, 40]}
    mixed = Settings.from_dict({**wanted.to_dict(), "recipe": values})
    for _ in range(2):  # computed, and found
        held, streamed = (prepared(mixed, tmp_path / "cache", memory) for memory in (None, 1))
        counts = [[len(cases) for cases in data.sized] for data in (held, streamed)]
        assert counts[0] == counts[1]
        assert counts[0][1] <= counts[0][0] == len(held.train)


def files(cache: Path) -> dict[Path, int]:
    found = (p for p in cache.rglob("*") if p.is_file() and p.suffix in (".npy", ".json"))
    return {path: path.stat().st_mtime_ns for path in found}


class TestCache:
    def test_what_is_there_is_not_made_again(
        self, settings: Make, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wanted = of_kind(settings, "sense", folder)
        first = prepared(wanted, tmp_path)
        made = files(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr("kdmri_edge.distillation.preparation.read_found", pytest.fail)
            again = prepared(wanted, tmp_path)
        assert files(tmp_path) == made
        assert again.record == first.record
        assert again.simulation == first.simulation != {}

    def test_another_mask_or_file_is_another_folder(
        self, settings: Make, folder: Path, tmp_path: Path
    ) -> None:
        data = tmp_path / "data"
        shutil.copytree(folder, data)
        wanted = of_kind(settings, "magnitude", data)
        first = prepared(wanted, tmp_path / "cache").train[0].part(slice(None))
        other = of_kind(settings, "magnitude", data, mask=variable_density_lines(MATRIX, 3.0))
        second = prepared(other, tmp_path / "cache").train[0].part(slice(None))
        np.testing.assert_array_equal(first.target, second.target)
        assert np.abs(first.zero_filled - second.zero_filled).max() > 0
        for file in data.glob("*.npy"):
            np.save(file, 2 * np.load(file))
        doubled = prepared(wanted, tmp_path / "cache").train[0].part(slice(None))
        np.testing.assert_allclose(doubled.target, 2 * first.target, rtol=1e-5)

    def test_a_damaged_entry_is_made_again(
        self, settings: Make, folder: Path, tmp_path: Path
    ) -> None:
        wanted = of_kind(settings, "magnitude", folder)
        first = prepared(wanted, tmp_path).train[0].part(slice(None))
        for file in tmp_path.rglob("target.npy"):
            file.write_bytes(file.read_bytes()[:-40])
        for file in tmp_path.rglob("zero_filled.npy"):
            left = file.parent.with_name(f".{file.parent.name}.0123abcd.tmp")  # of a killed writer
            left.mkdir()
        again = prepared(wanted, tmp_path).train[0].part(slice(None))
        np.testing.assert_array_equal(first.target, again.target)
        assert not list(tmp_path.rglob(".*.tmp*"))

    def test_what_vanishes_in_training_is_said(
        self, settings: Make, folder: Path, tmp_path: Path
    ) -> None:
        data = prepared(of_kind(settings, "magnitude", folder), tmp_path)
        slices = TrainingSlices.from_cases(data.train)
        shutil.rmtree(tmp_path)
        with pytest.raises(DataError, match="no longer whole"):
            slices.target[0]

    def test_two_at_once_share_the_work(
        self, settings: Make, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wanted, read = of_kind(settings, "magnitude", folder), []
        real = preparation.read_found
        monkeypatch.setattr(
            preparation, "read_found", lambda file: (read.append(file.name), real(file))[1]
        )
        found: dict[int, TrainingData] = {}
        threads = [
            threading.Thread(
                target=lambda n=rank: found.update({
                    n: prepared(wanted, tmp_path, memory=0, rank=n, world=2)
                })
            )
            for rank in range(2)
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for part in ("split", "train", "validation"):  # the first alone looks at those that test
            assert found[0].record[part] == found[1].record[part]
        # each read one to see that memory does not hold it; none was prepared by both
        assert len(set(read)) == 4 <= len(read) <= 6

    def test_a_disk_without_space_is_said_at_once(
        self, settings: Make, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Usage(NamedTuple):
            free: int = 10

        monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage())
        with pytest.raises(OutputError, match="has 10 bytes left") as caught:
            prepared(of_kind(settings, "magnitude", folder), tmp_path)
        assert "--data-cache" in caught.value.remedy


class TestMemory:
    def test_the_limit_decides_and_is_said(
        self, settings: Make, folder: Path, tmp_path: Path
    ) -> None:
        wanted = of_kind(settings, "magnitude", folder)
        held = prepared(wanted, tmp_path, None)
        assert held.kept.startswith("Slices are held in memory: ")
        assert not list(tmp_path.iterdir())
        copies = (2 * 3 + 1) * 3  # three training volumes twice, one of validation, 3 slices each
        needed = copies * 2 * 4 * MATRIX**2
        assert prepared(wanted, tmp_path, needed).cache is None
        streamed = prepared(wanted, tmp_path, needed - 1)
        assert streamed.cache is not None
        assert f"read from {tmp_path}" in streamed.kept
        # and of what is known from an earlier run, without reading the volumes
        assert prepared(wanted, tmp_path, needed - 1).cache is not None

    def test_processes_of_a_machine_share_it(self) -> None:
        assert Engine(devices=4, data_memory=100).keeping(0).limit == 25
        assert Keeping(memory=100).cached == 100
        assert Keeping().cached <= 2**30

    @pytest.mark.parametrize("limit", [0, 100, 1000])
    def test_a_cache_of_slices_keeps_to_its_size(self, limit: int) -> None:
        cache, read = SliceCache(limit), []

        def slice_of(number: int) -> np.ndarray[Any, Any]:
            read.append(number)
            return np.full(10, number, np.float32)  # 40 bytes

        for number in [0, 1, 2, 0, 1, 2, 2]:
            value = cache.get((Path(), "target", number), lambda n=number: slice_of(n))  # type: ignore[misc]
            assert (value == number).all()
            assert cache.held <= limit
        assert len(read) == {0: 7, 100: 6, 1000: 3}[limit]

    @pytest.mark.parametrize(
        "wrong", [{"data_memory": "much"}, {"data_memory": "0"}, {"data_workers": 0}]
    )
    def test_mistakes_are_said_before_anything_is_read(
        self, wrong: dict[str, Any], tmp_path: Path
    ) -> None:
        with pytest.raises(DataError, match=r"no number of bytes|read nothing"):
            start(Request(), tmp_path / "run", **wrong)
        assert not (tmp_path / "run").exists()


class TestPrefetch:
    @pytest.mark.parametrize("workers", [0, 1, 3])
    def test_each_step_gets_its_own_batch_once(self, workers: int) -> None:
        drawn: list[int] = []

        def batch(step: int) -> str:
            drawn.append(step)
            return f"batch {step}"

        batches = Prefetch(batch, 7, workers)
        assert [batches(step) for step in range(2, 7)] == [f"batch {n}" for n in range(2, 7)]
        batches.close()
        assert sorted(drawn) == [2, 3, 4, 5, 6]
        assert batches.waited > 0

    def test_what_goes_wrong_is_raised_at_its_step(self) -> None:
        def batch(step: int) -> int:
            if step == 2:
                raise DataError("gone", "do")
            return step

        batches = Prefetch(batch, 5, 2)
        assert [batches(0), batches(1)] == [0, 1]
        with pytest.raises(DataError, match="gone"):
            batches(2)
        batches.close()
