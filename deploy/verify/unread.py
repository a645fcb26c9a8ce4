"""A ledger that another version wrote, in a form that this one does not read: what holds of it in any form."""

import functools
from dataclasses import dataclass, field
from typing import Any

from ...common.crypto.identity import canonical_json, sha256
from ...common.errors import LedgerError
from ...common.ledger import entries
from ...common.ledger.chain import EntryType, Ledger, UnknownFormError, author_of, broken
from ...common.study.artefacts import ADAPTER, LEDGER, MANIFEST
from ...common.study.manifest import MANIFEST_LABEL
from .case import INCOMPLETE, Case, DisagreesError, OpenError


@dataclass
class UnreadLedger:
    """Entries of which nothing is taken but chain, signatures and what was hashed: of all lines, if it ``is_whole``.

    Else a line was of another form even there; what follows may have another manifest, or end the study.
    """

    ledger: Ledger = field(default_factory=Ledger)
    manifests: list[Any] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    is_whole: bool = True

    @property
    def hashes(self) -> list[str]:
        """The manifests' SHA-256, as every message of the study repeats it."""
        return [sha256(MANIFEST_LABEL + canonical_json(manifest)) for manifest in self.manifests]

    def take(self, line: bytes) -> None:
        """Add a line. Raises LedgerError where no version's server wrote it there, UnknownFormError as the chain."""
        try:
            found = self.ledger.continuation([line])
        except UnknownFormError:
            self._check_author(author_of(line))
            raise
        if not found:
            raise broken("it stands there already")
        (entry,) = found
        if entry.type is EntryType.STUDY:
            self.manifests.append(entry.body.get("manifest"))
        if entry.type is EntryType.STUDY_CLOSED:
            self.files = dict(entries.StudyClosed.of(entry).files)
        self._check_author(entry.author)
        self.ledger.add(found)

    def _check_author(self, author: str | None) -> None:
        manifest = self.manifests[-1] if self.manifests else None
        if isinstance(manifest, dict) and manifest.get("server_key", author) != author:
            raise broken("it is not signed by the study's server")


@functools.lru_cache(maxsize=1)
def unread(data: bytes) -> UnreadLedger:
    """What holds of a ledger in any form. Raises DisagreesError where it is none, whoever wrote it."""
    *lines, rest = data.split(b"\n")
    found = UnreadLedger()
    for number, line in enumerate(lines, start=1):
        try:
            found.take(line)
        except UnknownFormError:
            found.is_whole = False
            break
        except LedgerError as error:
            raise DisagreesError(f"line {number}: {error.what}") from error
    if rest:
        raise DisagreesError(INCOMPLETE)
    return found


def unread_ledger(case: Case) -> str:
    """Of the ledger: that each entry continues the one before, and is signed by the study's server."""
    found = unread(case.read(LEDGER))
    more = "" if found.is_whole else "; the next is of a form that this program does not know"
    return f"{len(found.ledger)} entries are chained and signed by the study's server{more}"


def unread_manifest(case: Case) -> str:
    """Of the manifest: that the file is the ledger's last."""
    found, there = _of(case), case.read(MANIFEST)
    if not found.is_whole:
        return ""
    if there != canonical_json(found.manifests[-1]):
        raise DisagreesError(f"{MANIFEST} is not the manifest in force, {found.hashes[-1]}")
    return f"it is the ledger's last, SHA-256 {found.hashes[-1]}"


def unread_authorship(case: Case) -> str:
    """Of whose study it is: that one of its manifests has the hash that somebody vouched for."""
    found = _of(case)
    hashes = ", ".join(found.hashes) or "none that this program knows"
    if case.manifest_hash is None:
        return f"its manifest's SHA-256 is {hashes}"
    if case.vouched in found.hashes:
        return "it has the manifest that you know"
    if found.is_whole:
        raise DisagreesError(f"this study's manifest is {hashes}")
    return f"its manifest is {hashes}, unless a later entry has the one that you know"


def unread_files(case: Case) -> str:
    """Of the files: that none that is there is another than the study was closed with."""
    found = _of(case).files
    if not found:
        return ""
    there = {path: sha256(case.read(path)) for path in found.keys() & case.evidence.files.keys()}
    wrong = sorted(path for path, hash_ in there.items() if hash_ != found[path])
    wrong += [path for name in case.evidence.strangers if (path := f"{ADAPTER}/{name}") not in found]
    if wrong:
        raise DisagreesError(f"not as the study was closed: {', '.join(wrong[:10])}")
    return f"{len(there)} of the {len(found)} with which it was closed are there, as they were"


def _of(case: Case) -> UnreadLedger:
    try:
        return unread(case.read(LEDGER))
    except DisagreesError as error:  # as its own claim says
        raise OpenError("the ledger is not whole") from error
