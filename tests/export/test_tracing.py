"""Networks are traced with constants whose values they may look at."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdmri_edge.errors import ExportError
from kdmri_export.passes.tracing import trace


class Walks(nn.Module):
    """Finds the centre lines of a mask by their values, and walks over it in a loop."""

    def forward(self, kspace: Tensor, mask: Tensor, padding: int = 0) -> Tensor:
        lines = mask[0, 0].to(torch.int8)
        middle = len(lines) // 2
        left, right = lines[:middle].flip(0).argmin(), lines[middle:].argmin()
        count = torch.max(2 * torch.min(left, right), torch.ones_like(left))
        start = int(torch.div(len(lines) - count + 1, 2, rounding_mode="trunc"))
        centre = torch.zeros_like(kspace)
        centre[..., start : start + int(count)] = kspace[..., start : start + int(count)]
        first = 0
        while not mask[0, 0, first]:
            first += 1
        if torch.sum(torch.tensor([padding, 0])) != 0:
            centre = nn.functional.pad(centre, (padding, padding))
        return torch.where(mask, centre, kspace[..., first : first + 1])


def mask_of(width: int, centre: int, offset: int) -> Tensor:
    lines = torch.arange(width)
    return ((lines % 3 == offset) | ((lines - width // 2).abs() <= centre)).view(1, 1, width)


@pytest.mark.parametrize("mask", [mask_of(12, 1, 0), mask_of(13, 2, 2)])
def test_a_bound_mask_may_be_looked_at(mask: Tensor) -> None:
    batch = torch.export.Dim("batch", min=1)
    kspace = torch.randn(2, 5, mask.shape[-1])
    program = trace(
        Walks(), (kspace,), constants={"mask": mask}, dynamic_shapes={"kspace": {0: batch}}
    )
    assert program.graph_signature.user_inputs == ("kspace",)
    kspace = torch.randn(3, 5, mask.shape[-1])
    torch.testing.assert_close(program.module()(kspace), Walks()(kspace, mask))


def test_a_mask_that_is_an_input_may_not() -> None:
    with pytest.raises(ExportError) as raised:
        trace(Walks(), (torch.randn(2, 5, 12), mask_of(12, 1, 0)))
    assert "decides by values of its inputs" in raised.value.what
    assert __file__ in raised.value.what
    assert "start = int(" in raised.value.what
    assert "as a constant" in raised.value.remedy


def test_what_is_made_of_inputs_is_no_constant() -> None:
    class Fills(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            pair = torch.tensor([0.0, 0.0])
            pair[0] = x.mean()
            return x * pair[0]

    x = torch.randn(3)
    program = trace(Fills(), (x,))
    for given in (x, x + 1):
        torch.testing.assert_close(program.module()(given), Fills()(given))


class Noisy(nn.Module):
    """Adds noise that a generator draws: its own, or one that is made for each image."""

    def __init__(self, held: bool) -> None:
        super().__init__()
        self.held = held
        self.random = torch.Generator()
        self.random.manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        generator = self.random if self.held else torch.Generator()
        return x + torch.randn(x.shape, generator=generator)


@pytest.mark.parametrize("held", [True, False])
def test_a_generator_of_random_numbers_is_called_so(held: bool) -> None:
    with pytest.raises(ExportError) as raised:
        trace(nn.Sequential(Noisy(held)), (torch.ones(1, 4),))
    assert "draws random numbers from a torch.Generator" in raised.value.what
    assert "torch.randn(x.shape, generator=generator)" in raised.value.what
    assert "lifted" not in str(raised.value)
    assert "buffer" in raised.value.remedy


class Dropping(Noisy):
    """Draws in training alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else 2 * x


def test_a_generator_that_evaluation_does_not_use_is_no_fault() -> None:
    x = torch.ones(1, 4)
    assert torch.equal(trace(Dropping(held=True).eval(), (x,)).module()(x), 2 * x)


def test_values_of_an_input_in_a_constant_are_refused() -> None:
    class Fills(nn.Module):
        def forward(self, x: Tensor, table: Tensor) -> Tensor:
            table[0] = x.mean()
            return x * table[0]

    with pytest.raises(ExportError, match="into a constant"):
        trace(Fills(), (torch.randn(3),), constants={"table": torch.zeros(2)})


def test_an_unknown_constant_is_named() -> None:
    with pytest.raises(ExportError, match=r"no argument 'masks'.*kspace, mask, padding"):
        trace(Walks(), (torch.randn(2, 5, 12),), constants={"masks": mask_of(12, 1, 0)})


def test_a_size_that_the_network_fixes_is_told() -> None:
    class Fixes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, 3) * 2

    shapes = ({0: torch.export.Dim("batch", min=1)},)
    with pytest.raises(ExportError, match="fixes the size"):
        trace(Fixes(), (torch.randn(2, 3),), dynamic_shapes=shapes)


def test_attributes_written_while_running_are_told() -> None:
    class Remembers(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.last = x * 2
            return self.last + 1

    with pytest.raises(ExportError, match="own attributes"):
        trace(Remembers(), (torch.randn(2, 3),))


def test_any_other_failure_is_one_sentence_with_the_line() -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x  # of the wrong shape

    with pytest.raises(ExportError, match=r"cannot trace.*line \d+ of .*of the wrong shape"):
        trace(Wrong(), (torch.randn(2, 3),))


class Words(nn.Module):
    """Parts are called by words of Python, as in deepinv's unrolled networks."""

    def __init__(self) -> None:
        super().__init__()
        weights = nn.ParameterList([torch.tensor(2.0), torch.tensor(3.0)])
        self.params = nn.ParameterDict({"lambda": weights, "else": torch.tensor(5.0)})
        self.add_module("with", nn.Linear(2, 2, bias=False))
        self.register_buffer("in", torch.tensor(7.0), persistent=False)
        self.with_ = 11.0

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.params["lambda"]
        taken = dict(self.params.items())
        made: Tensor = getattr(self, "with")(x * first + second) * taken["else"]
        return made + getattr(self, "in") * self.with_


def test_parts_called_by_words_of_python_get_other_names() -> None:
    """The exporter writes programs as Python source; the network itself stays as it is."""
    network, x = Words(), torch.randn(3, 2)
    names = list(network.state_dict())
    program = trace(network, (x,))
    torch.testing.assert_close(program.module()(x), network(x))
    assert list(network.state_dict()) == names
    assert type(network) is Words
    found = {name for name, _ in program.named_parameters()}
    assert found == {"params.lambda_.0", "params.lambda_.1", "params.else_", "with__.weight"}


def test_keys_called_by_words_of_python_are_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"lambda": nn.Linear(2, 2)})

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.parts["lambda"](x)
            return made

    with pytest.raises(
        ExportError, match=r"parts\.lambda\.weight of the network .* word of Python"
    ):
        trace(Net(), (torch.ones(2),))
