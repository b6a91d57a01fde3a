"""What every export target has to do, written once: a new target inherits it."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kdmri_edge.errors import BackendError, ExportError
from kdmri_edge.models.protocol import NetworkSpec
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.operators import Form
from kdmri_edge.runtime.deviation import compare, tolerance_for
from kdmri_edge.runtime.scope import FreeSizes
from kdmri_edge.runtime.session import Session
from kdmri_edge.runtime.targets import TARGETS, Target
from kdmri_edge.utils.extras import load_attribute as load
from kdmri_export.recipe import ExportRecipe
from tests.export.networks import COILS, UnetSpec, lines, maps, network, points, spec

Case = tuple[NetworkSpec, Mask, Form | None, tuple[int, int]]

small = partial(spec, cascades=2)  # of nodes made by cascade, one that begins and one that ends

# name -> architecture, mask, form, (H, W); line masks serve any readout length.
CASES: dict[str, Case] = {
    "magnitude": (small(), lines(), None, (32, 24)),
    "magnitude, odd": (small(), lines(31), None, (31, 25)),
    "magnitude, noise weight, odd": (small(noise_weight=2.0), lines(31), None, (31, 25)),
    "complex": (small(channels=2), lines(31), None, (31, 24)),
    "magnitude, DFT": (small(), lines(31), Form.DFT, (31, 25)),
    "magnitude, 2-D mask": (small(), points(32, 24), None, (32, 24)),
    "complex, 2-D mask, odd": (small(channels=2), points(31, 25), None, (31, 25)),
    "magnitude, FFT": (small(), lines(), Form.FFT, (32, 24)),
    "complex, FFT, 2-D mask, odd": (small(channels=2), points(31, 25), Form.FFT, (31, 25)),
    "sense": (small(channels=2, coils=True), lines(acceleration=1.5), None, (32, 24)),
    "sense, few lines, odd": (
        small(channels=2, coils=True, noise_weight=2.0, solver_steps=3),
        lines(31),
        None,
        (31, 25),
    ),
    "sense, DFT": (small(channels=2, coils=True), lines(31), Form.DFT, (31, 25)),
    "sense, 2-D mask, odd": (small(channels=2, coils=True), points(31, 25), None, (31, 25)),
    "sense, FFT, 2-D mask": (small(channels=2, coils=True), points(32, 24), Form.FFT, (32, 24)),
    "carried maps, odd": (small(carried=3), lines(31), None, (31, 25)),
    "carried maps, half size": (small(carried=3, shuffle=2), lines(), None, (32, 24)),
    "carried maps, half size, complex": (
        small(carried=3, shuffle=2, channels=2, noise_weight=2.0),
        lines(),
        None,
        (32, 24),
    ),
    "carried maps, half size, 2-D mask": (
        small(carried=3, shuffle=2),
        points(32, 24),
        None,
        (32, 24),
    ),
    "carried maps, half size, sense": (
        small(carried=3, shuffle=2, channels=2, coils=True, solver_steps=4),
        lines(),
        None,
        (32, 24),
    ),
    "super-resolution": (small(kind="vdsr"), lines(), None, (32, 24)),
    "super-resolution, half size": (small(kind="vdsr", shuffle=2), lines(), None, (32, 24)),
    "U-Net": (UnetSpec(), lines(), None, (32, 24)),
}
# One of each form, of each kind of mask and of each kind of input, at odd sizes where they go.
EVERY_TIME = (
    "magnitude", "magnitude, noise weight, odd", "magnitude, DFT", "complex, 2-D mask, odd",
    "complex, FFT, 2-D mask, odd", "sense, few lines, odd", "carried maps, half size",
    "super-resolution", "U-Net",
)  # fmt: skip
GRAPH = "test_graph_gives_what_pytorch_gives_at_every_input_scale"
AS_ONNX = {
    GRAPH: (
        "magnitude, noise weight, odd", "magnitude, DFT", "complex, 2-D mask, odd",
        "super-resolution",
    ),
    "test_every_precision_of_the_graph": ("U-Net",),
    "test_one_graph_serves_other_masks": ("complex, 2-D mask, odd", "sense, few lines, odd"),
    "test_one_graph_serves_other_matrices": ("complex, 2-D mask, odd",),
    "test_dynamic_graph_takes_any_batch": ("sense",),
}  # fmt: skip
"""For `at_night`: most of what takes long, of targets that are given the graphs of `onnx`."""

SENSE = [name for name in CASES if "sense" in name]


def some(names: Iterable[str], every_time: Collection[str]) -> list[Any]:
    """Return parameters: those named `every_time` for every change, the others at night."""
    return [
        pytest.param(name, marks=() if name in every_time else pytest.mark.nightly)
        for name in names
    ]


def images(batch: int, channels: int, size: tuple[int, int]) -> NDArray[np.float32]:
    drawn = np.random.default_rng(batch).standard_normal((batch, channels, *size))
    return drawn.astype(np.float32)


def pytorch(
    reconstructor: Reconstructor, x_u: NDArray[np.float32], coils: int = COILS
) -> NDArray[np.float32]:
    further = {}
    if reconstructor.spec.coils:
        further["maps"] = torch.from_numpy(maps(len(x_u), x_u.shape[2:], coils))
    with torch.inference_mode():
        result: NDArray[np.float32] = reconstructor(torch.from_numpy(x_u), **further).numpy()
    return result


@cache
def exported(recipe: ExportRecipe, name: str) -> tuple[Reconstructor, dict[str, bytes]]:
    """Export a case, once: the exporters take most of the time of these tests."""
    architecture, mask, form, size = CASES[name]
    row = recipe.row
    reconstructor = network(architecture, mask, form, size, any_mask=recipe.mask_input)
    example = torch.from_numpy(images(1, architecture.channels, size))
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / row.graph_file
        load(row.exporter)(reconstructor, example, graph, recipe)
        return reconstructor, {file.name: file.read_bytes() for file in Path(folder).iterdir()}


class ParityCases:
    """Inherit and set `target`, and what it refuses.

    Cases with `refuses` in their name are left out of the other tests (`conftest.py`).

    Attributes:
        target: Name of the target.
        refuses: What stands in the names of cases that it refuses, such as a form of data
            consistency.
        refusal: What stands in its message then.
        takes_masks: Whether a mask can be the input of its graphs.
        takes_batches: Whether they can take any batch.
        in_float: Cases that it has no integer kernels for.
        at_night: By the names of tests, cases that wait for the night, as its graphs are another
            target's, which is given them for every change.
        keep_op: Whether data consistency is kept as one node.
        options: Further settings of its exports.
    """

    target: ClassVar[str]
    refuses: ClassVar[str] = "no case has this in its name"
    refusal: ClassVar[str] = "node"
    takes_masks: ClassVar[bool] = True
    takes_batches: ClassVar[bool] = True
    in_float: ClassVar[Collection[str]] = ()
    at_night: ClassVar[Mapping[str, Collection[str]]] = {}
    keep_op: ClassVar[bool] = False
    options: ClassVar[Mapping[str, Any]] = {}

    @property
    def row(self) -> Target:
        return TARGETS[self.target]

    def write(
        self,
        name: str,
        folder: Path,
        *,
        dynamic: bool = False,
        precision: str = "f32",
        mask_input: bool = False,
        any_matrix: bool = False,
    ) -> tuple[Reconstructor, Path]:
        """Put an exported case into a folder; return the network and its graph."""
        recipe = ExportRecipe(
            target=self.target,
            batch="dynamic" if dynamic else "1",
            # bf16 is what a float32 graph is run in
            precision=ExportRecipe(target=self.target, precision=precision).written,
            mask_input=mask_input,
            any_matrix=any_matrix,
            keep_op=self.keep_op,
            coils=COILS,
            **self.options,
        )
        reconstructor, files = exported(recipe, name)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        return reconstructor, folder / self.row.graph_file

    def open(self, graph: Path, precision: str = "f32") -> Session:
        session: Session = load(self.row.checker.session)(graph, precision=precision, threads=1)
        return session

    def check(
        self,
        reconstructor: Reconstructor,
        session: Session,
        x_u: NDArray[np.float32],
        precision: str = "f32",
        coils: int = COILS,
        operator: NDArray[np.float32] | None = None,
    ) -> None:
        reference = pytorch(reconstructor, x_u, coils)
        given = None
        if reconstructor.spec.coils:
            session.sense = True
            session.coils = None if self.row.any_coils else COILS
            given = maps(len(x_u), x_u.shape[2:], coils)
        output = session.run(x_u, operator=operator, maps=given)
        assert output.dtype == np.float32
        assert output.shape == x_u.shape
        _, tolerance = tolerance_for(precision, reconstructor.form)
        assert not compare(output, reference).exceeded(tolerance)

    @pytest.mark.parametrize("name", some(CASES, EVERY_TIME))
    def test_graph_gives_what_pytorch_gives_at_every_input_scale(
        self, name: str, tmp_path: Path
    ) -> None:
        reconstructor, graph = self.write(name, tmp_path)
        session = self.open(graph)
        architecture, _, _, size = CASES[name]
        for scale in (0.01, 1.0, 100.0):
            x_u = images(1, architecture.channels, size) * np.float32(scale)
            self.check(reconstructor, session, x_u)
        # nothing of one call may leak into the next
        again = images(1, architecture.channels, size)
        given = maps(1, again.shape[2:], COILS) if architecture.coils else None
        first = session.run(again, maps=given)
        np.testing.assert_array_equal(first, session.run(again, maps=given))

    @pytest.mark.parametrize(
        "name",
        some(
            [
                "magnitude", "complex", "sense", "carried maps, odd", "carried maps, half size",
                "super-resolution", "U-Net",
            ],
            # super-resolution has layers of the first case alone
            ["magnitude", "carried maps, half size", "U-Net"],
        ),
    )  # fmt: skip
    def test_every_precision_of_the_graph(self, name: str, tmp_path: Path) -> None:
        architecture, _, _, size = CASES[name]
        for precision in self.row.precisions:
            if precision == "int8" and name in self.in_float:
                continue
            folder = tmp_path / precision
            folder.mkdir()
            reconstructor, graph = self.write(name, folder, precision=precision)
            whole = precision == "int8"  # integers have one range: that of normalised images
            asked = ExportRecipe(target=self.target, precision=precision).executed
            if asked not in (*load(self.row.checker.session).precisions_here(), "int8"):
                continue  # a CPU without bf16
            session = self.open(graph, precision=asked)
            executed = session.info.precision_executed
            assert precision == "f16" or precision in executed
            # signed graphs for TensorRT are checked in a runtime that computes them in float
            assert precision != "int8" or self.target == "trt" or "int8 in 0/" not in executed
            for scale in (1.0,) if whole else (0.01, 1.0, 100.0):
                x_u = images(1, architecture.channels, size) * np.float32(scale)
                self.check(reconstructor, session, x_u, precision)

    @pytest.mark.parametrize(
        "name",
        some(
            [
                "magnitude", "complex", "magnitude, DFT", "complex, 2-D mask, odd",
                "sense, few lines, odd", "sense, 2-D mask, odd",
            ],
            ["magnitude", "complex, 2-D mask, odd", "sense, few lines, odd"],
        ),
    )  # fmt: skip
    def test_one_graph_serves_other_masks(self, name: str, tmp_path: Path) -> None:
        if not self.takes_masks:
            with pytest.raises(ExportError):
                self.write(name, tmp_path, mask_input=True)
            return
        reconstructor, graph = self.write(name, tmp_path, mask_input=True)
        session = self.open(graph)
        architecture, mask, _, size = CASES[name]
        other = lines(size[0], acceleration=2) if mask.is_lines else points(*size, seed=8)
        assert other != mask
        x_u = images(1, architecture.channels, size)
        session.operator = reconstructor.operator.numpy()
        given = maps(1, size, COILS) if architecture.coils else None
        outputs = []
        for chosen in (mask, other, mask):
            bound = Reconstructor(reconstructor.model, chosen, reconstructor.form, any_mask=True)
            operator = bound.operator.numpy()
            self.check(bound, session, x_u, operator=operator)
            outputs.append(session.run(x_u, operator=operator, maps=given))
        # an operator of one call does not stay for the next
        np.testing.assert_array_equal(session.run(x_u, maps=given), outputs[0])
        assert np.abs(outputs[0] - outputs[1]).max() > 1e-2
        np.testing.assert_array_equal(outputs[0], outputs[2])

    @pytest.mark.parametrize(
        "name",
        some(
            [
                "magnitude", "complex", "magnitude, DFT", "complex, 2-D mask, odd",
                "sense, few lines, odd", "sense, 2-D mask, odd", "super-resolution",
            ],
            ["complex", "complex, 2-D mask, odd"],
        ),
    )  # fmt: skip
    def test_one_graph_serves_other_matrices(self, name: str, tmp_path: Path) -> None:
        if self.keep_op or not self.row.any_matrix:
            with pytest.raises(ExportError, match="one matrix"):
                self.write(name, tmp_path, any_matrix=True)
            return
        architecture, mask, _, _ = CASES[name]
        consistent = architecture.has_data_consistency
        reconstructor, graph = self.write(name, tmp_path, mask_input=consistent, any_matrix=True)
        session = self.open(graph)
        session.free = FreeSizes()
        if consistent:
            session.operator = reconstructor.operator.numpy()
        if reconstructor.form is Form.DFT and consistent:
            session.transforms = 1 if mask.is_lines else 2
        for height, width in ((20, 33), (48, 32), (20, 33)):
            other = lines(height) if mask.is_lines else points(height, width)
            bound = Reconstructor(reconstructor.model, other, reconstructor.form, any_mask=True)
            operator = bound.operator.numpy() if consistent else None
            x_u = images(1, architecture.channels, (height, width))
            self.check(bound, session, x_u, operator=operator)
        if consistent:
            with pytest.raises(BackendError, match="another matrix than the images' 32 x 32"):
                session.run(images(1, architecture.channels, (32, 32)), operator=operator)

    @pytest.mark.parametrize(
        "name",
        some(
            [
                "magnitude", "complex, 2-D mask, odd", "magnitude, FFT", "sense",
                "sense, 2-D mask, odd", "U-Net",
            ],
            ["magnitude", "sense"],
        ),
    )  # fmt: skip
    def test_dynamic_graph_takes_any_batch(self, name: str, tmp_path: Path) -> None:
        if not self.takes_batches:
            with pytest.raises(ExportError):
                self.write(name, tmp_path, dynamic=True)
            return
        reconstructor, graph = self.write(name, tmp_path, dynamic=True)
        session = self.open(graph)
        architecture, _, _, size = CASES[name]
        for batch in (1, 3):
            self.check(reconstructor, session, images(batch, architecture.channels, size))

    @pytest.mark.parametrize("name", some(SENSE, ["sense"]))
    def test_graph_of_coils_takes_any_number_or_says_which(self, name: str, tmp_path: Path) -> None:
        reconstructor, graph = self.write(name, tmp_path)
        session = self.open(graph)
        x_u = images(1, 2, CASES[name][3])
        for coils in (1, 2, COILS):
            self.check(reconstructor, session, x_u, coils=coils)
        if self.row.any_coils:
            self.check(reconstructor, session, x_u, coils=COILS + 2)
        else:
            with pytest.raises(BackendError, match="Compress the scan to 3 coils"):
                self.check(reconstructor, session, x_u, coils=COILS + 2)
        with pytest.raises(BackendError, match="no sensitivities"):
            session.run(x_u)

    def test_closed_session_says_so(self, tmp_path: Path) -> None:
        _, graph = self.write("magnitude", tmp_path)
        with self.open(graph) as session:
            session.run(images(1, 1, (32, 24)))
        session.close()  # a second time does nothing
        with pytest.raises(BackendError, match="closed"):
            session.run(images(1, 1, (32, 24)))

    def test_what_is_refused_is_refused_by_name(self) -> None:
        recipe = ExportRecipe(target=self.target, keep_op=self.keep_op, coils=COILS, **self.options)
        for name in CASES:
            if self.refuses in name:
                with pytest.raises(ExportError, match=self.refusal):
                    exported(recipe, name)

    def test_results_of_two_calls_are_separate(self, tmp_path: Path) -> None:
        _, graph = self.write("magnitude", tmp_path)
        session = self.open(graph)
        x_u = images(1, 1, (32, 24))
        first = session.run(x_u)
        kept = first.copy()
        session.run(2 * x_u)
        np.testing.assert_array_equal(first, kept)

    def test_other_matrix_is_refused_with_a_remedy(self, tmp_path: Path) -> None:
        _, graph = self.write("magnitude", tmp_path)
        with pytest.raises(BackendError, match="matrix"):
            self.open(graph).run(images(1, 1, (30, 24)))

    def test_unknown_precision_is_refused(self, tmp_path: Path) -> None:
        _, graph = self.write("magnitude", tmp_path)
        with pytest.raises(BackendError, match="int3"):
            self.open(graph, precision="int3")

    def test_no_path_of_this_machine_travels(self, tmp_path: Path) -> None:
        from kdmri_edge import __file__ as here

        self.write("magnitude", tmp_path)
        telling = {
            tempfile.gettempdir(), str(Path(here).parent), str(Path(torch.__file__).parents[2])
        }  # fmt: skip
        for file in tmp_path.iterdir():
            for path in telling:
                assert path.encode() not in file.read_bytes(), (file.name, path)

    def test_session_tells_what_runs(self, tmp_path: Path) -> None:
        _, graph = self.write("magnitude", tmp_path)
        info = self.open(graph).info
        assert info.backend == self.row.checker.title
        assert info.version[0].isdigit()
        assert info.precision_requested == "f32"
        assert info.precision_executed.partition(" ")[0] == "f32"
        assert info.threads == 1
