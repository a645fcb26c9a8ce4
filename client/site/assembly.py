"""How a site's resident worker comes out of its folder and a study's."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...common.crypto.identity import Identity
from ...common.data.tokenisation import Tokenisation
from ...common.errors import StudyError
from ...common.model.adapter import vector_from_bytes
from ...common.model.base_folder import vocabulary_size_of
from ...common.model.devices import PROCESSORS, Checkpointing, Sharding, peak_memory_bytes, within_memory
from ...common.model.language_model import LanguageModel
from ...common.schema import known
from ...common.study.manifest import Manifest
from ...common.study.public_records import PublicRecords
from ...common.study.study import Study
from ...common.system.code_pin import check_code
from ..budget.agreement import join
from ..budget.patients import Patients
from ..budget.reservations import Reservations
from ..state.site_state import SiteState
from ..training.cohort import Cohort
from ..training.physical_batch import MachineSampler
from ..training.rank_processes import begin, start_ranks
from ..training.update import SiteUpdate
from ..worker.instant import AnswerInstant
from ..worker.service import WorkerService
from ..worker.worker import Worker
from .folder import SiteFolder, SiteSettings
from .joined_study import JoinedStudy
from .results import keep_results
from .site_records import SiteRecords
from .training_view import TrainingView

_log = logging.getLogger(__name__)

_WHY_ADMITTED = "the study's claim holds only at sites that run exactly what its manifest says"


def open_site(folder: SiteFolder, study: JoinedStudy) -> WorkerService:
    """The resident worker of a site in one study: everything is loaded and judged here, before the first message.

    Joins the study again, which changes nothing where it was joined, before a record is read. Raises StorageError,
    also where another worker holds the state; StudyError, ModelError, PrivacyError, DataError and LedgerError.
    """
    settings, identity, manifest, policy = folder.settings(), folder.identity(), study.manifest(), folder.policy()
    state = SiteState.open_existing(folder.state, lock=study.lock)
    try:
        frozen_adapter = study.frozen_adapter()
        model = open_model(settings, manifest, identity=identity, frozen_adapter=frozen_adapter)
        join(manifest, policy, name=settings.name, reservations=Reservations(state.database))
        site_records = SiteRecords.open(folder, manifest.study)
        patients = Patients(state.database, folder.fingerprint_key())
        patients.claim(policy.data.asset, site_records.identifiers)
        public = study.public_records(manifest)
        update = open_update(settings, manifest, site_records, model=model, public=public)
        if settings.training_view:
            view = TrainingView(
                study.training,
                at=lambda: (worker.round, worker.last_attempt),
                gpu_bytes=lambda: peak_memory_bytes(model.device),
            )
            update = replace(update, observer=view)
        for line in (
            *site_records.told(),
            *site_records.told_far(manifest, settings.name),
        ):  # once, before the first message: what is logged later tells of no record
            _log.warning(line)
        worker = Worker(
            name=settings.name,
            identity=identity,
            manifest=manifest,
            release=update,
            state=state,
            keep=lambda files: keep_results(study.results, files),
            pace=AnswerInstant(known(manifest.study.training.answer_after_s)),
        )
        return WorkerService(
            worker,
            frozen_bytes=len(frozen_adapter),
            is_paused=lambda: folder.is_paused,
        )
    except BaseException:
        state.close()
        raise


def open_model(
    settings: SiteSettings, manifest: Manifest, *, identity: Identity, frozen_adapter: bytes
) -> LanguageModel:
    """The study's model as this site has it, and no record read. Raises ModelError, StudyError and EnvelopeError."""
    lora, precision = manifest.study.model.lora, manifest.study.model.precision
    is_placed_later = settings.may_shard and precision != "nf4"  # where all of it may fit on no device
    # What the seed draws is replaced.
    model = LanguageModel.load(
        settings.model,
        lora,
        seed=0,
        precision=precision,
        device=PROCESSORS if is_placed_later else settings.devices[0],
        sha256=manifest.model_sha256,
        setting="model in site.toml",
    )
    model.set_frozen_adapter(vector_from_bytes(frozen_adapter, dimension=model.frozen_layout.dimension))
    admit(manifest, name=settings.name, identity=identity, model=model, model_sha256=model.folder_sha256)
    return model


def open_update(
    settings: SiteSettings,
    manifest: Manifest,
    site_records: SiteRecords,
    *,
    model: LanguageModel,
    public: PublicRecords | None,
) -> SiteUpdate:
    """What the site computes from its records, and the ``public`` ones of the study.

    Raises DataError, also where there is nothing to learn, ModelError, StorageError where the records are damaged, and
    where the public ones are too few, StudyError.
    """
    study = manifest.study
    units = site_records.units(study)
    site_records.check_tokens(stated=vocabulary_size_of(settings.model), size=model.vocabulary_size)
    site_records.check_learnable(units)
    cohort = Cohort.stated(
        units,
        privacy_unit=study.privacy.unit,
        max_units=manifest.max_units(settings.name),
    )
    sampler = sampler_of(
        study,
        model,
        checkpointing=settings.checkpointing,
        devices=settings.devices,
        sharding=settings.shard,
        base=settings.model,
    )
    for line in sampler.told:
        _log.info(line)
    return SiteUpdate(
        manifest=manifest,
        name=settings.name,
        cohort=cohort,
        sampler=sampler,
        public=None
        if public is None
        else Cohort(public.units(study, Tokenisation.load(str(settings.model), vocabulary_size=model.vocabulary_size))),
    )


def sampler_of(
    study: Study,
    model: LanguageModel,
    *,
    checkpointing: Checkpointing = "auto",
    devices: Sequence[str] = (),
    sharding: Sharding = "off",
    base: Path | None = None,
) -> MachineSampler:
    """Gradients as this machine computes them; of several ``devices``, each has the model from the folder ``base``.

    Raises ModelError.
    """
    if base is not None and len(devices) > 1:
        ranks = start_ranks(devices)
        return begin(ranks, model, base=base, study=study, checkpointing=checkpointing, sharding=sharding)
    with within_memory(model.device):
        return MachineSampler(study, model, checkpointing=checkpointing)


def admit(manifest: Manifest, *, name: str, identity: Identity, model: LanguageModel, model_sha256: str) -> None:
    """Raises StudyError unless this site can run the study as its manifest says.

    ``model_sha256`` is the hash of the folder that ``model`` was loaded from.
    """
    _require(manifest.site_keys.get(name) == identity.public_key, f"the manifest has another key for {name}")
    instant = manifest.study.training.answer_after_s is not None or manifest.app_sha256 is None
    _require(instant, "it does not say when an update leaves (training.answer_after_s)")
    check_code(version=manifest.package_version, sha256=manifest.package_sha256)
    _require(manifest.model_sha256 == model_sha256, "the base model's files are not those of the study")
    precision = manifest.study.model.precision
    _require(model.precision == precision, f"the base model is held in {model.precision}, and not in {precision}")
    differences = model.differences_from(manifest.study.model.lora)
    _require(not differences, f"the adapter is not the study's: {'; '.join(differences[:3])}")
    _require(manifest.tensor_sizes == model.layout.sizes, "the adapter has other sizes than the study's")
    _require(
        manifest.adapter_layout_sha256 == model.adapter_layout_sha256,
        "the adapter's tensors have other names or shapes than the study's",
    )
    _require(
        manifest.frozen_adapter_sha256 == model.frozen_adapter_sha256, "the frozen adapter is another than the study's"
    )


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise StudyError(otherwise, why=_WHY_ADMITTED, fix="ask the study's author for a manifest that fits this site")
