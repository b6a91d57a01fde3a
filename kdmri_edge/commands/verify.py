"""`kdmri-edge verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from kdmri_edge.commands.command import Command
from kdmri_edge.commands.options import RowChoice, json_option, key_option
from kdmri_edge.errors import BundleError, KdmriError
from kdmri_edge.runtime.acceptance import performance_text, signature_text
from kdmri_edge.runtime.backends.registry import BACKENDS
from kdmri_edge.runtime.targets import as_users_write
from kdmri_edge.utils.console import print_result, tell
from kdmri_edge.utils.extras import load_attribute
from kdmri_edge.utils.reading import parse_size

__all__ = ["verify"]

_PAGE = "kdmri_bench.reporting.acceptance:write_acceptance"


@click.command(cls=Command)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--backend",
    type=RowChoice("kdmri_edge.runtime.backends.registry:BACKENDS"),
    help="Run this one only [all].",
)
@click.option(
    "--files-only",
    is_flag=True,
    help="Execute nothing of it: check files, manifest, mask, operator and golden data.",
)
@click.option(
    "--digest",
    metavar="SHA256",
    help="Refuse a bundle whose manifest has another digest, which `export` and `verify` print.",
)
@key_option
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="REPORT.json",
    help="A report of `kdmri-edge assess`, which has to be about this very bundle.",
)
@click.option(
    "--measure/--no-measure",
    default=None,
    help="Time a slice here and read the memory, in a process of its own [where the export recorded"
    " its own figures, with a limit, and with --out].",
)
@click.option(
    "--max-ms",
    type=click.FloatRange(min=0, min_open=True),
    help="Fail where a slice takes longer here, network alone [timings fail nothing].",
)
@click.option(
    "--max-memory",
    metavar="SIZE",
    help="Fail where the process takes more here, e.g. 500MiB [memory fails nothing].",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="PAGE.html",
    help="Write verdict and checks as one page to print, whether the bundle passes or not.",
)
@json_option()
def verify(
    bundle: Path,
    backend: str | None,
    files_only: bool,
    digest: str | None,
    keys: tuple[Path, ...],
    report: Path | None,
    measure: bool | None,
    max_ms: float | None,
    max_memory: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Accept a bundle on this machine: it is intact, whose it should be, and gives the right image.

    What lies in it is checked first: every file's SHA-256, that nothing else lies there, the
    manifest's digest, and that mask, operator, graph and golden data belong together. Then the
    golden input runs on every backend and precision that this machine has for it, and is compared
    with PyTorch's golden output; a bundle of any matrix is tried at a second one, too. Of a network
    of this package the image of another input is compared with that of the package's own weights;
    of others the figures are their exporter's claim.

    With --key the bundle has to be signed by that key. Not signed, signed by another key, changed
    since, with the signature of another bundle, and out of date are told apart, each in a sentence
    and in `problem.kind` of --json. With --report a report has to be about this very bundle. Speed
    and memory are measured beside what the export recorded; they fail only against --max-ms and
    --max-memory. Exits with 1 if anything differs, an image deviates, nothing could run it, or a
    limit is exceeded.

    \b
    Examples:
      kdmri-edge verify runs/brain/exports/student-onnx
      kdmri-edge verify bundle --backend openvino --json
      kdmri-edge verify bundle-of-a-stranger --files-only
      kdmri-edge verify bundle --key vendor.pub --out acceptance.html
      kdmri-edge verify bundle --key vendor.pub --report report/assessment.json
      kdmri-edge verify bundle --max-ms 50 --max-memory 1GiB
    """  # noqa: D301 - click wants the backspace itself
    from kdmri_edge.runtime.manifest import MANIFEST, read_manifest
    from kdmri_edge.runtime.verify import refusal_of, verify_bundle
    from kdmri_edge.utils.files import check_file_writable

    if files_only and backend is not None:
        raise click.UsageError("--files-only runs nothing, so it takes no --backend.")
    limits = max_ms is not None or max_memory is not None
    if files_only and (measure or limits):
        raise click.UsageError("--files-only runs nothing, so that nothing is measured.")
    if measure is False and limits:
        raise click.UsageError("Limits are measured: leave --no-measure out.")
    if out is not None:
        if bundle.resolve() in out.resolve().parents:
            raise click.UsageError(
                "--out lies in the bundle, which holds nothing but what was exported."
            )
        check_file_writable(out)
    most = None if max_memory is None else parse_size(max_memory, "--max-memory")
    try:
        if measure is None and not files_only and (bundle / MANIFEST).is_file():
            measure = out is not None or "measured" in read_manifest(bundle / MANIFEST)
        found = verify_bundle(
            bundle,
            backend=backend,
            files_only=files_only,
            digest=digest,
            key=keys,
            report=report,
            measure=bool(measure),
            max_ms=max_ms,
            max_memory=most,
        )
    except KdmriError as error:
        if isinstance(error, BundleError):
            refused = refusal_of(bundle, error)
            if out is not None:
                load_attribute(_PAGE)(refused, out)
            if as_json:
                print_result(json.dumps(refused, indent=2))
        raise
    if out is not None:
        load_attribute(_PAGE)(found, out)
    if as_json:
        print_result(json.dumps(found, indent=2))
    else:
        _show(found)
    if not found["passed"]:
        raise click.exceptions.Exit(1)


def _show(found: dict[str, Any]) -> None:
    tell(f"{found['files']} files are as they were exported.")
    if found["digest"]:
        tell(f"The manifest is as it was exported: {found['digest']}.")
    else:
        tell("The manifest has no digest, as in earlier versions: it may have been changed.")
    tell(f"Signature: {signature_text(found['signature'])}")
    if found["mask_agrees_with"]:
        tell(f"The mask is that of {' and '.join(found['mask_agrees_with'])}.")
    else:
        tell("The mask cannot be compared with the graph's.")
    for text in found["code"]:
        tell(f"Not to be loaded without --code: {text}")
    origin = found["origin"]
    named = f"By its checkpoint's hash it is {origin['network']}. " if origin["network"] else ""
    tell(named + origin["remark"])
    if found["bill"]:
        tell(f"Bill of materials: {found['bill']}.")
    if (report := found["report"]) is not None:
        tell(report["remark"])
        if report["named_by_signature"]:
            tell("The signature names that report.")
    for row in found["rows"]:
        where = BACKENDS[row["backend"]].title
        if row["status"] == "absent":
            wanted = f" in {as_users_write(row['precision'])}" if row["precision"] else ""
            tell(f"{where}: not run{wanted}. {row['reason']}")
            continue
        limit, session = row["tolerance"]["max_error"], row["session"]
        tell(
            f"{where} {session['version']}, {as_users_write(session['precision_executed'])}:"
            f" {row['status']},"
            f" max error {row['max_error']:.1e} (limit {limit:.0e}), NRMSE {row['nrmse']:.1e}"
        )
    if found["performance"] is not None:
        tell(performance_text(found["performance"]))
    if not found["executed"]:
        tell("Nothing was executed.")
    tell("Passed." if found["passed"] else "Failed.")
