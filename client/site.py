"""A site's folder, and how its resident worker comes out of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from ..common.adapter import vector_from_bytes
from ..common.errors import StorageError
from ..common.files import write_atomically
from ..common.identity import Identity, Name
from ..common.key_file import read_key
from ..common.language_model import LanguageModel
from ..common.manifest import Manifest
from ..common.model_folder import model_folder_sha256
from ..common.study import Section, Study, read_toml, validated
from .admission import admit
from .agreement import join
from .budget import Budget
from .cohort import Cohort
from .data import Example, Tokenisation
from .grad_samples import GradSampler
from .independence import independent_batch_size
from .opt_outs import without_opted_out
from .policy import Policy, read_policy
from .records import Record, read_records
from .reservations import Reservations
from .resident import Resident
from .update import SiteUpdate

KEY: Final = "key"
MANIFEST: Final = "study.json"
POLICY: Final = "policy.toml"
SETTINGS: Final = "site.toml"
FROZEN_ADAPTER: Final = "frozen-adapter.bin"
_PAUSED: Final = "paused"


class Settings(Section):
    """What a site's machine has where: ``users`` are ids of those who may ask the worker, beside its own.

    ``runtime_port`` is the SuperNode's, on loopback.
    """

    name: Name
    data: Path = Field(strict=False)
    model: Path = Field(strict=False)
    socket: Path = Field(default=Path("run/worker.sock"), strict=False)
    users: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(), strict=False)
    runtime_port: int = Field(default=9094, ge=1, le=65535)


@dataclass(frozen=True)
class SiteFolder:
    """What a site keeps below ``path``, and nobody else's: its key, policy and settings; the study that it joined."""

    path: Path

    @property
    def state(self) -> Path:
        """Where budgets, attempts and the ledger are."""
        return self.path / "state"

    @property
    def log(self) -> Path:
        """The file that the worker's log goes to."""
        return self.path / "worker.log"

    def settings(self) -> Settings:
        """The settings, whose paths start from this folder. Raises StudyError that names the field."""
        settings = validated(Settings, read_toml(self.path / SETTINGS))
        places = {name: self.path / getattr(settings, name) for name in ("data", "model", "socket")}
        return settings.model_copy(update=places)

    def policy(self) -> Policy:
        """The site's policy. Raises StudyError that names the field."""
        return read_policy(self.path / POLICY)

    def identity(self) -> Identity:
        """The site's key: 32 bytes in hex, which no other user may read. Raises StorageError."""
        path = self.path / KEY
        try:
            return read_key(path, whose="this site's", instead="a new key")
        except (OSError, ValueError) as error:
            raise _damaged(path) from error

    def manifest(self) -> Manifest:
        """The manifest of the study that the site joined. Raises StorageError."""
        path = self.path / MANIFEST
        try:
            return Manifest.model_validate_json(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise _damaged(path) from error

    def frozen_adapter(self) -> bytes:
        """The adapter's public tensors, as little-endian float32, from the study's bundle. Raises StorageError."""
        path = self.path / FROZEN_ADAPTER
        try:
            return path.read_bytes()
        except OSError as error:
            raise _damaged(path) from error

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


def open_site(folder: SiteFolder) -> Resident:
    """The resident worker of a site's folder: everything is loaded and judged here, before the first message.

    Joins the study again, which changes nothing where it was joined, before a record is read. Raises StorageError,
    also where another worker holds the state; StudyError, ModelError, PrivacyError, DataError and LedgerError.
    """
    settings, identity, manifest, policy = folder.settings(), folder.identity(), folder.manifest(), folder.policy()
    budget = Budget.open(folder.state)
    try:
        model = open_model(settings, manifest, identity=identity, frozen_adapter=folder.frozen_adapter())
        join(manifest, policy, name=settings.name, reservations=Reservations(budget.database))
        return Resident(
            name=settings.name,
            identity=identity,
            manifest=manifest,
            release=open_update(settings, manifest, policy, model=model),
            budget=budget,
            is_paused=lambda: folder.is_paused,
        )
    except BaseException:
        budget.close()
        raise


def open_model(settings: Settings, manifest: Manifest, *, identity: Identity, frozen_adapter: bytes) -> LanguageModel:
    """The study's model as this site has it, and no record read. Raises ModelError, StudyError and EnvelopeError."""
    model = LanguageModel.load(settings.model, manifest.study.model.lora, seed=0)  # what it draws is replaced
    model.set_frozen_adapter(vector_from_bytes(frozen_adapter, dimension=model.frozen_layout.dimension))
    model_sha256 = model_folder_sha256(settings.model)
    admit(manifest, name=settings.name, identity=identity, model=model, model_sha256=model_sha256)
    return model


def open_update(settings: Settings, manifest: Manifest, policy: Policy, *, model: LanguageModel) -> SiteUpdate:
    """What the site computes from its records, which are read and judged here. Raises DataError and ModelError."""
    records = read_records(settings.data)
    if policy.data.opted_out is not None:
        records = without_opted_out(records, policy.data.opted_out)
    tokenisation = Tokenisation.load(str(settings.model), max_tokens=manifest.study.data.max_tokens)
    return SiteUpdate(
        manifest=manifest,
        name=settings.name,
        cohort=cohort_of(manifest.study, records, tokenisation),
        sampler=sampler_of(manifest.study, model),
    )


def cohort_of(study: Study, records: Sequence[Record], tokenisation: Tokenisation) -> Cohort[Example]:
    """The records as the study's privacy units. Raises DataError, and ModelError as ``Tokenisation.example`` does."""
    patients = [record.patient_id for record in records]
    examples = tokenisation.examples(records)
    return Cohort.grouped(zip(patients, examples, strict=True), privacy_unit=study.privacy.unit)


def sampler_of(study: Study, model: LanguageModel) -> GradSampler:
    """Gradients in the study's physical batches, or one record a batch where records would touch one another.

    Raises ModelError.
    """
    max_tokens = study.data.max_tokens
    batch_size = independent_batch_size(model, batch_size=study.training.physical_batch, max_tokens=max_tokens)
    return GradSampler(model, batch_size=batch_size, max_tokens=max_tokens)


def _damaged(path: Path) -> StorageError:
    return StorageError(
        f"{path} is damaged or cannot be read",
        why="the worker speaks for the site with it",
        fix="put back the file; what the site spent is in its state, which must never be put back from a copy",
    )
