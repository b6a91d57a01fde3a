"""The command line: a group that loads each sub-command only when it is named."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import click

from kdmri_edge import __version__
from kdmri_edge.commands.command import Group
from kdmri_edge.errors import Interrupted, KdmriError
from kdmri_edge.utils.console import tell
from kdmri_edge.utils.extras import load_attribute
from kdmri_edge.utils.suggest import nearest

__all__ = ["COMMANDS", "main", "run"]

# name -> (import string, one line of help): --help imports none of them.
COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": (
        "kdmri_bench.commands.quickstart:quickstart",
        "Everything below on an embedded phantom, in minutes.",
    ),
    "distill": (
        "kdmri_edge.commands.distill:distill",
        "Train a teacher and distil it into a compact student.",
    ),
    "export": (
        "kdmri_export.commands.export:export",
        "Write networks for ONNX Runtime, OpenVINO, TensorRT or libtorch, checked for parity.",
    ),
    "check": (
        "kdmri_export.commands.check:check",
        "Ask the runtimes that are installed whether they take an ONNX graph.",
    ),
    "rewrite": (
        "kdmri_export.commands.rewrite:rewrite",
        "Write an ONNX graph with matrix products in place of its DFT nodes.",
    ),
    "run": (
        "kdmri_edge.commands.run:run",
        "Reconstruct files with a bundle; PyTorch is not needed.",
    ),
    "evaluate": (
        "kdmri_edge.commands.evaluate:evaluate",
        "Compare reconstructions with fastMRI's references, as its public evaluation does.",
    ),
    "data": (
        "kdmri_edge.commands.data:data",
        "Say what is in a file of images or k-space; convert between formats.",
    ),
    "serve": (
        "kdmri_edge.commands.serve:serve",
        "Reconstruct a scanner's stream (MRD, as FIRE, OpenRecon and Gadgetron clients speak it).",
    ),
    "send": (
        "kdmri_edge.commands.send:send",
        "Send an MRD file to such a server and keep the images.",
    ),
    "archive": (
        "kdmri_edge.commands.archive:archive",
        "Ask a DICOM archive whether it is there; list, or send, what waits for it.",
    ),
    "sign": (
        "kdmri_edge.commands.sign:sign",
        "Sign bundles, so that a site can tell where they come from; make the key.",
    ),
    "verify": (
        "kdmri_edge.commands.verify:verify",
        "Accept a bundle on site: files, signature, golden image, speed and memory.",
    ),
    "calibrate": (
        "kdmri_edge.commands.calibrate:calibrate",
        "Calibrate what certificates say: which slices are in scope, how large errors are.",
    ),
    "bench": (
        "kdmri_bench.commands.bench:bench",
        "Compare quality, latency and memory of networks and backends.",
    ),
    "assess": (
        "kdmri_bench.commands.assess:assess",
        "Measure what compression does to images, for those who decide about its use.",
    ),
    "select": (
        "kdmri_bench.commands.select:select",
        "Pick the smallest variant of a report that keeps your limits.",
    ),
    "reproduce": (
        "kdmri_bench.commands.reproduce:reproduce",
        "Repeat KD-MRI's comparison fairly: equal data, equal steps, intervals.",
    ),
    "models": (
        "kdmri_edge.commands.models:models",
        "List the architectures, and the trained networks of the package.",
    ),
    "doctor": (
        "kdmri_export.commands.doctor:doctor",
        "Say what this machine can train, export and run, and what is missing.",
    ),
}

# Commands whose work is kept when they are stopped, and how it goes on.
_GOES_ON = {
    "reproduce": " The same command goes on.",
}


_SYSTEM = {
    errno.ENOSPC: "Free some space.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EACCES: "Choose a place that you may read and write.",
}


_ENDED = "A file or a stream ended before its contents did. Copy the files again."


class _LazyGroup(Group):
    """A group whose commands are import strings."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = load_attribute(COMMANDS[cmd_name][0])
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = nearest(args[0], COMMANDS, likeness=0.4)
            hint = f" Did you mean {near!r}?" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--code",
    multiple=True,
    metavar="FILE.py:FACTORY|BUNDLE",
    help="Allow the code that a checkpoint's network is made by, or the program in a bundle (all of"
    " target pt2; of target torchscript those that hold more than exports do), which you know and"
    " trust, to be called; may be repeated. Code that you named once, and programs that were"
    " exported here, are allowed.",
)
@click.version_option(__version__, prog_name="kdmri-edge")
def main(code: tuple[str, ...]) -> None:
    """Compress MR reconstruction networks and ship them to scanner-side hardware.

    A heavy teacher is distilled into a compact student, exported to runtimes that need no PyTorch,
    and measured against the teacher:

    \b
      kdmri-edge distill --data DIR --mask FILE --out runs/brain
      kdmri-edge export runs/brain --target onnx
      kdmri-edge bench runs/brain --data DIR

    New here? `kdmri-edge quickstart` runs all of it on an embedded phantom.
    """  # noqa: D301 - click wants the backspace itself
    if code:
        from kdmri_edge.models.permission import allow_code, allow_program, is_program

        for reference in code:
            if is_program(reference):
                allow_program(Path(reference))
            else:
                allow_code(reference)


def _guarded(command: Callable[[], object]) -> int:
    """Run a command; turn what a user can cause into one sentence and an exit code."""
    # Distributed launchers number the processes of a host; what goes wrong in all is said by one.
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        code = command()
    except click.ClickException as error:
        if speaks:
            shown = io.StringIO()
            error.show(shown)
            tell(shown.getvalue(), err=True, nl=False)
        return error.exit_code
    except KdmriError as error:
        if speaks:
            tell(f"Error: {error}", err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as stop:
        if isinstance(stop.__cause__, EOFError):  # click takes it for the end of a terminal's input
            if speaks:
                tell(f"Error: {_ENDED}", err=True)
            return 1
        if speaks:
            # click turns every KeyboardInterrupt into an Abort, and remembers it.
            cause = stop.__cause__ if isinstance(stop, click.Abort) else stop
            kept = isinstance(cause, Interrupted)
            said = str(cause) if kept else "Interrupted: nothing half-written is left."
            goes_on = _GOES_ON.get(next(iter(sys.argv[1:]), ""), "")
            tell(f"{said}{goes_on}", err=True)
        return 1
    except BrokenPipeError:
        return 0
    except OSError as error:  # of places that no reader or writer speaks for, such as a full stdout
        name = f" {error.filename}" if error.filename else ""
        remedy = _SYSTEM.get(error.errno or 0, "Check the path.")
        if speaks:
            said = f"The system refused{name} ({error.strerror or error})."
            tell(f"Error: {said} {remedy}", err=True)
        return 1
    return code if isinstance(code, int) else 0  # click returns the code of ctx.exit()


def run() -> None:
    """Entry point: `main` with errors as single sentences instead of tracebacks."""
    sys.exit(_guarded(lambda: main.main(standalone_mode=False)))
