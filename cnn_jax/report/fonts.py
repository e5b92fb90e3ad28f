"""Fonts for class names in any script."""

import functools
from collections.abc import Sequence

_BOXES = "Last Resort"  # a font that has every letter, as a box; ships with matplotlib
_REGULAR = range(300, 501)  # weights


def families(names: Sequence[str]) -> list[str] | None:
    """Returns matplotlib's usual font families, and as many of the installed others as the letters of `names` need.

    None if no installed font has some letter.
    """
    from matplotlib import font_manager, rcParams

    usual = list(rcParams["font.family"])
    missing = {ord(letter) for name in names for letter in name if letter.isprintable()}
    missing -= _letters(font_manager.findfont(font_manager.FontProperties(family=usual)))
    if not missing:  # the others are not even opened
        return usual
    fonts = [
        font
        for font in font_manager.fontManager.ttflist
        if font.style == "normal" and _is_regular(font.weight) and not font.name.startswith(_BOXES)
    ]
    chosen = []
    while missing and fonts:
        best = max(fonts, key=lambda font: len(missing & _letters(font.fname)))
        if not missing & _letters(best.fname):
            return None
        chosen.append(best.name)
        missing -= _letters(best.fname)
    return None if missing else usual + chosen


def drawable(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names if installed fonts have all their letters, otherwise their numbers, from 0."""
    return tuple(map(str, range(len(names)))) if families(names) is None else tuple(names)


def _is_regular(weight: int | str) -> bool:
    return weight in _REGULAR if isinstance(weight, int) else weight in ("normal", "regular", "book", "medium")


@functools.cache
def _letters(path: str) -> frozenset[int]:
    """The characters of a font; none if it cannot be opened, or is made of bitmaps, as of emoji."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError, ValueError):
        return frozenset()
