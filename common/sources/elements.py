"""Elements of FHIR resources, which an export may have in any shape: they are as expected, or nothing is read of them.

Resources are plain JSON here. Models of FHIR know all of its elements and check every one: a note would be lost for a
practitioner's malformed telephone number, their errors quote it, and reading would take many times as long.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from .rows import Malformed

Element = Mapping[str, Any]

_AS_FHIR: Final = "write resources as FHIR R4 has them"


class ElementError(Exception):
    """A resource cannot be used: ``malformed`` says why, without a word of it."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.malformed = Malformed(what=what, fix=fix)


def resource_of(line: bytes) -> Element:
    """The resource of a line of NDJSON. Raises ElementError."""
    try:
        resource = json.loads(line)
    except (ValueError, RecursionError):
        resource = None
    if not isinstance(resource, dict):
        raise ElementError("is not a JSON object", "write one resource on each line, in UTF-8")
    return resource


def objects_of(parent: Element, name: str) -> Sequence[Element]:
    """The list of objects of this name, empty where there is none. Raises ElementError."""
    found = parent.get(name) or []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ElementError(f"its {name} is not a list of objects", _AS_FHIR)
    return found


def object_of(parent: Element, name: str) -> Element:
    """The object of this name, empty where there is none. Raises ElementError."""
    found = parent.get(name) or {}
    if not isinstance(found, dict):
        raise ElementError(f"its {name} is not an object", _AS_FHIR)
    return found


def text_of(parent: Element, name: str) -> str:
    """The text of this name, empty where there is none. Raises ElementError."""
    found = parent.get(name) or ""
    if not isinstance(found, str):
        raise ElementError(f"its {name} is not text", _AS_FHIR)
    return found
