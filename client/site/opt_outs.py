"""Opt-outs: patients whose records no study of this site reads. The list stays here, and so does its length."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ...common.data.records import Record
from ...common.errors import DataError

MAX_BYTES: Final = 1 << 26
_WHY: Final = "nobody who opted out may be read, so records are loaded only with the whole list"


def without_opted_out(records: Iterable[Record], path: Path | None) -> list[Record]:
    """The ``records``, in order, of the patients that the file ``path`` does not name; all where there is no file.

    The file is UTF-8 and has one patient identifier a line, compared exactly with ``Record.patient_id`` once
    surrounding whitespace is gone. Blank lines say nothing, and a comment after ``#`` is an identifier that no patient
    has. One that matches nobody is no error: an opt-out may come before the first record, or outlast the last.

    Raises DataError, which never quotes a line nor says how many there are, if the file cannot be read whole.
    """
    if path is None:
        return list(records)
    opted_out = {line.strip() for line in re.split(r"[\r\n]", _text(path))}
    return [record for record in records if record.patient_id not in opted_out]


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
