"""Damage to files and texts, drawn by a seed: for the fuzzing of everything that reads them."""

from __future__ import annotations

import json
import random
import re
from typing import Any, Final, Literal

__all__ = ["damage_bytes", "damage_json", "damage_text"]

_WORDS: Final = (b"\0", b"\xff", b"\x7f", b"\x80", b"\x01")
_NUMBERS: Final = (
    "1e308", "-1e308", "1e999", "-1", "0", "nan", "inf", "1.5", "99999999999999999999", "1e11",
    "100000000000", "65535", "-0.0", "", "x", "9" * 6000, "true", "[]",
)  # fmt: skip
_VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1.5, 10**11, 10**30, 1e308, float("nan"), float("inf"), "", "x",
    "../x", "/etc/passwd", "\0", "9" * 6000, [], [[]], [None], {}, {"x": 1}, [1, 2, 3, 4, 5, 6, 7],
)  # fmt: skip
_DEPTH: Final = 100_000


def damage_bytes(data: bytes, draw: random.Random) -> bytes:
    """Return other bytes: one to four changes, most of them near the start, where headers are."""
    held = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        if not held:
            break
        reach = len(held) if draw.random() < 0.5 else min(len(held), draw.choice((64, 512, 4096)))
        at = draw.randrange(reach)
        match draw.randrange(9):
            case 0:
                held[at] ^= 1 << draw.randrange(8)
            case 1:
                held[at] = draw.randrange(256)
            case 2 | 3:
                size = draw.choice((1, 2, 4, 8))
                held[at : at + size] = draw.choice(_WORDS) * size
            case 4:
                size = draw.choice((2, 4, 8))
                order: Literal["little", "big"] = draw.choice(("little", "big"))
                number = draw.choice((1, 255, 256, 65_535, 2**31 - 1, 2**31, 2**40, 2**63 - 1))
                held[at : at + size] = (number % 256**size).to_bytes(size, order)
            case 5:
                del held[at:]
            case 6:
                del held[at : at + draw.choice((1, 2, 8, 100, 1000))]
            case 7:
                size = draw.choice((1, 4, 64, 1000))
                held[at:at] = held[at : at + size]
            case 8:
                held[at:at] = draw.randbytes(draw.choice((1, 2, 8, 100)))
    return bytes(held)


def damage_text(data: bytes, draw: random.Random) -> bytes:
    """Return another text: odd numbers, lines that are gone or doubled, depth, other encodings."""
    if draw.random() < 0.3:
        return damage_bytes(data, draw)
    text = data.decode("utf-8", "replace")
    lines = text.splitlines(keepends=True) or [""]
    at = draw.randrange(len(lines))
    match draw.randrange(7):
        case 0 | 1:
            found = list(re.finditer(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", text))
            if found:
                place = draw.choice(found)
                text = text[: place.start()] + draw.choice(_NUMBERS) + text[place.end() :]
        case 2:
            text = "".join(lines[:at] + lines[at + 1 :])
        case 3:
            text = "".join(lines[: at + 1] + lines[at:])
        case 4:
            inside = draw.choice(("[", "{", "<a>", "(", '{"a":', "[["))
            place_at = draw.randrange(len(text) + 1)
            text = text[:place_at] + inside * _DEPTH + text[place_at:]
        case 5:
            found = list(re.finditer(r"[A-Za-z_]+", text))
            if found:
                place = draw.choice(found)
                other = draw.choice(("", "x", draw.choice(found).group()))
                text = text[: place.start()] + other + text[place.end() :]
        case 6:
            return text.encode(draw.choice(("utf-16", "utf-32", "utf-7")))
    return text.encode()


def damage_json(data: bytes, draw: random.Random) -> bytes:
    """Return another JSON text: a value is of another kind, or gone, or the text is damaged."""
    if draw.random() < 0.3:
        return damage_text(data, draw)
    value: Any = json.loads(data)
    keys: list[Any] = []
    place, parent = value, value
    while isinstance(place, dict | list) and place and (not keys or draw.random() < 0.75):
        key = draw.choice(list(place)) if isinstance(place, dict) else draw.randrange(len(place))
        keys.append(key)
        parent, place = place, place[key]
    if keys:
        if draw.random() < 0.2:
            del parent[keys[-1]]
        else:
            parent[keys[-1]] = draw.choice(_VALUES)
    return json.dumps(value).encode()
