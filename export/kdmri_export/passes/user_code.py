"""What a user is told of their code while it is traced: the line at fault, and nothing else."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import torch
from torch import fx

__all__ = ["raised_line", "silence", "source_line"]

_FRAME: Final = re.compile(
    r'^ *File "(?P<file>.+?)", line (?P<line>\d+), in .+\n(?P<code>.*)$', re.M
)
_TORCH: Final = str(Path(torch.__file__).parent)


def source_line(node: fx.Node) -> str:
    """Return "line 12 of model.py (`y = torch.linalg.inv(x)`)", for a message.

    The innermost frame outside PyTorch is taken: the line that calls a layer of torch.nn.
    """
    frames = list(_FRAME.finditer(node.meta.get("stack_trace") or ""))
    own = [frame for frame in frames if not frame["file"].startswith(_TORCH)] or frames
    if not own:
        return f"the operator `{node.name}`, whose line PyTorch does not tell,"
    found = own[-1]
    return f"line {found['line']} of {found['file']} (`{found['code'].strip()}`)"


def raised_line(error: BaseException) -> str:
    """Return the user's line that an exception was raised from; empty if there is none."""
    found = ""
    package = str(Path(__file__).parents[1])
    for frame in traceback.extract_tb(error.__traceback__):
        inside = frame.filename.startswith((_TORCH, package)) or frame.filename.startswith("<")
        if not inside:
            found = f"line {frame.lineno} of {frame.filename} (`{(frame.line or '').strip()}`)"
    return found


@contextlib.contextmanager
def silence(
    loggers: Sequence[str] = ("torch.export", "torch.fx", "torch._subclasses"),
    *,
    level: int = logging.CRITICAL,
    redirect: Callable[[io.StringIO], AbstractContextManager[object]] = contextlib.redirect_stderr,
    modules: str = r"torch\b",
) -> Iterator[None]:
    """Keep what an exporter logs, prints and warns of from the user; its errors are raised.

    Args:
        loggers: Names of its loggers.
        level: From which level on their messages are still shown.
        redirect: Which of Python's streams it prints to.
        modules: Pattern of the modules whose warnings are kept back, beside all deprecations, some
            of which name a module of the standard library.
    """
    found = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(level)
    try:
        with warnings.catch_warnings(), redirect(io.StringIO()):
            for category in (DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            warnings.filterwarnings("ignore", module=modules)
            yield
    finally:
        for logger, former in zip(found, levels, strict=True):
            logger.setLevel(former)
