"""`kdmri-edge doctor`: what this machine can export and run, and what is missing."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

import click

from kdmri_edge.commands.command import Command
from kdmri_edge.commands.options import json_option
from kdmri_edge.errors import KdmriError
from kdmri_edge.registry import Registry
from kdmri_edge.runtime.targets import TARGETS, Target, as_users_write
from kdmri_edge.utils.console import print_result, table_console, tell
from kdmri_edge.utils.extras import available, load_attribute
from kdmri_edge.utils.gpus import Gpu, find_gpu
from kdmri_export.gpu_advice import advise, described, engine_precisions
from kdmri_export.targets.tensorrt.engines import (
    BUILDERS,
    TORCH_TENSORRT,
    builder_module,
    known_capabilities,
    probe,
)

__all__ = ["built_with", "doctor", "examine", "show"]

_BUILT_WITH: Final = {
    "tensorrt": 'pip install "kdmri-edge[trt]"',
    "rtx": 'pip install "kdmri-edge[trt-rtx]"',
    TORCH_TENSORRT: "pip install torch-tensorrt",  # of the version of torch that is installed
}
"""What brings each builder of engines."""


_BY_JETPACK: Final = "JetPack has it, for the system's own python3"
"""What brings TensorRT to a Jetson, for which the packages of the index are not built."""

_TABLES: Final = (
    "kdmri_edge.models.specs:NETWORKS",
    "kdmri_edge.runtime.targets:TARGETS",
    "kdmri_edge.runtime.backends.registry:BACKENDS",
    "kdmri_edge.data.formats.registry:FORMATS",
    "kdmri_edge.physics.masks:MASK_FAMILIES",
    "kdmri_edge.distillation.recipe:LOSSES",
    "kdmri_edge.metrics:METRICS",
)
"""The tables that installed packages may add to."""

_WIDTH: Final = 100
"""Columns off a terminal."""


def _version(library: str) -> str | None:
    if not available(library):
        return None
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _cpu_precisions(target: Target) -> list[str]:
    """Ask the target's session which precisions this machine has; none without its library."""
    if not available(target.backend.library):
        return []
    return list(load_attribute(target.backend.session).precisions_here())


def _pip(*extras: str) -> str:
    return f'pip install "kdmri-edge[{",".join(extras)}]"'


def _row(target: Target, gpu: Gpu | None) -> dict[str, Any]:
    extras = dict.fromkeys(target.exports_with, "onnx")
    needed = {"torch": "train", **extras, target.checker.library: target.checker.extra}
    missing = sorted({extra for library, extra in needed.items() if not available(library)})
    can_run = all(map(available, (target.backend.library, *target.backend.runs_with)))
    devices = list(target.backend.devices)
    if available(target.backend.library):
        devices = list(load_attribute(target.backend.session).devices_here() or devices)
    run_remedy = None if can_run else _pip(target.backend.extra)
    precisions = _cpu_precisions(target)
    if target.builds_engines:  # of the GPU, by what can run there
        precisions = engine_precisions(gpu) if gpu and can_run else []
        run_remedy = _BY_JETPACK if run_remedy and gpu and gpu.is_jetson else run_remedy
    return {
        "target": target.name,
        "runtime": target.backend.title,
        "version": _version(target.backend.library),
        "can_export": not missing,
        "can_run": can_run,
        "devices": devices,
        "precisions": precisions,
        "run_remedy": run_remedy,
        "remedy": _pip(*missing) if missing else None,
    }


def _plug_ins() -> list[dict[str, str | None]]:
    """List what installed packages add to the tables; a broken one says so, and ends nothing."""
    found: list[dict[str, str | None]] = []
    for place in _TABLES:
        table: Registry[Any] = load_attribute(place)
        try:
            added = [name for name in table if table.origin(name) is not None]
        except KdmriError as error:  # two packages have one name
            found.append({"what": table.what, "name": None, "package": None, "problem": str(error)})
            continue
        for name in added:
            problem = None
            try:
                table[name]
            except KdmriError as error:
                problem = str(error)
            found.append(
                {
                    "what": table.what,
                    "name": name,
                    "package": table.origin(name),
                    "problem": problem,
                }
            )
    return found


def _targets(gpu: Gpu | None) -> Iterator[dict[str, Any]]:
    """Describe the targets; those that cannot be loaded are among the plug-ins, with the reason."""
    try:
        names = list(TARGETS)
    except KdmriError:
        return
    for name in names:
        try:
            yield _row(TARGETS[name], gpu)
        except KdmriError:
            continue


def built_with(gpu: Gpu | None) -> dict[str, str | None]:
    """Return what brings each builder of engines to this machine, None for what nothing does."""
    if gpu is None or not gpu.is_jetson:
        return {**_BUILT_WITH}
    return {**dict.fromkeys(_BUILT_WITH), "tensorrt": _BY_JETPACK}


def examine() -> dict[str, Any]:
    """Return what was found, as plain JSON values."""
    from kdmri_edge.utils.provenance import machine, versions

    own = find_gpu()
    cuda: bool | None = None
    gpu = "PyTorch is not installed"
    if available("torch"):
        import torch

        from kdmri_edge.utils.cuda import no_cuda

        cuda = torch.cuda.is_available()
        gpu = "CUDA GPU" if cuda else no_cuda("").what.rstrip(".")
    training = available("torch") and available("lightning_fabric")
    return {
        "machine": machine(),
        "versions": versions(),
        "cuda": cuda,
        "gpu": gpu,
        "nvidia": None if own is None else asdict(own),
        "rtx_capabilities": known_capabilities(),
        "triton": _version("triton"),
        "can_train": training,
        "train_remedy": None if training else _pip("train"),
        "targets": list(_targets(own)),
        "builders": {builder: probe(builder) for builder in BUILDERS[2:]},
        "builder_versions": {
            builder: _version(builder_module(builder)) for builder in BUILDERS[2:]
        },
        "builder_remedies": {
            builder: None if available(builder_module(builder)) else command
            for builder, command in built_with(own).items()
        },
        "plug_ins": _plug_ins(),
    }


def show(found: dict[str, Any], width: int | None = _WIDTH) -> None:
    """Print what was found on one screen.

    Args:
        found: What `examine` returns.
        width: Columns; None takes the terminal's.
    """
    from rich.table import Table

    console = table_console(width=width)
    machine = found["machine"]
    features = ", ".join(machine["cpu_features"]) or "no wide vectors"
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB ({features})",
        highlight=False,
    )
    train = "can train" if found["can_train"] else f"cannot train: {found['train_remedy']}"
    said = found["gpu"]
    if own := _gpu(found):
        console.print(described(own), highlight=False, markup=False)
        version = found["versions"].get("torch", "")
        said = f"PyTorch {version} uses it" if found["cuda"] else found["gpu"]
    console.print(f"{said}; {train}", highlight=False, markup=False)
    table = Table(
        "target",
        "runtime",
        "version",
        "export",
        "run",
        "devices",
        "precisions",
        box=None,
    )
    for row in found["targets"]:
        table.add_row(
            row["target"],
            row["runtime"],
            row["version"] or "-",
            "yes" if row["can_export"] else "no",
            "yes" if row["can_run"] else "no",
            ", ".join(row["devices"]),
            as_users_write(", ".join(row["precisions"])),
        )
    console.print(table)
    for row in found["targets"]:  # not in the table, which would cut a command that has to be typed
        if row["remedy"]:
            tell(f"{row['target']}: {row['remedy']}")
        if row["run_remedy"] and row["run_remedy"] != row["remedy"]:
            tell(f"{row['target']}, to run it: {row['run_remedy']}")
    for builder, reason in found["builders"].items():
        command = found["builder_remedies"][builder]
        if own and own.is_jetson and reason:
            continue  # what is there is said of target trt, and of others there is none
        hint = f": {command}" if reason and command else ""
        known = found["rtx_capabilities"] if builder == "rtx" and not reason else ()
        ready = "can be built here" + (f", for {', '.join(known)}" if known else "")
        tell(f"engines by --builder {builder}: {reason or ready}{hint}")
    for line in _advice(found):
        tell(f"GPU: {line}")
    for one in found["plug_ins"]:
        named = f"{one['what']} {one['name']} of {one['package']}" if one["name"] else one["what"]
        tell(f"plug-in: {named}" + (f": {one['problem']}" if one["problem"] else ""))
    if not found["plug_ins"]:
        tell("plug-ins: none installed")


def _gpu(found: dict[str, Any]) -> Gpu | None:
    return Gpu(**found["nvidia"]) if found["nvidia"] else None


def _advice(found: dict[str, Any]) -> list[str]:
    """Say which way a GPU is best run."""
    working = {name: reason is None for name, reason in found["builders"].items()}
    versions = found["builder_versions"]
    return advise(
        _gpu(found),
        tensorrt=versions["tensorrt"] if working["tensorrt"] else None,
        rtx=versions["rtx"] if working["rtx"] else None,
        rtx_knows=found["rtx_capabilities"],
        torch_uses_it=bool(found["cuda"]),
        triton=found.get("triton"),
    )


@click.command(cls=Command)
@json_option()
def doctor(as_json: bool) -> None:
    """Say what this machine can train, export and run, and how to add what is missing.

    Of a GPU it says which way of running networks suits it. Last come the networks, targets,
    runtimes, formats, masks, losses and measures that installed packages add.
    """
    found = examine()
    if as_json:
        print_result(json.dumps({**found, "advice": _advice(found)}, indent=2))
        return
    show(found, None if sys.stdout.isatty() else _WIDTH)
