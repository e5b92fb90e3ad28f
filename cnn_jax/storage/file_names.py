"""File names as text. Python's names may hold bytes that are not UTF-8, which no UTF-8 file or page can hold."""

import os
import unicodedata


def readable(name: str | os.PathLike[str]) -> str:
    r"""Returns a name as one line of text that every file and page can hold.

    Bytes that are not UTF-8 are escaped, and so are line breaks and other control characters.

    >>> readable("K\udce4fer\n")  # Latin-1, in Python's form
    'K\\xe4fer\\n'
    """
    return "".join(map(_escaped, os.fspath(name)))


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # PEP 383
        return f"\\x{ord(character) - 0xDC00:02x}"
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
        return character.encode("unicode_escape").decode()
    return character


def composed(name: str) -> str:
    """Returns a name with letters and accents composed (NFC): macOS may store them apart, other systems do not.

    >>> len("Ka\u0308fer"), len(composed("Ka\u0308fer"))
    (6, 5)
    """
    return unicodedata.normalize("NFC", name)
