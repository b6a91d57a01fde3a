"""Bundles of any matrix, and what `run` and the library make of scans of other matrices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.nn import functional as F

import kdmri_edge as ke
from kdmri_edge.cli import main
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.resample import to_matrix
from kdmri_edge.data.scan import Scan
from kdmri_edge.errors import BackendError, DataError, ExportError, MaskError
from kdmri_edge.models.checkpoint import load_reconstructor
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.mrd.format.hdf5 import write_scan
from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image
from kdmri_edge.physics.masks import Mask, variable_density_lines
from kdmri_edge.physics.redraw import redrawn
from kdmri_edge.runtime.bundle import (
    GOLDEN_OUTPUT,
    MANIFEST,
    OTHER,
    open_bundle,
    write_manifest,
)
from kdmri_edge.runtime.deviation import compare
from kdmri_edge.runtime.pipeline import Pipeline
from kdmri_edge.runtime.session import open_session, reconstruct
from kdmri_edge.runtime.verify import verify_bundle
from kdmri_export.export import export_model
from kdmri_export.passes.any_matrix import other_matrices
from kdmri_export.recipe import ExportRecipe
from tests.export.networks import MATRIX, lines, points, spec, write_checkpoint

MATRICES = ((24, 24), (MATRIX, MATRIX), (48, 40))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("any")


@pytest.fixture(scope="module")
def weights(place: Path) -> Path:
    return write_checkpoint(place / "student.safetensors")


@pytest.fixture(scope="module")
def bundle(place: Path, weights: Path) -> Path:
    recipe = ExportRecipe(target="onnx", any_matrix=True)
    return export_model(weights, recipe, place / "bundle").path


@pytest.fixture(scope="module")
def fixed(place: Path, weights: Path) -> Path:
    return export_model(weights, ExportRecipe(target="onnx"), place / "fixed").path


def image(matrix: tuple[int, int], *, phase: bool = False) -> np.ndarray:
    drawn = phantom_volume(3, slices=4, matrix=max(matrix), complex_phase=phase)
    return to_matrix(drawn, matrix).image[1:3]


def scan(matrix: tuple[int, int], mask: Mask | None = None) -> Scan:
    mask = mask or lines(matrix[0])
    kspace = (image_to_kspace(image(matrix)) * mask.grid).astype(np.complex64)
    return Scan(kspace=kspace[:, None], mask=mask, name="scan", subject="s")


def in_pytorch(weights: Path, given: Scan) -> np.ndarray:
    """What the network gives for a scan, by PyTorch alone."""
    model = load_reconstructor(weights).model
    bound = Reconstructor(model, given.mask, any_mask=True)
    x_u = kspace_to_image(given.kspace[:, 0]).real.astype(np.float32)
    scale = np.abs(x_u).max((1, 2), keepdims=True)
    with torch.inference_mode():
        made = bound(torch.from_numpy(x_u / scale)[:, None]).numpy()[:, 0]
    return made * scale


def close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return compare(ours, theirs).max_error < 1e-4


def test_manifest_says_what_is_free(bundle: Path) -> None:
    made = open_bundle(bundle)
    io = made.manifest["io"]
    assert io["input"]["shape"] == io["output"]["shape"] == [1, 1, "height", "width"]
    assert io["operator"]["shape"] == ["height", "height"]
    assert made.manifest["matrix"] == MATRIX
    assert made.manifest["mask_input"] is True
    assert made.free is not None
    assert made.free.multiple == 1
    checked = [tuple(one["matrix"]) for one in made.manifest["parity"]["other_matrices"]]
    assert checked == list(other_matrices(MATRIX, 1)) == [(26, 26), (34, 29)]


def test_verify_tries_another_matrix(bundle: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["verify", str(bundle), "--backend", "onnxruntime", "--json"])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rows"]
    assert row["matrices"] == [[32, 32], [34, 29]]
    # a graph that is wrong there alone is found
    copied = shutil.copytree(bundle, tmp_path / "copied")
    wanted = np.load(copied / (OTHER + GOLDEN_OUTPUT))
    np.save(copied / (OTHER + GOLDEN_OUTPUT), 1.1 * wanted)
    manifest = dict(open_bundle(bundle).manifest)
    write_manifest(copied, {key: manifest[key] for key in manifest if key != "files"})
    assert not verify_bundle(copied, backend="onnxruntime")["passed"]


def test_matrices_of_the_gate_fit_the_multiple() -> None:
    assert list(other_matrices(240, 1)) == [(192, 192), (256, 209)]
    assert list(other_matrices(240, 16)) == [(192, 192), (256, 208)]
    assert list(other_matrices(32, 16)) == [(32, 32), (48, 32)]


@pytest.mark.parametrize("matrix", MATRICES)
def test_one_bundle_reconstructs_every_matrix(
    matrix: tuple[int, int], bundle: Path, weights: Path, tmp_path: Path
) -> None:
    given = scan(matrix)
    write_scan(tmp_path / "scan.h5", given)
    out = tmp_path / "image.npy"
    result = CliRunner().invoke(
        main, ["run", str(bundle), str(tmp_path / "scan.h5"), "-o", str(out), "--json"]
    )
    assert result.exit_code == 0, result.output
    assert close(np.load(out), in_pytorch(weights, given))
    beyond = json.loads(result.stdout)[0]["beyond_training"]
    assert bool(beyond) == (matrix != (MATRIX, MATRIX))
    if beyond:
        assert "alone (2.91x), and the scan has another one" in beyond[0]
        assert f"at matrix 32 x 32, and the scan's is {matrix[0]} x {matrix[1]}" in beyond[1]
        assert "Note: The network was trained" in result.stderr


def test_checkpoint_runs_any_matrix_in_pytorch(weights: Path, tmp_path: Path) -> None:
    given = scan((48, 40))
    with Pipeline(weights, any_matrix=True) as pipeline:
        assert pipeline.session.info.backend == "PyTorch"
        assert close(pipeline.images(pipeline.prepare(given)), in_pytorch(weights, given))
    write_scan(tmp_path / "scan.h5", given)
    asked = [str(weights), str(tmp_path / "scan.h5"), "-o", str(tmp_path / "i.npy")]
    result = CliRunner().invoke(main, ["run", *asked, "--matrix", "any", "--no-cache"])
    assert result.exit_code == 0, result.output
    assert close(np.load(tmp_path / "i.npy"), in_pytorch(weights, given))
    refused = CliRunner().invoke(main, ["run", *asked, "--no-cache"])
    assert refused.exit_code == 1
    assert "--matrix any" in str(refused.exception)


def test_python_takes_any_matrix(bundle: Path, weights: Path) -> None:
    with ke.load(bundle) as network:
        assert network.takes_matrices
        assert "any matrix" in repr(network)
        given = scan((24, 36))
        made = network.reconstruct(given.kspace, mask=given.mask)
        assert close(made, in_pytorch(weights, given))
        whole = image_to_kspace(image((24, 36)))[:, None].astype(np.complex64)
        tried = network.reconstruct(whole, undersample=True)
        mask = redrawn(network.mask, 24, 36)
        assert close(tried, in_pytorch(weights, scan((24, 36), mask)))
        with pytest.raises(MaskError, match="not said which samples"):
            network.reconstruct(given.kspace)


def test_undersampled_images_keep_their_matrix(bundle: Path, weights: Path, tmp_path: Path) -> None:
    whole = image((40, 28))
    np.save(tmp_path / "T1w.npy", whole)
    out = tmp_path / "out.npy"
    result = CliRunner().invoke(
        main,
        ["run", str(bundle), str(tmp_path / "T1w.npy"), "-o", str(out), "--undersample", "--json"],
    )
    assert result.exit_code == 0, result.output
    mask = redrawn(lines(), 40, 28)
    assert json.loads(result.stdout)[0]["mask"] == mask.name
    assert close(np.load(out), in_pytorch(weights, scan((40, 28), mask)))
    # a mask that is named has to be of the images' own matrix
    np.save(tmp_path / "mask.npy", lines().samples)
    asked = ["run", str(bundle), str(tmp_path / "T1w.npy"), "-o", str(tmp_path / "no.npy")]
    refused = CliRunner().invoke(
        main, [*asked, "--undersample", "--mask", str(tmp_path / "mask.npy")]
    )
    assert refused.exit_code == 1
    assert "made for 32" in str(refused.exception)
    assert not (tmp_path / "no.npy").exists()


def test_zero_filled_images_need_their_mask(place: Path, tmp_path: Path) -> None:
    weights = write_checkpoint(place / "complex.safetensors", spec(channels=2))
    recipe = ExportRecipe(target="torchscript", any_matrix=True)
    made = export_model(weights, recipe, tmp_path / "bundle").path
    mask = lines(24)
    x_u = kspace_to_image(image_to_kspace(image((24, 32), phase=True)) * mask.grid)
    np.save(tmp_path / "x.npy", x_u.astype(np.complex64))
    np.save(tmp_path / "mask.npy", mask.samples)
    asked = ["run", str(made), str(tmp_path / "x.npy"), "-o", str(tmp_path / "i.npy")]
    refused = CliRunner().invoke(main, asked)
    assert refused.exit_code == 1
    assert "does not say which samples" in str(refused.exception)
    taken = CliRunner().invoke(main, [*asked, "--mask", str(tmp_path / "mask.npy")])
    assert taken.exit_code == 0, taken.output


def test_operators_of_the_last_eight_masks_are_kept(bundle: Path) -> None:
    with Pipeline(bundle) as pipeline:
        own = pipeline.reads.mask
        for height in range(20, 30):
            given = scan((height, 24))
            pipeline.images(pipeline.prepare(given))
            pipeline.images(pipeline.prepare(scan((MATRIX, 20), own)))
        assert len(pipeline._operators) == 8
        assert list(pipeline._operators)[-1] == own  # used all the while
        assert lines(29) in pipeline._operators
        assert lines(22) not in pipeline._operators


def test_int8_is_int8_at_every_matrix(weights: Path, tmp_path: Path) -> None:
    recipe = ExportRecipe(target="openvino", any_matrix=True, precision="int8")
    made = export_model(weights, recipe, tmp_path / "bundle").path
    with Pipeline(made, threads=1) as pipeline:
        before = pipeline.session.info.precision_executed
        assert "int8 in" in before
        given = scan((48, 40))
        ours = pipeline.images(pipeline.prepare(given))
        assert compare(ours, in_pytorch(weights, given)).max_error < 0.1
        assert pipeline.session.info.precision_executed == before


def test_coils_of_another_matrix(tmp_path: Path) -> None:
    weights = write_checkpoint(
        tmp_path / "sense.safetensors", spec(channels=2, coils=True), mask=lines(acceleration=1.2)
    )
    recipe = ExportRecipe(target="torchscript", any_matrix=True)
    made = export_model(weights, recipe, tmp_path / "bundle").path
    mask = variable_density_lines(40, 1.4, centre_lines=24)
    kspace = image_to_kspace(image((40, 36), phase=True)) * mask.grid
    given = Scan(
        kspace=np.stack((kspace, 1j * kspace), 1).astype(np.complex64),
        mask=mask, name="s", subject="s",
    )  # fmt: skip
    with Pipeline(made) as pipeline, Pipeline(weights, any_matrix=True) as reference:
        ours = pipeline.images(pipeline.prepare(given))
        assert ours.shape == (2, 40, 36)
        assert close(ours, reference.images(reference.prepare(given)))


def test_warms_up_at_the_matrix_of_the_mask(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / "points.safetensors", mask=points())
    for mask in (points(), points(MATRIX, 40), points(24, 40)):
        with Pipeline(weights, any_matrix=True, mask=mask) as pipeline:
            pipeline.warm_up()


class TestMistakes:
    def test_another_matrix_names_the_way_out(self, fixed: Path) -> None:
        with Pipeline(fixed) as pipeline:
            with pytest.raises(MaskError, match="--matrix any"):
                pipeline.prepare(scan((24, 24)))
            with pytest.raises(DataError, match="--matrix any"):
                pipeline.image(scan((24, 24)).kspace[0], lines(24))
        with pytest.raises(BackendError, match="32 x 32 alone"):
            Pipeline(fixed, any_matrix=True)

    def test_operator_of_another_matrix(self, bundle: Path) -> None:
        with open_session(bundle) as session, pytest.raises(BackendError, match="another matrix"):
            reconstruct(session, np.ones((1, 24, 24), np.float32))

    def test_matrix_that_is_too_small(self, bundle: Path) -> None:
        with Pipeline(bundle) as pipeline, pytest.raises(DataError, match="smallest matrix of 16"):
            pipeline.prepare(scan((24, 12)))

    def test_mask_of_the_other_kind(self, bundle: Path) -> None:
        with Pipeline(bundle) as pipeline, pytest.raises(MaskError, match="not of one kind"):
            pipeline.image(scan((24, 24)).kspace[0], points(24, 24))

    def test_what_belongs_to_one_matrix(self, weights: Path, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match="belongs to one matrix"):
            ExportRecipe(target="onnx", any_matrix=True, keep_op=True)
        with pytest.raises(ExportError, match="data consistency is an FFT"):
            export_model(
                weights, ExportRecipe(target="onnx", any_matrix=True, dc="fft"), tmp_path / "no"
            )
        for wrong in ("15", "some"):
            asked = ["export", str(weights), "--target", "onnx", "--matrix", wrong]
            refused = CliRunner().invoke(main, asked)
            assert refused.exit_code == 2
            assert "neither 'any' nor a number from 16 on" in refused.stderr


class Pooled(nn.Module):
    """A U-Net of two levels, without data consistency, that cannot join odd halves."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 4, 3, padding=1)
        self.low = nn.Conv2d(4, 4, 3, padding=1)
        self.up = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        high = F.relu(self.down(x))
        low = F.relu(self.low(F.avg_pool2d(high, 4)))
        wide = F.interpolate(low, scale_factor=4.0, mode="nearest")
        return x + self.up(torch.cat((high, wide), 1))


class Fixed(Pooled):
    """One that is written for its matrix."""

    def forward(self, x: Tensor) -> Tensor:
        image: Tensor = super().forward(x.reshape(-1, 1, MATRIX, MATRIX))
        return image


def test_poolings_say_the_multiples_they_need(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = ke.export(
        Pooled(), target="onnx", for_mask=lines(), matrix="any", out=tmp_path / "bundle"
    )
    assert json.loads((made.path / MANIFEST).read_text())["matrix_multiple"] == 4
    assert made.free is not None
    assert "operator" not in made.manifest["io"]
    with Pipeline(made.path) as pipeline:
        assert pipeline.images(pipeline.prepare(scan((24, 36)))).shape == (2, 24, 36)
        with pytest.raises(DataError, match="multiples of 4"):
            pipeline.prepare(scan((24, 34)))


class Sized(nn.Module):
    """One that takes another road where images are large, or where they are small."""

    def __init__(self, smallest: int, largest: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.smallest, self.largest = smallest, largest

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        if x.shape[-1] > self.largest or x.shape[-1] < self.smallest:
            y = 0.1 * y
        return x + y


@pytest.mark.parametrize("target", ["onnx", "torchscript"])
@pytest.mark.parametrize(("smallest", "largest"), [(0, MATRIX + 8), (MATRIX - 8, 10**6)])
def test_network_that_decides_by_the_size_of_images(
    smallest: int, largest: int, target: str, tmp_path: Path
) -> None:
    """Its graph would be that of one side of the decision, and go on beyond it."""
    module = Sized(smallest, largest)
    with pytest.raises(ExportError, match="decides by the size of its images"):
        ke.export(module, target=target, for_mask=lines(), matrix="any", out=tmp_path / "no")
    assert not (tmp_path / "no").exists()
    never = Sized(0, 10**6)
    made = ke.export(never, target=target, for_mask=lines(), matrix="any", out=tmp_path / "yes")
    assert made.free is not None


def test_network_that_is_written_for_its_matrix(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="other sizes than 32 x 32"):
        ke.export(Fixed(), target="onnx", for_mask=lines(), matrix="any", out=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_tensorrt_has_a_profile_of_matrices(weights: Path, tmp_path: Path) -> None:
    recipe = ExportRecipe(target="trt", any_matrix=True)
    made = export_model(weights, recipe, tmp_path / "bundle").path
    profile = json.loads((made / "profile.json").read_text())
    assert profile == {
        "zero_filled": [[1, 1, n, n] for n in (16, 32, 64)],
        "operator": [[n, n] for n in (16, 32, 64)],
    }
    assert "--maxShapes=zero_filled:1x1x64x64,operator:64x64" in (made / "README.md").read_text()


@pytest.mark.nightly
def test_true_sizes_through_one_bundle(tmp_path: Path) -> None:
    made = ke.export(
        "dccnn-d3c5@brain-any-mask", target="onnx", matrix="any", out=tmp_path / "bundle"
    )
    with Pipeline(made.path) as pipeline, Pipeline(
        ke.models.shipped_networks()["dccnn-d3c5@brain-any-mask"].path, any_matrix=True
    ) as reference:  # fmt: skip
        for matrix in ((192, 192), (240, 240), (256, 208), (320, 320)):
            given = scan(matrix, redrawn(pipeline.reads.mask, *matrix))
            ours = pipeline.images(pipeline.prepare(given))
            assert close(ours, reference.images(reference.prepare(given)))
