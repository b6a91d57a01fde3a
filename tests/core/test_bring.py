"""Networks of one's own: tried on a phantom, with weights a checkpoint, taught, run, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kdmri_edge as ke
from kdmri_edge.bring.network import bring, bring_checkpoint, tried
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.distillation.log import StageProgress
from kdmri_edge.errors import ModelError
from kdmri_edge.models.adapter import call
from kdmri_edge.models.checkpoint import load_checkpoint, read_checkpoint_meta
from kdmri_edge.models.code import CodeSpec
from kdmri_edge.models.foreign_weights import load_weights, read_weights
from kdmri_edge.models.permission import allow_code
from kdmri_edge.physics.consistency import data_consistency
from kdmri_edge.physics.masks import Mask, variable_density_lines
from kdmri_edge.physics.operators import zero_filled
from kdmri_edge.physics.scaling import network_input, slice_scale

Cli = Callable[..., Any]
MASK = variable_density_lines(32, 3, centre_lines=4, seed=3)
UNET = Path(__file__).resolve().parents[2] / "examples" / "own_network" / "unet.py"
SMALL = (
    *("teacher_steps=3", "imitation_steps=3", "batches.size=2", "phantom_volumes=3"),
    *("phantom_slices=2", "optim.warmup=1", "validate_every=3"),
)
QUICK = (
    *("--matrix=32", "--acceleration=2", "--threads=1", "--accelerator=cpu"),
    *(f"--set={assignment}" for assignment in SMALL),
)


@pytest.fixture(autouse=True)
def _memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who has named nothing yet, in a folder of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("KDMRI_EDGE_CODE", "")
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")


@pytest.fixture
def weights() -> Path:
    """Weights of the example's U-Net, as its own training program would have left them."""
    torch.manual_seed(3)
    unet = call(allow_code(f"{UNET}:UNet?width=6"))
    nn.init.normal_(unet.get_submodule("last").weight, std=0.01)
    torch.save({"state_dict": {f"net.{k}": v for k, v in unet.state_dict().items()}}, "unet.ckpt")
    return Path("unet.ckpt")


def write(source: str, name: str = "own.py") -> str:
    Path(name).write_text("import torch\nfrom torch import nn\n" + source)
    return f"{name}:Net"


def net(forward: str, channels: int = 1, further: str = "") -> str:
    """A file with a module whose forward has this body."""
    return write(
        "class Own(torch.Tensor): pass\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        f"        self.conv = nn.Conv2d({channels}, {channels}, 3, padding=1)\n"
        f"        {further or 'pass'}\n"
        "    def forward(self, x):\n"
        f"        {forward}\n"
    )


class TestTrial:
    @pytest.mark.parametrize(
        ("forward", "said"),
        [
            ("return (self.conv(x), x)", "returned a tuple of 2"),
            ("return {'image': x}", "returned a dict of 1"),
            ("return None", "returned a NoneType"),
            ("return torch.fft.fft2(self.conv(x))", "complex numbers [2, 1, 32, 32]"),
            ("return self.conv(x)[:, 0]", "returned [2, 32, 32]"),
            ("return self.conv(x).double()", "returned torch.float64"),
            ("return self.conv(x).to_sparse()", "returned a torch.sparse_coo tensor"),
            ("return torch.Tensor._make_subclass(Own, self.conv(x))", "returned a Own"),
            ("return self.conv(x).reshape(2, 1, 32, 32)", "takes 2 images, and fails for one"),
            ("y = self.conv(x); return (y, y) if self.training else y", "a tuple when it is tra"),
            ("return self.conv(x) / 0", "NaN or infinite"),
            ("x += self.conv(x); return x", "changes its input in place"),
            ("return self.conv(x).detach()", "cannot be trained"),
            ("y = torch.exp(self.conv(x)); y += 1; return y.exp() * y", "cannot be trained"),
            ("return self.conv(x[:, 0])", "fails on a phantom"),
            ("return self.conv(x.repeat(1, 2, 1, 1))", "to have 1 channels, but got 2"),
            ("raise RuntimeError('no such mode')", "no such mode"),
            ("raise SystemExit(3)", "ends the program (SystemExit: 3)"),
            ("return self.conv(x) + 0.1 * torch.randn_like(x)", "another image each time"),
            ("return nn.functional.dropout(self.conv(x))", "another image each time"),
        ],
    )
    def test_a_wrong_convention_is_found(self, forward: str, said: str) -> None:
        brought = bring(net(forward))
        with pytest.raises(ModelError) as caught:
            tried(brought, MASK, 32)
        assert said in caught.value.what
        assert caught.value.what.endswith(".")
        assert caught.value.remedy.endswith(".")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ("raise SystemExit(2)\n", "cannot be imported: SystemExit: 2"),  # reads its arguments
            ("def Net():\n    raise SystemExit(2)\n", "fails: SystemExit: 2"),
            ("def Net():\n    return nn.LazyConv2d(1, 3, padding=1)\n", "lazy layers"),
            ("def Net():\n    return nn.Conv2d(1, 1, 1, device='meta')\n", "without values"),
            ("class Net(nn.Module):\n    def __init__(self):\n        pass\n", "not set up"),
            ("def Net(): return nn.DataParallel(nn.Conv2d(1, 1, 1))\n", "inside of DataParallel"),
            (
                "from kdmri_edge.models import Adapter\n"
                "class Odd(Adapter):\n    reads = 'picture'\n"
                "def Net():\n    return Odd(nn.Conv2d(1, 1, 1))\n",
                "whose `reads` is 'picture'",
            ),
        ],
    )
    def test_code_that_makes_no_network(self, source: str, said: str) -> None:
        with pytest.raises(ModelError) as caught:
            bring(write(source))
        assert said in caught.value.what

    def test_what_was_expected_and_what_came(self) -> None:
        with pytest.raises(ModelError) as caught:
            tried(bring(net("return self.conv(x)[:, 0]")), MASK, 32)
        assert str(caught.value) == (
            "own.py:Net was given the zero-filled magnitude x_u [2, 1, 32, 32] (float32), and has"
            " to return an image [2, 1, 32, 32] in float32; it returned [2, 32, 32]. Change what it"
            " returns, name another convention, or write an adapter; see"
            " docs/tutorials/bring-a-network.md."
        )

    @pytest.mark.parametrize(
        ("layers", "multiple"),
        [
            ("y = self.up(nn.functional.max_pool2d(x, 2)); return self.conv(x) + y", 2),
            ("return self.up(nn.functional.avg_pool2d(self.conv(x), 2))", 2),
            ("return nn.functional.pixel_shuffle(nn.functional.pixel_unshuffle(x, 4), 4)", 4),
        ],
    )
    def test_sizes_that_do_not_fit(self, layers: str, multiple: int) -> None:
        brought = bring(net(layers, further="self.up = nn.ConvTranspose2d(1, 1, 2, 2)"))
        mask = variable_density_lines(31, 3, centre_lines=4, seed=3)
        with pytest.raises(ModelError, match=f"multiples of {multiple}") as caught:
            tried(brought, mask, 31)
        assert "32" in caught.value.remedy

    def test_multiplications_are_counted(self) -> None:
        code = net(
            "y = self.up(self.down(self.conv(x))); return y + self.mix(x)",
            further="self.down = nn.Conv2d(1, 8, 3, 2, 1, groups=1);"
            " self.up = nn.ConvTranspose2d(8, 1, 2, 2); self.mix = nn.Linear(32, 32)",
        )
        counted = tried(bring(code), MASK, 32)
        pixels = 32 * 32
        expected = 9 * pixels + 8 * 9 * pixels // 4 + 8 * 4 * pixels // 4 + 32 * pixels
        assert counted.macs(32, 32) == {"convolutions": expected, "data_consistency": 0}

    def test_data_consistency_is_counted(self) -> None:
        code = write(
            "from kdmri_edge.physics import data_consistency\n"
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.conv = nn.Conv2d(2, 2, 3, padding=1)\n"
            "    def forward(self, x_u, operator):\n"
            "        x = x_u\n"
            "        for _ in range(3):\n"
            "            x = x + self.conv(x)\n"
            "            x = data_consistency(x, x_u, operator, 1.0, str(self.form))\n"
            "        return x\n"
        )
        counted = tried(bring(code), MASK, 32)
        assert counted.consistencies == 3
        assert counted.convolutions == 3 * 4 * 9 * 32 * 32

    def test_an_operator_that_is_not_used(self) -> None:
        code = write(
            "class Net(nn.Conv2d):\n"
            "    def __init__(self): super().__init__(1, 1, 3, padding=1)\n"
            "    def forward(self, x_u, operator): return super().forward(x_u)\n"
        )
        with pytest.raises(ModelError, match="does not use it"):
            tried(bring(code), MASK, 32)

    def test_nothing_of_a_network_changes(self) -> None:
        from kdmri_edge.bring.trial import try_network
        from kdmri_edge.models.build import build_model

        code = net("return self.norm(self.conv(x))", further="self.norm = nn.BatchNorm2d(1)")
        brought = bring(code)
        network = build_model(brought)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        generator = torch.get_rng_state()
        try_network(network, brought, MASK, 32)
        assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
        assert all(p.grad is None for p in network.parameters())
        assert network.training
        assert torch.equal(torch.get_rng_state(), generator)


class TestWeights:
    def test_they_make_a_checkpoint_that_gives_the_same_image(self, weights: Path) -> None:
        place = bring_checkpoint(f"{UNET}:UNet?width=6", weights=weights, mask=MASK)
        again = bring_checkpoint(f"{UNET}:UNet?width=6", weights=weights, mask=MASK)
        assert place == again
        checkpoint = load_checkpoint(place)
        assert isinstance(checkpoint.spec, CodeSpec)
        assert checkpoint.spec.reference == "unet.py:UNet?width=6"
        assert checkpoint.mask == MASK
        assert checkpoint.matrix == 32
        assert checkpoint.training["weights"]["file"] == "unet.ckpt"
        assert str(Path.cwd()) not in str(read_checkpoint_meta(place))
        known = torch.load(weights, weights_only=True)["state_dict"]
        for name, value in checkpoint.state.items():
            assert torch.equal(value, known[name.replace("module.", "net.", 1)])

    def test_code_may_move_its_module_and_look_at_values(self) -> None:
        """It is called where a checkpoint is read, too, which has no tensors without values."""
        further = "self.to('cpu'); self.most = float(self.conv.weight.detach().max())"
        code = net("return self.conv(x)", further=further)
        module = call(allow_code(code))
        torch.save(module.state_dict(), "own.pt")
        checkpoint = load_checkpoint(bring_checkpoint(code, weights=Path("own.pt"), mask=MASK))
        assert torch.equal(
            checkpoint.state["module.conv.weight"], module.state_dict()["conv.weight"]
        )

    def test_half_written_things_are_not_left(self, weights: Path, tmp_path: Path) -> None:
        for code in (f"{UNET}:UNet?width=5", net("return self.conv(x)[:, 0]")):
            with pytest.raises(ke.errors.KdmriError):
                bring_checkpoint(code, weights=weights, mask=MASK)
        assert not list((tmp_path / "cache").rglob("*.safetensors"))

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            ({}, "without weights"),
            ({"weights": "unet.ckpt"}, "for which mask"),
            ({"weights": "unet.ckpt", "mask": MASK, "matrix": 40}, "40"),
            ({"weights": "unet.ckpt", "mask": MASK, "convention": "imagee"}, "'image'"),
        ],
    )
    def test_what_is_missing_is_said(self, more: Any, said: str, weights: Path) -> None:
        with pytest.raises(ke.errors.KdmriError, match=said):
            bring_checkpoint(f"{UNET}:UNet?width=6", **more)


class TestCommands:
    @pytest.mark.parametrize(
        ("change", "said"),
        [(lambda w: w.to_sparse(), "sparse"), (lambda w: w.to("meta"), "without values")],
    )
    def test_tensors_that_hold_no_plain_numbers(self, change: Any, said: str) -> None:
        conv = nn.Conv2d(1, 1, 3)
        torch.save({**conv.state_dict(), "weight": change(conv.weight.detach())}, "odd.pt")
        with pytest.raises(ke.errors.CheckpointError, match=said):
            load_weights(conv, read_weights(Path("odd.pt")), "odd.pt")

    def test_weights_that_are_there_twice_are_not_chosen_between(self) -> None:
        conv = nn.Conv2d(1, 1, 3)
        both = {f"{of}.{k}": v for of in ("net", "ema") for k, v in conv.state_dict().items()}
        torch.save(both, "both.pt")
        with pytest.raises(ke.errors.CheckpointError, match=r"2 times, under 'ema\.', 'net\.'"):
            load_weights(conv, read_weights(Path("both.pt")), "both.pt")

    def test_a_teacher_with_weights_teaches_a_student_of_its_file(
        self, cli: Cli, weights: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given = ("--teacher", f"{UNET}:UNet?width=6", "--teacher-weights", weights)
        taught = ("--student", f"{UNET}:UNet?width=2", "--no-baseline", "--out", "run")
        done = cli("distill", *given, *taught, *QUICK)
        assert done.code == 0, done.err
        known = torch.load(weights, weights_only=True)["state_dict"]
        teacher = load_checkpoint(Path("run/teacher.safetensors"))
        assert torch.equal(teacher.state["module.last.weight"], known["net.last.weight"])
        student = load_checkpoint(Path("run/student.safetensors"))
        assert student.spec.parameters < teacher.spec.parameters / 5
        assert student.training["recipe"]["name"] == "imitation"
        # a new process, which remembers what was named
        monkeypatch.setenv("KDMRI_EDGE_CODE", "")
        assert cli("distill", "--resume", "--out", "run").code == 0
        done = cli("export", "run", "--target", "openvino", "--precision", "int8")
        assert done.code == 0, done.err
        monkeypatch.setenv("XDG_CACHE_HOME", str(Path("other-user").resolve()))
        np.save("slices.npy", phantom_volume(4, slices=2, matrix=32).image)
        bundle = "run/exports/student-openvino-int8"
        done = cli("run", bundle, "slices.npy", "--undersample", "-o", "o.npy")
        assert done.code == 0, done.err
        cli("run", "run/student.safetensors", "slices.npy", "-o", "p.npy").check_refusal(
            "unet.py:UNet?width=2", "by nobody", "--code"
        )
        code = ("--code", f"{UNET}:UNet?width=2")
        done = cli(*code, "export", "run/student.safetensors", "--target", "onnx", "--out", "b")
        assert done.code == 0, done.err

    def test_code_alone_is_trained(self, cli: Cli) -> None:
        both = ("--teacher", f"{UNET}:UNet?width=3", "--student", f"{UNET}:UNet?width=2")
        done = cli("distill", *both, *QUICK, "--out", "run")
        assert done.code == 0, done.err
        roles = {place.stem for place in Path("run").glob("*.safetensors")}
        assert roles == {"teacher", "plain", "student"}
        assert load_checkpoint(Path("run/teacher.safetensors")).training["steps"] == {"teacher": 3}

    @pytest.mark.nightly
    def test_a_student_learns_with_rounding(self, cli: Cli) -> None:
        """Its transposed convolution as well, and its normalised ones are integers in the end."""
        both = ("--teacher", f"{UNET}:UNet?width=4", "--student", f"{UNET}:UNet?width=4")
        tuned = ("--quantize", "int8", "--set", "qat.steps=2")
        done = cli("distill", *both, *QUICK, "--no-baseline", *tuned, "--out", "run")
        assert done.code == 0, done.err
        done = cli("export", "run", "--target", "onnx", "--precision", "int8", "--json")
        assert done.code == 0, done.err
        (made,) = json.loads(done.out)
        kinds = {"Conv2d": 7, "ConvTranspose2d": 1}
        assert made["transformed"]["layers"] == made["transformed"]["of"] == kinds
        assert made["executed"]["precision"].startswith("int8 in 8/9")
        manifest = json.loads(Path("run/exports/student-onnx-int8/manifest.json").read_text())
        assert manifest["calibrated_on"] == "training with rounding"

    def test_complex_images_have_a_phase(self, cli: Cli) -> None:
        code = net("return x + 0.1 * self.conv(x)", channels=2)
        both = ("--teacher", code, "--student", code, "--no-baseline", "--out", "run")
        done = cli("distill", *both, *QUICK)
        assert done.code == 0, done.err
        checkpoint = load_checkpoint(Path("run/student.safetensors"))
        assert checkpoint.spec.reads is ke.models.InputKind.COMPLEX
        assert checkpoint.training["simulation"]["phase"] == "smooth and local"

    def test_export_of_code_and_weights(self, cli: Cli, weights: Path) -> None:
        np.save("mask.npy", MASK.samples)
        given = (f"{UNET}:UNet?width=6", "--weights", weights, "--for-mask", "mask.npy")
        done = cli("export", *given, "--target", "onnx")
        assert done.code == 0, done.err
        assert done.out.splitlines()[0] == "exports/UNet-onnx"
        volume = phantom_volume(4, slices=2, matrix=32)
        x_u = np.abs(zero_filled(volume.image.astype(np.complex64), MASK)).astype(np.float32)
        scale = slice_scale(x_u)
        from kdmri_edge.models.checkpoint import load_reconstructor

        network = load_reconstructor(bring_checkpoint(given[0], weights=weights, mask=MASK))
        with torch.no_grad():
            wanted = network(torch.from_numpy(network_input(x_u, scale)))[:, 0].numpy()
        np.save("v.npy", volume.image)
        done = cli("run", "exports/UNet-onnx", "v.npy", "--undersample", "-o", "o.npy")
        assert done.code == 0, done.err
        made = np.load("o.npy") / scale[:, None, None]
        assert np.abs(made - wanted).max() < 1e-4

    @pytest.mark.parametrize(
        ("command", "said"),
        [
            (("distill", "--teacher", "missing.py:Net"), ("missing.py does not exist",)),
            (("distill", "--student", "own.py"), ("own.py:FACTORY",)),
            (("distill", "--student", "own.py:Nte"), ("did you mean 'Net'",)),
            (
                ("distill", "--teacher", "own.py:Net", "--recipe", "edge"),
                ("The teacher has 1 cascade,", "no image between"),
            ),
            (("distill", "--teacher-weights", "w.pt"), ("--teacher-weights", "named as code")),
            (("export", "own.py:Net", "--target", "onnx"), ("without weights", "--weights")),
            (
                ("export", "own.py:Net", "--weights", "unet.ckpt", "--target", "onnx"),
                ("--for-mask",),
            ),
            (
                ("export", "dccnn-d3c5@brain-4x", "--weights", "unet.ckpt", "--target", "onnx"),
                ("Weights can be named", "leave it out"),
            ),
            (("verify", "own.py:Net"), ("code", "kdmri-edge export")),
            (("bench", "own.py:Net", "--data", "."), ("without weights", "--weights")),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_mistakes(self, command: Any, said: Any, cli: Cli, weights: Path) -> None:
        net("return self.conv(x)")
        before = set(Path().rglob("*"))
        cli(*command).check_refusal(*said)
        assert set(Path().rglob("*")) - before <= {Path("__pycache__")}


class Plain(nn.Module):
    """A module that is given as an object."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 1, 3, padding=1)
        )

    def forward(self, x_u: Tensor, operator: Tensor) -> Tensor:
        made: Tensor = data_consistency(
            x_u + 0.1 * self.layers(x_u), x_u, operator, 1.0, str(self.form)
        )
        return made


class Drawing(Plain):
    """One with batch normalisation, and dropout in its forward pass."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.norm = nn.BatchNorm2d(1)
        self.drop = nn.Dropout2d(0.3)

    def forward(self, x: Tensor, operator: Tensor) -> Tensor:
        made: Tensor = super().forward(x + 0.1 * self.norm(self.drop(x)), operator)
        return made


def _drawn(out: str, steps: tuple[str, ...] = SMALL) -> dict[str, Any]:
    """Distil between two that draw; return their weights."""
    torch.manual_seed(1)
    run = ke.distill(
        teacher=Drawing(4), student=Drawing(2), data="phantom", matrix=32, acceleration=2,
        assignments=steps, baseline=False, accelerator="cpu", threads=1, out=out,
    )  # fmt: skip
    return dict(load_checkpoint(run.student.path).state)


class TestThoseThatDraw:
    def test_what_is_saved_is_what_was_given(self) -> None:
        """Batch normalisation would learn from the slices by which int8 is calibrated."""
        _drawn("run")
        torch.manual_seed(1)
        given = Drawing(4).state_dict()
        saved = load_checkpoint(Path("run/teacher.safetensors")).state
        assert all(torch.equal(saved[f"module.{name}"], value) for name, value in given.items())
        trained = load_checkpoint(Path("run/student.safetensors")).state
        assert int(trained["module.norm.num_batches_tracked"]) == 3

    def test_two_runs_are_one(self) -> None:
        """Whatever else has drawn numbers before, and without touching those of the caller."""
        first = _drawn("first")
        before = torch.random.get_rng_state()
        torch.rand(7)
        second = _drawn("second")
        assert all(torch.equal(first[name], value) for name, value in second.items())
        torch.random.set_rng_state(before)
        third = _drawn("third", (*SMALL, "seed=1"))
        assert not all(torch.equal(first[name], value) for name, value in third.items())

    def test_an_interrupted_run_gives_the_same_weights(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps = (*SMALL, "imitation_steps=4", "checkpoint_every=2", "validate_every=2")
        whole = _drawn("whole", steps)
        real = StageProgress.advance

        def cut(self: StageProgress, step: int, loss: float) -> None:
            real(self, step, loss)
            if step == 3:
                raise KeyboardInterrupt

        monkeypatch.setattr(StageProgress, "advance", cut)
        with pytest.raises(KeyboardInterrupt):
            _drawn("cut", steps)
        monkeypatch.setattr(StageProgress, "advance", real)
        torch.rand(5)
        run = ke.distill(resume=True, threads=1, accelerator="cpu", out="cut")
        found = load_checkpoint(run.student.path).state
        assert all(torch.equal(whole[name], value) for name, value in found.items())


class TestPython:
    def test_modules_are_taken_as_they_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(1)
        teacher, student = Plain(6), Plain(2)
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        run = ke.distill(
            teacher=teacher, student=student, data="phantom", matrix=32, acceleration=2,
            assignments=SMALL, baseline=False, accelerator="cpu", threads=1, out="run",
        )  # fmt: skip
        assert type(teacher) is Plain
        assert teacher.training
        known = load_checkpoint(run.teacher.path).state
        assert all(torch.equal(known[f"module.{name}"], value) for name, value in before.items())
        bundle = ke.export(run.student, target="onnx", out="bundle")
        assert bundle.manifest["spec"]["reference"].startswith("object:Plain_")
        assert bundle.manifest["macs"]["data_consistency"] == 32**3
        monkeypatch.setenv("XDG_CACHE_HOME", "elsewhere")
        with pytest.raises(ke.errors.KdmriError, match="object of a Python session"):
            ke.export(run.student, target="onnx", out="other")

    def test_a_module_is_exported_with_its_weights(self) -> None:
        torch.manual_seed(1)
        module = Plain(3)
        bundle = ke.export(module, target="onnx", for_mask=MASK, out="bundle")
        every = Mask(samples=MASK.samples, name="given")
        image = phantom_volume(4, slices=1, matrix=32).image
        with ke.load(bundle, threads=1) as loaded:
            kspace = ke.physics.image_to_kspace(image[0].astype(np.complex64))
            made = loaded.reconstruct(kspace * MASK.samples[:, None], mask=every)
        assert made.shape == (32, 32)
        with pytest.raises(ModelError, match="for which mask"):
            ke.export(module, target="onnx")

    def test_weights_that_are_not_finite_are_named(self) -> None:
        module = Plain(3)
        with torch.no_grad():
            module.layers[2].weight[0, 1, 1, 1] = torch.nan
        with pytest.raises(ModelError, match=r"its weight 'layers\.2\.weight' holds") as caught:
            ke.export(module, target="onnx", for_mask=MASK)
        assert "earlier step" in caught.value.remedy

    def test_a_class_that_no_other_process_finds(self) -> None:
        class Local(Plain):
            pass

        with pytest.raises(ModelError, match=r"Local.*handed") as caught:
            ke.export(Local(2), target="onnx", for_mask=MASK)
        assert "FILE.py:Local" in caught.value.remedy


def test_networks_that_print_leave_json_readable(cli: Cli) -> None:
    name = write(
        "print('module body')\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        print('factory')\n"
        "        self.conv = nn.Conv2d(1, 1, 3, padding=1)\n"
        "    def forward(self, x):\n"
        "        print('forward')\n"
        "        return self.conv(x)\n",
        "loud.py",
    )
    told = cli("models", name, "--matrix", 32, "--json")
    assert [row["name"] for row in json.loads(told.out)["modules"]] == ["conv"]
    assert all(said in told.err for said in ("module body", "factory", "forward"))
    plain = cli("models", name, "--matrix", 32)  # for a person it stays where it is printed
    assert "forward" in plain.out
