"""A registry's folder: the key that signs, the ledger, and of each release what its study left."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from ...client.site.results import keep_results, write_results
from ...common.crypto.identity import Identity, make_key, read_key, sha256
from ...common.errors import StorageError, StudyError
from ...common.ledger.chain import Entry
from ...common.schema import validated
from ...common.system.files import make_private_folder, write_atomically
from ...common.system.locks import in_turn
from ...common.system.privileges import whoever_runs_this
from ..verify.case import Case
from ..verify.evidence import read_evidence
from .entries import REGISTRY_BOOK, Noted, Opened, Received, Reference, Released
from .facts import facts_of, require_verified
from .releases import Registry, not_whole

LEDGER_FILE: Final = "registry.jsonl"
KEY: Final = "key"
RELEASES: Final = "releases"

NotedT = TypeVar("NotedT", bound=Noted)


@dataclass(frozen=True)
class RegistryFolder:
    """``registry.jsonl`` and ``releases/`` can be copied to anybody, and are read without the ``key``.

    Whoever has the key can write another history. That this one was not rewritten shows against a head of its ledger
    that somebody else has noted, which ``verify`` takes.
    """

    path: Path

    @classmethod
    def create(cls, path: Path, *, called: str) -> "RegistryFolder":
        """Begin a registry. Raises StorageError where there is one, StudyError for words that are no line."""
        folder = cls(path)
        if folder.ledger.exists():
            raise StorageError(
                f"{path} has a registry",
                why="what stands in it is not written over",
                fix="use it, or name another folder",
            )
        body = _noted(Opened, called=called)
        make_private_folder(path)
        make_key(path / KEY)
        folder._append(Registry(), body)
        return folder

    @property
    def ledger(self) -> Path:
        """Where its entries are, one on each line."""
        return self.path / LEDGER_FILE

    def place(self, adapter: Reference) -> Path:
        """Where a release's files are, as its study left them."""
        return self.path / RELEASES / adapter.name / str(adapter.version)

    def read(self) -> Registry:
        """What the registry has come to. Raises StorageError where there is none, LedgerError where it is not whole."""
        try:
            data = self.ledger.read_bytes()
        except OSError as error:
            raise StorageError(
                f"{self.ledger} cannot be read: {error.strerror}",
                why="a registry is its ledger",
                fix=f"name the registry's folder, or begin one: grandrounds registry init {self.path}",
            ) from error
        *lines, rest = data.split(b"\n")
        if rest:
            raise not_whole("its last line is cut")
        return Registry.of(lines)

    def note(self, kind: type[Noted], **fields: Any) -> Registry:
        """Enter what happened now, of this ``kind``; on disk when this returns. What the registry is afterwards.

        Raises StudyError where it cannot be, LedgerError and StorageError; then nothing is written.
        """
        body = _noted(kind, **fields)
        with self._writing():
            registry = self.read()
            self._append(registry, body)
        return registry

    def add(
        self, study: Path, *, name: str, manifest_hash: str | None, assets: Mapping[str, str], without_privacy: bool
    ) -> Registry:
        """Release the adapter of a finished study, once every claim of its folder was recomputed.

        ``assets`` says what sites call the set of patients that they trained on. Raises StudyError where the study
        does not hold or is here already, StorageError and LedgerError.
        """
        validated(Reference, {"name": name, "version": 1}, why="by its name people ask for it")
        case = Case(evidence=read_evidence(study), manifest_hash=manifest_hash)
        unestablished = require_verified(case, without_privacy=without_privacy)
        manifest, facts = case.verified.manifest, facts_of(case)
        strangers = sorted(assets.keys() - manifest.site_keys.keys())
        if strangers:
            raise StudyError(
                f"{', '.join(strangers)}: the study's sites are {', '.join(sorted(manifest.site_keys))}",
                why="what a patient's data were used for is counted by site",
                fix="correct --asset SITE=NAME",
            )
        read = tuple(
            {"site": site, "key": key, "called": assets.get(site, site)}
            for site, key in sorted(manifest.site_keys.items())
        )
        with self._writing():
            registry = self.read()
            adapter = {"name": name, "version": len(registry.versions(name)) + 1}
            released = _noted(Released, adapter=adapter, facts=facts, assets=read, unestablished=unestablished)
            registry.take(self._sealed(registry, released))
            kept = {path: data for path, data in case.evidence.files.items() if path in facts.files}
            keep_results(self.place(released.adapter), kept)
            self._write(registry)
        return registry

    def case(self, released: Released) -> Case:
        """A release's files as evidence, compared with their hashes. Raises StorageError and StudyError."""
        place, facts = self.place(released.adapter), released.facts
        evidence = read_evidence(place)
        found = {path: sha256(data) for path, data in evidence.files.items()}
        wrong = sorted(path for path in facts.files.keys() | found.keys() if found.get(path) != facts.files.get(path))
        if wrong or evidence.strangers:
            raise StudyError(
                f"{place} is not what was released: {', '.join([*wrong, *evidence.strangers][:10])}",
                why="another adapter may do anything, and no claim of the study covers it",
                fix="put back the study's files as they were; whoever received the release has them",
            )
        return Case(evidence=evidence, manifest_hash=facts.manifest_sha256)

    def hand_out(self, released: Released, output: Path, *, receiver: str) -> Registry:
        """Enter who receives a release, then write their copy to a new folder; what the registry is afterwards.

        No copy is out that no entry names: whoever is stopped in between has an entry without one. Raises StorageError
        and StudyError, before anything is entered where its files are not those or there is such a folder.
        """
        files = self.case(released).evidence.files
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise StorageError(f"{output} exists", why="nothing is written over", fix="name a new folder")
        found = self.note(Received, adapter=released.adapter, receiver=receiver)
        write_results(output, files)
        return found

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self.read()  # so that nothing is made where there is no registry
        with in_turn(self.path / ".lock"):
            yield

    def _append(self, registry: Registry, body: Noted) -> None:
        registry.take(self._sealed(registry, body))
        self._write(registry)

    def _sealed(self, registry: Registry, body: Noted) -> Entry:
        return Entry.seal(
            self._identity(),
            entry_type=body.type,
            body=body.fields,
            sequence=len(registry.ledger),
            previous=registry.ledger.head,
            book=REGISTRY_BOOK,
        )

    def _write(self, registry: Registry) -> None:
        write_atomically(self.ledger, b"".join(line + b"\n" for line in registry.ledger.lines()))

    def _identity(self) -> Identity:
        path = self.path / KEY
        try:
            return read_key(path, whose="the registry's", instead="a new registry")
        except (OSError, ValueError) as error:
            raise StorageError(
                f"{path} cannot be used",
                why="every entry is signed by the registry's key; without it the registry can only be read",
                fix="run this as whoever keeps the registry, where its key is",
            ) from error


def _noted(kind: type[NotedT], **fields: Any) -> NotedT:
    """What happened now. Raises StudyError that names the field which is of the wrong form."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    # Whose login it was, and as whom it was done, where that is another.
    by = " as ".join(dict.fromkeys(reversed(whoever_runs_this().values())))
    return validated(kind, {**fields, "at": now, "by": by}, why="it stands in the registry for good, and is signed")
