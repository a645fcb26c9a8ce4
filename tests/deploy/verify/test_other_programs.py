"""A study that another version of the program made: commands name that version, and call nothing of it false."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from support.study.verification import reclosed
from support.study.verified_study import SmallStudy, write_ledger
from typer.testing import CliRunner

from grandrounds.client.site.folder import SiteFolder
from grandrounds.common.crypto.identity import Identity, canonical_json, read_key, sha256
from grandrounds.common.errors import OtherProgramError, StudyError
from grandrounds.common.ledger.chain import Entry
from grandrounds.common.study.artefacts import LEDGER, MANIFEST, REPORT, WEIGHTS
from grandrounds.common.study.manifest import MANIFEST_LABEL
from grandrounds.common.system import code_pin
from grandrounds.deploy.cli.main import app
from grandrounds.deploy.registry.entries import REGISTRY_BOOK
from grandrounds.deploy.registry.folder import RegistryFolder
from grandrounds.deploy.simulation.folder import SimulationFolder
from grandrounds.deploy.verify import case
from grandrounds.deploy.verify.claims import verify
from grandrounds.deploy.verify.evidence import read_evidence
from grandrounds.deploy.verify.verdict import Outcome, Status
from grandrounds.server.report.report import Report, build_report, render_json

EARLIER = {"package_version": "0.0.9", "package_sha256": "12" * 32}
SAID = f"made by grandrounds 0.0.9 with files of SHA-256 {'12' * 32}, in another form"
Fields = dict[str, Any]


def lacks_one(manifest: Fields) -> Fields:
    training = {name: value for name, value in manifest["study"]["training"].items() if name != "rounds"}
    return manifest | {"study": manifest["study"] | {"training": training}}


def lacks_one_with_a_default(manifest: Fields) -> Fields:
    return {name: value for name, value in manifest.items() if name != "app_sha256"}


def has_one_more(manifest: Fields) -> Fields:
    return manifest | {"colour": "blue"}


FORMS = [lacks_one, lacks_one_with_a_default, has_one_more]


@pytest.fixture
def earlier(study: SmallStudy, folder: Path) -> Path:
    """The study's folder as another program would have begun it, of whose manifest this one knows not all."""
    return rewritten(study, folder, has_one_more(study.manifest.model_dump(mode="json") | EARLIER))


def rewritten(study: SmallStudy, folder: Path, manifest: Fields) -> Path:
    """The folder with another manifest, which its server signs, and all that follows anew."""
    (folder / MANIFEST).write_bytes(canonical_json(manifest))
    entries = [Entry.parse(line) for line in study.lines]
    bodies: list[Fields] = [{"manifest": manifest}, *(entry.body for entry in entries[1:])]
    for body in bodies:
        if "files" in body:
            body["files"][MANIFEST] = sha256(canonical_json(manifest))
    signed: list[Entry] = []
    for number, (entry, body) in enumerate(zip(entries, bodies, strict=True)):
        previous = signed[-1].hash if signed else "00" * 32
        signed.append(Entry.seal(study.server, entry_type=entry.type, body=body, sequence=number, previous=previous))
    write_ledger(folder, [entry.line for entry in signed])
    return folder


def said_of(folder: Path, *names: str, manifest_hash: str | None = None) -> list[tuple[str, str]]:
    """Status and detail of the claims of these names."""
    findings = {finding.name: finding for finding in verify(folder, manifest_hash).findings}
    return [(findings[name].status.value, findings[name].detail) for name in names]


def ran(*words: object) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


@pytest.mark.parametrize("form", FORMS)
def test_verify_says_with_which_version_to_verify_it_and_calls_nothing_false(
    form: Callable[[Fields], Fields], study: SmallStudy, folder: Path
) -> None:
    manifest = form(study.manifest.model_dump(mode="json") | EARLIER)
    rewritten(study, folder, manifest)
    hash_ = sha256(MANIFEST_LABEL + canonical_json(manifest))
    result = ran("verify", folder, "--manifest-hash", hash_)
    assert result.exit_code == Outcome.UNKNOWN
    assert SAID in result.stdout and "verify the study with that version" in result.stdout
    assert "agree, 0 do not" in result.stdout and "DOES NOT" not in result.stdout


def test_of_any_form_chain_signatures_manifest_and_files_are_told(study: SmallStudy, earlier: Path) -> None:
    hash_ = sha256(MANIFEST_LABEL + (earlier / MANIFEST).read_bytes())
    for given in (hash_, f" {hash_[:8].upper()} {hash_[8:]}"):
        ((status, known),) = said_of(earlier, "authorship", manifest_hash=given)
        assert status == "cannot be established" and known.startswith(
            "it has the manifest that you know; but the study"
        )
    claims = said_of(earlier, "ledger", "manifest", "authorship", "files")
    assert {status for status, _ in claims} == {"cannot be established"}
    ledger, manifest, authorship, files = (detail for _, detail in claims)
    assert ledger.startswith(
        f"{len(study.lines)} entries are chained and signed by the server that its manifest names; but the study"
    )
    assert manifest.startswith(f"it is the ledger's last, SHA-256 {hash_}; but")
    assert authorship.startswith(f"its manifest's SHA-256 is {hash_}; but")
    assert files.startswith("6 of the 6 with which it was closed are there, as they were; but")


def test_another_hash_than_that_of_such_a_manifest_is_false(earlier: Path) -> None:
    hash_ = sha256(MANIFEST_LABEL + (earlier / MANIFEST).read_bytes())
    for wrong in ("ab" * 32, hash_[:-1], sha256((earlier / MANIFEST).read_bytes())):
        assert ran("verify", earlier, "--manifest-hash", wrong).exit_code == Outcome.FALSE
        ((status, detail),) = said_of(earlier, "authorship", manifest_hash=wrong)
        assert (status, detail) == ("does not agree", f"this study's manifest is {hash_}")


def test_such_a_study_of_which_something_was_changed_is_false(study: SmallStudy, earlier: Path) -> None:
    """Whoever wrote it: a manifest beside the ledger's, an entry by a stranger or taken out, another adapter."""

    def changed(path: Path, data: bytes) -> list[str]:
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(data)
        wrong = [finding.name for finding in verify(earlier).findings if finding.status is Status.DISAGREES]
        path.unlink() if before is None else path.write_bytes(before)
        return wrong

    ledger = earlier / LEDGER
    *lines, _ = ledger.read_bytes().split(b"\n")
    last, stranger = Entry.parse(lines[-1]), Identity.generate()
    foreign = Entry.seal(
        stranger, entry_type=last.type, body=last.body, sequence=last.sequence + 1, previous=last.hash
    ).line
    unknown = {"author": stranger.public_key, "body": {}, "previous": last.hash, "sequence": last.sequence + 1}
    unknown |= {"type": "a-new-type"}
    signature = stranger.sign(b"grandrounds/ledger/v1\n", canonical_json(unknown)).hex()
    assert changed(earlier / MANIFEST, (earlier / MANIFEST).read_bytes().replace(b"blue", b"grey")) == [
        "manifest",
        "files",
    ]
    assert changed(ledger, b"\n".join([*lines[:2], *lines[3:], b""])) == ["ledger"]
    assert changed(ledger, b"\n".join([*lines, foreign, b""])) == ["ledger"]
    assert changed(ledger, b"\n".join([*lines, canonical_json({**unknown, "signature": signature}), b""])) == ["ledger"]
    assert changed(ledger, ledger.read_bytes()[:-9]) == ["ledger"]
    assert changed(earlier / WEIGHTS, b"others") == ["files"]
    assert changed(earlier / "adapter" / "more", b"") == ["files"]
    assert changed(ledger, ledger.read_bytes()) == []


def test_a_successor_in_a_line_of_another_form_may_be_the_one_that_is_known(study: SmallStudy, earlier: Path) -> None:
    ledger = earlier / LEDGER
    *lines, _ = ledger.read_bytes().split(b"\n")
    last = Entry.parse(lines[-1])
    fields = {"author": study.server.public_key, "body": {}, "previous": last.hash, "sequence": last.sequence + 1}
    fields |= {"type": "a-new-type"}
    signature = study.server.sign(b"grandrounds/ledger/v1\n", canonical_json(fields)).hex()
    ledger.write_bytes(ledger.read_bytes() + canonical_json({**fields, "signature": signature}) + b"\n")
    assert ran("verify", earlier, "--manifest-hash", "ab" * 32).exit_code == Outcome.UNKNOWN
    ((_, detail),) = said_of(earlier, "authorship", manifest_hash="ab" * 32)
    assert "unless a later entry has the one that you know" in detail


def test_every_other_command_says_so_too(earlier: Path, tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    records.write_text('{"patient_id": "a", "text": "well"}\n', encoding="utf-8")
    registry = tmp_path / "registry"
    assert ran("registry", "init", registry, "--called", "adapters").exit_code == 0
    hash_ = sha256(MANIFEST_LABEL + (earlier / MANIFEST).read_bytes())
    for words in (
        ["registry", "add", registry, earlier, "--name", "letters"],
        ["registry", "add", registry, earlier, "--name", "letters", "--manifest-hash", hash_],
        ["adapter", "try", earlier],
        ["adapter", "merge", earlier, "--output", tmp_path / "merged"],
        ["generate", earlier, "--output", tmp_path / "notes.jsonl"],
        ["audit", earlier],
    ):
        error = ran(*words).exception
        assert isinstance(error, OtherProgramError) and SAID in error.what, (words, error)
    error = ran("registry", "add", registry, earlier, "--name", "letters", "--manifest-hash", "ab" * 32).exception
    assert isinstance(error, StudyError) and f"this study's manifest is {hash_}" in error.what


def test_whoever_goes_on_with_it_is_told_the_same(earlier: Path, tmp_path: Path) -> None:
    joined = SiteFolder(tmp_path).of("ab" * 32)
    joined.path.mkdir(parents=True)
    (joined.path / MANIFEST).write_bytes((earlier / MANIFEST).read_bytes())
    for read in (joined.manifest, SimulationFolder.open(earlier).manifest):
        with pytest.raises(OtherProgramError, match=r"made by grandrounds 0\.0\.9"):
            read()


@pytest.mark.parametrize("form", FORMS)
def test_of_this_very_program_such_a_manifest_is_a_fault(
    form: Callable[[Fields], Fields], study: SmallStudy, folder: Path
) -> None:
    rewritten(study, folder, form(study.manifest.model_dump(mode="json")))
    assert ran("verify", folder).exit_code == Outcome.FALSE


@pytest.mark.parametrize(("entry_type", "body"), [("a-new-type", {}), ("countersignature", {"colour": "blue"})])
def test_an_entry_of_another_form_is_for_the_program_that_wrote_it(
    study: SmallStudy, folder: Path, entry_type: str, body: Fields, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Entry.parse(study.lines[0])
    fields = {"author": first.author, "body": body, "previous": first.hash, "sequence": 1, "type": entry_type}
    signature = study.server.sign(b"grandrounds/ledger/v1\n", canonical_json(fields)).hex()
    write_ledger(folder, [study.lines[0], canonical_json({**fields, "signature": signature})])
    assert ran("verify", folder).exit_code == Outcome.FALSE
    case.replay.cache_clear()
    monkeypatch.setattr(code_pin, "__version__", "9.9")
    assert ran("verify", folder).exit_code == Outcome.UNKNOWN
    case.replay.cache_clear()


def test_a_stranger_s_entry_makes_nothing_open_of_a_study_of_another_program(
    study: SmallStudy, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger, last = Identity.generate(), Entry.parse(study.lines[-1])
    fields = {
        "author": stranger.public_key,
        "body": {},
        "previous": last.hash,
        "sequence": last.sequence + 1,
        "type": "a-new-type",
    }
    signature = stranger.sign(b"grandrounds/ledger/v1\n", canonical_json(fields)).hex()
    write_ledger(folder, [*study.lines, canonical_json({**fields, "signature": signature})])
    monkeypatch.setattr(code_pin, "__version__", "9.9")
    case.replay.cache_clear()
    assert ran("verify", folder).exit_code == Outcome.FALSE
    case.replay.cache_clear()


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """This program becomes a later one, whose reports say more."""

    def built(*arguments: Any) -> Report:
        return build_report(*arguments) | {"colour": "blue"}

    monkeypatch.setattr(code_pin, "__version__", "9.9")
    monkeypatch.setattr(case, "build_report", built)


@pytest.mark.usefixtures("later")
def test_a_report_that_says_less_than_a_later_program_s_is_not_false_and_one_that_lies_is(
    study: SmallStudy, folder: Path
) -> None:
    verdict = verify(folder, study.manifest.sha256)
    assert (verdict.holds, verdict.outcome) == (True, Outcome.UNKNOWN)
    said = next(finding for finding in verdict.findings if finding.name == "report")
    assert "it differs in colour, which another program may have written so" in said.detail
    (folder / REPORT).write_bytes(render_json(study.report() | {"attempts": 1}))
    reclosed(study, folder)
    verdict = verify(folder, study.manifest.sha256)
    assert [one.name for one in verdict.findings if one.status is Status.DISAGREES] == ["report"]


def test_a_registry_is_checked_whole_and_names_the_releases_of_other_programs(
    study: SmallStudy, folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    registry = tmp_path / "registry"
    ran("registry", "init", registry, "--called", "adapters")
    ran("registry", "add", registry, folder, "--name", "letters", "--manifest-hash", study.manifest.sha256)
    assert ran("registry", "verify", registry).exit_code == 0
    request.getfixturevalue("later")
    error = ran("registry", "verify", registry).exception
    assert isinstance(error, OtherProgramError) and "letters@1: the study cannot be confirmed here" in error.what
    assert "of 1 of 1 releases" in error.what and "what the registry says of it is what its report says" in error.what
    listed = json.loads(ran("registry", "list", registry, "--json").stdout)
    assert len(listed) == 1, "what the registry itself says is read by every version"
    ledger = registry / "releases" / "letters" / "1" / LEDGER
    ledger.write_bytes(ledger.read_bytes() + b"\n")
    error = ran("registry", "verify", registry).exception
    assert error is not None and not isinstance(error, OtherProgramError), "a changed file is a fault whoever wrote it"


def resaid(registry: Path, of: str, **facts: Any) -> None:
    """Whoever keeps the registry enters other facts of its release, and files as they are now."""
    place, found = RegistryFolder(registry), RegistryFolder(registry).read()
    opened, released = found.ledger
    files = {path: sha256(data) for path, data in read_evidence(place.path / of).files.items()}
    body = released.body | {"facts": released.body["facts"] | facts | {"files": files}}
    line = Entry.seal(
        read_key(registry / "key", whose="", instead=""),
        entry_type=released.type,
        body=body,
        sequence=1,
        previous=opened.hash,
        book=REGISTRY_BOOK,
    ).line
    place.ledger.write_bytes(opened.line + b"\n" + line + b"\n")


@pytest.fixture
def registry(study: SmallStudy, folder: Path, tmp_path: Path) -> Path:
    place = tmp_path / "registry"
    ran("registry", "init", place, "--called", "adapters")
    ran("registry", "add", place, folder, "--name", "letters", "--manifest-hash", study.manifest.sha256)
    return place


def test_what_a_registry_says_is_compared_with_another_program_s_report_too(
    registry: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("later")
    resaid(registry, "releases/letters/1", epsilon=0.01)
    error = ran("registry", "verify", registry).exception
    assert isinstance(error, StudyError) and not isinstance(error, OtherProgramError)
    assert "what the registry says of letters@1 is not what its study's report says" in error.what


def test_a_release_whose_report_this_program_cannot_read_is_named_with_what_was_not_compared(
    study: SmallStudy, registry: Path
) -> None:
    kept = registry / "releases" / "letters" / "1"
    manifest = has_one_more(study.manifest.model_dump(mode="json") | EARLIER)
    rewritten(study, kept, manifest)
    for hash_, kind in (
        (sha256(MANIFEST_LABEL + canonical_json(manifest)), OtherProgramError),
        ("ab" * 32, StudyError),
    ):
        resaid(registry, "releases/letters/1", manifest_sha256=hash_)
        error = ran("registry", "verify", registry).exception
        assert type(error) is kind
        if kind is OtherProgramError:
            assert "of 1 of 1 releases this program cannot confirm the study. letters@1: " in error.what
            assert "its privacy among it, was compared with no report" in error.what


def test_what_stays_open_of_a_release_is_said(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version ran the study, whose report this one writes the same."""
    assert json.loads(ran("registry", "verify", registry, "--json").stdout)["open"] == {"letters@1": []}
    monkeypatch.setattr(code_pin, "__version__", "9.9")
    assert (
        "its study's claims hold, but for what stays open here: program" in ran("registry", "verify", registry).stdout
    )
    assert json.loads(ran("registry", "verify", registry, "--json").stdout)["open"] == {"letters@1": ["program"]}
