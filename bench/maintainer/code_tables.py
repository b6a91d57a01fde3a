"""Tables of the documentation that come from the code and the package itself, not from results.

`TABLES` stand in the pages themselves and are checked; `MADE` are long and change with every
option, so they are made when the site is built (`maintainer.site`).
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from dataclasses import MISSING
from functools import partial
from importlib import resources
from typing import Any, Final

import click

from experiments.script import by_optimizer
from kdmri_bench.assessment.sections import SECTIONS
from kdmri_edge.cli import COMMANDS, main
from kdmri_edge.data.formats.registry import FORMATS
from kdmri_edge.distillation.recipe import LOSSES, DistillRecipe, recipe_value
from kdmri_edge.distillation.recipe import shipped as shipped_recipes
from kdmri_edge.metrics import METRICS
from kdmri_edge.models.checkpoint import read_checkpoint_meta
from kdmri_edge.models.shipped import ShippedNetwork, served, shipped_networks
from kdmri_edge.models.specs import NETWORKS
from kdmri_edge.physics.masks import MASK_FAMILIES
from kdmri_edge.registry import Registry
from kdmri_edge.runtime.backends.registry import BACKENDS
from kdmri_edge.runtime.targets import TARGETS
from kdmri_edge.utils.config import known_keys

__all__ = ["MADE", "TABLES", "commands", "formats", "recipe_keys", "recipes", "shipped", "targets"]


def targets() -> str:
    """Return the table of export targets as GitHub Markdown."""
    lines = [
        "| `--target` | runs in | devices | `--precision` | extra | remark |",
        "|---|---|---|---|---|---|",
    ]
    for target in TARGETS.values():
        backend = target.backend
        devices, offered = ", ".join(backend.devices), ", ".join(target.offered)
        lines.append(
            f"| `{target.name}` | {backend.title} | {devices} | {offered} | `{backend.extra}` |"
            f" {target.remark} |"
        )
    return "\n".join(lines)


def formats() -> str:
    """Return the table of file formats as GitHub Markdown."""
    lines = [
        "| format | files | read | written | a round trip keeps | extra |",
        "|---|---|---|---|---|---|",
    ]
    for row in FORMATS.values():
        suffixes = ", ".join(f"`{suffix}`" for suffix in row.suffixes)
        extra = f"`{row.extra}`" if row.extra else ""
        lines.append(
            f"| {row.name} | {suffixes} | {row.reads} | {row.writes} | {row.keeps} | {extra} |"
        )
    return "\n".join(lines)


def shipped() -> str:
    """Return the table of the package's trained networks as GitHub Markdown."""
    lines = [
        "| name | parameters | mask | recipe, steps | PSNR dB | SSIM | zero-filled dB |"
        " test volumes |",
        "|---|---:|---|---|---:|---:|---:|---|",
    ]
    for name, network in shipped_networks().items():
        entry = network.entry
        figures = entry["figures"]
        mean = figures["mean"]
        lines.append(
            f"| `{name}` | {entry['parameters']:,} | {served(entry)}{entry['mask']}"
            f" ({entry['nominal_acceleration']:.2f}x) | {entry['recipe']},"
            f" {sum(entry['steps'].values()):,}{_trained(network)} | {mean['psnr']:.2f} |"
            f" {mean['ssim']:.4f} | {figures['zero_filled']['psnr']:.2f} |"
            f" {len(figures['volumes'])} ({figures['split']}) |"
        )
    return "\n".join(lines)


def _trained(network: ShippedNetwork) -> str:
    """Say which optimizer trained a network, where not Adam, and from which weights, if any."""
    training = read_checkpoint_meta(network.path)["training"]
    by = by_optimizer(recipe_value(training["recipe"], "optim.optimizer", "adam"))
    start = training.get("start")
    if start is None:
        return by
    name = f"`{start['name']}`" if "@" in start["name"] else "finished weights"
    return f"{by} from {name} of {sum(start['steps'].values()):,}"


def _cell(text: str) -> str:
    """Return text that may stand in a table's cell."""
    return " ".join(text.split()).replace("<", "&lt;").replace("|", "&#124;")


def _code(text: str) -> str:
    """Return code that may stand in a table's cell, and may be broken after each "|"."""
    return f"<code>{_cell(text).replace('&#124;', '&#124;<wbr>')}</code>"


def _command(name: str, command: click.Command) -> list[str]:
    """Return what `--help` says of a command, and of those below it, as Markdown."""
    context = click.Context(command, info_name=f"kdmri-edge {name}")
    text, _, examples = inspect.cleandoc(command.help or "").partition("\b\n")
    usage = " ".join([context.info_name or "", *command.collect_usage_pieces(context)])
    lines = [f"## {name}", "", text.strip(), "", "```", usage, "```", ""]
    if examples:
        lines += ["```", *(line.strip() for line in examples.splitlines()[1:]), "```", ""]
    records = [
        record
        for parameter in command.get_params(context)
        if (record := parameter.get_help_record(context)) and "--help" not in record[0]
    ]
    if records:
        lines += ["| option | what |", "|---|---|"]
        # two brackets after each other, a default and a range, would be a reference
        lines += [
            f"| {_code(option)} | {_cell(what).replace('[', '&#91;')} |" for option, what in records
        ]
        lines.append("")
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            assert found is not None
            lines += _command(f"{name} {below}", found)
    return lines


def commands() -> str:
    """Return all commands with their options as Markdown, a section each."""
    context = click.Context(main)
    lines: list[str] = []
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        lines += _command(name, command)
    return "\n".join(lines)


def recipe_keys() -> str:
    """Return the table of a recipe's keys as Markdown."""
    lines = ["| key | value | default | what |", "|---|---|---|---|"]
    for key in known_keys(DistillRecipe).values():
        default = "" if key.default is MISSING else f"`{_plain(key.default)}`"
        lines.append(
            f"| `{key.name}` | {_cell(key.values)} | {default} | {_cell(key.description)} |"
        )
    return "\n".join(lines)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)


def recipes() -> str:
    """Return the package's recipes as Markdown, a section each."""
    folder = resources.files("kdmri_edge.distillation") / "recipes"
    return "\n\n".join(
        f"### {name}\n\n```toml\n{(folder / f'{name}.toml').read_text(encoding='utf-8')}```"
        for name in shipped_recipes()
    )


NAMESPACES: Final = ("data", "distillation", "models", "physics", "runtime")
"""Public namespaces of `kdmri_edge` that declare their names in a stub."""

_REGISTRIES: Final[tuple[Registry[Any], ...]] = (
    NETWORKS, TARGETS, BACKENDS, FORMATS, MASK_FAMILIES, LOSSES, METRICS, SECTIONS,
)  # fmt: skip


def registries() -> str:
    """Return the table of what packages may add as Markdown."""
    lines = ["| group of entry points | what | class of a row | built in |", "|---|---|---|---|"]
    for table in _REGISTRIES:
        row = type(next(iter(table.values())))
        path = f"{row.__module__}.{row.__qualname__}"
        built_in = ", ".join(f"`{name}`" for name in table if table.origin(name) is None)
        lines.append(f"| `{table.group}` | {table.what} | `{path}` | {built_in} |")
    return "\n".join(lines)


def _stub(namespace: str) -> dict[str, str]:
    """Return where the public names of a namespace are defined: name -> full path."""
    folder = resources.files("kdmri_edge")
    stub = folder / namespace / "__init__.pyi" if namespace else folder / "__init__.pyi"
    package = f"kdmri_edge.{namespace}" if namespace else "kdmri_edge"
    return {
        name.asname or name.name: f"{package}.{node.module}.{name.name}"
        for node in ast.parse(stub.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom) and node.module
        for name in node.names
    }


def api(namespace: str) -> str:
    """Return the public names of a namespace as Markdown, for mkdocstrings to fill in.

    They are read from the stubs, so that neither PyTorch nor a runtime is needed. A name that a
    deeper namespace has too is described there.
    """
    deeper = {} if namespace else {path: n for n in NAMESPACES for path in _stub(n).values()}
    lines = []
    for name, path in _stub(namespace).items():
        if path in deeper:
            lines.append(f"- [`{name}`][{path}], of [kdmri_edge.{deeper[path]}]({deeper[path]}.md)")
    for path in _stub(namespace).values():
        if path not in deeper:
            lines += ["", f"::: {path}"]
    return "\n".join(lines) + "\n"


TABLES: Final[dict[str, Callable[[], str]]] = {
    "targets": targets,
    "formats": formats,
    "shipped": shipped,
}

MADE: Final[dict[str, Callable[[], str]]] = {
    "commands": commands,
    "recipe": recipe_keys,
    "recipes": recipes,
    "registries": registries,
    "api": partial(api, ""),
    **{f"api.{namespace}": partial(api, namespace) for namespace in NAMESPACES},
}
