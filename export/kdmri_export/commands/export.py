"""`kdmri-edge export`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdmri_edge.commands.command import Command
from kdmri_edge.commands.options import NamedChoice, RowChoice, brought_options, json_option
from kdmri_edge.commands.sign import ask_passphrase
from kdmri_edge.physics.coils import COILS
from kdmri_edge.runtime.signature import LONGEST_DAYS
from kdmri_edge.runtime.targets import PRECISIONS, TARGETS, as_users_write
from kdmri_edge.utils.console import print_result, tell
from kdmri_export.targets.tensorrt.engines import BUILDERS, RTX_DEFAULT, faster_in_fp16

if TYPE_CHECKING:
    from kdmri_edge.runtime.bundle import Bundle

__all__ = ["export"]

_ELSEWHERE = ("f16", "bf16")
"""Precisions that the gate of a target whose engines run elsewhere computes in another way."""
_FORMS = {
    "projection": "one matrix product",
    "dft": "DFT matrix products",
    "fft": "FFT nodes",
}
"""What users read for the forms of data consistency."""


@click.command(cls=Command)
@click.argument(
    "source", required=False, type=click.Path(path_type=Path), metavar="[RUN|WEIGHTS|NAME|CODE]"
)
@click.option(
    "--target",
    "targets",
    type=RowChoice("kdmri_edge.runtime.targets:TARGETS"),
    multiple=True,
    required=True,
    help="Where the network is to run; may be repeated. PyTorch has deprecated torchscript; pt2"
    " (torch.export, AOTInductor) is its successor.",
)
@click.option(
    "--model",
    type=click.Choice(["student", "teacher", "plain", "all"]),
    help="Which network of the run [student].",
)
@click.option(
    "--dc",
    type=click.Choice(["auto", "projection", "dft", "fft"]),
    default="auto",
    show_default=True,
    help="Form of data consistency. auto: projection for line masks (one matrix product,"
    " no FFT), else DFT as matrix products. fft: DFT nodes, several times slower.",
)
@click.option(
    "--batch",
    type=click.Choice(["1", "dynamic"]),
    default="1",
    show_default=True,
    help="Slices per call.",
)
@click.option(
    "--precision",
    type=NamedChoice(
        (*PRECISIONS, "auto"), "precision", also={v: k for k, v in PRECISIONS.items()}
    ),
    default="fp32",
    show_default=True,
    help="Arithmetic of the convolutions; in the graph data consistency stays float32. bf16 of trt"
    " is for GPUs of compute capability 8.0 and newer; of openvino it is asked of the runtime"
    " instead, where the CPU has it. auto (trt, on the device): int8 or fp16, whichever runs faster"
    " there within its limits of parity.",
)
@click.option(
    "--mask",
    "mask_role",
    type=click.Choice(["fixed", "input"]),
    default="fixed",
    show_default=True,
    help="fixed bakes the mask in; input takes its matrix as a second input, so that one graph"
    " serves every mask of that size (train for it: distill --set batches.masks=lines).",
)
@click.option(
    "--keep-op",
    is_flag=True,
    help="onnx: keep data consistency as one node, kdmri::DataConsistency, whose meaning (standard"
    " operators) the file carries as a function. Without it the operators are written out, which"
    " every runtime reads.",
)
@click.option(
    "--coils",
    type=click.IntRange(min=1),
    default=COILS,
    show_default=True,
    help="Multi-coil networks: scans are compressed to so many coils; trt graphs, and those of"
    " networks of k-space, take no more.",
)
@click.option(
    "--compile/--no-compile",
    "compiled",
    default=True,
    show_default=True,
    help="pt2: compile the program with AOTInductor for this machine's CPU, where there is a C++"
    " compiler; it takes most of a minute.",
)
@click.option(
    "--builder",
    type=click.Choice(BUILDERS),
    help="trt: what builds engines from the graph. auto takes TensorRT where it works, else none;"
    " rtx (TensorRT-RTX) builds ahead of time, without a GPU [auto].",
)
@click.option(
    "--compute-capability",
    "capabilities",
    help="rtx: the GPUs to build for, comma-separated, or all that the installed builder knows;"
    f" `kdmri-edge doctor` lists them [{','.join(RTX_DEFAULT)}].",
)
@click.option(
    "--float",
    "floats",
    metavar="LAYER",
    multiple=True,
    help="fp16, int8: a layer that stays in float32, by its name or a pattern such as 'up.*'; may"
    " be repeated. auto (int8) leaves those in float32 that rounding costs most, until the image is"
    " close enough.",
)
@click.option("--require-engine", is_flag=True, help="trt: fail if no engine can be built.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the bundle (one network, one target) [RUN/exports/...].",
)
@brought_options(any_matrix=True)
@click.option(
    "--sign",
    "sign_key",
    type=click.Path(path_type=Path),
    metavar="FILE.key",
    help="Sign the bundle with this private key (Ed25519, PEM), see `kdmri-edge sign`.",
)
@click.option(
    "--valid-days",
    type=click.IntRange(1, LONGEST_DAYS),
    help="With --sign: days that the signature holds [without end].",
)
@click.option(
    "--measure/--no-measure",
    default=None,
    help="Have the manifest say how long a slice takes on this machine and how much memory, in a"
    " process of its own, for `kdmri-edge verify` to compare with [with --sign].",
)
@json_option()
def export(
    source: Path | None,
    targets: tuple[str, ...],
    model: str | None,
    dc: str,
    batch: str,
    precision: str,
    mask_role: str,
    keep_op: bool,
    coils: int,
    compiled: bool,
    builder: str | None,
    capabilities: str | None,
    floats: tuple[str, ...],
    require_engine: bool,
    out: Path | None,
    weights: Path | None,
    for_mask: str | None,
    matrix: int | str | None,
    convention: str | None,
    sign_key: Path | None,
    valid_days: int | None,
    measure: bool | None,
    as_json: bool,
) -> None:
    """Write a network for another runtime, checked against PyTorch.

    Without a run the newest one under runs/ is taken; NAME is a trained network of the package, see
    `kdmri-edge models`. CODE, FILE.py:factory or package.module:factory, makes a network of your
    own, whose --weights and --for-mask are named as well. Each bundle is a folder with the graph, a
    golden input and output, and a manifest that holds mask, scaling, hashes, parity and origin.
    A graph that does not reproduce PyTorch is not written. Bundles for trt hold the graph and the
    scripts that build and run its engine on the device; see --builder.

    A bundle is named after its network and target, and after what differs from the defaults:
    -fp16, -bf16 or -int8; -dft, -fft or -projection (--dc); -dynamic (--batch); -masks (--mask
    input); -matrices (--matrix any); -op (--keep-op); -float (--float); -8coils (--coils). Where it
    lies is printed, or is what --out says.

    \b
    Examples:
      kdmri-edge export --target onnx
      kdmri-edge export dccnn-edge@brain-4x --target onnx
      kdmri-edge export runs/brain --target onnx --target openvino --model all
      kdmri-edge export dccnn-d3c5@brain-any-mask --target openvino --matrix any
      kdmri-edge export runs/brain/student.safetensors --target torchscript --out bundle
      kdmri-edge export unet.py:UNet --weights unet.pt --for-mask mask.npy --target onnx
      kdmri-edge export --target trt --precision fp16
      kdmri-edge export runs/brain --target onnx --sign vendor.key --valid-days 365
      kdmri-edge export --target trt --builder rtx --compute-capability sm86,sm89
    """  # noqa: D301 - click wants the backspace itself
    from kdmri_edge.utils.extras import require

    require("torch", extra="train")
    from kdmri_export.jobs import plan_exports

    if out is not None and (len(targets) > 1 or model == "all"):
        raise click.UsageError("--out takes one network and one target.")
    with_engines = any(TARGETS[target].builds_engines for target in targets)
    if not with_engines and (builder or capabilities or require_engine):
        raise click.UsageError("Engines are built for --target trt only.")
    if valid_days is not None and sign_key is None:
        raise click.UsageError("--valid-days is of signatures: add --sign FILE.key.")

    jobs = plan_exports(
        source,
        targets=targets,
        precision=precision,
        model=model,
        dc=dc,
        batch=batch,
        mask=mask_role,
        keep_op=keep_op,
        coils=coils,
        compiled=compiled,
        builder=builder,
        compute_capabilities=[c.strip() for c in (capabilities or "").split(",") if c.strip()],
        require_engine=require_engine,
        floats=floats,
        out=out,
        weights=weights,
        for_mask=for_mask,
        matrix=matrix,
        convention=convention,
        sign=sign_key,
        valid_days=valid_days,
        measure=measure,
        ask=ask_passphrase,
    )
    made = [job.run() for job in jobs]
    if as_json:
        print_result(json.dumps([_record(bundle) for bundle in made], indent=2))
    else:
        _show(made)


def _engine_line(bundle: Bundle) -> str:
    engine = bundle.manifest["engine"]
    if not engine["built"]:
        return f"engine: not built ({engine['reason']})"
    names = ", ".join(one["engine"] for one in engine["engines"])
    if engine["executed"]:
        slower = faster_in_fp16(engine)
        said = "" if slower is None else (
            f"; int8 is no faster here: {slower[0]:.3g} ms, and fp16 {slower[1]:.3g} ms"
        )  # fmt: skip
        return f"engine: built and executed ({names}){said}"
    return f"engine: built, not executed here ({names}); {engine['reason'] or 'for other GPUs'}"


def _size(bundle: Bundle) -> int:
    files = (file for file in bundle.path.glob("model.*") if file.suffix != ".timing")
    return sum(file.stat().st_size for file in files)


def _record(bundle: Bundle) -> dict[str, Any]:
    keys = ("target", "role", "precision", "run_precision", "dc", "batch", "parity", "macs")
    further = ("engine", "transformed", "executed", "kept_in_float", "measured")
    transforms = bundle.manifest.get("transforms_as_products", 0)
    return {
        "bundle": str(bundle.path),
        "bytes": _size(bundle),
        "digest": bundle.digest,
        **{key: bundle.manifest[key] for key in keys},
        "transforms_as_products": transforms,
        **{key: bundle.manifest.get(key) for key in further},
    }


def _show(bundles: list[Bundle]) -> None:
    """Print each bundle's folder, alone on its line so that it can be copied, and what it is."""
    from kdmri_edge.runtime.signature import read_signature
    from kdmri_edge.utils.console import say

    for bundle in bundles:
        tell(str(bundle.path))
        tell(f"  {_facts(bundle)}")
        for line in _precision_lines(bundle):
            tell(f"  {line}")
        tell(f"  against PyTorch: {_parity(bundle)}")
        if bundle.written in _ELSEWHERE and bundle.target.builds_engines:
            parity = bundle.manifest["parity"]
            how = as_users_write(parity["computed"])
            tell(f"  compared was the graph in {parity['ran'].partition(',')[0]}: {how}")
        if bundle.takes_maps:
            macs = bundle.manifest["macs"]
            share = macs["data_consistency"] / sum(macs.values())
            coils = bundle.manifest["coils"]
            tell(f"  data consistency with {coils} coils: {share:.0%} of the multiplications")
        if bundle.target.compiles:
            tell(f"  what ran: {bundle.manifest['parity']['ran']}")
        if "engine" in bundle.manifest:
            tell(f"  {_engine_line(bundle)}")
        for line in _measured(bundle.manifest.get("measured")):
            tell(f"  {line}")
        tell(f"  digest: {bundle.digest}")
        if (signature := read_signature(bundle.path)) is not None:
            until = signature.valid_until_utc
            tell(f"  signed by {signature.key}{f', until {until}' if until else ''}")
    say("Next:")
    for bundle in bundles:
        for line in _next(bundle):
            say(f"  {line}")


def _measured(figures: Mapping[str, Any] | None) -> list[str]:
    """Say how long a slice took here."""
    if figures is None:
        return []
    if "reason" in figures:
        return [f"time and memory: not measured ({figures['reason']})"]
    return [
        f"a slice: {figures['p50_ms']:.3g} ms, {figures['peak_bytes'] / 2**20:.0f} MiB"
        f" ({figures['runtime']}, {figures['threads']} thread(s))"
    ]


def _precision_lines(bundle: Bundle) -> list[str]:
    """Say which layers are in the precision that was asked for, and what the runtime made of it."""
    held = bundle.manifest.get("transformed") or {}
    if bundle.written == "f32" or "of" not in held:  # of a package that counts convolutions alone
        return []
    counted = [f"{held['layers'].get(kind, 0)} of {n} {kind}" for kind, n in held["of"].items()]
    said = as_users_write(bundle.written)
    lines = [f"{said}: {', '.join(counted)}"]
    executed = bundle.manifest.get("executed")
    if executed:
        lines[0] += f"; {executed['backend']} computes {as_users_write(executed['precision'])}"
    for reason in dict.fromkeys(held["left"].values()):
        names = [name for name, why in held["left"].items() if why == reason]
        lines.append(f"in fp32: {', '.join(names)} ({reason})")
    if held["functional"]:
        lines.append(f"in fp32: {', '.join(held['functional'])} (none of these kinds)")
    return lines


def _facts(bundle: Bundle) -> str:
    """Say which graph it is."""
    precision = as_users_write(bundle.meant_for)
    form = "data consistency of its own" if bundle.reads_kspace else "no data consistency"
    if bundle.manifest["macs"]["data_consistency"]:
        form = f"data consistency by {_FORMS.get(bundle.manifest['dc'], bundle.manifest['dc'])}"
    if transforms := bundle.manifest.get("transforms_as_products"):
        form += f", {transforms} Fourier transforms as DFT matrix products"
    matrix = ""
    if bundle.free is not None:
        multiple = bundle.free.multiple
        matrix = "any matrix; " if multiple == 1 else f"any matrix of multiples of {multiple}; "
    return f"{bundle.target.name}, {precision}; {matrix}{form}; {_size(bundle) / 1e3:,.0f} kB"


def _parity(bundle: Bundle) -> str:
    """Say how closely the graph reproduces PyTorch."""
    parity = bundle.manifest["parity"]
    figures, limits = parity["figures"], parity["tolerance"]
    shown = [
        f"{name} {figures[key]:.1e} (limit {limits[key]:.0e})"
        for key, name in (("max_error", "max error"), ("nrmse", "NRMSE"))
    ]
    return ", ".join((*shown, f"ΔPSNR {figures['psnr_db']:.1e} dB", f"ΔSSIM {figures['ssim']:.1e}"))


def _next(bundle: Bundle) -> list[str]:
    """Return the commands that follow an export, ready to be typed."""
    from shlex import quote

    place = quote(str(bundle.path))
    lines = [f"kdmri-edge verify {place}", f"kdmri-edge run {place} INPUT -o OUTPUT"]
    engine = bundle.manifest.get("engine")
    if engine is not None:
        script = quote(str(bundle.path / "build_engine.py"))
        runs = quote(str(bundle.path / "run_engine.py"))
        built = [] if engine["built"] else [f"python3 {script}  # on the device: builds its engine"]
        lines[1:1] = [*built, f"python3 {runs}  # on the device: checks and times it"]
    return lines
