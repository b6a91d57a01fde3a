"""The OpenRecon label of a container, and the memory and cores that it states.

Both come from a benchmark's report (`kdmri-edge bench ... --out DIR`): the largest peak of the
bundle's rows, with room for the largest scans that are let in, as many as are served at once, and
the threads that it was measured with.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kdmri_edge import __version__
from kdmri_edge.errors import DataError
from kdmri_edge.utils.extras import require
from kdmri_edge.utils.threads import SLICES_AT_ONCE, slices_at_once

__all__ = ["KEY", "SCHEMA", "basename", "label", "needs", "validate", "version_of"]

KEY: Final = "com.siemens-healthineers.magneticresonance.openrecon.metadata:1.1.0"
"""The container's label; its value is the JSON in base64."""
SCHEMA: Final = Path(__file__).resolve().parents[1] / "openrecon.schema.json"
_MIB: Final = 2**20
# Of a scan's slices one is assembled, one waits for its turn and four are with the network or on
# their way back (`ServerSettings.in_flight`); noise takes a fourth of a slice, twice as it is used.
_HELD: Final = 5 + SLICES_AT_ONCE
_WORK: Final = 8  # copies of a slice while its coils are whitened, transformed and combined


def needs(
    report: dict[str, Any],
    manifest: Mapping[str, Any],
    runtime: str,
    sessions: int,
    slice_mib: int,
    scan_mib: int,
) -> tuple[int, int]:
    """Return (memory in MiB, cores) from a benchmark's report.

    Args:
        report: Contents of its report.json.
        manifest: Of the bundle: only rows of a network as large, at that matrix, count.
        runtime: Title of the runtime whose rows count.
        sessions: Scans at once.
        slice_mib: K-space of the largest slice that is let in, all coils. A scan holds `_HELD` of
            them, and each slice that is reconstructed takes `_WORK` more.
        scan_mib: Lines of one scan that may wait for the rest of their slices: of an interleaved
            scan those of all slices wait.

    Raises:
        DataError: The report has no measured row of that network in that runtime.
    """
    if report.get("matrix") != manifest["matrix"]:
        raise DataError(
            f"The report is of matrix {report.get('matrix')}, the bundle of {manifest['matrix']}.",
            "Give the report of a benchmark of this bundle.",
        )
    networks = {
        network["name"]
        for network in report.get("networks", [])
        if network.get("parameters") == manifest.get("parameters")
    }
    peaks = [
        float(row["memory"]["peak"]) / _MIB
        for row in report.get("rows", [])
        if row.get("status") == "measured"
        and row.get("runtime") == runtime
        and row.get("network") in networks
        and row.get("memory")
    ]
    threads = report.get("settings", {}).get("threads")
    if not peaks or not isinstance(threads, int):
        raise DataError(
            f"The report has no measured memory of this network in {runtime}.",
            "Give report.json of `kdmri-edge bench` with that bundle.",
        )
    scans = sessions * (_HELD * slice_mib + scan_mib)
    # a second slice in the network takes less than all that it takes once it is loaded
    at_once = slices_at_once(threads)
    return math.ceil(at_once * max(peaks) + scans + at_once * _WORK * slice_mib), threads


def version_of(report: dict[str, Any], package: str) -> str:
    """Return the version of a runtime that a benchmark's report was measured with.

    Raises:
        DataError: It names none.
    """
    version = report.get("provenance", {}).get("versions", {}).get(package)
    if not isinstance(version, str):
        raise DataError(f"The report names no version of {package}.", "Run the benchmark again.")
    return version


def label(
    memory_mib: int,
    cores: int,
    matrix: int | None,
    version: str = __version__,
    *,
    compressed_to: int | None = None,
) -> dict[str, Any]:
    """Return the OpenRecon label.

    Filters along the readout are asked to be off: networks are trained on k-space without them, and
    what a filter takes away they cannot know. So is the compression of channels, which would come
    before coils are whitened by their noise and is done by networks that want it.

    Args:
        memory_mib: That the container needs.
        cores: Of the CPU.
        matrix: Side of the bundle's matrix; None for one of any matrix.
        version: Of this package.
        compressed_to: Channels that the scanner compresses to instead.
    """
    scans = "Cartesian 2-D scans" + ("" if matrix is None else f" of {matrix} x {matrix}")
    about = f"Compressed reconstruction network for {scans}."
    compression: dict[str, Any] = (
        {"require_state": "off"}
        if compressed_to is None
        else {"require_state": "on", "require_number_target_channels": compressed_to}
    )
    return {
        "general": {
            "name": {"en": "kdmri-edge"},
            "version": version,
            "vendor": "kdmri-edge",
            "information": {"en": f"{about} Zero-filled images, flagged, outside its scope."},
            "id": "kdmri-edge",
            "regulatory_information": {
                "device_trade_name": "kdmri-edge",
                "production_identifier": version,
                "manufacturer_address": "none",
                "made_in": "none",
                "manufacture_date": datetime.date.today().strftime("%Y/%m/%d"),
                "material_number": f"kdmri-edge_{version}",
                "gtin": "",
                "udi": "",
                "safety_advices": "Not a medical device.",
                "special_operating_instructions": "",
                "additional_relevant_information": "For research only.",
            },
        },
        "reconstruction": {
            "transfer_protocol": {"protocol": "ISMRMRD", "version": "1.4.1"},
            "port": 9002,
            "emitter": "raw",
            "injector": "image",
            "can_process_adjustment_data": False,
            "can_use_gpu": False,
            "min_count_required_gpus": 0,
            "min_required_gpu_memory": 0,
            "min_required_memory": memory_mib,
            "min_count_required_cpu_cores": cores,
            "content_qualification_type": "RESEARCH",
            "require_readout_filter_off": True,
            "channel_compression": compression,
        },
        "parameters": [
            {
                "id": "format",
                "label": {"en": "Pixels"},
                "type": "choice",
                "values": [
                    {"id": "int16", "name": {"en": "whole numbers"}},
                    {"id": "float", "name": {"en": "floating point"}},
                ],
                "information": {"en": "How images are sent back."},
                "default": "int16",
            }
        ],
    }


def validate(made: dict[str, Any]) -> None:
    """Compare a label with the schema.

    Raises:
        DataError: It does not follow it; the message says where.
    """
    jsonschema = require("jsonschema", extra="dev")

    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    for error in jsonschema.Draft7Validator(schema).iter_errors(made):
        place = "/".join(map(str, error.absolute_path))
        raise DataError(f"The label is wrong at {place}: {error.message}.", "Correct it.")


def basename(made: Mapping[str, Any]) -> str:
    """Return the name that OpenRecon's files have to have: of vendor, name and version."""
    general = made["general"]
    return f"OpenRecon_{general['vendor']}_{general['name']['en']}_V{general['version']}"
