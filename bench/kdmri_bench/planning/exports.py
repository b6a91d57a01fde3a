"""Exports to be measured: those of a run are kept and reused, missing ones are made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdmri_bench.planning.sources import Source
from kdmri_edge.distillation.run_folder import tuned_for
from kdmri_edge.errors import BenchError, BundleError
from kdmri_edge.runtime.bundle import (
    GOLDEN_INPUT,
    GOLDEN_MAPS,
    GOLDEN_OPERATOR,
    GOLDEN_OUTPUT,
    MANIFEST,
    Bundle,
    open_bundle,
)
from kdmri_edge.utils.extras import available, require
from kdmri_edge.utils.files import sha256_file

__all__ = ["bundle_size", "dft_nodes", "export_for", "is_current"]


def export_for(
    source: Source,
    target: str,
    *,
    dc: str,
    scratch: Path,
    precision: str = "f32",
    batch: str = "1",
    builder: str | None = None,
) -> Path:
    """Return the bundle of a network for a target, exporting it (with parity gate) if need be.

    Args:
        source: a network with a checkpoint.
        target: name of the export target.
        dc: form of data consistency, "auto" for the default.
        scratch: where bundles go that no run keeps.
        precision: of the graph.
        batch: "1", or "dynamic" for any.
        builder: of the engines beside the graph; None builds none.

    Raises:
        KdmriError: the export cannot be made, or fails parity.
    """
    from kdmri_export.export import export_model
    from kdmri_export.recipe import ExportRecipe
    from kdmri_export.targets.tensorrt.engines import EngineRequest

    if source.checkpoint is None:
        raise BenchError(f"{source.name} has no checkpoint to export.", "Give its checkpoint.")
    stem = source.role if source.exports else source.checkpoint.stem
    # The names that `kdmri-edge export` gives, so that neither makes what the other has made.
    engines = EngineRequest(builder=builder, required=True) if builder else None
    recipe = ExportRecipe(target=target, dc=dc, precision=precision, batch=batch, engines=engines)
    name = recipe.bundle_name(stem) + (f"-{builder}" if builder else "")
    out = (source.exports or scratch) / name
    checkpoint = tuned_for(source.checkpoint, precision, signed=recipe.signed)
    if not is_current(out, checkpoint):
        export_model(checkpoint, recipe, out)
    return out


def is_current(bundle: Path, checkpoint: Path) -> bool:
    """Tell whether a bundle is intact and was made from exactly this checkpoint file."""
    if not (bundle / MANIFEST).is_file():
        return False
    try:
        manifest = open_bundle(bundle).manifest
    except BundleError:
        return False  # damaged or of another version: made again
    return recorded_checkpoint(manifest) == sha256_file(checkpoint)


def recorded_checkpoint(manifest: Mapping[str, Any]) -> str | None:
    """SHA-256 of the checkpoint that a bundle was made from, None where it does not say."""
    value = manifest.get("checkpoint_sha256")
    return None if value is None else str(value)


def bundle_size(bundle: Bundle) -> int:
    """Bytes of what a runtime needs: graph and weights, without golden data and manifest."""
    needed = set(bundle.manifest["files"]) - {
        GOLDEN_INPUT, GOLDEN_OUTPUT, GOLDEN_OPERATOR, GOLDEN_MAPS,
    }  # fmt: skip
    return sum((bundle.path / name).stat().st_size for name in needed)


def dft_nodes(bundle: Bundle) -> int | None:
    """Count the Fourier transforms in an ONNX or OpenVINO graph; None where it cannot be read."""
    graph = bundle.graph
    if graph.suffix == ".onnx":
        if not available("onnx"):
            return None
        model = require("onnx", extra="onnx").load(graph, load_external_data=False)
        return sum(node.op_type in ("DFT", "STFT") for node in model.graph.node)
    if graph.suffix == ".xml":
        return len(re.findall(r'<layer[^>]* type="I?R?DFT"', graph.read_text(encoding="utf-8")))
    return None
