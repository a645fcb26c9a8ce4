"""A simulation's folder: that of its study, and beside it the keys of all its parties, which share one machine."""

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...common.crypto.identity import Identity
from ...common.study.artefacts import AUDIT, MANIFEST, PREPARED
from ...common.study.manifest import Manifest
from ...common.system.files import make_folder, write_atomically
from ...server.run.study_folder import StudyFolder, damaged, unwritable

_PRIVATE: Final = "server/private.json"
_PREPARED: Final = "server/prepared"


@dataclass(frozen=True, kw_only=True)
class Keys:
    """The signing keys of a simulation, whose parties share one machine."""

    server: Identity
    sites: dict[str, Identity]

    @classmethod
    def generate(cls, names: Iterable[str]) -> "Keys":
        """New ones."""
        return cls(server=Identity.generate(), sites={name: Identity.generate() for name in names})


@dataclass(frozen=True, kw_only=True)
class Private:
    """What a simulation needs to go on and nobody else may have: keys, the seed of the frozen adapter, its settings."""

    keys: Keys
    seed: int
    settings: dict[str, Any]


class SimulationFolder(StudyFolder):
    """A study's folder with what a simulation needs to go on."""

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """Until ``begin``: whoever is refused finds the folder empty again, and can give it to the mended study."""
        try:
            yield
        except BaseException:
            if not (self.path / MANIFEST).exists():
                for path in (_PRIVATE, PREPARED):
                    shutil.rmtree((self.path / path).parent, ignore_errors=True)
                (self.path / AUDIT).unlink(missing_ok=True)
            raise

    def begin(self, manifest: Manifest, private: Private) -> None:
        """Write what ``open`` needs; the manifest, in its canonical form, comes last."""
        keys = {name: identity.secret.hex() for name, identity in private.keys.sites.items()}
        fields = {
            "server_key": private.keys.server.secret.hex(),
            "site_keys": keys,
            "seed": private.seed,
            "settings": private.settings,
        }
        path = self.path / _PRIVATE
        try:
            make_folder(path.parent)
            path.parent.chmod(0o700)
        except OSError as error:
            raise unwritable(path.parent, error) from error
        write_atomically(path, json.dumps(fields).encode(), mode=0o600)
        self.save_manifest(manifest)

    @property
    def prepared(self) -> Path:
        """Where the sites' records are, tokenised, beside the keys."""
        return self.path / _PREPARED

    def private(self) -> Private:
        """What ``begin`` kept. Raises StorageError if it is damaged."""
        try:
            fields = json.loads((self.path / _PRIVATE).read_bytes())
            keys = {name: Identity.from_bytes(bytes.fromhex(key)) for name, key in fields["site_keys"].items()}
            server = Identity.from_bytes(bytes.fromhex(fields["server_key"]))
            return Private(
                keys=Keys(server=server, sites=keys), seed=int(fields["seed"]), settings=dict(fields["settings"])
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise damaged(self.path / _PRIVATE) from error
