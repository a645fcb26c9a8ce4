"""Texts with one kind of space and of hyphen, for rules to see: RTF, HTML and word processors write several of each."""

from typing import Final

# Soft hyphens, marks of direction, and what has no width; spaces of all widths; hyphens, the dash of ranges, and minus.
_INVISIBLE: Final = (0xAD, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF)
_SPACES: Final = (0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000)
_HYPHENS: Final = (*range(0x2010, 0x2014), 0x2212, 0xFE63, 0xFF0D)
_PLAIN: Final = {**dict.fromkeys(_INVISIBLE), **dict.fromkeys(_SPACES, " "), **dict.fromkeys(_HYPHENS, "-")}


def plain(text: str) -> str:
    """The text with " " for each space and "-" for each hyphen, of whatever kind, and without what is not seen.

    >>> plain("Ber\u00adg, 07.\u00a003.\u00a01950, 123\u2011456")
    'Berg, 07. 03. 1950, 123-456'
    """
    return text if text.isascii() else text.translate(_PLAIN)
