"""What is exported where: from what a user names to checkpoints, recipes and folders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from kdmri_edge.bring.network import bring_checkpoint, check_not_brought, is_brought
from kdmri_edge.distillation.run_folder import Run, RunNetwork, newest_run, open_run, tuned_for
from kdmri_edge.errors import ExportError, ParityError, RunError
from kdmri_edge.models.checkpoint import is_checkpoint
from kdmri_edge.models.shipped import is_reference, refusal, resolve
from kdmri_edge.physics.coils import COILS
from kdmri_edge.physics.masks import Mask
from kdmri_edge.runtime.bundle import Bundle
from kdmri_edge.runtime.signature import Signer
from kdmri_edge.runtime.targets import PRECISIONS, TARGETS
from kdmri_edge.utils.console import say
from kdmri_edge.utils.extras import available, require
from kdmri_edge.utils.keys import Ask, read_private_key
from kdmri_edge.utils.suggest import nearest
from kdmri_export.recipe import AUTO, ExportRecipe
from kdmri_export.targets.tensorrt.engines import (
    RTX_DEFAULT,
    EngineRequest,
    faster_in_fp16,
    named_capabilities,
    probe,
)

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ExportJob", "Source", "export", "plan_exports"]


_TAKEN: Final = (
    "Give a run's folder or a .safetensors checkpoint that `kdmri-edge distill` wrote, or a network"
    " of `kdmri-edge models`."
)

Source: TypeAlias = "str | os.PathLike[str] | Run | nn.Module"
"""What a user may name as the network to export."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportJob:
    """One export.

    Attributes:
        checkpoint: The network's weights.
        recipe: What is asked for.
        out: The bundle's folder.
        instead: What is kept where this one, in int8, is not the faster or fails its gate.
        signer: Signs the bundle; None leaves it unsigned.
        measured: Whether the manifest is to say how long a slice takes here.
    """

    checkpoint: Path
    recipe: ExportRecipe
    out: Path
    instead: ExportJob | None = None
    signer: Signer | None = None
    measured: bool = False

    def run(self) -> Bundle:
        """Export it.

        Raises:
            KdmriError: See `kdmri_export.export.export_model`.
        """
        if self.instead is None:
            return self._export()
        try:
            bundle = self._export()
        except (ParityError, ExportError) as error:
            say(f"int8 is not taken: {error}")
            return self.instead.run()
        slower = faster_in_fp16(bundle.manifest["engine"])
        if slower is None:
            return bundle
        say(f"fp16 is kept: {slower[1]:.3g} ms on this GPU, int8 takes {slower[0]:.3g} ms.")
        kept = self.instead.run()
        if self.instead.out != self.out:
            shutil.rmtree(self.out)
        return kept

    def _export(self) -> Bundle:
        from kdmri_export.export import export_model

        return export_model(
            self.checkpoint, self.recipe, self.out, signer=self.signer, measured=self.measured
        )


def plan_exports(
    source: Source | None,
    *,
    targets: Sequence[str],
    precision: str = "fp32",
    model: str | None = None,
    dc: str = "auto",
    batch: str = "1",
    mask: str = "fixed",
    keep_op: bool = False,
    coils: int = COILS,
    compiled: bool = True,
    builder: str | None = None,
    compute_capabilities: Sequence[str] = (),
    require_engine: bool = False,
    floats: Sequence[str] = (),
    out: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    for_mask: Mask | str | os.PathLike[str] | None = None,
    matrix: int | str | None = None,
    convention: str | None = None,
    sign: str | os.PathLike[str] | None = None,
    valid_days: int | None = None,
    measure: bool | None = None,
    ask: Ask | None = None,
) -> list[ExportJob]:
    """Decide what is exported, before anything is.

    Args:
        source: A run or its folder, a network of it, a .safetensors checkpoint, or the name of a
            trained network of the package; code that makes a network, or a module; None takes the
            newest run under runs/.
        targets: Names of rows of `TARGETS`.
        precision: Of the convolutions: "fp32", "fp16", "bf16" or "int8"; for target "trt" on a
            machine with its GPU also "auto": of int8 and fp16 what is faster there is kept.
        model: Which network of a run: "student", "teacher", "plain", or "all"; None as "student".
            Other sources are one network, and take none.
        dc: Form of data consistency: "auto", "projection", "dft" or "fft".
        batch: "1", or "dynamic" for any number of slices per call.
        mask: "fixed", or "input" for one graph that serves every mask of its kind and matrix.
        keep_op: Keep data consistency as one node (targets whose row says so).
        coils: Of multi-coil networks: coils that scans are compressed to, at most.
        compiled: Compile the graphs of targets that have it, where there is a C++ compiler.
        builder: What builds engines, for targets that have engines: "auto", "tensorrt", "rtx",
            "torch-tensorrt" or "none"; None as "auto".
        compute_capabilities: GPUs that TensorRT-RTX builds for ahead of time, e.g. "sm86".
        require_engine: Fail where no engine can be built.
        floats: Patterns of the names of layers that stay in float32 beside others in fp16 or int8;
            "auto" chooses them for int8, by what rounding costs.
        out: The bundle's folder; None makes one beside the network, named after what differs from
            the defaults.
        weights: File of weights of a source that is code (`bring.network.bring_checkpoint`, as are
            the three that follow); checkpoints and runs say all of it themselves.
        for_mask: The mask that such a network reconstructs for.
        matrix: Side of its images; or, of any source, "any" for graphs that take images of any
            matrix, and with data consistency any mask of their kind.
        convention: What its `forward` takes.
        sign: File of a private key that signs the bundles; None leaves them unsigned.
        valid_days: Days that the signatures hold; None for without end.
        measure: Have manifests say how long a slice takes here, and how much memory; None for
            bundles that are signed.
        ask: See `utils.keys.read_private_key`.

    Raises:
        KeyFileError: `sign` is no file of a private key, or its passphrase is not known.
        ExportError: An unknown target, or an option that the target or the source does not have.
        RunError: There is no such run, or that network of it is not trained (yet).
        ModelError: No network of that name is shipped.
    """
    signer = None
    if sign is not None:  # before anything is exported
        signer = Signer(key=read_private_key(Path(sign), ask), valid_days=valid_days)
    elif valid_days is not None:
        raise ExportError("Days are of signatures, and no key is given.", "Add --sign FILE.key.")
    measured = signer is not None if measure is None else measure
    faster = precision == AUTO
    if faster:
        _check_timed(targets, builder)
        precision = "int8"
    short = PRECISIONS.get(precision, precision)
    if short not in PRECISIONS.values():
        raise ExportError(
            f"There is no precision {precision!r}; did you mean"
            f" {nearest(precision, PRECISIONS)!r}?",
            f"Precisions: {', '.join(PRECISIONS)}.",
        )
    rows = [TARGETS.named(name) for name in targets]
    with_engines = any(row.builds_engines for row in rows)
    if not with_engines and (builder or compute_capabilities or require_engine):
        raise ExportError("Engines are built for target 'trt' only.", "Leave the builder out.")
    engines = EngineRequest(
        builder=builder or "auto",
        compute_capabilities=named_capabilities(compute_capabilities)
        or (RTX_DEFAULT if builder == "rtx" else ()),
        required=require_engine,
    )
    recipes = [
        ExportRecipe(
            target=row.name,
            dc=dc,
            batch=batch,
            precision=short,
            mask_input=mask == "input",
            any_matrix=matrix == "any",
            keep_op=keep_op,
            coils=coils,
            compiled=compiled,
            engines=engines if row.builds_engines else None,
            floats=tuple(floats),
        )
        for row in rows
    ]
    side = None if matrix == "any" else matrix
    brought = {"weights": weights, "mask": for_mask, "matrix": side, "convention": convention}
    _check_model(source, model)
    networks = _brought(source, brought)
    # A file that is named is exported as it is; of a run the copy that was tuned for int8 is taken.
    named = _is_file(source)
    networks = networks or _networks(source, model or "student")
    if out is not None and len(networks) * len(recipes) != 1:
        raise ExportError(
            f"{len(networks) * len(recipes)} bundles cannot lie in one folder.",
            "Name one network and one target, or leave --out out.",
        )

    def job(name: str, checkpoint: Path, folder: Path, recipe: ExportRecipe) -> ExportJob:
        halves = replace(recipe, precision="f16", floats=())
        return ExportJob(
            checkpoint=checkpoint if named else _tuned(checkpoint, recipe),
            recipe=recipe,
            out=folder / recipe.bundle_name(name) if out is None else Path(out),
            instead=job(name, checkpoint, folder, halves) if faster and recipe.quantised else None,
            signer=signer,
            measured=measured,
        )

    return [job(*network, recipe) for network in networks for recipe in recipes]


def _check_timed(targets: Sequence[str], builder: str | None) -> None:
    """Refuse to choose the faster precision where no engine can be timed."""
    if not all(TARGETS.named(name).builds_engines for name in targets):
        reason: str | None = "only engines of target trt are timed when they are exported"
    elif builder not in (None, "auto", "tensorrt"):
        reason = f"engines of --builder {builder} do not run where they are built"
    else:
        reason = probe("tensorrt")
        if reason is None and not available("cuda"):
            reason = "cuda-python is not installed"
    if reason is None:
        return
    raise ExportError(
        f"The faster precision cannot be found out here: {reason}.",
        "Name --precision fp16 or int8, or export on the device.",
    )


def export(source: Source | None = None, *, target: str, **options: Any) -> Bundle:
    """Write one network for one target, checked against PyTorch.

    Args:
        source: See `plan_exports`.
        target: Name of a row of `TARGETS`, e.g. "openvino".
        **options: Those of `plan_exports`; "all" is no model here.

    Returns:
        The bundle, which appears only if it passes the parity gate.

    Raises:
        KdmriError: See `plan_exports` and `kdmri_export.export.export_model`.
        MissingExtraError: PyTorch, or a library that the target needs, is not installed.
    """
    require("torch", extra="train")
    jobs = plan_exports(source, targets=[target], **options)
    if len(jobs) != 1:
        raise ExportError(
            f"{len(jobs)} networks are named.", "Export them one by one: teacher, plain, student."
        )
    return jobs[0].run()


def _check_model(source: Source | None, model: str | None) -> None:
    """Refuse to choose among the networks of what is one network: another one would be exported.

    Raises:
        ExportError: A model is named, and the source is no run.
    """
    if model is None or source is None or isinstance(source, Run):
        return
    if isinstance(source, RunNetwork) or is_brought(source) or _is_file(source):
        one = True
    else:
        one = is_reference(os.fspath(cast(str, source)))
    if one:
        raise ExportError(
            f"--model {model} chooses a network of a run, and the source is one network.",
            "Leave it out, or name a run's folder.",
        )


def _brought(source: Source | None, said: Mapping[str, Any]) -> list[tuple[str, Path, Path]]:
    """Return a network that is named as code or given as a module, as `_networks` does.

    Raises:
        ExportError: Something was said of a network that is none.
        KdmriError: See `bring.network.bring_checkpoint`.
    """
    if source is None or isinstance(source, Run | RunNetwork) or not is_brought(source):
        check_not_brought(said, ExportError)
        return []
    checkpoint = bring_checkpoint(source, **said)
    return [(checkpoint.stem.rpartition("-")[0], checkpoint, Path("exports"))]


def _is_file(source: Source | None) -> bool:
    if source is None or isinstance(source, Run | RunNetwork) or is_brought(source):
        return False
    return is_checkpoint(Path(cast(str, source)))


def _networks(source: Source | None, model: str) -> list[tuple[str, Path, Path]]:
    """Return (name, checkpoint, folder for its bundles) of what the user named."""
    if isinstance(source, RunNetwork):
        return [(source.role, source.path, source.run.exports_dir)]
    if isinstance(source, Run):
        run = source
    elif source is None:
        run = newest_run()
        say(f"Taking the newest run: {run.path}")
    else:
        text = os.fspath(cast(str, source))  # modules are taken by `_brought`
        path = Path(text)
        if is_reference(text):
            return [(text, resolve(text), Path("exports"))]
        if _is_file(source):
            return [(path.stem, path, path.parent / "exports")]
        if not (path / "run.json").is_file():
            raise refusal(path, RunError, _TAKEN)
        run = open_run(path)
    roles = run.roles() if model == "all" else [model]
    if not roles:
        raise RunError(
            f"Run {run.path} has no finished network yet.",
            f"Finish it: `kdmri-edge distill --resume --out {run.path}`.",
        )
    return [(role, run.weights(role), run.exports_dir) for role in roles]


def _tuned(checkpoint: Path, recipe: ExportRecipe) -> Path:
    found = tuned_for(checkpoint, recipe.precision, signed=recipe.signed)
    if found != checkpoint:
        say(f"{recipe.target}, int8: taking {found.name}, which was tuned for its rounding.")
    return found
