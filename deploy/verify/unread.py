"""A ledger that another version wrote, in a form that this one does not read: what holds of it in any form."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ...common.crypto.identity import canonical_json, sha256
from ...common.errors import LedgerError
from ...common.ledger import entries
from ...common.ledger.chain import Entry, EntryType, Ledger, UnknownFormError, author_of, broken
from ...common.study.artefacts import ADAPTER, CORE, LEDGER, MANIFEST, RESULTS
from ...common.study.manifest import MANIFEST_LABEL
from .case import INCOMPLETE, Case, DisagreesError, OpenError

_UNKNOWN: Final = "is of a form that this program does not know"
_ANOTHER: Final = "has a manifest that is not of the same server, or not signed by it"
_AFTER_END: Final = "stands after the study's end"
_LATER: Final = "; a later manifest follows it, and this program cannot show that the sites agreed to that"
_KEY = re.compile(r"[0-9a-f]{64}")


class _BeyondError(Exception):
    """The next entry may be what another version writes there, and this one cannot tell."""


@dataclass
class UnreadLedger:
    """Entries of which nothing is taken but chain, signatures and what was hashed.

    All are signed by one ``server``, which every manifest names: whoever vouches for one of them vouches for it. That
    sites agreed to another server cannot be seen in an unknown form, so that the reading ends there.

    Attributes:
        server: the public key; None where the first manifest names none that this program can see.
        files: SHA-256 by path, as the study was closed; empty where it was not, or where no ``server`` can be seen.
        beyond: what the next line is, with which the reading ended; "" where all were read.
    """

    ledger: Ledger = field(default_factory=Ledger)
    manifests: list[Any] = field(default_factory=list)
    server: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    is_closed: bool = False
    beyond: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether all lines were read; else what follows may have another manifest, or end the study."""
        return not self.beyond

    @property
    def hashes(self) -> list[str]:
        """The manifests' SHA-256, as every message of the study repeats it."""
        return [sha256(MANIFEST_LABEL + canonical_json(manifest)) for manifest in self.manifests]

    def read(self, lines: Sequence[bytes]) -> None:
        """Add lines, up to the first that only its own version can judge. Raises LedgerError at one that none wrote."""
        for number, line in enumerate(lines, start=1):
            try:
                self._take(line)
            except UnknownFormError:
                self.beyond = _UNKNOWN
                return
            except _BeyondError as error:
                self.beyond = str(error)
                return
            except LedgerError as error:
                raise broken(f"line {number}: {error.what}") from error

    def _take(self, line: bytes) -> None:
        try:
            found = self.ledger.continuation([line])
        except UnknownFormError:
            self._check_author(author_of(line))
            raise
        if not found:
            raise broken("it stands there already")
        (entry,) = found
        is_study = entry.type is EntryType.STUDY
        if not self.manifests and not is_study:
            raise broken("the ledger does not begin with a study")
        if not is_study:
            self._check_author(entry.author)
        if self.is_closed and entry.type is not EntryType.CLOSING_SIGNATURE:
            raise _BeyondError(_AFTER_END)
        if is_study:
            self._take_manifest(entry)
        if entry.type is EntryType.STUDY_CLOSED:
            files = entries.StudyClosed.of(entry).files
            self.files = dict(files) if self.server else {}
            self.is_closed = True
        self.ledger.add(found)

    def _take_manifest(self, entry: Entry) -> None:
        manifest = entry.body.get("manifest")
        server = _server_of(manifest)
        if not self.manifests:
            self.server = server
            self._check_author(entry.author)
        elif server != self.server or self.server not in (None, entry.author):
            raise _BeyondError(_ANOTHER)
        self.manifests.append(manifest)

    def _check_author(self, author: str | None) -> None:
        if self.server not in (None, author):
            raise broken("it is not signed by the server that its manifest names")


def _server_of(manifest: Any) -> str | None:
    key = manifest.get("server_key") if isinstance(manifest, dict) else None
    return key if isinstance(key, str) and _KEY.fullmatch(key) else None


@functools.lru_cache(maxsize=1)
def unread(data: bytes) -> UnreadLedger:
    """What holds of a ledger in any form. Raises DisagreesError where it is none, whoever wrote it."""
    *lines, rest = data.split(b"\n")
    found = UnreadLedger()
    try:
        found.read(lines)
    except LedgerError as error:
        raise DisagreesError(error.what) from error
    if rest:
        raise DisagreesError(INCOMPLETE)
    return found


def unread_ledger(case: Case) -> str:
    """Of the ledger: that each entry continues the one before, and is signed by the server that its manifest names."""
    found = unread(case.read(LEDGER))
    signed = " and signed by the server that its manifest names" if found.server else ""
    more = f"; the next {found.beyond}" if found.beyond else ""
    return f"{len(found.ledger)} entries are chained{signed}{more}"


def unread_manifest(case: Case) -> str:
    """Of the manifest: that the file is the ledger's last."""
    found, there = _of(case), case.read(MANIFEST)
    if not found.is_whole:
        return ""
    if there != canonical_json(found.manifests[-1]):
        raise DisagreesError(f"{MANIFEST} is not the ledger's last, {found.hashes[-1]}")
    return f"it is the ledger's last, SHA-256 {found.hashes[-1]}"


def unread_authorship(case: Case) -> str:
    """Of whose study it is: that one of its manifests has the hash that somebody vouched for; and whether the last."""
    found = _of(case)
    hashes = ", ".join(found.hashes)
    more = f"; entry {len(found.ledger)} {found.beyond}" if found.beyond else ""
    if case.manifest_hash is None:
        return f"its manifest's SHA-256 is {hashes}{more}"
    if case.vouched not in found.hashes:
        if found.is_whole:
            raise DisagreesError(f"this study's manifest is {hashes}")
        return f"its manifest is {hashes}, unless a later entry has the one that you know{more}"
    is_later = case.vouched != found.hashes[-1] or found.beyond == _ANOTHER
    return f"it has the manifest that you know{more}{_LATER if is_later else ''}"


def unread_files(case: Case) -> str:
    """Of the files: that none that is there is another than the study was closed with, or cannot be read."""
    found, evidence = _of(case).files, case.evidence
    if evidence.faults:
        raise DisagreesError("; ".join(f"{path}: {fault}" for path, fault in sorted(evidence.faults.items())))
    if not found:
        return ""
    there = {path: sha256(evidence.files[path]) for path in {*RESULTS, CORE, *found} & evidence.files.keys()}
    wrong = sorted(path for path, hash_ in there.items() if hash_ != found.get(path))
    wrong += [path for name in evidence.strangers if (path := f"{ADAPTER}/{name}") not in found]
    if wrong:
        raise DisagreesError(f"not as the study was closed: {', '.join(wrong[:10])}")
    return f"{len(there)} of the {len(found)} with which it was closed are there, as they were"


def _of(case: Case) -> UnreadLedger:
    try:
        return unread(case.read(LEDGER))
    except DisagreesError as error:  # as its own claim says
        raise OpenError("the ledger is not whole") from error
