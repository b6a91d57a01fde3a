"""`kdmri-edge data`: looking into files, and converting them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from kdmri_edge.commands.command import Group
from kdmri_edge.commands.options import file_options, json_option, orientation_option
from kdmri_edge.errors import KdmriError
from kdmri_edge.utils.console import print_result, tell

if TYPE_CHECKING:
    from kdmri_edge.data.inspection import FileInfo, MaskInfo

__all__ = ["data"]

_DIRECTIONS: Final = {
    "R": "right", "L": "left", "A": "anterior", "P": "posterior", "S": "superior", "I": "inferior",
}  # fmt: skip
"""What the letters of an orientation stand for, of the patient."""

_KSPACE = click.option(
    "--kspace",
    is_flag=True,
    help="A BART array (.cfl) of one coil holds k-space; the file itself does not say.",
)


@click.group(cls=Group)
def data() -> None:
    """Say what is in a file of images or k-space; convert between formats."""


@data.command()
@click.argument(
    "files", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="FILE..."
)
@_KSPACE
@orientation_option
@file_options
@json_option()
def inspect(files: tuple[Path, ...], kspace: bool, orientation: str, as_json: bool) -> int:
    """Say what is in FILE..., and what `kdmri-edge run` would take it as.

    FILE may be the folder of a DICOM series, a folder of files (each is listed), a file of sampling
    masks, or a dataset of an HDF5 file as FILE.h5:DATASET:AXES, with a letter for each axis: s
    slice, c coil, h phase encode, w readout. Of an MRD file with several scans each is listed as
    FILE.h5:GROUP, which the other commands take too. A file that cannot be read gets its reason,
    and the exit code is 1.

    \b
    Examples:
      kdmri-edge data inspect meas_MID00042.dat
      kdmri-edge data inspect scan.h5:FLAIR:swh series/ T1w.nii.gz --json
    """  # noqa: D301 - click wants the backspace itself
    from kdmri_edge.data.inspection import scans_in
    from kdmri_edge.utils.console import progress

    found: list[dict[str, Any]] = []
    failed = 0
    named: list[Path] = []
    for file in files:
        try:
            named += scans_in(file)
        except KdmriError:
            named.append(file)  # looking into it says why
    with progress("Reading", len(named)) as advance:
        for file in named:
            try:
                facts, text = _described(file, kspace=kspace, orientation=orientation)
            except KdmriError as error:
                failed += 1
                facts = {"file": str(file), "error": str(error)}
                text = f"{file}\n  cannot be used: {error}"
            found.append(facts)
            if not as_json:
                tell(text)
            advance(1)
    if as_json:
        print_result(json.dumps(found, indent=2))
    return int(failed > 0)


def _described(file: Path, *, kspace: bool, orientation: str) -> tuple[dict[str, Any], str]:
    """Say what is in a file of images, k-space or masks: for machines, and for people."""
    from kdmri_edge.data.inspection import inspect as look
    from kdmri_edge.data.inspection import masks_in

    masks = masks_in(file)
    if masks is not None:
        described = {key: dataclasses.asdict(mask) for key, mask in masks.items()}
        return {"file": str(file), "masks": described}, _masks_text(file, masks)
    facts = look(file, kspace=kspace, orientation=orientation)
    return facts.to_dict(), _text(facts)


def _text(facts: FileInfo) -> str:
    lines = [
        ("format", facts.format),
        ("holds", f"{facts.holds}, {facts.slices} slice(s) of {_times(facts.matrix)}"),
    ]
    if facts.reference is not None:
        lines.append(("reference", f"{facts.reference}; `kdmri-edge evaluate` compares with it"))
    if facts.left_out:
        lines.append(("not read", ", ".join(facts.left_out)))
    if facts.coils is not None:
        lines.append(("coils", str(facts.coils)))
    if facts.mask is not None:
        lines.append(("sampled", _sampled(facts.mask)))
    if facts.noise_samples is not None:
        lines.append(
            ("noise scan", f"{facts.noise_samples} samples" if facts.noise_samples else "none")
        )
    axes = "(slice, phase encode, readout)"
    voxel = None if facts.voxel_mm is None else f"{_times(facts.voxel_mm)} mm {axes}"
    lines.append(("voxel", voxel or "unknown"))
    towards = ", ".join(_DIRECTIONS.get(letter, letter) for letter in facts.directions or "")
    lines.append(("axes point", f"{towards} {axes}" if towards else "unknown"))
    if facts.orientation is not None:
        other = "along" if facts.orientation == "against" else "against"
        runs = f"run {facts.orientation} the directions in the header"
        told = f"{facts.vendor or 'an unnamed vendor'}: phase encode and readout {runs}"
        lines.append(("raw data of", f"{told}; --orientation {other} turns them"))
    lines += [("note", remark) for remark in facts.remarks]
    lines.append(("subject", facts.subject))
    if facts.contrast:
        lines.append(("contrast", facts.contrast))
    lines.append(("run takes it as" if facts.taken else "run does not take it", facts.run))
    return "\n".join([facts.file, *(f"  {name}: {value}" for name, value in lines)])


def _sampled(mask: MaskInfo) -> str:
    centre = "" if mask.centre_lines is None else f", {mask.centre_lines} around the centre"
    return f"{mask.sampled} of {mask.of} {mask.kind}, {mask.acceleration:g}x{centre}"


def _masks_text(file: Path, masks: Mapping[str, MaskInfo]) -> str:
    lines = [("holds", f"{len(masks)} sampling mask(s), for --mask")]
    lines += [
        (f"{file}:{key}" if key else str(file), _sampled(mask)) for key, mask in masks.items()
    ]
    return "\n".join([str(file), *(f"  {name}: {value}" for name, value in lines)])


def _times(numbers: tuple[float, ...]) -> str:
    """Spell matrices and voxels; the last digits of a float32 are no information."""
    return " x ".join(f"{number:.3f}".rstrip("0").rstrip(".") for number in numbers)


@data.command()
@click.argument("source", type=click.Path(path_type=Path), metavar="IN")
@click.argument("destination", type=click.Path(path_type=Path), metavar="OUT")
@click.option(
    "--magnitude",
    is_flag=True,
    help="Write magnitudes; several coils by the root of their sum of squares.",
)
@_KSPACE
@orientation_option
@file_options
@json_option()
def convert(
    source: Path,
    destination: Path,
    magnitude: bool,
    kspace: bool,
    orientation: str,
    as_json: bool,
) -> None:
    """Write what IN holds into OUT, in the format of its suffix.

    OUT is .nii.gz, .nii, .npy, .cfl (BART, images or k-space), .h5 (MRD, images or k-space) or
    NAME.dcm (a folder of one DICOM file per slice). K-space and phase are never lost without
    --magnitude; what else a format has no place for is said. Patient identification goes from DICOM
    to DICOM only.

    \b
    Examples:
      kdmri-edge data convert meas_MID00042.dat kspace.cfl
      kdmri-edge data convert meas_MID00042.dat scan.h5
      kdmri-edge data convert meas_MID00042.dat T1w.nii.gz --magnitude
      kdmri-edge data convert series/ T1w.nii.gz
    """  # noqa: D301 - click wants the backspace itself
    from kdmri_edge.data.conversion import convert as write

    done = write(source, destination, magnitude=magnitude, kspace=kspace, orientation=orientation)
    if as_json:
        print_result(json.dumps(dataclasses.asdict(done), indent=2))
        return
    tell(f"{done.destination}: {done.wrote}")
    if done.lost:
        tell(f"Not in it: {', '.join(done.lost)}.")
