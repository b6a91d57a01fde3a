"""`kdmri-edge sign`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import click

from kdmri_edge.commands.command import Command
from kdmri_edge.commands.options import json_option
from kdmri_edge.runtime.signature import LONGEST_DAYS
from kdmri_edge.utils.console import print_result, tell

__all__ = ["ask_passphrase", "sign"]


def ask_passphrase() -> str:
    """Ask for the passphrase of a private key at a terminal; empty where nobody can answer."""
    if not sys.stdin.isatty():
        return ""
    answer: str = click.prompt("Passphrase of the key", hide_input=True, err=True, default="")
    return answer


@click.command(cls=Command)
@click.argument("bundles", type=click.Path(path_type=Path), nargs=-1, metavar="BUNDLE...")
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    metavar="FILE.key",
    help="The private key: Ed25519, PEM (PKCS8). Its passphrase is asked for, or taken from"
    " $KDMRI_KEY_PASSPHRASE.",
)
@click.option(
    "--valid-days",
    type=click.IntRange(1, LONGEST_DAYS),
    help="Days that the signature holds; then the bundle counts as out of date [without end].",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="REPORT.json",
    help="Name this report of `kdmri-edge assess` in the signature, by its hash. It has to be about"
    " this very bundle.",
)
@click.option(
    "--new-key",
    type=click.Path(path_type=Path),
    metavar="NAME",
    help="Make a key instead: NAME.key, which signs and stays secret (mode 600), and NAME.pub,"
    " which checks and is handed out.",
)
@click.option(
    "--passphrase",
    is_flag=True,
    help="Of --new-key: ask for a passphrase that encrypts the private file"
    " [$KDMRI_KEY_PASSPHRASE, where that is set].",
)
@json_option()
def sign(
    bundles: tuple[Path, ...],
    key: Path | None,
    valid_days: int | None,
    report: Path | None,
    new_key: Path | None,
    passphrase: bool,
    as_json: bool,
) -> None:
    """Sign bundles, so that whoever has the public key can tell that they are yours.

    The signature is a file beside the manifest, manifest.json.sig, and covers the bundle as a
    whole: the manifest has the hash of every file. It names the key by its fingerprint, the
    manifest and its digest, when it was made, until when it holds, and the report that you give.
    Bundles are checked as by `verify --files-only` first; engines that were built on this device
    since the export are accounted for. An earlier signature is replaced.

    Sites then insist on it: `verify`, `run` and `serve` take --key FILE.pub. Hand the public key
    out on another way than the bundles.

    \b
    Examples:
      kdmri-edge sign --new-key vendor
      kdmri-edge sign bundle --key vendor.key
      kdmri-edge sign bundle --key vendor.key --valid-days 365 --report report/assessment.json
      kdmri-edge export runs/brain --target openvino --sign vendor.key
    """  # noqa: D301 - click wants the backspace itself
    from kdmri_edge.runtime.signing import sign_bundle
    from kdmri_edge.utils.keys import PASSPHRASE, make_key, read_private_key, read_public_key

    if new_key is not None:
        if bundles or key is not None or valid_days is not None or report is not None:
            raise click.UsageError("--new-key makes a key and signs nothing: leave the rest out.")
        chosen = os.environ.get(PASSPHRASE, "")
        if passphrase and not chosen:
            chosen = click.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True)
        private, public = make_key(new_key, chosen or None)
        fingerprint = read_public_key(public).fingerprint
        if as_json:
            files = {"private": str(private), "public": str(public), "fingerprint": fingerprint}
            print_result(json.dumps(files, indent=2))
            return
        locked = "with a passphrase" if chosen else "without a passphrase"
        tell(f"{private}: signs, and stays secret ({locked}).")
        tell(f"{public}: checks; hand it out. Fingerprint {fingerprint}.")
        return
    if passphrase:
        raise click.UsageError("--passphrase is of --new-key: that of a key is asked for.")
    if not bundles or key is None:
        raise click.UsageError("Give bundles and the --key to sign them with, or --new-key NAME.")
    signer = read_private_key(key, ask_passphrase)
    made = [
        {
            "bundle": str(bundle),
            **asdict(sign_bundle(bundle, signer, valid_days=valid_days, report=report)),
        }
        for bundle in bundles
    ]
    if as_json:
        print_result(json.dumps(made, indent=2))
        return
    for one in made:
        until = f", until {one['valid_until_utc']}" if one["valid_until_utc"] else ""
        tell(f"{one['bundle']}: signed by {one['key']}, on {one['signed_utc']}{until}.")
        tell(f"  digest: {one['digest']}")
