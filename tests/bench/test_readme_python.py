"""The Python of README and docs calls what exists, and their keys of recipes are today's.

`tests.core.test_api` runs the README's lines on the phantom.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kdmri_edge as ke
from kdmri_edge.distillation.recipe import DistillRecipe
from kdmri_edge.distillation.run_folder import Run
from kdmri_edge.utils.config import known_keys
from maintainer.readme import pages

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
# What the names of the README's lines stand for.
OBJECTS: dict[str, type] = {"net": ke.Network, "run": Run, "bundle": ke.Bundle, "report": ke.Report}


def named(node: ast.expr) -> Any:
    """Return what an expression such as `ke.load` or `net.reconstruct` names."""
    if isinstance(node, ast.Name):
        return ke if node.id == "ke" else OBJECTS[node.id]
    assert isinstance(node, ast.Attribute)
    return getattr(named(node.value), node.attr)


def of_ours(node: ast.expr) -> bool:
    """Tell whether an expression begins with a name that is known here."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id in {"ke", *OBJECTS}


def check(source: str) -> int:
    """Check every name and call of a block; return how many calls there are."""
    calls = 0
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and of_ours(node):
            named(node)
        if isinstance(node, ast.Call) and of_ours(node.func):
            function: Callable[..., Any] = named(node.func)
            method = isinstance(node.func, ast.Attribute) and not (
                isinstance(node.func.value, ast.Name) and node.func.value.id == "ke"
            )
            given = [None] * (len(node.args) + method)
            keywords = {word.arg: None for word in node.keywords if word.arg}
            inspect.signature(function).bind(*given, **keywords)
            calls += 1
    return calls


def test_calls_of_the_pages_are_those_of_the_library() -> None:
    blocks = {page: BLOCK.findall(page.read_text(encoding="utf-8")) for page in pages(ROOT)}
    (readme,) = blocks[ROOT / "README.md"]
    assert check(readme) >= 6
    assert len(readme.splitlines()) <= 12
    for texts in blocks.values():
        for text in texts:
            check(text)


def test_keys_of_the_pages_are_those_of_recipes() -> None:
    texts = [page.read_text(encoding="utf-8") for page in pages(ROOT)]
    keys = {key for text in texts for key in re.findall(r"--set ([\w.]+)=", text)} - {"key"}
    assert len(keys) > 4
    # flat keys of groups work, and are not taught; below a table the names are a network's own
    own = {key for key in keys if key.startswith("distillation.taps.")}
    assert not keys - own - set(known_keys(DistillRecipe))


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("ke.loads('x')", AttributeError),
        ("ke.load('x', precison='int8')", TypeError),
        ("net.reconstruct()", TypeError),
        ("run.pupil", AttributeError),
    ],
)
def test_a_wrong_line_is_seen(line: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        check(line)
