"""Networks that are named by code: references, what may be called, and what a module is given."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kdmri_edge.errors import CheckpointError, ModelError
from kdmri_edge.models.adapter import Adapter, adapted, build
from kdmri_edge.models.build import build_model
from kdmri_edge.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from kdmri_edge.models.code import CodeReference, CodeSpec, Convention, is_code, is_module
from kdmri_edge.models.permission import allow_code, permitted_code
from kdmri_edge.models.protocol import InputKind
from kdmri_edge.models.specs import spec_from_dict
from kdmri_edge.physics.masks import variable_density_lines
from kdmri_edge.utils.files import sha256_file

MASK = variable_density_lines(32, 3, centre_lines=4, seed=3)
CODE = """
from torch import nn

CALLS = []

class Conv(nn.Conv2d):
    def __init__(self, width=1):
        CALLS.append(width)
        super().__init__(1, 1, 3, padding=1)
"""


@pytest.fixture(autouse=True)
def _memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who has named nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("KDMRI_EDGE_CODE", "")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    place = tmp_path / "code" / "own.py"
    place.parent.mkdir()
    place.write_text(CODE)
    return place


def spec(reference: str = "own.py:Conv", sha256: str = "0" * 64, **more: Any) -> CodeSpec:
    return CodeSpec(
        reference=reference,
        sha256=sha256,
        **{
            "convention": Convention.IMAGE,
            "reads": InputKind.MAGNITUDE,
            "has_data_consistency": False,
            "parameters": 10,
            **more,
        },
    )


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a new process knows: what is remembered alone."""
    monkeypatch.setenv("KDMRI_EDGE_CODE", "")


class TestReferences:
    @pytest.mark.parametrize(
        ("text", "place", "factory", "keywords"),
        [
            ("monai.networks.nets:UNet", "monai.networks.nets", "UNet", {}),
            ("a b/own.py:Net.make", "a b/own.py", "Net.make", {}),
            ("own.py:net?", "own.py", "net", {}),
            ("own.py:net?b=2&a=1.5", "own.py", "net", {"a": 1.5, "b": 2}),
            (
                "own.py:net?a=true&b=False&c=null",
                "own.py",
                "net",
                {"a": True, "b": False, "c": None},
            ),
            ('own.py:net?a=batch&b="x y"', "own.py", "net", {"a": "batch", "b": "x y"}),
            ("own.py:net?a=[16, 32]&b=-1e-3", "own.py", "net", {"a": [16, 32], "b": -1e-3}),
            ('own.py:net?a="true"', "own.py", "net", {"a": "true"}),
        ],
    )
    def test_what_is_read(
        self, text: str, place: str, factory: str, keywords: dict[str, Any]
    ) -> None:
        read = CodeReference.parse(text)
        assert (read.place, read.factory, read.keywords) == (place, factory, keywords)
        assert CodeReference.parse(str(read)) == read

    @given(
        st.dictionaries(
            st.from_regex(r"[a-z]{1,3}", fullmatch=True),
            st.one_of(
                st.integers(),
                st.booleans(),
                st.none(),
                st.floats(allow_nan=False, allow_infinity=False),
                st.text(st.characters(exclude_characters="&", codec="ascii"), max_size=8),
                st.lists(st.integers(), max_size=3),
            ),
            max_size=4,
        )
    )
    def test_any_arguments_come_back(self, keywords: dict[str, Any]) -> None:
        query = "&".join(f"{key}={json.dumps(value)}" for key, value in keywords.items())
        read = CodeReference.parse(f"own.py:net?{query}")
        assert read.keywords == keywords
        assert CodeReference.parse(str(read)) == read

    def test_the_order_of_arguments_does_not_matter(self) -> None:
        one, other = map(CodeReference.parse, ("a.b:f?x=1&y=two", 'a.b:f?y="two"&x=1'))
        assert one == other
        assert str(one) == "a.b:f?x=1&y=two"

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("own.py", "names no code"),
            ("own.py:", "names no code"),
            ("own.py:net?width", "'width'"),
            ("own.py:net?1=2", "'1=2'"),
            ("own.py:net?a=1&a=2", "'a=2'"),
            ("own.py:net?a=x y", "'x y'"),
            ("own.py:net?a=NaN[", "'NaN['"),
            ("own.py:net?a=[NaN]", "cannot be read"),
            ("own.py:net?a=1e999", "'1e999'"),
        ],
    )
    def test_what_is_none(self, text: str, said: str) -> None:
        with pytest.raises(ModelError) as caught:
            CodeReference.parse(text)
        assert said in caught.value.what
        assert caught.value.remedy.endswith(".")

    @pytest.mark.parametrize(
        ("text", "meant"),
        [
            ("own.py:net", True),
            ("package.module:factory?a=1", True),
            ("dccnn-d3c5", False),
            ("dccnn-d3c5@brain-4x", False),
            ("runs/brain/student.safetensors", False),
            ("own.py", False),
        ],
    )
    def test_what_is_meant_as_code(self, text: str, meant: bool) -> None:
        assert is_code(text) is meant
        assert is_code(Path(text)) is meant

    def test_a_file_of_that_name_is_a_file(self, tmp_path: Path) -> None:
        place = tmp_path / "odd.py:net"
        place.touch()
        assert not is_code(place)
        assert is_module(nn.Conv2d(1, 1, 1))
        assert not is_module("own.py:net")


class TestSpecification:
    def test_it_comes_back(self) -> None:
        whole = spec(
            convention=Convention.OPERATOR,
            reads=InputKind.SENSE,
            has_data_consistency=True,
            counted_at=(32, 48),
            convolutions=7,
            consistencies=2,
        )
        stored = json.loads(json.dumps(whole.to_dict()))
        assert spec_from_dict(stored) == whole
        assert whole.channels == 2
        assert whole.coils
        assert not whole.magnitude_input
        assert whole.receptive_radius is None

    def test_multiplications_go_with_the_pixels(self) -> None:
        counted = spec(counted_at=(16, 32), convolutions=512 * 9)
        assert counted.macs(64, 64) == {"convolutions": 64 * 64 * 9, "data_consistency": 0}
        twice = replace(counted, has_data_consistency=True, consistencies=2)
        assert twice.macs(64, 48)["data_consistency"] == 2 * 64 * 64 * 48

    @pytest.mark.parametrize(
        "change",
        [
            {"parameters": "10"},
            {"reference": 3},
            {"reference": "not code"},
            {"convention": "kspace"},
            {"has_data_consistency": 1},
            {"sha256": None},
            {"further": 1},
            {"counted_at": [1]},
        ],
        ids=str,
    )
    def test_damage_is_said(self, change: dict[str, Any]) -> None:
        with pytest.raises(ModelError):
            spec_from_dict({**spec().to_dict(), **change})


class TestPermission:
    def test_what_was_named_is_called_now_and_later(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        named = allow_code(f"{file}:Conv?width=2")
        assert named.sha256 == sha256_file(file)
        known = spec("own.py:Conv?width=2", named.sha256)
        assert isinstance(build(known), nn.Module)
        forget(monkeypatch)
        assert permitted_code("own.py:Conv?width=2", named.sha256).file == file.resolve()

    def test_files_of_one_name_in_two_folders(self, file: Path, tmp_path: Path) -> None:
        """A teacher and a student of two folders, each of which has its own network.py."""
        other = tmp_path / "other" / file.name
        other.parent.mkdir()
        other.write_text(CODE + "# another\n")
        first, second = allow_code(f"{file}:Conv"), allow_code(f"{other}:Conv")
        assert permitted_code("own.py:Conv", first.sha256).file == file.resolve()
        assert permitted_code("own.py:Conv", second.sha256).file == other.resolve()

    def test_processes_that_are_started_from_here_know_it(self, file: Path) -> None:
        allow_code(f"{file}:Conv")
        allow_code(f"{file}:Conv")
        assert os.environ["KDMRI_EDGE_CODE"] == f"{file.resolve()}:Conv"

    @pytest.mark.parametrize(
        "reference",
        [
            'os:system?command="touch hacked"',
            "os:abort",
            'subprocess:run?args=["touch","hacked"]',
            "own.py:Conv?width=2",
            "object:Conv_000000000000",
        ],
    )
    def test_what_a_stranger_names_is_not_called(
        self, reference: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The header of a checkpoint from elsewhere; the nearest that was named is another."""
        monkeypatch.chdir(tmp_path)
        allow_code(f"{file}:Conv")
        stranger = spec(reference)
        checkpoint = Checkpoint(
            spec=stranger, mask=MASK, matrix=32, role="student", training={}, state={}
        )
        save_checkpoint(tmp_path / "from-elsewhere.safetensors", checkpoint)
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(tmp_path / "from-elsewhere.safetensors")
        assert not (tmp_path / "hacked").exists()
        assert "--code" in caught.value.remedy or "Export it" in caught.value.remedy

    def test_nothing_is_imported_for_a_stranger(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = tmp_path / "strange_package"
        package.mkdir()
        (package / "__init__.py").write_text("raise SystemError('imported')")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(ModelError, match="by nobody"):
            build(spec("strange_package.module:net"))

    @pytest.mark.parametrize("fails", ["raise RuntimeError('no GPU')", "raise SystemExit(1)"])
    def test_a_package_that_fails_when_a_module_of_it_is_named(
        self, fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = tmp_path / f"failing_package_{len(fails)}"
        package.mkdir()
        (package / "__init__.py").write_text(fails)
        (package / "nets.py").write_text("")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(ModelError, match=r"package around .* cannot be imported"):
            allow_code(f"{package.name}.nets:net")

    def test_code_that_changed(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        sha256 = allow_code(f"{file}:Conv").sha256
        forget(monkeypatch)
        file.write_text(CODE + "# changed\n")
        with pytest.raises(ModelError, match=r"own\.py:Conv has changed"):
            permitted_code("own.py:Conv", sha256)
        now = allow_code(f"{file}:Conv")  # knowing that it did
        assert permitted_code("own.py:Conv", sha256).sha256 == now.sha256 != sha256

    def test_another_file_of_that_name(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        allow_code(f"{file}:Conv")
        forget(monkeypatch)
        with pytest.raises(ModelError, match="with another content"):
            permitted_code("own.py:Conv", "1" * 64)

    def test_a_file_that_moved_is_found_when_it_is_named(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sha256 = allow_code(f"{file}:Conv").sha256
        forget(monkeypatch)
        moved = file.rename(file.with_name("elsewhere.py"))
        with pytest.raises(ModelError, match="moved"):
            permitted_code("own.py:Conv", sha256)
        back = moved.rename(file.parent.parent / "own.py")
        allow_code(f"{back}:Conv")
        forget(monkeypatch)
        assert permitted_code("own.py:Conv", sha256).file == back.resolve()

    def test_what_remembers_may_be_damaged(
        self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sha256 = allow_code(f"{file}:Conv").sha256
        forget(monkeypatch)
        for entry in (tmp_path / "cache" / "kdmri-edge" / "code").glob("*.json"):
            entry.write_text("[")
        with pytest.raises(ModelError, match="by nobody"):
            permitted_code("own.py:Conv", sha256)

    @pytest.mark.parametrize(
        ("reference", "said"),
        [
            ("missing.py:net", "does not exist"),
            ("no_such_package.module:net", "no module"),
            ("torch.no_such_module:net", "no module"),
            ("sys:exit", "no file"),
        ],
    )
    def test_what_is_not_there_is_not_remembered(
        self, reference: str, said: str, tmp_path: Path
    ) -> None:
        with pytest.raises(ModelError, match=said):
            allow_code(reference)
        assert not (tmp_path / "cache").exists()


class TestCalling:
    @pytest.mark.parametrize(
        ("source", "factory", "said", "remedy"),
        [
            ("import torhc", "net", "No module named 'torhc' (line 1 of own.py)", "install"),
            ("def net(:", "net", "SyntaxError", "Mend it"),
            ("1 / 0", "net", "ZeroDivisionError", "Mend it"),
            ("def unet(): pass", "une", "has no 'une'; did you mean 'unet'?", "Name a"),
            ("net = 3", "net", "an object of class int", "Name a function"),
            ("from torch import nn\nnet = nn.Conv2d(1, 1, 1)", "net", "class Conv2d", "Name its"),
            ("def net(width): pass", "net", "needs the argument 'width'", "own.py:net?width="),
            ("def net(width=1): pass", "net?with=1", "did you mean 'width'", "It takes width"),
            ("def net(): pass", "net?a=1", "takes no argument 'a'", "It takes no arguments"),
            ("def net(): pass", "net", "gives None", "torch.nn.Module"),
            ("from torch import nn\nnet = lambda: nn.ReLU", "net", "the class ReLU", "returns one"),
            ("def net():\n    raise KeyError('a')", "net", "KeyError: 'a' (line 2", "Mend"),
            ("from torch import nn\nnet = nn.ReLU", "net", "no trainable parameters", "layers"),
            (
                "import torch\nfrom torch import nn\n"
                "net = lambda: nn.Conv2d(1, 1, 1, dtype=torch.complex64)",
                "net",
                "complex weights",
                "two real channels",
            ),
        ],
    )
    def test_what_goes_wrong_is_a_sentence(
        self, source: str, factory: str, said: str, remedy: str, file: Path
    ) -> None:
        file.write_text(source)
        code = allow_code(f"{file}:{factory}")
        with pytest.raises(ModelError) as caught:
            build(spec(f"own.py:{factory}", code.sha256))
        assert said in caught.value.what or said in caught.value.remedy
        assert remedy in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_file_is_run_once_for_each_content(self, file: Path) -> None:
        def calls(width: int) -> list[int]:
            code = allow_code(f"{file}:Conv?width={width}")
            module = build(spec(f"own.py:Conv?width={width}", code.sha256)).get_submodule("module")
            found: list[int] = vars(__import__(type(module).__module__))["CALLS"]
            return found

        assert calls(1)[-1] == 1
        assert calls(2)[-2:] == [1, 2]
        file.write_text(CODE + "# changed\n")
        assert calls(3)[-1] == 3

    def test_what_lies_beside_a_file_can_be_imported(self, file: Path) -> None:
        file.with_name("layers_of_own.py").write_text("from torch.nn import Conv2d as Layer")
        file.write_text(
            "from layers_of_own import Layer\ndef net(): return Layer(1, 1, 3, padding=1)"
        )
        code = allow_code(f"{file}:net")
        assert build(spec("own.py:net", code.sha256)).get_submodule("module").kernel_size == (3, 3)

    def test_weights_in_half_precision_become_float(self, file: Path) -> None:
        file.write_text("from torch import nn\ndef net(): return nn.Conv2d(1, 1, 1).half()")
        code = allow_code(f"{file}:net")
        network = build(spec("own.py:net", code.sha256))
        assert {p.dtype for p in network.parameters()} == {torch.float32}


def module(forward: Callable[..., Any], channels: int = 1) -> nn.Module:
    """A module with this `forward`."""
    made: nn.Module = type("Made", (nn.Module,), {"forward": forward})()
    made.conv = nn.Conv2d(channels, channels, 3, padding=1)
    return made


class TestConventions:
    @pytest.mark.parametrize(
        ("forward", "channels", "convention", "reads"),
        [
            (lambda self, x: x, 1, Convention.IMAGE, InputKind.MAGNITUDE),
            (lambda self, x, steps=None: x, 1, Convention.IMAGE, InputKind.MAGNITUDE),
            (lambda self, x: x, 2, Convention.COMPLEX_IMAGE, InputKind.COMPLEX),
            (lambda self, x, operator: x, 1, Convention.OPERATOR, InputKind.MAGNITUDE),
            (lambda self, x, operator: x, 2, Convention.OPERATOR, InputKind.COMPLEX),
            (lambda self, x, operator, maps: x, 2, Convention.OPERATOR, InputKind.SENSE),
            (lambda self, masked_kspace, mask: 0, 2, Convention.MONAI, InputKind.KSPACE),
            (lambda self, y, physics: 0, 2, Convention.DEEPINV, InputKind.COMPLEX),
            (lambda self, y, physics=None: 0, 2, Convention.DEEPINV, InputKind.COMPLEX),
            (lambda self, y, physics, init=None: 0, 3, Convention.DEEPINV, InputKind.COMPLEX),
            (
                lambda self, masked_kspace, mask, num_low_frequencies=None: 0,
                2,
                Convention.FASTMRI,
                InputKind.KSPACE,
            ),
            (
                lambda self, masked_kspace, mask, num_low_frequencies: 0,
                2,
                Convention.FASTMRI,
                InputKind.KSPACE,
            ),
        ],
    )
    def test_they_are_found_by_the_signature(
        self, forward: Any, channels: int, convention: Convention, reads: InputKind
    ) -> None:
        found = adapted(module(forward, channels), "own")
        assert (found.convention, found.reads) == (convention, reads)
        images = (Convention.IMAGE, Convention.COMPLEX_IMAGE)
        assert found.network.has_data_consistency is (convention not in images)

    def test_they_can_be_said(self) -> None:
        found = adapted(module(lambda self, *x: x[0], 3), "own", Convention.COMPLEX_IMAGE)
        assert found.reads is InputKind.COMPLEX
        found = adapted(module(lambda self, kspace, mask: 0), "own", Convention.MONAI)
        assert found.reads is InputKind.KSPACE
        found = adapted(module(lambda self, k, a: 0), "own", Convention.DEEPINV_MULTICOIL)
        assert found.reads is InputKind.KSPACE

    @pytest.mark.parametrize(
        ("forward", "said", "sentence"),
        [
            (lambda self, kspace, mask: 0, None, "k-space (kspace)"),
            (lambda self, masked_kspace, sens_maps, mask: 0, None, "k-space (masked_kspace)"),
            (lambda self, y, physics, sigma: 0, None, "deepinv"),
            (lambda self, y, physics: 0, "image", "deepinv"),
            (lambda self, x: 0, "monai", "takes 1 arguments"),
            (lambda self, x, timesteps: 0, None, "forward(x, timesteps)"),
            (lambda self: 0, None, "no convention"),
            (lambda self, *x: 0, None, "no convention"),
            (lambda self, x, operator: 0, "image", "takes 2 arguments"),
            (lambda self, x: 0, "operator", "takes 1 arguments"),
            (lambda self, x: 0, "adapter", "derives from"),
        ],
    )
    def test_others_are_refused(self, forward: Any, said: str | None, sentence: str) -> None:
        with pytest.raises(ModelError) as caught:
            adapted(module(forward), "own", None if said is None else Convention(said))
        assert sentence in caught.value.what
        assert "adapter" in str(caught.value)

    def test_a_class_without_forward_is_told_so(self) -> None:
        class Empty(nn.Module):
            pass

        with pytest.raises(ModelError, match="class Empty that has no forward") as caught:
            adapted(Empty(), "own.py:Empty")
        assert "forward" in caught.value.remedy

    def test_a_forward_of_the_object_is_taken(self) -> None:
        made = nn.Conv2d(1, 1, 3, padding=1)
        empty = nn.Module()
        vars(empty)["forward"] = made.forward
        assert adapted(empty, "own").convention is Convention.IMAGE

    def test_names_of_ones_own_do_not_collide(self, file: Path) -> None:
        """`features` and `form` are this library's names, and those of many modules."""
        file.write_text(
            "from torch import nn\n"
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.features = nn.Conv2d(1, 1, 3, padding=1)\n"
            "        self.form = nn.Conv2d(1, 1, 1)\n"
            "        self.spec = 'mine'\n"
            "        self.convolutions = 2\n"
            "    def forward(self, x):\n"
            "        return self.form(self.features(x))\n"
        )
        code = allow_code(f"{file}:Net")
        network = build_model(spec("own.py:Net", code.sha256))
        x_u = torch.randn(1, 1, 8, 8)
        made = network.features(x_u, torch.zeros(0)).output
        inner = network.get_submodule("module")
        assert torch.equal(made, inner(x_u))
        assert [one.name for one in network.layers()] == ["module.features", "module.form"]

    def test_an_adapter_of_ones_own(self, file: Path) -> None:
        file.write_text(
            "from torch import nn\n"
            "from kdmri_edge.models import Adapter, InputKind\n"
            "class Slices(Adapter):\n"
            "    reads = InputKind.COMPLEX\n"
            "    def forward(self, x_u):\n"
            "        parts = self.module(x_u.flatten(0, 1)[:, None])\n"
            "        return parts.unflatten(0, (-1, 2))[:, :, 0]\n"
            "def net(): return Slices(nn.Conv2d(1, 1, 3, padding=1))\n"
        )
        code = allow_code(f"{file}:net")
        own = spec(
            "own.py:net", code.sha256, convention=Convention.ADAPTER, reads=InputKind.COMPLEX
        )
        network = build_model(own)
        assert isinstance(network, Adapter)
        x_u = torch.randn(3, 2, 8, 8)
        assert network(x_u, torch.zeros(0), None).shape == x_u.shape
        assert network.features(x_u, torch.zeros(0)).output.shape == x_u.shape

    def test_the_operator_comes_with_its_form(self) -> None:
        def forward(self: Any, x: Tensor, operator: Tensor) -> Tensor:
            return x + operator * len(str(self.form))

        made = module(forward)
        network = adapted(made, "own").network
        network.spec = spec(has_data_consistency=True)
        network.form = "dft"  # type: ignore[assignment]
        assert network(torch.zeros(1), torch.ones(1), None) == 3
