"""Binary resources of a FHIR export, which attachments name by ``url``: noted where they are, and read when needed."""

import hashlib
from typing import Final

from .elements import Element, ElementError, resource_of, text_of
from .fhir_references import referred
from .files import SourceFile

BINARY: Final = "Binary"


class Binaries:
    """The Binary resources of an export, by their identifiers: none of their contents is held.

    An identifier of several that differ, as of two servers or versions, names none: it may be another patient's.
    """

    def __init__(self) -> None:
        self._places: dict[str, tuple[SourceFile, int | None, bytes]] = {}
        self._ambiguous: set[str] = set()

    def add(self, line: bytes, file: SourceFile, offset: int | None) -> None:
        """Note where a resource begins; None where nothing can be read from there on, as in a compressed file."""
        try:
            identifier, digest = text_of(resource_of(line), "id"), hashlib.sha256(line.strip()).digest()
        except ElementError:  # no attachment can name it
            return
        if self._places.setdefault(identifier, (file, offset, digest))[-1] != digest:
            self._ambiguous.add(identifier)

    def named(self, url: str) -> Element | None:
        """The resource that a url is of, None where the export has none. Raises ElementError."""
        kind, identifier = referred({"reference": url})
        if kind != BINARY or identifier not in self._places:
            return None
        if identifier in self._ambiguous:
            what = "its attachment is a Binary whose id another one has, too"
            raise ElementError(what, "export each Binary in one version, and of one server, or the attachment inline")
        file, offset, _ = self._places[identifier]
        if offset is None:
            raise ElementError("its attachment is a Binary in a compressed file", "unpack the files of Binary")
        with file.path.open("rb") as lines:
            lines.seek(offset)
            return resource_of(lines.readline())
