"""What a bundle is made of, as a software bill of materials: `sbom.cdx.json`, CycloneDX 1.6.

The network is a component of its own, with its files, their hashes and a model card; so is every
volume that it was trained on, with its hash and whom to attribute; and so are the packages that ran
it where it was exported, in their versions. Packages there, not on the machine where it will run:
`kdmri-edge verify` says what runs there.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from kdmri_edge import __version__
from kdmri_edge.models.shipped import shipped_networks
from kdmri_edge.runtime.manifest import MANIFEST, SIGNATURE
from kdmri_edge.runtime.targets import TARGETS, as_users_write
from kdmri_edge.utils.files import sha256_file, write_json
from kdmri_edge.utils.packages import Installed, Missing, installed

__all__ = [
    "BILL",
    "LICENCE",
    "OWN",
    "bill",
    "data_components",
    "library",
    "model",
    "write_bill",
]

BILL: Final = "sbom.cdx.json"
OWN: Final = "kdmri-edge"
LICENCE: Final = "Apache-2.0"
"""Of this package, and of the networks in it."""

_SPACE: Final = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # of URLs, RFC 9562
_APART: Final = (BILL, MANIFEST, SIGNATURE)
"""Files that no list in the bundle can have a hash of: they have one of it."""


def write_bill(folder: Path, manifest: Mapping[str, Any], *, now: str) -> None:
    """Write the bill of a bundle whose other files are complete.

    Args:
        folder: The bundle.
        manifest: What its manifest will say; the hashes of files are taken here.
        now: Time of the export, ISO 8601.

    Raises:
        OutputError: The place cannot be written to.
    """
    names = sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())
    files = {name: sha256_file(folder / name) for name in names if name not in _APART}
    write_json(folder / BILL, bill(manifest, files, now=now))


def bill(manifest: Mapping[str, Any], files: Mapping[str, str], *, now: str) -> dict[str, Any]:
    """Return the bill of a bundle as CycloneDX 1.6.

    Args:
        manifest: What the bundle's manifest says.
        files: SHA-256 of its files, by name.
        now: Time of the export, ISO 8601.
    """
    target = TARGETS[manifest["target"]]
    training: Mapping[str, Any] = manifest.get("training") or {}
    hashes = [one.get("sha256") for one in training.get("data") or () if isinstance(one, Mapping)]
    data = data_components(
        hashes, training.get("attribution"), "Not in the bundle: the network learned from it."
    )
    about = f"Exported for {target.name}, {as_users_write(str(manifest['run_precision']))}."
    network = model(
        "network", str(manifest.get("role", "network")), str(manifest["checkpoint_sha256"])[:12],
        files, list(data), about, card=_card(manifest),
    )  # fmt: skip
    network["hashes"] = [{"alg": "SHA-256", "content": manifest["checkpoint_sha256"]}]
    if (licence := _licence_of(str(manifest["checkpoint_sha256"]))) is not None:
        network["licenses"] = [{"license": {"id": licence}}]
    network["properties"] = [
        {"name": "kdmri-edge:hash", "value": "SHA-256 of the checkpoint that was exported"}
    ]
    packages, absent = _runtime(target.checker.library)
    known = {one.name: one.ref for one in packages}
    roots = [known[OWN]] if OWN in known else []
    dependencies = [
        {"ref": one.ref, "dependsOn": sorted(known[name] for name in one.needs if name in known)}
        for one in packages
    ]
    runtime = known.get(target.checker.library.replace("_", "-"))
    roots += [runtime] if runtime and runtime not in roots else []
    content = "".join(f"{name} {digest}\n" for name, digest in sorted(files.items()))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        # of the same files the same number: an export can be told from its copy
        "serialNumber": f"urn:uuid:{uuid.uuid5(_SPACE, content + now)}",
        "version": 1,
        "metadata": {
            "timestamp": now,
            "component": network,
            "tools": {"components": [{"type": "application", "name": OWN, "version": __version__}]},
        },
        "components": [*map(library, packages), *absent, *data.values()],
        "dependencies": [*dependencies, {"ref": "network", "dependsOn": sorted(roots)}],
    }


def _licence_of(checkpoint: str) -> str | None:
    """Return the licence of the package's own networks; of others it is for their owner to say."""
    for network in shipped_networks().values():
        for entry in (network.entry, *network.entry.get("tuned", {}).values()):
            if entry["sha256"] == checkpoint:
                return LICENCE
    return None


def _runtime(name: str) -> tuple[list[Installed], list[dict[str, Any]]]:
    """Return the packages that ran the network here, and those whose version nobody knows."""
    absent = []
    packages: dict[str, Installed] = {}
    for root in (OWN, name):
        try:
            packages |= {one.name: one for one in installed([(root, ())])}
        except Missing as missing:
            absent.append({
                "type": "library", "bom-ref": f"absent/{root}", "name": root,
                "description": f"Not installed as a package where the network was exported"
                f" ({missing.name} is missing), so that its version is not known.",
            })  # fmt: skip
    return sorted(packages.values(), key=lambda one: one.name), absent


def _card(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model card says beside the data: architecture, figures, limits."""
    described: Mapping[str, Any] = manifest.get("network") or {}
    parameters: dict[str, Any] = {
        "approach": {"type": "supervised"},
        "inputs": [_port(manifest["io"]["input"])],
        "outputs": [_port(manifest["io"]["output"])],
    }
    if family := described.get("family") or (manifest.get("spec") or {}).get("kind"):
        parameters["architectureFamily"] = str(family)
    if described.get("name"):
        parameters["modelArchitecture"] = str(described["name"])
    figures = (manifest.get("parity") or {}).get("figures") or {}
    metrics = [
        {"type": f"deviation from PyTorch: {name}", "value": f"{value:.3g}"}
        for name, value in figures.items()
        if isinstance(value, int | float)
    ]
    matrix = "any matrix" if manifest.get("matrix_multiple") else f"matrix {manifest['matrix']}"
    mask = "any mask of lines" if manifest.get("mask_input") else f"mask {manifest['mask']['name']}"
    card: dict[str, Any] = {
        "modelParameters": parameters,
        "considerations": {
            "useCases": ["Reconstruction of undersampled Cartesian MR images"],
            "technicalLimitations": [f"Made for {matrix}, {mask}.", "Not a medical device."],
        },
    }
    if metrics:
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    return card


def _port(port: Mapping[str, Any]) -> dict[str, str]:
    shape = " x ".join(str(size) for size in port["shape"])
    return {"format": f"{port['dtype']} {shape}"}


def library(one: Installed) -> dict[str, Any]:
    """Return a package as a component."""
    stated = (
        {} if one.licence == "not stated" else {"licenses": [{"license": {"name": one.licence}}]}
    )
    return {"type": "library", "bom-ref": one.ref, "name": one.name, "version": one.version,
            "purl": one.ref, **stated}  # fmt: skip


def model(
    ref: str,
    name: str,
    version: str,
    files: Mapping[str, str],
    data: Iterable[str],
    about: str,
    card: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a network as a component: its files with their hashes, and what it learned from.

    Args:
        ref: Its reference in the bill.
        name: What it is called.
        version: Of it.
        files: SHA-256 by name.
        data: References of its training data.
        about: A sentence on it.
        card: What the model card says beside task and data.
    """
    card = card or {}
    return {
        "type": "machine-learning-model",
        "bom-ref": ref,
        "name": name,
        "version": version,
        "description": about,
        "modelCard": {
            **card,
            "modelParameters": {
                **card.get("modelParameters", {}),
                "task": "MR image reconstruction",
                "datasets": [{"ref": each} for each in data],
            },
        },
        "components": [
            {"type": "file", "bom-ref": f"{ref}/{file}", "name": file,
             "hashes": [{"alg": "SHA-256", "content": digest}]}
            for file, digest in sorted(files.items())
        ],
    }  # fmt: skip


def data_components(
    hashes: Iterable[Any] | None, attribution: Any, about: str
) -> dict[str, dict[str, Any]]:
    """Return the volumes that a network was trained on as components, by their references.

    Args:
        hashes: SHA-256 of their files; what is none is left out.
        attribution: Whom to name, and under which licence.
        about: A sentence on them.
    """
    found = {}
    for digest in hashes or ():
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            continue
        stated = {"copyright": " ".join(str(attribution).split())} if attribution else {}
        ref = f"data/{digest}"
        found[ref] = {
            "type": "data", "bom-ref": ref, "name": f"training volume {digest[:12]}",
            "description": about,
            "hashes": [{"alg": "SHA-256", "content": digest}], **stated,
        }  # fmt: skip
    return found
