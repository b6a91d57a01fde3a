"""`kdmri-edge run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdmri_edge.commands.command import Command
from kdmri_edge.commands.options import (
    RowChoice,
    archive_of,
    archive_options,
    file_options,
    json_option,
    key_option,
    orientation_option,
)
from kdmri_edge.runtime.backends.registry import BACKENDS
from kdmri_edge.runtime.targets import as_users_write
from kdmri_edge.utils.console import print_result, tell

if TYPE_CHECKING:
    from kdmri_edge.physics.redraw import MaskDraw
    from kdmri_edge.runtime.session import SessionInfo

__all__ = ["run", "runs_on"]


def runs_on(info: SessionInfo) -> str:
    """Say in one line what really runs."""
    return (
        f"{info.backend} {info.version} on {info.device} ({info.provider}),"
        f" {info.threads} thread(s), {as_users_write(info.precision_executed)}"
    )


@click.command(cls=Command)
@click.argument("network", type=click.Path(path_type=Path), metavar="BUNDLE")
@click.argument("inputs", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="File (.nii.gz, .nii, .h5, .hdf5, .npy, .cfl) or DICOM series (NAME.dcm) for one input,"
    " folder for several.",
)
@click.option(
    "--undersample",
    is_flag=True,
    help="The inputs are fully sampled: bring them to the network's matrix and apply its mask; for"
    " a network of any matrix, take them as they are, with a mask that is drawn like its own.",
)
@click.option(
    "--mask",
    metavar="FILE[:KEY]|NETWORK",
    help="The scan's mask (.npy, one of a .json file, or that of a network), for a bundle exported"
    " with `kdmri-edge export --mask input`. Without it, k-space brings its own.",
)
@click.option(
    "--mask-family",
    type=RowChoice("kdmri_edge.physics.masks:MASK_FAMILIES"),
    help="With --undersample: draw a mask of this family for each file, at its own matrix, in place"
    " of the network's; for a bundle that takes masks as an input.",
)
@click.option(
    "--acceleration",
    type=click.FloatRange(min=1),
    help="Of a mask that is drawn for each file [4].",
)
@click.option(
    "--mask-seed",
    metavar="N|name",
    help="Of a mask that is drawn for each file; name seeds it by the file's name, as fastMRI does"
    " for validation [0].",
)
@click.option(
    "--layout",
    type=click.Choice(["fastmri"]),
    help="Write what fastMRI's leaderboards take: a folder with one HDF5 file for each volume, of"
    " its name, with its magnitudes as `reconstruction`, cropped to the size that it tells.",
)
@click.option(
    "--matrix",
    type=click.Choice(["any"]),
    help="Take scans of any matrix and mask: a checkpoint is exported so, a bundle has to be"
    " (`kdmri-edge export --matrix any`).",
)
@click.option(
    "--backend",
    type=RowChoice("kdmri_edge.runtime.backends.registry:BACKENDS", "auto"),
    default="auto",
    show_default=True,
    help="Runtime; auto takes the one that the bundle is made for, or the next that is installed.",
)
@click.option(
    "--precision",
    help="Arithmetic, where the runtime has a choice: bf16 or fp32, see `kdmri-edge doctor` [what"
    " the bundle was exported for].",
)
@click.option(
    "--device",
    type=click.Choice(sorted({device for row in BACKENDS.values() for device in row.devices})),
    help="Where to run; auto takes a backend that has it [the backend's own].",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads [the runtime's choice].")
@click.option(
    "--complex",
    "keep_complex",
    is_flag=True,
    help="Write complex reconstructions as they are; without it their magnitudes are written.",
)
@click.option("--magnitude", is_flag=True, help="Write magnitudes of real reconstructions, too.")
@click.option(
    "--certificates",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write one line of JSON for each slice: samples that were kept, what the network added,"
    " whether the slice is in its scope, a bound on the error.",
)
@orientation_option
@key_option
@archive_options
@click.option(
    "--study",
    type=click.Path(path_type=Path),
    metavar="SERIES",
    help="DICOM file or series of the same examination, whose patient and study DICOM images belong"
    " to [the input, where that is DICOM].",
)
@file_options
@click.option(
    "--no-cache",
    is_flag=True,
    help="Run a checkpoint in PyTorch instead of exporting it once for the fastest runtime.",
)
@json_option()
def run(
    network: Path,
    inputs: tuple[Path, ...],
    output: Path,
    undersample: bool,
    mask: str | None,
    mask_family: str | None,
    acceleration: float | None,
    mask_seed: str | None,
    layout: str | None,
    matrix: str | None,
    backend: str,
    precision: str | None,
    device: str | None,
    threads: int | None,
    magnitude: bool,
    keep_complex: bool,
    certificates: Path | None,
    orientation: str,
    keys: tuple[Path, ...],
    send: str | None,
    queue: Path | None,
    study: Path | None,
    no_cache: bool,
    as_json: bool,
    **spoken: Any,
) -> None:
    """Reconstruct files or folders with a bundle; PyTorch is not needed.

    INPUTS hold k-space that was sampled with the bundle's mask (HDF5, Siemens raw data), complex
    zero-filled images (.npy, .nii.gz, .cfl), or, for super-resolution, magnitude images (a folder
    may be a DICOM series). `kdmri-edge data inspect` says what a file is taken as. Several coils go
    to any network: they are combined for one that takes one image. BUNDLE may also be a
    .safetensors checkpoint, a run (its student), or a network of the package: it is exported once
    for the fastest runtime that is installed, and kept for the next time. A bundle that was
    exported with --matrix any takes scans of any matrix, each with its own lines; what its network
    was not trained for is said.

    With --send the images also go to a DICOM archive, as a series whose patient and study are those
    of a DICOM input, or of --study. What the archive does not take now stays in the queue, and is
    sent with the next call or by `kdmri-edge archive send`; the exit code is that of the
    reconstruction.

    \b
    Examples:
      kdmri-edge run bundle scan.h5 -o scan.nii.gz
      kdmri-edge run bundle scans/ -o reconstructed --backend openvino --precision bf16
      kdmri-edge run dccnn-edge@brain-4x T1w.nii.gz -o T1w-4x.nii.gz --undersample
      kdmri-edge run dccnn-d3c5@brain-any-mask scan-192.h5 -o scan.nii.gz --matrix any
      kdmri-edge run bundle multicoil_test/ -o submission --layout fastmri
      kdmri-edge run bundle scan.h5 -o scan.nii.gz --key vendor.pub
      kdmri-edge run bundle scan.h5 -o scan.dcm --study localizer/ --send PACS@10.0.0.5:104
    """  # noqa: D301 - click wants the backspace itself
    from kdmri_edge.archive.outgoing import Outgoing
    from kdmri_edge.data.formats.dicom.writing import check_study
    from kdmri_edge.models.shipped import named_mask
    from kdmri_edge.runtime.files import check_apart, plan_jobs, run_job, write_certificates
    from kdmri_edge.runtime.networks import backend_at_hand, device_options, where_it_runs
    from kdmri_edge.runtime.pipeline import Pipeline
    from kdmri_edge.utils.console import say
    from kdmri_edge.utils.files import check_file_writable
    from kdmri_edge.utils.keys import public_keys

    draw = _mask_draw(mask_family, acceleration, mask_seed, undersample=undersample, mask=mask)
    if keep_complex and magnitude:
        raise click.UsageError("--complex writes phases, and --magnitude drops them: give one.")
    if layout is not None and keep_complex:
        raise click.UsageError("--layout fastmri writes magnitudes, so it takes no --complex.")
    if layout is not None and send is not None:
        raise click.UsageError("--layout fastmri is nothing for an archive: leave --send out.")
    outgoing = None
    if send is not None:
        archive = archive_of(send, **spoken)
        outgoing = Outgoing(archive, queue)
    if study is not None:
        check_study(study)
    if certificates is not None:
        check_file_writable(certificates)
    trusted = public_keys(keys)
    scanned = named_mask(mask) if mask else None
    # before a checkpoint is exported
    jobs = plan_jobs(inputs, output, submission=layout is not None)
    if certificates is not None:
        check_apart(certificates, jobs)
    source, _ = where_it_runs(
        network,
        backend=None if backend == "auto" else backend,
        device=device,
        precision=precision,
        any_matrix=matrix == "any",
        cache=not no_cache,
        signed=bool(trusted),
    )
    chosen = backend_at_hand(source, device) if backend == "auto" else backend
    options = device_options(source, chosen, device)
    pipeline = Pipeline(
        source,
        backend=chosen,
        mask=scanned,
        any_matrix=matrix == "any",
        precision=precision,
        threads=threads,
        keys=trusted,
        **options,
    )
    said: set[str] = set()
    done: list[dict[str, Any]] = []
    try:
        for job in jobs:
            replaced = job.destination.exists()
            done.append(
                run_job(
                    job,
                    pipeline,
                    undersample=undersample,
                    follow=scanned is None,
                    magnitude=magnitude,
                    keep_complex=keep_complex,
                    orientation=orientation,
                    network=network.name,
                    draw=draw,
                    submission=layout is not None,
                    study=study,
                    also=None if outgoing is None else outgoing.put,
                )
            )
            if len(done) == 1:
                say(runs_on(pipeline.session.info))
            if replaced:
                say(f"{job.destination} has been replaced.")
            if not as_json:
                tell(_line(done[-1]))
            for text in (*done[-1]["beyond_training"], *done[-1]["scope"]["reasons"]):
                if text not in said:
                    said.add(text)
                    say(f"Note: {text}")
    finally:  # images that were written before one failed have their certificates, too
        if certificates is not None and done:
            write_certificates(certificates, done)
    if outgoing is not None:
        sent = outgoing.send()
        for line in outgoing.said:
            say(line)
        for each in done:
            each["archive"] = sent
    if as_json:
        print_result(json.dumps(done, indent=2))
    if outgoing is not None:
        outgoing.check()


def _mask_draw(
    family: str | None,
    acceleration: float | None,
    seed: str | None,
    *,
    undersample: bool,
    mask: str | None,
) -> MaskDraw | None:
    """Read what is said about masks that are drawn for each file; None where nothing is."""
    from kdmri_edge.physics.redraw import MaskDraw

    if family is None:
        for name, given in (("--acceleration", acceleration), ("--mask-seed", seed)):
            if given is not None:
                raise click.UsageError(f"{name} is of masks that are drawn: add --mask-family.")
        return None
    if not undersample or mask is not None:
        raise click.UsageError(
            "--mask-family draws masks for --undersample, and takes no --mask beside it."
        )
    if seed is not None and seed != "name" and not seed.isdecimal():
        raise click.UsageError(f"--mask-seed {seed!r} is neither a number nor 'name'.")
    return MaskDraw(
        family=family,
        acceleration=4.0 if acceleration is None else acceleration,
        seed=None if seed == "name" else int(seed or 0),
    )


def _line(result: dict[str, Any]) -> str:
    text = (
        f"{result['output']}: {result['slices']} slice(s) of {result['held']},"
        f" {result['ms_per_slice']:.1f} ms each"
    )
    figures = result["figures"]
    if figures is not None:
        text += f"; {figures['zero_filled_psnr_db']:.2f} -> {figures['psnr_db']:.2f} dB"
    scope = result["scope"]
    if scope["outside"]:
        text += f"; {scope['outside']} outside the network's scope"
    if result["left_out"]:
        text += f"; not read: {', '.join(result['left_out'])}"
    if result["lost"]:
        text += f"; left out: {', '.join(result['lost'])}, which this format cannot hold"
    return text
