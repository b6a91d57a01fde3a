"""Folders of volumes: found, loaded at one matrix, split by subject, attributed to their owners."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from kdmri_edge.data.formats.dicom.files import is_dicom, is_series
from kdmri_edge.data.formats.registry import (
    READERS,
    read_either,
    read_volume,
    readable_suffix,
    stem_of,
    suffix_of,
    unknown_suffix,
)
from kdmri_edge.data.phantom.volumes import phantom_volume
from kdmri_edge.data.recorded import RECORDED_FILES
from kdmri_edge.data.resample import to_matrix
from kdmri_edge.data.scan import Scan
from kdmri_edge.data.sources import (
    HDF5_SUFFIXES,
    contrast_of,
    dataset_of,
    parse_name,
    source_sha256,
    split_dataset,
)
from kdmri_edge.data.volume import Volume
from kdmri_edge.errors import DataError
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.files import finite_json

__all__ = [
    "BRAIN_FOLDS",
    "KNOWN_SPLITS",
    "LESION_MASK",
    "PARTS",
    "Parts",
    "Split",
    "VolumeFile",
    "assign",
    "attribution_of",
    "automatic_split",
    "find_parts",
    "find_volumes",
    "load_split",
    "load_volumes",
    "phantom_parts",
    "read_coils",
    "read_found",
    "split_for",
    "split_of_record",
]

LESION_MASK: Final = "_lesions"
"""What the names of masks of lesions end in, which lie beside the volumes that they belong to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VolumeFile:
    """A file that a reader knows, before it is read.

    Attributes:
        path: the file, a dataset of it, or the folder of a DICOM series.
        name: its name without suffix; in a BIDS folder it begins with subject and session.
        subject: as the name tells, the whole name where it does not; in a BIDS folder that of its
            sub- folder.
        contrast: as the name tells, else None.
    """

    path: Path
    name: str
    subject: str
    contrast: str | None


def find_volumes(folder: Path, contrast: str | None = None) -> list[VolumeFile]:
    """List the volumes of a folder, sorted by path.

    Of its sub-folders only two kinds are looked into: one that holds DICOM files straight in it is
    a volume, as is the folder itself if it does; and the folder of a subject as BIDS lays it out,
    `sub-01`, is searched in itself, in its sessions (`ses-1`), and in `anat` of either, where
    BIDS keeps structural images. What lies in a subject's folder is of that subject. Files that no
    reader knows (licences, notes) and hidden files are passed over, as are masks of lesions beside
    volumes (`LESION_MASK`), unless they are asked for as a contrast: they are no images to train,
    calibrate or measure on. A single file counts as a folder of one.

    Args:
        folder: a folder, the folder of one subject, or a file; a dataset as FILE.h5:DATASET:AXES.
        contrast: keep only this one, letter case ignored; None keeps all.

    Raises:
        DataError: missing folder, no volume in it, no volume of that contrast, or a file that is
            named after another subject than its folder.
        MissingExtraError: a DICOM series without pydicom.
    """
    folder = Path(folder)
    file, _ = split_dataset(folder)
    if not file.exists():
        raise DataError(f"{file} does not exist.", "Check the path.")
    if folder.is_dir():
        files = _files_in(folder)
        if not files:
            raise DataError(
                f"{folder} holds no volume.",
                "Put files straight into it, or in the folders of BIDS (sub-01/anat)."
                f" Read are {', '.join(READERS)}.",
            )
    elif readable_suffix(folder):
        files = [_describe(folder)]
    else:
        raise unknown_suffix(folder)
    if contrast is None:
        return _without_masks(files)
    chosen = [f for f in files if f.contrast and f.contrast.lower() == contrast.lower()]
    if not chosen:
        present = sorted({f.contrast for f in _without_masks(files) if f.contrast})
        raise DataError(
            f"{folder} holds no volume of contrast {contrast!r}.",
            f"Present are {', '.join(present)}."
            if present
            else "Its files tell no contrast: ask for none.",
        )
    return chosen


def _without_masks(files: list[VolumeFile]) -> list[VolumeFile]:
    """Leave masks of lesions out, where there is anything else."""
    return [file for file in files if not file.name.endswith(LESION_MASK)] or files


def _volumes_in(folder: Path) -> list[Path]:
    """Paths of a folder's volumes: files, DICOM series below it, and itself as such a series."""
    try:
        entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"{folder} cannot be listed ({error.strerror}).", "Check its rights."
        ) from error
    slices = {path for path in entries if is_dicom(path)}
    if slices:
        others = [path for path in entries if path not in slices]
        return [folder, *(p for p in others if (suffix_of(p) and p.is_file()) or is_series(p))]
    return [p for p in entries if (suffix_of(p) and p.is_file()) or is_series(p)]


_SUBJECT_FOLDER: Final = re.compile(r"sub-([A-Za-z0-9]+)")
_SESSION_FOLDER: Final = re.compile(r"ses-[A-Za-z0-9]+")
_STRUCTURAL: Final = "anat"
"""Folder of BIDS for structural images; what the others hold is no volume to reconstruct."""


def _files_in(folder: Path) -> list[VolumeFile]:
    """Describe the volumes of a folder of any layout."""
    if _subject_of(folder) and (_anat(folder) or _folders(folder, _SESSION_FOLDER)):
        return _subject_files(folder)
    files = [_describe(path) for path in _volumes_in(folder)]
    for subject in _folders(folder, _SUBJECT_FOLDER):
        if not is_series(subject):
            files.extend(_subject_files(subject))
    return files


def _subject_of(folder: Path) -> str | None:
    """The subject that a folder of BIDS is named after, None for another folder."""
    match = _SUBJECT_FOLDER.fullmatch(folder.absolute().name)
    return match[1] if match else None


def _folders(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if pattern.fullmatch(p.name) and p.is_dir())
    except OSError:  # `_volumes_in` says why a folder cannot be listed
        return []


def _anat(folder: Path) -> list[Path]:
    return [path for path in (folder / _STRUCTURAL,) if path.is_dir()]


def _subject_files(folder: Path) -> list[VolumeFile]:
    """Describe the volumes below a subject's folder; they are all of that subject.

    Raises:
        DataError: a file is named after another subject.
    """
    subject = str(_subject_of(folder))
    found: dict[Path, VolumeFile] = {}  # a series that lies straight in anat is met twice
    for place in (folder, *_folders(folder, _SESSION_FOLDER)):
        session = "" if place == folder else place.name
        for path in (path for part in (place, *_anat(place)) for path in _volumes_in(part)):
            found[path] = _of_subject(_describe(path), subject, session)
    return list(found.values())


def _of_subject(file: VolumeFile, subject: str, session: str) -> VolumeFile:
    """Give a volume its folder's subject, and a name that no other volume of the data has."""
    named = parse_name(file.name).subject
    if file.name.startswith(f"sub-{named}") and named != subject:
        raise DataError(
            f"{file.path} is named after subject {named} and lies in the folder of {subject}.",
            "Rename or move it: a subject must not be both trained and tested on.",
        )
    rest = file.name.removeprefix(f"sub-{subject}").removeprefix("_")
    rest = rest.removeprefix(session).removeprefix("_") if session else rest
    name = "_".join(part for part in (f"sub-{subject}", session, rest) if part)
    contrast = file.contrast or (parse_name(name).contrast if rest else None)
    return replace(file, name=name, subject=subject, contrast=contrast)


def _describe(path: Path) -> VolumeFile:
    suffix = readable_suffix(path)
    if suffix == ".dcm":
        from kdmri_edge.data.formats.dicom.reading import dicom_name, dicom_subject

        name, subject = dicom_name(path), dicom_subject(path)
        contrast = parse_name(name).contrast
    else:
        file, dataset = split_dataset(path)
        stem = stem_of(file)
        name = f"{stem}_{dataset_of(dataset).replace('/', '_')}" if dataset else stem
        subject, contrast = parse_name(stem)
        if dataset:
            contrast = contrast_of(dataset_of(dataset))
        elif suffix in HDF5_SUFFIXES:
            from kdmri_edge.data.formats.hdf5.fastmri import fastmri_facts

            told = fastmri_facts(path)
            subject, contrast = told.subject or subject, told.contrast or contrast
    return VolumeFile(path=path, name=name, subject=subject, contrast=contrast)


def load_volumes(files: Sequence[VolumeFile], matrix: int) -> list[Volume]:
    """Read files and bring them to one matrix, showing a progress bar.

    Args:
        files: from `find_volumes`.
        matrix: pixels along H and W.

    Returns:
        One volume per file, in their order.

    Raises:
        DataError: a file cannot be read or brought to the matrix.
    """
    volumes = []
    with progress("Reading volumes", len(files)) as advance:
        for file in files:
            volumes.append(to_matrix(read_found(file), matrix))
            advance(1)
    return volumes


def read_found(file: VolumeFile) -> Volume:
    """Read a volume under the name and subject that its place in the folder gives it.

    Raises:
        DataError: it cannot be read.
    """
    volume = read_volume(file.path)
    return replace(volume, **_found_as(file, volume))


def read_coils(file: VolumeFile) -> Volume | Scan:
    """Read measured k-space of several coils as a scan, all else as `read_found` does.

    Raises:
        DataError: it cannot be read.
    """
    loaded = read_either(file.path)
    if not isinstance(loaded, Scan):
        return replace(loaded, **_found_as(file, loaded))
    return read_found(file) if loaded.coils == 1 else replace(loaded, **_found_as(file, loaded))


def _found_as(file: VolumeFile, loaded: Volume | Scan) -> dict[str, Any]:
    contrast = loaded.contrast or file.contrast
    return {"name": file.name, "subject": file.subject, "contrast": contrast}


PARTS: Final = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Which subjects train, validate and test.

    Attributes:
        name: for tables and manifests.
        train: subjects whose slices the weights are fitted to.
        validation: subjects that choose between checkpoints.
        test: subjects that results are reported on.

    Raises:
        DataError: a subject is in two parts, or twice in one.
    """

    name: str
    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a subject that is named twice."""
        seen: dict[str, str] = {}
        for part in PARTS:
            for subject in getattr(self, part):
                if subject in seen:
                    where = (
                        f"in both {seen[subject]} and {part}"
                        if seen[subject] != part
                        else f"twice in {part}"
                    )
                    raise DataError(
                        f"Split {self.name!r} has subject {subject} {where}.",
                        "Leave each subject in one part only, once.",
                    )
                seen[subject] = part

    @property
    def subjects(self) -> frozenset[str]:
        """All subjects of the split."""
        return frozenset((*self.train, *self.validation, *self.test))


_BRAINS: Final = ("01", "03", "04", "09", "12", "19", "20")

BRAIN_FOLDS: Final[tuple[tuple[str, ...], ...]] = (("01", "20"), ("03", "19"), ("04", "09", "12"))
"""Test subjects of the three folds over all seven brains, for claims with intervals."""

KNOWN_SPLITS: Final[dict[str, Split]] = {
    "brain": Split(
        name="brain", train=("01", "03", "12"), validation=("20", "09"), test=("04", "19")
    ),
    "cardiac": Split(
        name="cardiac", train=("101", "201", "301"), validation=("401",), test=("501",)
    ),
    # Every other brain trains: nothing is chosen within a fold, so none validates.
    **{
        f"brain-fold-{number}": Split(
            name=f"brain-fold-{number}",
            train=tuple(subject for subject in _BRAINS if subject not in fold),
            test=fold,
        )
        for number, fold in enumerate(BRAIN_FOLDS, start=1)
    },
}
"""The splits that the recorded results use; a folder of the same files is recognised, see
`split_for`."""


def split_for(files: Sequence[VolumeFile], *, whole: bool = True) -> Split | None:
    """The recorded split that a folder's files are of, by their hashes; None where they are others.

    Numbers such as 01 and 03 name other people's subjects too, so names alone tell nothing.

    Args:
        files: What `find_volumes` found.
        whole: All subjects that were recorded (in the contrasts that are there) have to be there;
            else some of them are enough.
    """
    present = {file.subject for file in files}
    for name, recorded in RECORDED_FILES.items():
        split = KNOWN_SPLITS[name]
        if not present or not present <= split.subjects:
            continue
        known = {digest: parse_name(stem) for stem, digest in recorded.items()}
        found = [known.get(source_sha256(file.path)) for file in files]
        if None in found:
            continue
        contrasts = {each.contrast for each in found if each is not None}
        asked = {each.subject for each in known.values() if each.contrast in contrasts}
        # one contrast of a recorded folder may have no subject of a part: then it is split anew
        parts = [set(getattr(split, part)) & present for part in PARTS if getattr(split, part)]
        if not whole or (present == asked and all(parts)):
            return split
    return None


def split_of_record(record: Mapping[str, Any]) -> Split | None:
    """The split that a run recorded (`data` of its run.json), None where it recorded none.

    Raises:
        DataError: The record has one subject in two parts.
    """
    parts = {
        part: tuple(dict.fromkeys(str(item["subject"]) for item in record.get(part, ())))
        for part in PARTS
    }
    if not any(parts.values()):
        return None
    return Split(name=str(record.get("split") or "run"), **parts)


def load_split(path: Path) -> Split:
    """Read a split from a TOML or JSON file with the lists `train`, `validation` and `test`.

    Args:
        path: the file; `name` is optional and defaults to the file's stem. A missing list is empty.

    Raises:
        DataError: missing or unreadable file, unknown key, something other than lists of names, no
            subject at all, or a subject in two lists.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            table: Any = finite_json(text)
        elif path.suffix.lower() == ".toml":
            table = tomllib.loads(text)
        else:
            raise DataError(
                f"Split file {path} is neither TOML nor JSON.", "Name it .toml or .json."
            )
    except FileNotFoundError:
        raise DataError(f"Split file {path} does not exist.", "Check the path.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"Split file {path} cannot be read ({error}).", "Correct the file."
        ) from error
    if not isinstance(table, dict):
        raise DataError(
            f"Split file {path} is not a table.", "Give train, validation and test lists."
        )
    unknown = sorted(set(table) - {"name", *PARTS})
    if unknown:
        raise DataError(
            f"Split file {path} has the unknown key {unknown[0]!r}.",
            "The keys are name, train, validation and test.",
        )
    parts = {part: _subjects(table.get(part, []), part, path) for part in PARTS}
    if not any(parts.values()):
        raise DataError(f"Split file {path} names no subject.", "List them under train and test.")
    return Split(name=str(table.get("name", path.stem)), **parts)


def _subjects(value: object, part: str, path: Path) -> tuple[str, ...]:
    """One list of the file as subject names, `sub-` taken off as readers do."""
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise DataError(
            f"{part} in split file {path} is not a list of subject names.",
            f'Write {part} = ["01", "03"], with quotes: 01 and 1 are different subjects.',
        )
    return tuple(str(item).removeprefix("sub-") for item in value)


def assign(files: Sequence[VolumeFile], split: Split) -> dict[str, list[VolumeFile]]:
    """Sort a folder's files into the parts of a split.

    Args:
        files: what `find_volumes` found. Part of a known split is enough; of any other split every
            subject must be there.
        split: which subjects go where.

    Returns:
        {"train": [...], "validation": [...], "test": [...]}, each in the order of `files`.

    Raises:
        DataError: a subject of the folder is in no part, or a subject of the split is not in the
            folder.
    """
    present = {file.subject for file in files}
    stray = sorted(present - split.subjects)
    if stray:
        raise DataError(
            f"Subject {stray[0]} is in no part of split {split.name!r}.",
            "Add it to train, validation or test, or leave its files out.",
        )
    absent = sorted(split.subjects - present)
    if absent and split not in KNOWN_SPLITS.values():
        raise DataError(
            f"Split {split.name!r} names subject {absent[0]}, of whom there is no volume.",
            "Take it out of the split, or check the folder and the contrast."
            f" Present are {', '.join(sorted(present)) or 'none'}.",
        )
    return {part: [f for f in files if f.subject in getattr(split, part)] for part in PARTS}


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Files by part.

    Attributes:
        split: The split that sorted them.
        train: Files of the training subjects.
        validation: Files of the validation subjects.
        test: Files of the test subjects.
    """

    split: Split
    train: Sequence[VolumeFile]
    validation: Sequence[VolumeFile]
    test: Sequence[VolumeFile]


def automatic_split(subjects: Sequence[str]) -> Split:
    """Split unknown subjects: one in six validates, one in six tests, at least one each.

    The order is that of the names' hashes, so adding a subject moves few others.

    Raises:
        DataError: Fewer than three subjects.
    """
    unique = sorted(set(subjects), key=lambda s: hashlib.sha256(s.encode()).hexdigest())
    if len(unique) < 3:
        raise DataError(
            f"The folder holds {len(unique)} subject(s); training, validation and test need three.",
            "Add subjects: a subject's slices must not be both trained and tested on.",
        )
    share = max(1, round(len(unique) / 6))
    return Split(
        name="automatic",
        train=tuple(unique[2 * share :]),
        validation=tuple(unique[share : 2 * share]),
        test=tuple(unique[:share]),
    )


def find_parts(
    folder: Path,
    *,
    contrast: str | None = None,
    split: str | Split | None = None,
    needed: Sequence[str] = ("train",),
) -> Parts:
    """Find a folder's volumes and sort them by subject.

    Args:
        folder: The data folder.
        contrast: Keep only this contrast.
        split: Name of a known split, a TOML or JSON file, or the split itself; None recognises the
            recorded folders by their files' hashes, and splits all others automatically.
        needed: Parts that have to have a volume where the split gives them subjects.

    Raises:
        DataError: See `find_volumes`, `load_split`, `assign` and `automatic_split`; or a part that
            is needed has no volume.
    """
    files = find_volumes(folder, contrast)
    if split is None:
        chosen = split_for(files) or automatic_split([file.subject for file in files])
    elif isinstance(split, Split):
        chosen = split
    else:
        chosen = KNOWN_SPLITS.get(split) or load_split(Path(split))
    parts = assign(files, chosen)
    if not parts["train"]:
        raise DataError(
            f"{folder} holds no volume of a training subject of split {chosen.name!r}.",
            "Add one, or give another split.",
        )
    for part in needed:
        if getattr(chosen, part) and not parts[part]:
            raise DataError(
                f"{folder} holds no volume of the {part} subjects of split {chosen.name!r}"
                f" ({', '.join(getattr(chosen, part))}).",
                f"Add one, or give a split (a .toml or .json file) with {part} = [] if that is"
                " meant.",
            )
    return Parts(split=chosen, **parts)


def phantom_parts(
    seed: int,
    volumes: int,
    *,
    slices: int,
    matrix: int,
    wanted: Sequence[str] = ("train", "validation", "test"),
) -> dict[str, list[Volume]]:
    """Draw phantom volumes; the last fifth validates and tests, at least one volume each.

    Args:
        seed: of the heads.
        volumes: how many there are in all parts together.
        slices: of each volume.
        matrix: side of the images.
        wanted: the parts to draw; a volume is the same whichever others are drawn.
    """
    held = max(1, volumes // 10)
    starts = {"train": 0, "validation": volumes - 2 * held, "test": volumes - held}
    ends = {"train": volumes - 2 * held, "validation": volumes - held, "test": volumes}
    numbers = {part: range(starts[part], ends[part]) for part in wanted}
    parts: dict[str, list[Volume]] = {part: [] for part in wanted}
    with progress("Drawing phantoms", sum(map(len, numbers.values()))) as advance:
        for part, indices in numbers.items():
            for index in indices:
                volume = phantom_volume(seed, slices=slices, matrix=matrix, index=index)
                parts[part].append(volume)
                advance(1)
    return parts


_NAMES = ("ATTRIBUTION.txt", "LICENSE.txt", "LICENSE", "LICENSE.md", "LICENCE", "LICENCE.txt")
_LONGEST = 2000


def attribution_of(folder: Path) -> str | None:
    """Return the text of the folder's licence file (its first 2,000 characters), None if absent.

    Weights carry it in their metadata, since many licences ask that derived works name the source.
    """
    for name in _NAMES:
        file = folder / name
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace").strip()
            return text[:_LONGEST] or None
    return None
