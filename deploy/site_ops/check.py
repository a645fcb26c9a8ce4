"""What a site finds out about itself before a study: whether all fits, and whether its updates leave in time."""

import resource
import secrets
import stat
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from time import monotonic
from typing import Final

from ...client.budget.patients import Patients
from ...client.budget.policy import Policy, check_policy
from ...client.site.assembly import open_model, open_update
from ...client.site.folder import SiteFolder, SiteSettings
from ...client.site.joined_study import JoinedStudy
from ...client.site.machine import MachineReport
from ...client.site.prepared import Progress, unseen
from ...client.site.reading import Reading
from ...client.site.site_records import SiteRecords
from ...client.site.survey import check_readable
from ...client.state.database import SiteDatabase
from ...client.training.rehearsal import with_most_work
from ...common.errors import StudyError
from ...common.model.devices import described, peak_memory_bytes
from ...common.privacy.mechanism import Mechanism
from ...common.schema import known
from ...common.study.manifest import Manifest
from ...server.report.claim import count

_ROOM: Final = 1.25  # of the time that the most work takes: other programs of the machine take time, too


def check(
    folder: SiteFolder, study: JoinedStudy, *, opt_outs_match_nobody: bool = False, progress: Progress = unseen
) -> list[str]:
    """What an update of the site's own records takes, and the most work that one can be; neither of them is kept.

    ``opt_outs_match_nobody`` says that it is right where none of the opt-outs has records. Records are prepared first
    where they are not, of which ``progress`` is told, and how this machine computes is kept for ``client data``.
    Nothing is reserved, and nothing sent. Raises StudyError, also where the most work would not be done at the instant
    at which updates leave, ModelError, DataError and StorageError, as a worker's start would.
    """
    settings, manifest, policy = folder.settings(), study.manifest(), folder.policy()
    identity, frozen = folder.identity(), study.frozen_adapter()
    check_policy(policy, manifest, name=settings.name)
    check_readable(settings)
    started = monotonic()
    model = open_model(settings, manifest, identity=identity, frozen_adapter=frozen)
    site_records = SiteRecords.open(folder, manifest.study, progress=progress)
    if not opt_outs_match_nobody:
        site_records.check_opt_outs()
    _check_patients(folder, policy, site_records)
    public = study.public_records(manifest)
    update = open_update(settings, manifest, site_records, model=model, public=public)
    read = site_records.units(manifest.study)
    if settings.training_view:  # which takes a moment of each step
        update = replace(update, observer=lambda figures: None)
    adapter, most = model.get_adapter(), with_most_work(update)
    loaded = monotonic()
    update(adapter, _unused_noise(manifest))
    usual = monotonic()
    most(adapter, _unused_noise(manifest))
    most_s, instant_s = monotonic() - usual, known(manifest.study.training.answer_after_s)
    if most_s > instant_s:
        raise StudyError(
            f"an update may take {most_s:.3g} s here, and the study lets updates leave after {instant_s:g} s",
            why="the site would be silent when it is not ready, and its attempts would be spent for nothing",
            fix=f"use a faster machine, or ask the study's author for training.answer_after_s = {_ROOM * most_s:.0f}",
        )
    gibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # which Linux counts in KiB
    on_gpu = peak_memory_bytes(model.device) / 2**30
    name, unit, reading = settings.name, manifest.study.privacy.unit, Reading.of(manifest.study)
    batches = {shape.tokens: shape.batch for shape in update.sampler.shapes}
    filled, empty = reading.padding(site_records.lengths, read.sizes, batches)
    machine = (
        f"loading took {loaded - started:.0f} s, an update {usual - loaded:.1f} s, the most work that one can be "
        f"{most_s:.1f} s, and all of it at most {gibibytes:.1f} GiB"
        + (f" of memory and {on_gpu:.1f} GiB of the GPU's" if on_gpu else "")
        + (", in the first of its processes" if update.sampler.ranks.count > 1 else ""),
        f"the model computes on {described(settings.devices)}",
        *update.sampler.told,
        f"of what a step computes, {100 * filled:.0f} % fills records up to these lengths, and {100 * empty:.0f} % is "
        "in rows of batches that stay empty, on average",
        f"updates leave {instant_s:g} s after they are asked for, whatever was drawn"
        + (": little room for other work on this machine" if _ROOM * most_s > instant_s else ""),
    )
    MachineReport(found=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", lines=machine).write(study.machine)
    return [
        "key, policy, model and records fit the study; nothing was reserved, and nothing was sent",
        f"{site_records.records} records of {len(read)} {unit}s were read; the study counts on "
        f"{manifest.nominal_units(name)}, and at most {manifest.max_units(name)}, of which a step reads "
        f"{manifest.draw_cap(name)} at most"
        + (f", and {manifest.study.data.public_units} of public records beside" if public else ""),
        reading.told(read.sizes),
        *machine,
        *site_records.told(),
        *site_records.told_far(manifest, name),
        *_warnings(folder, settings, policy, without_target=read.windows - read.learnable),
    ]


def _unused_noise(manifest: Manifest) -> Mechanism:
    """The noise of an attempt that never begins."""
    keys = {level: secrets.token_bytes(32) for level in manifest.secagg_parameters.noise_levels[1:]}
    return manifest.mechanism(keys, attempt=1)


def _check_patients(folder: SiteFolder, policy: Policy, site_records: SiteRecords) -> None:
    """Raises PrivacyError where they have another budget already, and StorageError."""
    database = SiteDatabase.open_existing(folder.state)
    try:
        patients = Patients(database, folder.fingerprint_key())
        patients.check(policy.data.asset, site_records.identifiers)
    finally:
        database.close()


def _warnings(folder: SiteFolder, settings: SiteSettings, policy: Policy, *, without_target: int) -> Iterator[str]:
    if without_target:
        yield (
            f"warning: {count(without_target, 'window')} of them have no token left to learn, and contribute nothing"
        )
    sources = (settings.data, settings.held_out)
    for path in (*(path for source in sources if source for path in source.paths), policy.data.opted_out):
        if path is not None and path.exists() and path.stat().st_mode & stat.S_IROTH:
            yield f"warning: every user of this machine may read {path}; the worker's alone needs to: chmod o-r"
    if folder.is_paused:
        yield "this site is paused, and takes part in nothing until: grandrounds client unpause"
