"""File names as text. Python's names may hold bytes that are not UTF-8, which no UTF-8 file or page can hold."""

import os
import unicodedata

# Unicode's Bidi_Control: marks, embeddings, overrides and isolates.
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def readable(name: str | os.PathLike[str]) -> str:
    r"""Returns a name as one line of text that every file and page can hold.

    Bytes that are not UTF-8 are escaped, and so are line breaks and other control characters, those that change the
    direction of text included: they could make a name look like another.

    >>> readable("K\udce4fer\n")  # Latin-1, in Python's form
    'K\\xe4fer\\n'
    >>> readable("photo\u202egnp.exe")  # would be shown as photoexe.png
    'photo\\u202egnp.exe'
    """
    return "".join(map(_escaped, os.fspath(name)))


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # PEP 383
        return f"\\x{ord(character) - 0xDC00:02x}"
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _DIRECTIONS:
        return character.encode("unicode_escape").decode()
    return character


def composed(name: str) -> str:
    """Returns a name with letters and accents composed (NFC): macOS may store them apart, other systems do not.

    >>> len("Ka\u0308fer"), len(composed("Ka\u0308fer"))
    (6, 5)
    """
    return unicodedata.normalize("NFC", name)
