"""What a TorchScript archive holds, read without PyTorch: its code, and its constants.

A TorchScript archive is a program. libtorch runs parts of it while it loads one (`__setstate__`),
and its operators read and write files (`torch.from_file`, `torch.save`). What `kdmri-edge export`
writes is much less than that: one class with one method, without branches and loops, whose lines
call operators of arithmetic on tensors. `check` takes an archive of that kind alone.

The code is looked at word by word, in a language so small that Python, PyTorch and this module
cannot read it differently: printable ASCII, no comments, no escapes in strings. Every name that
is called has to be in the lists of `torchscript_operators`, and no name can be reached otherwise.
"""

from __future__ import annotations

import io
import itertools
import math
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kdmri_edge.errors import BundleError
from kdmri_edge.runtime.graphs.torchscript_operators import BUILTINS, OPS, TORCH

__all__ = ["constants", "refused"]

_CODE_BYTES: Final = 2**24  # our largest has a few hundred kilobytes
_MEMBERS: Final = re.compile(
    r"data\.pkl|constants\.pkl|(\.data/)?version|byteorder|\.data/serialization_id|data/\d+|constants/\d+"
    r"|code/[\w./]+\.py"
)
_ELEMENTS: Final = 2**27  # of one constant: 512 MiB
_END: Final = b"PK\x05\x06"
_END_BYTES: Final = 22

_TOKEN: Final = re.compile(
    r"""(?P<name>[A-Za-z_][A-Za-z0-9_]*)
      |(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?j?)
      |(?P<string>"[ !\#-&(-[\]-~]*"|'[ !\#-&(-[\]-~]*')
      |(?P<sign>->|==|!=|<=|>=|<<|>>|//|\*\*|[-+*/%<>=()\[\]{},.:~&|^])
      |(?P<space>[ \n]+)""",
    re.VERBOSE,
)
_KEYWORDS: Final = "class def return pass and or not in is None True False"
_STATEMENTS: Final = """
    if elif else while for break continue import from lambda with as try except finally raise
    assert global nonlocal yield async await del exec print
"""
_ROOTS: Final = frozenset(("torch", "ops", "CONSTANTS", "__torch__"))
_METHOD: Final = "forward"

# What libtorch's own reader of pickles makes of the archives that are exported here.
_GLOBALS: Final = frozenset(
    (
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_qtensor",
        "torch.jit._pickle build_tensorlist",
        "torch.jit._pickle build_intlist",
        "torch.jit._pickle build_doublelist",
        "torch.jit._pickle build_boollist",
        "torch.jit._pickle restore_type_tag",
        "torch per_tensor_affine",
        "torch per_channel_affine",
        "collections OrderedDict",
        "__torch__.torch.classes.quantized Conv2dPackedParamsBase",
        "__torch__.torch.classes.quantized LinearPackedParamsBase",
    )
)
_STORAGES: Final = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
    "QInt8Storage": "i1",
    "QUInt8Storage": "u1",
    "QInt32Storage": "<i4",
}
_OPCODES: Final = """
    PROTO GLOBAL EMPTY_TUPLE EMPTY_DICT EMPTY_LIST MARK TUPLE TUPLE1 TUPLE2 TUPLE3 BINPUT
    LONG_BINPUT BINGET LONG_BINGET BINUNICODE BININT BININT1 BININT2 LONG1 BINFLOAT NEWTRUE
    NEWFALSE NONE BINPERSID REDUCE BUILD NEWOBJ STOP APPEND APPENDS SETITEM SETITEMS
"""


class _Refused(Exception):  # noqa: N818 - a finding, told by `refused`
    """Something that no export holds."""


def refused(graph: Path) -> str | None:
    """Say what an archive holds beyond what `kdmri-edge export` writes, as a clause.

    Args:
        graph: The .pt file.

    Returns:
        The first thing that was found; None for an archive of our kind.

    Raises:
        BundleError: There is no such file.
    """
    if not graph.is_file():
        raise BundleError(f"{graph} does not exist.", "Export the network again.")
    try:
        with _opened(graph) as archive:
            members = _members(archive)
            code = {name: archive.read(m) for name, m in members.items() if name.endswith(".py")}
            if sum(map(len, code.values())) > _CODE_BYTES:
                raise _Refused("holds more code than any export")
            for content in code.values():
                _check_code(content)
            for name in ("data.pkl", "constants.pkl"):
                if name in members:
                    _check_pickle(archive.read(members[name]))
    except _Refused as found:
        return str(found)
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError) as error:
        return f"is no TorchScript archive ({error})"
    return None


def _opened(graph: Path) -> zipfile.ZipFile:
    """Open an archive that every reader of zip files takes apart in the same way."""
    size = graph.stat().st_size
    with graph.open("rb") as stream:
        first = stream.read(4)
        stream.seek(max(0, size - _END_BYTES))
        end = stream.read()
    if first != b"PK\x03\x04" or len(end) != _END_BYTES or not end.startswith(_END):
        raise _Refused("is no plain TorchScript archive")
    length, start = (int.from_bytes(end[at : at + 4], "little") for at in (12, 16))
    if start + length + _END_BYTES != size:
        raise _Refused("is no plain TorchScript archive")
    return zipfile.ZipFile(graph)


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the parts of an archive, by their names below its one folder."""
    found: dict[str, zipfile.ZipInfo] = {}
    folders = set()
    for member in archive.infolist():
        folder, _, name = member.filename.partition("/")
        folders.add(folder)
        plain = member.orig_filename == member.filename and ".." not in name
        if len(folders) > 1 or name in found or not plain or not _MEMBERS.fullmatch(name):
            raise _Refused(f"holds {member.filename!r}, as no export does")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise _Refused("is compressed, as no export is")
        found[name] = member
    return found


def _check_code(content: bytes) -> None:
    """Take one class whose `forward` calls allowed operators, one after the other.

    Raises:
        _Refused: There is more.
    """
    words = list(_words(content))
    kinds = [kind for kind, _ in words]
    texts = [text for _, text in words]
    if not words:
        return  # of the module that a class of libtorch's own is named after
    if texts.count("class") != 1 or texts[:1] != ["class"]:
        raise _Refused("defines more than one class")
    defined = [after for word, after in itertools.pairwise(texts) if word == "def"]
    if defined != [_METHOD]:
        other = next((name for name in defined if name != _METHOD), "no method")
        raise _Refused(f"defines {other}, where exports have one method, {_METHOD}")
    place = 0
    while place < len(words):
        place = _check_word(kinds, texts, place)


def _words(content: bytes) -> Iterator[tuple[str, str]]:
    text = content.decode("latin-1")
    place = 0
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            raise _Refused(f"holds the character {text[place]!r} in its code")
        if found.lastgroup != "space":
            yield str(found.lastgroup), found.group()
        place = found.end()


def _check_word(kinds: list[str], texts: list[str], place: int) -> int:
    """Check what begins with a word; return where the next begins."""
    kind, text = kinds[place], texts[place]
    before = texts[place - 1] if place else ""
    after = texts[place + 1] if place + 1 < len(texts) else ""
    if kind == "string" and (kinds[place + 1 : place + 2] == ["string"] or after in (".", "(")):
        raise _Refused("does something with a text")
    if text in (")", "]", "}") and after in ("(", "."):
        raise _Refused("calls what an expression gives")
    if text == ".":
        raise _Refused("takes an attribute of a value")
    if kind != "name":
        return place + 1
    if text in _STATEMENTS.split():
        raise _Refused(f"holds the statement '{text}', and exports run straight through")
    if text in _KEYWORDS.split():
        return place + 1
    chain, end = _chain(kinds, texts, place)
    called = texts[end : end + 1] == ["("]
    if before in ("class", "def"):
        _check_definition(texts, place, before)
    elif text in _ROOTS:
        _check_operator(chain, called=called)
    elif len(chain) > 1:
        raise _Refused(f"takes the attribute {chain[1]!r} of a value")
    elif called and text not in BUILTINS:
        raise _Refused(f"calls {text}, which no export does")
    return end


def _chain(kinds: list[str], texts: list[str], place: int) -> tuple[list[str], int]:
    """Return a name and those behind its dots, and where they end."""
    chain, end = [texts[place]], place + 1
    while texts[end : end + 1] == ["."]:
        if kinds[end + 1 : end + 2] != ["name"]:
            raise _Refused("takes an attribute without a name")
        chain.append(texts[end + 1])
        end += 2
    return chain, end


def _check_definition(texts: list[str], place: int, before: str) -> None:
    header = texts[place + 1 : place + 4]
    if before == "class" and header != ["(", "Module", ")"]:
        raise _Refused(f"defines {texts[place]}, which is no module")


def _check_operator(chain: list[str], *, called: bool) -> None:
    root, *names = chain
    name = ".".join(names)
    if root == "__torch__":
        if called:
            raise _Refused(f"calls {name}, which no export does")
    elif root == "CONSTANTS":
        if called or not re.fullmatch(r"c\d+", name):
            raise _Refused(f"calls the constant {name}")
    elif name not in (TORCH if root == "torch" else OPS):
        raise _Refused(f"calls {root}.{name}, which is not among the operators of exports")


def _check_pickle(content: bytes) -> None:
    """Take the values that PyTorch stores of a module: tensors, numbers, lists.

    Raises:
        _Refused: It names something else.
    """
    known = _OPCODES.split()
    for steps, (code, value, _) in enumerate(pickletools.genops(content)):
        if code.name not in known:
            raise _Refused(f"holds a pickle with {code.name}")
        if code.name in ("BINPUT", "LONG_BINPUT") and int(str(value)) > steps:
            raise _Refused("holds a pickle that leaves places of its memory out")
        if code.name == "GLOBAL" and not _is_known(str(value)):
            raise _Refused(f"holds a pickle that names {value}")


def _is_known(name: str) -> bool:
    if name in _GLOBALS:
        return True
    module, _, last = name.rpartition(" ")
    if module == "torch":
        return last in _STORAGES
    # classes of the archive's own code, never those that libtorch brings
    return module.startswith("__torch__") and not module.startswith("__torch__.torch.classes")


def constants(graph: Path) -> list[NDArray[Any]]:
    """Return the constants of an archive that `refused` has nothing against.

    Raises:
        BundleError: They cannot be read.
    """
    try:
        with _opened(graph) as archive:
            members = _members(archive)
            if "constants.pkl" not in members:
                return []
            content = archive.read(members["constants.pkl"])
            _check_pickle(content)
            found = _Constants(content, archive, members).load()
    except (_Refused, zipfile.BadZipFile, OSError, EOFError, ValueError, KeyError, TypeError,
            IndexError, AttributeError, pickle.UnpicklingError) as error:  # fmt: skip
        raise BundleError(
            f"{graph} holds constants that cannot be read ({error}).", "Export it again."
        ) from error
    held = found if isinstance(found, tuple) else ()
    return [one for one in held if isinstance(one, np.ndarray)]


class _Object:
    """Stands for an object of libtorch's, whose state is not looked at."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class _Constants(pickle.Unpickler):
    """Reads tensors as arrays; makes nothing of other objects.

    Args:
        content: The pickle, checked by `_check_pickle`.
        archive: Where the tensors' bytes lie.
        members: The archive's parts by name.
    """

    def __init__(
        self, content: bytes, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]
    ) -> None:
        super().__init__(io.BytesIO(content))
        self._archive, self._members = archive, members

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name."""
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if name == "_rebuild_tensor_v2":
            return _tensor
        if name == "OrderedDict":
            return OrderedDict
        if name.startswith("build_"):
            return list
        return _Object

    def persistent_load(self, pid: Any) -> NDArray[Any]:
        """Return the bytes of a tensor."""
        _, dtype, key, _, count = pid
        content = self._archive.read(self._members[f"constants/{key}"])
        return np.frombuffer(content, np.dtype(dtype), int(count))


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: object) -> NDArray[Any]:
    """Return a tensor's values; refuses to look beyond its bytes."""
    sizes, steps = [int(n) for n in size], [int(n) for n in stride]
    last = int(offset) + sum((n - 1) * step for n, step in zip(sizes, steps, strict=True))
    if min([int(offset), *sizes, *steps]) < 0 or (0 not in sizes and last >= len(storage)):
        raise ValueError("a tensor reaches beyond its bytes")
    if math.prod(sizes) > _ELEMENTS:  # strides of zero make many of one
        raise ValueError("a tensor is larger than any of an export")
    if 0 in sizes:
        return np.zeros(sizes, storage.dtype)
    strides = [step * storage.itemsize for step in steps]
    return np.array(np.lib.stride_tricks.as_strided(storage[int(offset) :], sizes, strides))
