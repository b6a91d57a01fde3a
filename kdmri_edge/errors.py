"""The tree of exceptions that a user can meet.

Every one carries *what* went wrong and the *remedy*; the command line prints both in one sentence
and exits with `exit_code`. Anything else that escapes is a defect of this project.
"""

from __future__ import annotations

__all__ = [
    "ArchiveError",
    "BackendError",
    "BenchError",
    "BundleError",
    "CheckpointError",
    "DataError",
    "ExportError",
    "Interrupted",
    "KdmriError",
    "KeyFileError",
    "MaskError",
    "MissingExtraError",
    "ModelError",
    "OutputError",
    "ParityError",
    "RecipeError",
    "RunError",
    "SignatureError",
    "StreamError",
]


class KdmriError(Exception):
    """Root of all user-facing errors.

    Args:
        what: What went wrong, as a clause that names the file, flag or value at fault.
        remedy: What the user can do about it.
        cause: What a server's counters call it (`runtime.causes`); empty leaves it to the class.
    """

    exit_code = 1

    def __init__(self, what: str, remedy: str, *, cause: str = "") -> None:
        """Keep both halves; `str()` joins them."""
        self.cause = cause
        self.what = what.strip()
        self.remedy = remedy.strip()
        super().__init__(f"{self.what} {self.remedy}".strip())


class DataError(KdmriError):
    """Image data that is missing, unreadable or of the wrong kind."""


class MaskError(KdmriError):
    """A sampling mask that is invalid or does not fit the data."""


class ModelError(KdmriError):
    """An unknown preset or an invalid architecture."""


class RecipeError(KdmriError):
    """A training recipe with an unknown key or a bad value."""


class CheckpointError(KdmriError):
    """A checkpoint that is missing, corrupt or of another architecture."""


class RunError(KdmriError):
    """A run folder that is missing, incomplete or belongs to other settings."""


class ExportError(KdmriError):
    """An export that cannot be made as asked."""


class ParityError(ExportError):
    """An exported graph that does not reproduce PyTorch within its tolerance."""


class BundleError(KdmriError):
    """A bundle that is missing, tampered with or too new."""


class SignatureError(BundleError):
    """A bundle that does not prove to come from where it should.

    Args:
        what: See `KdmriError`.
        remedy: See `KdmriError`.
        state: What is wrong with its signature, one of `runtime.signature.SignatureState`.
    """

    def __init__(self, what: str, remedy: str, *, state: str) -> None:
        """Keep the state beside the sentence."""
        self.state = state
        super().__init__(what, remedy)


class KeyFileError(KdmriError):
    """A file of a key that is missing, damaged, locked, or of another kind."""


class BackendError(KdmriError):
    """A runtime, device or precision that this machine does not offer."""


class BenchError(KdmriError):
    """A benchmark that cannot be run as asked."""


class StreamError(KdmriError):
    """A scanner's stream that breaks the protocol, or a server that cannot be reached."""


class ArchiveError(KdmriError):
    """An address of an archive that is none, or an archive that cannot be reached or refuses."""


class OutputError(KdmriError):
    """A place that cannot be written to."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a training that has kept its state; the message says where it goes on."""


class MissingExtraError(KdmriError):
    """An optional library that is not installed.

    Args:
        package: The library that was needed.
        extra: The extra of this project that brings it.
        otherwise: How to do without it, as a sentence.
    """

    def __init__(self, package: str, extra: str, otherwise: str = "") -> None:
        """Name the library and print the exact pip command."""
        self.package = package
        self.extra = extra
        super().__init__(
            f"This needs the package {package!r}, which is not installed.",
            f'Install it with: pip install "kdmri-edge[{extra}]" {otherwise}',
        )
