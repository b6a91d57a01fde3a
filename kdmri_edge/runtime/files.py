"""Reconstructing files: what `kdmri-edge run` does."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdmri_edge import __version__
from kdmri_edge.data.datasets import VolumeFile, find_volumes
from kdmri_edge.data.formats.dicom.files import is_series
from kdmri_edge.data.formats.registry import (
    WRITERS,
    format_of,
    may_be_fastmri,
    read_either,
    read_volume,
    readable_suffix,
    write_image_record,
    writer_suffix,
)
from kdmri_edge.data.image import ImageRecord
from kdmri_edge.data.orientation import Orientation
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.sources import HDF5_SUFFIXES, split_dataset
from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import DataError, OutputError
from kdmri_edge.metrics import nmse, psnr
from kdmri_edge.models.protocol import reads_coils
from kdmri_edge.physics.masks import Mask
from kdmri_edge.physics.redraw import MaskDraw
from kdmri_edge.runtime.certificate import Certificate
from kdmri_edge.runtime.inputs import InputSpec
from kdmri_edge.runtime.pipeline import Pipeline
from kdmri_edge.runtime.session import SessionInfo
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.files import atomic_path

__all__ = ["Job", "check_apart", "plan_jobs", "run_job", "write_certificates"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One file to reconstruct.

    Attributes:
        source: The file.
        destination: Where its reconstruction goes.
    """

    source: VolumeFile
    destination: Path


def plan_jobs(sources: Sequence[Path], output: Path, *, submission: bool = False) -> list[Job]:
    """Decide what is read and written, before anything is.

    Args:
        sources: Files, or folders of which all volumes are taken.
        output: A file for a single input (a folder NAME.dcm for DICOM); otherwise a folder, where
            each reconstruction has the name of its source and the format that
            `data.formats.registry` names for it.
        submission: The output is what fastMRI's leaderboards take: always a folder, of files that
            are named as their sources.

    Raises:
        DataError: A source does not exist or holds no volume.
        OutputError: Several inputs for one file, two inputs of one name, a suffix that no writer
            knows, or an input that would be replaced by its own reconstruction.
    """
    files = [file for source in sources for file in find_volumes(source)]
    folders = [source for source in sources if source.is_dir() and not is_series(source)]
    single = len(files) == 1 and not folders
    if submission:
        if output.suffix.lower() in HDF5_SUFFIXES or output.is_file():
            raise OutputError(
                f"{output} is a file, and a submission is a folder of files that are named as"
                " theirs are.",
                "Give a folder.",
            )
        jobs = [Job(source=file, destination=output / file.path.name) for file in files]
    elif single and writer_suffix(output) and (not output.is_dir() or is_series(output)):
        jobs = [Job(source=files[0], destination=output)]
    elif output.suffix and not output.is_dir():
        many = "one of the formats" if single else "a folder for several inputs, or one input"
        raise OutputError(
            f"{output} cannot hold {'that' if single else f'{len(files)} reconstructions'}.",
            f"Give {many} (files: {', '.join(WRITERS)}).",
        )
    else:
        jobs = [Job(source=file, destination=output / _name(file)) for file in files]
    taken: dict[Path, Path] = {}
    inputs = {place for f in files for place in (f.path.resolve(), *f.path.resolve().parents)}
    for job in jobs:
        place = job.destination.resolve()
        if place in inputs:
            raise OutputError(
                f"{job.destination} is an input, or holds one.", "Choose another --output."
            )
        if place in taken:
            raise OutputError(
                f"{taken[place]} and {job.source.path} would both become {job.destination}.",
                "Run them one by one, with different --output.",
            )
        taken[place] = job.source.path
    return jobs


def _name(file: VolumeFile) -> str:
    row = format_of(readable_suffix(file.path))
    return file.name + (row.result if row else ".npy")


def derivation(network: str, info: SessionInfo, mask: Mask, beyond: Sequence[str] = ()) -> str:
    """Say how an image came about, for files that have a place for it.

    Args:
        network: What to call the network.
        info: What ran.
        mask: What was sampled.
        beyond: What of it the network was not trained for, in sentences.
    """
    named = f" {network}" if network else ""
    made = (
        f"Reconstructed by the neural network{named} (kdmri-edge {__version__}, {info.backend}"
        f" {info.version}, {info.precision_executed}) from data undersampled"
        f" {mask.nominal_acceleration:.2f}x with mask {mask.name}: an estimate."
    )
    return " ".join([made, *beyond])


def scope_of(certificates: Sequence[Certificate]) -> dict[str, Any]:
    """Count slices by whether they are in the network's scope; `reasons` has each reason once."""
    counts = Counter(one.scope.word for one in certificates)
    reasons = dict.fromkeys(text for one in certificates for text in one.scope.reasons)
    return {word: counts[word] for word in ("inside", "outside", "unknown")} | {
        "reasons": list(reasons)
    }


class _Watch:
    """Times the network slice by slice, as `kdmri-edge bench` does, between calls of `advance`.

    Args:
        advance: Called with each number of finished slices; its own time is not counted.
    """

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._seconds: list[float] = []
        self._began = time.perf_counter()

    def __call__(self, slices: int) -> None:
        """Note that slices are finished."""
        self._seconds.append(time.perf_counter() - self._began)
        self._advance(slices)
        self._began = time.perf_counter()

    def network_ms(self) -> dict[str, float | None]:
        """Return p50 and p90 of a slice in the network alone, in ms; None below two slices.

        The first slice is left out: the scaling of the whole volume comes before it, and runtimes
        do then what they have deferred.
        """
        rest = 1e3 * np.asarray(self._seconds[1:])
        return {
            name: float(np.percentile(rest, level)) if rest.size else None
            for name, level in (("p50", 50), ("p90", 90))
        }


def load(
    path: Path,
    reads: InputSpec,
    *,
    undersample: bool = False,
    orientation: Orientation | str = Orientation.VENDOR,
) -> Scan | Volume:
    """Read a file as what a network takes of it.

    What is read as k-space stays k-space (`Pipeline.prepare` makes images of one coil that is
    undersampled here), but for lines at the edges that are zeros of padding: only the format's
    reader of images knows them from lines that were not sampled.

    Args:
        path: A file, or a dataset of one.
        reads: What the network has to be given.
        undersample: The network's mask is to be applied to it.
        orientation: Of raw data, see `registry.read_scan`.

    Raises:
        DataError: See `read_either`.
    """
    loaded = read_either(path, orientation=orientation)
    coils = reads_coils(reads.spec)
    if not isinstance(loaded, Scan) or loaded.coils > 1 or coils or not undersample:
        return loaded
    if loaded.mask.samples.all():
        return loaded
    return dataclasses.replace(read_volume(path), affine=loaded.affine)


def _drawn(draw: MaskDraw, path: Path, loaded: Scan | Volume, reads: InputSpec) -> Mask:
    """Draw the mask that a file is undersampled with, at the matrix that the network will see."""
    coils = reads_coils(reads.spec)
    # one coil is brought to the network's matrix, see `Pipeline.prepare`
    brought = reads.free is None and not (isinstance(loaded, Scan) and (coils or loaded.coils > 1))
    height, width = reads.matrix if brought else loaded.matrix
    return draw.of(split_dataset(path)[0].name, height, width, coils=reads.spec.coils)


def _check_submission(path: Path) -> None:
    """Refuse what fastMRI's leaderboards have no place for, before it is reconstructed.

    Raises:
        DataError: The source is no file of fastMRI's.
    """
    if not may_be_fastmri(path):
        raise DataError(
            f"{path} is no file of fastMRI's, so it has no place in a submission.",
            "Leave --layout out for other files.",
        )
    from kdmri_edge.data.formats.hdf5.fastmri_images import image_size

    image_size(path)


def _write_submission(job: Job, image: NDArray[Any], loaded: Scan | Volume) -> None:
    """Write what fastMRI's leaderboards take of a reconstruction.

    Raises:
        DataError: The images are not of the file's own pixels.
        OutputError: The place cannot be written to.
    """
    from kdmri_edge.data.formats.hdf5.fastmri_images import (
        as_stored,
        image_size,
        write_reconstruction,
    )

    if image.shape[1:] != loaded.matrix:
        own, made = (f"{sides[0]} x {sides[1]}" for sides in (loaded.matrix, image.shape[1:]))
        raise DataError(
            f"{job.source.path} is {own} and was reconstructed at {made}, the network's matrix;"
            " a submission has the file's own pixels.",
            "Use a network of any matrix (`kdmri-edge export --matrix any`).",
        )
    write_reconstruction(job.destination, as_stored(image, image_size(job.source.path)))


def run_job(
    job: Job,
    pipeline: Pipeline,
    *,
    undersample: bool = False,
    follow: bool = True,
    magnitude: bool = False,
    keep_complex: bool = False,
    orientation: Orientation | str = Orientation.VENDOR,
    network: str = "",
    draw: MaskDraw | None = None,
    submission: bool = False,
    study: Path | None = None,
    also: Callable[[Path, ImageRecord], None] | None = None,
) -> dict[str, Any]:
    """Reconstruct one file and write the result.

    Args:
        job: From `plan_jobs`.
        pipeline: The network.
        undersample: Apply its mask to fully sampled images first.
        follow: Take the mask that a file's k-space was sampled with, where the network takes masks
            as an input; else the network's for every file.
        magnitude: Write the magnitudes of real reconstructions, too.
        keep_complex: Write complex reconstructions as they are, in place of their magnitudes.
        orientation: Of raw data, see `registry.read_scan`.
        network: What to call it in files that say how they came about.
        draw: Undersample with a mask that is drawn for this file, in place of the network's.
        submission: Write what fastMRI's leaderboards take.
        study: The DICOM file or series whose patient and study the images belong to; None takes
            the source where that is DICOM.
        also: Called with what has been written, and what it was written of.

    Returns:
        Plain JSON values: files, slices, what of the scan the network was not trained for
        (`beyond_training`), what the output's format cannot hold (`lost`), milliseconds per slice
        (scaling included, reading and writing not), `network_ms` (see `_Watch`), and PSNR and NMSE
        where the fully sampled images are known; `scope` (see `scope_of`), and `certificates`, that
        of each slice.

    Raises:
        KdmriError: See `load`, `Pipeline.prepare`, `Pipeline.images` and `write_image_record`.
    """
    loaded = load(job.source.path, pipeline.reads, undersample=undersample, orientation=orientation)
    if submission:
        _check_submission(job.source.path)
    mask = None if draw is None else _drawn(draw, job.source.path, loaded, pipeline.reads)
    given = pipeline.prepare(loaded, undersample=undersample, own_mask=follow, mask=mask)
    with progress(job.source.name, len(given.zero_filled)) as advance:
        watch = _Watch(advance)
        began = time.perf_counter()
        image = pipeline.images(given, advance=watch)
        seconds = time.perf_counter() - began
    certificates = pipeline.certificates(given, image)
    suffix = readable_suffix(job.source.path)
    picture = ImageRecord(
        image=np.abs(image)
        if magnitude or (np.iscomplexobj(image) and not keep_complex)
        else image,
        voxel_mm=given.voxel_mm,
        affine=given.affine,
        derivation=derivation(network, pipeline.session.info, given.mask, given.beyond),
        dicom=study or (job.source.path if suffix == ".dcm" else None),
        certificates=tuple(one.to_line() for one in certificates),
    )
    lost: list[str] = []
    if submission:
        _write_submission(job, image, loaded)
    else:
        write_image_record(job.destination, picture)
        row = format_of(writer_suffix(job.destination))
        if row is not None:
            lost += row.unsupported_metadata(given.affine, given.voxel_mm)
            lost += row.unsupported_values(picture.image)
        if also is not None:
            also(job.destination, picture)
    figures = None
    if given.target is not None:
        figures = {
            "psnr_db": psnr(given.target, image),
            "nmse": nmse(given.target, image),
            "zero_filled_psnr_db": psnr(given.target, given.zero_filled),
        }
    return {
        "input": str(job.source.path),
        "held": given.kind,
        "mask": given.mask.name,
        "beyond_training": list(given.beyond),
        "output": str(job.destination),
        "lost": lost,
        "left_out": list(loaded.left_out) if isinstance(loaded, Volume) else [],
        "slices": len(image),
        "ms_per_slice": 1e3 * seconds / len(image),
        "network_ms": watch.network_ms(),
        "largest": float(np.abs(image).max()),
        "figures": figures,
        "scope": scope_of(certificates),
        "certificates": [one.to_dict() for one in certificates],
        "session": dataclasses.asdict(pipeline.session.info),
    }


def check_apart(path: Path, jobs: Sequence[Job]) -> None:
    """Refuse a file beside the images that would take the place of one of them, or of an input.

    Raises:
        OutputError: It is one.
    """
    place = path.resolve()
    for job in jobs:
        if place in (job.source.path.resolve(), job.destination.resolve()):
            raise OutputError(
                f"{path} is an input or an image that is to be written.", "Choose another name."
            )


def write_certificates(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write one line of JSON for each slice, atomically.

    Args:
        path: The file.
        results: What `run_job` returned.

    Raises:
        OutputError: The place cannot be written to.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for result in results:
            for number, certificate in enumerate(result["certificates"]):
                line = {"input": result["input"], "slice": number, **certificate}
                stream.write(json.dumps(line, separators=(",", ":")) + "\n")
