"""Tables of the documentation that come from the code and the package itself, not from results.

`TABLES` stand in the pages themselves and are checked; `MADE` are long and change with every
option, so they are made when the site is built (`maintainer.site`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING
from importlib import resources
from typing import Final

import click

from kdmri_edge.cli import COMMANDS, main
from kdmri_edge.data.formats.registry import FORMATS
from kdmri_edge.distillation.recipe import DistillRecipe
from kdmri_edge.distillation.recipe import shipped as shipped_recipes
from kdmri_edge.models.shipped import served, shipped_networks
from kdmri_edge.runtime.targets import TARGETS
from kdmri_edge.utils.config import known_keys

__all__ = ["MADE", "TABLES", "commands", "formats", "recipe_keys", "recipes", "shipped", "targets"]


def targets() -> str:
    """Return the table of export targets as GitHub Markdown."""
    lines = [
        "| `--target` | runs in | devices | `--precision` | extra |",
        "|---|---|---|---|---|",
    ]
    for target in TARGETS.values():
        backend = target.backend
        devices, offered = ", ".join(backend.devices), ", ".join(target.offered)
        lines.append(
            f"| `{target.name}` | {backend.title} | {devices} | {offered} | `{backend.extra}` |"
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
            f" {sum(entry['steps'].values()):,} | {mean['psnr']:.2f} | {mean['ssim']:.4f} |"
            f" {figures['zero_filled']['psnr']:.2f} | {len(figures['volumes'])}"
            f" ({figures['split']}) |"
        )
    return "\n".join(lines)


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
        lines += [f"| {_code(option)} | {_cell(what)} |" for option, what in records]
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


TABLES: Final[dict[str, Callable[[], str]]] = {
    "targets": targets,
    "formats": formats,
    "shipped": shipped,
}

MADE: Final[dict[str, Callable[[], str]]] = {
    "commands": commands,
    "recipe": recipe_keys,
    "recipes": recipes,
}
