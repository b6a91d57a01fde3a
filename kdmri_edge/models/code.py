"""Networks that are named by the code that makes them: the reference, and the specification.

A reference is `package.module:factory` or `FILE.py:factory`, with keyword arguments where the
factory takes some: `unet.py:UNet?width=16&norm=instance`. Everything here is plain data: nothing is
imported or called (`models.permission` decides whether that may happen, `models.adapter` does it).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from kdmri_edge.errors import ModelError
from kdmri_edge.models.protocol import InputKind, SpecDefaults, consistency_macs
from kdmri_edge.utils.suggest import nearest

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "CODE",
    "OBJECT",
    "CodeReference",
    "CodeSpec",
    "Convention",
    "convention_named",
    "is_code",
    "is_module",
    "read_arguments",
]

CODE: Final = "code"
"""The family of networks that are known by the code that makes them."""

OBJECT: Final = "object"
"""What stands before the name of a module that was given as an object in Python."""

_REFERENCE: Final = re.compile(
    r"(?P<place>.+\.py|[A-Za-z_]\w*(?:\.\w+)*):(?P<factory>[A-Za-z_]\w*(?:\.\w+)*)"
    r"(?:\?(?P<query>.*))?"
)
_WORD: Final = re.compile(r"[A-Za-z_][\w.-]*")
_LITERALS: Final = frozenset(("true", "false", "null", "True", "False", "None"))


class Convention(StrEnum):
    """What the `forward` of a network of one's own takes and gives.

    Attributes:
        IMAGE: The normalised zero-filled magnitude [B, 1, H, W] to an image of that shape, without
            data consistency: fastMRI's and MONAI's U-Nets.
        COMPLEX_IMAGE: The same of two channels, real and imaginary part.
        OPERATOR: (x_u, operator), or with coils (x_u, operator, maps), for the library's
            `data_consistency` and `sense_consistency`.
        FASTMRI: fastMRI's networks of k-space: forward(masked_kspace, mask) and, where it has no
            default, num_low_frequencies. K-space [B, coils, H, W, 2] has zero frequency in the
            middle of H and W and phase encode along W, the boolean mask is [1, 1, 1, W, 1], and the
            magnitude image [B, H, W].
        MONAI: The same of MONAI's networks: forward(masked_kspace, mask).
        DEEPINV: deepinv's reconstructors of one coil: forward(y, physics). K-space y and the
            complex image that is returned are [B, 2, H, W], centred, with phase encode along W;
            `models.deepinv.Physics` has the mask.
        DEEPINV_MULTICOIL: Those of several coils, whose k-space is [B, 2, coils, H, W]. The physics
            has sensitivities that are estimated from the mask's centre lines.
        ADAPTER: What a class that derives from `models.Adapter` says of itself.
    """

    IMAGE = "image"
    COMPLEX_IMAGE = "complex-image"
    OPERATOR = "operator"
    FASTMRI = "fastmri"
    MONAI = "monai"
    DEEPINV = "deepinv"
    DEEPINV_MULTICOIL = "deepinv-multicoil"
    ADAPTER = "adapter"


def convention_named(name: str) -> Convention:
    """Return the convention that a user names.

    Raises:
        ModelError: There is none of that name.
    """
    if name in tuple(Convention):
        return Convention(name)
    known = [str(one) for one in Convention]
    raise ModelError(
        f"There is no convention {name!r}; did you mean {nearest(name, known)!r}?",
        f"There are {', '.join(known)}.",
    )


def is_code(value: object) -> bool:
    """Tell whether a text is meant as a reference to code rather than as a path or a name."""
    text = str(value) if isinstance(value, str | Path) else ""
    return _REFERENCE.fullmatch(text) is not None and not Path(text).exists()


def is_module(value: object) -> TypeGuard[nn.Module]:
    """Tell whether something is a `torch.nn.Module`, without importing PyTorch for it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


@dataclass(frozen=True, slots=True)
class CodeReference:
    """Code that makes a network.

    Attributes:
        place: A file that ends with .py, or the dotted name of a module.
        factory: The function or class in it.
        arguments: Keyword arguments, sorted by name, as JSON texts.
    """

    place: str
    factory: str
    arguments: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> CodeReference:
        """Read a reference.

        Raises:
            ModelError: It is none, or a value is neither a number, true, false, a word, a quoted
                text nor a list.
        """
        found = _REFERENCE.fullmatch(text)
        if found is None:
            raise ModelError(
                f"{text!r} names no code that makes a network.",
                "Write package.module:factory or FILE.py:factory, with arguments as"
                " FILE.py:factory?width=16.",
            )
        arguments = read_arguments(found["query"] or "", text)
        return cls(found["place"], found["factory"], tuple(sorted(arguments.items())))

    @property
    def is_file(self) -> bool:
        """Whether the place is a file rather than an importable module."""
        return self.place.endswith(".py")

    @property
    def keywords(self) -> dict[str, Any]:
        """The arguments as values."""
        return {key: json.loads(value) for key, value in self.arguments}

    @property
    def portable(self) -> CodeReference:
        """The same without the folders of a file, which other machines do not have."""
        return replace(self, place=Path(self.place).name) if self.is_file else self

    @property
    def absolute(self) -> CodeReference:
        """The same with the whole path of a file."""
        return replace(self, place=str(Path(self.place).resolve())) if self.is_file else self

    def __str__(self) -> str:
        query = "&".join(f"{key}={_short(value)}" for key, value in self.arguments)
        return f"{self.place}:{self.factory}" + (f"?{query}" if query else "")


def read_arguments(query: str, text: str) -> dict[str, str]:
    """Read what follows a question mark, `key=value&key=value`.

    Args:
        query: The arguments.
        text: All that was typed, for messages.

    Returns:
        Each value as JSON.

    Raises:
        ModelError: A part is no argument, a key comes twice, or a value cannot be read.
    """
    arguments: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier() or key in arguments:
            raise ModelError(
                f"{part!r} in {text!r} is no argument of its own.",
                "Write ?key=value&key=value.",
            )
        arguments[key] = _canonical(value, text)
    return arguments


def _canonical(value: str, text: str) -> str:
    """Return an argument as JSON, so that one way of writing it stands for all."""
    if value in ("True", "False"):
        return value.lower()
    if value == "None":
        return "null"
    if _WORD.fullmatch(value) and value not in _LITERALS:
        return json.dumps(value)
    try:
        read = json.loads(value, parse_constant=_refuse)
        return json.dumps(read, separators=(",", ":"), allow_nan=False)
    except ValueError:
        raise ModelError(
            f"The value {value!r} in {text!r} cannot be read.",
            'Write a number, true, false, a word, a text as "...", or a list as [1,2].',
        ) from None


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _short(value: str) -> str:
    """Return a JSON value as one types it: words without quotation marks."""
    read = json.loads(value)
    plain = isinstance(read, str) and _WORD.fullmatch(read) and read not in _LITERALS
    return str(read) if plain else value


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeSpec(SpecDefaults):
    """What is known of a network that code makes: enough to read, to count and to build it again.

    Attributes:
        reference: The code, a file without its folders (`CodeReference.portable`).
        sha256: Of the file that holds the code.
        convention: What `forward` takes and gives.
        reads: What the network is given.
        has_data_consistency: Whether it is given the operator.
        parameters: Trainable parameters.
        counted_at: Matrix (H, W) of the forward pass by which multiplications were counted, (0, 0)
            before there was one.
        convolutions: Multiply-accumulates of one image in that pass, data consistency left out.
        consistencies: How often that pass called the library's data consistency.
    """

    reference: str
    sha256: str
    convention: Convention
    reads: InputKind
    has_data_consistency: bool
    parameters: int
    counted_at: tuple[int, int] = (0, 0)
    convolutions: int = 0
    consistencies: int = 0

    @property
    def kind(self) -> str:
        """Name of its family."""
        return CODE

    @property
    def holds_mask(self) -> bool:
        """Whether it is given the mask itself, see `protocol.holds_mask`."""
        return self.convention in (Convention.DEEPINV, Convention.DEEPINV_MULTICOIL)

    @property
    def receptive_radius(self) -> None:
        """The whole image: nothing is known of how far its convolutions reach."""
        return None

    def macs(
        self,
        height: int,
        width: int,
        *,
        lines: bool = True,
        sampled: int | None = None,
        coils: int = 1,
    ) -> dict[str, int]:
        """Count them for one image: those of the pass that was counted, by the pixels."""
        pixels = max(1, self.counted_at[0] * self.counted_at[1])
        consistency = 0
        if self.consistencies:
            consistency = self.consistencies * consistency_macs(
                height,
                width,
                self.channels,
                lines=lines,
                sampled=sampled,
                coils=coils if self.coils else None,
            )
        return {
            "convolutions": round(self.convolutions * height * width / pixels),
            "data_consistency": consistency,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        value = asdict(self)
        names = {"convention": str(self.convention), "reads": str(self.reads)}
        return {"kind": CODE, **value, **names, "counted_at": list(self.counted_at)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> CodeSpec:
        """Rebuild a specification from `to_dict`; nothing that it names is imported.

        Raises:
            ModelError: A key is missing, unknown or of another type.
        """
        given = {key: one for key, one in value.items() if key != "kind"}
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(given) - known):
            raise ModelError(
                f"The specification of a network of one's own has the unknown key {unknown[0]!r}.",
                "It may come from a newer version: update kdmri-edge.",
            )
        text = all(isinstance(given.get(key), str) for key in ("reference", "sha256"))
        numbers = ("parameters", "convolutions", "consistencies")
        counted = all(type(given.get(key, 0)) is int for key in numbers)
        if not text or not counted or type(given.get("has_data_consistency")) is not bool:
            raise ModelError(
                "The specification of a network of one's own is damaged.", "Make the file again."
            )
        height, width = map(int, given.get("counted_at", (0, 0)))
        return cls(
            **{
                **given,
                "reference": str(CodeReference.parse(given["reference"])),
                "convention": Convention(given["convention"]),
                "reads": InputKind(given["reads"]),
                "counted_at": (height, width),
            }
        )
