"""Networks of k-space: what they are given, what is wrong with one, and that they are taught."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import kdmri_edge as ke
from kdmri_edge.bring.network import bring, bring_checkpoint, tried
from kdmri_edge.data.case import Case, Undersampling, coil_sets, simulated_case
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.distillation.batches import TrainingSlices
from kdmri_edge.distillation.recipe import DistillRecipe, overridden
from kdmri_edge.errors import BackendError, DataError, ModelError, RecipeError
from kdmri_edge.models.adapter import adapted, call
from kdmri_edge.models.checkpoint import load_checkpoint
from kdmri_edge.models.network import network_operator
from kdmri_edge.models.permission import allow_code
from kdmri_edge.physics.fourier import kspace_to_image
from kdmri_edge.physics.masks import Mask, variable_density_2d, variable_density_lines
from kdmri_edge.physics.operators import Form
from kdmri_edge.physics.scaling import network_kspace
from kdmri_edge.runtime.inputs import slice_input
from kdmri_edge.runtime.pipeline import Pipeline
from tests.core.mrd.scans import noise_scan, phantom_scan
from tests.drawing import draw

NETWORKS = Path(__file__).resolve().parents[1] / "kspace_networks.py"
MASK = variable_density_lines(32, 3, centre_lines=6, seed=3)
Cli = Callable[..., Any]
SMALL = (
    *("teacher_steps=2", "imitation_steps=2", "batches.size=2", "phantom_volumes=3"),
    *("phantom_slices=2", "optim.warmup=1", "validate_every=2"),
)


@pytest.fixture(autouse=True)
def _memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("KDMRI_EDGE_CODE", "")
    monkeypatch.chdir(tmp_path)


def named(factory: str) -> str:
    return f"{NETWORKS}:{factory}"


def checkpoint(factory: str = "MONAI", mask: Mask = MASK) -> Path:
    torch.manual_seed(0)
    torch.save(call(allow_code(named(factory))).state_dict(), "weights.pt")
    return bring_checkpoint(named(factory), weights="weights.pt", mask=mask)


def in_their_layout(kspace: NDArray[Any], mask: Mask) -> tuple[torch.Tensor, torch.Tensor]:
    """What fastMRI's own data loader would hand to its network."""
    turned = np.fft.fftshift(np.swapaxes(kspace, -2, -1), axes=(-2, -1))
    lines = np.fft.fftshift(mask.samples).reshape(1, 1, 1, -1, 1)
    given = torch.view_as_real(torch.from_numpy(np.ascontiguousarray(turned)))
    return given, torch.from_numpy(lines)


class TestConventions:
    @pytest.mark.parametrize(("height", "width"), [(32, 32), (31, 32), (32, 27), (33, 35)])
    @pytest.mark.parametrize("factory", ["FastMRI", "MONAI", "Counted"])
    def test_a_module_is_given_its_own_layout(self, factory: str, height: int, width: int) -> None:
        samples = np.zeros(height, np.bool_)
        samples[[0, 1, 2, -1, -2, -3, 5, 9, -6, -11]] = True
        mask = Mask(samples=samples, name="six lines and four more")
        scan = noise_scan(slices=2, coils=3, height=height, width=width, mask=mask)
        torch.manual_seed(0)
        module = call(allow_code(named(factory)))
        network = adapted(module, "own").network
        scale = np.ones(2, np.float32)
        x_u = torch.from_numpy(network_kspace(scan.kspace, scale))
        spec = bring(named(factory))
        operator = network_operator(spec, mask, Form.PROJECTION)
        theirs, lines = in_their_layout(scan.kspace, mask)
        count = [6] if factory == "Counted" else []
        with torch.no_grad():
            wanted = module(theirs, lines, *count)
            found = network(x_u, operator)
        assert found.shape == (2, 1, height, width)
        torch.testing.assert_close(found[:, 0], wanted.transpose(1, 2), rtol=0, atol=1e-5)

    def test_an_image_of_one_channel_is_taken_as_well(self) -> None:
        Path("own.py").write_text(
            "import torch\nfrom torch import nn\n"
            "class Net(nn.Conv2d):\n"
            "    def __init__(self): super().__init__(1, 1, 3, padding=1)\n"
            "    def forward(self, masked_kspace, mask):\n"
            "        k = torch.fft.ifftshift(torch.view_as_complex(masked_kspace), dim=(-2, -1))\n"
            "        return super().forward(torch.fft.ifft2(k).abs().sum(1, keepdim=True))\n"
        )
        spec = tried(bring("own.py:Net"), MASK, 32)
        assert spec.convolutions == 9 * 32**2
        assert spec.channels == 1


class TestTrial:
    @pytest.mark.parametrize(
        ("forward", "said"),
        [
            ("return x", "returned complex numbers [2, 1, 32, 32]"),
            ("return x.abs()[..., :16]", "returned [2, 1, 32, 16]"),
            ("return torch.view_as_real(x)[:, 0]", "returned [2, 32, 32, 2]"),
            ("return x.abs() * float('nan')", "NaN or infinite"),
            ("return x.abs().detach()", "cannot be trained"),
            ("masked_kspace *= 2; return x.abs()", None),
            ("return (x.abs(), mask)", "returned a tuple of 2"),
            ("return x.abs() + mask.flatten()[:7]", "fails on a phantom"),
        ],
    )
    def test_a_wrong_convention_is_found(self, forward: str, said: str | None) -> None:
        Path("own.py").write_text(
            "import torch\nfrom torch import nn\n"
            "class Net(nn.Conv2d):\n"
            "    def __init__(self): super().__init__(2, 2, 3, padding=1)\n"
            "    def forward(self, masked_kspace, mask):\n"
            "        x = torch.view_as_complex(masked_kspace).sum(1, keepdim=True)\n"
            "        y = super().forward(torch.cat((x.real, x.imag), 1))\n"
            "        x = torch.complex(y[:, :1], y[:, 1:])\n"
            f"        {forward}\n"
        )
        brought = bring("own.py:Net")
        if said is None:  # it has a copy, in its own layout
            tried(brought, MASK, 32)
            return
        with pytest.raises(ModelError) as caught:
            tried(brought, MASK, 32)
        assert said in caught.value.what
        assert "\n" not in str(caught.value)

    def test_what_was_expected_and_what_came(self) -> None:
        Path("own.py").write_text(
            "from torch import nn\n"
            "class Net(nn.Conv2d):\n"
            "    def __init__(self): super().__init__(3, 3, 3, padding=1)\n"
            "    def forward(self, masked_kspace, mask):\n"
            "        return super().forward(masked_kspace[..., 0])\n"
        )
        with pytest.raises(ModelError) as caught:
            tried(bring("own.py:Net"), MASK, 32)
        assert str(caught.value) == (
            "own.py:Net was given masked k-space [2, 3, 32, 32, 2] (float32, zero frequency in the"
            " middle) and the mask [1, 1, 1, 32, 1] (bool), and has to return a magnitude image"
            " [2, 32, 32] in float32; it returned [2, 3, 32, 32]. Change what it returns, name"
            " another convention, or write an adapter; see docs/tutorials/bring-a-network.md."
        )

    def test_masks_of_points(self) -> None:
        mask = variable_density_2d((32, 32), 3, centre=8, seed=1)
        with pytest.raises(ModelError, match="masks of whole lines"):
            tried(bring(named("MONAI")), mask, 32)

    def test_an_adapter_reads_k_space(self) -> None:
        """In this library's own layout, with a mask of any kind."""
        Path("own.py").write_text(
            "import torch\nfrom torch import nn\n"
            "from kdmri_edge.models import Adapter, InputKind\n"
            "class Own(Adapter):\n"
            "    reads = InputKind.KSPACE\n"
            "    has_data_consistency = True\n"
            "    def forward(self, x_u, operator, maps=None):\n"
            "        k = torch.complex(x_u[:, :, 0], x_u[:, :, 1]) * operator\n"
            "        image = torch.fft.fftshift(torch.fft.ifft2(k, norm='ortho'), dim=(-2, -1))\n"
            "        return self.module(image.abs().square().sum(1, keepdim=True).sqrt())\n"
            "def own(): return Own(nn.Conv2d(1, 1, 3, padding=1))\n"
        )
        for mask in (MASK, variable_density_2d((32, 32), 3, centre=8, seed=1)):
            spec = tried(bring("own.py:own"), mask, 32)
            assert spec.reads == "kspace"


class TestInput:
    def test_coils_are_compressed_and_the_image_is_their_root_sum_of_squares(self) -> None:
        scan = phantom_scan(MASK, coils=6)
        with Pipeline(checkpoint(), threads=1) as pipeline:
            reads = pipeline.reads
            given = slice_input(scan.kspace[0], MASK, reads)
            assert given.kspace is not None
            np.testing.assert_array_equal(given.kspace, scan.kspace[0])  # six of at most eight
            images = kspace_to_image(scan.kspace[0])
            wanted = np.sqrt((np.abs(images) ** 2).sum(0))
            np.testing.assert_allclose(given.zero_filled, wanted, rtol=1e-5)
            many = phantom_scan(MASK, coils=12).kspace[0]
            fewer = slice_input(many, MASK, reads)
            assert fewer.kspace is not None
            assert fewer.kspace.shape == (8, 32, 32)
            assert not fewer.kspace[:, ~MASK.samples].any()
            lost = 1 - np.linalg.norm(fewer.kspace) / np.linalg.norm(many)
            assert 0 <= lost < 1e-3
            with pytest.raises(DataError, match="no coil sensitivities"):
                slice_input(many, MASK, reads, maps=np.ones_like(many))

    def test_the_image_is_in_the_unit_of_k_space_and_blank_slices_stay_blank(self) -> None:
        scan = phantom_scan(MASK, slices=3)
        kspace = scan.kspace.copy()
        kspace[1] = 0
        with ke.load(checkpoint("FastMRI"), backend="torch", threads=1) as network:
            image = network.reconstruct(kspace, mask=MASK)
            louder = network.reconstruct(1e6 * kspace, mask=MASK)
        assert image.shape == (3, 32, 32)
        assert image.dtype == np.float32
        assert not image[1].any()
        assert image[0].any()
        np.testing.assert_allclose(louder, 1e6 * image, rtol=1e-4)

    def test_images_are_no_input_of_such_a_network(self, cli: Cli) -> None:
        weights = checkpoint()
        np.save("image.npy", np.ones((1, 32, 32), np.complex64))
        arguments = ("run", weights, "image.npy", "-o", "out.npy", "--no-cache")
        cli(*arguments).check_refusal("reads k-space of several coils")

    def test_a_session_is_given_the_right_kind(self) -> None:
        with Pipeline(checkpoint(), threads=1) as pipeline, pytest.raises(BackendError):
            pipeline.session.run(np.zeros((1, 1, 32, 32), np.float32))


class TestTraining:
    @pytest.fixture
    def case(self) -> Case:
        spec = tried(bring(named("MONAI")), MASK, 32)
        return Undersampling(spec, MASK, 32, 5).case(phantom_volume(5, slices=4, matrix=32))

    def test_k_space_is_made_anew_and_is_what_the_zero_filled_image_is_of(self, case: Case) -> None:
        assert case.reception is not None
        kspace = case.reception.kspace()
        assert kspace.shape == (4, 8, 32, 32)
        assert not kspace[:, :, ~MASK.samples].any()
        images = kspace_to_image(kspace)
        wanted = np.sqrt((np.abs(images) ** 2).sum(1))
        np.testing.assert_allclose(case.zero_filled, wanted, atol=1e-5 * wanted.max())
        assert case.target.dtype == np.float32
        np.testing.assert_array_equal(case.reception.kspace(), kspace)  # the same noise
        part = case.network_input(slice(1, 3))
        assert part.shape == (2, 8, 2, 32, 32)
        found = part[:, :, 0] + 1j * part[:, :, 1]
        scale = case.scale[1:3, None, None, None]
        np.testing.assert_allclose(found * scale, kspace[1:3], atol=1e-5 * np.abs(kspace).max())

    def test_sense_and_k_space_are_of_one_measurement(self) -> None:
        """The k-space behind a SENSE network's image, for a teacher that reads it."""
        mask = variable_density_lines(32, 1.2, centre_lines=24, seed=3)
        maps = coil_sets(32, 32, seed=1, coils=3, sets=2)
        case = simulated_case(phantom_volume(5, slices=4, matrix=32), mask, seed=0, maps=maps)
        slices = TrainingSlices.from_cases([case])
        numbers = [0, len(slices.target) - 1]
        kspace, sensitivities = slices.kspace_of(numbers), slices.maps_of(numbers)
        assert sensitivities is not None
        combined = (sensitivities.conj() * kspace_to_image(kspace)).sum(1)
        np.testing.assert_allclose(combined, slices.zero_filled[numbers], atol=1e-5)

    def test_batches_hold_k_space_of_whole_slices(self, case: Case) -> None:
        slices = TrainingSlices.from_cases([case])
        settings = ("batches.size=2", "batches.strip=32")
        made = overridden(DistillRecipe(name="tiny"), settings)
        x_u, target = draw(slices, made, step=3, whole=True, flip=False)
        assert x_u.shape == (2, 8, 2, 32, 32)
        assert target.shape == (2, 1, 32, 32)
        images = kspace_to_image(np.asarray(x_u[:, :, 0] + 1j * x_u[:, :, 1]))
        largest = np.sqrt((np.abs(images) ** 2).sum(1)).max((1, 2))
        np.testing.assert_allclose(largest, 1, rtol=1e-4)
        halves = [
            draw(slices, made, step=3, whole=True, flip=False, rank=rank, world=2)[0]
            for rank in range(2)
        ]
        torch.testing.assert_close(torch.cat(halves), x_u)

    def test_one_is_distilled_into_another_and_exported(self) -> None:
        run = ke.distill(
            teacher=named("FastMRI?width=6"), student=named("MONAI?width=3&cascades=1"),
            data="phantom", matrix=32, acceleration=1.25, assignments=SMALL, baseline=False,
            accelerator="cpu", threads=1, out="run",
        )  # fmt: skip
        student = load_checkpoint(run.student.path)
        assert student.spec.reads == "kspace"
        assert student.training["simulation"]["coils"] == 8
        bundle = ke.export(run.student, target="onnx", coils=3, out="bundle")
        scan = phantom_scan(student.mask)
        with ke.load(bundle, threads=1) as exported:
            found = exported.reconstruct(scan)
        with ke.load(run.student.path, backend="torch", threads=1) as eager:
            wanted = eager.reconstruct(scan)
        np.testing.assert_allclose(found, wanted, atol=1e-4 * wanted.max())

    def test_one_teaches_a_network_of_another_input(self) -> None:
        run = ke.distill(
            teacher=named("FastMRI"), student="dccnn-d3c5-sense", data="phantom", matrix=32,
            acceleration=1.25, assignments=SMALL, recipe="imitation", baseline=False,
            accelerator="cpu", threads=1, out="run",
        )  # fmt: skip
        assert load_checkpoint(run.teacher.path).spec.reads == "kspace"
        assert load_checkpoint(run.student.path).spec.reads == "sense"

    @pytest.mark.parametrize("assignment", ["batches.masks=lines", "batches.noise=0.1"])
    def test_masks_and_noise_of_other_networks_are_refused(self, assignment: str) -> None:
        with pytest.raises(RecipeError):
            ke.distill(
                teacher=named("MONAI"), student=named("MONAI?width=2"), data="phantom", matrix=96,
                assignments=(*SMALL, assignment), out="run", threads=1, accelerator="cpu",
            )  # fmt: skip
