"""What a registry's ledger comes to: its releases and what became of each. Pure: entries in, state out."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Self

from ...common.errors import GrandRoundsError, LedgerError, StudyError
from ...common.ledger.chain import Entry, Ledger
from .entries import REGISTRY_BOOK, Chosen, Incident, Noted, Opened, Received, Reference, Released, Withdrawn, body_of


@dataclass(frozen=True, kw_only=True)
class Release:
    """A version of an adapter, and what became of it."""

    released: Released
    withdrawn: Withdrawn | None = None
    received: tuple[Received, ...] = ()
    incidents: tuple[Incident, ...] = ()

    @property
    def adapter(self) -> Reference:
        """Its name and version."""
        return self.released.adapter


@dataclass
class Registry:
    """A registry after the entries of its ``ledger``, each checked against those before it.

    ``in_use`` has the version of each name that is; none where the one that was in use is withdrawn.
    """

    ledger: Ledger = field(default_factory=lambda: Ledger(book=REGISTRY_BOOK))
    notes: list[Noted] = field(default_factory=list)
    releases: dict[Reference, Release] = field(default_factory=dict)
    in_use: dict[str, int] = field(default_factory=dict)
    incidents: list[Incident] = field(default_factory=list)

    @classmethod
    def of(cls, lines: Iterable[bytes]) -> Self:
        """What the lines of a ledger come to. Raises LedgerError where no honest registry contains them."""
        registry = cls()
        for number, line in enumerate(lines, start=1):
            try:
                new = registry.ledger.continuation([line])
                if not new:
                    raise _cannot("it stands there already", "nothing is entered twice")
                registry.take(new[0])
            except GrandRoundsError as error:
                raise not_whole(f"line {number}: {error.what}") from error
        if not registry.notes:
            raise not_whole("it has no entry")
        return registry

    @property
    def key(self) -> str:
        """The public key of whoever keeps the registry, by which every entry is signed."""
        return next(iter(self.ledger)).author

    @property
    def called(self) -> str:
        """What people call it."""
        opened = self.notes[0]
        return opened.called if isinstance(opened, Opened) else ""

    def take(self, entry: Entry) -> None:
        """Take an entry that continues the ledger. Raises StudyError where it cannot be, and LedgerError."""
        body = body_of(entry)
        if isinstance(body, Opened) != (len(self.ledger) == 0):
            raise _cannot("a registry is opened once, by its first entry", "nothing stands before its beginning")
        if len(self.ledger) and entry.author != self.key:
            raise _cannot("it is signed by another key than the registry's", "one key keeps a registry")
        self._note(body)
        self.ledger.add([entry])
        self.notes.append(body)

    def versions(self, name: str) -> list[Release]:
        """All releases of a name, the oldest first."""
        return [release for adapter, release in self.releases.items() if adapter.name == name]

    def find(self, written: str) -> Release:
        """The release of ``name@version``, or the one in use of ``name``. Raises StudyError where there is none."""
        name, _, version = written.partition("@")
        if not self.versions(name):
            known = sorted({adapter.name for adapter in self.releases})
            raise StudyError(
                f"{written} is no release here",
                why="an adapter has a name once it is added",
                fix=f"name one of {', '.join(known)}" if known else "add one: `grandrounds registry add`",
            )
        known_versions = ", ".join(str(release.adapter) for release in self.versions(name))
        if not version and name not in self.in_use:
            raise StudyError(
                f"no version of {name} is in use",
                why="the one that was is withdrawn",
                fix=f"name one of {known_versions}; `grandrounds registry rollback` puts one in use",
            )
        wanted = version if version else str(self.in_use[name])
        found = (
            self.releases.get(Reference(name=name, version=int(wanted)))
            if re.fullmatch(r"[1-9]\d{0,8}", wanted)
            else None
        )
        if found is None:
            raise StudyError(
                f"{written} is no release here", why=f"{name} has other versions", fix=f"name one of {known_versions}"
            )
        return found

    def usable(self, adapter: Reference) -> Release:
        """A release that was not withdrawn. Raises StudyError."""
        release = self._known(adapter)
        if release.withdrawn is not None:
            raise _cannot(
                f"{adapter} was withdrawn on {release.withdrawn.at[:10]}: {release.withdrawn.reason}",
                "nobody is to use or get it any more",
                "name another version; `grandrounds registry list` has all",
            )
        return release

    def _note(self, body: Noted) -> None:
        match body:
            case Released():
                self._release(body)
            case Withdrawn():
                release = self.usable(body.adapter)
                self.releases[body.adapter] = replace(release, withdrawn=body)
                if self.in_use.get(body.adapter.name) == body.adapter.version:
                    del self.in_use[body.adapter.name]
            case Chosen():
                self.usable(body.adapter)
                if self.in_use.get(body.adapter.name) == body.adapter.version:
                    raise _cannot(f"{body.adapter} is in use", "nothing would change")
                self.in_use[body.adapter.name] = body.adapter.version
            case Received():
                release = self.usable(body.adapter)
                self.releases[body.adapter] = replace(release, received=(*release.received, body))
            case Incident():
                for adapter in body.about:
                    release = self._known(adapter)
                    self.releases[adapter] = replace(release, incidents=(*release.incidents, body))
                self.incidents.append(body)

    def _release(self, body: Released) -> None:
        name, version = body.adapter.name, body.adapter.version
        if version != len(self.versions(name)) + 1:
            raise _cannot(f"{body.adapter} is not the next version of {name}", "versions are counted from 1")
        for release in self.releases.values():
            if release.released.facts.study_id == body.facts.study_id:
                raise _cannot(f"its study is {release.adapter}", "a study leaves one adapter, and costs its ε once")
        self.releases[body.adapter] = Release(released=body)
        self.in_use[name] = version

    def _known(self, adapter: Reference) -> Release:
        if adapter not in self.releases:
            raise _cannot(f"{adapter} is no release", "what is said has to be about one")
        return self.releases[adapter]


def _cannot(what: str, why: str, fix: str = "see what the registry has: `grandrounds registry list`") -> StudyError:
    return StudyError(what, why=why, fix=fix)


def not_whole(what: str) -> LedgerError:
    """A registry's ledger that is damaged, or that nobody wrote by these commands."""
    return LedgerError(
        f"the registry's ledger is not whole: {what}",
        why="who has which adapter, and what was withdrawn, stands there and nowhere else",
        fix="put back the file as it was, from whoever has a copy; nothing is written until then",
    )
