"""An assessment as a function: networks and volumes in, a report for those who decide out."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from kdmri_bench.assessment.annotations import annotation_of
from kdmri_bench.assessment.data import AssessedVolume, Data, in_air, load
from kdmri_bench.assessment.kept import Kept, identity
from kdmri_bench.assessment.margins import load_margins
from kdmri_bench.assessment.networks import (
    ZERO_FILLED,
    Missing,
    describe,
    opened,
    teacher_of,
)
from kdmri_bench.assessment.page import PAGE_SIZE, build
from kdmri_bench.assessment.sections import SECTIONS, Section
from kdmri_bench.assessment.study import Options, Study
from kdmri_bench.measuring.workspace import ASSESSMENT, workspace
from kdmri_bench.planning.sources import Networks, Source, runs_of
from kdmri_bench.planning.testdata import run_split
from kdmri_bench.results.schema import finite
from kdmri_edge import __version__
from kdmri_edge.data.datasets import find_volumes
from kdmri_edge.errors import BackendError, BenchError, DataError, MaskError, MissingExtraError
from kdmri_edge.utils.console import progress, say
from kdmri_edge.utils.extras import load_attribute, require
from kdmri_edge.utils.files import (
    atomic_path,
    check_writable,
    damaged,
    read_json,
    refuse_newer,
    sha256_bytes,
)
from kdmri_edge.utils.provenance import cpu, git_revision, provenance, versions
from kdmri_edge.utils.reading import parse_size

__all__ = ["REPORT", "SCHEMA", "Assessment", "assess", "read_assessment"]

SCHEMA: Final = 1
REPORT: Final = "assessment.json"
PAGE: Final = "assessment.html"

_ANNOTATED: Final = {"lesions", "inserted"}  # sections that read where lesions are
_LAST: Final = "verdict"  # it judges what the others found
_KIND: Final = "kdmri-edge assessment"


@dataclass(frozen=True, kw_only=True, slots=True)
class Assessment:
    """A finished assessment; notebooks show it as a page.

    Attributes:
        networks: what was assessed, see `AssessedNetwork.to_dict`.
        missing: networks that could not be opened in a precision, and why.
        teacher: name of the network that the others are compared with; None without one.
        volumes: name, subject, contrast, hash and slices of each.
        mask: name, hash and accelerations.
        matrix: side of the images in pixels.
        margins: see `Margins.to_dict`.
        options: what was asked for.
        notes: what has to be known of the volumes, in sentences.
        sections: what was found, in the order of the page.
        provenance: revision, machine, versions and seed.
        attribution: whom to thank for data that networks were trained on.
        page_size: bytes of the page, beyond which pictures are left out.
        files: where it was saved, by kind.
    """

    networks: Sequence[Mapping[str, Any]]
    missing: Sequence[Mapping[str, str]]
    teacher: str | None
    volumes: Sequence[Mapping[str, Any]]
    mask: Mapping[str, Any]
    matrix: int
    margins: Mapping[str, Any]
    options: Mapping[str, Any]
    sections: Sequence[Section]
    provenance: Mapping[str, Any]
    attribution: Sequence[str] = ()
    notes: Sequence[str] = ()
    page_size: int = PAGE_SIZE
    files: Mapping[str, Path] = field(default_factory=dict)

    def section(self, name: str) -> Section | None:
        """Return a section by its name, None where it is not there."""
        return next((section for section in self.sections if section.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """Return what the JSON file holds: all but drawings and pictures."""
        value: dict[str, Any] = finite(
            {
                "kind": _KIND,
                "schema": SCHEMA,
                "networks": [dict(network) for network in self.networks],
                "missing": [dict(one) for one in self.missing],
                "teacher": self.teacher,
                "volumes": [dict(volume) for volume in self.volumes],
                "mask": dict(self.mask),
                "matrix": self.matrix,
                "margins": dict(self.margins),
                "options": dict(self.options),
                "notes": list(self.notes),
                "sections": [section.to_dict() for section in self.sections],
                "provenance": dict(self.provenance),
                "attribution": list(self.attribution),
            }
        )
        return value

    def save(self, folder: str | os.PathLike[str]) -> Mapping[str, Path]:
        """Write assessment.html and assessment.json; both appear, or neither.

        Returns:
            The files by kind, "html" and "json".

        Raises:
            OutputError: The folder cannot be written to, or the disk is full.
        """
        out = Path(folder)
        names = {"html": PAGE, "json": REPORT}
        with contextlib.ExitStack() as stack:
            paths = {
                kind: stack.enter_context(atomic_path(out / name)) for kind, name in names.items()
            }
            text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
            paths["json"].write_text(text + "\n", encoding="utf-8")
            paths["html"].write_text(build(self), encoding="utf-8")
        return {kind: out / name for kind, name in names.items()}

    def _repr_html_(self) -> str:
        return build(self)


def assess(
    networks: Networks,
    data: Data | Iterable[Data],
    *,
    teacher: str | None = None,
    sections: Sequence[str] = (),
    margins: str | os.PathLike[str] | None = None,
    contrast: str | None = None,
    subjects: Sequence[str] = (),
    limit_slices: int | None = None,
    int8: bool = True,
    other_data: Sequence[str | os.PathLike[str]] = (),
    seed: int = 0,
    threads: int | None = None,
    in_pytorch: bool = False,
    replaced: bool = False,
    page_size: int | str = PAGE_SIZE,
    out: str | os.PathLike[str] | None = None,
) -> Assessment:
    """Measure what compression does to images, for the people who decide about its use.

    Teacher and students are assessed side by side, each in float and as its int8 copy, with the
    zero-filled images beside them. All sections read the same reconstructions.

    Args:
        networks: Networks of the package, runs, checkpoints or bundles, for one mask and matrix.
        data: Folders or files of volumes, "phantom", or volumes that were read. Of a folder that
            follows a run's split, or a known one, test subjects alone are taken; masks of lesions
            (`*_lesions`) that lie beside volumes are used by the section on lesions.
        teacher: What the others are compared with, by its name or path; None takes the one
            that a student's checkpoint names, else that which says it is a teacher, or the one of
            the most operations.
        sections: Names of `SECTIONS`; empty takes all.
        margins: TOML file of margins of non-inferiority; None takes the package's own.
        contrast: Assess on this contrast of the folders only.
        subjects: Assess on exactly these subjects.
        limit_slices: Take so many slices around the middle of each volume.
        int8: Assess the int8 copies as well.
        other_data: Folders of other scanners' data, for the section on robustness.
        seed: Of resampling, noise and positions.
        threads: CPU threads.
        in_pytorch: Run checkpoints in PyTorch, int8 as its layers would round, and export nothing.
        replaced: The other network is to take the place of `teacher`, as `--compare` has it: both
            are compared in equal precisions.
        page_size: Of the page, in bytes or as "4MB"; pictures that would make it larger are left
            out, the most telling last.
        out: Folder that the report is saved in as well. What is measured is kept below it until
            then, so that the same call goes on where one was cut off.

    Raises:
        BenchError: Nothing to assess, networks of different masks, an unknown section, or margins
            that are none.
        DataError: A mask of lesions, or a table of boxes, does not fit its volume.
        KdmriError: A network or a volume is missing or damaged.
        MissingExtraError: scikit-image or matplotlib is not installed.
        OutputError: `out` cannot be written to.
    """
    require("matplotlib", extra="bench")  # found out now, not after minutes
    require("skimage", extra="bench")
    chosen = _sections(sections)
    size = page_size if isinstance(page_size, int) else parse_size(page_size, "--page-size")
    stated = load_margins(None if margins is None else Path(margins))
    if out is not None:
        check_writable(Path(out))
    sources = describe(networks)
    against = teacher_of(sources, teacher)
    runs = runs_of(networks)
    volumes = load(
        data,
        sources[0],
        own=run_split(runs[0].meta) if len(runs) == 1 else None,
        contrast=contrast,
        subjects=subjects,
        slices=limit_slices,
    )
    for folder in other_data:
        find_volumes(Path(folder))  # a wrong path is found out now, too
    annotations = []
    if _ANNOTATED & set(chosen):  # and a mask that does not fit its volume
        annotations = [annotation_of(volume, sources[0].matrix) for volume in volumes]
    options = Options(seed=seed, other_data=tuple(Path(folder) for folder in other_data))
    with (
        workspace(None if out is None else Path(out), ASSESSMENT) as place,
        opened(sources, int8=int8, threads=threads, in_pytorch=in_pytorch) as (found, missing),
    ):
        study = Study(
            networks=sorted(found, key=lambda one: against is None or one.name != against.name),
            teacher=None if against is None else against.name,
            volumes=volumes,
            margins=stated,
            options=options,
            annotations=annotations,
            replaced=replaced,
        )
        if out is not None:
            study.kept = Kept(place.path / identity(_asked(study))[:16])
        _measure(study, chosen)
        done = _assessment(
            study, sources, missing, options={
                "sections": chosen,
                "limit_slices": limit_slices,
                "int8": int8,
                "in_pytorch": in_pytorch,
                "contrast": contrast,
                "subjects": list(subjects),
            },
        )  # fmt: skip
        done = replace(done, page_size=size)
        return done if out is None else replace(done, files=done.save(out))


def _asked(study: Study) -> dict[str, Any]:
    """Return what the figures of an assessment depend on; the verdict is judged each time."""
    return {
        "networks": [network.to_dict() for network in study.networks],
        "teacher": study.teacher,
        "replaced": study.replaced,
        "mask": study.mask.sha256,
        "matrix": study.matrix,
        "volumes": [_contents(volume) for volume in study.volumes],
        "annotations": [
            None if one is None else [one.kind, sha256_bytes(one.mask.tobytes())]
            for one in study.annotations
        ],
        "options": asdict(study.options),
        "other_data": [_stamp(folder) for folder in study.options.other_data],
        "cpu": cpu(),
        "versions": versions(),
        "kdmri_edge": [__version__, git_revision()],
    }


def _contents(volume: AssessedVolume) -> list[Any]:
    case = volume.case
    arrays = (case.target, case.zero_filled)
    hashes = [sha256_bytes(np.ascontiguousarray(one).tobytes()) for one in arrays]
    return [case.name, case.subject, case.contrast, volume.first, volume.voxel_mm, *hashes]


def _stamp(folder: Path) -> list[Any]:
    """Return name, size and time of each file of other data."""
    stats = [(file.path, file.path.stat()) for file in find_volumes(folder)]
    return [[str(path), one.st_size, one.st_mtime_ns] for path, one in stats]


def _sections(wanted: Sequence[str]) -> list[str]:
    """Return the names of sections in the order of the page.

    Raises:
        BenchError: There is no such section.
    """
    for name in wanted:
        SECTIONS.named(name)
    names = [name for name in SECTIONS if not wanted or name in wanted]
    return sorted(names, key=lambda name: name == _LAST)


def _measure(study: Study, names: Sequence[str]) -> None:
    """Measure sections one after the other; what one cannot measure is its reason."""
    with progress("Assessing", len(names)) as advance:
        for name in names:
            row = SECTIONS[name]
            make = partial(load_attribute(row.function), study)
            try:
                kept = name != _LAST
                study.sections[name] = study.kept.section(name, make) if kept else make()
            except (BackendError, DataError, MaskError, MissingExtraError) as error:
                say(f"{row.title} is not measured: {error}")
                study.sections[name] = Section.without(name, row.title, str(error))
            advance(1)


def _assessment(
    study: Study, sources: Sequence[Source], missing: Sequence[Missing], options: dict[str, Any]
) -> Assessment:
    thanks = [source.training.get("attribution") for source in sources]
    return Assessment(
        networks=[
            {"key": ZERO_FILLED, "name": ZERO_FILLED, "role": ZERO_FILLED, "kind": "no network"},
            *(network.to_dict() for network in study.networks),
        ],
        missing=[{"key": one.key, "reason": one.reason} for one in missing],
        teacher=study.teacher,
        volumes=[_volume(volume, sources) for volume in study.volumes],
        mask={**study.mask.to_dict(), "sha256": study.mask.sha256},
        matrix=study.matrix,
        margins=study.margins.to_dict(),
        options=options,
        notes=in_air(study.volumes, study.matrix),
        sections=list(study.sections.values()),
        provenance=provenance(study.options.seed),
        attribution=list(dict.fromkeys(str(text) for text in thanks if text)),
    )


def _volume(volume: AssessedVolume, sources: Sequence[Source]) -> dict[str, Any]:
    case = volume.case
    return {
        "name": case.name,
        "subject": case.subject,
        "contrast": case.contrast,
        "sha256": case.sha256,
        "slices": case.count,
        "first_slice": volume.first,
        "stored_matrix": list(volume.own),
        "air": volume.air,
        "seen_in_training": [s.name for s in sources if case.sha256 in s.hashes],
    }


def read_assessment(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read an assessment.json, or the one in a folder.

    Returns:
        What `Assessment.to_dict` gave.

    Raises:
        BenchError: Missing or damaged file, another kind of report, or one of a newer version.
    """
    file = Path(path)
    file = file / REPORT if file.is_dir() else file
    value = read_json(file, BenchError)
    if not isinstance(value, dict) or value.get("kind") != _KIND:
        raise BenchError(
            f"{file} is no assessment.",
            f"Give a folder that `kdmri-edge assess` wrote, or {REPORT}.",
        )
    with damaged(file, BenchError):
        refuse_newer(file, int(value["schema"]), SCHEMA, BenchError, named="schema")
        for section in value["sections"]:
            section["measures"], section["name"]
    return value
