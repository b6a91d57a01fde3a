"""What is inside: a software bill of materials as CycloneDX 1.6 JSON, and the pins that keep to it.

Versions are those of the environment that build.py runs in, and the container is built with exactly
them (`constraints`), so that the list says what the image holds without an engine having built it.
Networks and the data that they learned from are components of their own.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import re
import tomllib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kdmri_edge import __version__
from kdmri_edge.errors import DataError
from kdmri_edge.models.shipped import shipped_networks
from kdmri_edge.runtime.bundle import Bundle
from kdmri_edge.utils.extras import require

__all__ = ["Installed", "bill", "constraints", "installed"]

_SELF: Final = "kdmri-edge"
_EXTRAS: Final = ("mrd", "archive")
"""What the container's server needs beside a runtime."""
_PYTHON: Final = "3.12"  # of the image, see the Dockerfile
_BASE: Final = f"python:{_PYTHON}-slim"


@dataclass(frozen=True, kw_only=True, slots=True)
class Installed:
    """A Python package.

    Attributes:
        name: As the Python Package Index spells it.
        version: That is installed here, or that is pinned.
        licence: What its metadata says.
        needs: Names of packages that it needs.
    """

    name: str
    version: str
    licence: str
    needs: tuple[str, ...]

    @property
    def ref(self) -> str:
        """Its package URL."""
        return f"pkg:pypi/{self.name}@{self.version}"


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(runtime: str, version: str) -> list[Installed]:
    """Return this package with what its server needs, all that these need in turn included.

    Args:
        runtime: Package that runs the bundle.
        version: That it is pinned to.

    Raises:
        DataError: One of them is not installed here, so that its version is not known.
    """
    reader: Any = require("packaging.requirements", extra="dev")
    runtime = _canonical(runtime)
    extras: dict[str, set[str]] = {}
    needs: dict[str, set[str]] = {}
    found: dict[str, Any] = {}
    left = [(_SELF, set(_EXTRAS)), (runtime, set())]
    while left:
        name, asked = left.pop()
        if name in extras and asked <= extras[name]:
            continue
        wanted = extras.setdefault(name, set())
        wanted |= asked
        lines = _own_requirements() if name == _SELF else None
        if lines is None:
            try:
                found[name] = importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError:
                raise DataError(
                    f"What the container would hold is not known: {name} is not installed here.",
                    f'Run `pip install "{_SELF}[{",".join(_EXTRAS)}]" {runtime}=={version}`.',
                ) from None
            lines = found[name].requires or []
        of_this = needs.setdefault(name, set())
        for line in lines:
            needed = reader.Requirement(line)
            marker = needed.marker
            if marker is None or any(marker.evaluate(_image(e)) for e in ("", *sorted(wanted))):
                other = _canonical(needed.name)
                if other != name:
                    of_this.add(other)
                left.append((other, set(needed.extras)))
    made = [
        Installed(
            name=name,
            version=version if name == runtime else one.version,
            licence=_licence(one.metadata),
            needs=tuple(sorted(needs[name])),
        )
        for name, one in found.items()
    ]
    own = Installed(
        name=_SELF, version=__version__, licence="Apache-2.0",
        needs=tuple(sorted(needs[_SELF] | {runtime})),
    )  # fmt: skip
    return sorted([own, *made], key=lambda one: one.name)


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


def _image(extra: str) -> dict[str, str]:
    """The image's environment, as markers of requirements know it."""
    return {
        "extra": extra, "python_version": _PYTHON, "python_full_version": f"{_PYTHON}.0",
        "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix",
        "platform_machine": "x86_64", "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }  # fmt: skip


def _licence(metadata: Any) -> str:
    """An expression of SPDX where there is one, else the classifier's words."""
    if metadata.get("License-Expression"):
        return str(metadata["License-Expression"])
    words = [
        line.rpartition(" :: ")[2]
        for line in metadata.get_all("Classifier") or ()
        if line.startswith("License :: OSI Approved :: ")
    ]
    first = str(metadata.get("License") or "").strip().splitlines()
    return " and ".join(words) or (first[0][:100] if first else "not stated")


def constraints(packages: Sequence[Installed]) -> str:
    """Return the versions as pip's file of constraints; this package comes as a wheel."""
    lines = [f"{one.name}=={one.version}" for one in packages if one.name != _SELF]
    return "\n".join([*lines, ""])


def bill(packages: Sequence[Installed], bundles: Sequence[tuple[str, Bundle]]) -> dict[str, Any]:
    """Return the list as CycloneDX 1.6.

    Args:
        packages: Of the container's Python.
        bundles: That it serves, by name.
    """
    own = next(one for one in packages if one.name == _SELF)
    container = f"{_SELF}-container@{__version__}"
    parts = [_library(one) for one in packages]
    data: dict[str, dict[str, Any]] = {}
    models = []
    for reference, shipped in shipped_networks().items():
        facts = shipped.entry
        files = {shipped.path.name: facts["sha256"]}
        models.append(
            _model(
                f"weights/{reference}", reference, __version__, files,
                _learned(facts.get("trained_on_sha256"), facts.get("attribution"), data),
                "In the package; served only where it is named.",
            )
        )  # fmt: skip
    served = []
    for name, bundle in bundles:
        manifest, training = bundle.manifest, bundle.manifest.get("training") or {}
        hashes = [volume.get("sha256") for volume in training.get("data") or ()]
        made = _model(
            f"bundle/{name}", name, str(manifest.get("digest", ""))[:71] or "no digest",
            dict(manifest["files"]), _learned(hashes, training.get("attribution"), data),
            f"Exported for {bundle.target.name}, {manifest['precision']}.",
        )  # fmt: skip
        models.append(made)
        served.append(made["bom-ref"])
    base = {"type": "container", "bom-ref": f"pkg:docker/{_BASE.replace(':', '@')}",
            "name": _BASE.partition(":")[0], "version": _BASE.partition(":")[2],
            "description": "The base image, with its operating system and Python; what is in it is"
            " its publisher's to list."}  # fmt: skip
    dependencies = [
        {"ref": one.ref, "dependsOn": sorted(_ref(name, packages) for name in one.needs)}
        for one in packages
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
                "type": "container", "bom-ref": container, "name": _SELF, "version": __version__,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            },
        },
        "components": [base, *parts, *models, *data.values()],
        "dependencies": dependencies,
    }  # fmt: skip


def _ref(name: str, packages: Iterable[Installed]) -> str:
    return next(one.ref for one in packages if one.name == name)


def _library(one: Installed) -> dict[str, Any]:
    stated = {} if one.licence == "not stated" else {
        "licenses": [{"license": {"name": one.licence}}]
    }  # fmt: skip
    return {"type": "library", "bom-ref": one.ref, "name": one.name, "version": one.version,
            "purl": one.ref, **stated}  # fmt: skip


def _model(
    ref: str, name: str, version: str, files: Mapping[str, str], data: list[str], about: str
) -> dict[str, Any]:
    """A network: its files with their hashes, and the data that it learned from."""
    return {
        "type": "machine-learning-model",
        "bom-ref": ref,
        "name": name,
        "version": version,
        "description": about,
        "modelCard": {
            "modelParameters": {
                "task": "MR image reconstruction",
                "datasets": [{"ref": each} for each in data],
            }
        },
        "components": [
            {"type": "file", "bom-ref": f"{ref}/{file}", "name": file,
             "hashes": [{"alg": "SHA-256", "content": digest}]}
            for file, digest in sorted(files.items())
        ],
    }  # fmt: skip


def _learned(
    hashes: Iterable[Any] | None, attribution: Any, data: dict[str, dict[str, Any]]
) -> list[str]:
    """Note the volumes that a network was trained on; return their references."""
    refs = []
    for digest in hashes or ():
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            continue
        ref = f"data/{digest}"
        refs.append(ref)
        stated = {"copyright": " ".join(str(attribution).split())} if attribution else {}
        data.setdefault(
            ref,
            {
                "type": "data", "bom-ref": ref, "name": f"training volume {digest[:12]}",
                "description": "Not in the container: a network learned from it.",
                "hashes": [{"alg": "SHA-256", "content": digest}], **stated,
            },
        )  # fmt: skip
    return refs
