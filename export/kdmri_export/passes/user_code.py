"""What a user is told of their code while it is traced: the line at fault, and nothing else."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import traceback
import warnings
from collections.abc import Iterator
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
def silence() -> Iterator[None]:
    """Keep what torch.export logs, prints and warns of from the user; its errors are raised."""
    names = ("torch.export", "torch.fx", "torch._subclasses")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            for category in (DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            warnings.filterwarnings("ignore", module=r"torch\b")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
