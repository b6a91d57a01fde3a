"""deepinv's conventions: the physics that its reconstructors are given, and what they are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdmri_edge.bring.network import bring, tried
from kdmri_edge.data.simulation import coil_maps
from kdmri_edge.errors import MaskError, ModelError
from kdmri_edge.models.adapter import adapted
from kdmri_edge.models.code import CodeSpec, Convention
from kdmri_edge.models.deepinv import CoilPhysics, Physics
from kdmri_edge.models.network import Network, network_operator
from kdmri_edge.models.protocol import InputKind, holds_mask
from kdmri_edge.physics.combining import smooth_sensitivities
from kdmri_edge.physics.masks import Mask, variable_density_2d
from kdmri_edge.physics.operators import Form, sampled_kspace, zero_filled

NETWORKS = Path(__file__).resolve().parents[2] / "physics_networks.py"
SIZES = [(32, 32), (31, 24), (24, 33), (15, 15)]


@pytest.fixture(autouse=True)
def _memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("KDMRI_EDGE_CODE", "")
    monkeypatch.chdir(tmp_path)


def named(network: str) -> str:
    return f"{NETWORKS}:{network}"


def lines(height: int) -> Mask:
    samples = np.zeros(height, np.bool_)
    samples[[0, 1, 2, 3, -1, -2, -3, -4, 6, -6]] = True
    return Mask(samples=samples, name="eight lines and two more")


def random(*shape: int) -> NDArray[np.complex64]:
    rng = np.random.default_rng(0)
    parts = rng.standard_normal((2, *shape))
    return (parts[0] + 1j * parts[1]).astype(np.complex64)


def pairs(array: NDArray[Any]) -> Tensor:
    """Complex [B, ..., H, W] as [B, 2, ..., H, W]."""
    return torch.from_numpy(np.stack((array.real, array.imag), 1))


def centred(images: NDArray[Any]) -> NDArray[Any]:
    """The k-space of images, zero frequency in the middle, by numpy."""
    axes = (-2, -1)
    kspace = np.fft.fft2(np.fft.ifftshift(images, axes), axes=axes, norm="ortho")
    return np.fft.fftshift(kspace, axes).astype(np.complex64)


def physics_of(height: int, width: int, coils: int | None) -> Any:
    rng = np.random.default_rng(1)
    mask = torch.from_numpy((rng.random((height, width)) < 0.4).astype(np.float32))
    if coils is None:
        return Physics(mask)
    maps = torch.from_numpy(coil_maps(coils, height, width, seed=1))[None]
    return CoilPhysics(mask, lambda: maps)


def given(convention: str, x_u: Tensor, mask: Mask) -> tuple[Tensor, Any]:
    """What a module is given by a convention."""
    seen: list[Any] = []

    class Net(nn.Conv2d):
        def forward(self, y: Tensor, physics: Any) -> Tensor:  # type: ignore[override]
            seen.extend((y, physics))
            return y if y.dim() == 4 else y[:, :, 0]

    network, spec = _network(Net(2, 2, 1), convention)
    network(x_u, network_operator(spec, mask, Form.PROJECTION))
    return seen[0], seen[1]


def _network(module: nn.Module, convention: str) -> tuple[Network, CodeSpec]:
    found = adapted(module, "own", Convention(convention))
    spec = CodeSpec(
        reference="own.py:Net", sha256="0" * 64, convention=found.convention, reads=found.reads,
        has_data_consistency=True, parameters=1,
    )  # fmt: skip
    found.network.spec = spec
    found.network.form = Form.PROJECTION
    return found.network, spec


class TestPhysics:
    @pytest.mark.parametrize(("height", "width"), SIZES)
    @pytest.mark.parametrize("coils", [None, 3])
    def test_it_is_a_masked_centred_transform_and_its_adjoint(
        self, height: int, width: int, coils: int | None
    ) -> None:
        physics = physics_of(height, width, coils)
        x = random(2, height, width)
        images = x if coils is None else x[:, None] * physics.coil_maps.numpy()
        wanted = pairs(centred(images))
        sampled = physics.mask if coils is None else physics.mask[:, :, None]
        y = physics.A(pairs(x))
        torch.testing.assert_close(y, wanted * sampled, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(physics(pairs(x)), y)
        other = torch.randn_like(y)
        back = physics.A_adjoint(other)
        assert float((y * other).sum()) == pytest.approx(float((pairs(x) * back).sum()), rel=1e-3)
        torch.testing.assert_close(physics.A_vjp(pairs(x), other), back)
        torch.testing.assert_close(physics.A_adjoint_A(pairs(x)), physics.A_adjoint(y))
        torch.testing.assert_close(physics.A_A_adjoint(other), physics.A(back))

    @pytest.mark.parametrize("coils", [None, 4])
    @pytest.mark.parametrize("gamma", [0.5, torch.tensor(1.0), torch.tensor([0.5, 2.0])], ids=str)
    def test_the_proximal_operator_is_where_the_gradient_vanishes(
        self, coils: int | None, gamma: Any
    ) -> None:
        physics = physics_of(16, 18, coils)
        y, z = physics.A(pairs(random(2, 16, 18))), torch.randn(2, 2, 16, 18)
        weight = torch.as_tensor(gamma).reshape(-1, 1, 1, 1)
        for start, value in ((z, z), (None, 0 * z), (0.25, 0.25 + 0 * z)):
            x = physics.prox_l2(start, y, gamma)
            slope = weight * physics.A_adjoint(physics.A(x) - y) + x - value
            assert float(slope.abs().max()) < 1e-4

    def test_more_steps_where_the_network_asks_for_them(self) -> None:
        physics = physics_of(16, 16, 4)
        y, z = physics.A(pairs(random(1, 16, 16))), torch.randn(1, 2, 16, 16)

        def slope(**options: Any) -> float:
            x = physics.prox_l2(z, y, 50.0, **options)
            return float((50 * physics.A_adjoint(physics.A(x) - y) + x - z).abs().max())

        assert slope(max_iter=40) < 1e-2 < slope(max_iter=3)

    def test_the_pseudo_inverse_undoes_what_was_sampled(self) -> None:
        physics = physics_of(12, 14, None)
        physics.update(mask=0.5 * physics.mask)
        y = physics.A(torch.randn(2, 2, 12, 14))
        torch.testing.assert_close(physics.A(physics.A_dagger(y)), y)
        torch.testing.assert_close(physics.V(physics.V_adjoint(y)), y, atol=1e-5, rtol=1e-5)

    def test_magnitudes_and_sums_of_squares(self) -> None:
        one, coils = physics_of(12, 14, None), physics_of(12, 14, 3)
        y = torch.randn(2, 2, 12, 14)
        image = one.A_adjoint(y)
        torch.testing.assert_close(one.A_adjoint(y, mag=True)[:, 0], image.norm(dim=1))
        many = torch.randn(2, 2, 3, 12, 14)
        images = coils.kspace_to_im(coils.mask[:, :, None] * many)
        found = coils.A_adjoint(many, rss=True)
        torch.testing.assert_close(found[:, 0], images.square().sum((1, 2)).sqrt())

    def test_masks_and_sensitivities_can_be_set_and_copies_are_apart(self) -> None:
        physics = physics_of(12, 14, 3)
        apart, before = physics.clone(), physics.mask
        x, ones = torch.randn(1, 2, 12, 14), torch.ones(12, 14)
        maps = torch.ones(3, 12, 14, dtype=torch.complex64)
        full = physics.A(x, ones, maps)
        torch.testing.assert_close(full[:, :, 1], physics.im_to_kspace(x), atol=1e-5, rtol=1e-5)
        assert physics.mask.shape == (1, 2, 12, 14)
        assert bool(physics.mask.all())
        assert apart.mask is before
        physics.update(mask=None, coil_maps=None, sigma=0.1)
        assert bool(physics.mask.all())
        with pytest.raises(ModelError, match=r"coil_maps in torch\.float32"):
            physics.update(coil_maps=torch.ones(3, 12, 14))

    @pytest.mark.parametrize("coils", [None, 3])
    def test_what_is_missing_is_seen_and_named(self, coils: int | None) -> None:
        physics = physics_of(8, 8, coils)
        assert not hasattr(physics, "factor")
        assert getattr(physics, "img_shape", None) is None
        assert getattr(physics.noise_model, "sigma", None) is None
        assert physics.noise_model(1) == 1
        with pytest.raises(ModelError, match=r"physics\.compute_sqnorm, which is not") as caught:
            physics.compute_sqnorm(torch.zeros(1))
        assert "A_adjoint" in caught.value.remedy
        with pytest.raises(ModelError, match=r"physics\.noise_model\.sigma"):
            _ = physics.noise_model.sigma

    def test_several_coils_have_no_pseudo_inverse(self) -> None:
        with pytest.raises(ModelError, match=r"physics\.A_dagger") as caught:
            physics_of(8, 8, 3).A_dagger(torch.zeros(1, 2, 3, 8, 8))
        assert "prox_l2" in caught.value.remedy


@pytest.mark.nightly
@pytest.mark.parametrize("coils", [None, 3])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_values_are_those_of_deepinv(height: int, width: int, coils: int | None) -> None:
    theirs = pytest.importorskip("deepinv.physics", reason="deepinv is not installed")
    ours = physics_of(height, width, coils)
    if coils is None:
        other = theirs.MRI(mask=ours.mask)
    else:
        other = theirs.MultiCoilMRI(mask=ours.mask, coil_maps=ours.coil_maps)
    x, z = pairs(random(2, height, width)), torch.randn(2, 2, height, width)
    close = {"atol": 1e-4, "rtol": 1e-4}
    y = other.A(x)
    torch.testing.assert_close(ours.A(x), y, **close)
    for name in ("A_adjoint", "A_A_adjoint"):
        torch.testing.assert_close(getattr(ours, name)(y), getattr(other, name)(y), **close)
    for gamma in (0.5, torch.tensor(1.0)):
        wanted = other.prox_l2(z, y, gamma)
        torch.testing.assert_close(ours.prox_l2(z, y, gamma), wanted, atol=2e-3, rtol=0)
    keyword = "mag" if coils is None else "rss"
    for options in ({keyword: True}, {"crop": True}, {keyword: True, "crop": True}):
        torch.testing.assert_close(
            ours.A_adjoint(y, **options), other.A_adjoint(y, **options), **close
        )
    assert ours.mask.shape == other.mask.shape
    assert tuple(ours.img_size) == tuple(other.mask.shape[1:])
    if coils is None:
        torch.testing.assert_close(ours.A_dagger(y), other.A_dagger(y), **close)


class TestConventions:
    @pytest.mark.parametrize(("height", "width"), SIZES)
    def test_one_coil_is_given_the_samples_of_the_zero_filled_image(
        self, height: int, width: int
    ) -> None:
        mask, image = lines(height), random(2, height, width)
        y, physics = given("deepinv", pairs(zero_filled(image, mask)), mask)
        assert y.shape == (2, 2, width, height)
        sampled = np.fft.fftshift(mask.samples)
        wanted = centred(np.swapaxes(image, -2, -1)) * sampled
        torch.testing.assert_close(y, pairs(wanted), atol=1e-5, rtol=1e-5)
        assert physics.mask.shape == (1, 2, width, height)
        assert (physics.mask.numpy() == sampled).all()

    def test_masks_of_points(self) -> None:
        mask, image = variable_density_2d((24, 24), 3, centre=8, seed=1), random(1, 24, 24)
        y, physics = given("deepinv", pairs(zero_filled(image, mask)), mask)
        sampled = np.fft.fftshift(mask.samples).T
        wanted = centred(np.swapaxes(image, -2, -1)) * sampled
        torch.testing.assert_close(y, pairs(wanted), atol=1e-5, rtol=1e-5)
        assert (physics.mask.numpy() == sampled).all()

    @pytest.mark.parametrize(("height", "width"), SIZES)
    def test_several_coils_and_their_sensitivities(self, height: int, width: int) -> None:
        mask = lines(height)
        maps = coil_maps(3, height, width, seed=1)
        kspace = sampled_kspace(random(2, 1, height, width) * maps, mask)
        x_u = torch.from_numpy(np.stack((kspace.real, kspace.imag), 2))
        y, physics = given("deepinv-multicoil", x_u, mask)
        turned = np.fft.fftshift(np.swapaxes(kspace, -2, -1), (-2, -1))
        torch.testing.assert_close(y, pairs(turned), atol=1e-6, rtol=0)
        wanted = np.stack([smooth_sensitivities(one, mask) for one in kspace])
        found = np.swapaxes(physics.coil_maps.numpy(), -2, -1)
        np.testing.assert_allclose(found, wanted, atol=1e-4)

    def test_they_are_found_or_said(self) -> None:
        one = bring(named("VarNet"))
        assert (one.convention, one.reads) == (Convention.DEEPINV, InputKind.COMPLEX)
        assert one.has_data_consistency
        assert holds_mask(one)
        assert CodeSpec.from_dict(one.to_dict()) == one
        more = bring(named("VarNet"), convention="deepinv-multicoil")
        assert (more.convention, more.reads) == (Convention.DEEPINV_MULTICOIL, InputKind.KSPACE)
        assert holds_mask(more)

    @pytest.mark.parametrize(
        ("network", "convention"),
        [
            ("VarNet", "deepinv"),
            ("MoDL", "deepinv"),
            ("MoDL?start=A_dagger", "deepinv"),
            ("VarNet", "deepinv-multicoil"),
            ("MoDL", "deepinv-multicoil"),
            ("EndToEnd", "deepinv-multicoil"),
        ],
    )
    def test_networks_of_deepinvs_kind_pass_their_trial(
        self, network: str, convention: str
    ) -> None:
        spec = tried(bring(named(network), convention=convention), lines(32), 32)
        assert spec.convolutions > 0

    def test_a_perfect_measurement_is_kept(self) -> None:
        """With every line sampled, data consistency alone gives the image back."""

        class Consistent(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(1))

            def forward(self, y: Tensor, physics: Any) -> Tensor:
                return physics.A_adjoint(y) * self.weight  # type: ignore[no-any-return]

        mask = Mask(samples=np.ones(24, np.bool_), name="all")
        image = random(2, 24, 20)
        network, spec = _network(Consistent(), "deepinv")
        operator = network_operator(spec, mask, Form.PROJECTION)
        torch.testing.assert_close(network(pairs(image), operator), pairs(image))

    @pytest.mark.parametrize(
        ("member", "convention", "said"),
        [
            ("compute_norm", "deepinv", "physics.compute_norm, which is not offered"),
            ("noise_model.sigma", "deepinv", "physics.noise_model.sigma"),
            ("coil_maps", "deepinv", "physics.coil_maps"),
            ("A_dagger", "deepinv-multicoil", "physics.A_dagger"),
        ],
    )
    def test_what_the_physics_lacks_is_named_before_training(
        self, member: str, convention: str, said: str
    ) -> None:
        spec = bring(named(f"Asks?member={member}"), convention=convention)
        with pytest.raises(ModelError) as caught:
            tried(spec, lines(32), 32)
        assert said in caught.value.what
        assert "\n" not in str(caught.value)

    def test_the_other_convention_is_named(self) -> None:
        with pytest.raises(ModelError) as caught:
            tried(bring(named("EndToEnd")), lines(32), 32)
        assert "k-space y [2, 2, 32, 32]" in caught.value.what
        assert "deepinv-multicoil" in caught.value.remedy
        Path("own.py").write_text(
            "from torch import nn\n"
            "class Net(nn.Conv2d):\n"
            "    def __init__(self): super().__init__(2, 2, 3, padding=1)\n"
            "    def forward(self, y, physics): return super().forward(y)\n"
        )
        with pytest.raises(ModelError) as caught:
            tried(bring("own.py:Net", convention="deepinv-multicoil"), lines(32), 32)
        assert "k-space y [2, 2, 3, 32, 32]" in caught.value.what
        assert "--convention deepinv " in caught.value.remedy

    def test_sensitivities_need_lines_and_a_centre(self) -> None:
        spec = bring(named("VarNet"), convention="deepinv-multicoil")
        points = variable_density_2d((32, 32), 3, centre=8, seed=1)
        with pytest.raises(MaskError, match="single points"):
            tried(spec, points, 32)
        samples = np.zeros(32, np.bool_)
        samples[[0, 1, 5, -5, 9]] = True
        with pytest.raises(MaskError, match="fewer than 4"):
            tried(spec, Mask(samples=samples, name="gaps"), 32)
        tried(bring(named("EndToEnd"), convention="deepinv-multicoil"), points, 32)

    def test_further_arguments_need_defaults(self) -> None:
        Path("own.py").write_text(
            "from torch import nn\n"
            "class Net(nn.Conv2d):\n"
            "    def __init__(self): super().__init__(2, 2, 1)\n"
            "    def forward(self, y, physics, sigma): return super().forward(y)\n"
            "class Swapped(Net):\n"
            "    def forward(self, physics, y): return y\n"
        )
        for name in ("Net", "Swapped"):
            with pytest.raises(ModelError, match=r"give it \(y, physics\) alone"):
                bring(f"own.py:{name}")
