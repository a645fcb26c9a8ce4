"""How a study is fixed, once, and becomes what sites get: study.zip, and beside it what their policies have to allow.

What study.toml says is fixed with the first bundle. Later the study can be seen, fixed anew while nothing has begun,
and amended; an edit that would reach no site is refused.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from ...common.audit.named import named_audit
from ...common.crypto.identity import shown_key
from ...common.data.groups import held_out
from ...common.data.records import check_beginning
from ...common.data.tokenisation import Tokenisation
from ...common.errors import StudyError
from ...common.ledger.replay import VerifiedLedger
from ...common.model.adapter import vector_bytes
from ...common.model.language_model import LanguageModel
from ...common.study.completion import complete_study
from ...common.study.first_adapter import FirstAdapter, first_adapter_of
from ...common.study.manifest import Manifest, new_manifest
from ...common.study.public_records import PublicRecords
from ...common.study.study import Study, read_study
from ...common.study.training import TrainingSection
from ...common.system.files import make_folder, write_atomically
from ...common.system.package_hash import running_sha256
from ...server.report.audit import Audited
from ...server.run.server_folder import FROZEN_ADAPTER, SETTINGS, ServerFolder
from ..builtin.models import base_model_folder, with_lasting_name
from ..enrolment.bundle import Bundle, Flower, checked_audit, described
from ..enrolment.certificates import CA_CERTIFICATE, check_certificates
from ..enrolment.needed_policy import needed_policy
from ..flower.archive import app_sha256
from ..plan.spare_site import no_spare_site
from .follow import audit, next_step
from .successor import connection_of, fix_successor, overlaid

# What is measured or calculated where study.toml leaves it open, and may differ from one time to the next.
_MEASURED: Final = frozenset({"training.answer_after_s", "training.deadline_s", "privacy.noise_multiplier"})


def bundle(folder: ServerFolder, *, say: Callable[[str], None] = lambda line: None) -> list[str]:
    """Fix the study, once, and write it as the sites get it; what it is, in plain words. ``say`` is told what is done.

    Raises StudyError, also where what was fixed is no longer what study.toml says, DataError where the evaluation
    records cannot be used, ModelError and StorageError.
    """
    _check_ready(folder)
    if not folder.has_study:
        fixed = _fixed(folder, say)
        _save(folder, fixed)
        return _bundled(folder, fixed.manifest, fixed.audited)
    say("comparing study.toml with the study that was fixed")
    manifest = folder.study.manifest()
    _refuse_edits(folder, manifest)
    named = folder.study.named_audit(manifest.study)
    return _bundled(folder, manifest, checked_audit(manifest.study, named, package_sha256=manifest.package_sha256))


def bundle_anew(folder: ServerFolder, *, say: Callable[[str], None] = lambda line: None) -> list[str]:
    """``bundle``, fixing anew what was fixed, which is put aside. Raises StudyError where the study has begun."""
    _check_ready(folder)
    said: list[str] = []
    with folder.running():
        before = folder.study.manifest() if folder.has_study else None
        if before is not None and has_begun(audit(folder)):
            raise StudyError(
                "the study has begun: all of its sites have signed it",
                why="what they agreed to is what the claim is computed from",
                fix=_way_on(folder),
            )
        fixed = _fixed(folder, say)
        if before is not None:
            aside = folder.path / "replaced" / before.sha256[:16]
            make_folder(aside)
            said = [f"what was fixed before is in {aside}; sites that joined it `client leave` it, and join this"]
            for path in (folder.bundle, folder.progress.path, folder.study.path):  # by the last, what is fixed is known
                if path.exists():
                    path.rename(aside / path.name)
        _save(folder, fixed)
    return [*said, *_bundled(folder, fixed.manifest, fixed.audited)]


def amend(folder: ServerFolder) -> list[str]:
    """Fix the next manifest of a study that has begun, and write it as the sites get it.

    Raises StudyError where it may not follow the one in force, and StorageError.
    """
    return _bundled(folder, *fix_successor(folder))


def _check_ready(folder: ServerFolder) -> None:
    settings = folder.settings()
    check_certificates(folder.certificates, settings.host, now=datetime.now(UTC))
    if not settings.evaluation.is_file():
        raise StudyError(
            f"there are no evaluation records in {settings.evaluation}",
            why="every round's perplexity is measured on them, and the report says where they come from",
            fix=f"put public or synthetic records there, or name their file in {folder.path / SETTINGS}",
        )
    check_beginning(held_out(settings.evaluation))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fixed:
    """A study with its keys and hashes, the ``frozen`` tensors (float32), and what else it is of, where it names it.

    ``audited`` is what its audit found.
    """

    manifest: Manifest
    frozen: bytes
    first: FirstAdapter | None
    public: PublicRecords | None
    audit: bytes | None
    audited: Audited | None


def _fixed(folder: ServerFolder, say: Callable[[str], None]) -> _Fixed:
    study, enrolled, settings = read_study(folder.study_toml), folder.sites(), folder.settings()
    members = {site.name for site in study.sites}
    if members != set(enrolled):
        raise StudyError(
            f"the study is of {', '.join(sorted(members))}, and enrolled are {', '.join(sorted(enrolled)) or 'none'}",
            why="every site of a study signs it, with a key that was compared",
            fix=f"enroll every site, and name those and no others in {folder.study_toml}",
        )
    first, public, named = first_adapter_of(study), PublicRecords.of(study), named_audit(study)
    say("calibrating the noise")
    complete = complete_study(with_lasting_name(study))
    if named is not None:
        say("computing again what its audit found")
    audited = checked_audit(complete, named, package_sha256=running_sha256())
    base = settings.model or base_model_folder(complete.model.name)
    say(f"loading the model, and hashing {base}")
    # A is public: anyone may know the seed that drew it. The study's run draws what is trained of it once more.
    model = LanguageModel.load(base, complete.model.lora, seed=0, precision=complete.model.precision)
    if first is not None:
        first.put_on(model)
    # Tried here as every site will, before anybody is asked to sign.
    tokenisation = Tokenisation.load(str(base), vocabulary_size=model.vocabulary_size)
    if public is not None:
        public.units(complete, tokenisation)
    if complete.training.answer_after_s is None:
        say("trying steps of private training, for the instant at which updates leave")
        # Imported here: they load torch, before which something was said.
        from ...client.site.assembly import sampler_of
        from ..plan.instant import answer_after_s

        instant_s = answer_after_s(complete, sampler_of(complete, model))
        training = _in_time(complete.training, instant_s, is_stated=_is_stated(study, "training.deadline_s"))
        complete = complete.model_copy(update={"training": training})
    manifest = new_manifest(
        complete,
        site_keys={name: site.public_key for name, site in enrolled.items()},
        server_key=folder.identity().public_key,
        model=model,
        model_sha256=model.folder_sha256,
        app_sha256=app_sha256(),
        connection_sha256=connection_of(folder),
    )
    frozen = vector_bytes(model.get_frozen_adapter())
    return _Fixed(manifest=manifest, frozen=frozen, first=first, public=public, audit=named, audited=audited)


def _in_time(training: TrainingSection, instant_s: float, *, is_stated: bool) -> TrainingSection:
    """With the instant, and where its deadline is not stated, one that leaves as long again. Raises StudyError."""
    deadline_s = training.deadline_s if is_stated else max(training.deadline_s, 2 * instant_s)
    if instant_s >= deadline_s:
        raise StudyError(
            f"this machine needs {instant_s:g} s for the most work that an update can be, and an exchange ends after "
            f"{deadline_s:g} s (training.deadline_s)",
            why="updates leave that long after they are asked for, and every site would be too late",
            fix=f"set training.deadline_s = {2 * instant_s:g} in study.toml; or, where this machine is slower than the "
            "sites' or busy, training.answer_after_s to what `grandrounds client check` says there",
        )
    return training.model_copy(update={"answer_after_s": instant_s, "deadline_s": deadline_s})


def _save(folder: ServerFolder, fixed: _Fixed) -> None:
    write_atomically(folder.path / FROZEN_ADAPTER, fixed.frozen)
    folder.study.save_first_adapter(fixed.first)
    folder.study.save_public_records(fixed.public)
    folder.study.save_audit(fixed.audit)
    folder.study.save_manifest(fixed.manifest)


def _bundled(folder: ServerFolder, manifest: Manifest, audited: Audited | None) -> list[str]:
    """The study as the sites get it is written; what it is, and what to do with it."""
    public, named = folder.study.public_records(manifest.study), folder.study.named_audit(manifest.study)
    Bundle(
        manifest=manifest,
        frozen_adapter=folder.frozen_adapter(),
        certificates=(folder.certificates / CA_CERTIFICATE).read_bytes(),
        flower=Flower(address=folder.settings().address),
        public=None if public is None else public.data,
        audit=named,
    ).write(folder.bundle)
    for name in manifest.site_keys:
        write_atomically(folder.policies / f"{name}.toml", needed_policy(manifest, name).encode())
    return [
        *(f"{field:10}{text}" for field, text in described(manifest, audit=audited).items()),
        f"an update leaves {manifest.study.training.answer_after_s:g} s after it was asked for, whatever was drawn; a "
        "site whose `client check` takes longer needs a larger training.answer_after_s",
        *filter(None, [no_spare_site(sites=len(manifest.site_keys), threshold=manifest.threshold)]),
        f"for every site: {folder.bundle}, and its own of {folder.policies}, with what its policy has to allow; the "
        "manifest's hash is for everybody to compare by telephone",
        f"next: {next_step(folder, audit(folder))}",
    ]


def _refuse_edits(folder: ServerFolder, manifest: Manifest) -> None:
    edits = list(_edits(folder, manifest))
    if edits:
        raise StudyError(
            f"the study is fixed, and otherwise than it would be now: {'; '.join(edits)}",
            why="sites sign what was fixed, and what is edited afterwards reaches none of them",
            fix=f"put back what was changed; or {_way_on(folder)}",
        )


def _way_on(folder: ServerFolder) -> str:
    """How what is edited comes into a study."""
    verified = audit(folder)
    if verified.closed is not None:
        return f"begin another study, for this one is closed: grandrounds server study new {folder.home.path} NAME"
    if has_begun(verified):
        return f"have its sites sign another version, for it has begun: grandrounds server amend {folder.path}"
    return f"fix it anew, for it has not begun: grandrounds server bundle {folder.path} --redo"


def has_begun(verified: VerifiedLedger) -> bool:
    """Whether all sites have signed the study: nothing of it can be fixed anew."""
    return len(verified.manifests) > 1 or (bool(verified.manifests) and verified.agreed)


def _edits(folder: ServerFolder, manifest: Manifest) -> Iterator[str]:
    """What study.toml says otherwise than the manifest, and what else has changed that is under its hash."""
    stated = read_study(folder.study_toml)
    begun = has_begun(audit(folder))
    now = overlaid(manifest.study, folder.study_toml) if begun else complete_study(with_lasting_name(stated))
    here, there = ({site.name for site in study.sites} for study in (now, manifest.study))
    for name in sorted(here ^ there):
        yield f"study.toml {'names' if name in here else 'does not name'} the site {name}, unlike the study"
    new, old = (_leaves(study, here & there) for study in (now, manifest.study))
    for name in sorted(new.keys() | old.keys()):
        if new.get(name) != old.get(name) and not (name in _MEASURED and not _is_stated(stated, name)):
            yield f"{name} is {_shown(new, name)}, and in the study {_shown(old, name)}"
    enrolled = {name: site.public_key for name, site in folder.sites().items()}
    for name in sorted(enrolled.keys() | manifest.site_keys.keys()):
        if enrolled.get(name) != manifest.site_keys.get(name):
            yield f"{name} is {_keyed(enrolled, name)}, and in the study {_keyed(manifest.site_keys, name)}"
    if manifest.connection_sha256 != connection_of(folder):
        address = folder.settings().address
        yield f"{address} or the authority in {folder.certificates} is another than the study was fixed with"
    if manifest.package_sha256 != running_sha256():
        yield "the installed program is another than the study's"


def _is_stated(study: Study, name: str) -> bool:
    """Whether study.toml has the field of this dotted name."""
    section, _, field = name.partition(".")
    return field in getattr(study, section).model_fields_set


def _leaves(study: Study, named: set[str]) -> dict[str, Any]:
    """A study's fields by dotted names, those of the sites that are ``named`` by theirs."""
    fields = study.model_dump(mode="json")
    sites = [site for site in fields.pop("sites") if site["name"] in named]
    of_sites = {f"sites.{site['name']}.{field}": value for site in sites for field, value in site.items()}
    return of_sites | {f"{section}.{name}": value for section, table in fields.items() for name, value in table.items()}


def _shown(fields: Mapping[str, Any], name: str) -> str:
    return json.dumps(fields[name], ensure_ascii=False) if fields.get(name) is not None else "not there"


def _keyed(keys: Mapping[str, str], name: str) -> str:
    return f"enrolled with the key {shown_key(keys[name])}" if name in keys else "not enrolled"
