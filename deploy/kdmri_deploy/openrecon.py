"""The files that OpenRecon installs: the saved image and its documentation, zipped.

Names are made of the label's vendor, name and version, which the scanner compares.
"""

from __future__ import annotations

import base64
import json
import textwrap
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kdmri_deploy.image import labels_of
from kdmri_deploy.label import KEY, basename
from kdmri_edge.errors import DataError
from kdmri_edge.utils.extras import require
from kdmri_edge.utils.files import atomic_path

__all__ = ["documentation", "encoded", "package"]

_LINES: Final = 58  # of a page
_WIDTH: Final = 92


def encoded(made: Mapping[str, Any]) -> str:
    """Return a label as the container carries it."""
    return base64.b64encode(json.dumps(made).encode()).decode()


def package(made: Mapping[str, Any], image: Path, folder: Path) -> Path:
    """Write the zip file.

    Args:
        made: The label.
        image: The image, as `docker save` writes it.
        folder: Where the documentation is, and the zip file goes.

    Raises:
        DataError: The image has no label, or another one.
    """
    carried = labels_of(image).get(KEY)
    if carried is None:
        raise DataError(
            f"{image} carries no OpenRecon label.", "Give an image that deploy/build.py has built."
        )
    try:
        theirs = json.loads(base64.b64decode(carried))
    except ValueError:
        theirs = None
    if _lasting(theirs) != _lasting(made):
        raise DataError(
            f"The label of {image} is not that of this bundle, report and options.",
            "Build the image with the same ones.",
        )
    name = basename(made)
    place = folder / f"{name}.zip"
    with (
        atomic_path(place) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as out,
    ):
        out.write(image, f"{name}.tar")
        out.write(folder / f"{name}.pdf", f"{name}.pdf")
    return place


def _lasting(made: Any) -> Any:
    """A label without the day on which it was written."""
    if not isinstance(made, dict):
        return None
    copy = json.loads(json.dumps(made))
    copy.get("general", {}).get("regulatory_information", {}).pop("manufacture_date", None)
    return copy


def documentation(text: str, place: Path) -> None:
    """Write a page of Markdown as it reads, as a PDF, which OpenRecon asks for.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figures: Any = require("matplotlib.figure", extra="bench")
    books: Any = require("matplotlib.backends.backend_pdf", extra="bench")
    lines = [
        part
        for line in text.splitlines()
        for part in (textwrap.wrap(line, _WIDTH, subsequent_indent="  ") or [""])
    ]
    with (
        atomic_path(place) as temporary,
        books.PdfPages(temporary, metadata={"Title": "kdmri-edge", "CreationDate": None}) as book,
    ):
        for first in range(0, len(lines), _LINES):
            page = figures.Figure(figsize=(8.27, 11.69))
            shown = "\n".join(lines[first : first + _LINES]).replace("$", r"\$")
            page.text(0.08, 0.95, shown, family="monospace", size=8, va="top", linespacing=1.4)
            book.savefig(page)
