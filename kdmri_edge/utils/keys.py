"""Ed25519 keys (RFC 8032) in PEM files: made, read, and told apart from what is none.

A private key is PKCS8, with a passphrase or without; a public one is SubjectPublicKeyInfo. `openssl
genpkey -algorithm ed25519` writes the same. A key is named by its fingerprint, the SHA-256 of its
public half in DER.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kdmri_edge.errors import KeyFileError, OutputError
from kdmri_edge.utils.console import say
from kdmri_edge.utils.extras import require
from kdmri_edge.utils.files import atomic_path, sha256_bytes
from kdmri_edge.utils.reading import reading

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

__all__ = [
    "PASSPHRASE",
    "PRIVATE_SUFFIX",
    "PUBLIC_SUFFIX",
    "Ask",
    "PrivateKey",
    "PublicKey",
    "make_key",
    "public_keys",
    "read_private_key",
    "read_public_key",
]

PASSPHRASE: Final = "KDMRI_KEY_PASSPHRASE"
"""Environment variable with the passphrase of a private key."""
PRIVATE_SUFFIX: Final = ".key"
PUBLIC_SUFFIX: Final = ".pub"

Ask = Callable[[], str]
"""Asks a person for a passphrase."""

_EXTRA: Final = "sign"
_LARGEST: Final = 64 * 1024  # bytes; such keys take some hundred
_PUBLIC: Final = b"-----BEGIN PUBLIC KEY-----"
_PRIVATE: Final = b"PRIVATE KEY-----"
_GET: Final = "Get the .pub file of who signs the bundles."
_NEW: Final = "Make one by `kdmri-edge sign --new-key NAME`."


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PublicKey:
    """The half of a key that checks signatures, which anyone may have.

    Attributes:
        name: The file that it was read from, for messages.
        fingerprint: "sha256:" and 64 hexadecimal digits.
        key: As `cryptography` has it.
    """

    name: str
    fingerprint: str
    key: Ed25519PublicKey

    def holds(self, signature: bytes, message: bytes) -> bool:
        """Whether a signature is this key's over that message."""
        exceptions: Any = require("cryptography.exceptions", extra=_EXTRA)
        try:
            self.key.verify(signature, message)
        except exceptions.InvalidSignature:
            return False
        return True


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PrivateKey:
    """The half of a key that signs, and that nobody else may have.

    Attributes:
        fingerprint: Of its public half.
        key: As `cryptography` has it.
    """

    fingerprint: str
    key: Ed25519PrivateKey

    def sign(self, message: bytes) -> bytes:
        """Return the signature over a message, 64 bytes."""
        return self.key.sign(message)


def make_key(name: Path, passphrase: str | None = None) -> tuple[Path, Path]:
    """Draw a new key and write both halves.

    Args:
        name: Without suffix: NAME.key becomes the private file, which its owner alone may read
            (mode 600), and NAME.pub the public one.
        passphrase: Encrypts the private file; None leaves it plain.

    Returns:
        Private and public file.

    Raises:
        OutputError: One of them is there already, or the place cannot be written to.
        MissingExtraError: `cryptography` is not installed.
    """
    serial, ed25519 = _serialization(), _ed25519()
    private, public = (
        name.with_name(name.name + suffix) for suffix in (PRIVATE_SUFFIX, PUBLIC_SUFFIX)
    )
    for file in (private, public):
        if file.exists() or file.is_symlink():
            raise OutputError(
                f"{file} is there already, and what it signed could not be checked without it.",
                "Choose another name.",
            )
    drawn = ed25519.Ed25519PrivateKey.generate()
    locked = serial.NoEncryption()
    if passphrase:
        locked = serial.BestAvailableEncryption(passphrase.encode())
    with atomic_path(private) as temporary:
        # never readable by others, not even for a moment
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(
                drawn.private_bytes(serial.Encoding.PEM, serial.PrivateFormat.PKCS8, locked)
            )
    with atomic_path(public) as temporary:
        temporary.write_bytes(_pem(drawn.public_key()))
    return private, public


def read_public_key(file: Path) -> PublicKey:
    """Read what checks signatures.

    Raises:
        KeyFileError: It is missing, no public key in PEM, or one of another algorithm.
        MissingExtraError: `cryptography` is not installed.
    """
    serial, ed25519 = _serialization(), _ed25519()
    data = _bytes(file, "a public key")
    if _PRIVATE in data:
        raise KeyFileError(
            f"{file} is a private key, and signatures are checked with the public one.",
            f"Give its {PUBLIC_SUFFIX} file, and keep the private one where bundles are signed.",
        )
    if _PUBLIC not in data:
        raise KeyFileError(f"{file} is no public key in PEM.", _GET)
    with reading(file, "a public key in PEM", error=KeyFileError, remedy="Get it again."):
        key = serial.load_pem_public_key(data)
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise _other(file, key)
    return PublicKey(name=str(file), fingerprint=_fingerprint(key), key=key)


def public_keys(
    files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None,
) -> tuple[PublicKey, ...]:
    """Read one public key, several, or none.

    Raises:
        KeyFileError: See `read_public_key`.
        MissingExtraError: `cryptography` is not installed.
    """
    if files is None:
        return ()
    many = [files] if isinstance(files, str | os.PathLike) else files
    return tuple(read_public_key(Path(file)) for file in many)


def read_private_key(file: Path, ask: Ask | None = None) -> PrivateKey:
    """Read what signs.

    Args:
        file: PEM, PKCS8.
        ask: Asks for the passphrase of a file that has one, where $KDMRI_KEY_PASSPHRASE does not
            say it; None asks nobody.

    Raises:
        KeyFileError: It is missing, no private key in PEM, one of another algorithm, or its
            passphrase is not known or another.
        MissingExtraError: `cryptography` is not installed.
    """
    serial, ed25519 = _serialization(), _ed25519()
    data = _bytes(file, "a private key")
    if _PUBLIC in data and _PRIVATE not in data:
        raise KeyFileError(
            f"{file} is a public key, and it takes the private one to sign.",
            f"Give its {PRIVATE_SUFFIX} file.",
        )
    if _PRIVATE not in data:
        raise KeyFileError(f"{file} is no private key in PEM.", _NEW)
    with reading(file, "a private key in PEM", error=KeyFileError, remedy="Get it again."):
        try:
            key = serial.load_pem_private_key(data, None)
        except TypeError:  # it says so where a passphrase is needed
            key = _unlocked(file, data, ask)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise _other(file, key)
    if os.name == "posix" and file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        say(f"Note: {file} can be read by others than its owner; `chmod 600 {file}` ends that.")
    return PrivateKey(fingerprint=_fingerprint(key.public_key()), key=key)


def _unlocked(file: Path, data: bytes, ask: Ask | None) -> Any:
    """Read a private key that has a passphrase."""
    passphrase = os.environ.get(PASSPHRASE) or (ask() if ask is not None else "")
    if not passphrase:
        raise KeyFileError(
            f"{file} has a passphrase, which is not known.",
            f"Put it into ${PASSPHRASE}, or sign at a terminal, where it is asked for.",
        )
    try:
        return _serialization().load_pem_private_key(data, passphrase.encode())
    except ValueError:
        raise KeyFileError(
            f"{file} does not open with that passphrase.", "Give the one that it was made with."
        ) from None


def _bytes(file: Path, kind: str) -> bytes:
    with reading(file, kind, error=KeyFileError, remedy="Check the path."), file.open("rb") as one:
        data = one.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise KeyFileError(f"{file} is too large to be {kind}.", "Check the path.")
    return data


def _other(file: Path, key: object) -> KeyFileError:
    # "RSAPublicKey", "EllipticCurvePrivateKey"
    kind = type(key).__name__.lstrip("_").removesuffix("PublicKey").removesuffix("PrivateKey")
    return KeyFileError(f"{file} is a key of {kind}, and bundles are signed by Ed25519.", _NEW)


def _pem(key: Ed25519PublicKey) -> bytes:
    serial = _serialization()
    data: bytes = key.public_bytes(serial.Encoding.PEM, serial.PublicFormat.SubjectPublicKeyInfo)
    return data


def _fingerprint(key: Ed25519PublicKey) -> str:
    serial = _serialization()
    der = key.public_bytes(serial.Encoding.DER, serial.PublicFormat.SubjectPublicKeyInfo)
    return f"sha256:{sha256_bytes(der)}"


def _serialization() -> Any:
    return require("cryptography.hazmat.primitives.serialization", extra=_EXTRA)


def _ed25519() -> Any:
    return require("cryptography.hazmat.primitives.asymmetric.ed25519", extra=_EXTRA)
