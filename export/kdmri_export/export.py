"""From a checkpoint to a bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdmri_edge.bundle import (
    GOLDEN_INPUT,
    GOLDEN_OPERATOR,
    GOLDEN_OUTPUT,
    Bundle,
    foreign_files,
    open_bundle,
    write_manifest,
)
from kdmri_edge.checkpoint import load_reconstructor, read_checkpoint_meta
from kdmri_edge.errors import ExportError
from kdmri_edge.extras import load_attribute, require
from kdmri_edge.files import atomic_directory, sha256_file
from kdmri_edge.models.spec import Kind
from kdmri_edge.physics.forms import Form, choose_form
from kdmri_edge.physics.masks import Mask
from kdmri_edge.provenance import provenance
from kdmri_edge.reconstructor import Reconstructor
from kdmri_edge.runtime.session import Session
from kdmri_edge.targets import Target, target_named
from kdmri_export.golden import golden, phantom_ranges
from kdmri_export.parity import check, check_other_mask
from kdmri_export.trt.engines import EngineRequest, build_engines

__all__ = ["BATCHES", "bundle_name", "export_model"]

BATCHES = ("1", "dynamic")


def bundle_name(
    stem: str,
    target: str,
    dc: str = "auto",
    batch: str = "1",
    precision: str = "f32",
    *,
    mask_input: bool = False,
) -> str:
    """Return the usual folder name of a bundle: stem, target, and what differs from the defaults.

    Args:
        stem: The network's role, or the name of its checkpoint.
        target: Name of the target.
        dc: Form of data consistency as asked for.
        batch: "1" or "dynamic".
        precision: Of the graph.
        mask_input: Whether it takes masks as an input.
    """
    marks = [precision] if precision != "f32" else []
    marks += [dc] if dc != "auto" else []
    marks += [batch] if batch != "1" else []
    marks += ["masks"] if mask_input else []
    return "-".join([stem, target, *marks])


def _check_place(out: Path) -> None:
    """Refuse a folder that holds anything but a bundle: it is replaced as a whole."""
    foreign = foreign_files(out)
    if foreign:
        raise ExportError(
            f"{out} is no bundle: it holds {foreign[0]}, which would be lost.",
            "Choose another --out, or empty that folder.",
        )


def export_model(
    checkpoint: Path,
    *,
    target: str,
    out: Path,
    dc: str = "auto",
    batch: str = "1",
    precision: str = "f32",
    mask_input: bool = False,
    engines: EngineRequest | None = None,
) -> Bundle:
    """Export a checkpoint as a bundle; it appears only if it passes the parity gate.

    Args:
        checkpoint: The .safetensors file.
        target: Name of the target.
        out: The bundle's folder; an earlier one there is replaced on success.
        dc: Form of data consistency: "auto", "projection", "dft" or "fft".
        batch: "1", or "dynamic" for any number of slices per call.
        precision: Of the graph; one of the target's.
        mask_input: Take the operator of data consistency as a second input, so that one graph
            serves every mask of the network's kind and matrix.
        engines: For "trt": which engines to build from it; None builds none.

    Raises:
        ExportError: Unknown target, batch or precision, a node that the target does not take, an
            engine that is required and cannot be built, or `out` holds files of other origin.
        MaskError: The form does not suit the mask.
        ParityError: The graph does not reproduce PyTorch; nothing is written.
        MissingExtraError: A library that the target needs is not installed.
        CheckpointError: The checkpoint is missing or damaged.
        OutputError: `out` cannot be written.
    """
    chosen = target_named(target)
    _check_place(out)
    if batch not in BATCHES:
        raise ExportError(f"There is no batch {batch!r}.", f"Use {' or '.join(BATCHES)}.")
    if precision not in chosen.precisions:
        raise ExportError(
            f"Target {target!r} has no precision {precision!r}.",
            f"It has {', '.join(chosen.precisions)}.",
        )
    if engines is not None and target != "trt":
        raise ExportError(f"Target {target!r} has no engines.", "Leave the builder out.")
    for library in chosen.exports_with:
        require(library, extra="onnx")
    require(chosen.checker.library, extra=chosen.checker.extra)
    meta = read_checkpoint_meta(checkpoint)
    form = choose_form(Mask.from_dict(meta["mask"]), dc)
    reconstructor = load_reconstructor(checkpoint, form)
    if mask_input and (form is Form.FFT or reconstructor.spec.kind is Kind.VDSR):
        raise ExportError(
            "Only networks with data consistency as a matrix product take masks as an input.",
            "Use --mask fixed, or --dc auto.",
        )
    if form is Form.FFT:
        # Over both axes, as published networks have it: this form is the baseline. That one axis
        # is enough for a line mask is what the projection form builds on.
        matrix = int(meta["matrix"])
        reconstructor.operator = reconstructor.operator.expand(matrix, matrix).contiguous()
    data = golden(reconstructor.mask, int(meta["matrix"]), reconstructor.spec.channels)
    calibrated = None
    if precision == "int8":
        calibrated = "training volumes" if reconstructor.ranges else "phantom"
        reconstructor.ranges = reconstructor.ranges or phantom_ranges(reconstructor, data)
    inputs = data.network_input[:1]
    example = torch.from_numpy(inputs)
    writer: Callable[..., None] = load_attribute(chosen.exporter)
    session_class: Callable[..., Session] = load_attribute(chosen.checker.session)
    with atomic_directory(out) as folder:
        graph = folder / chosen.graph_file
        dynamic = batch == "dynamic"
        writer(
            reconstructor,
            example,
            graph,
            dynamic=dynamic,
            precision=precision,
            mask_input=mask_input,
        )
        session = session_class(graph, precision="int8" if precision == "int8" else "f32")
        if mask_input:
            check_other_mask(session, reconstructor, data, precision=precision)
            session.operator = reconstructor.operator.numpy()
            np.save(folder / GOLDEN_OPERATOR, session.operator)
        parity = check(session, reconstructor, data, precision=precision, dynamic=dynamic)
        np.save(folder / GOLDEN_INPUT, inputs)
        with torch.inference_mode():
            np.save(folder / GOLDEN_OUTPUT, reconstructor(example).numpy())
        manifest = _manifest(chosen, meta, reconstructor, checkpoint, list(inputs.shape), batch)
        manifest |= {
            "mask_input": mask_input,
            "precision": precision,
            "calibrated_on": calibrated,
            "parity": parity,
        }
        if target == "trt":
            manifest["engine"] = build_engines(folder, engines or EngineRequest(), dynamic)
        write_manifest(folder, manifest)
    return open_bundle(out)


def _manifest(
    target: Target,
    meta: dict[str, Any],
    reconstructor: Reconstructor,
    checkpoint: Path,
    shape: list[int],
    batch: str,
) -> dict[str, Any]:
    spec = reconstructor.spec
    dims: list[int | str] = ["batch" if batch == "dynamic" else 1, *shape[1:]]
    port = {"shape": dims, "dtype": "float32"}
    macs = spec.macs(shape[2], shape[3], lines=reconstructor.mask.is_lines)
    return {
        "target": target.name,
        "graph": target.graph_file,
        "io": {
            "input": {"name": "zero_filled", **port},
            "output": {"name": "reconstruction", **port},
        },
        "role": meta["role"],
        "spec": spec.to_dict(),
        "parameters": spec.parameters,
        "macs": macs,
        "mask": reconstructor.mask.to_dict(),
        "matrix": meta["matrix"],
        "scaling": meta["scaling"],
        "dc": str(reconstructor.form),
        "batch": batch,
        "checkpoint_sha256": sha256_file(checkpoint),
        "training": meta["training"],
        "provenance": provenance(),
    }
