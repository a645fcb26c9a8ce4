"""The next manifest of a study that has begun: sites join, leave or change keys, or the program is another version."""

from pathlib import Path
from typing import Final

from ...common.audit.named import named_audit
from ...common.errors import StudyError
from ...common.ledger.replay import VerifiedLedger
from ...common.schema import validated
from ...common.secagg.parameters import default_threshold
from ...common.study.completion import default_max_units
from ...common.study.manifest import Manifest
from ...common.study.study import Study, read_study, study_tables
from ...common.study.succession import check_successor
from ...common.system.package_hash import running_sha256
from ...common.version import __version__
from ...server.report.audit import Audited
from ...server.run.server_folder import ServerFolder
from ..builtin.models import with_lasting_name
from ..enrolment.bundle import checked_audit, connection_sha256
from ..enrolment.certificates import CA_CERTIFICATE
from ..flower.archive import app_sha256

_WHY: Final = "every site signs one manifest of each version, and the ledger has them in their order"


def fix_successor(folder: ServerFolder) -> tuple[Manifest, Audited | None]:
    """The manifest after the one in force, with the sites that are enrolled and what study.toml states; it is written.

    With it, what its audit found, if it names one.

    Where it was fixed before and is not signed yet, it is that. Raises StudyError, also where more is changed than a
    successor may, and StorageError.
    """
    with folder.running():
        verified, fixed = VerifiedLedger.of(folder.study.ledger_lines()), folder.study.manifest()
        if not verified.manifests or not verified.agreed:
            raise StudyError(
                "the study has not begun: its first manifest is not signed by all sites",
                why="a successor is signed by t of the sites before it, and the first has none",
                fix=f"fix it anew, and have all sites join that: grandrounds server bundle {folder.path} --redo",
            )
        if verified.closed is not None:
            raise StudyError(
                "the study is closed",
                why="nothing can follow in its ledger",
                fix=f"begin another: grandrounds server study new {folder.home.path} NAME",
            )
        following = _successor(folder, verified.manifest)
        audit = named_audit(read_study(folder.study_toml))
        audited = checked_audit(following.study, audit, package_sha256=following.package_sha256)
        if fixed != verified.manifest and fixed != following:
            raise StudyError(
                f"version {fixed.version} of the manifest is fixed already, and is not this",
                why=_WHY,
                fix="have all its sites join and sign it with `grandrounds server run`; then change the next",
            )
        folder.study.save_audit(audit)
        folder.study.save_manifest(following)
    return following, audited


def connection_of(folder: ServerFolder) -> str:
    """The hash that a manifest has of where sites find this server, and of whom they take for it."""
    return connection_sha256(folder.settings().address, (folder.certificates / CA_CERTIFICATE).read_bytes())


def _successor(folder: ServerFolder, previous: Manifest) -> Manifest:
    enrolled = {name: site.public_key for name, site in folder.sites().items()}
    study = overlaid(previous.study, folder.study_toml)
    named = {site.name for site in study.sites}
    if named != set(enrolled):
        raise StudyError(
            f"study.toml is of {', '.join(sorted(named))}, and enrolled are {', '.join(sorted(enrolled)) or 'none'}",
            why="every site of the successor signs it, with a key that was compared",
            fix="`grandrounds server enroll` who joins, `grandrounds server dismiss` who leaves, and name who is left",
        )
    changed = {
        "version": previous.version + 1,
        "previous": previous.sha256,
        "study": study,
        "site_keys": enrolled,
        "server_key": folder.identity().public_key,
        "package_version": __version__,
        "package_sha256": running_sha256(),
        "app_sha256": app_sha256(),
        "connection_sha256": connection_of(folder),
    }
    following = validated(Manifest, {**previous.model_dump(), **changed})
    check_successor(previous, following)
    return following


def overlaid(previous: Study, study_toml: Path) -> Study:
    """The study before, with all that study.toml states; the threshold follows from the number of sites if it does not.

    What study.toml leaves open is as it was: it was filled in for the first manifest, and may not change. An audit
    alone is what study.toml names, since one of another roster or program says nothing of these. Raises StudyError.
    """
    fields, stated = previous.model_dump(), study_tables(study_toml)
    for section, values in stated.items():
        fields[section] = {**fields[section], **values} if isinstance(values, dict) else values
    fields["about"]["audit"] = stated.get("about", {}).get("audit")
    bounds = {site.name: site.max_units for site in previous.sites}
    fields["sites"] = [
        {"max_units": bounds.get(site["name"]) or default_max_units(site["nominal_units"]), **site}
        for site in fields["sites"]
    ]
    if "threshold" not in stated.get("secagg", {}):
        fields["secagg"]["threshold"] = default_threshold(len(fields["sites"]))
    return with_lasting_name(validated(Study, fields))
