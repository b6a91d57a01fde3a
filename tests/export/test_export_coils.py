"""Bundles of networks that combine coils."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from kdmri_edge.cli import main
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.simulation import coil_maps
from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import BackendError, DataError, ExportError
from kdmri_edge.physics.coils import expand
from kdmri_edge.physics.fourier import image_to_kspace
from kdmri_edge.physics.masks import variable_density_lines
from kdmri_edge.runtime.bundle import GOLDEN_INPUT, GOLDEN_MAPS, GOLDEN_OPERATOR, GOLDEN_OUTPUT
from kdmri_edge.runtime.inputs import prepare, read_input_spec
from kdmri_edge.runtime.session import open_session, reconstruct
from kdmri_edge.runtime.targets import TARGETS
from kdmri_edge.runtime.verify import verify_bundle
from kdmri_export.export import export_model
from kdmri_export.recipe import ExportRecipe
from kdmri_export.targets.tensorrt.engines import EngineRequest
from tests.export.networks import MATRIX, lines, spec, write_checkpoint
from tests.sense_inputs import sense_input

QUICK = "torchscript"  # the target that is written fastest


@pytest.mark.parametrize("target", TARGETS)
def test_bundle_of_a_multi_coil_network(target: str, tmp_path: Path) -> None:
    architecture = spec(channels=2, coils=True)
    checkpoint = write_checkpoint(tmp_path / "student.safetensors", architecture)
    recipe = ExportRecipe(target=target, coils=4, compiled=False)
    bundle = export_model(checkpoint, recipe, tmp_path / recipe.bundle_name("student"))
    assert bundle.path.name.endswith("-4coils")
    fixed = None if TARGETS[target].any_coils else 4
    assert bundle.manifest["io"]["maps"]["shape"] == [1, fixed or "coils", 2, MATRIX, MATRIX]
    assert bundle.manifest["coils"] == 4
    assert bundle.takes_maps
    assert bundle.fixed_coils == fixed
    sampled = int(lines().samples.sum())
    assert bundle.manifest["macs"] == architecture.macs(MATRIX, MATRIX, sampled=sampled, coils=4)
    session = open_session(bundle.path, backend=TARGETS[target].checker.name, threads=1)
    given, wanted, maps = (
        np.load(bundle.path / f) for f in (GOLDEN_INPUT, GOLDEN_OUTPUT, GOLDEN_MAPS)
    )
    with pytest.raises(BackendError, match="no sensitivities"):
        session.run(given)
    np.testing.assert_allclose(session.run(given, maps=maps), wanted, atol=1e-5)
    rows = verify_bundle(bundle.path)["rows"]
    assert {"passed"} <= {row["status"] for row in rows} <= {"passed", "absent"}


def test_multi_coil_bundle_reconstructs_a_scan(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(
        tmp_path / "student.safetensors",
        spec(channels=2, coils=True),
        variable_density_lines(MATRIX, 1.3, centre_lines=24),
    )
    bundle = export_model(checkpoint, ExportRecipe(target=QUICK), tmp_path / "bundle")
    true = phantom_volume(3, slices=2, matrix=MATRIX, complex_phase=True).image
    maps = np.stack([coil_maps(10, MATRIX, MATRIX, seed=seed) for seed in range(2)])
    kspace = image_to_kspace(expand(true, maps)) * bundle.mask.samples[:, None]
    scan = Scan(kspace=kspace.astype(np.complex64), mask=bundle.mask, name="s", subject="s")
    given = sense_input(scan)
    outputs = []
    for source in (bundle.path, checkpoint):
        session = open_session(source, threads=1)
        done: list[int] = []
        image = reconstruct(session, given.zero_filled, advance=done.append, maps=given.maps)
        assert image.dtype == np.complex64
        assert image.shape == (2, MATRIX, MATRIX)
        assert done == [1, 1]
        outputs.append(image)
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5 * np.abs(outputs[1]).max())
    with pytest.raises(DataError, match="slices, coils"):
        reconstruct(session, given.zero_filled, maps=given.maps[:1])
    with pytest.raises(BackendError, match="no sensitivities"):
        reconstruct(session, given.zero_filled)
    reads = read_input_spec(bundle.path)
    with pytest.raises(DataError, match="combines coils"):
        prepare(Volume(image=true, name="v", subject="v"), reads)


def test_one_multi_coil_bundle_serves_other_masks(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "student.safetensors", spec(channels=2, coils=True))
    recipe = ExportRecipe(target=QUICK, mask_input=True, batch="dynamic")
    bundle = export_model(checkpoint, recipe, tmp_path / "bundle")
    assert np.load(bundle.path / GOLDEN_OPERATOR).shape == (2 * MATRIX, 2 * MATRIX)
    other = open_session(bundle.path, mask=lines(acceleration=2))
    assert other.operator is not None
    assert other.operator.shape == (2 * MATRIX, 2 * MATRIX)


def test_what_a_multi_coil_network_cannot_be(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "student.safetensors", spec(channels=2, coils=True))
    for recipe, remedy in (
        (ExportRecipe(target="onnx", keep_op=True), "--keep-op"),
        (
            ExportRecipe(target="trt", engines=EngineRequest(builder="torch-tensorrt")),
            "Build it with tensorrt",
        ),
    ):
        with pytest.raises(ExportError, match=remedy):
            export_model(checkpoint, recipe, tmp_path / "bundle")
    with pytest.raises(ExportError, match="0 coils"):
        ExportRecipe(target="onnx", coils=0)
    assert not (tmp_path / "bundle").exists()


def test_the_command_tells_the_share_of_data_consistency(tmp_path: Path) -> None:
    architecture = spec(channels=2, coils=True)
    checkpoint = write_checkpoint(tmp_path / "student.safetensors", architecture)
    done = CliRunner().invoke(
        main, ["export", str(checkpoint), f"--target={QUICK}", "--coils=2"], env={"COLUMNS": "200"}
    )
    assert done.exit_code == 0, done.output
    macs = architecture.macs(MATRIX, MATRIX, sampled=int(lines().samples.sum()), coils=2)
    share = macs["data_consistency"] / sum(macs.values())
    assert f"data consistency with 2 coils: {share:.0%}" in done.stdout
    (bundle,) = (tmp_path / "exports").iterdir()
    assert bundle.name == f"student-{QUICK}-2coils"
