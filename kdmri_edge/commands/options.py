"""Options that commands share: a row of one of this project's tables, a network that is code."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from kdmri_edge.data.orientation import Orientation
from kdmri_edge.errors import ExportError
from kdmri_edge.registry import Registry
from kdmri_edge.utils.console import only_results
from kdmri_edge.utils.extras import load_attribute
from kdmri_edge.utils.reading import MAX_MEMORY, TRUST, parse_size
from kdmri_edge.utils.suggest import nearest

if TYPE_CHECKING:
    from kdmri_edge.archive.address import Archive

__all__ = [
    "MatrixSide",
    "NamedChoice",
    "RowChoice",
    "archive_of",
    "archive_options",
    "brought_options",
    "calling_option",
    "file_options",
    "json_option",
    "key_option",
    "orientation_option",
    "queue_option",
    "tls_options",
]


def orientation_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command take `--orientation`, for raw data whose vendor's convention is another."""
    return click.option(
        "--orientation",
        type=click.Choice([str(each) for each in Orientation]),
        default=str(Orientation.VENDOR),
        show_default=True,
        help="How the image's axes run to the directions of phase encode and readout that raw data"
        " (Siemens TWIX, MRD) gives: along or against them, or as its vendor's data does (against"
        " for Siemens, along for all others).",
    )(command)


def file_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command that reads users' files take `--max-memory` and `--trust-files`.

    They hold in the processes that it starts, too, so they are told by the environment, until the
    command has ended.
    """
    options = (
        click.option(
            "--max-memory",
            metavar="SIZE",
            expose_value=False,
            callback=_told(MAX_MEMORY),
            help=f"Largest array that a file may hold, e.g. 8GiB; also ${MAX_MEMORY} [half of this"
            " machine's memory].",
        ),
        click.option(
            "--trust-files",
            is_flag=True,
            expose_value=False,
            callback=_told(TRUST),
            help="The files are your own: HDF5 is opened at once, without being tried in a process"
            f" of its own; also ${TRUST}=1.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def json_option(
    what: str = "Print the result as JSON.",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let a command take `--json`: standard output then holds what `print_result` prints alone.

    Args:
        what: Help of the option.
    """

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def apart(*args: Any, as_json: bool, **options: Any) -> Any:
            with only_results() if as_json else contextlib.nullcontext():
                return command(*args, as_json=as_json, **options)

        return click.option("--json", "as_json", is_flag=True, help=what)(apart)

    return add


calling_option = click.option(
    "--calling",
    metavar="AET",
    default="KDMRI-EDGE",
    show_default=True,
    help="Our own application entity title, which the archive may have to know.",
)


def key_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command take `--key`: whose bundles are trusted."""
    return click.option(
        "--key",
        "keys",
        type=click.Path(path_type=Path),
        multiple=True,
        metavar="FILE.pub",
        envvar="KDMRI_KEY",
        show_envvar=True,
        help="Take no bundle but one that this public key signed, or one of these where it is"
        " repeated (`kdmri-edge sign`).",
    )(command)


def tls_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command say how a connection to an archive is encrypted."""
    pem = click.Path(path_type=Path)
    options = (
        click.option(
            "--tls",
            is_flag=True,
            help="Encrypt; the archive's certificate is checked against the system's authorities.",
        ),
        click.option(
            "--tls-ca",
            type=pem,
            metavar="FILE.pem",
            help="Encrypt, and check against these authorities instead.",
        ),
        click.option(
            "--tls-cert",
            type=pem,
            metavar="FILE.pem",
            help="Our own certificate, for an archive that asks for one.",
        ),
        click.option(
            "--tls-key",
            type=pem,
            metavar="FILE.pem",
            help="Its private key, without a password.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


queue_option = click.option(
    "--queue",
    type=click.Path(path_type=Path),
    envvar="KDMRI_QUEUE",
    show_envvar=True,
    metavar="DIR",
    help="Folder of objects that wait for an archive [~/.local/state/kdmri-edge/archive].",
)


def archive_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command take the address of a DICOM archive, and how it is spoken to.

    The command gets `send` and `queue`, and `calling`, `tls`, `tls_ca`, `tls_cert` and `tls_key`,
    which it hands on to `archive_of` as they are.
    """
    options = (
        click.option(
            "--send",
            metavar="AET@HOST:PORT",
            help="Send the images to this DICOM archive as well (C-STORE). They stay in the queue"
            " until it has confirmed them; see `kdmri-edge archive`.",
        ),
        calling_option,
        tls_options,
        queue_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


def archive_of(
    address: str,
    calling: str,
    tls: bool,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
) -> Archive:
    """Return the archive that the options of `archive_options` name.

    Raises:
        ArchiveError: An address or a title that is none, or a key without a certificate.
    """
    from kdmri_edge.archive.address import Tls, parse_address
    from kdmri_edge.errors import ArchiveError

    if tls_key is not None and tls_cert is None:
        raise ArchiveError("--tls-key belongs to a certificate.", "Name it with --tls-cert.")
    files = tuple(None if path is None else path.absolute() for path in (tls_ca, tls_cert, tls_key))
    for path in files:
        if path is not None and not path.is_file():
            raise ArchiveError(f"{path} does not exist.", "Name a PEM file.")
    encrypted = Tls(ca=files[0], certificate=files[1], key=files[2]) if tls or any(files) else None
    return parse_address(address, calling=calling, tls=encrypted)


def _told(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    """Put what an option says into an environment variable while the command runs."""

    def tell(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if not value:
            return
        if name == MAX_MEMORY:
            parse_size(value, "--max-memory")
        before = os.environ.get(name)
        os.environ[name] = "1" if value is True else value

        def back() -> None:
            if before is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = before

        context.call_on_close(back)

    return tell


class MatrixSide(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # see NamedChoice
    """The side of a square matrix, or "any"."""

    name = "matrix"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Name it in the help."""
        return "any|N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Return a number from 16 on, or "any"."""
        if value == "any" or (isinstance(value, int) and value >= _SMALLEST):
            return value  # type: ignore[no-any-return]
        if not str(value).isdecimal() or int(value) < _SMALLEST:
            self.fail(f"{value!r} is neither 'any' nor a number from {_SMALLEST} on.", param, ctx)
        return int(value)


_SMALLEST: Final = 16


def brought_options(
    *, several: bool = False, any_matrix: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make options that say of a network that is code what a checkpoint says itself.

    Args:
        several: Whether weights can be named for several networks.
        any_matrix: Whether --matrix may be "any", for every network.
    """
    repeated = "; may be repeated, in the order of the networks." if several else "."
    options = (
        click.option(
            "--weights",
            type=click.Path(path_type=Path),
            multiple=several,
            metavar="FILE",
            help="Weights of a network that is code: safetensors, or what torch.save wrote of a"
            f" state dict{repeated}",
        ),
        click.option(
            "--for-mask",
            metavar="FILE[:KEY]|NETWORK",
            help="The mask that a network which is code reconstructs for: a mask file, or a network"
            " whose mask is taken.",
        ),
        click.option(
            "--matrix",
            type=MatrixSide() if any_matrix else click.IntRange(min=_SMALLEST),
            help=(
                "any leaves height and width free, so that one graph serves every matrix and, as"
                " --mask input does, every mask of its kind. A number is the side of the square"
                " images of a network that is code [the mask's]."
                if any_matrix
                else "Side of the square images: of a network that is code [the mask's], or at"
                " which bundles are measured that were exported with --matrix any [their own]."
            ),
        ),
        click.option(
            "--convention",
            metavar="NAME",
            help="What forward of a network that is code takes, where its signature does not tell:"
            " image, complex-image, operator, fastmri, monai, deepinv, deepinv-multicoil or"
            " adapter.",
        ),
    )

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


class NamedChoice(click.Choice):  # type: ignore[type-arg]  # generic from click 8.2 on
    """A choice whose unknown values are one sentence with the nearest name, exit code 1.

    Args:
        names: What there is.
        what: What that is called, e.g. "export target".
        also: Other spellings that are taken, and the names that they stand for.
    """

    def __init__(
        self, names: Iterable[str], what: str, *, also: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(list(names))
        self.what = what
        self.also = dict(also or {})

    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Say in one line what there is to choose from."""
        return f"Choose one of {', '.join(map(str, self.choices))}."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return a known name.

        Raises:
            ExportError: There is none of that name.
        """
        names = [str(name) for name in self.choices]
        value = self.also.get(value, value)
        if value in names:
            return str(value)
        raise ExportError(
            f"There is no {self.what} {value!r}; did you mean {nearest(str(value), names)!r}?",
            f"There are {', '.join(names)}.",
        )


class RowChoice(click.Choice):  # type: ignore[type-arg]  # generic from click 8.2 on
    """The name of a row of a registry, which is imported when names are shown or checked.

    Unknown names are one sentence with the nearest name, exit code 1.

    Args:
        table: Import string "module:REGISTRY".
        *further: Values beside the names, e.g. "auto".
    """

    def __init__(self, table: str, *further: str) -> None:
        self._table, self._further = table, further
        super().__init__(())

    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Say in one line what there is to choose from."""
        return f"Choose one of {', '.join(self.choices)}."

    @property
    def _registry(self) -> Registry[Any]:
        found: Registry[Any] = load_attribute(self._table)
        return found

    @property
    def choices(self) -> tuple[str, ...]:
        """What can be chosen."""
        return (*self._further, *self._registry)

    @choices.setter
    def choices(self, given: Iterable[str]) -> None:
        """Ignore what the base class sets: the names are the table's."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return a known name.

        Raises:
            KdmriError: There is none of that name, in the registry's class of errors.
        """
        if value not in self._further:
            self._registry.named(str(value))
        return str(value)
