"""Opt-outs: patients whose records no study of this site reads. The list stays here, and so does its length."""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...common.data.record import Record
from ...common.errors import DataError
from ...common.sources.identifiers import canonical

MAX_BYTES: Final = 1 << 26
_WHY: Final = "nobody who opted out may be read, so records are loaded only with the whole list"
LINES_NAMED: Final = 20
_COMMENT: Final = "#"
_SEPARATORS: Final = ",;|\t"
_ENDS: Final = re.compile(rf"[{_SEPARATORS}{_COMMENT}\s]")
_LONGEST: Final = 256  # no identifier is longer that has separators in it
_BULLET: Final = re.compile(r"\s*[-*\u2022\u00b7]\s+")


@dataclass(frozen=True, kw_only=True)
class OptOuts:
    """The lines of a site's list, by number: each with the canonical forms of all that it may mean.

    Rather one patient too many is left out than one too few: a line means whatever it may be read as.
    """

    lines: Mapping[int, frozenset[str]]

    @classmethod
    def read(cls, path: Path | None) -> "OptOuts":
        """Of a UTF-8 file with one patient identifier a line; nobody's where there is no file.

        A comment begins with ``#``, and there may be quotes, bullets, further columns and words, each of which may be
        an identifier, as may what stands before any separator. A line that is blank or a comment alone says nothing of
        anybody, unless an identifier is written so. Raises DataError, which never quotes
        a line nor says how many there are, if the file cannot be read whole.
        """
        if path is None:
            return cls(lines={})
        numbered = enumerate(re.split(r"\r\n|\r|\n", _text(path)), start=1)
        return cls(lines={number: forms for number, line in numbered if (forms := frozenset(_forms(line)))})

    @property
    def patients(self) -> frozenset[str]:
        """The canonical forms of all whom a line may mean."""
        return frozenset[str]().union(*self.lines.values())

    def without(self, records: Iterable[Record]) -> list[Record]:
        """The records, in order, of the patients whom no line may mean."""
        opted_out = self.patients
        return [
            record for record in records if opted_out.isdisjoint(map(canonical, (record.patient_id, *record.other_ids)))
        ]

    @property
    def count(self) -> int:
        """How many lines there are but blank ones and comments."""
        return sum(not _is_comment(forms) for forms in self.lines.values())

    def unmatched(self, patients: Iterable[str]) -> list[int]:
        """The numbers of those lines that mean none of the ``patients``, whoever else."""
        if not self.lines:
            return []
        known = {canonical(patient) for patient in patients}
        return [number for number, forms in self.lines.items() if not forms & known and not _is_comment(forms)]


def without_opted_out(records: Iterable[Record], path: Path | None) -> list[Record]:
    """The ``records``, in order, without those of patients whom the file ``path`` means; raises as ``OptOuts.read``."""
    return OptOuts.read(path).without(records)


def told_unmatched(lines: int, unmatched: list[int]) -> Iterator[str]:
    """What the site's operator is told, and nobody else: which of the ``lines`` match nobody."""
    if unmatched:
        some = ", ".join(map(str, unmatched[:LINES_NAMED])) + (", …" if len(unmatched) > LINES_NAMED else "")
        yield (
            f"{len(unmatched)} of the opt-outs' {lines} lines match no patient of the records (line {some}): right for "
            "who has none here, and wrong where an identifier is written in another way"
        )


def _is_comment(forms: frozenset[str]) -> bool:
    return all(form.startswith(_COMMENT) for form in forms)


def _forms(line: str) -> Iterator[str]:
    """The canonical forms of whatever a line may mean, also where some programs see several lines."""
    entries = {line: None}
    for text in (line, *line.splitlines()):
        if not text.lstrip().startswith(_COMMENT):
            entries |= dict.fromkeys(_entries(text))
    yield from filter(None, map(canonical, entries))


def _entries(text: str) -> Iterator[str]:
    """All of a text, its cells, what stands before any separator in one, and each word but those of a remark."""
    before = text.partition(_COMMENT)[0]
    for cell in dict.fromkeys([text, before, *_cells(text), *_cells(before)]):
        entry = _BULLET.sub("", cell, count=1)
        yield entry
        yield from (entry[: end.start()] for end in _ENDS.finditer(entry[:_LONGEST]))
    for cell in _cells(before):
        yield from cell.split()


def _cells(text: str) -> Iterator[str]:
    """What stands between separators, whichever separates, and whether or not quotes count."""
    yield from re.split(f"[{_SEPARATORS}]", text)
    for separator in _SEPARATORS:
        with suppress(csv.Error):  # a cell is longer than any identifier
            yield from next(csv.reader([text], delimiter=separator), [])


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(
            f"the opt-outs {path.name} cannot be read ({error.strerror})",
            why=_WHY,
            fix="check the path in the policy and the file's permissions",
        ) from error
    if len(data) > MAX_BYTES:
        raise DataError(
            f"the opt-outs {path.name} are larger than {MAX_BYTES >> 20} MiB", why=_WHY, fix="name the right file"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:  # which quotes the file; hence also `from None`
        text = "\0"
    if "\0" in text:  # as in UTF-16, in which no line would match anybody
        raise DataError(f"the opt-outs {path.name} are not UTF-8", why=_WHY, fix="save the file as UTF-8") from None
    return text
