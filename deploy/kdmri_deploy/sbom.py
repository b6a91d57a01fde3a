"""What is inside: a software bill of materials as CycloneDX 1.6 JSON, and the pins that keep to it.

Versions are those of the environment that build.py runs in, and the container is built with exactly
them (`constraints`), so that the list says what the image holds without an engine having built it.
Networks and the data that they learned from are components of their own.
"""

from __future__ import annotations

import dataclasses
import datetime
import tomllib
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from kdmri_edge import __version__
from kdmri_edge.errors import DataError
from kdmri_edge.models.shipped import shipped_networks
from kdmri_edge.runtime.bill import LICENCE, OWN, data_components, library, model
from kdmri_edge.runtime.bundle import Bundle
from kdmri_edge.utils import packages
from kdmri_edge.utils.packages import Installed, canonical

__all__ = ["bill", "constraints", "installed"]

_EXTRAS: Final = ("mrd", "archive", "sign")
"""What the container's server needs beside a runtime."""
_PYTHON: Final = "3.12"  # of the image, see the Dockerfile
_BASE: Final = f"python:{_PYTHON}-slim"
_DATA: Final = "Not in the container: a network learned from it."


def installed(runtime: str, version: str) -> list[Installed]:
    """Return this package with what its server needs, all that these need in turn included.

    Args:
        runtime: Package that runs the bundle.
        version: That it is pinned to.

    Raises:
        DataError: One of them is not installed here, so that its version is not known.
    """
    runtime = canonical(runtime)
    try:
        found = packages.installed(
            [(OWN, _EXTRAS), (runtime, ())],
            environment=_IMAGE,
            requirements={OWN: _own_requirements()},
            versions={OWN: __version__, runtime: version},
        )
    except packages.Missing as missing:
        raise DataError(
            f"What the container would hold is not known: {missing.name} is not installed here.",
            f'Run `pip install "{OWN}[{",".join(_EXTRAS)}]" {runtime}=={version}`.',
        ) from None
    own = next(one for one in found if one.name == OWN)
    whole = dataclasses.replace(own, licence=LICENCE, needs=tuple(sorted({*own.needs, runtime})))
    return [whole if one is own else one for one in found]


def _own_requirements() -> list[str]:
    """What pyproject.toml asks for: an installed copy may be of another revision."""
    file = Path(__file__).resolve().parents[2] / "pyproject.toml"
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra, needed in project["optional-dependencies"].items():
        for line in needed:
            text, _, marker = line.partition(";")
            also = f" and ({marker.strip()})" if marker else ""
            lines.append(f'{text.strip()} ; extra == "{extra}"{also}')
    return lines


_IMAGE: Final = {
    "python_version": _PYTHON, "python_full_version": f"{_PYTHON}.0",
    "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix",
    "platform_machine": "x86_64", "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
}  # fmt: skip
"""The image's environment, as markers of requirements know it."""


def constraints(listed: Sequence[Installed]) -> str:
    """Return the versions as pip's file of constraints; this package comes as a wheel."""
    lines = [f"{one.name}=={one.version}" for one in listed if one.name != OWN]
    return "\n".join([*lines, ""])


def bill(listed: Sequence[Installed], bundles: Sequence[tuple[str, Bundle]]) -> dict[str, Any]:
    """Return the list as CycloneDX 1.6.

    Args:
        listed: Of the container's Python.
        bundles: That it serves, by name.
    """
    own = next(one for one in listed if one.name == OWN)
    container = f"{OWN}-container@{__version__}"
    parts = [library(one) for one in listed]
    data: dict[str, dict[str, Any]] = {}
    models = []
    for reference, shipped in shipped_networks().items():
        facts = shipped.entry
        files = {shipped.path.name: facts["sha256"]}
        learned = data_components(facts.get("trained_on_sha256"), facts.get("attribution"), _DATA)
        data = {**learned, **data}
        models.append(
            model(
                f"weights/{reference}", reference, __version__, files, learned,
                "In the package; served only where it is named.",
            )
        )  # fmt: skip
    served = []
    for name, bundle in bundles:
        manifest, training = bundle.manifest, bundle.manifest.get("training") or {}
        hashes = [volume.get("sha256") for volume in training.get("data") or ()]
        learned = data_components(hashes, training.get("attribution"), _DATA)
        data = {**learned, **data}
        made = model(
            f"bundle/{name}", name, str(manifest.get("digest", ""))[:71] or "no digest",
            dict(manifest["files"]), learned,
            f"Exported for {bundle.target.name}, {manifest['precision']}.",
        )  # fmt: skip
        models.append(made)
        served.append(made["bom-ref"])
    base = {"type": "container", "bom-ref": f"pkg:docker/{_BASE.replace(':', '@')}",
            "name": _BASE.partition(":")[0], "version": _BASE.partition(":")[2],
            "description": "The base image, with its operating system and Python; what is in it is"
            " its publisher's to list."}  # fmt: skip
    dependencies = [
        {"ref": one.ref, "dependsOn": sorted(_ref(name, listed) for name in one.needs)}
        for one in listed
    ]
    dependencies.append({"ref": container, "dependsOn": [base["bom-ref"], own.ref, *served]})
    now = datetime.datetime.now(datetime.UTC)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {
                "type": "container", "bom-ref": container, "name": OWN, "version": __version__,
                "licenses": [{"license": {"id": LICENCE}}],
            },
        },
        "components": [base, *parts, *models, *data.values()],
        "dependencies": dependencies,
    }  # fmt: skip


def _ref(name: str, listed: Iterable[Installed]) -> str:
    return next(one.ref for one in listed if one.name == name)
