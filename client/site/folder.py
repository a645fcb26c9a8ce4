"""A site's folder: its key, policy, settings and state, and the studies that it joined."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from ...common.crypto.identity import Identity, Name, read_key
from ...common.errors import StorageError, StudyError
from ...common.model.devices import PROCESSORS, Checkpointing, Devices, Sharding
from ...common.schema import Section, read_settings
from ...common.sources.identifiers import Similar
from ...common.sources.source import DataSource
from ...common.study.artefacts import MANIFEST
from ...common.system.files import write_atomically
from ..budget.patients import FingerprintKey
from ..budget.policy import POLICY, Policy, read_policy
from ..minimisation.minimiser import Minimiser, check_columns
from .joined_study import LEFT, JoinedStudy, damaged, not_joined

KEY: Final = "key"
FINGERPRINT_KEY: Final = "fingerprint.key"
SETTINGS: Final = "site.toml"
_PAUSED: Final = "paused"
_NAME_DIGITS: Final = 12  # of a study's id


class SiteSettings(Section):
    """What a site's machine has where, and as whom its two parts run (users by name, or by an id in quotes).

    ``held_out`` are records that nothing trains on. ``devices`` are where the model computes, several of them parts of
    each step; ``shard`` says whether each then holds a part of the base model alone, and ``checkpointing`` whether
    activations are computed again in the backward pass, both to save memory. With ``training_view`` the worker writes
    what each step was, without noise, for its own user alone. ``similar_identifiers`` says whether those that differ in
    spelling alone are one patient's; unsaid, such records are refused. ``users`` are ids of those who may ask the
    worker beside these. ``socket`` starts from a study's folder, or has ``{study}`` in it; ``runtime_port`` is the
    first study's SuperNode's, on loopback, and the others' are above it.
    """

    name: Name
    data: DataSource
    held_out: DataSource | None = None
    similar_identifiers: Similar | None = None
    model: Path = Field(strict=False)
    devices: Devices = (PROCESSORS,)
    shard: Sharding = "auto"
    checkpointing: Checkpointing = "auto"
    training_view: bool = False
    socket: Path = Field(default=Path("run/worker.sock"), strict=False)
    users: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(), strict=False)
    worker_user: str | None = None
    node_user: str | None = None
    runtime_port: int = Field(default=9094, ge=1, le=65535)

    @model_validator(mode="after")
    def _parts_have_places(self) -> Self:
        if self.shard == "on" and len(self.devices) == 1:
            raise ValueError('shard: "on" needs several devices, on each of which a part of the base model lies')
        return self

    @property
    def may_shard(self) -> bool:
        """Whether the base model may lie in parts on the devices; processors share one memory, and are not asked."""
        of_gpus = len(self.devices) > 1 and self.devices[0] != PROCESSORS
        return self.shard == "on" or (self.shard == "auto" and of_gpus)


@dataclass(frozen=True)
class SiteFolder:
    """What a site keeps below ``path``, and nobody else's: key, policy, settings, one state, its studies' folders."""

    path: Path

    @property
    def state(self) -> Path:
        """Where budgets, attempts and the ledger are."""
        return self.path / "state"

    @property
    def studies(self) -> Path:
        """Where each study that was joined has its folder."""
        return self.path / "studies"

    @property
    def prepared(self) -> Path:
        """Where records are, tokenised, for the worker alone."""
        return self.path / "prepared"

    @property
    def node_key(self) -> Path:
        """The key by which Flower knows the site's nodes; each study's has a copy."""
        return self.path / "node" / "node.key"

    def settings(self) -> SiteSettings:
        """The settings, whose paths start from this folder. Raises StudyError that names the field."""
        settings = read_settings(SiteSettings, self.path / SETTINGS, made_by="grandrounds client init")
        held_out = settings.held_out and settings.held_out.below(self.path)
        below = {"data": settings.data.below(self.path), "held_out": held_out, "model": self.path / settings.model}
        return settings.model_copy(update=below)

    def policy(self) -> Policy:
        """The site's policy. Raises StudyError that names the field."""
        return read_policy(self.path / POLICY)

    def identity(self) -> Identity:
        """The site's key: 32 bytes in hex, which no other user may read. Raises StorageError."""
        path = self.path / KEY
        try:
            return read_key(path, whose="this site's", instead="a new key")
        except FileNotFoundError as error:
            raise StorageError(
                f"there is no {path}",
                why="the site signs with it, and the others know the site by it",
                fix="put it back; `grandrounds client init` makes a new key, which is another site's to all others",
            ) from error
        except (OSError, ValueError) as error:
            raise damaged(path) from error

    def fingerprint_key(self) -> FingerprintKey:
        """The secret under which the site's state knows patients. Raises StorageError."""
        return FingerprintKey.read(self.path / FINGERPRINT_KEY)

    def minimiser(self) -> Minimiser:
        """What the policy takes out of the records. Raises StudyError, DataError and StorageError."""
        rules = self.policy().minimise
        check_columns(rules, self.settings().data)
        return Minimiser(rules, self.fingerprint_key().keyed)

    @property
    def has_lived(self) -> bool:
        """Whether something here shows that there was a state: a key, a study, results or what was left."""
        return any((self.path / name).exists() for name in (KEY, LEFT)) or any(self.studies.glob("*/*"))

    def joined(self) -> list[JoinedStudy]:
        """The studies that the site takes part in, by name."""
        return [JoinedStudy(path.parent) for path in sorted(self.studies.glob(f"*/{MANIFEST}"))]

    def study(self, name: str = "") -> JoinedStudy:
        """The one study whose name begins so. Raises StudyError where there is none, or more than one."""
        whole = JoinedStudy(self.studies / name)
        if name.isalnum() and whole.path.is_dir():  # which needs no right to see the others
            return whole
        found = [study for study in self.joined() if study.name.startswith(name)]
        if not found and not name:
            self.settings()  # without which this is no site's folder
            raise not_joined(self.path)
        if len(found) != 1:
            names = ", ".join(map(_called, self.joined())) or "none"
            begun = f" whose name begins with {name!r}" if name else ""
            raise StudyError(
                f"{self.path} has {len(found) or 'no'} {'study' if not found else 'studies'}{begun}",
                why="each has a worker of its own, and this is for one",
                fix=f"name one of those that were joined: {names}",
            )
        return found[0]

    def of(self, study_id: str) -> JoinedStudy:
        """The study of an id, joined or not."""
        return JoinedStudy(self.studies / study_id[:_NAME_DIGITS])

    @property
    def is_paused(self) -> bool:
        """Whether the site takes part in nothing new for now."""
        return (self.path / _PAUSED).exists()

    def pause(self) -> None:
        """Take part in nothing new, from the next message on and also after a restart. Raises StorageError."""
        write_atomically(self.path / _PAUSED, b"")

    def go_on(self) -> None:
        """Take part again."""
        (self.path / _PAUSED).unlink(missing_ok=True)


def _called(study: JoinedStudy) -> str:
    other = study.other_program
    return f"{study.name} (of {other})" if other else study.name
