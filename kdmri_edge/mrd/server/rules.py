"""A site's rules: which bundle serves which scan, read from a small TOML file.

    [[rule]]
    bundle = "knee-4x"          # name of the bundle's folder
    protocol = "pd_tse*"        # a pattern of the protocol's or the series' name, any case
    contrast = 0                # the echo, as MRD counts contrasts
    coils = [8, 64]             # one number, or the least and the most
    matrix = [320, 320]         # H (phase encode) and W (readout)
    mask = "equispaced"         # full, partial, equispaced or random
    acceleration = [3.5, 4.5]   # of the lines that were sampled: one number, or least and most

The first rule whose conditions all hold, and whose bundle takes the scan, decides. Before the rules
may stand what else a site decides, in place of options of the command:

    key = "vendor.pub"          # who has to have signed the bundles; several as a list
    out_of_scope = "refuse"     # flag, zero-filled or refuse
    unknown_scope = "flag"      # the same for slices of which the scope is not known
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import numpy as np

from kdmri_edge.errors import RecipeError
from kdmri_edge.physics.masks import Mask
from kdmri_edge.runtime.certificate import Policy
from kdmri_edge.utils.config import read_toml
from kdmri_edge.utils.suggest import nearest

__all__ = [
    "RULES",
    "MaskKind",
    "Rule",
    "ScanFacts",
    "Site",
    "kind_of",
    "read_rules",
    "read_site",
]

RULES: Final = "serve.toml"
"""Name of the rules' file in a folder of bundles."""

# How far a scan's acceleration may be from a rule's one number: masks are drawn at random.
_NEAR: Final = 0.1


class MaskKind(StrEnum):
    """What a mask of lines looks like."""

    FULL = "full"
    PARTIAL = "partial"
    EQUISPACED = "equispaced"
    RANDOM = "random"


def kind_of(mask: Mask) -> MaskKind:
    """Tell what a mask of lines looks like.

    Lines without a gap are full or partial (partial Fourier). Lines are equispaced where the gaps
    outside the centre differ by one line at most, as those of rounded positions do.
    """
    taken = np.fft.fftshift(np.atleast_1d(mask.samples.reshape(mask.height, -1).any(axis=1)))
    if taken.all():
        return MaskKind.FULL
    lines = np.flatnonzero(taken)
    if len(lines) == lines[-1] - lines[0] + 1:
        return MaskKind.PARTIAL
    first = last = mask.height // 2  # of the lines around zero frequency
    while first > 0 and taken[first - 1]:
        first -= 1
    while last + 1 < len(taken) and taken[last + 1]:
        last += 1
    sides = lines[lines < first], lines[lines > last]
    gaps = np.concatenate([np.diff(side) for side in sides])
    even = len(gaps) > 0 and int(gaps.max() - gaps.min()) <= 1
    return MaskKind.EQUISPACED if even else MaskKind.RANDOM


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanFacts:
    """What is known of a scan when its first slice is complete.

    Attributes:
        coils: Receive channels.
        matrix: (H, W), readout oversampling removed.
        mask: The lines that were sampled.
        centre: Lines without a gap around zero frequency from which coil sensitivities can be
            estimated, of the image or of reference lines.
        contrast: MRD's counter.
        protocol: Names of the protocol and of the series.
    """

    coils: int
    matrix: tuple[int, int]
    mask: Mask
    centre: int
    contrast: int = 0
    protocol: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Which scans a bundle is meant for; None stands for any.

    Attributes:
        bundle: Its name.
        protocol: Pattern of the protocol's or the series' name, as of a shell, any case.
        contrast: MRD's counter.
        coils: Least and most.
        matrix: (H, W).
        mask: What the mask looks like.
        acceleration: Least and largest, nominal.
    """

    bundle: str
    protocol: str | None = None
    contrast: int | None = None
    coils: tuple[float, float] | None = None
    matrix: tuple[int, int] | None = None
    mask: MaskKind | None = None
    acceleration: tuple[float, float] | None = None

    def holds(self, scan: ScanFacts) -> bool:
        """Tell whether all conditions hold."""
        pattern = None if self.protocol is None else self.protocol.lower()
        return (
            (
                pattern is None
                or any(fnmatchcase(name.lower(), pattern) for name in scan.protocol)
            )
            and self.contrast in (None, scan.contrast)
            and _within(scan.coils, self.coils)
            and self.matrix in (None, scan.matrix)
            and (self.mask is None or self.mask is kind_of(scan.mask))
            and _within(scan.mask.nominal_acceleration, self.acceleration)
        )  # fmt: skip


def _within(value: float, bounds: tuple[float, float] | None) -> bool:
    return bounds is None or bounds[0] <= value <= bounds[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """What a file of rules says; None, or nothing, where it leaves that to options.

    Attributes:
        rules: See `Rule`.
        keys: Public keys of whom bundles have to be signed by.
        out_of_scope: What becomes of slices outside their network's scope.
        unknown_scope: The same for those of which it is not known.
    """

    rules: tuple[Rule, ...] = ()
    keys: tuple[Path, ...] = ()
    out_of_scope: Policy | None = None
    unknown_scope: Policy | None = None


_SITE: Final = ("rule", "key", "out_of_scope", "unknown_scope")


def read_rules(path: Path) -> tuple[Rule, ...]:
    """Read the rules of a file.

    Raises:
        RecipeError: See `read_site`.
    """
    return read_site(path).rules


def read_site(path: Path) -> Site:
    """Read a file of rules and what stands before them.

    Raises:
        RecipeError: It is missing or no TOML, or it or a rule has an unknown key or a value that
            makes no sense.
    """
    if not path.is_file():
        raise RecipeError(f"The file of rules {path} does not exist.", "Check the path.")
    table = read_toml(path)
    given = table.get("rule", [])
    unknown = [key for key in table if key not in _SITE]
    if unknown or not isinstance(given, list) or not all(isinstance(r, dict) for r in given):
        what = f" ({unknown[0]!r})" if unknown else ""
        raise RecipeError(
            f"{path} holds something else than rules{what}.",
            f"Write each rule as a table [[rule]]; beside them are known {', '.join(_SITE[1:])}.",
        )
    return Site(
        rules=tuple(
            _rule(f"Rule {number} of {path}", rule) for number, rule in enumerate(given, 1)
        ),
        keys=_keys(path, table["key"]) if "key" in table else (),
        out_of_scope=_policy(path, "out_of_scope", table.get("out_of_scope")),
        unknown_scope=_policy(path, "unknown_scope", table.get("unknown_scope")),
    )


def _keys(path: Path, given: Any) -> tuple[Path, ...]:
    """Return files of keys, which are named from the folder of the rules on."""
    named = [given] if isinstance(given, str) else given
    good = isinstance(named, list) and all(isinstance(one, str) and one for one in named)
    if not good or not named:  # an empty list would ask for no signatures, without a word
        raise RecipeError(
            f"key of {path} is no file.",
            'Write it as "vendor.pub", or a list; leave it out where no signature is needed.',
        )
    return tuple(path.parent / one for one in named)


def _policy(path: Path, key: str, given: Any) -> Policy | None:
    if given is None:
        return None
    if given not in list(Policy):
        raise RecipeError(f"{key} of {path} is {given!r}.", f"It is one of {', '.join(Policy)}.")
    return Policy(given)


_KEYS: Final = ("bundle", "protocol", "contrast", "coils", "matrix", "mask", "acceleration")


def _rule(what: str, given: Mapping[str, Any]) -> Rule:
    for key in given:
        if key not in _KEYS:
            raise RecipeError(
                f"{what} has the unknown key {key!r}.", f"Did you mean {nearest(key, _KEYS)!r}?"
            )
    values: dict[str, Any] = dict(given)
    for key in ("bundle", "protocol", "mask"):
        if key in values and not (isinstance(values[key], str) and values[key]):
            raise RecipeError(f"{key} of {what} is no text.", 'Write it as "text".')
    if "bundle" not in values:
        raise RecipeError(f"{what} names no bundle.", 'Add bundle = "NAME".')
    if "mask" in values:
        if values["mask"] not in set(MaskKind):
            raise RecipeError(
                f"{what} has the unknown mask {values['mask']!r}.",
                f"It is one of {', '.join(MaskKind)}.",
            )
        values["mask"] = MaskKind(values["mask"])
    if "contrast" in values and not _whole(values["contrast"], 0):
        raise RecipeError(f"contrast of {what} is no whole number.", "MRD counts from 0.")
    if "matrix" in values:
        matrix = values["matrix"]
        if not (_listed(matrix) and all(_whole(side, 1) for side in matrix)):
            raise RecipeError(f"matrix of {what} is no matrix.", "Write [H, W], e.g. [256, 256].")
        values["matrix"] = (matrix[0], matrix[1])
    for key, near in (("coils", 0.0), ("acceleration", _NEAR)):
        if key in values:
            values[key] = _bounds(f"{key} of {what}", values[key], near)
    return Rule(**values)


def _bounds(what: str, value: Any, near: float) -> tuple[float, float]:
    """A number, which is met nearly, or the least and the most."""
    bounds = value if _listed(value) else [value, value]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in bounds)
    if not numbers or not 1 <= bounds[0] <= bounds[1]:
        raise RecipeError(f"{what} is no range.", "Write a number from 1 on, or [least, most].")
    if bounds is value:
        return float(value[0]), float(value[1])
    return float(value) * (1 - near), float(value) * (1 + near)


def _listed(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
