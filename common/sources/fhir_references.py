"""What FHIR resources refer to: whose one is, under one identifier for all patients that ``Patient.link`` joins.

A patient is a reference to ``Patient/ID``, relative or absolute, or ``urn:uuid:ID``, and the identifier is ID alone: it
is the same for the same patient of another server or road. A group, a contained patient and a logical identifier are
none: nobody could say that it is not another's, too.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from .elements import Element, ElementError, object_of, objects_of, text_of

Link = tuple[str, str, str]  # a patient, another, and how the first's link to it is called

PATIENT: Final = "Patient"
_UUID: Final = "urn:uuid:"
_FIX: Final = "give it a reference to one patient, as Patient/ID"
# Of two patients that a link joins, the first or the second has been replaced; the others join without saying which.
_REPLACED_BY, _REPLACES = "replaced-by", "replaces"


def patient_of(resource: Element) -> str:
    """The identifier of the patient whose the resource is. Raises ElementError."""
    subject = object_of(resource, "subject")
    if not subject:
        raise ElementError("has no subject", _FIX)
    kind, patient = referred(subject)
    if kind != PATIENT or not patient:
        raise ElementError("its subject is no reference to a patient", _FIX)
    return patient


def referred(reference: Element) -> tuple[str, str]:
    """The type and identifier that a reference is to, "" where it does not say. Raises ElementError.

    >>> referred({"reference": "https://ehr.example/fhir/Patient/12/_history/3"})
    ('Patient', '12')
    >>> referred({"reference": "urn:uuid:12"}), referred({"reference": "#12"})
    (('Patient', '12'), ('', ''))
    """
    stated, given = text_of(reference, "type"), text_of(reference, "reference")
    if given.startswith(_UUID):
        return stated or PATIENT, given.removeprefix(_UUID).strip()
    kind, _, identifier = given.partition("/_history/")[0].rpartition("/")
    if not identifier.strip() or not kind:
        return "", ""
    return kind.rpartition("/")[2], identifier.strip()


def links_of(patient: Element) -> Iterator[Link]:
    """The patients that a Patient is the same person as, as far as it says. Raises ElementError."""
    for link in objects_of(patient, "link"):
        kind, other = referred(object_of(link, "other"))
        identifier = text_of(patient, "id").strip()
        if not other or not identifier:
            raise ElementError("is a patient whose link names no other", "give id, and for link.other a reference")
        if kind == PATIENT:  # others are the person as somebody's relative
            yield identifier, other, text_of(link, "type")


def one_identifier(links: Iterable[Link], form: Callable[[str], str] = str) -> Mapping[str, str]:
    """The identifier of each patient who is linked: the least of those that are joined and have not been replaced.

    Whatever the type of a link is, it joins: two identifiers of one person must not be two patients. Those of one
    ``form`` are one, and patients are given by it; of its spellings the least is the identifier.

    >>> one_identifier([("1", "3", "replaced-by"), ("5", "3", "seealso"), ("8", "9", "refer")])
    {'1': '3', '3': '3', '5': '3', '8': '8', '9': '8'}
    """
    joined: dict[str, set[str]] = {}
    spelt: dict[str, str] = {}
    replaced = set()
    for *ends, kind in links:
        one, other = map(form, ends)
        spelt |= {each: min(end, spelt.get(each, end)) for each, end in zip((one, other), ends, strict=True)}
        small, large = sorted((joined.setdefault(each, {each}) for each in (one, other)), key=len)
        if small is not large:
            large |= small
            joined.update(dict.fromkeys(small, large))
        replaced |= {one} if kind == _REPLACED_BY else {other} if kind == _REPLACES else set()
    representatives = {id(group): min(map(spelt.__getitem__, group - replaced or group)) for group in joined.values()}
    return {patient: representatives[id(group)] for patient, group in sorted(joined.items())}
