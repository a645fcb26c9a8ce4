"""A crosswalk: a table that says which identifiers are one patient's."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Self

from .columns import Refuse, as_text
from .files import Reading, found_files
from .identifiers import canonical, names_nobody
from .rows import OTHER_IDS, PATIENT_ID, Malformed, Rows, refuse
from .tables import ENDINGS, Table

_ENDS: Final = ("from", "to")
_FIX: Final = "give each identifier one patient, whose identifier no line leads away from"


class Crosswalk:
    """Patients' identifiers by those that lead to them, in whatever spelling; any other is its patient's own."""

    def __init__(self, patients: Mapping[str, str]) -> None:
        self._patients = {canonical(identifier): patient for identifier, patient in patients.items()}
        self._leading: dict[str, tuple[str, ...]] = {}
        for identifier, patient in patients.items():
            self._leading[canonical(patient)] = (*self._leading.get(canonical(patient), ()), identifier)
        self._known: dict[str, str] = {}  # by their spelling, for canonical forms take their time

    @classmethod
    def read(cls, path: Path, encoding: str = "utf-8") -> Self:
        """The columns ``from`` and ``to`` of a table, in any case and order.

        Raises DataError, also where an identifier leads to two patients, or to one that leads to another.
        """
        patients: dict[str, str] = {}
        written: dict[str, str] = {}
        places: dict[str, str] = {}
        for file in found_files([path], ENDINGS):
            for place, cells in Table(file=file, reading=Reading(), needed=_ends, encoding=encoding).rows():
                if isinstance(cells, Malformed):
                    refuse(place, cells.what, cells.fix)
                ends = [as_text(cells[name]).strip() for name in _ends([*cells], partial(refuse, place))]
                if any(map(names_nobody, ends)):
                    refuse(place, "an identifier is missing", "leave the line out, or complete it")
                one, other = ends
                form = canonical(one)
                if canonical(patients.setdefault(form, other)) != canonical(other):
                    refuse(place, f"leads to another patient than {places[form]}", _FIX)
                places.setdefault(form, place)
                written.setdefault(form, one)
        for form, patient in patients.items():
            onward = canonical(patient)
            if canonical(patients.get(onward, patient)) != onward:
                refuse(places[form], f"leads to a patient whom {places[onward]} leads away from", _FIX)
        spelt: dict[str, str] = {}
        return cls({written[form]: spelt.setdefault(canonical(patient), patient) for form, patient in patients.items()})

    def patient(self, identifier: str) -> str:
        """The identifier of the patient whose this one is."""
        if identifier not in self._known:
            self._known[identifier] = self._patients.get(canonical(identifier), identifier)
        return self._known[identifier]

    def others(self, patient: str) -> tuple[str, ...]:
        """What leads to a patient's identifier, each in its first spelling."""
        return self._leading.get(canonical(patient), ())

    def applied(self, rows: Rows) -> Rows:
        """The rows under their patients' identifiers, with the others that are known."""
        for place, row in rows:
            if not isinstance(row, Malformed) and (identifier := as_text(row.get(PATIENT_ID))):
                patient = self.patient(identifier)
                led = {PATIENT_ID: patient} if patient != identifier else {}  # of what is no identifier, none is made
                known = row.get(OTHER_IDS)
                others = (*(known if isinstance(known, tuple) else ()), *self.others(patient))
                row = {**row, **led, OTHER_IDS: others}
            yield place, row


def _ends(header: Sequence[str], refuse_header: Refuse) -> Collection[str]:
    found = [[name for name in header if name.strip("\ufeff \t").casefold() == end] for end in _ENDS]
    if any(len(names) != 1 for names in found):
        fix = "give it a header with from, of each identifier, and to, of the patient whose it is"
        refuse_header("it has no two columns from and to, each once", fix)
    return [names[0] for names in found]
