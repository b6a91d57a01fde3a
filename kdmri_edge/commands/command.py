"""The classes of this project's commands, which refuse an option that is given twice.

click takes the last of two values without a word, so that of `--precision bf16 --precision int8`
one would never be made.
"""

from __future__ import annotations

import click

__all__ = ["Command", "Group"]


class Command(click.Command):
    """A command whose options take one value each, save those that may be repeated."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read a command line.

        Raises:
            UsageError: An option that takes one value is there twice.
        """
        _refuse_twice(self, ctx, args)
        return super().parse_args(ctx, args)


class Group(click.Group):
    """A group of such commands."""

    command_class = Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Do what `Command.parse_args` does, for the group's own options."""
        _refuse_twice(self, ctx, args)
        return super().parse_args(ctx, args)


def _refuse_twice(command: click.Command, ctx: click.Context, args: list[str]) -> None:
    if ctx.resilient_parsing:  # a shell completes what is not finished
        return
    # The parser, which empties the list that it is given, tells the order in which parameters were
    # met, one entry for each time.
    _, _, order = command.make_parser(ctx).parse_args(args=list(args))
    for option in order:
        if isinstance(option, click.Option) and _takes_one(option) and order.count(option) > 1:
            name = max(option.opts, key=len)
            other = "".join(f" or {no}" for no in option.secondary_opts)
            raise click.UsageError(
                f"Option '{name}'{other} is given twice, and takes one value. Give it once.", ctx
            )


def _takes_one(option: click.Option) -> bool:
    """Tell whether a second value would replace the first; --json --json says the same twice."""
    if option.is_flag and not option.secondary_opts:
        return False
    return not (option.multiple or option.count)
