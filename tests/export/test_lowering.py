"""Data consistency that any module calls, replaced while a graph is traced."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from kdmri_edge.errors import ExportError
from kdmri_edge.physics.consistency import (
    data_consistency,
    operator_tensor,
    sense_consistency,
    sense_operator_tensor,
)
from kdmri_edge.physics.operators import Form
from kdmri_export.passes.data_consistency import Lowering
from kdmri_export.targets.onnx import quiet
from tests.export.networks import lines, maps

HEIGHT = 32


class Mine(nn.Module):
    """Somebody's network: data consistency twice, once through the table of operators."""

    def __init__(self, form: Form = Form.PROJECTION, gains: tuple[float, float] = (1, 1)) -> None:
        super().__init__()
        self.form, self.gains = form, gains
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x_u: Tensor, operator: Tensor) -> Tensor:
        x = data_consistency(
            self.conv(x_u), x_u, operator=operator, gain=self.gains[0], form=self.form.value
        )
        call = torch.ops.kdmri.data_consistency
        made: Tensor = call(x + self.conv(x), x_u, operator, self.gains[1], str(self.form))
        return made


class Coils(nn.Module):
    def forward(self, x_u: Tensor, operator: Tensor, maps: Tensor) -> Tensor:
        x: Tensor = sense_consistency(2 * x_u, x_u, maps, operator, 1.0, "projection")
        return x


def inputs(form: Form = Form.PROJECTION) -> tuple[Tensor, Tensor]:
    return torch.randn(1, 1, HEIGHT, HEIGHT), operator_tensor(lines(HEIGHT), form, 1)


def operators(program: torch.export.ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("form", list(Form))
def test_another_modules_calls_are_spelled_out_in_both_tracers(form: Form) -> None:
    torch.manual_seed(0)
    network, given = Mine(form).eval(), inputs(form)
    with torch.no_grad():
        wanted = network(*given)
        with Lowering() as lowering, quiet():
            program = torch.export.export(network, given, strict=False)
            # the formulas choose by shape, at which the tracer points
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
            traced = torch.jit.trace(network, given, check_trace=False)
        assert not any("kdmri" in name for name in operators(program))
        for made in (program.module()(*given), traced(*given)):
            torch.testing.assert_close(made, wanted, atol=1e-5, rtol=1e-5)
    called = {node.kind() for node in traced.inlined_graph.nodes()}
    assert not any("kdmri" in kind for kind in called)
    assert set(lowering.calls) == {(form, 1.0)}
    assert lowering.only_call() == (form, 1.0)


def test_outside_of_it_the_operator_stays() -> None:
    with torch.no_grad(), quiet():
        program = torch.export.export(Mine().eval(), inputs(), strict=False)
    assert "kdmri.data_consistency.default" in operators(program)


def test_coils_are_spelled_out_and_have_no_node() -> None:
    x_u = torch.randn(1, 2, HEIGHT, HEIGHT)
    given = (x_u, sense_operator_tensor(lines(HEIGHT), Form.PROJECTION), torch.from_numpy(
        maps(1, (HEIGHT, HEIGHT))
    ))  # fmt: skip
    with torch.no_grad(), Lowering(), quiet():
        program = torch.export.export(Coils(), given, strict=False)
    assert not any("kdmri" in name for name in operators(program))
    torch.testing.assert_close(program.module()(*given), Coils()(*given))
    with Lowering(keep=True), pytest.raises(ExportError, match="no node"):
        Coils()(*given)


def test_one_node_stands_for_one_kind_of_data_consistency() -> None:
    with Lowering(keep=True) as lowering, torch.no_grad():
        Mine(gains=(1.0, 0.5)).eval()(*inputs())
    with pytest.raises(ExportError, match="2 kinds of data consistency"):
        lowering.only_call()
    with pytest.raises(ExportError, match="no data consistency"):
        Lowering(keep=True).only_call()
