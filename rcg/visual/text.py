"""Text in pictures: fonts that have its characters, and what stands for characters that no font here has."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

FAMILIES = (
    "DejaVu Sans",  # comes with matplotlib: Latin, Greek, Cyrillic, Arabic, Hebrew
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "Microsoft YaHei",
    "PingFang SC",
    "Heiti SC",
    "Hiragino Sans",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "Arial Unicode MS",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Emoji",
    "Segoe UI Symbol",
)
"""Fonts in the order in which each character is looked for; those that are not installed are passed over."""


class Font(NamedTuple):
    """A font that is installed here."""

    family: str
    path: str
    characters: frozenset[int]


@cache
def fonts() -> tuple[Font, ...]:
    """Return the installed ones of `FAMILIES`."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    regular = {entry.name: entry.fname for entry in font_manager.fontManager.ttflist if _is_regular(entry)}
    found = []
    for family in FAMILIES:
        if family in regular:
            try:
                characters = frozenset(FT2Font(regular[family]).get_charmap())
            except (OSError, RuntimeError):  # it was removed since matplotlib has listed it, or is damaged
                continue
            found.append(Font(family, regular[family], characters))
    return tuple(found)


def drawable(text: str) -> str:
    """Return text of one line that the fonts here can draw; other characters are written as their code points."""
    return "".join(_drawable(character) for character in unicodedata.normalize("NFC", text))


def runs(text: str) -> Iterator[tuple[Font, str]]:
    """Yield the parts of a drawable text with the font of each."""
    run, last = "", None
    for character in text:
        font = _font(character)
        if font is not last and run and last is not None:
            yield last, run
            run = ""
        run, last = run + character, font
    if run and last is not None:
        yield last, run


def _drawable(character: str) -> str:
    if character.isspace():
        return " "
    if unicodedata.category(character) == "Cf" or "VARIATION SELECTOR" in unicodedata.name(character, ""):
        return ""  # it only changes how its neighbors are drawn
    if character.isprintable() and _font(character) is not None:
        return character
    return character.encode("ascii", "backslashreplace").decode() if ord(character) > 0x7F else "?"


@cache
def _font(character: str) -> Font | None:
    """Return the first font that has a character."""
    return next((font for font in fonts() if ord(character) in font.characters), None)


def _is_regular(entry: object) -> bool:
    from matplotlib.font_manager import FontEntry

    assert isinstance(entry, FontEntry)
    return entry.style == "normal" and str(entry.weight) in ("400", "normal", "regular", "book")
