from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from kdmri_edge.distillation.recipe import (
    FORMER_KEYS,
    DistillRecipe,
    Imitation,
    Insertion,
    Schedule,
    default_recipe,
    load_recipe,
    overridden,
    recipe_value,
    shipped,
)
from kdmri_edge.distillation.request import Settings
from kdmri_edge.errors import RecipeError
from kdmri_edge.models.specs import preset
from kdmri_edge.utils.config import known_keys
from kdmri_edge.utils.console import get_console

OLD = Path(__file__).resolve().parents[2] / "data" / "v0_1"


@pytest.fixture
def fresh_console() -> Iterator[None]:
    """The console holds on to the standard error that it was made with."""
    get_console.cache_clear()
    yield
    get_console.cache_clear()


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_load_under_their_name(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.student_steps == recipe.attention_steps + recipe.imitation_steps
    assert DistillRecipe.from_dict(recipe.to_dict(), "copy") == recipe


def test_the_two_promised_recipes_are_there() -> None:
    assert {"kd-mri", "quickstart"} <= set(shipped())


def test_recipe_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('batch = 3\nloss = "mse"\nlearning_rate = 1\n')
    recipe = load_recipe(str(file))
    assert (recipe.name, recipe.batches.size, recipe.optim.loss) == ("mine", 3, "mse")
    assert recipe.optim.learning_rate == 1.0
    assert isinstance(recipe.optim.learning_rate, float)


def test_assignments_override_the_file() -> None:
    recipe = load_recipe(
        "kd-mri",
        [
            "seed=7",
            "distillation.alpha = 1",
            "distillation.imitation=cascades",
            "batches.flip=false",
            'optim.schedule="constant"',
        ],
    )
    assert (recipe.seed, recipe.distillation.alpha, recipe.batches.flip) == (7, 1.0, False)
    assert recipe.distillation.imitation is Imitation.CASCADES
    assert recipe.optim.schedule is Schedule.CONSTANT
    assert recipe.teacher_steps == load_recipe("kd-mri").teacher_steps


def test_overridden_keeps_the_rest() -> None:
    recipe = load_recipe("quickstart", ["batches.size=2"])
    assert overridden(recipe, []) == recipe
    assert overridden(recipe, ["qat.steps=1"]).distillation == recipe.distillation
    assert overridden(recipe, ["seed=1"]).to_dict() == {**recipe.to_dict(), "seed": 1}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("learning_rat=1e-3", "Did you mean 'optim.learning_rate'"),
        ("optim.learning_rat=1e-3", "Did you mean 'optim.learning_rate'"),
        ("batches.learning_rate=1e-3", "Did you mean 'optim.learning_rate'"),
        ("batches.sise=3", "Did you mean 'batches.size'"),
        ("lr=0.1", "Did you mean 'optim.learning_rate'"),
        ("optim.lr=0.1", "Did you mean 'optim.learning_rate'"),
        ("bs=3", "Did you mean 'batches.size'"),
        ("epochs=3", "Did you mean 'imitation_steps'"),
        ("quantize=int8", "Did you mean 'qat.quantize'"),
        ("weight_decay=1e-4", "not a known key. All keys: kdmri-edge distill --list-keys"),
        ("optim=3", "'optim' of --set is a group of keys. Name one of them as optim.KEY"),
        ("batches.size=two", "type int"),
        ("batches.size=2.5", "type int"),
        ("batches.size=true", "type int"),
        ("batches.flip=1", "type bool"),
        ("optim.learning_rate=fast", "type float"),
        ("optim.learning_rate=nan", "between"),
        ("distillation.alpha=1.5", "between 0.0 and 1.0"),
        ("batches.size=0", "at least 1"),
        ("seed=-1", "at least 0"),
        ("optim.loss=l2", "l1, mse"),
        ("optim.loss=3", "type str"),
        ("batch", "has no '='"),
    ],
)
def test_bad_assignments(assignment: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message.replace(".", r"\.")) as caught:
        load_recipe("kd-mri", [assignment])
    assert caught.value.remedy


def test_unknown_recipe_names_the_shipped_ones() -> None:
    with pytest.raises(RecipeError, match="no recipe 'kdmri'") as caught:
        load_recipe("kdmri")
    assert "kd-mri" in caught.value.remedy


def test_invalid_toml(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("batch = ")
    with pytest.raises(RecipeError, match="not valid TOML"):
        load_recipe(str(file))
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not valid TOML"):
        load_recipe(str(file))


@pytest.mark.parametrize(
    ("teacher", "student"), [("dccnn-d5c5", "dccnn-d3c5"), ("vdsr-11", "vdsr-7")]
)
def test_every_student_has_a_default_recipe_that_suits_it(
    settings: Callable[..., Settings], teacher: str, student: str
) -> None:
    recipe = load_recipe(default_recipe(preset(student)))
    made = settings(teacher=teacher, student=student, recipe=recipe)
    assert made.student_spec.dilation == recipe.distillation.dilation
    assert made.plain_spec == preset(student)


def test_keys_of_version_0_1_are_taken_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fresh_console: None
) -> None:
    file = tmp_path / "old.toml"
    file.write_text('batch = 3\nloss = "mse"\nseed = 4\n[optim]\nwarmup = 7\n')
    recipe = load_recipe(str(file), ["quantise=int8"])
    assert (recipe.batches.size, recipe.optim.loss, recipe.qat.quantize) == (3, "mse", "int8")
    assert (recipe.seed, recipe.optim.warmup) == (4, 7)
    first, second = capsys.readouterr().err.splitlines()
    assert "batch is now batches.size, loss is now optim.loss" in first
    assert str(file) in first
    assert "quantise is now qat.quantize" in second
    # what the package itself wrote has its own names and needs no word
    assert DistillRecipe.from_dict(recipe.flat(), "run.json") == recipe
    assert DistillRecipe.from_dict(recipe.to_dict(), "run.json") == recipe
    assert capsys.readouterr().err == ""
    file.write_text("batch = 3\n[batches]\nsize = 4\n")
    with pytest.raises(RecipeError, match=r"both 'batch' and 'batches.size'"):
        load_recipe(str(file))


def test_every_key_of_version_0_1_has_a_key_today() -> None:
    written = json.loads((OLD / "recipes" / "resolved" / "user.json").read_text())["recipe"]
    recipe = DistillRecipe.from_dict(written, "user.json")
    later = {
        "batches.matrices": [],
        "distillation.taps": {},
        "distillation.taps_weight": 0.01,
        "optim.optimizer": "adam",
        "qat.alpha": 0.35,
        "qat.float_layers": [],
        "qat.fine_layers": [],
        **{f"insertion.{key}": value for key, value in asdict(Insertion()).items()},
    }
    assert recipe.flat() == {**written, **later}
    known = known_keys(DistillRecipe)
    assert set(FORMER_KEYS.values()) <= known.keys()
    for former, today in FORMER_KEYS.items():
        assert recipe_value(written, today) == recipe_value(recipe.to_dict(), today)
        assert recipe_value(written, today) == written[former]
    assert recipe_value({}, "qat.quantize", "int8") == "int8"


def test_every_key_says_what_it_is() -> None:
    for name, key in known_keys(DistillRecipe).items():
        assert key.description.endswith((".", ")")), name
        assert key.description[0].isupper(), name


@pytest.mark.parametrize("name", shipped())
def test_the_list_of_keys_is_a_recipe(cli: Callable[..., Any], name: str, tmp_path: Path) -> None:
    shown = cli("distill", "--list-keys", "--recipe", name, "--set", "optim.clip=0.125")
    assert shown.code == 0, shown.err
    file = tmp_path / "mine.toml"
    file.write_text(shown.out)
    assert load_recipe(str(file)) == load_recipe(name, ["optim.clip=0.125"])
    assert "clip = 0.125" in shown.out
    assert "a longer one is scaled to it. (number, at least 1e-06" in " ".join(shown.out.split())
    assert max(map(len, shown.out.splitlines())) <= 100


def test_help_says_where_the_keys_are_listed(cli: Callable[..., Any]) -> None:
    assert "--list-keys" in cli("distill", "--help").out
