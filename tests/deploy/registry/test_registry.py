"""``grandrounds registry`` as whoever keeps one meets it: what it writes, and what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.registry_commands import done, ran
from support.study.attacked_study import PATIENTS, attacks_of, simulated
from support.study.audited_study import audit_of
from support.study.verified_study import SmallStudy
from support.study.verified_study import ran as ran_study

from grandrounds.common.errors import GrandRoundsError
from grandrounds.common.study.artefacts import ATTACKS, AUDIT, PAGE, REPORT, WEIGHTS
from grandrounds.server.report import attacks
from grandrounds.server.report.audit import attached
from grandrounds.server.report.findings import promise


def refused(*words: str | Path) -> str:
    """The diagnosis by which the command ends."""
    error = ran(*words).exception
    assert isinstance(error, GrandRoundsError), error
    return error.diagnostics()


@pytest.fixture(scope="module")
def made(closed: tuple[SmallStudy, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with one release; not to be changed."""
    study, finished = closed
    folder = tmp_path_factory.mktemp("registry") / "of adapters"
    assert "whose key others compare" in done("init", folder, "--called", "Adapters of Oslo")
    options = ("--manifest-hash", study.manifest.sha256, "--asset", "site-1=oncology")
    said = done("add", folder, finished, "--name", "letters", *options)
    assert "letters@1, in use" in said and "patients of  oncology, site-2," in said and "ε = " in said
    return folder


@pytest.fixture
def registry(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(made, tmp_path / "registry")


def test_a_release_is_listed_shown_and_counted_for_people_and_for_machines(made: Path, study: SmallStudy) -> None:
    (listed,) = json.loads(done("list", made, "--json"))
    nobody_s: dict[str, Any] = {"began_with": None, "before": [], "withdrawn": [], "after": []}
    assert {**listed, "lineage": nobody_s} == json.loads(done("show", made, "letters", "--json")) and listed["in_use"]
    assert (listed["release"], listed["manifest_sha256"]) == ("letters@1", study.manifest.sha256)
    rows = json.loads(done("spent", made, "--json"))
    assert {row["asset"] for row in rows} == {"oncology", "site-2", "site-3", "site-4", "site-5"}
    assert {row["epsilon_so_far"] for row in rows} == {listed["epsilon"]}
    for command in (("list",), ("show", "letters"), ("log",), ("spent",)):
        said = done(command[0], made, *command[1:])
        assert f"was not compared: grandrounds registry verify {made} --key KEY --head HASH" in said
    assert "letters@1" in done("list", made) and "50 → 20" in done("list", made)
    assert "add up" in done("spent", made)
    opened, released = json.loads(done("log", made, "--json"))
    assert (opened["called"], released["type"]) == ("Adapters of Oslo", "adapter-released")
    assert (made / "key").stat().st_mode & 0o777 == 0o600


def test_a_study_is_added_once_after_its_claims_hold_and_somebody_vouched_for_it(
    registry: Path, study: SmallStudy, folder: Path, tmp_path: Path
) -> None:
    known = ("--manifest-hash", study.manifest.sha256)
    before = (registry / "registry.jsonl").read_bytes()
    assert "nobody vouched for" in refused("add", registry, folder, "--name", "letters")
    assert "DOES" not in (said := refused("add", registry, folder, "--name", "letters", "--manifest-hash", "ab" * 32))
    assert "It is the manifest that you know" in said
    assert "its study is letters@1" in refused("add", registry, folder, "--name", "notes", *known)
    assert "needs a name" in refused("add", registry, folder, "--name", "../out", *known)
    said = refused("add", registry, folder, "--name", "notes", "--asset", "site-9=x", *known)
    assert "site-9: the study's sites are site-1" in said
    (folder / PAGE).write_text("all is well", encoding="utf-8")
    assert "The page says what the report says" in refused("add", registry, folder, "--name", "notes", *known)
    assert "no registry" not in refused("add", tmp_path / "none", folder, "--name", "notes", *known)
    assert (registry / "registry.jsonl").read_bytes() == before and not (tmp_path / "none").exists()
    assert [path.name for path in (registry / "releases").iterdir()] == ["letters"]


def test_an_audit_that_the_report_states_is_kept_and_handed_out_or_noted_as_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, folder, report = ran_study(), tmp_path / "study", SmallStudy.report
    folder.mkdir()
    (folder / AUDIT).write_bytes(audit_of(study.manifest))
    audited = attached(folder, study.manifest)
    monkeypatch.setattr(SmallStudy, "report", lambda self: report(self, audit=audited))
    study.close(folder)
    added = ("--name", "letters", "--manifest-hash", study.manifest.sha256)
    for registry in (tmp_path / "server's", tmp_path / "site's"):
        done("init", registry)
        said = done("add", registry, folder, *added)
        assert ("open then    audit" in said) != (folder / AUDIT).exists()
        assert "claims hold" in done("verify", registry)
        done("received", registry, "letters", "--by", "x", "--output", registry / "theirs")
        assert (registry / "theirs" / AUDIT).exists() == (folder / AUDIT).exists()
        (folder / AUDIT).unlink(missing_ok=True)


def test_what_attacks_found_of_a_simulation_s_adapter_is_known_of_its_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, folder, registry = simulated(), tmp_path / "study", tmp_path / "registry"
    study.close(folder)
    (folder / ATTACKS).write_bytes(attacks_of(study))
    done("init", registry)
    said = done("add", registry, folder, "--name", "letters", "--manifest-hash", study.manifest.sha256)
    assert (
        f"attacks      on {PATIENTS} and {PATIENTS} patients of nobody" in said and "guessing is 0.5, ε allows" in said
    )
    (listed,) = json.loads(done("list", registry, "--json"))
    assert listed["attacks"]["members"] == PATIENTS and (registry / "releases" / "letters" / "1" / ATTACKS).exists()
    elsewhere = [(delta, epsilon * (1 + 1e-12)) for delta, epsilon in promise(study.manifest) or ()]
    monkeypatch.setattr(attacks, "promise", lambda manifest: tuple(elsewhere))
    assert "its study's claims hold" in done("verify", registry), "the last digits of a figure are the machine's"
    assert "claims hold" in done("verify", registry)


def test_a_release_is_handed_out_withdrawn_and_then_neither_handed_out_nor_in_use(
    registry: Path, tmp_path: Path, folder: Path
) -> None:
    said = done("received", registry, "letters", "--by", "Bergen, radiology", "--output", tmp_path / "theirs")
    assert f"grandrounds verify {tmp_path / 'theirs'} --manifest-hash" in said
    assert (tmp_path / "theirs" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert "names no version" in refused("withdraw", registry, "letters", "--reason", "names in its texts")
    assert "one line" in refused("withdraw", registry, "letters@1", "--reason", "two\nlines")
    done("incident", registry, "a copy was mailed", "--about", "letters@1")
    said = done("withdraw", registry, "letters@1", "--reason", "names in its texts")
    assert "received by: Bergen, radiology; tell them" in said and "no version of letters is in use now" in said
    assert "was withdrawn on" in refused("received", registry, "letters@1", "--by", "Oslo", "--output", tmp_path / "no")
    assert not (tmp_path / "no").exists()
    assert "was withdrawn on" in refused("rollback", registry, "letters@1", "--reason", "x")
    assert "no version of letters is in use" in refused("show", registry, "letters")
    assert "WITHDRAWN" in done("list", registry)
    assert [note["type"] for note in json.loads(done("log", registry, "--json"))] == [
        "registry-opened",
        "adapter-released",
        "adapter-received",
        "incident",
        "adapter-withdrawn",
    ]


def test_a_registry_is_verified_against_its_key_an_earlier_head_and_what_it_keeps(registry: Path) -> None:
    told = json.loads(done("verify", registry, "--json"))
    done("incident", registry, "a disk failed")
    said = done("verify", registry, "--key", told["key"], "--head", told["head"])
    assert "it continues what it was" in said and "letters@1 is what was released" in said
    in_groups = " ".join(told["head"].upper()[at : at + 8] for at in range(0, 64, 8))
    assert "it continues what it was" in done("verify", registry, "--head", in_groups)
    assert "was not compared" in done("verify", registry)
    assert "not the one that was given" in refused("verify", registry, "--key", "ab" * 32)
    ledger = registry / "registry.jsonl"
    head, lines = json.loads(done("verify", registry, "--json"))["head"], ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:-1]))
    assert "entries were taken off its end" in refused("verify", registry, "--head", head)
    kept = registry / "releases" / "letters" / "1"
    (kept / REPORT).write_bytes((kept / REPORT).read_bytes().replace(b"40", b"10"))
    assert f"is not what was released: {REPORT}" in refused("verify", registry)
    assert "is not what was released" in refused("received", registry, "letters", "--by", "x", "--output", kept / "x")
    ledger.write_bytes(b"".join(lines)[:-5])
    for command in (("list",), ("verify",), ("incident", "x")):
        assert "its last line is cut" in refused(command[0], registry, *command[1:])


def test_without_its_key_a_registry_is_read_and_not_written(registry: Path, tmp_path: Path) -> None:
    (registry / "key").unlink()
    assert "letters@1" in done("list", registry)
    assert "needs" not in (said := refused("incident", registry, "x")) and "can only be read" in said
    assert "has a registry" in refused("init", registry)
    assert "registry init" in refused("list", tmp_path / "none")
