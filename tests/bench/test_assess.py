"""`kdmri-edge assess`: the frame, on tiny untrained networks and phantoms."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from kdmri_bench.assessment.assess import Assessment, assess, read_assessment
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.volume import Volume
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.physics.masks import Mask

MATRIX = 32


@pytest.fixture(scope="module")
def volumes() -> list[Volume]:
    return [phantom_volume(seed, slices=2, matrix=MATRIX) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def run(make_run: Callable[..., Run], mask: Mask, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("run"), mask, ("teacher", "student"))


@pytest.fixture(scope="module")
def done(run: Run, volumes: list[Volume], tmp_path_factory: pytest.TempPathFactory) -> Assessment:
    out = tmp_path_factory.mktemp("report")
    return assess(run, volumes, in_pytorch=True, out=out)


def test_the_report(done: Assessment) -> None:
    value = read_assessment(done.files["json"].parent)
    assert value == json.loads(json.dumps(done.to_dict()))
    print([n["key"] for n in value["networks"]])
