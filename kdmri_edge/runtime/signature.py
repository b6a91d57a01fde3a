"""Signatures of bundles: who vouches for one, since when, and until when.

`manifest.json.sig` lies beside the manifest. It is a statement in JSON with an Ed25519 signature:
the SHA-256 of the manifest's very bytes, and with it of every file of the bundle, whose hashes the
manifest has; which network that is; when it was signed, and until when that holds; and, where the
signer had one, the SHA-256 of the report that the bundle was assessed in. The signature is over
all of it (`signed_text`), so that no date can be changed either.

A statement is believed only after the signature holds under a key that the caller trusts. What it
says is then compared with the bundle, so that a signature of another bundle, one of an earlier
export, one that has run out, and a bundle that was changed are told apart.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from kdmri_edge.errors import BundleError, SignatureError
from kdmri_edge.runtime.manifest import (
    DIGEST,
    MANIFEST,
    SIGNATURE,
    Manifest,
    built_on_device,
    read_manifest_bytes,
    write_manifest,
)
from kdmri_edge.utils.files import parse_json, refuse_newer, sha256_bytes, write_json
from kdmri_edge.utils.keys import PrivateKey, PublicKey
from kdmri_edge.utils.reading import reading

__all__ = [
    "LONGEST_DAYS",
    "Signature",
    "SignatureState",
    "Signer",
    "check_signature",
    "no_bundle",
    "read_signature",
    "sign_manifest",
    "signed_text",
]

SCHEMA: Final = 1
ALGORITHM: Final = "ed25519"
LONGEST_DAYS: Final = 36500
_PREFIX: Final = b"kdmri-edge bundle signature\n"
"""Stands before what is signed, so that no signature of something else can pass for one of it."""
_LARGEST: Final = 64 * 1024
_BYTES: Final = 64  # of an Ed25519 signature
_HASH: Final = re.compile(r"sha256:[0-9a-f]{64}")
_GET: Final = "Get the bundle again, with its signature, from who signed it."


class SignatureState(StrEnum):
    """What is wrong with a bundle's signature."""

    UNSIGNED = "unsigned"
    OTHER_KEY = "other key"
    TAMPERED = "tampered"
    OTHER_BUNDLE = "other bundle"
    OUTDATED = "outdated"


@dataclass(frozen=True, kw_only=True, slots=True)
class Signature:
    """What a file of a signature says.

    Attributes:
        schema: Version of its form.
        algorithm: "ed25519".
        key: Fingerprint of the public key.
        manifest: "sha256:" and the SHA-256 of the manifest's bytes.
        digest: The manifest's digest, which `export`, `verify` and reports name.
        checkpoint: "sha256:" and the SHA-256 of the checkpoint that was exported; None where the
            manifest does not say it.
        target: That it was exported for.
        precision: That its graph is meant to run in.
        exported_utc: When it was exported, as the manifest says; None where it does not.
        signed_utc: When it was signed, by the signer's clock.
        valid_until_utc: When the signature runs out; None for never.
        report: "sha256:" and the SHA-256 of a report that assessed this very bundle; None for none.
        signature: Base64 of the signature's 64 bytes.
    """

    schema: int
    algorithm: str
    key: str
    manifest: str
    digest: str
    checkpoint: str | None
    target: str
    precision: str
    exported_utc: str | None
    signed_utc: str
    valid_until_utc: str | None
    report: str | None
    signature: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Signer:
    """What an export is signed with.

    Attributes:
        key: That signs.
        valid_days: See `sign_manifest`.
    """

    key: PrivateKey
    valid_days: int | None = None


def signed_text(statement: Mapping[str, Any]) -> bytes:
    """Return what is signed of a statement: a line, and all but the signature as canonical JSON."""
    covered = {key: statement[key] for key in statement if key != "signature"}
    return _PREFIX + json.dumps(covered, sort_keys=True, separators=(",", ":")).encode()


def sign_manifest(
    folder: Path,
    key: PrivateKey,
    *,
    valid_days: int | None = None,
    report: str | None = None,
    now: datetime | None = None,
) -> Signature:
    """Sign the manifest of a bundle whose files are as it says, and write the signature beside it.

    Engines that were built on the device since the export get their hashes in the manifest first:
    a signature covers what the manifest names, and a trusted bundle holds nothing else.

    Args:
        folder: The bundle.
        key: That signs.
        valid_days: Days that the signature holds; None for without end.
        report: "sha256:..." of a report that assessed this bundle.
        now: When; None asks the clock.

    Raises:
        BundleError: The manifest is damaged, or of an earlier version that has no digest; or a
            signature cannot hold for so many days.
        OutputError: The bundle's folder cannot be written to.
    """
    if valid_days is not None and not 1 <= valid_days <= LONGEST_DAYS:
        raise BundleError(
            f"A signature cannot hold for {valid_days} days.", f"Give 1 to {LONGEST_DAYS}."
        )
    given = read_manifest_bytes(folder / MANIFEST)
    if DIGEST not in given.content:
        raise BundleError(
            f"{folder} was exported by an earlier version of kdmri-edge, and has no digest that a"
            " signature could name.",
            "Export the network again, and sign that.",
        )
    if any(built_on_device(file.name) for file in folder.iterdir()):
        write_manifest(folder, given.content)
        given = read_manifest_bytes(folder / MANIFEST)
    moment = now or datetime.now(UTC)
    until = None if valid_days is None else moment + timedelta(days=valid_days)
    statement: dict[str, Any] = {
        "schema": SCHEMA,
        "algorithm": ALGORITHM,
        "key": key.fingerprint,
        "manifest": f"sha256:{sha256_bytes(given.data)}",
        "digest": given.content[DIGEST],
        **_subject(given.content),
        "signed_utc": _written(moment),
        "valid_until_utc": None if until is None else _written(until),
        "report": report,
    }
    statement["signature"] = base64.b64encode(key.sign(signed_text(statement))).decode("ascii")
    made = Signature(**statement)
    write_json(folder / SIGNATURE, asdict(made))
    return made


def _subject(manifest: Mapping[str, Any]) -> dict[str, str | None]:
    """Say which network a manifest is of, which tells another bundle from a later export."""
    checkpoint = manifest.get("checkpoint_sha256")
    exported = (manifest.get("provenance") or {}).get("time_utc")
    return {
        "checkpoint": f"sha256:{checkpoint}" if checkpoint else None,
        "target": str(manifest["target"]),
        "precision": str(manifest.get("run_precision", manifest.get("precision", "f32"))),
        "exported_utc": str(exported) if exported else None,
    }


def _written(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def read_signature(folder: Path) -> Signature | None:
    """Read a bundle's signature, which proves nothing before `check_signature` has held.

    Returns:
        None where there is no file of one.

    Raises:
        SignatureError: The file is none of a signature, or of a newer form.
    """
    file = folder / SIGNATURE
    if file.is_symlink():
        raise _damaged(file, "it is a link")
    if not file.exists():
        return None
    if not file.is_file():
        raise _damaged(file, "it is no file")
    with reading(file, "a signature", error=BundleError, remedy=_GET), file.open("rb") as stream:
        data = stream.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise _damaged(file, "it is too large")
    try:
        found = parse_json(data, file, BundleError, unique=True)
    except BundleError as cause:
        raise _damaged(file, "it is no JSON, or has a key twice") from cause
    if not isinstance(found, dict) or not isinstance(schema := found.get("schema"), int):
        raise _damaged(file, "it names no schema")
    tampered = functools.partial(SignatureError, state=SignatureState.TAMPERED)
    refuse_newer(file, schema, SCHEMA, tampered, named="signature schema")
    if (wrong := _fault(found)) is not None:
        raise _damaged(file, wrong)
    return Signature(**found)


def _damaged(file: Path, why: str) -> SignatureError:
    return SignatureError(
        f"{file} is no signature that `kdmri-edge sign` wrote ({why}).",
        _GET,
        state=SignatureState.TAMPERED,
    )


def _fault(found: Mapping[str, Any]) -> str | None:
    """Say what of a statement no signer can have written; None for nothing."""
    if found.keys() != set(Signature.__dataclass_fields__):
        return "its keys are others"
    if isinstance(found["schema"], bool) or found["schema"] < 1 or found["algorithm"] != ALGORITHM:
        return "it is not of Ed25519"
    for key in ("key", "manifest", "digest", "checkpoint", "report"):
        value, may_lack = found[key], key in ("checkpoint", "report")
        if value is None and may_lack:
            continue
        if not isinstance(value, str) or _HASH.fullmatch(value) is None:
            return f"{key!r} is no SHA-256"
    if not all(isinstance(found[key], str) for key in ("target", "precision")):
        return "it does not name the network"
    for key in ("signed_utc", "valid_until_utc"):
        if (found[key] is not None or key == "signed_utc") and _moment(found[key]) is None:
            return f"{key!r} is no time"
    if not isinstance(found["exported_utc"], str | None):
        return "'exported_utc' is no time"
    try:
        value = found["signature"]
        signed = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except (ValueError, binascii.Error):
        signed = b""
    return None if len(signed) == _BYTES else "'signature' is not 64 bytes in base64"


def _moment(text: object) -> datetime | None:
    """Read a time with its offset; None for anything else."""
    try:
        found = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return found if found is not None and found.tzinfo is not None else None


def check_signature(
    folder: Path,
    manifest: Manifest,
    keys: Sequence[PublicKey],
    *,
    now: datetime | None = None,
) -> Signature:
    """Refuse a bundle whose manifest none of the keys vouches for, now.

    Args:
        folder: The bundle.
        manifest: Its manifest, as it was read: these bytes are what is compared.
        keys: That are trusted; one of them has to have signed.
        now: Which time is compared with the signature's end; None asks the clock.

    Raises:
        SignatureError: It is not signed, by another key, not as it was signed, the signature is
            another bundle's, or out of date; `state` says which.
    """
    content = manifest.content
    found = read_signature(folder)
    if found is None:
        raise _unsigned(folder, content)
    trusted = [key for key in keys if key.fingerprint == found.key]
    if not trusted:
        named = " or ".join(f"{key.name} ({_short(key.fingerprint)})" for key in keys)
        raise SignatureError(
            f"{folder} is signed by another key, {_short(found.key)}, and not by {named}.",
            "Give the public key of who signed it, if you trust that one; else get the bundle that"
            " was meant.",
            state=SignatureState.OTHER_KEY,
        )
    statement = asdict(found)
    if not trusted[0].holds(base64.b64decode(found.signature), signed_text(statement)):
        raise SignatureError(
            f"{folder / SIGNATURE} was changed: the signature in it does not hold for what it"
            " says.",
            _GET,
            state=SignatureState.TAMPERED,
        )
    if found.manifest != f"sha256:{sha256_bytes(manifest.data)}":
        raise _mismatch(folder, found, content)
    until = None if found.valid_until_utc is None else _moment(found.valid_until_utc)
    if until is not None and (now or datetime.now(UTC)) >= until:
        raise SignatureError(
            f"The signature of {folder} is out of date: it held until {found.valid_until_utc}.",
            "Get the newer bundle, or have this one signed again.",
            state=SignatureState.OUTDATED,
        )
    return found


def no_bundle(source: object) -> SignatureError:
    """Return the error of what carries no signature, where a signed bundle is asked for."""
    return SignatureError(
        f"{source} is no bundle, and bundles alone are signed.",
        "Export it with --sign, and give the bundle; or leave --key out.",
        state=SignatureState.UNSIGNED,
    )


def _unsigned(folder: Path, manifest: Mapping[str, Any]) -> SignatureError:
    if DIGEST not in manifest:
        return SignatureError(
            f"{folder} is out of date: it was exported by an earlier version of kdmri-edge, whose"
            " bundles cannot be signed.",
            "Export the network again with --sign.",
            state=SignatureState.OUTDATED,
        )
    return SignatureError(
        f"{folder} is not signed: it holds no {SIGNATURE}.",
        "Get the bundle with its signature, or, if it is your own, sign it with `kdmri-edge sign`.",
        state=SignatureState.UNSIGNED,
    )


def _mismatch(folder: Path, found: Signature, manifest: Mapping[str, Any]) -> SignatureError:
    """Say why a signature that holds is not that of this manifest."""
    own = _subject(manifest)
    same = all(own[key] == getattr(found, key) for key in ("checkpoint", "target", "precision"))
    if not same:
        return SignatureError(
            f"The signature in {folder} is that of another bundle: {_short(found.checkpoint)} for"
            f" {found.target} in {found.precision}, and this one is {_short(own['checkpoint'])} for"
            f" {own['target']} in {own['precision']}.",
            _GET,
            state=SignatureState.OTHER_BUNDLE,
        )
    exported, signed = _moment(own["exported_utc"]), _moment(found.signed_utc)
    if own["exported_utc"] != found.exported_utc and exported and signed and exported > signed:
        return SignatureError(
            f"The signature in {folder} is out of date: it was made on {found.signed_utc} for an"
            f" earlier export, and this one is of {own['exported_utc']}.",
            "Have this export signed.",
            state=SignatureState.OUTDATED,
        )
    return SignatureError(
        f"{folder} was changed after it was signed: the signature is for digest {found.digest}, and"
        f" the manifest has {manifest.get(DIGEST, 'none')}"
        f"{', the same, in other bytes' if found.digest == manifest.get(DIGEST) else ''}.",
        "Get the bundle again from who signed it. An engine that was built anew changes it, too:"
        " sign it again then.",
        state=SignatureState.TAMPERED,
    )


def _short(fingerprint: str | None) -> str:
    return "an unknown checkpoint" if fingerprint is None else fingerprint[:19]
