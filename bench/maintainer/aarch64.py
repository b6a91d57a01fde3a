"""Which wheels 64-bit ARM gets of what a device needs at run time.

`python -m maintainer.aarch64` asks the package index through pip, which resolves the dependencies
for that machine without installing anything, and writes what it found to
tests/data/aarch64_wheels.json. A test holds that file against pyproject.toml, so that nothing is
added to the runtime that a Jetson or an ARM server cannot install.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement

from kdmri_edge.utils.files import write_json

__all__ = ["FILE", "SCRIPTS", "main", "runtime_requirements"]

_ROOT: Final = Path(__file__).resolve().parents[2]
FILE: Final = _ROOT / "tests" / "data" / "aarch64_wheels.json"

_RUNTIME: Final = ("onnxruntime", "openvino", "cuda-python", "nibabel", "pydicom")
"""Of the extras, what runs networks and reads files on a device; the others train and export."""

SCRIPTS: Final = ("numpy", "cuda-python")
"""What a bundle's scripts need, for Python 3.10 of JetPack 6; TensorRT comes with it."""

_GLIBC: Final = 35
"""Newest glibc 2.x that wheels may ask for: Ubuntu 22.04, as JetPack 6 has it."""


def runtime_requirements() -> list[str]:
    """Return what is needed to run networks, as pyproject.toml has it."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {
        one for listed in project["optional-dependencies"].values() for one in listed
        if Requirement(one).name in _RUNTIME
    }  # fmt: skip
    return [*project["dependencies"], *sorted(extras)]


def _wheels(requirements: Sequence[str], python: str) -> list[str]:
    """Return the wheels that pip would install on such a machine."""
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(_GLIBC, 16, -1)]
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--report", str(report), "--target", place]
        command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
        for name in (*platforms, "manylinux2014_aarch64"):
            command += ["--platform", name]
        subprocess.run([*command, *requirements], check=True)
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    # File names alone: the address is that of whichever index was asked.
    return sorted(one["download_info"]["url"].rpartition("/")[2] for one in found["install"])


def main() -> None:
    """Ask the index and write the file."""
    wanted = runtime_requirements()
    versions = {python: _wheels(wanted, python) for python in ("3.11", "3.12", "3.13")}
    value = {
        "asked_for": wanted,
        "glibc": f"2.{_GLIBC}",
        "wheels": versions,
        "scripts": {"asked_for": list(SCRIPTS), "wheels": {"3.10": _wheels(SCRIPTS, "3.10")}},
    }
    write_json(FILE, value)


if __name__ == "__main__":
    main()
