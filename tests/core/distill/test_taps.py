"""Features of named modules: found, compared, projected, and gone on with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdmri_edge.bring.network import bring
from kdmri_edge.bring.trial import phantom_inputs
from kdmri_edge.distillation import loop as stage
from kdmri_edge.distillation import replay
from kdmri_edge.distillation.losses import attention_transfer, feature_transfer
from kdmri_edge.distillation.recipe import DistillRecipe, Transfer, load_recipe
from kdmri_edge.distillation.request import Request, Settings, check_settings
from kdmri_edge.distillation.run import distill
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.distillation.taps import (
    Given,
    Listener,
    Tap,
    TapPair,
    Taught,
    modules_of,
    network_outputs,
    outputs_of,
    projections,
)
from kdmri_edge.errors import RecipeError
from kdmri_edge.models.build import build_model
from kdmri_edge.models.checkpoint import load_checkpoint
from kdmri_edge.models.network import Network, as_network
from kdmri_edge.models.specs import preset
from kdmri_edge.physics.masks import variable_density_lines
from tests.core.distill.test_replay import FakeRecorder

UNET = Path(__file__).resolve().parents[3] / "examples" / "own_network" / "unet.py"
MASK = variable_density_lines(32, 2.0)
PAIR = "distillation.taps.cascades.4.convs.1=merge.5"
FEW = (
    *("teacher_steps=2", "attention_steps=3", "imitation_steps=4", "batches.size=4"),
    *("batches.strip=16", "optim.warmup=1", "phantom_volumes=3", "phantom_slices=3"),
    *("validate_every=50", "checkpoint_every=1", "precision=f32", "distillation.transfer=features"),
)
Weights = Callable[[Path], dict[str, dict[str, Tensor]]]


def _asked(*changes: str, **options: Any) -> Settings:
    """A U-Net of four feature maps teaches a DC-CNN of 32."""
    given = {"teacher": f"{UNET}:UNet?width=4", "student": "dccnn-d3c5", "baseline": False}
    return Request(**{**given, **options}, mask=MASK, assignments=(*FEW, PAIR, *changes)).settings()


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class _Odd(nn.Module):
    """Returns what a tap can take, and what none can."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.tokens = nn.Identity()
        self.cut = nn.Identity()
        self.pair = nn.Identity()
        self.complex = nn.Identity()
        self.last = nn.Identity()
        self.unused = nn.Identity()

    def forward(self, x_u: Tensor) -> Tensor:
        maps = self.relu(self.conv(x_u))
        patches = self.tokens(nn.functional.avg_pool2d(maps, 4).flatten(2).transpose(1, 2))
        self.cut(patches[:, 1:])
        self.pair((maps, maps))
        self.last(maps.permute(0, 2, 3, 1))
        self.complex(torch.complex(maps, maps))
        return x_u + self.relu(-maps).mean(1, keepdim=True) + 0 * patches.sum()


@pytest.fixture
def odd() -> Network:
    torch.manual_seed(0)
    return as_network(_Odd(), preset("vdsr-7"))


def _heard(network: Network, *names: str, x_u: Tensor | None = None) -> tuple[Tensor, ...]:
    listener = Listener(network, [Tap.parse(name) for name in names], "teacher")
    image = _random(2, 1, 16, 8) if x_u is None else x_u
    with listener.listening():
        network(image)
    return listener.maps(image)


class TestListening:
    def test_what_a_module_returned_is_shown(self, odd: Network) -> None:
        x_u = _random(2, 1, 16, 8)
        conv, last, first, second = _heard(odd, "conv", "relu", "relu#1", "relu#2", x_u=x_u)
        module = odd.get_submodule("conv")
        torch.testing.assert_close(conv, module(x_u))
        assert conv.min() < 0  # not what ReLU made of it in place afterwards
        assert torch.equal(first, conv.relu())
        assert torch.equal(last, second)
        assert not torch.equal(last, first)

    def test_hooks_are_gone_afterwards(self, odd: Network) -> None:
        _heard(odd, "conv", "relu")
        listener = Listener(odd, [Tap("conv")], "teacher")
        with pytest.raises(ValueError, match="stop"), listener.listening():
            raise ValueError("stop")
        assert not any(module._forward_hooks for module in odd.modules())

    def test_tokens_of_a_grid_are_feature_maps(self, odd: Network) -> None:
        tokens, conv = _heard(odd, "tokens", "conv")
        assert tokens.shape == (2, 3, 4, 2)
        torch.testing.assert_close(tokens, nn.functional.avg_pool2d(conv.relu(), 4))

    def test_maps_of_swapped_axes_are_turned(self, odd: Network) -> None:
        x_u = _random(2, 1, 16, 8)
        straight = _heard(odd, "conv", "tokens", x_u=x_u)
        type(odd).transposed = True
        listener = Listener(odd, [Tap("conv"), Tap("tokens")], "teacher")
        with listener.listening():
            odd(x_u)
        turned = listener.maps(x_u.transpose(2, 3))  # what a network of swapped axes was given
        for one, other in zip(straight, turned, strict=True):
            assert torch.equal(one.transpose(2, 3), other)

    def test_a_network_of_k_space_shows_its_maps_as_images_lie(self) -> None:
        source = Path(__file__).resolve().parents[2] / "kspace_networks.py"
        spec = bring(f"{source}:FastMRI")
        network = build_model(spec)
        given = Given(*phantom_inputs(spec, MASK, 32, network))
        last = next(one for one in reversed(outputs_of(network, given)) if one.shape)
        listener = Listener(network, [Tap(last.name)], "teacher")
        seen: list[Tensor] = []
        module = modules_of(network)[last.name]
        module.register_forward_hook(lambda *call: seen.append(call[2]))
        with torch.no_grad(), listener.listening():
            network(*given)
        assert torch.equal(listener.maps(given.x_u)[0], seen[-1].transpose(2, 3))

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("cut", "7 tokens, which are not those of a grid"),
            ("pair", "a tuple of 2"),
            ("last", "last two axes"),
            ("complex", "complex numbers"),
            ("unused", "is not called"),
            ("relu#3", r"is called 2 time\(s\)"),
            ("cnov", "no module 'cnov'; did you mean 'conv'"),
            ("conv#0", "names no call"),
            ("conv#x", "names no call"),
        ],
    )
    def test_what_is_refused(self, odd: Network, name: str, said: str) -> None:
        with pytest.raises(RecipeError, match=said):
            _heard(odd, name)

    def test_modules_of_code_are_named_as_in_the_users_own(self) -> None:
        settings = _asked()
        network = build_model(settings.teacher_spec)
        names = modules_of(network)
        assert {"merge.5", "deep.0", "last"} <= set(names)
        assert not any(name.startswith("module") for name in names)
        listener = Listener(network, [Tap("module.last"), Tap("last")], "teacher")
        assert listener._modules[0] is listener._modules[1]

    def test_modules_are_listed_with_what_they_return(self, cli: Callable[..., Any]) -> None:
        found = {one.name: one for one in network_outputs("dccnn-d3c5-sense", matrix=32)}
        assert found["cascades.3.convs.1"].shape == (32, 32, 32)
        assert found["cascades.3"].shape is None  # a pair
        done = cli("models", f"{UNET}:UNet?width=4", "--matrix", "32")
        assert done.code == 0, done.err
        row = next(line for line in done.out.splitlines() if line.strip().startswith("deep.3"))
        assert row.split() == ["deep.3", "Conv2d", "1", "8", "16", "x", "16"]
        assert cli("models", "--matrix", "32").code == 2
        cli("models", "dccnn-d3c6").check_refusal("dccnn-d3c5")

    @pytest.mark.parametrize("name", ["dccnn-edge@brain-4x", "dccnn-d3c5"])
    def test_a_convention_is_of_code_alone(self, name: str, cli: Callable[..., Any]) -> None:
        done = cli("models", name, "--convention", "image")
        done.check_refusal("Convention", "code alone")
        assert not done.out


class TestLosses:
    def test_neither_scale_nor_size_matters(self) -> None:
        maps, other = _random(2, 3, 8, 6), _random(2, 3, 8, 6, seed=1)
        for transfer in (attention_transfer, feature_transfer):
            gap = transfer([maps], [other])
            assert 0.1 < gap < 2
            torch.testing.assert_close(transfer([7 * maps], [0.1 * other]), gap)
            larger = nn.functional.interpolate(other, scale_factor=2.0)
            torch.testing.assert_close(transfer([maps], [larger]), gap)
            torch.testing.assert_close(transfer([larger], [maps]), transfer([other], [maps]))
            assert transfer([larger], [other]) < 1e-6

    def test_each_image_counts_alike(self) -> None:
        maps, other = _random(2, 3, 8, 6), _random(2, 3, 8, 6, seed=1)
        louder = maps * torch.tensor([1.0, 1e3])[:, None, None, None]
        torch.testing.assert_close(
            feature_transfer([louder], [other]), feature_transfer([maps], [other])
        )

    def test_axes_are_averaged_each_on_its_own(self) -> None:
        one, other = torch.ones(1, 2, 8, 3), torch.ones(1, 2, 4, 6)
        assert feature_transfer([one], [other]) < 1e-6

    def test_the_teacher_stays_as_it_is(self) -> None:
        maps, other = (_random(1, 2, 4, 4, seed=n).requires_grad_() for n in range(2))
        feature_transfer([maps], [other]).backward()
        assert maps.grad is not None
        assert other.grad is None

    def test_projections_where_they_are_needed(self) -> None:
        pairs = [TapPair(Tap("a"), Tap("b"), widths) for widths in ((3, 5), (4, 4))]
        for transfer in Transfer:
            made = projections(pairs, transfer)
            kinds = [type(one) for one in made]
            first = nn.Identity if transfer is Transfer.ATTENTION else nn.Conv2d
            assert kinds == [first, nn.Identity]
            assert made[0](torch.ones(1, 3, 2, 2)).shape[1] == (3 if first is nn.Identity else 5)


class TestRuns:
    def test_projections_learn_and_stay_behind(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: dict[str, Tensor] = {}
        real = stage.save_state

        def save(path: Path, network: nn.Module, *more: Any, **others: Any) -> None:
            real(path, network, *more, **others)
            if isinstance(network, Taught):
                seen[f"{path.stem} {more[1]}"] = network.projections[0].weight.detach().clone()

        monkeypatch.setattr(stage, "save_state", save)
        run = distill(_asked(), tmp_path / "run")
        assert [t.shape for t in seen.values()] == [(4, 32, 1, 1)] * 7
        assert all(
            not torch.equal(seen[f"imitation {n}"], seen[f"imitation {n + 1}"]) for n in (1, 2, 3)
        )
        own = build_model(preset("dccnn-d3c5")).state_dict().keys()
        assert load_checkpoint(run.weights("student")).state.keys() == own

    def test_what_is_compared_moves_the_student(self, tmp_path: Path, weights: Weights) -> None:
        """And where it has no weight, the student learns as without it."""
        runs = {
            name: distill(_asked("attention_steps=0", *changes), tmp_path / name)
            for name, changes in {
                "with": (),
                "weightless": ("distillation.taps_weight=1e-30",),
                "without": ("distillation.taps={}",),
            }.items()
            if name != "without"
        }
        base = Request(
            teacher=f"{UNET}:UNet?width=4", student="dccnn-d3c5", baseline=False, mask=MASK,
            assignments=(*FEW, "attention_steps=0"),
        ).settings()  # fmt: skip
        runs["without"] = distill(base, tmp_path / "without")
        first = {name: weights(run.path)["student"] for name, run in runs.items()}
        key = "cascades.4.convs.1.weight"
        assert not torch.equal(first["with"][key], first["without"][key])
        torch.testing.assert_close(first["weightless"][key], first["without"][key])

    @pytest.mark.parametrize("reparameterise", ["true", "false"])
    def test_interrupted_in_either_stage(
        self,
        distill_with_cuts: Callable[[Settings, Path, list[tuple[str, int]]], Run],
        weights: Weights,
        tmp_path: Path,
        reparameterise: str,
    ) -> None:
        wanted = _asked(f"optim.reparameterise={reparameterise}", "optim.ema=0.5")
        whole = distill(wanted, tmp_path / "whole")
        cuts = [("features", 2), ("features", 3), ("imitation", 1), ("imitation", 3)]
        cut = distill_with_cuts(wanted, tmp_path / "cut", cuts)
        expected, found = weights(whole.path)["student"], weights(cut.path)["student"]
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)

    def test_replayed_steps_train_the_same(
        self, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wanted = _asked("imitation_steps=8", "distillation.imitation_until=0.5", "batches.shards=2")
        monkeypatch.setattr(stage, "recorder", lambda context: FakeRecorder())
        with monkeypatch.context() as patch:
            patch.setattr(replay, "_BEFORE", 10**9)
            distill(wanted, tmp_path / "plain")
        distill(wanted, tmp_path / "replayed")
        expected, found = weights(tmp_path / "plain"), weights(tmp_path / "replayed")
        for role, state in expected.items():
            assert all(torch.equal(state[name], found[role][name]) for name in state), role

    def test_of_our_own_pair_and_by_attention(self, tmp_path: Path) -> None:
        wanted = _asked(
            "distillation.transfer=attention",
            "distillation.taps.cascades.4.convs.1=cascades.4.convs.3",
            "distillation.taps.cascades.0.convs.0=cascades.0.convs.0",
            teacher="dccnn-d5c5", recipe="kd-mri",
        )  # fmt: skip
        assert distill(wanted, tmp_path / "run").roles() == ["teacher", "student"]

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            (("distillation.taps.cascades.4.convs.1=mreg.5",), "teacher has no module 'mreg.5'"),
            (("distillation.taps.cascade.4=merge.5",), "student has no module 'cascade.4'"),
            (("distillation.taps.cascades.4=merge.5",), "returns a tuple of 2"),
            (("distillation.taps.cascades.4.convs.1=merge.5#2",), r"is called 1 time\(s\)"),
        ],
    )
    def test_mistakes_leave_no_run(
        self, changes: tuple[str, ...], said: str, tmp_path: Path
    ) -> None:
        with pytest.raises(RecipeError, match=said):
            distill(_asked(*changes), tmp_path / "run")
        assert not (tmp_path / "run" / "run.json").exists()

    @pytest.mark.parametrize(
        "changes",
        [
            ("distillation.taps_weight=0", "attention_steps=0"),
            ("distillation.imitation_until=0", "attention_steps=0"),
        ],
    )
    def test_taps_that_are_compared_nowhere(self, changes: tuple[str, ...]) -> None:
        with pytest.raises(RecipeError, match=r"What distillation\.taps name is compared"):
            check_settings(_asked(*changes), 1)


class TestRecipes:
    TAPS = {"down.0": "module.down.1", "a.b.10": "0.10", "last#2": "out"}  # noqa: RUF012

    @pytest.mark.parametrize(
        "text",
        [
            "[distillation.taps]\n"
            '"down.0" = "module.down.1"\n"a.b.10" = "0.10"\n"last#2" = "out"\n',
            '[distillation.taps]\ndown.0 = "module.down.1"\na.b.10 = "0.10"\n"last#2" = "out"\n',
            "[distillation]\n"
            'taps = {"down.0" = "module.down.1", a.b.10 = "0.10", "last#2" = "out"}\n',
        ],
    )
    def test_in_a_file(self, text: str, tmp_path: Path) -> None:
        file = tmp_path / "mine.toml"
        file.write_text(text)
        recipe = load_recipe(str(file))
        assert recipe.distillation.taps == self.TAPS
        assert DistillRecipe.from_dict(recipe.to_dict(), "copy") == recipe

    def test_one_by_one_after_set(self, tmp_path: Path) -> None:
        words = [f"distillation.taps.{ours}={theirs}" for ours, theirs in self.TAPS.items()]
        assert load_recipe("edge", words).distillation.taps == self.TAPS
        quoted = [*words[:2], 'distillation.taps.last#2="out"']
        assert load_recipe("edge", quoted).distillation.taps == self.TAPS
        file = tmp_path / "mine.toml"
        file.write_text('[distillation.taps]\nfirst = "one"\n')
        both = load_recipe(str(file), words[:1]).distillation.taps
        assert both == {"first": "one", "down.0": "module.down.1"}
        assert load_recipe(str(file), ["distillation.taps={}"]).distillation.taps == {}

    def test_the_list_of_keys_is_a_recipe(self, cli: Callable[..., Any], tmp_path: Path) -> None:
        done = cli("distill", "--list-keys", "--set", "distillation.taps.down.0=module.down.1")
        assert 'taps = {"down.0" = "module.down.1"}' in done.out
        file = tmp_path / "mine.toml"
        file.write_text(done.out)
        assert load_recipe(str(file)).distillation.taps == {"down.0": "module.down.1"}

    @pytest.mark.parametrize("value", ["3", '["a"]', "{a = 1}", "true"])
    def test_what_is_no_table_of_names(self, value: str) -> None:
        with pytest.raises(RecipeError, match=r"distillation.taps.*table of texts"):
            load_recipe("edge", [f"distillation.taps={value}"])


def test_carried_maps_are_imitated_through_maps_that_are_thrown_away(
    settings: Callable[..., Settings],
    weights: Callable[[Path], dict[str, dict[str, Tensor]]],
    tmp_path: Path,
) -> None:
    """A cascade's last convolution makes them; other numbers of them meet in a projection."""
    taps = {f"cascades.{n}.convs.2": f"cascades.{n}.convs.4" for n in range(4)}
    few = {"teacher": "dccnn-d5c5-carried", "student": "dccnn-edge", "baseline": False}
    few |= {"teacher_steps": 1, "attention_steps": 0, "imitation_steps": 2, "transfer": "features"}
    tapped = settings(**few)
    wanted = replace(tapped.recipe.distillation, taps=taps)
    tapped = replace(tapped, recipe=replace(tapped.recipe, distillation=wanted))
    found = weights(distill(tapped, tmp_path / "tapped").path)
    without = weights(distill(settings(**few), tmp_path / "without").path)
    assert set(found["student"]) == set(without["student"])
    assert all(torch.equal(found["teacher"][name], own) for name, own in without["teacher"].items())
    assert any(
        not torch.equal(found["student"][name], own) for name, own in without["student"].items()
    )
