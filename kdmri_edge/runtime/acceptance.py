"""The checks of an acceptance test one by one, for the page and for machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kdmri_edge.runtime.backends.registry import BACKENDS
from kdmri_edge.runtime.targets import as_users_write

__all__ = ["Check", "Result", "checks_of", "performance_text", "signature_text"]


class Result(StrEnum):
    """What a check found."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_CHECKED = "not checked"
    MEASURED = "measured"
    """And no limit was set that it could fail."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A check.

    Attributes:
        name: What was checked.
        result: What was found.
        text: The same in a sentence, or why it was not checked.
    """

    name: str
    result: Result
    text: str


def checks_of(found: Mapping[str, Any]) -> list[Check]:
    """Return the checks behind a result of `runtime.verify`.

    Args:
        found: What `verify_bundle` or `refusal_of` found.
    """
    if (problem := found.get("problem")) is not None:
        what = f"{problem['what']} {problem['remedy']}"
        return [Check(name="Bundle", result=Result.FAILED, text=what)]
    return list(_checks(found))


def _checks(found: Mapping[str, Any]) -> Iterator[Check]:
    passed, failed, unknown = Result.PASSED, Result.FAILED, Result.NOT_CHECKED
    yield Check(
        name="Files",
        result=passed,
        text=f"{found['files']} files have the SHA-256 that the manifest says, and nothing else"
        " lies there.",
    )
    if found["digest"]:
        yield Check(
            name="Manifest", result=passed, text=f"It agrees with its digest, {found['digest']}."
        )
    else:
        text = "It has no digest, as in earlier versions: it may have been changed."
        yield Check(name="Manifest", result=unknown, text=text)
    signature = found["signature"]
    checked = signature is not None and signature["checked"]
    yield Check(
        name="Signature", result=passed if checked else unknown, text=signature_text(signature)
    )
    agreeing = found["mask_agrees_with"]
    yield Check(
        name="Mask",
        result=passed if agreeing else unknown,
        text=f"It is that of {' and '.join(agreeing)}."
        if agreeing
        else "Nothing in the bundle holds it to compare with.",
    )
    if found["code"]:
        yield Check(name="Code", result=failed, text=" ".join(found["code"]))
    origin = found["origin"]
    named = f"By its checkpoint's hash it is {origin['network']}. " if origin["network"] else ""
    results = {True: passed, False: failed, None: unknown}
    yield Check(
        name="Network", result=results[origin["confirmed"]], text=named + str(origin["remark"])
    )
    bill = found["bill"]
    yield Check(
        name="Bill of materials",
        result=passed if bill else unknown,
        text=f"{bill} is as it was exported." if bill else "Bundles of earlier versions have none.",
    )
    if (report := found["report"]) is not None:
        also = " The signature names it." if report["named_by_signature"] else ""
        yield Check(
            name="Report",
            result=passed if report["this_bundle"] else failed,
            text=f"{report['remark']}{also} {report['report']}.",
        )
    if not found["executed"]:
        yield Check(name="Golden image", result=unknown, text="Nothing was executed.")
    yield from map(_image, found["rows"])
    if (performance := found["performance"]) is not None:
        limited = any(limit is not None for limit in performance["limits"].values())
        known = "reason" not in performance["here"]
        result = passed if limited else Result.MEASURED if known else unknown
        yield Check(
            name="Speed and memory",
            result=failed if performance["exceeded"] else result,
            text=performance_text(performance),
        )


def _image(row: Mapping[str, Any]) -> Check:
    title = BACKENDS[row["backend"]].title
    if row["status"] == "absent":
        wanted = f" in {as_users_write(row['precision'])}" if row["precision"] else ""
        return Check(
            name=f"Golden image, {title}{wanted}",
            result=Result.NOT_CHECKED,
            text=f"Not run. {row['reason']}",
        )
    session = row["session"]
    precision = as_users_write(session["precision_executed"])
    return Check(
        name=f"Golden image, {title}, {precision}",
        result=Result.PASSED if row["status"] == "passed" else Result.FAILED,
        text=f"{title} {session['version']} on {session['device']}: largest deviation from PyTorch"
        f" {row['max_error']:.1e} of the image's maximum (limit"
        f" {row['tolerance']['max_error']:.0e}), NRMSE {row['nrmse']:.1e}.",
    )


def signature_text(signature: Mapping[str, Any] | None) -> str:
    """Say who signed a bundle, in sentences.

    Args:
        signature: What the signature says, and whether it was `checked`; None without one.
    """
    if signature is None:
        return "The bundle is not signed, so that nothing says whose it is."
    until = signature["valid_until_utc"]
    held = f", until {until}" if until else ", without end"
    if not signature["checked"]:
        return (
            f"It names the key {signature['key']}, which was not compared with any: give --key to"
            " know whether that is true."
        )
    return f"It is by the key {signature['key']}, of {signature['signed_utc']}{held}."


def performance_text(performance: Mapping[str, Any]) -> str:
    """Say how long a slice takes here, and how that compares, in sentences."""
    here, there = performance["here"], performance["there"]
    if "reason" in here:
        text = f"Not measured: {here['reason']}"
        text = text if text.endswith((".", "!", "?")) else f"{text}."
    else:
        text = (
            f"A slice takes {here['p50_ms']:.3g} ms (median of {here['samples']}, network alone)"
            f" and the process {here['peak_bytes'] / 2**20:.0f} MiB at most, with"
            f" {here['runtime']}, {as_users_write(here['precision'])}, {here['threads']}"
            " thread(s)."
        )
    if there is None:
        text += " The export recorded no figures to compare with."
    elif performance["ratios"]:
        ratios = performance["ratios"]
        text += (
            f" That is {ratios['time']:.3g} times the {there['p50_ms']:.3g} ms and"
            f" {ratios['memory']:.3g} times the {there['peak_bytes'] / 2**20:.0f} MiB of the"
            f" machine that exported it ({there['machine']['cpu']}). Machines differ, so this"
            " alone fails nothing."
        )
    elif "reason" not in here:
        text += (
            f" The export's figures are of {there['runtime']},"
            f" {as_users_write(there['precision'])}, {there['threads']} thread(s), and are not"
            " compared."
        )
    limits = [
        f"{performance['limits']['p50_ms']:.4g} ms" if performance["limits"]["p50_ms"] else "",
        f"{performance['limits']['peak_bytes'] / 2**20:.4g} MiB"
        if performance["limits"]["peak_bytes"]
        else "",
    ]
    stated = " and ".join(limit for limit in limits if limit)
    if performance["exceeded"]:
        return f"{text} Limits: {'; '.join(performance['exceeded'])}."
    return f"{text} The site's limits, {stated}, are kept." if stated else text
