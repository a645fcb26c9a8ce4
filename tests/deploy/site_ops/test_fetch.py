"""A site holds what the study left, verifies it by itself, and tries the adapter on records that stay with it."""

import json
import shutil
import stat
from contextlib import closing

import pytest
from support.study import carried_study
from support.study.audited_study import audit_of
from support.study.carried_study import carried
from typer.testing import CliRunner

from grandrounds.client.budget.policy import POLICY
from grandrounds.client.site import assembly
from grandrounds.client.site.folder import SETTINGS, SiteFolder
from grandrounds.client.site.training_view import NEVER_LEAVES
from grandrounds.client.state.database import SiteDatabase
from grandrounds.common.audit.evidence import AuditEvidence
from grandrounds.common.audit.membership import FEWEST
from grandrounds.common.audit.named import name_of
from grandrounds.common.crypto.identity import sha256
from grandrounds.common.errors import DataError, StorageError, StudyError
from grandrounds.common.ledger.message_sizes import largest_request_bytes
from grandrounds.common.study.artefacts import AUDIT, LEDGER, REPORT, RESULTS, WEIGHTS
from grandrounds.deploy.attacks.site import WRITTEN, attack
from grandrounds.deploy.bench.loopback import LoopbackFederation
from grandrounds.deploy.cli.main import app
from grandrounds.deploy.enrolment.bundle import Bundle
from grandrounds.deploy.server_ops import bundling
from grandrounds.deploy.site_ops import fetch as site_fetch
from grandrounds.deploy.verify.claims import CLAIMS, verify
from grandrounds.deploy.verify.evidence import read_evidence

SITES = ("north", "south", "west")
WORD = "zebra"  # of records that no figure may repeat


def fetch(folder, *, output):
    return site_fetch.fetch(folder, folder.study(), output=output)


def open_site(folder):
    return assembly.open_site(folder, folder.study())


class Heard:
    """A site's resident worker, of whose study every message is kept."""

    def __init__(self, worker, messages):
        self.worker, self.messages = worker, messages

    def answer(self, message):
        self.messages.append(message)
        return self.worker.answer(message)

    def close(self):
        self.worker.close()


@pytest.fixture(scope="module")
def messages():
    """Every message that one of the sites was sent in its study."""
    return []


def patched_bounds(patched):
    """Where it is noted that an audit's bounds were computed again, which takes seconds."""
    noted, bounds = [], AuditEvidence.require_bounds

    def required(evidence):
        noted.append(evidence)
        bounds(evidence)

    patched.setattr(AuditEvidence, "require_bounds", required)
    return noted


class Audited(LoopbackFederation):
    """A federation whose study names an audit of itself."""

    def _join(self, site):
        if self.bundle.audit is None:
            audit = self.path / "found.json"
            audit.write_bytes(audit_of(self.bundle.manifest, seen=0.0))
            with self.folder.study_toml.open("a") as file:
                file.write(f'[about]\naudit = "{audit}"\n')
            with pytest.MonkeyPatch.context() as patched:
                checked = patched_bounds(patched)
                self.said = bundling.bundle_anew(self.folder)
            self.times_checked = len(checked)
            self.bundle = Bundle.read(self.folder.bundle)
        super()._join(site)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, messages):
    federation = Audited(tmp_path_factory.mktemp("f"), sites=SITES, rounds=1, max_attempts=2)
    with pytest.raises(StudyError, match="not over"):
        list(fetch(SiteFolder(federation.path / "north"), output=None))
    opened = carried_study.opened
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            carried_study,
            "opened",
            lambda federation, site: Heard(opened(federation, site), messages if site == "north" else []),
        )
        carried(federation)
    return federation


@pytest.fixture
def folder(finished, tmp_path):
    shutil.copytree(finished.path / "north", tmp_path / "north")
    return SiteFolder(tmp_path / "north")


def kept(folder):
    return folder.study().results


def hold_out(folder, *patients, opted_out=()):
    rows = [{"patient_id": name, "text": "no complaints"} for name in patients]
    (folder.path / "held-out.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with (folder.path / SETTINGS).open("a") as file:
        file.write('held_out = "held-out.jsonl"\n')
    (folder.path / "opted-out.txt").write_text("\n".join(opted_out))
    with (folder.path / POLICY).open("a") as file:
        file.write('opted_out = "opted-out.txt"\n')


def test_every_site_holds_the_very_files_that_the_server_has(finished):
    study = finished.folder.study.path
    for site in SITES:
        results = kept(SiteFolder(finished.path / site))
        assert all((results / name).read_bytes() == (study / name).read_bytes() for name in RESULTS)


def test_an_audit_that_the_study_names_is_told_before_sites_sign_and_is_in_the_report_that_they_check(finished):
    (told,) = [line for line in finished.said if line.startswith("audit ")]
    assert "by 60 planted gradient canaries, and 4 is claimed" in told
    assert finished.times_checked == 1, "before the model is loaded, and not once more"
    report = json.loads((kept(SiteFolder(finished.path / "north")) / REPORT).read_bytes())
    assert report["audit"]["found"]["sha256"] == sha256((finished.path / "found.json").read_bytes())
    assert report["audit"]["is_signed"]


def test_a_site_takes_requests_that_bring_the_finished_adapter_with_its_public_tensors(folder):
    with closing(open_site(folder)) as resident:
        more = resident.largest_request_bytes - largest_request_bytes(folder.study().manifest())
    assert more == len(folder.study().frozen_adapter()) > 0


def test_what_is_fetched_is_verified_and_anyone_can_verify_it_again(folder, tmp_path):
    with closing(open_site(folder)):  # the worker runs
        said = list(fetch(folder, output=tmp_path / "copy"))
    checked = len(CLAIMS) - 1  # no attacks are kept with a federation's study
    assert f"{checked} of {checked} claims" in said[0]
    assert "held_out" in said[-1]
    assert name_of((tmp_path / "copy" / AUDIT).read_bytes()) == folder.study().manifest().study.about.audit
    assert read_evidence(tmp_path / "copy") == read_evidence(kept(folder))
    assert verify(tmp_path / "copy", manifest_hash=folder.study().manifest().sha256).holds


def test_it_may_be_fetched_again_and_nothing_else_is_overwritten(folder, tmp_path):
    first = list(fetch(folder, output=tmp_path / "copy"))
    assert list(fetch(folder, output=tmp_path / "copy")) == first
    (tmp_path / "copy" / LEDGER).write_bytes(b"another study's")
    with pytest.raises(StorageError, match="cannot be written"):
        list(fetch(folder, output=tmp_path / "copy"))
    assert (tmp_path / "copy" / LEDGER).read_bytes() == b"another study's"


def test_a_site_that_died_before_it_signed_has_nothing_to_fetch_and_one_that_died_then_knows_no_other_signature(folder):
    database = SiteDatabase.open(folder.state)
    signatures = len(SITES)
    last = database.integer("SELECT max(sequence) FROM ledger")
    database.change("DELETE FROM ledger WHERE sequence > ?", last - signatures)
    database.close()
    said = list(fetch(folder, output=None))
    assert f"{len(CLAIMS) - 3} of {len(CLAIMS) - 1} claims" in said[0]
    assert "0 sites of at least" in said[1]
    assert "0 sites signed that" in said[2]
    assert "the server's operator can send" in said[3]
    database = SiteDatabase.open(folder.state)
    database.change("DELETE FROM ledger WHERE sequence = ?", last - signatures)
    database.close()
    with pytest.raises(StudyError, match="not over"):
        list(fetch(folder, output=None))


def test_results_that_were_removed_are_missed(folder):
    shutil.rmtree(kept(folder))
    with pytest.raises(StorageError, match="is gone"):
        list(fetch(folder, output=None))


def test_an_adapter_whose_claim_does_not_hold_is_not_handed_on(folder, tmp_path):
    weights = kept(folder) / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(StudyError, match="does not hold"):
        list(fetch(folder, output=tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()


def test_the_adapter_is_evaluated_on_records_that_are_held_out_and_the_figure_is_kept_nowhere(folder):
    list(fetch(folder, output=None))
    hold_out(folder, "someone", "who opted out", opted_out=["who opted out"])
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    assert "perplexity on the one record held out" in list(fetch(folder, output=None))[-1]
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before
    with (folder.path / POLICY).open("a") as policy:
        policy.write('[minimise]\nreplace = [{ pattern = "no .*", with = "" }]\n')
    with pytest.raises(DataError, match=r"held-out\.jsonl, line 1: nothing is left of it after minimisation"):
        list(fetch(folder, output=None))


@pytest.mark.parametrize("spelled", ["north-3", "North-03", "north\u20113", "north-3.0"])
def test_records_of_patients_who_trained_are_not_held_out(folder, spelled):
    hold_out(folder, spelled, "someone")
    with pytest.raises(DataError, match="patients of the records that are held out") as error:
        list(fetch(folder, output=None))
    assert spelled not in error.value.diagnostics()


@pytest.mark.parametrize("settings", ["", 'similar_identifiers = "different"\n'])
def test_nor_are_they_under_another_identifier_that_a_crosswalk_knows(folder, settings):
    hold_out(folder, "OLD", "someone")
    (folder.path / "walk.csv").write_text("from,to\nOLD,north-3\n")
    said = (folder.path / SETTINGS).read_text().splitlines(keepends=True)
    lines = [line for line in said if not line.startswith("data = ")]
    (data,) = (line.removeprefix("data = ").strip() for line in said if line.startswith("data = "))
    source = f'[data]\nfiles = [{data}]\ncrosswalk = "walk.csv"\n'
    (folder.path / SETTINGS).write_text("".join(lines) + settings + source)
    with pytest.raises(DataError, match="patients of the records that are held out"):
        list(fetch(folder, output=None))


def test_another_spelling_is_another_patient_where_the_settings_say_so(folder):
    hold_out(folder, "North-3", "someone")
    with (folder.path / "site.toml").open("a") as file:
        file.write('similar_identifiers = "different"\n')
    assert "perplexity on the two records held out" in list(fetch(folder, output=None))[-1]


def strangers(count):
    return [f"{WORD}-{number}" for number in range(count)]


def attacked(folder):
    return list(attack(folder, folder.study(), tell=lambda doing: None))


def test_what_attacks_find_is_in_no_message_and_in_no_file_but_one_of_the_site_s_own(messages, folder):
    def answers():
        with closing(open_site(folder)) as resident:
            return [resident.answer(message) for message in messages]

    def others():
        files = (path for path in folder.path.rglob("*") if path.is_file() and path.name != WRITTEN)
        return {path: path.read_bytes() for path in files}

    list(fetch(folder, output=None))
    hold_out(folder, *strangers(FEWEST))
    answered, before = answers(), others()
    result = CliRunner().invoke(app, ["client", "fetch", str(folder.path), "--attack"])
    assert result.exit_code == 0, result.output
    assert others() == before
    assert answers() == answered
    kept = folder.study().kept / WRITTEN
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    lines = kept.read_text().splitlines()
    assert lines[-1] == NEVER_LEAVES
    assert all(line in result.output for line in lines)
    assert any(line.startswith("VERDICT") for line in lines)
    assert f"{FEWEST} patients who were trained on, and {FEWEST} who were not" in result.output
    assert WORD not in result.output
    assert WORD.encode() not in kept.read_bytes()


def test_without_enough_patients_held_out_an_attack_is_refused_and_nobody_is_named(folder):
    with pytest.raises(DataError, match="names no records that are held out"):
        attacked(folder)
    hold_out(folder, *strangers(FEWEST - 1))
    with pytest.raises(DataError, match=f"{FEWEST - 1} patients are held out, and attacks need {FEWEST}") as error:
        attacked(folder)
    assert WORD not in error.value.diagnostics()


def test_patients_who_trained_are_no_others(folder):
    hold_out(folder, *strangers(FEWEST))
    with (folder.path / "held-out.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"patient_id": "North-3", "text": "no complaints"}))
    with pytest.raises(DataError, match="patients of the records that are held out"):
        attacked(folder)
    assert not (folder.study().kept / WRITTEN).exists()
