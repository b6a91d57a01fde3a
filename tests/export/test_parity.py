"""The gate itself: what it measures, and that it can fail."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kdmri_edge.errors import ParityError
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.operators import Form
from kdmri_edge.runtime.deviation import TOLERANCES, Figures, compare, tolerance_for
from kdmri_edge.runtime.session import Session, SessionInfo
from kdmri_export.parity import check, golden
from tests.export.networks import MATRIX, lines, network, spec
from tests.export.parity_cases import pytorch

Array = NDArray[np.float32]


PYTORCH = SessionInfo(
    backend="PyTorch",
    version="2",
    device="CPU",
    provider="eager",
    threads=1,
    precision_requested="f32",
    precision_executed="f32",
)


class Doctored(Session):
    """PyTorch with something done to its output."""

    info = PYTORCH

    def __init__(self, change, mask: Mask | None = None) -> None:  # type: ignore[no-untyped-def]
        self.network = network(spec(), mask or lines())
        self.change = change

    def run(self, x_u: Array, *, operator: Array | None = None, maps: Array | None = None) -> Array:
        result: Array = self.change(x_u, pytorch(self.network, x_u)).astype(np.float32)
        return result


def gate(session: Doctored, **options: bool) -> dict[str, object]:
    data = golden(session.network.mask, MATRIX, 1)
    return check(session, session.network, data, precision="f32", **options)


def test_equal_outputs_pass() -> None:
    result = gate(Doctored(lambda _, y: y), dynamic=True)
    assert result["passed"] is True
    assert result["figures"] == {"max_error": 0.0, "nrmse": 0.0, "psnr_db": 0.0, "ssim": 0.0}


def test_mask_that_samples_everything_passes() -> None:
    # Target and output then differ by rounding alone, and PSNR may be infinite.
    full = Mask(samples=np.ones(MATRIX, dtype=np.bool_), name="full")
    assert gate(Doctored(lambda _, y: y, full))["passed"] is True


def _off_scale(x_u: Array, y: Array) -> Array:
    return y * 1.01 if np.abs(x_u).max() > 10 else y


def _nan_at_large_input(x_u: Array, y: Array) -> Array:
    return np.full_like(y, np.nan) if np.abs(x_u).max() > 10 else y


@pytest.mark.parametrize(
    "change",
    [
        lambda _, y: y * 1.001,
        lambda _, y: y + 1e-2,
        lambda _, y: np.roll(y, 1, -1),
        lambda _, y: np.full_like(y, np.nan),
        lambda _, y: np.full_like(y, np.inf),
        _off_scale,
        _nan_at_large_input,
    ],
)
def test_wrong_output_fails(change) -> None:  # type: ignore[no-untyped-def]
    with np.errstate(invalid="ignore"), pytest.raises(ParityError, match="does not reproduce"):
        gate(Doctored(change))


def test_what_is_kept_of_pytorch_belongs_to_one_network_and_input() -> None:
    first, other = Doctored(lambda _, y: y), Doctored(lambda _, y: y)
    with torch.no_grad():
        next(other.network.parameters()).mul_(1.01)
    assert gate(first)["passed"] is True
    assert gate(other)["passed"] is True  # against itself, not against what was kept of the first
    data = golden(first.network.mask, MATRIX, 1)
    with pytest.raises(ParityError):
        check(first, other.network, data, precision="f32")
    # another mask, the same weights and images
    masked = network(spec(), lines(acceleration=2))
    masked.load_state_dict(first.network.state_dict())
    with pytest.raises(ParityError):
        check(first, masked, data, precision="f32")


def test_batch_that_mixes_images_fails_where_the_batch_is_free() -> None:
    mixed = Doctored(lambda _, y: y[::-1])
    assert gate(mixed)["passed"] is True  # one image at a time cannot show it
    with pytest.raises(ParityError):
        gate(mixed, dynamic=True)


def test_figures_are_relative_to_the_reference() -> None:
    reference = np.array([0.0, 1.0, 4.0])
    one, thousand = (compare(s * (reference + 0.04), s * reference) for s in (1.0, 1000.0))
    assert one.max_error == pytest.approx(0.01)
    assert one.nrmse == pytest.approx(0.04 / np.sqrt(17 / 3))
    assert thousand.max_error == pytest.approx(one.max_error)
    assert thousand.nrmse == pytest.approx(one.nrmse)


@pytest.mark.parametrize("nan_first", [True, False])
def test_nan_survives_the_maximum(nan_first: bool) -> None:
    good = Figures(max_error=0.0, nrmse=0.0, psnr_db=0.0, ssim=0.0)
    bad = Figures(max_error=float("nan"), nrmse=0.0, psnr_db=0.0, ssim=0.0)
    worst = bad.worst(good) if nan_first else good.worst(bad)
    assert worst.exceeded(TOLERANCES["f32"]) == ["max_error"]


def test_looser_tolerance_is_for_fourier_nodes_alone() -> None:
    assert tolerance_for("f32", Form.PROJECTION)[1] == TOLERANCES["f32"]
    assert tolerance_for("f32", Form.DFT)[1] == TOLERANCES["f32"]
    assert tolerance_for("f32", Form.FFT)[0] == "f32, DFT nodes"
    assert tolerance_for("bf16", Form.FFT)[1] == TOLERANCES["bf16"]
