"""Signing a bundle that exists: what `kdmri-edge sign` does."""

from __future__ import annotations

import os
from pathlib import Path

from kdmri_edge.errors import DataError
from kdmri_edge.runtime.assessed import compare_report
from kdmri_edge.runtime.bundle import open_bundle
from kdmri_edge.runtime.signature import Signature, sign_manifest
from kdmri_edge.utils.keys import PrivateKey, make_key, read_private_key, read_public_key

__all__ = ["make_key", "read_public_key", "sign_bundle"]


def sign_bundle(
    path: str | os.PathLike[str],
    key: str | os.PathLike[str] | PrivateKey,
    *,
    valid_days: int | None = None,
    report: str | os.PathLike[str] | None = None,
) -> Signature:
    """Sign a bundle that is intact; an earlier signature is replaced.

    Args:
        path: Its folder.
        key: File of the private key (Ed25519, PEM), whose passphrase is taken from
            $KDMRI_KEY_PASSPHRASE; or one that was read.
        valid_days: Days that the signature holds; None for without end.
        report: JSON file of a report (`kdmri-edge assess`) that the signature is to name; it has to
            be about this very bundle.

    Raises:
        KeyFileError: `key` is no file of a private key, or its passphrase is not known.
        BundleError: The bundle is not intact, or of an earlier version.
        DataError: The report is none, or about other bundles.
        OutputError: The bundle's folder cannot be written to.
    """
    signer = key if isinstance(key, PrivateKey) else read_private_key(Path(key))
    bundle = open_bundle(Path(path))
    named = None
    if report is not None:
        assessed = compare_report(Path(report), bundle)
        if not assessed.this_bundle:
            raise DataError(
                f"{report} cannot be named in the signature of {path}. {assessed.remark}",
                "Assess this bundle, or leave --report out.",
            )
        named = assessed.report
    return sign_manifest(bundle.path, signer, valid_days=valid_days, report=named)
