"""Which archive, and as whom it is spoken to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kdmri_edge.errors import ArchiveError

__all__ = ["CALLING", "Archive", "Tls", "parse_address"]

CALLING: Final = "KDMRI-EDGE"
"""How we name ourselves where nobody says otherwise."""

_EXAMPLE: Final = "It is AET@HOST:PORT, for example PACS@10.0.0.5:104."
_ADDRESS: Final = re.compile(
    r"(?P<title>[^@]*)@(?P<host>\[[^\]@\s]+\]|[^:\[\]@\s]+):(?P<port>\d{1,5})"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tls:
    """What a connection is encrypted with.

    Attributes:
        ca: Certificates of the authorities that the archive's one is checked against (PEM); None
            takes those of the system.
        certificate: Our own (PEM), for archives that ask for one.
        key: Its private key (PEM); None where the certificate's file holds it.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Archive:
    """A DICOM archive.

    Attributes:
        title: Its application entity title.
        host: Name or address.
        port: TCP port.
        calling: Our own title, which many archives have to know beforehand.
        tls: None for a connection in the clear.
    """

    title: str
    host: str
    port: int
    calling: str = CALLING
    tls: Tls | None = None

    @property
    def name(self) -> str:
        """AET@HOST:PORT."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.title}@{host}:{self.port}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values; `from_dict` reads them."""
        tls = None
        if self.tls is not None:
            named = {"ca": self.tls.ca, "certificate": self.tls.certificate, "key": self.tls.key}
            tls = {what: None if path is None else str(path) for what, path in named.items()}
        return {"archive": self.name, "calling": self.calling, "tls": tls}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Archive:
        """Return what `to_dict` was called on.

        Raises:
            ArchiveError: The address is none.
            LookupError: A key is missing, or, as the two that follow, what is stored is damaged.
            TypeError: See above.
            AttributeError: See above.
        """
        tls = stored["tls"]
        paths = {} if tls is None else {what: Path(path) for what, path in tls.items() if path}
        made = parse_address(stored["archive"], calling=stored["calling"])
        return made if tls is None else cls(
            title=made.title, host=made.host, port=made.port, calling=made.calling, tls=Tls(**paths)
        )  # fmt: skip


def parse_address(text: str, *, calling: str = CALLING, tls: Tls | None = None) -> Archive:
    """Read AET@HOST:PORT.

    Args:
        text: The address; an IPv6 one stands in brackets.
        calling: Our own title.
        tls: See `Archive`.

    Raises:
        ArchiveError: It is none, a title is none, or there is no such port.
    """
    found = _ADDRESS.fullmatch(text.strip())
    if found is None:
        raise ArchiveError(f"{text!r} is no address of an archive.", _EXAMPLE)
    port = int(found["port"])
    if not 1 <= port <= 65535:
        raise ArchiveError(f"{text!r} names port {port}.", "Ports are 1 to 65535.")
    return Archive(
        title=_title(found["title"]), host=found["host"].strip("[]"), port=port,
        calling=_title(calling), tls=tls,
    )  # fmt: skip


def _title(text: str) -> str:
    """An application entity title: 1 to 16 printable characters, no backslash (PS3.5, 6.2)."""
    title = text.strip()
    if not 1 <= len(title) <= 16 or "\\" in title or not (title.isascii() and title.isprintable()):
        raise ArchiveError(
            f"{text!r} is no application entity title.",
            "It has 1 to 16 characters of ASCII, and no backslash; the archive's staff knows it.",
        )
    return title
