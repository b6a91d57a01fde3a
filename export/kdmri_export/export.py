"""From a checkpoint to a bundle."""

from __future__ import annotations

import glob
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdmri_edge.bring.trial import MULTIPLES, takes_sides
from kdmri_edge.distillation.recipe import recipe_value
from kdmri_edge.errors import CheckpointError, ExportError, KdmriError
from kdmri_edge.models.checkpoint import load_reconstructor, read_checkpoint_meta
from kdmri_edge.models.protocol import InputKind, NetworkSpec, holds_mask, reads_coils
from kdmri_edge.models.reconstructor import Reconstructor
from kdmri_edge.models.specs import describe_spec, described_spec
from kdmri_edge.physics.coils import COILS
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.operators import Form, choose_form
from kdmri_edge.quantisation.calibration import (
    HIGHEST,
    LOWEST,
    check_magnitudes,
    open_layers,
)
from kdmri_edge.runtime.bill import write_bill
from kdmri_edge.runtime.bundle import (
    GOLDEN_INPUT,
    GOLDEN_MAPS,
    GOLDEN_OPERATOR,
    GOLDEN_OUTPUT,
    OTHER,
    Bundle,
    foreign_files,
    open_bundle,
    write_manifest,
)
from kdmri_edge.runtime.calibration import (
    CALIBRATION,
    read_calibration,
    sidecar,
    write_calibration,
)
from kdmri_edge.runtime.deviation import tolerance_for
from kdmri_edge.runtime.scope import FreeSizes
from kdmri_edge.runtime.session import Session
from kdmri_edge.runtime.signature import Signer, sign_manifest
from kdmri_edge.runtime.targets import as_users_write
from kdmri_edge.utils.console import say
from kdmri_edge.utils.extras import load_attribute, require
from kdmri_edge.utils.files import atomic_directory, sha256_file, sweep_folders
from kdmri_edge.utils.provenance import provenance
from kdmri_export.parity import (
    Golden,
    check,
    check_other_coils,
    check_other_mask,
    check_other_matrix,
    golden,
    phantom_maxima,
    takes_blank_coils,
)
from kdmri_export.passes.any_matrix import TRANSFORMS, example_transforms, other_matrices
from kdmri_export.passes.tracing import FixedSizeError, NarrowedSizeError
from kdmri_export.recipe import AUTO, ExportRecipe
from kdmri_export.rounding_cost import Kept, layers_to_keep
from kdmri_export.targets.onnx import INPUT, KSPACE
from kdmri_export.targets.tensorrt.engines import (
    TORCH_TENSORRT,
    EngineRequest,
    build_engines,
    run_engines,
)
from kdmri_export.written import Written

__all__ = ["export_model"]

_MEASURE = "kdmri_bench.measuring.bundle:measure_bundle"


def _check_place(out: Path) -> None:
    """Refuse a folder that holds anything but a bundle: it is replaced as a whole."""
    foreign = foreign_files(out)
    if foreign:
        raise ExportError(
            f"{out} is no bundle: it holds {foreign[0]}, which would be lost.",
            "Choose another folder, or empty that one.",
        )


def _check_precision(recipe: ExportRecipe, session_class: type[Session]) -> None:
    """Refuse a precision of the runtime that this machine lacks: the gate could not run in it."""
    if recipe.executed != recipe.written and recipe.executed not in session_class.precisions_here():
        raise ExportError(
            f"This CPU has no {as_users_write(recipe.executed)} arithmetic to check the export in.",
            "Export in fp32, which gives the same graph, and run it in"
            f" {recipe.executed} on a CPU that has it.",
        )


def export_model(
    checkpoint: Path,
    recipe: ExportRecipe,
    out: Path,
    *,
    signer: Signer | None = None,
    measured: bool = False,
) -> Bundle:
    """Export a checkpoint as a bundle; it appears only if it passes the parity gate.

    Args:
        checkpoint: The .safetensors file.
        recipe: What is asked for.
        out: The bundle's folder; an earlier one there is replaced on success.
        signer: Signs the bundle before it appears; None leaves it unsigned.
        measured: Have the manifest say how long a slice takes here and how much memory, in a
            process of its own, for `kdmri-edge verify` to compare with.

    Raises:
        ExportError: A node that the target does not take, a precision that this CPU lacks or that
            would change nothing, an engine that is required and cannot be built, integers of
            another kind than the network was tuned for, a mask as the input of a network that has
            no use for it, a network that gives no image, or `out` holds files of other origin.
        MaskError: The form of data consistency does not suit the mask.
        ParityError: The graph does not reproduce PyTorch; nothing is written.
        MissingExtraError: A library that the target needs is not installed.
        CheckpointError: The checkpoint is missing or damaged.
        OutputError: `out` cannot be written.
    """
    target = recipe.row
    _check_place(out)
    for library in target.exports_with:
        require(library, extra="onnx")
    require(target.checker.library, extra=target.checker.extra)
    make = load_attribute(target.checker.session)
    _check_precision(recipe, make)
    meta = read_checkpoint_meta(checkpoint)
    if recipe.any_matrix:  # data consistency of any matrix is that of any mask
        described = described_spec(meta)
        if holds_mask(described):
            raise ExportError(
                f"A network {_kind(described)} holds its mask, and with it its matrix.",
                "Leave --matrix any out.",
            )
        consistent = described.has_data_consistency
        recipe = replace(recipe, mask_input=recipe.mask_input or consistent)
    reconstructor = _reconstructor(checkpoint, meta, recipe)
    spec = reconstructor.spec
    coils = recipe.coils if reads_coils(spec) else None
    of_kspace = spec.reads is InputKind.KSPACE
    data = golden(reconstructor.mask, int(meta["matrix"]), spec.channels, coils, reads=spec.reads)
    inputs = data.network_input[:1]
    example = torch.from_numpy(inputs)
    maps = None if data.network_maps is None else torch.from_numpy(data.network_maps[:1])
    image = _image(reconstructor, example, maps)
    calibrated = None
    kept: Kept | None = None
    if recipe.quantised:
        _check_kind(reconstructor, meta, recipe)
        calibrated = _calibrate(reconstructor, data)
    if recipe.automatic:
        named = tuple(one for one in recipe.floats if one != AUTO)
        kept = layers_to_keep(
            reconstructor,
            data,
            unsigned=not recipe.signed,
            outputs=target.backend.name == "onnxruntime",
            floats=named,
        )
        recipe = replace(recipe, floats=(*named, *map(glob.escape, kept.layers)))
    writer: Callable[..., Written | int | None] = load_attribute(target.exporter)
    sweep_folders(out.parent)
    with atomic_directory(out) as folder:
        graph = folder / target.graph_file
        written, recipe = _written(writer, reconstructor, example, graph, recipe)
        _check_transformed(recipe, written)
        session: Session = make(graph, precision=recipe.executed)
        executed = session.info.precision_executed
        _check_executed(recipe, executed)
        session.sense, session.kspace = spec.coils, of_kspace
        session.coils = None if target.any_coils and not of_kspace else coils
        if recipe.any_matrix:
            session.free = FreeSizes(multiple=recipe.multiple)
            session.transforms = len(example_transforms(reconstructor, example))
        if recipe.mask_input:
            session.operator = reconstructor.operator.numpy()
            check_other_mask(session, reconstructor, data, precision=recipe.precision)
            np.save(folder / GOLDEN_OPERATOR, session.operator)
        parity = check(
            session, reconstructor, data, precision=recipe.precision, dynamic=recipe.dynamic
        )
        if recipe.any_matrix:
            parity["other_matrices"] = _other_matrices(session, reconstructor, meta, recipe, folder)
        np.save(folder / GOLDEN_INPUT, inputs)
        if maps is not None:
            check_other_coils(session, reconstructor, data, precision=recipe.precision)
            np.save(folder / GOLDEN_MAPS, maps.numpy())
        np.save(folder / GOLDEN_OUTPUT, image)
        _keep_calibration(checkpoint, folder)
        manifest = _manifest(recipe, meta, reconstructor, checkpoint, list(inputs.shape))
        manifest |= {"calibrated_on": calibrated, "parity": parity}
        if of_kspace:
            blank = takes_blank_coils(reconstructor, data)
            manifest["io"]["input"]["blank_coils"] = blank
        if written.layers is not None:
            manifest["transformed"] = written.layers.to_dict()
        elif written.convolutions is not None:  # of a target that counts convolutions alone
            manifest["transformed"] = {"convolutions": written.convolutions}
        if written.transforms:
            manifest["transforms_as_products"] = written.transforms
        if kept is not None:
            manifest["kept_in_float"] = kept.to_dict()
        if target.checker is target.backend:
            manifest["executed"] = {"backend": target.backend.title, "precision": executed}
        if target.builds_engines:
            wanted = recipe.engines or EngineRequest()
            manifest["engine"] = build_engines(
                folder,
                wanted,
                dynamic=recipe.dynamic,
                checkpoint=checkpoint.resolve(),
                dc=recipe.dc,
                precision=recipe.precision,
            )
            if manifest["engine"]["built"]:
                write_manifest(folder, manifest)  # run_engine.py reads it
                outputs = session.run(inputs, maps=None if maps is None else maps.numpy())
                tolerance = tolerance_for(recipe.precision, reconstructor.form)[1]
                manifest["engine"] = run_engines(folder, manifest["engine"], outputs, tolerance)
                if recipe.quantised:
                    manifest["engine"] = _beside_fp16(checkpoint, recipe, manifest["engine"])
        write_bill(folder, manifest, now=str(manifest["provenance"]["time_utc"]))
        write_manifest(folder, manifest)
        if measured:
            manifest["measured"] = load_attribute(_MEASURE)(folder)
            write_manifest(folder, manifest)
        if signer is not None:
            sign_manifest(folder, signer.key, valid_days=signer.valid_days)
    return open_bundle(out)


def _keep_calibration(checkpoint: Path, folder: Path) -> None:
    """Copy what was calibrated of these very weights into the bundle; say where it is of others.

    Raises:
        CheckpointError: What lies beside the checkpoint is no calibration.
    """
    calibration = read_calibration(sidecar(checkpoint), CheckpointError)
    if calibration is None:
        return
    if calibration.weights == sha256_file(checkpoint):
        write_calibration(folder / CALIBRATION, calibration)
    else:
        say(
            f"{sidecar(checkpoint)} is the calibration of other weights, and is left out:"
            " `kdmri-edge calibrate` makes it again."
        )


def _beside_fp16(checkpoint: Path, recipe: ExportRecipe, engine: dict[str, Any]) -> dict[str, Any]:
    """Time the same network in fp16 on the GPU that an int8 engine ran on: integers may be slower.

    Returns:
        `engine`, with `fp16_p50_ms` in the record of what ran here, or `fp16_reason` why not.
    """
    records = engine["engines"]
    if not any(record.get("p50_ms") for record in records):
        return engine
    halves = replace(recipe, precision="f16", floats=())
    found: dict[str, Any]
    with tempfile.TemporaryDirectory() as place:
        try:
            made = export_model(checkpoint, halves, Path(place) / "fp16").manifest["engine"]
            times = [one["p50_ms"] for one in made["engines"] if one.get("p50_ms") is not None]
            found = {"fp16_p50_ms": times[0]} if times else {"fp16_reason": made["reason"]}
        except KdmriError as error:
            found = {"fp16_reason": str(error)}
    ran = [{**record, **found} if record.get("p50_ms") else record for record in records]
    return {**engine, "engines": ran}


def _image(
    reconstructor: Reconstructor, example: Tensor, maps: Tensor | None
) -> NDArray[np.float32]:
    """Return what PyTorch makes of the golden input; whatever is no image of it is refused.

    Raises:
        ExportError: The network gives something else, or changes its input.
    """
    given = example.clone()
    shape = torch.Size((len(example), reconstructor.spec.channels, *example.shape[-2:]))
    with torch.inference_mode():
        made: Any = reconstructor(given, maps=maps)
    size = f"an image {list(shape)} in float32"
    if not isinstance(made, Tensor):
        many = f" of {len(made)}" if isinstance(made, tuple | list | dict) else ""
        problem = f"it has to return {size}, and returned a {type(made).__name__}{many}"
    elif made.is_complex() or made.dtype != torch.float32 or made.shape != shape:
        kind = "complex numbers" if made.is_complex() else f"{made.dtype}".removeprefix("torch.")
        problem = f"it has to return {size}, and returned {list(made.shape)} in {kind}"
    elif not torch.isfinite(made).all():
        odd = _not_finite(reconstructor)
        problem = "it gives NaN or infinite values for a phantom"
        problem += f"; its weight {odd!r} holds such values, too" if odd else ""
    elif not torch.equal(given, example):
        problem = "it changes its input in place"
    else:
        image: NDArray[np.float32] = made.numpy()
        return image
    raise ExportError(f"The network cannot be exported: {problem}.", "Mend it, or train it again.")


def _not_finite(reconstructor: Reconstructor) -> str | None:
    """Return the first weight that is not finite."""
    state = reconstructor.model.state_dict().items()
    return next((name for name, value in state if not torch.isfinite(value).all()), None)


def _written(
    writer: Callable[..., Written | int | None],
    reconstructor: Reconstructor,
    example: torch.Tensor,
    graph: Path,
    recipe: ExportRecipe,
) -> tuple[Written, ExportRecipe]:
    """Write the graph; of any matrix, with the smallest multiple that the network takes.

    Poolings and strides ask for multiples, and PyTorch says so only when it is tried.

    Returns:
        What the writer gives, and the recipe with the multiple.
    """
    if not recipe.any_matrix:
        return Written.of(writer(reconstructor, example, graph, recipe)), recipe
    side = example.shape[-1]
    tried = [one for one in MULTIPLES if side % one == 0 and takes_sides(reconstructor, one)]
    refused: ExportError | None = None
    for multiple in tried:
        found = replace(recipe, multiple=multiple)
        try:
            return Written.of(writer(reconstructor, example, graph, found)), found
        except FixedSizeError as error:  # a network may look at sizes that it takes
            refused = error
            if isinstance(error, NarrowedSizeError):  # no multiple takes the decision away
                break
    raise ExportError(
        f"The network does not take images of other sizes than {side} x {side}"
        f"{f' ({refused.what})' if refused else ''}.",
        "Export it without --matrix any.",
    )


def _other_matrices(
    session: Session,
    reconstructor: Reconstructor,
    meta: dict[str, Any],
    recipe: ExportRecipe,
    folder: Path,
) -> list[dict[str, Any]]:
    """Run the gate at a smaller square and at a rectangle; return what it found, for each.

    Golden data of the rectangle are left in the folder.
    """
    coils = recipe.coils if reconstructor.spec.coils else None
    found = []
    for matrix in other_matrices(int(meta["matrix"]), recipe.multiple):
        parity, arrays = check_other_matrix(
            session, reconstructor, matrix, precision=recipe.precision, coils=coils
        )
        found.append({"matrix": list(matrix), "figures": parity["figures"]})
        for name, array in arrays.items():  # the last one's stay
            np.save(folder / (OTHER + name), array)
    return found


def _check_transformed(recipe: ExportRecipe, written: Written) -> None:
    """Refuse a graph that is not in the precision that was asked for: none of it would be."""
    if recipe.floats and written.layers is None:
        raise ExportError(
            f"Target {recipe.target!r} does not leave single layers in float32.",
            "Leave the layers out.",
        )
    if recipe.written == "f32" or written.convolutions != 0:
        return
    known = written.layers
    why = "it has no layer that its kernels take so" if known is None else known.why_nothing
    raise ExportError(
        f"Nothing of this network can be written in {as_users_write(recipe.precision)} for target"
        f" {recipe.target!r}: {why}.",
        "Export it with --precision fp32.",
    )


def _check_executed(recipe: ExportRecipe, executed: str) -> None:
    """Refuse what the target's own runtime computes in another precision throughout."""
    target, wanted = recipe.row, recipe.executed
    if wanted == "f32" or target.checker is not target.backend:
        return
    some, none = (re.search(rf"\b{wanted} in {n}", executed) for n in ("[1-9]", r"0\b"))
    if wanted not in executed or (none and not some):
        raise ExportError(
            f"{target.backend.title} would compute nothing of this network in {wanted}"
            f" ({as_users_write(executed)}).",
            "Export it with --precision fp32, or for a target that has other kernels, e.g."
            " --target openvino.",
        )


def _check_kind(reconstructor: Reconstructor, meta: dict[str, Any], recipe: ExportRecipe) -> None:
    """Refuse a copy that was tuned for the other kind of integers: it would round otherwise."""
    wanted = "int8-signed" if recipe.signed else "int8"
    tuned = recipe_value(meta["training"].get("recipe") or {}, "qat.quantize", wanted)
    if reconstructor.ranges and tuned != wanted:
        raise ExportError(
            f"This network was tuned for {tuned}, and target {recipe.target!r} rounds as {wanted}.",
            f"Name the network that it stems from, or tune that with"
            f" `kdmri-edge distill --quantize {wanted}`.",
        )


def _calibrate(reconstructor: Reconstructor, data: Golden) -> str:
    """See to it that a network can be quantised; return what its integers' steps come from."""
    known = reconstructor.ranges or reconstructor.maxima
    if not known:
        reconstructor.maxima = phantom_maxima(reconstructor, data)
        return "phantom"
    check_magnitudes(reconstructor.model, maxima=reconstructor.maxima, ranges=reconstructor.ranges)
    origin = "training with rounding" if reconstructor.ranges else "training volumes"
    network = reconstructor.model
    writes = open_layers(network, network.structure())
    if reconstructor.ranges:  # what a tuned copy leaves in float has none
        writes = {name: place for name, place in writes.items() if name in reconstructor.ranges}
    behind = [name + HIGHEST for name in writes]
    if all(key in known for key in behind):
        return origin
    # measured by a version that did not look at what layers write
    found = phantom_maxima(reconstructor, data)
    further = {key: found[key] for key in found if key.endswith((HIGHEST, LOWEST))}
    if reconstructor.ranges:
        most = {key: max(values) for key, values in further.items()}
        reconstructor.ranges = {**most, **reconstructor.ranges}
    else:
        reconstructor.maxima = {**further, **reconstructor.maxima}
    return f"{origin}; what layers write: phantom"


def _reconstructor(checkpoint: Path, meta: dict[str, Any], recipe: ExportRecipe) -> Reconstructor:
    """Load the network in the form that is exported."""
    form = choose_form(Mask.from_dict(meta["mask"]), recipe.dc)
    reconstructor = load_reconstructor(checkpoint, form, any_mask=recipe.mask_input)
    spec = reconstructor.spec
    if reads_coils(spec) and recipe.engines and recipe.engines.builder == TORCH_TENSORRT:
        raise ExportError(
            "Torch-TensorRT programs take one image, and this network combines coils."
            if spec.coils
            else "Torch-TensorRT programs take one image, and this network reads k-space of coils.",
            "Build it with tensorrt.",
        )
    aims = (
        (recipe.mask_input, "take its mask as an input"),
        (recipe.keep_op, "keep data consistency as one node"),
    )
    if holds_mask(spec):
        for asked, aim in (*aims, (recipe.dc != "auto", "have another form of it")):
            if asked:
                raise ExportError(
                    f"A network {_kind(spec)} has data consistency of its own, and cannot {aim}.",
                    "Leave that option out.",
                )
    for asked, aim in aims:
        if asked and not spec.has_data_consistency:
            raise ExportError(
                f"A network that has no data consistency cannot {aim}.",
                "Leave that option out.",
            )
        if asked and form is Form.FFT:
            raise ExportError(
                f"A network whose data consistency is an FFT cannot {aim}.",
                "Leave that option out, or take another form of data consistency, e.g. auto.",
            )
    if recipe.dc != "auto" and not spec.has_data_consistency:
        # it would change nothing but the bundle's name and the limits of its parity
        raise ExportError(
            "A network that has no data consistency cannot have another form of it.",
            "Leave --dc out.",
        )
    if recipe.coils != COILS and not reads_coils(spec):
        raise ExportError(
            "A network that takes one image reads no coils: scans are combined before it.",
            "Leave --coils out.",
        )
    if form is Form.FFT:
        # Over both axes, as published networks have it: this form is the baseline. That one axis
        # is enough for a line mask is what the projection form builds on.
        matrix = int(meta["matrix"])
        reconstructor.operator = reconstructor.operator.expand(matrix, matrix).contiguous()
    return reconstructor


def _kind(spec: NetworkSpec) -> str:
    """Say what a network is that holds its mask."""
    return "of k-space" if spec.reads is InputKind.KSPACE else "that is given deepinv's physics"


def _manifest(
    recipe: ExportRecipe,
    meta: dict[str, Any],
    reconstructor: Reconstructor,
    checkpoint: Path,
    shape: list[int],
) -> dict[str, Any]:
    spec = reconstructor.spec
    sides: list[int | str] = ["height", "width"] if recipe.any_matrix else [*shape[2:]]
    dims: list[int | str] = ["batch" if recipe.dynamic else 1, shape[1], *sides]
    port = {"shape": dims, "dtype": "float32"}
    image = {"shape": [dims[0], spec.channels, *dims[-2:]], "dtype": "float32"}
    name = KSPACE if spec.reads is InputKind.KSPACE else INPUT
    mask = reconstructor.mask
    # What is computed: P where the mask is an input, its factor where that is cheaper.
    sampled = None if recipe.mask_input else int(mask.samples.sum())
    macs = spec.macs(shape[-2], shape[-1], lines=mask.is_lines, sampled=sampled, coils=recipe.coils)
    maps: dict[str, Any] = {}
    if spec.coils:
        coils: int | str = "coils" if recipe.row.any_coils else recipe.coils
        dims_of_maps = [dims[0], coils, 2, *sides]
        maps = {"maps": {"name": "maps", "shape": dims_of_maps, "dtype": "float32"}}
    return {
        "target": recipe.target,
        "graph": recipe.row.graph_file,
        "io": {
            "input": {"name": name, **port},
            **(_made_for_each_matrix(reconstructor, recipe) if recipe.any_matrix else {}),
            **maps,
            "output": {"name": "reconstruction", **image},
        },
        "role": meta["role"],
        "spec": spec.to_dict(),
        "network": describe_spec(spec),
        "parameters": spec.parameters,
        "macs": macs,
        "mask": reconstructor.mask.to_dict(),
        "matrix": meta["matrix"],
        "scaling": meta["scaling"],
        "dc": str(reconstructor.form),
        "batch": recipe.batch,
        "precision": recipe.written,
        "run_precision": recipe.precision,
        "mask_input": recipe.mask_input,
        **({"matrix_multiple": recipe.multiple} if recipe.any_matrix else {}),
        "keep_op": recipe.keep_op,
        **({"coils": recipe.coils} if reads_coils(spec) else {}),
        "checkpoint_sha256": sha256_file(checkpoint),
        "training": meta["training"],
        "provenance": provenance(),
    }


def _made_for_each_matrix(reconstructor: Reconstructor, recipe: ExportRecipe) -> dict[str, Any]:
    """Describe the inputs that the runtime makes for the scan's matrix and mask."""
    found: dict[str, Any] = {}
    if recipe.mask_input:
        twice = "2*height" if reconstructor.spec.channels == 2 else "height"
        shape: list[int | str] = [twice, twice]
        if reconstructor.form is not Form.PROJECTION:
            shape = ["height", 1 if reconstructor.mask.is_lines else "width"]
        found["operator"] = {"name": "operator", "shape": shape, "dtype": "float32"}
    given = example_transforms(reconstructor, torch.empty(1, 1, 1, 1))
    for name, side in zip(TRANSFORMS, ("height", "width"), strict=True):
        if name in given:
            found[name] = {"name": name, "shape": [2, side, side], "dtype": "float32"}
    return found
