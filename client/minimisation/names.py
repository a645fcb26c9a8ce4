"""Names on a site's list, found in texts: whole words in any case, however many names there are, in one pass."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, NoReturn

from ...common.errors import DataError
from .spelling import plain

MARK: Final = "[NAME]"
MAX_BYTES: Final = 1 << 26
_COMMENT: Final = "#"
# Of a list, digits count where they are part of a word; in a text they end it, as underscores do: scan_Berg_2024.
_LISTED: Final = re.compile(r"[^\W\d_][\u0300-\u036f]*(?:[\w\u0300-\u036f])*")
_WORD: Final = re.compile(r"(?:[^\W\d_][\u0300-\u036f]*)+|\d+")
_BETWEEN: Final = re.compile(r"[^\S\n]{0,2}[-'’.,_]?[^\S\n]{0,2}\n?[^\S\n]{0,2}")


class Names:
    """The names of a list: each is one word or several, and stands in a text with as many, in this order."""

    def __init__(self, names: Sequence[Sequence[str]]) -> None:
        self._names = frozenset(map(tuple, names))
        found = defaultdict(set)
        for words in self._names:
            found[words[0]].add(len(words))
        self._lengths: Mapping[str, Sequence[int]] = {first: sorted(all_)[::-1] for first, all_ in found.items()}

    @classmethod
    def read(cls, path: Path) -> "Names":
        """Of a UTF-8 file with a name a line, as it stands in texts; ``#`` begins a remark.

        Raises DataError, which quotes no line.
        """
        names = []
        for number, line in enumerate(_text(path).splitlines(), start=1):
            words = _words(line.partition(_COMMENT)[0])
            if len("".join(words)) == 1:
                _refuse(path, f"has one letter alone in line {number}", "write names of more than a letter")
            if words:
                names.append(words)
        if not names:
            _refuse(path, "has no names", "give a name a line, or leave out minimise.names_file")
        return cls(names)

    def without(self, text: str) -> str:
        """The text with [NAME] for each name.

        >>> Names([["berg"], ["van", "dam"]]).without("Dr. BERG called J. Van Dam, of Bergen.")
        'Dr. [NAME] called J. [NAME], of Bergen.'
        """
        places = [found.span() for found in _WORD.finditer(text)]
        parts, end, number = [], 0, 0
        while number < len(places):
            count = self._count(text, places, number)
            if count:
                parts += [text[end : places[number][0]], MARK]
                end = places[number + count - 1][1]
            number += count or 1
        return "".join([*parts, text[end:]])

    def _count(self, text: str, places: Sequence[tuple[int, int]], number: int) -> int:
        """Of how many words the longest name is that begins with this one; 0 if none does."""
        for length in self._lengths.get(_folded(text[slice(*places[number])]), ()):
            spans = places[number : number + length]
            if tuple(_folded(text[start:end]) for start, end in spans) in self._names and all(
                _BETWEEN.fullmatch(text, one[1], other[0]) for one, other in pairwise(spans)
            ):
                return length
        return 0


def _words(text: str) -> list[str]:
    listed = _LISTED.findall(plain(text).replace("_", " "))
    return [_folded(word) for each in listed for word in _WORD.findall(each)]


def _folded(word: str) -> str:
    return unicodedata.normalize("NFKC", word).casefold()


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        _refuse(path, f"cannot be read ({error.strerror})", "check minimise.names_file in policy.toml")
    if len(data) > MAX_BYTES:
        _refuse(path, f"is larger than {MAX_BYTES >> 20} MiB", "name the right file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:  # which quotes the file
        _refuse(path, "is not UTF-8", "save the file as UTF-8")


def _refuse(path: Path, what: str, fix: str) -> NoReturn:
    raise DataError(
        f"{path.name} {what}", why="names that are not read are not taken out of records", fix=fix
    ) from None
