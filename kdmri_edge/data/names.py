"""What a file's name tells: subject and contrast, where it follows BIDS."""

from __future__ import annotations

import re
from typing import NamedTuple

_SUBJECT = re.compile(r"sub-([A-Za-z0-9]+)(?:_|$)")


class FileNameParts(NamedTuple):
    """Subject and contrast as a file's name gives them."""

    subject: str
    contrast: str | None


def parse_name(stem: str) -> FileNameParts:
    """Subject and contrast of a name like `sub-01_ses-1_T1w`.

    Args:
        stem: the file's name without its suffix.

    Returns:
        ("01", "T1w") for the example; (stem, None) for a name that does not begin with `sub-`.
    """
    match = _SUBJECT.match(stem)
    if match is None:
        return FileNameParts(stem, None)
    last = stem.rsplit("_", 1)[-1]
    # BIDS puts the contrast last and alone; every other part is a key-value pair with a hyphen.
    return FileNameParts(match.group(1), None if "-" in last or not last else last)
