"""float16 bundles give their image whatever the unit of a scan: the runtime normalises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kdmri_edge.runtime.bundle import GOLDEN_INPUT, Bundle
from kdmri_edge.runtime.deviation import TOLERANCES, compare
from kdmri_edge.runtime.session import Session, open_session, reconstruct
from kdmri_edge.runtime.targets import TARGETS
from kdmri_export.export import export_model
from kdmri_export.recipe import ExportRecipe
from tests.export.networks import write_checkpoint

# What k-space of any scanner may hold; float16 reaches from 6e-8 to 65504.
FACTORS = [10.0**power for power in range(-6, 7)]
WITH_F16 = [name for name, target in TARGETS.items() if "f16" in target.precisions]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Session]:
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("scales") / "student.safetensors")
    return checkpoint, open_session(checkpoint, threads=1)


def halves(checkpoint: Path, target: str, folder: Path) -> tuple[Bundle, NDArray[np.float32]]:
    recipe = ExportRecipe(target=target, precision="f16", compiled=False)
    bundle = export_model(checkpoint, recipe, folder / "bundle")
    return bundle, np.load(bundle.path / GOLDEN_INPUT)[:, 0]


@pytest.mark.parametrize("target", WITH_F16)
def test_any_unit_gives_the_same_image(
    target: str, reference: tuple[Path, Session], tmp_path: Path
) -> None:
    checkpoint, exact = reference
    bundle, volume = halves(checkpoint, target, tmp_path)
    wanted = reconstruct(exact, volume)
    for backend in ("torch", "pt2", "onnxruntime", "openvino"):
        if backend not in bundle.target.runs_on:
            continue
        session = open_session(bundle.path, backend=backend, threads=1)
        for factor in FACTORS:
            image = reconstruct(session, volume * np.float32(factor)) / factor
            exceeded = compare(image, wanted).exceeded(TOLERANCES["f16"])
            assert not exceeded, (backend, factor, exceeded)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_without_the_scaling_it_would_not(
    factor: float, reference: tuple[Path, Session], tmp_path: Path
) -> None:
    """The sweep can fail: fed as it is, the input is beyond float16, or drowns in the biases."""
    checkpoint, exact = reference
    bundle, volume = halves(checkpoint, "torchscript", tmp_path)
    session = open_session(bundle.path, threads=1)
    with np.errstate(all="ignore"):
        image = session.run(volume[:, None] * np.float32(factor))[:, 0] / factor
        found = compare(image, reconstruct(exact, volume))
    assert found.exceeded(TOLERANCES["f16"])
