"""What a network's own slices look like, and how large its errors are: kept beside its weights.

*Scope.* The figures of the calibration's slices (`runtime.statistics`) are judged by kind: spectra
and texture, air, place. Of each kind they form a group for each contrast, with a centre and a
covariance: that of each subject's slices around the centre of the other subjects', so that it holds
how people differ beside how slices of one head do. A slice's distance is the Mahalanobis distance
to the nearest group, and it is inside where none of the kinds is beyond its limit. Limits come from
subjects that are held out in turn: calibrated on the others, 99 % of their slices are inside. With
fewer than three subjects none can be held out, and the limits are 1.2 times the 99th percentile of
the slices' own distances. Subjects are those of training and validation: few people, whose images
are seen as typical. How often the limits err on others is measured, not promised.

Calibrations of before (schema 1) know spectra and texture alone, judged by one limit.

*Error bound.* The logarithm of a slice's error is predicted from the same figures, by a ridge
regression on the subjects of training. What validation subjects' errors exceed the prediction by,
at the level of the bound, is added (split conformal prediction; Papadopoulos et al., ECML 2002; Lei
et al., JASA 2018). The guarantee holds over what is exchangeable: subjects, and not slices, which
are alike within a subject. Each validation subject counts as much as another; with few of them the
bound is an estimate, which is to be compared with errors on test subjects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import DataError, KdmriError
from kdmri_edge.runtime.certificate import Bound, Scope
from kdmri_edge.runtime.statistics import KINDS, STATISTICS
from kdmri_edge.utils.files import atomic_path, damaged, read_json, refuse_newer

__all__ = [
    "CALIBRATION",
    "LEVEL",
    "Calibration",
    "Described",
    "Kind",
    "fit",
    "read_calibration",
    "sidecar",
    "write_calibration",
]

CALIBRATION: Final = "calibration.json"
"""Its file in a bundle."""
SCHEMA: Final = 2
_ONE_KIND: Final = 1  # the schema of before
LEVEL: Final = 0.9
"""Share of slices whose error the bound is to hold for."""
TRAINING: Final = "train"
VALIDATION: Final = "validation"

_WIDENED: Final = 1.2
_QUANTILE: Final = 0.99
_SHRINKAGE: Final = 0.01  # of the correlations towards none: slices are few for so many figures
_RIDGE: Final = 0.1  # of figures in units of their spread
_HELD_OUT: Final = 3  # subjects of whom one can be held out
_FEWEST: Final = 20  # slices of a calibration, and of a contrast's own group
_OTHERS: Final = "others"  # contrasts of fewer slices
_LIMITS: Final = {True: "subjects held out in turn", False: "the slices themselves, widened"}
_FOV: Final = 0.1  # beyond the smallest and largest field of view of the calibration
_FAR: Final = 3.0  # standard deviations from a group's centre that are named
_AGAIN: Final = "Calibrate again with `kdmri-edge calibrate`."

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Described:
    """A slice of the calibration.

    Attributes:
        part: TRAINING or VALIDATION.
        subject: Whom it shows.
        contrast: Of its volume, None where it is not known.
        statistics: See `slice_statistics`.
        error: Norm of the image's magnitude less the true one's, over that of the image.
    """

    part: str
    subject: str
    contrast: str | None
    statistics: Values
    error: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Kind:
    """Figures of one kind, and how far a slice's may be from those of the calibration.

    Attributes:
        name: See `statistics.KINDS`.
        kept: Indices of `STATISTICS`: those K of the kind that vary.
        groups: Names of G groups of slices: contrasts, or what they are called together.
        centre: [G, K], medians of the figures.
        spread: [G, K], root mean squares of what they are apart from it.
        whitening: [G, K, K], lower triangular; what is left of standardised figures multiplied by
            it has the identity as its covariance.
        limit: Largest distance of a slice that is inside.
    """

    name: str
    kept: NDArray[np.intp]
    groups: tuple[str, ...]
    centre: Values
    spread: Values
    whitening: Values
    limit: float

    def distances(self, figures: Values) -> Values:
        """Return the distances [G, N] of figures [N, K], 1 on average within a group."""
        apart = (figures - self.centre[:, None]) / self.spread[:, None]
        whitened = apart @ self.whitening.transpose(0, 2, 1)
        found: Values = np.sqrt((whitened * whitened).mean(-1))
        return found

    def relative(self, statistics: Values) -> tuple[float, int]:
        """Return the distance to the nearest group, relative to the limit, and which that is."""
        distances = self.distances(statistics[None, self.kept])[:, 0]
        nearest = int(distances.argmin())
        return float(distances[nearest]) / self.limit, nearest


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Calibration:
    """What is kept of a calibration.

    Attributes:
        weights: SHA-256 of the checkpoint that it belongs to.
        integers: Whether the network was computed in int8.
        kinds: See `Kind`.
        kept: Indices of `STATISTICS` that the bound goes by.
        coefficients: [K + 1], of log10 of the error: of each kept figure, and the constant, the
            conformal margin included; None where no validation subject was there, or too few
            slices for the level.
        level: Share of slices that the bound is for.
        fov_mm: Smallest and largest field of view along H or W; None where no volume told.
        contrasts: Of the volumes; empty where none is known.
        about: What it was made from: data, subjects, slices, provenance.
    """

    weights: str
    integers: bool
    kinds: tuple[Kind, ...]
    kept: NDArray[np.intp]
    coefficients: Values | None
    level: float
    fov_mm: tuple[float, float] | None
    contrasts: tuple[str, ...]
    about: Mapping[str, Any]

    def scope(self, statistics: Values) -> Scope:
        """Compare a slice's figures with those of the calibration."""
        found = [(*kind.relative(statistics), kind) for kind in self.kinds]
        relative, nearest, kind = max(found, key=lambda one: one[0])
        if relative <= 1:
            return Scope(inside=True, distance=relative)
        apart = np.abs((statistics[kind.kept] - kind.centre[nearest]) / kind.spread[nearest])
        far = [int(place) for place in np.argsort(-apart)[:2] if apart[place] > _FAR]
        # the first word of each: sentences with numbers would all be different
        named = dict.fromkeys(STATISTICS[kind.kept[place]].partition(",")[0] for place in far)
        what = " and ".join(named) or f"{kind.name}, figures taken together"
        return Scope(
            inside=False,
            reasons=(f"The slice is unlike those that the network was calibrated on ({what}).",),
            distance=relative,
        )

    def bound(self, statistics: Values) -> Bound:
        """Return the bound on the error of a slice that is inside the scope."""
        if self.coefficients is None:
            return Bound(
                reason="No validation subject, or too few slices, to calibrate the bound on."
            )
        logarithm = float(self.coefficients[:-1] @ statistics[self.kept] + self.coefficients[-1])
        return Bound(value=float(10.0 ** min(logarithm, 6.0)), level=self.level)

    def unlike_header(self, fov_mm: float | None, contrast: str | None) -> tuple[str, ...]:
        """Say what of a scan's header is unlike the calibration's volumes, in sentences.

        Args:
            fov_mm: Field of view, the longer side; None where the header does not tell.
            contrast: For instance "T1w"; None where it does not tell.
        """
        found = []
        if fov_mm is not None and self.fov_mm is not None:
            low, high = self.fov_mm
            if not low * (1 - _FOV) <= fov_mm <= high * (1 + _FOV):
                found.append(
                    f"The field of view is {fov_mm:.0f} mm, the calibration's {low:.0f} to"
                    f" {high:.0f} mm."
                )
        if contrast is not None and self.contrasts and contrast not in self.contrasts:
            known = ", ".join(self.contrasts)
            found.append(f"The contrast is {contrast}, the calibration's {known}.")
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, four digits each."""
        coefficients = self.coefficients
        return {
            "schema": SCHEMA,
            "weights": self.weights,
            "integers": self.integers,
            "scope": {
                "kinds": [_told(kind) for kind in self.kinds],
                "fov_mm": None if self.fov_mm is None else list(self.fov_mm),
                "contrasts": list(self.contrasts),
            },
            "bound": {
                "quantity": "norm of |x| - |x_true| over that of |x|, of a slice",
                "level": self.level,
                "statistics": _names(self.kept),
                "coefficients": None if coefficients is None else _listed(coefficients, 7),
            },
            "about": dict(self.about),
        }

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Calibration:
        """Read what `to_dict` gave, of this schema or the one of before.

        Raises:
            LookupError: A key is missing.
            TypeError: A value is of another kind.
            ValueError: A value cannot be.
        """
        scope, bound = given["scope"], given["bound"]
        if given["schema"] == _ONE_KIND:
            names = given["statistics"]
            kinds = [_kind({**scope, "name": "spectra and texture", "statistics": names})]
        elif given["schema"] == SCHEMA:
            names = bound["statistics"]
            kinds = [_kind(one) for one in scope["kinds"]]
        else:
            raise ValueError(f"schema {given['schema']!r}")
        kept = _places(names)
        coefficients = bound["coefficients"]
        fov = None if scope["fov_mm"] is None else _array(scope["fov_mm"], 2)
        if fov is not None and not 0 < fov[0] <= fov[1]:
            raise ValueError("fields of view are not a smallest and a largest one")
        contrasts = scope["contrasts"]
        if not isinstance(contrasts, list) or not all(isinstance(one, str) for one in contrasts):
            raise TypeError("contrasts are no list of names")
        if not isinstance(given["integers"], bool):  # "false" would be true
            raise TypeError("'integers' is neither true nor false")
        level = float(bound["level"])
        if not kinds or not 0 < level < 1:
            raise ValueError("no figure, or no level")
        return cls(
            weights=str(given["weights"]),
            integers=given["integers"],
            kinds=tuple(kinds),
            kept=kept,
            coefficients=None if coefficients is None else _array(coefficients, len(kept) + 1),
            level=level,
            fov_mm=None if fov is None else (float(fov[0]), float(fov[1])),
            contrasts=tuple(contrasts),
            about=dict(given["about"]),
        )


def _names(kept: NDArray[np.intp]) -> list[str]:
    return [STATISTICS[place] for place in kept]


def _places(names: Sequence[str]) -> NDArray[np.intp]:
    if len(set(names)) < len(names):
        raise ValueError("a figure is there twice")
    return np.asarray([STATISTICS.index(name) for name in names], np.intp)


def _told(kind: Kind) -> dict[str, Any]:
    lower = np.tril_indices(len(kind.kept))
    return {
        "name": kind.name,
        "statistics": _names(kind.kept),
        "limit": _short(kind.limit),
        "groups": [
            {
                "name": name,
                "centre": _listed(kind.centre[place]),
                "spread": _listed(kind.spread[place]),
                "whitening": _listed(kind.whitening[place][lower]),
            }
            for place, name in enumerate(kind.groups)
        ],
    }


def _kind(given: Mapping[str, Any]) -> Kind:
    kept = _places(given["statistics"])
    size, groups, limit = len(kept), given["groups"], float(given["limit"])
    if not groups or not size or not 0 < limit < np.inf:
        raise ValueError("no group, figure or limit")
    return Kind(
        name=str(given["name"]),
        kept=kept,
        groups=tuple(str(one["name"]) for one in groups),
        centre=np.stack([_array(one["centre"], size) for one in groups]),
        spread=np.stack([_spread(one["spread"], size) for one in groups]),
        whitening=np.stack([_whitening(one["whitening"], size) for one in groups]),
        limit=limit,
    )


def _short(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


def _listed(values: Values, digits: int = 4) -> list[float]:
    return [_short(float(value), digits) for value in values]


def _array(values: Sequence[float], size: int) -> Values:
    found = np.asarray(values, np.float64)
    if found.shape != (size,) or not np.isfinite(found).all():
        raise ValueError(f"{size} finite numbers are needed")
    return found


def _spread(given: Sequence[float], size: int) -> Values:
    found = _array(given, size)
    if not (found > 0).all():
        raise ValueError("a spread of zero")
    return found


def _whitening(given: Sequence[float], size: int) -> Values:
    found = np.zeros((size, size))
    found[np.tril_indices(size)] = _array(given, size * (size + 1) // 2)
    if not (np.diag(found) > 0).all():  # every slice would lie at the centre
        raise ValueError("a covariance without end")
    return found


def sidecar(checkpoint: Path) -> Path:
    """Return where the calibration of a checkpoint lies: beside it."""
    return checkpoint.with_suffix(f".{CALIBRATION}")


def read_calibration(path: Path, error: type[KdmriError]) -> Calibration | None:
    """Read a calibration; None where there is none.

    Args:
        path: The file.
        error: Class of the error where it is damaged, or of a newer version.

    Raises:
        KdmriError: Of that class: it is no calibration that this version knows.
    """
    if not path.is_file():
        return None
    given = read_json(path, error)
    if isinstance(given, dict):
        refuse_newer(
            path, given.get("schema"), SCHEMA, error, named="calibration schema",
            remedy="Update kdmri-edge, or calibrate again with `kdmri-edge calibrate`.",
        )  # fmt: skip
    with damaged(path, error, _AGAIN):
        return Calibration.from_dict(given)


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration, compactly: matrices are no reading matter.

    Raises:
        OutputError: The place cannot be written to.
    """
    text = json.dumps(calibration.to_dict(), separators=(",", ":"), ensure_ascii=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def fit(
    slices: Sequence[Described],
    *,
    weights: str,
    integers: bool,
    fov_mm: tuple[float, float] | None,
    about: Mapping[str, Any],
) -> Calibration:
    """Calibrate on slices of known truth.

    Args:
        slices: Of subjects of training and validation.
        weights: See `Calibration`, as are the rest.
        integers: Whether they were computed in int8.
        fov_mm: Smallest and largest field of view.
        about: What they are.

    Raises:
        DataError: There are too few slices, or none of training.
    """
    figures = np.stack([one.statistics for one in slices]) if slices else np.zeros((0, 1))
    training = np.asarray([one.part == TRAINING for one in slices], np.bool_)
    if len(slices) < _FEWEST or not training.any():
        raise DataError(
            f"{len(slices)} slices, {int(training.sum())} of them of training subjects, are too few"
            " to calibrate on.",
            f"Give at least {_FEWEST} that are not constant.",
        )
    varying = np.flatnonzero(figures.std(0) > 1e-6)
    if not len(varying):
        raise DataError("All slices are the same.", "Give volumes of several subjects.")
    errors = np.log10([max(one.error, 1e-12) for one in slices])
    subjects = np.asarray([one.subject for one in slices])
    kinds, held_out = _kinds(figures, varying, [one.contrast for one in slices], subjects)
    kept = kinds[0].kept
    return Calibration(
        weights=weights,
        integers=integers,
        kinds=kinds,
        kept=kept,
        coefficients=_regression(figures[:, kept], errors, training, subjects),
        level=LEVEL,
        fov_mm=fov_mm,
        contrasts=tuple(sorted({one.contrast for one in slices if one.contrast})),
        about={**about, "limits_from": _LIMITS[held_out]},
    )


def _kinds(
    figures: Values,
    varying: NDArray[np.intp],
    contrasts: Sequence[str | None],
    subjects: NDArray[np.str_],
) -> tuple[tuple[Kind, ...], bool]:
    """Return the kinds of figures with their groups and limits, and whether subjects were held out.

    Limits of the kinds are in the ratio of their own quantiles, and so wide that the share
    `_QUANTILE` is inside all of them at once.
    """
    named = _grouped(contrasts)
    places = [varying[np.isin(np.asarray(STATISTICS)[varying], names)] for names in KINDS.values()]
    kinds = [
        _kind_of(name, kept, figures[:, kept], named, subjects)
        for name, kept in zip(KINDS, places, strict=True)
        if len(kept)
    ]
    held_out = False
    if len(set(subjects)) >= _HELD_OUT:
        apart = np.stack([_held_out(kind, figures, named, subjects) for kind in kinds])
        apart = apart[:, np.isfinite(apart).all(0)]
        held_out = apart.shape[1] >= _FEWEST
    if not held_out:
        apart = np.stack([kind.distances(figures[:, kind.kept]).min(0) for kind in kinds])
        apart *= _WIDENED
    own = np.maximum(np.quantile(apart, _QUANTILE, axis=1), 1e-6)
    together = float(np.quantile((apart / own[:, None]).max(0), _QUANTILE))
    limited = [
        replace(kind, limit=together * float(limit)) for kind, limit in zip(kinds, own, strict=True)
    ]
    return tuple(limited), held_out


def _grouped(contrasts: Sequence[str | None]) -> NDArray[np.str_]:
    """Return the name of each slice's group: its contrast, where that has slices enough."""
    named = np.asarray([one or _OTHERS for one in contrasts])
    few = [name for name in set(named) if (named == name).sum() < _FEWEST]
    return np.where(np.isin(named, few), _OTHERS, named)


def _kind_of(
    name: str,
    kept: NDArray[np.intp],
    figures: Values,
    named: NDArray[np.str_],
    subjects: NDArray[np.str_],
) -> Kind:
    """Describe the figures [N, K] of slices of several groups and subjects; without a limit."""
    apart = np.zeros_like(figures)
    groups = sorted(set(named))
    for group in groups:
        for subject in set(subjects[named == group]):
            own = (named == group) & (subjects == subject)
            rest = (named == group) & (subjects != subject)
            apart[own] = figures[own] - np.median(figures[rest if rest.any() else own], 0)
    spread = np.maximum(np.sqrt((apart**2).mean(0)), 1e-6)
    scaled = apart / spread
    size, many = figures.shape[1], len(groups)
    covariance = (1 - _SHRINKAGE) * scaled.T @ scaled / len(scaled) + _SHRINKAGE * np.eye(size)
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    return Kind(
        name=name,
        kept=kept,
        groups=tuple(groups),
        centre=np.stack([np.median(figures[named == group], 0) for group in groups]),
        spread=np.tile(spread, (many, 1)),
        whitening=np.tile(whitening, (many, 1, 1)),
        limit=np.inf,
    )


def _held_out(
    kind: Kind, figures: Values, named: NDArray[np.str_], subjects: NDArray[np.str_]
) -> Values:
    """Return each slice's distance where its subject is left out; NaN where its group is then."""
    found = np.full(len(figures), np.nan)
    chosen = figures[:, kind.kept]
    for subject in set(subjects):
        rest = subjects != subject
        own = ~rest & np.isin(named, named[rest])
        if own.any():
            others = _kind_of(kind.name, kind.kept, chosen[rest], named[rest], subjects[rest])
            found[own] = others.distances(chosen[own]).min(0)
    return found


def _regression(
    figures: Values, errors: Values, training: NDArray[np.bool_], subjects: NDArray[np.str_]
) -> Values | None:
    """Predict errors on training subjects, and add what validation subjects exceed that by.

    Of a blank image the error is infinite. There is nothing to learn from it, but in validation it
    counts as an error above any bound.
    """
    checked, training = ~training, training & np.isfinite(errors)
    if not checked.any() or not training.any():
        return None
    centre = figures[training].mean(0)
    spread = np.maximum(figures[training].std(0), 1e-6)
    scaled = (figures - centre) / spread
    mean = float(errors[training].mean())
    own = scaled[training]
    weights = np.linalg.solve(
        own.T @ own + _RIDGE * np.eye(own.shape[1]), own.T @ (errors[training] - mean)
    )
    excess = (errors - scaled @ weights - mean)[checked]
    margin = _conformal(excess, subjects[checked])
    if not np.isfinite(margin):
        return None
    slopes = weights / spread
    return np.append(slopes, mean - float(slopes @ centre) + margin)


def _conformal(excess: Values, subjects: NDArray[np.str_]) -> float:
    """Return what the share `LEVEL` of excesses is at most, each subject counting as another.

    The finite sample's correction is that of slices, (n + 1) / n. Infinite where they are so few
    that even the largest of them does not bound that share: below 9 slices at a level of 0.9.
    """
    level = LEVEL * (1 + 1 / len(excess))
    if level > 1 + 1e-12:
        return float("inf")
    _, place, counts = np.unique(subjects, return_inverse=True, return_counts=True)
    order = np.argsort(excess)
    held = np.cumsum((1 / counts[place] / len(counts))[order])
    first = int(np.searchsorted(held, level - 1e-12))
    return float(excess[order][min(first, len(excess) - 1)])
