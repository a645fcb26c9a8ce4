"""Of a ledger that this program cannot read whole, nothing is affirmed that whoever has no key of it can add."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.study.verified_study import SmallStudy, write_ledger

from grandrounds.common.crypto.identity import Identity, canonical_json, sha256
from grandrounds.common.ledger.chain import Entry, EntryType
from grandrounds.common.study.artefacts import AUDIT, CORE, MANIFEST, PAGE, REPORT, RESULTS, WEIGHTS
from grandrounds.common.study.manifest import MANIFEST_LABEL
from grandrounds.deploy.verify.case import Case, DisagreesError
from grandrounds.deploy.verify.claims import verdict_on, verify
from grandrounds.deploy.verify.evidence import read_evidence
from grandrounds.deploy.verify.unread import unread
from grandrounds.deploy.verify.verdict import Outcome, Status

Fields = dict[str, Any]
Added = tuple[Identity, EntryType, Fields]
CLAIMS = ("ledger", "manifest", "authorship", "files")
OTHER = {"package_version": "9.9.9", "package_sha256": "12" * 32, "colour": "blue"}
SIGNED = "entries are chained and signed by the server that its manifest names"
ANOTHER = "has a manifest that is not of the same server, or not signed by it"
STRANGER = Identity.generate()


def continued(lines: Sequence[bytes], added: Iterable[Added]) -> list[bytes]:
    """These lines, and after them entries, each by whom it names."""
    entries = [Entry.parse(line) for line in lines]
    for signer, entry_type, body in added:
        previous = entries[-1].hash if entries else "00" * 32
        entries.append(Entry.seal(signer, entry_type=entry_type, body=body, sequence=len(entries), previous=previous))
    return [entry.line for entry in entries]


def closing(signer: Identity, folder: Path) -> Added:
    """The study's end, over what the folder holds now."""
    files = {path: sha256((folder / path).read_bytes()) for path in RESULTS}
    return signer, EntryType.STUDY_CLOSED, {"charges": {}, "files": files}


def hash_of(manifest: Any) -> str:
    return sha256(MANIFEST_LABEL + canonical_json(manifest))


def said_of(folder: Path, hash_: str | None = None) -> dict[str, str]:
    """What is said of each of the claims of which something holds in any form, none of which is false."""
    verdict = verdict_on(Case(evidence=read_evidence(folder), manifest_hash=hash_), *CLAIMS)
    assert {finding.status for finding in verdict.findings} == {Status.OPEN}, verdict
    return {finding.name: finding.detail for finding in verdict.findings}


def false_of(folder: Path, hash_: str | None = None) -> dict[str, str]:
    """Which of these claims are false, and why."""
    verdict = verdict_on(Case(evidence=read_evidence(folder), manifest_hash=hash_), *CLAIMS)
    return {finding.name: finding.detail for finding in verdict.findings if finding.status is Status.DISAGREES}


def unfinished(study: SmallStudy) -> list[bytes]:
    """The study's ledger, as it was before its end."""
    return study.lines[: study.report()["ledger"]["length"]]


@pytest.fixture
def manifest(study: SmallStudy) -> Fields:
    """The study's, as another program would have written it."""
    return study.manifest.model_dump(mode="json") | OTHER


@pytest.fixture
def other(study: SmallStudy, folder: Path, manifest: Fields) -> list[bytes]:
    """The ledger of a study that another program made, which is also in the folder."""
    (folder / MANIFEST).write_bytes(canonical_json(manifest))
    bodies = [(entry.type, entry.body) for entry in map(Entry.parse, unfinished(study)[1:])]
    begun = [(study.server, EntryType(type_), body) for type_, body in bodies]
    lines = continued([], [(study.server, EntryType.STUDY, {"manifest": manifest}), *begun])
    lines = continued(lines, [closing(study.server, folder)])
    write_ledger(folder, lines)
    return lines


def test_whoever_has_no_key_of_a_study_gets_nothing_affirmed_of_what_he_appends(
    study: SmallStudy, folder: Path, manifest: Fields
) -> None:
    """A genuine ledger, cut before its end; a manifest of another version, and an end over another report."""
    lines = unfinished(study)
    (folder / REPORT).write_bytes((folder / REPORT).read_bytes().replace(b"50.0", b"90.0"))
    forged = {"manifest": manifest | {"server_key": STRANGER.public_key}}
    write_ledger(folder, continued(lines, [(STRANGER, EntryType.STUDY, forged), closing(STRANGER, folder)]))
    assert verify(folder, study.manifest.sha256).outcome is Outcome.UNKNOWN
    said = said_of(folder, study.manifest.sha256)
    assert said["ledger"].startswith(f"{len(lines)} {SIGNED}; the next {ANOTHER}; but")
    assert said["authorship"].startswith(
        f"it has the manifest that you know; entry {len(lines)} {ANOTHER}; a later manifest follows it, and this "
        "program cannot show that the sites agreed to that; but"
    )
    for claim in ("manifest", "files"):
        assert said[claim].startswith("the study was made by"), "nothing is said of it but who has to read it"


@pytest.mark.parametrize(
    ("by", "named"),
    [
        ("stranger", "stranger"),
        ("server", "stranger"),
        ("stranger", "server"),
        ("stranger", "none"),
        ("server", "none"),
        ("stranger", "no object"),
        ("stranger", "no key"),
    ],
)
def test_a_later_manifest_of_another_server_s_ends_the_reading(
    by: str, named: str, study: SmallStudy, folder: Path, manifest: Fields, other: list[bytes]
) -> None:
    keys: dict[str, Any] = {"stranger": STRANGER.public_key, "server": study.server.public_key, "no key": 5}
    nameless = {name: value for name, value in manifest.items() if name != "server_key"} | {"colour": "grey"}
    later: Any = nameless | {"server_key": keys[named]} if named in keys else nameless
    later = "words" if named == "no object" else later
    signer = STRANGER if by == "stranger" else study.server
    (folder / REPORT).write_bytes(b"{}")
    added = [(signer, EntryType.STUDY, {"manifest": later}), closing(signer, folder)]
    write_ledger(folder, continued(other[:-1], added))
    said = said_of(folder, hash_of(manifest))
    assert said["ledger"].startswith(f"{len(other) - 1} {SIGNED}; the next {ANOTHER}; but")
    assert "; a later manifest follows it" in said["authorship"]
    assert said["manifest"].startswith("the study was") and said["files"].startswith("the study was")
    said = said_of(folder, hash_of(later))
    assert said["authorship"].startswith(f"its manifest is {hash_of(manifest)}, unless a later entry has the one")


@pytest.mark.parametrize("is_named", [True, False])
def test_a_known_manifest_after_a_stranger_s_own_vouches_for_nothing(
    is_named: bool, folder: Path, manifest: Fields
) -> None:
    known = manifest if is_named else {name: value for name, value in manifest.items() if name != "server_key"}
    first = manifest | {"server_key": STRANGER.public_key}
    added = [(STRANGER, EntryType.STUDY, {"manifest": each}) for each in (first, known)]
    (folder / REPORT).write_bytes(b"{}")
    write_ledger(folder, continued([], [*added, closing(STRANGER, folder)]))
    said = said_of(folder, hash_of(known))
    assert said["ledger"].startswith(f"1 {SIGNED}; the next {ANOTHER}")
    assert "it has the manifest" not in said["authorship"] and said["files"].startswith("the study was")


def test_of_a_later_manifest_of_the_same_server_it_is_said_that_sites_need_not_have_agreed(
    study: SmallStudy, folder: Path, manifest: Fields, other: list[bytes]
) -> None:
    later = manifest | {"colour": "grey"}
    added = [(study.server, EntryType.STUDY, {"manifest": later})]
    write_ledger(folder, continued(other[:-1], added))
    (folder / MANIFEST).write_bytes(canonical_json(later))
    said = said_of(folder, hash_of(manifest))
    assert said["ledger"].startswith(f"{len(other)} {SIGNED}; but")
    assert said["manifest"].startswith(f"it is the ledger's last, SHA-256 {hash_of(later)}; but")
    assert said["authorship"].startswith("it has the manifest that you know; a later manifest follows it, and")
    assert said_of(folder, hash_of(later))["authorship"].startswith("it has the manifest that you know; but")


@pytest.mark.parametrize("entry_type", ["study", "attempt-begun", "study-closed"])
def test_after_its_end_a_study_has_nothing_but_signatures(
    entry_type: str, study: SmallStudy, folder: Path, manifest: Fields, other: list[bytes]
) -> None:
    """What its server adds is not read, and the files are those of the first end."""
    signature = Entry.parse(study.lines[-1])
    assert signature.type is EntryType.CLOSING_SIGNATURE
    signed = continued(other, [(study.server, EntryType.CLOSING_SIGNATURE, signature.body)])
    write_ledger(folder, signed)
    assert said_of(folder)["ledger"].startswith(f"{len(signed)} {SIGNED}; but")
    report = (folder / REPORT).read_bytes()
    (folder / REPORT).write_bytes(b"{}")
    body = closing(study.server, folder)[2] if entry_type == "study-closed" else {"manifest": manifest}
    write_ledger(folder, continued(signed, [(study.server, EntryType(entry_type), body)]))
    wrong = false_of(folder, hash_of(manifest))
    assert wrong == {"files": f"not as the study was closed: {REPORT}"}
    (folder / REPORT).write_bytes(report)
    said = said_of(folder, hash_of(manifest))
    assert said["ledger"].startswith(f"{len(signed)} {SIGNED}; the next stands after the study's end; but")
    assert said["authorship"].startswith(
        f"it has the manifest that you know; entry {len(signed)} stands after the study's end; but"
    )


def test_an_end_by_a_stranger_is_false_in_any_form(folder: Path, other: list[bytes]) -> None:
    for body in (closing(STRANGER, folder)[2], {"colour": "blue"}):
        write_ledger(folder, continued(other[:-1], [(STRANGER, EntryType.STUDY_CLOSED, body)]))
        said = f"line {len(other)}: it is not signed by the server that its manifest names"
        assert false_of(folder) == {"ledger": said}


@pytest.mark.parametrize("key", [None, 5, "of another form"])
def test_where_the_manifest_names_no_server_nothing_is_said_of_signatures_nor_of_an_end(
    key: Any, folder: Path, manifest: Fields
) -> None:
    named = manifest | {"server_key": key}
    (folder / MANIFEST).write_bytes(canonical_json(named))
    lines = continued([], [(STRANGER, EntryType.STUDY, {"manifest": named}), closing(STRANGER, folder)])
    write_ledger(folder, lines)
    said = said_of(folder, hash_of(named))
    assert said["ledger"].startswith("2 entries are chained; but")
    assert said["files"].startswith("the study was made by")


def test_a_ledger_in_any_form_begins_with_its_manifest(folder: Path) -> None:
    lines = continued([], [closing(STRANGER, folder)])
    with pytest.raises(DisagreesError, match="line 1: the ledger does not begin with a study"):
        unread(b"".join(line + b"\n" for line in lines))
    lines = continued([], [(STRANGER, EntryType.STUDY, {"manifest": "words"}), closing(STRANGER, folder)])
    found = unread(b"".join(line + b"\n" for line in lines))
    assert (found.server, found.files, found.is_whole) == (None, {}, True)


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize("path", [PAGE, WEIGHTS, CORE, AUDIT])
def test_a_file_that_cannot_be_read_is_named(path: str, folder: Path) -> None:
    (folder / path).unlink(missing_ok=True)
    (folder / path).symlink_to(folder / REPORT)
    assert false_of(folder) == {"files": f"{path}: it is a symbolic link"}


@pytest.mark.usefixtures("other")
def test_a_file_with_which_the_study_was_not_closed_is_named(folder: Path) -> None:
    (folder / CORE).write_bytes(b"")
    assert false_of(folder) == {"files": f"not as the study was closed: {CORE}"}
