"""What a network's own slices look like, and how large its errors are: kept beside its weights.

*Scope.* The figures of the calibration's slices (`runtime.statistics`) form a group for each
contrast, described by its centre and covariance. A slice is inside where its Mahalanobis distance
to the nearest group is at most 1.2 times the 98th percentile of the calibration's own distances.
These are slices of the subjects of training and validation: few people, whose images are seen as
typical. The limit is a convention, and how often it errs on others is measured, not promised.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import DataError, KdmriError
from kdmri_edge.runtime.certificate import Bound, Scope
from kdmri_edge.runtime.statistics import STATISTICS
from kdmri_edge.utils.files import atomic_path, damaged, read_json

__all__ = [
    "CALIBRATION",
    "LEVEL",
    "Calibration",
    "Described",
    "Group",
    "fit",
    "read_calibration",
    "sidecar",
    "write_calibration",
]

CALIBRATION: Final = "calibration.json"
"""Its file in a bundle."""
SCHEMA: Final = 1
LEVEL: Final = 0.9
"""Share of slices whose error the bound is to hold for."""
TRAINING: Final = "train"
VALIDATION: Final = "validation"

_WIDENED: Final = 1.2
_QUANTILE: Final = 0.98
_SHRINKAGE: Final = 0.01  # of the correlations towards none: a group has few slices for so many
_RIDGE: Final = 0.1
_PER_GROUP: Final = 2  # slices for each figure, at least, that a group of its own takes
_FEWEST: Final = 20  # slices of a calibration
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
class Group:
    """Slices of one contrast.

    Attributes:
        name: The contrast, or "all".
        centre: [K], median of the kept figures.
        spread: [K], their standard deviation.
        whitening: [K, K], lower triangular; what is left of standardised figures multiplied by it
            has the identity as its covariance.
    """

    name: str
    centre: Values
    spread: Values
    whitening: Values

    def distance(self, figures: Values) -> Values:
        """Return the distances of figures [N, K] to the centre, 1 on average within the group."""
        apart = ((figures - self.centre) / self.spread) @ self.whitening.T
        found: Values = np.sqrt((apart**2).mean(-1))
        return found


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Calibration:
    """What is kept of a calibration.

    Attributes:
        weights: SHA-256 of the checkpoint that it belongs to.
        integers: Whether the network was computed in int8.
        kept: Indices of `STATISTICS` that vary.
        groups: See `Group`.
        limit: Largest distance of a slice that is inside.
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
    kept: NDArray[np.intp]
    groups: tuple[Group, ...]
    limit: float
    coefficients: Values | None
    level: float
    fov_mm: tuple[float, float] | None
    contrasts: tuple[str, ...]
    about: Mapping[str, Any]

    def scope(self, statistics: Values) -> Scope:
        """Compare a slice's figures with those of the calibration."""
        figures = statistics[self.kept]
        distances = [float(group.distance(figures)) for group in self.groups]
        nearest = int(np.argmin(distances))
        relative = distances[nearest] / self.limit
        if relative <= 1:
            return Scope(inside=True, distance=relative)
        group = self.groups[nearest]
        apart = np.abs((figures - group.centre) / group.spread)
        far = [int(place) for place in np.argsort(-apart)[:2] if apart[place] > _FAR]
        # the first word of each: sentences with numbers would all be different
        named = dict.fromkeys(STATISTICS[self.kept[place]].partition(",")[0] for place in far)
        what = " and ".join(named) or "figures taken together"
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
            "statistics": [STATISTICS[place] for place in self.kept],
            "scope": {
                "limit": _short(self.limit),
                "groups": [
                    {
                        "name": one.name,
                        "centre": _listed(one.centre),
                        "spread": _listed(one.spread),
                        "whitening": _listed(one.whitening[np.tril_indices(len(self.kept))]),
                    }
                    for one in self.groups
                ],
                "fov_mm": None if self.fov_mm is None else list(self.fov_mm),
                "contrasts": list(self.contrasts),
            },
            "bound": {
                "quantity": "norm of |x| - |x_true| over that of |x|, of a slice",
                "level": self.level,
                "coefficients": None if coefficients is None else _listed(coefficients, 7),
            },
            "about": dict(self.about),
        }

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Calibration:
        """Read what `to_dict` gave.

        Raises:
            LookupError: A key is missing.
            TypeError: A value is of another kind.
            ValueError: A value cannot be.
        """
        if given["schema"] != SCHEMA:
            raise ValueError(f"schema {given['schema']!r}")
        names = list(given["statistics"])
        kept = np.asarray([STATISTICS.index(name) for name in names], np.intp)
        if len(set(names)) < len(names):
            raise ValueError("a figure is there twice")
        scope, bound = given["scope"], given["bound"]
        groups = tuple(_group(one, len(kept)) for one in scope["groups"])
        coefficients = bound["coefficients"]
        fov = None if scope["fov_mm"] is None else _array(scope["fov_mm"], 2)
        if fov is not None and not 0 < fov[0] <= fov[1]:
            raise ValueError("fields of view are not a smallest and a largest one")
        contrasts = scope["contrasts"]
        if not isinstance(contrasts, list) or not all(isinstance(one, str) for one in contrasts):
            raise TypeError("contrasts are no list of names")
        if not isinstance(given["integers"], bool):  # "false" would be true
            raise TypeError("'integers' is neither true nor false")
        limit, level = float(scope["limit"]), float(bound["level"])
        if not groups or not len(kept) or not 0 < limit < np.inf or not 0 < level < 1:
            raise ValueError("no group, figure, limit or level")
        return cls(
            weights=str(given["weights"]),
            integers=given["integers"],
            kept=kept,
            groups=groups,
            limit=limit,
            coefficients=None if coefficients is None else _array(coefficients, len(kept) + 1),
            level=level,
            fov_mm=None if fov is None else (float(fov[0]), float(fov[1])),
            contrasts=tuple(contrasts),
            about=dict(given["about"]),
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


def _group(given: Mapping[str, Any], count: int) -> Group:
    whitening = np.zeros((count, count))
    whitening[np.tril_indices(count)] = _array(given["whitening"], count * (count + 1) // 2)
    spread = _array(given["spread"], count)
    if not (spread > 0).all():
        raise ValueError("a spread of zero")
    if not (np.diag(whitening) > 0).all():  # every slice would lie at the centre
        raise ValueError("a covariance without end")
    return Group(
        name=str(given["name"]), centre=_array(given["centre"], count), spread=spread,
        whitening=whitening,
    )  # fmt: skip


def sidecar(checkpoint: Path) -> Path:
    """Return where the calibration of a checkpoint lies: beside it."""
    return checkpoint.with_suffix(f".{CALIBRATION}")


def read_calibration(path: Path, error: type[KdmriError]) -> Calibration | None:
    """Read a calibration; None where there is none.

    Args:
        path: The file.
        error: Class of the error where it is damaged.

    Raises:
        KdmriError: Of that class: it is no calibration that this version knows.
    """
    if not path.is_file():
        return None
    given = read_json(path, error)
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
    kept = np.flatnonzero(figures.std(0) > 1e-6)
    if not len(kept):
        raise DataError("All slices are the same.", "Give volumes of several subjects.")
    figures = figures[:, kept]
    groups = _groups(figures, [one.contrast for one in slices])
    distances = np.min([group.distance(figures) for group in groups], 0)
    errors = np.log10([max(one.error, 1e-12) for one in slices])
    subjects = np.asarray([one.subject for one in slices])
    return Calibration(
        weights=weights,
        integers=integers,
        kept=kept,
        groups=groups,
        limit=_WIDENED * float(np.quantile(distances, _QUANTILE)),
        coefficients=_regression(figures, errors, training, subjects),
        level=LEVEL,
        fov_mm=fov_mm,
        contrasts=tuple(sorted({one.contrast for one in slices if one.contrast})),
        about=about,
    )


def _groups(figures: Values, contrasts: Sequence[str | None]) -> tuple[Group, ...]:
    named = np.asarray([one or "" for one in contrasts])
    enough = _PER_GROUP * figures.shape[1]
    large = [name for name in sorted(set(named)) if name and (named == name).sum() >= enough]
    rest = ~np.isin(named, large)
    parts = [(name, named == name) for name in large]
    if rest.any():  # too few for a group of their own: the group of all is wide enough for them
        parts.append(("all", np.ones(len(named), np.bool_)))
    return tuple(_described(name, figures[chosen]) for name, chosen in parts)


def _described(name: str, figures: Values) -> Group:
    centre, spread = np.median(figures, 0), np.maximum(figures.std(0), 1e-6)
    scaled = (figures - centre) / spread
    size = figures.shape[1]
    covariance = (1 - _SHRINKAGE) * np.atleast_2d(np.cov(scaled.T)) + _SHRINKAGE * np.eye(size)
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    return Group(name=name, centre=centre, spread=spread, whitening=whitening)


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
