"""What a site's operator does with the records of its own: look at them, prepare them, have patients forgotten."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Final

from ...client.site.data_report import DataReport
from ...client.site.folder import SiteFolder
from ...client.site.forgotten import forget as forget_in
from ...client.site.joined_study import JoinedStudy
from ...client.site.machine import MachineReport
from ...client.site.opt_outs import OptOuts, told_unmatched
from ...client.site.prepared import PreparedRecords, Progress, places, remove
from ...client.site.reading import Reading
from ...client.site.site_log import SiteLog
from ...client.site.site_records import SiteRecords
from ...client.site.survey import Survey, check_readable
from ...common.errors import OtherProgramError, StoppedError, StudyError
from ...common.system.files import write_atomically
from ...common.system.locks import is_held
from .owner import done_as
from .users import worker_of

PAGE: Final = "data.html"


def prepare(folder: SiteFolder, study: JoinedStudy, *, again: bool, progress: Progress) -> list[str]:
    """Tokenise the site's records as a study reads them, unless that was done; what came of it.

    ``again`` does it in any case. What no study reads any more is removed, and so is who opted out. Raises StoppedError
    where somebody interrupts it, DataError, ModelError, StorageError and StudyError.
    """
    settings, manifest = folder.settings(), study.manifest()
    check_readable(settings)
    here = PreparedRecords.of(folder)
    was_prepared = not again and here.has(manifest.study.data)
    try:
        records = SiteRecords.open(folder, manifest.study, again=again, progress=progress)
    except KeyboardInterrupt:
        raise StoppedError(
            "the records are not prepared yet: this was interrupted",
            why="a study reads them once all of them are",
            fix=f"go on where it stopped, at any time: grandrounds client prepare {folder.path} {study.name}",
        ) from None
    others = _remove_others(folder, here)
    if len(records.kept) < len(records.store.patients):  # who is not to be read is not to be kept, either
        forget_in(folder.prepared, OptOuts.read(folder.policy().data.opted_out), folder.fingerprint_key())
    size_bytes = sum(path.stat().st_size for place in places(folder.prepared) for path in place.iterdir())
    return [
        "the records were prepared before, and nothing has changed since"
        if was_prepared
        else "the records are prepared",
        f"{len(records.patients):,} patients; {Reading.of(manifest.study).told(records.units(manifest.study).sizes)}",
        f"{folder.prepared}: {size_bytes / 1e6:,.1f} MB, as sensitive as the records, and for no other user",
        *others,
        *records.told(),
        *records.told_far(manifest, settings.name),
        f"next: grandrounds client check {folder.path} {study.name}",
    ]


def _remove_others(folder: SiteFolder, here: PreparedRecords) -> list[str]:
    """Remove what was prepared and no study of the site reads; what to say of it."""
    read, unknown = [], []
    for joined in folder.joined():
        try:
            read.append(joined.manifest().study.data)
        except OtherProgramError:
            unknown.append(f"study {joined.name} is of {joined.other_program}, which alone can tell what it reads")
    if unknown:
        return [f"{'; '.join(unknown)}: so nothing was removed of what was prepared before"]
    return ["removed what was prepared before and no study reads any more"] if here.remove_others(read) else []


def forget(folder: SiteFolder) -> list[str]:
    """Rewrite what is prepared without the patients who opted out; what that means.

    Raises StudyError where the policy names no opt-outs, DataError and StorageError.
    """
    settings, opted_out = folder.settings(), folder.policy().data.opted_out
    if opted_out is None:
        raise StudyError(
            "policy.toml names no opt-outs",
            why="whoever is in that list is left out of all studies, and nobody else",
            fix='write patients\' identifiers into a file, one a line, and name it: [data] opted_out = "opted-out.txt"',
        )

    def forgotten() -> list[str]:
        listed = OptOuts.read(opted_out)
        gone, unmatched = forget_in(folder.prepared, listed, folder.fingerprint_key())
        running = [study.name for study in folder.joined() if is_held(study.lock)]
        return [
            f"of the prepared records nothing is left of patients who opted out: {gone:,} of them were there",
            *told_unmatched(listed.count, unmatched),
            *(
                f"the worker of study {name} runs, and reads them until it is stopped: start it anew"
                for name in running
            ),
        ]

    said: list[str] = done_as(worker_of(settings), forgotten)
    SiteLog(folder).note("forgot")
    return [
        *said,
        "the site's data still have their records: whoever keeps these deletes them there",
        "what was released before stays released; a study's claim bounds what it says of any patient",
    ]


def delete(folder: SiteFolder) -> list[str]:
    """Remove all that is prepared, whichever study reads it; what that means. Raises StudyError and StorageError."""

    def removed() -> int:
        found = places(folder.prepared)
        for place in found:
            remove(place)
        return len(found)

    number: int = done_as(worker_of(folder.settings()), removed)
    SiteLog(folder).note("prepared-records-removed")
    if not number:
        return [f"there is nothing in {folder.prepared}"]
    return [
        f"removed what was prepared in {folder.prepared}",
        "a worker that runs has it until it is stopped; one that is started prepares the records anew",
    ]


def data_report(folder: SiteFolder, study: JoinedStudy | None) -> DataReport:
    """What the records come to, as a study reads them if there is one: exact where they are prepared for it.

    Raises DataError, ModelError, StudyError and StorageError.
    """
    settings, policy = folder.settings(), folder.policy()
    if study is None:
        return DataReport.surveyed(Survey.of(settings, policy))
    manifest = study.manifest()
    reading, most_units = Reading.of(manifest.study), manifest.draw_cap(settings.name)
    check_readable(settings)
    if PreparedRecords.of(folder).has(manifest.study.data):
        site_records = SiteRecords.open(folder, manifest.study)
        report = DataReport.prepared(
            site_records, reading, most_units=most_units, source=settings.data.name, study=study.name
        )
    else:
        report = DataReport.surveyed(Survey.of(settings, policy), reading, most_units=most_units, study=study.name)
    found = MachineReport.read(study.machine)
    return replace(report, machine=(f"found {found.found}", *found.lines)) if found else report


def write_page(folder: SiteFolder, page: str) -> Path:
    """Write the page into the site's folder, for the worker's user alone. Raises StorageError."""
    path, worker = folder.path / PAGE, worker_of(folder.settings())
    write_atomically(path, page.encode(), mode=0o600)
    if worker is not None:
        os.chown(path, worker.uid, worker.gid, follow_symlinks=False)
    return path
