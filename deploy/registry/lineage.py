"""Which release another one's study began with: by the manifests that are kept, whose hashes the ledger has."""

import json
from dataclasses import dataclass, replace

from ...common.crypto.identity import sha256
from ...common.errors import StudyError
from ...common.study.artefacts import MANIFEST
from .entries import Reference
from .folder import RegistryFolder
from .releases import Registry, Release


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Of a ``release``: which releases of its registry it goes back to, and which go back to it.

    All that is asked raises StudyError where a manifest that it needs is not the one that was released.
    """

    folder: RegistryFolder
    registry: Registry
    release: Release

    @property
    def began_with(self) -> str | None:
        """The hash of the manifest of the study whose adapter its own began with; None where it began with no such."""
        return _began_with(self.folder, self.release)

    @property
    def before(self) -> tuple[Release, ...]:
        """What it goes back to, the nearest first."""
        by_study = {each.released.facts.manifest_sha256: each for each in self.registry.releases.values()}
        found: dict[Reference, Release] = {}
        earlier = by_study.get(self.began_with or "")
        while earlier is not None and earlier.adapter not in found:  # a manifest has the hash of the one before
            found[earlier.adapter] = earlier
            earlier = by_study.get(_began_with(self.folder, earlier) or "")
        return tuple(found.values())

    @property
    def withdrawn(self) -> tuple[Release, ...]:
        """Of these, what was withdrawn."""
        return tuple(each for each in self.before if each.withdrawn is not None)

    @property
    def after(self) -> tuple[Release, ...]:
        """What goes back to it, over whatever lies between."""
        return tuple(
            each
            for each in self.registry.releases.values()
            if self.release.adapter in {earlier.adapter for earlier in replace(self, release=each).before}
        )


def _began_with(folder: RegistryFolder, release: Release) -> str | None:
    """As every version of this program writes it."""
    path = folder.place(release.adapter) / MANIFEST
    data = path.read_bytes() if path.exists() else b""
    if sha256(data) != release.released.facts.files.get(MANIFEST):
        raise StudyError(
            f"{path} is not what was released",
            why="which release another one's study began with stands there, and whether that one was withdrawn",
            fix="put it back as it was: whoever received the release has it; then `grandrounds registry show` says it",
        )
    found: str | None = json.loads(data)["study"]["model"].get("first_study")
    return found
