"""Whether a report of `kdmri-edge assess` is about a bundle: both name it by the same hash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kdmri_edge.errors import BundleError, DataError
from kdmri_edge.runtime.bundle import Bundle
from kdmri_edge.utils.files import read_json, sha256_file

__all__ = ["Assessed", "compare_report"]

_REPORT: Final = "assessment.json"
_NONE: Final = "Give the JSON file that `kdmri-edge assess` wrote."
_MANY: Final = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Assessed:
    """What a report says of a bundle.

    Attributes:
        report: "sha256:" and the SHA-256 of the report's file.
        this_bundle: Whether this very bundle was assessed.
        remark: The same in a sentence.
    """

    report: str
    this_bundle: bool
    remark: str


def compare_report(file: Path, bundle: Bundle) -> Assessed:
    """Look a bundle up among the networks that a report is about.

    Args:
        file: The report, or the folder that it lies in.
        bundle: What is looked up.

    Raises:
        DataError: The file is missing or damaged, or no such report.
        BundleError: The bundle is of an earlier version, and has no digest to be found by.
    """
    if bundle.digest is None:
        raise BundleError(
            f"{bundle.path} was exported by an earlier version of kdmri-edge, and has no digest"
            " that a report could name.",
            "Export the network again, and assess that.",
        )
    if file.is_dir():
        file /= _REPORT  # the folder that `assess --out` named
    found = read_json(file, DataError)
    networks = found.get("networks") if isinstance(found, dict) else None
    if (
        not isinstance(networks, list)
        or not networks
        or not all(isinstance(one, dict) for one in networks)
        or not any("bundle_digest" in one or "digest" in one for one in networks)
    ):
        raise DataError(f"{file} is no report of assessed networks.", _NONE)
    report = f"sha256:{sha256_file(file)}"
    named = [_name(one) for one in networks if bundle.digest in _digests(one)]
    if named:
        return Assessed(
            report=report,
            this_bundle=True,
            remark=f"The report is about this very bundle, as {', '.join(named)}.",
        )
    own = bundle.manifest.get("checkpoint_sha256")
    weights = [_name(one) for one in networks if own and one.get("checkpoint_sha256") == own]
    if weights:
        remark = (
            f"The report is about the same weights ({', '.join(weights)}), and not about this"
            " bundle of them."
        )
    else:
        names = [_name(one) for one in networks]
        more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
        remark = f"The report is about others: {', '.join(names[:_MANY])}{more}."
    return Assessed(report=report, this_bundle=False, remark=remark)


def _digests(network: Mapping[str, Any]) -> set[Any]:
    return {str(network.get(key)) for key in ("digest", "bundle_digest")}


def _name(network: Mapping[str, Any]) -> str:
    return str(network.get("key") or network.get("name") or "a network without a name")[:80]
