"""Opt-outs: patients whose records no study of this site reads. The list stays here, and so does its length."""

import re
from collections.abc import Iterable, Iterator, Mapping
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
_SEPARATORS: Final = re.compile(r"[,;|\t]")
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

        A comment begins with ``#``, and there may be quotes, bullets and further columns. A line that is blank or a
        comment alone says nothing of anybody, unless an identifier is written so. Raises DataError, which never quotes
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
    """Whatever may be meant by the identifier of a line: all of it, its parts, and what stands before a remark."""
    yield from filter(None, [canonical(line)])
    for text in dict.fromkeys([line, line.partition(_COMMENT)[0]]):
        if text.lstrip().startswith(_COMMENT):
            continue
        for part in _SEPARATORS.split(text):
            entry = _BULLET.sub("", part, count=1) if _BULLET.match(part) else part
            yield from filter(None, (canonical(one) for one in (entry, *entry.split(maxsplit=1)[:1])))


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
