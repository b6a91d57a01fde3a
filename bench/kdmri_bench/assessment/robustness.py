"""What noise, motion, lost lines, other contrasts and aimed perturbations do to the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_bench.assessment.data import AssessedVolume, load
from kdmri_bench.assessment.networks import FLOAT, ZERO_FILLED, AssessedNetwork
from kdmri_bench.assessment.perturbations import PERTURBATIONS, Perturbation
from kdmri_bench.assessment.sections import Cell, Measure, Section, Table, over_subjects
from kdmri_bench.assessment.study import Images, Study
from kdmri_edge.data.datasets import VolumeFile, find_volumes
from kdmri_edge.errors import KdmriError
from kdmri_edge.metrics import psnr
from kdmri_edge.models.protocol import InputKind, reads_coils
from kdmri_edge.physics.fourier import image_to_kspace, kspace_to_image
from kdmri_edge.physics.scaling import network_input
from kdmri_edge.utils.console import progress
from kdmri_edge.utils.extras import available

__all__ = ["LEVEL", "measure"]

NAME: Final = "robustness"
TITLE: Final = "Robustness"

DIFFERENCES: Final = ("psnr_db",)
"""What margins can be stated for."""

LEVEL: Final = 0.01
"""Noise of aimed perturbations: standard deviation over the maximum, as a good scan has."""

_ATTACKED: Final = 4  # slices at most, one of a subject as far as that goes


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Scan:
    """Some slices of a volume, fully sampled: k-space [S, 1, H, W] and their magnitudes."""

    volume: AssessedVolume
    kspace: NDArray[np.complex64]
    target: Images


def measure(study: Study) -> Section:
    """Perturb the scans, and measure how far each network's images suffer."""
    spec = study.networks[0].source.spec
    if reads_coils(spec) or spec.reads is InputKind.KSPACE:
        what = "k-space" if spec.reads is InputKind.KSPACE else "the images"
        return Section.without(
            NAME,
            TITLE,
            "Noise, motion and lost lines are simulated in the k-space of one coil, and these"
            f" networks read {what} of several coils, for which no such simulation has been"
            " checked. What other sections say is of these networks.",
        )
    scans = [scan for volume in study.volumes if (scan := _scan(volume, study)) is not None]
    if not scans:
        return Section.without(NAME, TITLE, "The slices in the middle of all volumes are blank.")
    values, refused = _values(study, scans)
    subjects = [scan.volume.case.subject for scan in scans]
    tables = [_table(study, values, refused), _losses(study, values)]
    tables += _other(study)
    measures = _measures(study, values, subjects)
    aimed, findings = _aimed(study, scans)
    slices = sum(len(scan.target) for scan in scans)
    return Section(
        name=NAME,
        title=TITLE,
        measured=(
            f"{slices} slices in the middle of {len(scans)} volume(s), perturbed before they are"
            " undersampled, by the road of kdmri-edge run and serve. PSNR against the fully sampled"
            " images without the error; where the object itself is another (contrast, centre"
            " frequency, phase) against the fully sampled images of that. A network may refuse a"
            " slice that it is not made for; the zero-filled image is then what counts, as serve"
            " sends it."
        ),
        findings=tuple(findings),
        measures=tuple(measures),
        tables=(*tables, *aimed),
        facts={"refused": refused},
    )


def _scan(volume: AssessedVolume, study: Study) -> _Scan | None:
    case = volume.case
    count = min(study.options.slices, case.count)
    start = (case.count - count) // 2
    image = case.target[start : start + count]
    if not np.abs(image).max() > 0:
        return None
    kspace = image_to_kspace(image)[:, None].astype(np.complex64)
    return _Scan(volume=volume, kspace=kspace, target=np.abs(image).astype(np.float32))


def _values(
    study: Study, scans: Sequence[_Scan]
) -> tuple[dict[str, dict[str, list[float]]], dict[str, dict[str, int]]]:
    """Return PSNR by perturbation, network and scan; and how many slices were refused."""
    values: dict[str, dict[str, list[float]]] = {row.name: {} for row in PERTURBATIONS}
    refused: dict[str, dict[str, int]] = {}
    with progress("Robustness", len(PERTURBATIONS) * len(study.keys)) as advance:
        for network in study.each():
            key = ZERO_FILLED if network is None else network.key
            for row in PERTURBATIONS:
                found = study.kept.values(
                    NAME, f"{key} {row.name}", partial(_of_network, study, scans, network, row)
                )
                values[row.name][key] = found["psnr_db"]
                if found["refused"]:
                    refused.setdefault(row.name, {})[key] = found["refused"]
                advance(1)
    return values, refused


def _of_network(
    study: Study, scans: Sequence[_Scan], network: AssessedNetwork | None, row: Perturbation
) -> dict[str, Any]:
    """Return PSNR of each scan, and how many slices were refused."""
    rng = np.random.default_rng(study.options.seed)
    psnr_db, refused = [], 0
    for scan in scans:
        kspace, target = _perturbed(scan, row.change(scan.kspace, study.mask, rng))
        images, why = study.reconstruct(network, kspace)
        psnr_db.append(_psnr(target, images))
        refused += len(why)
    return {"psnr_db": psnr_db, "refused": refused}


def _perturbed(
    scan: _Scan, changed: tuple[NDArray[np.complex64], bool]
) -> tuple[NDArray[np.complex64], Images]:
    kspace, another = changed
    if not another:
        return kspace, scan.target
    return kspace, np.abs(kspace_to_image(kspace)[:, 0]).astype(np.float32)


def _psnr(target: Images, images: Images) -> float:
    return psnr(target, images) if target.max() > 0 else float("nan")


def _mean(values: Sequence[float]) -> float | None:
    kept = [value for value in values if np.isfinite(value)]
    return float(np.mean(kept)) if kept else None


def _table(
    study: Study,
    values: dict[str, dict[str, list[float]]],
    refused: dict[str, dict[str, int]],
) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for row in PERTURBATIONS:
        own = refused.get(row.name, {})
        said = ", ".join(f"{key}: {count}" for key, count in own.items())
        rows.append(
            (row.title, *(_mean(values[row.name][key]) for key in study.keys), said or None)
        )
    return Table(
        title="PSNR in dB, mean over volumes",
        head=("perturbation", *study.keys, "slices refused"),
        rows=tuple(rows),
        digits=2,
    )


def _losses(study: Study, values: dict[str, dict[str, list[float]]]) -> Table:
    pairs = list(study.pairs())
    rows: list[tuple[Cell, ...]] = []
    for row in PERTURBATIONS:
        own = values[row.name]
        rows.append((
            row.title,
            *(
                _mean(_difference(own[pair.candidate.key], own[pair.reference.key]))
                for pair in pairs
            ),
        ))  # fmt: skip
    return Table(
        title="Change in PSNR, candidate minus reference, dB",
        head=(
            "perturbation",
            *(f"{pair.candidate.key} against {pair.reference.key}" for pair in pairs),
        ),
        rows=tuple(rows) if pairs else (),
        digits=3,
    )


def _difference(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def _measures(
    study: Study, values: dict[str, dict[str, list[float]]], subjects: Sequence[str]
) -> list[Measure]:
    """Return the mean over all perturbations, of networks and of pairs."""
    names = [row.name for row in PERTURBATIONS[1:]]

    def over_all(key: str) -> list[float]:
        return [
            float(np.mean([values[name][key][n] for name in names])) for n in range(len(subjects))
        ]

    shown: dict[str, Any] = {"unit": "dB", "seed": study.options.seed}
    title = "PSNR, mean of all perturbations"
    found = [
        over_subjects("psnr_db", title, key, over_all(key), subjects, digits=2, **shown)
        for key in study.keys
    ]
    for pair in study.pairs():
        found.append(
            over_subjects(
                "psnr_db", f"change in {title}", pair.candidate.key,
                _difference(over_all(pair.candidate.key), over_all(pair.reference.key)),
                subjects, against=pair.reference.key, digits=3, **shown,
            )
        )  # fmt: skip
    return found


def _other(study: Study) -> list[Table]:
    """Measure on data of other scanners, each volume for itself."""
    if not study.options.other_data:
        return []
    files = [file for folder in study.options.other_data for file in find_volumes(folder)]
    rows: list[tuple[Cell, ...]] = []
    with progress("Other data", len(files)) as advance:
        for file in files:
            rows.append(_other_row(study, file))
            advance(1)
    return [
        Table(
            title="Other data: PSNR in dB",
            head=("volume", *study.keys, "remark"),
            rows=tuple(rows),
            digits=2,
            note="Undersampled retrospectively with the networks' mask; smaller matrices are set in"
            " air. The fully sampled images have noise of their own, which no network reproduces.",
        )
    ]


def _other_row(study: Study, file: VolumeFile) -> tuple[Cell, ...]:
    source = study.networks[0].source
    try:
        [volume] = load(str(file.path), source, slices=study.options.slices)
    except KdmriError as error:
        return (file.name, *(None for _ in study.keys), str(error))
    case = volume.case
    own: list[Cell] = []
    why = ""
    kspace = image_to_kspace(case.target)[:, None].astype(np.complex64)
    for network in study.each():
        images, refused = study.reconstruct(network, kspace)
        own.append(_mean([_psnr(volume.target, images)]))
        if refused and not why:
            why = f"{len(refused)} of {case.count} slices refused: {refused[0]}"
    return (case.name, *own, why or None)


def _aimed(study: Study, scans: Sequence[_Scan]) -> tuple[list[Table], list[str]]:
    """Search the worst perturbations of networks whose weights PyTorch can open."""
    floats = [network for network in study.networks if network.precision == FLOAT]
    open_ones = [network for network in floats if network.checkpoint is not None]
    if not available("torch") or not open_ones:
        why = "PyTorch is not installed" if not available("torch") else "bundles have no gradients"
        return [], [f"Aimed perturbations were not searched: {why}."]
    from kdmri_bench.assessment.adversarial import STEPS, Attack

    chosen = _one_of_each(scans)
    rows: list[tuple[Cell, ...]] = []
    with progress("Aimed perturbations", len(open_ones)) as advance:
        for network in open_ones:
            made = study.kept.values(
                NAME, f"{network.key} aimed", partial(_aimed_at, study, chosen, network)
            )
            found = [Attack(**one) for one in made]
            worst = max(found, key=lambda one: one.worst)
            rows.append((
                network.key,
                100 * float(np.mean([one.input for one in found])),
                100 * float(np.mean([one.random for one in found])),
                100 * float(np.mean([one.worst for one in found])),
                100 * worst.worst,
                float(np.mean([one.worst / one.random for one in found if one.random > 0])),
            ))  # fmt: skip
            advance(1)
    table = Table(
        title="Aimed perturbations of the acquired samples",
        head=(
            "network", "perturbation of the input, %", "change by noise of that norm, %",
            "worst change found, %", "largest of all slices, %", "worst over noise",
        ),
        rows=tuple(rows),
        digits=2,
        note=f"Norm of white noise of {100 * LEVEL:g} % of the maximum on the samples that are"
        f" taken; {STEPS} steps of projected gradient ascent on {len(chosen)} slice(s), in PyTorch"
        " and float32. Root mean square over the image, in percent of its maximum. A search finds"
        " a lower bound of the worst case.",
    )  # fmt: skip
    left = [n.key for n in floats if n.checkpoint is None]
    notes = (
        [f"No aimed perturbations of {', '.join(left)}: bundles have no gradients."] if left else []
    )
    return [table], notes


def _aimed_at(
    study: Study, scans: Sequence[_Scan], network: AssessedNetwork
) -> list[dict[str, Any]]:
    """Return what was found on the middle slice of each scan."""
    from kdmri_bench.assessment.adversarial import worst_change

    assert network.checkpoint is not None
    found = []
    for scan in scans:
        case = scan.volume.case
        middle = slice(case.count // 2, case.count // 2 + 1)
        given = network_input(case.zero_filled[middle], case.scale[middle])
        found += worst_change(
            network.checkpoint, given, study.mask.grid, level=LEVEL, seed=study.options.seed
        )
    return [asdict(one) for one in found]


def _one_of_each(scans: Sequence[_Scan]) -> list[_Scan]:
    """Return a scan of each subject, then others, up to the number that time allows."""
    first: dict[str, _Scan] = {}
    for scan in scans:
        first.setdefault(scan.volume.case.subject, scan)
    others = [scan for scan in scans if scan not in first.values()]
    return [*first.values(), *others][:_ATTACKED]
