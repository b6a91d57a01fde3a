from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kdmri_edge.distillation.recipe import (
    DistillRecipe,
    Imitation,
    Schedule,
    default_recipe,
    load_recipe,
    overridden,
    shipped,
)
from kdmri_edge.distillation.request import Settings
from kdmri_edge.errors import RecipeError
from kdmri_edge.models.specs import preset


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
    assert (recipe.name, recipe.batch, recipe.loss) == ("mine", 3, "mse")
    assert recipe.learning_rate == 1.0
    assert isinstance(recipe.learning_rate, float)


def test_assignments_override_the_file() -> None:
    recipe = load_recipe(
        "kd-mri",
        ["seed=7", "alpha = 1", "imitation=cascades", "flip=false", 'schedule="constant"'],
    )
    assert (recipe.seed, recipe.alpha, recipe.flip) == (7, 1.0, False)
    assert recipe.imitation is Imitation.CASCADES
    assert recipe.schedule is Schedule.CONSTANT
    assert recipe.teacher_steps == load_recipe("kd-mri").teacher_steps


def test_overridden_keeps_the_rest() -> None:
    recipe = load_recipe("quickstart", ["batch=2"])
    assert overridden(recipe, []) == recipe
    assert overridden(recipe, ["seed=1"]).to_dict() == {**recipe.to_dict(), "seed": 1}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("learning_rat=1e-3", "Did you mean 'learning_rate'"),
        ("batsh=3", "Did you mean 'batch'"),
        ("batch=two", "type int"),
        ("batch=2.5", "type int"),
        ("batch=true", "type int"),
        ("flip=1", "type bool"),
        ("learning_rate=fast", "type float"),
        ("learning_rate=nan", "between"),
        ("alpha=1.5", "between 0.0 and 1.0"),
        ("batch=0", "at least 1"),
        ("seed=-1", "at least 0"),
        ("loss=l2", "l1, mse"),
        ("loss=3", "type str"),
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
    recipe = load_recipe(default_recipe(preset(student).kind))
    made = settings(teacher=teacher, student=student, recipe=recipe)
    assert made.student_spec.dilation == recipe.dilation
    assert made.plain_spec == preset(student)
