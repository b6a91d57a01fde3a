"""Build the container of a bundle, with its OpenRecon label: `python deploy/build.py BUNDLE`.

The label's memory and cores come from a benchmark's report (`kdmri-edge bench ... --out DIR`): the
largest peak of the bundle's rows, with room for the largest scans that are let in, as many as are
served at once, and the threads that it was measured with. The container takes no more scans at
once, no larger slices, no more waiting lines of each scan and no more threads than that. With
--check nothing is built: bundle and report are checked, the label is made and validated, which
needs no container engine.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdmri_edge import __version__
from kdmri_edge.errors import DataError, KdmriError
from kdmri_edge.runtime.bundle import open_bundle
from kdmri_edge.utils.extras import require
from kdmri_edge.utils.files import read_json

HERE = Path(__file__).resolve().parent
SCHEMA = HERE / "openrecon.schema.json"
_MIB = 2**20
# Of a scan's slices one is assembled, one waits for its turn and three are with the network or on
# their way back (`ServerSettings.in_flight`); noise takes a fourth of a slice, twice as it is used.
_HELD = 6
_WORK = 8  # copies of a slice while its coils are whitened, transformed and combined
_SMALLEST_MIB = 64  # 32 coils at 512 x 512: other scans than the bundle's get an image, too
_RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}  # by target: the package that runs it


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
            them, and the one slice that is reconstructed takes `_WORK` more.
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
    return math.ceil(max(peaks) + scans + _WORK * slice_mib), threads


def version_of(report: dict[str, Any], package: str) -> str:
    """Return the version of a runtime that a benchmark's report was measured with.

    Raises:
        DataError: It names none.
    """
    version = report.get("provenance", {}).get("versions", {}).get(package)
    if not isinstance(version, str):
        raise DataError(f"The report names no version of {package}.", "Run the benchmark again.")
    return version


def label(memory_mib: int, cores: int, matrix: int, version: str = __version__) -> dict[str, Any]:
    """Return the OpenRecon label."""
    about = f"Compressed reconstruction network for Cartesian 2-D scans of {matrix} x {matrix}."
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


def lay_out(bundle: Path, context: Path) -> None:
    """Put wheel, bundle and Dockerfile into a folder.

    Raises:
        DataError: The wheel cannot be built.
    """
    shutil.copytree(bundle, context / "bundle")
    shutil.copy(HERE / "Dockerfile", context)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    done = subprocess.run(
        [*command, str(context / "wheel"), str(HERE.parent)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise DataError(f"The wheel cannot be built ({done.stderr.strip()[-200:]}).", "See above.")


def _whole(most: int) -> Callable[[str], int]:
    """Return what reads a whole number from 1 on, as the server itself takes it."""

    def number(text: str) -> int:
        value = int(text)
        if not 1 <= value <= most:
            raise ValueError(text)
        return value

    return number


def main() -> int:
    """Build, or only check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--report", type=Path, required=True, help="report.json of the benchmark")
    parser.add_argument("--coils", type=_whole(1024), default=32,
                        help="receive channels to make room for")  # fmt: skip
    parser.add_argument("--sessions", type=_whole(256), default=2, help="scans at once")
    parser.add_argument("--slice-memory", type=_whole(1 << 16),
                        help="MiB that one slice of all coils may take [what the coils need at the"
                        f" bundle's matrix, at least {_SMALLEST_MIB}]")  # fmt: skip
    parser.add_argument("--scan-memory", type=_whole(1 << 20), default=512,
                        help="MiB of lines that one scan may have waiting")  # fmt: skip
    parser.add_argument("--engine", default="docker", help="docker or podman")
    parser.add_argument("--tag", default=f"kdmri-edge:{__version__}")
    parser.add_argument("--check", action="store_true", help="build nothing")
    given = parser.parse_args()
    try:
        bundle = open_bundle(given.bundle)
        package = _RUNTIMES.get(bundle.target.name)
        if package is None:
            raise DataError(
                f"{given.bundle} is made for {bundle.target.name}.",
                f"Export it with --target {' or '.join(_RUNTIMES)}.",
            )
        matrix = int(bundle.manifest["matrix"])
        own_mib = math.ceil(given.coils * matrix * matrix * 8 / _MIB)
        slice_mib = given.slice_memory or max(own_mib, _SMALLEST_MIB)
        if slice_mib < own_mib:
            raise DataError(
                f"A slice of {given.coils} coils at {matrix} x {matrix} takes {own_mib} MiB,"
                f" above --slice-memory {slice_mib}.",
                "Raise it, or give fewer --coils.",
            )
        runtime = bundle.target.backend.title
        report = read_json(given.report, DataError)
        pinned = f"{package}=={version_of(report, package)}"
        memory, cores = needs(
            report, bundle.manifest, runtime, given.sessions, slice_mib, given.scan_memory
        )
        made = label(memory, cores, matrix)
        validate(made)
        print(json.dumps(made["reconstruction"], indent=2))
        if given.check:
            return 0
        with tempfile.TemporaryDirectory() as place:
            context = Path(place)
            lay_out(given.bundle, context)
            encoded = base64.b64encode(json.dumps(made).encode()).decode()
            subprocess.run(
                [given.engine, "build", "--tag", given.tag, "--build-arg", f"VERSION={__version__}",
                 "--build-arg", f"RUNTIME={pinned}",
                 "--build-arg", f"SESSIONS={given.sessions}",
                 "--build-arg", f"THREADS={cores}",
                 "--build-arg", f"SLICE_MEMORY={slice_mib}",
                 "--build-arg", f"SCAN_MEMORY={given.scan_memory}",
                 "--build-arg", f"OPENRECON_LABEL={encoded}", str(context)],
                check=True,
            )  # fmt: skip
    except KdmriError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    except FileNotFoundError:
        print(f"Error: {given.engine} is not installed. Name one with --engine.", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        return int(error.returncode)
    return 0


if __name__ == "__main__":
    sys.exit(main())
