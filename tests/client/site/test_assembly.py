"""A site's folder: what its worker needs, read and judged before the first message."""

import json
import logging
import shutil
from collections.abc import Callable

import numpy as np
import pytest
from support.process.resident_process import SITE, finish, refusal
from support.study.site_study import SiteStudy, write_policy
from support.study.tiny_models import save_tiny_model

from grandrounds.client.budget.patients import Patients
from grandrounds.client.budget.policy import POLICY
from grandrounds.client.budget.reservations import Reservations
from grandrounds.client.site import assembly
from grandrounds.client.site.assembly import open_update
from grandrounds.client.site.folder import KEY, SETTINGS, SiteFolder
from grandrounds.client.site.joined_study import FROZEN_ADAPTER, PUBLIC_RECORDS
from grandrounds.client.site.site_records import SiteRecords
from grandrounds.client.site.training_view import STEPS, read_steps
from grandrounds.client.state.database import DATABASE, SiteDatabase
from grandrounds.client.state.site_state import SiteState
from grandrounds.client.worker.instant import at_once
from grandrounds.client.worker.service import WorkerService
from grandrounds.common.crypto.identity import Identity
from grandrounds.common.errors import DataError, GrandRoundsError, PrivacyError, StorageError, StudyError
from grandrounds.common.model.example import NO_LOSS
from grandrounds.common.privacy.mechanism import NoNoise
from grandrounds.common.protocol.messages import RefusalCode
from grandrounds.common.study.artefacts import MANIFEST
from grandrounds.common.system.crash_points import CrashPoint
from grandrounds.deploy.site_ops import check as site_check
from grandrounds.deploy.site_ops import commands as site_operator


def open_site(folder):
    return assembly.open_site(folder, folder.study())


def check(folder):
    return site_check.check(folder, folder.study())


def leave(folder):
    return site_operator.leave(folder, folder.study())


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return SiteStudy(save_tiny_model(tmp_path_factory.mktemp("llama")))


@pytest.fixture
def federation(study):
    return study.federation()


@pytest.fixture
def folder(tmp_path, study, federation):
    folder = study.initialised(tmp_path / "site", federation)
    site_operator.join_study(folder, study.bundle(federation, tmp_path / "tls"), agreed=lambda agreement: True)
    return folder


@pytest.fixture(autouse=True)
def answers_leave_at_once(monkeypatch):
    """Their instant has tests of its own, and would be waited for."""
    monkeypatch.setattr(assembly, "AnswerInstant", lambda after_s: at_once)


@pytest.fixture
def opened(folder):
    resident = open_site(folder)
    yield resident
    resident.close()


def test_a_site_that_has_joined_takes_part_with_its_own_records(opened: WorkerService, folder, federation):
    attempt = finish(federation, federation.attempt(), opened.answer)
    assert SITE in attempt.survivors
    assert np.abs(attempt.aggregate).max() > 10, "its noise is in the sum"
    assert not folder.study().training.exists(), "what is exact is written where it is asked for"


def test_a_site_adds_the_public_records_of_its_bundle_and_no_others(study, tmp_path):
    public = "\n".join(json.dumps({"patient_id": number, "text": f"term {number}"}) for number in range(3)).encode()
    federation = study.federation(public)
    folder = study.initialised(tmp_path / "site", federation)
    bundle = study.bundle(federation, tmp_path / "tls", public)
    site_operator.join_study(folder, bundle, agreed=lambda agreement: True)
    (folder.path / SETTINGS).write_text("training_view = true\n" + (folder.path / SETTINGS).read_text())
    resident = open_site(folder)
    try:
        assert SITE in finish(federation, federation.attempt(), resident.answer).survivors
    finally:
        resident.close()
    (step,), _ = read_steps(folder.study().training / STEPS)
    assert step.units == 2 + 2, "of two patients who did not opt out, and public"
    assert "2 of public records beside" in " ".join(check(folder))
    (folder.study().path / PUBLIC_RECORDS).write_bytes(public.replace(b"term 1", b"note 1"))
    with pytest.raises(StudyError, match="and not sha256:"):
        open_site(folder)


def test_a_site_sees_of_its_own_training_what_it_asked_for_and_its_log_has_nothing_of_it(folder, federation, caplog):
    (folder.path / SETTINGS).write_text("training_view = true\n" + (folder.path / SETTINGS).read_text())
    with caplog.at_level(logging.DEBUG, logger="grandrounds"):
        resident = open_site(folder)
        try:
            finish(federation, federation.attempt(), resident.answer)
        finally:
            resident.close()
    (step,), _ = read_steps(folder.study().training / STEPS)
    assert (step.round, step.attempt, step.units, step.records, step.failed) == (1, 1, 2, 2, 0)
    assert step.norms is not None and step.norms[0] > 0 and step.signal_to_noise
    assert "training" not in caplog.text and str(step.norms[2])[:6] not in caplog.text


def test_who_opted_out_is_not_among_the_records(folder, study):
    assert SiteRecords.open(folder, folder.study().manifest().study).patients == [
        "patient-0",
        "patient-2",
    ]


BROKEN = [
    '{"patient_id": "patient-2", "text": " "}',
    '{"patient_id": "patient-7", "note": "Wilhelmina is well"}',
    '{"patient_id": "patient-8", "text": "Wilhelmina',
]


def break_records(folder, lines=BROKEN):
    with (folder.path / "notes.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n" + "\n".join(lines))


def updated(folder, model):
    """What the site computes, and the units that it computes it from."""
    manifest = folder.study().manifest()
    records = SiteRecords.open(folder, manifest.study)
    return open_update(folder.settings(), manifest, records, model=model, public=None), list(
        records.units(manifest.study)
    )


def test_records_that_cannot_be_read_neither_stop_a_site_nor_change_who_is_drawn(folder, study, federation, caplog):
    break_records(folder)
    with caplog.at_level(logging.INFO, logger="grandrounds"):
        resident = open_site(folder)
    try:
        assert SITE in finish(federation, federation.attempt(), resident.answer).survivors
    finally:
        resident.close()
    _, units = updated(folder, study.model)
    assert [len(unit) for unit in units] == [1, 2, 1], "each whose patient is known keeps its place, and its unit"
    assert [[bool((one.labels != NO_LOSS).any()) for one in unit] for unit in units] == [[True], [False, True], [False]]
    assert [number for number in range(1, 8) if f"notes.jsonl, line {number}" in caplog.text] == [4, 5, 6]
    assert "Wilhelmina" not in caplog.text


def test_a_zero_in_its_place_leaves_a_unit_s_other_records_what_they_were(folder, study):
    break_records(folder, BROKEN[:1])
    update, units = updated(folder, study.model)
    whole, halved = update._dp_sgd(NoNoise()).norms(units)
    assert halved == pytest.approx(whole / 2)


def minimise(folder, rules):
    with (folder.path / POLICY).open("a") as policy:
        policy.write(f"[minimise]\n{rules}\n")


def test_a_site_trains_on_what_its_policy_s_rules_leave_of_its_records(folder, study):
    def contents():
        return list(SiteRecords.open(folder, folder.study().manifest().study).contents())

    before = contents()
    minimise(folder, 'replace = [{ pattern = "no c.*", with = "well" }]')
    after = contents()
    assert [len(one) for one in (before, after)] == [2, 2]
    assert set(before).isdisjoint(after), "the store that was prepared without the rule is not opened"
    with (folder.path / "notes.jsonl").open("a") as notes:
        notes.write('\n{"patient_id": "patient-0", "text": "no clue"}')
    assert contents() == [after[0], *after]
    (folder.path / POLICY).write_text((folder.path / POLICY).read_text() + 'duplicates = "once"\n')
    assert contents() == after


def test_a_column_that_the_policy_suppresses_is_in_no_record(folder):
    minimise(folder, 'suppress_columns = ["text"]')
    with pytest.raises(StudyError, match="made of the column text, and minimise"):
        open_site(folder)


def test_identifiers_that_differ_in_spelling_alone_stop_a_site_until_its_settings_say_whose_they_are(folder, study):
    break_records(folder, ['{"patient_id": "Patient-02", "text": "ill"}'])
    with pytest.raises(DataError, match=r"notes.jsonl: .* line 3 and notes.jsonl, line 4"):
        open_site(folder)
    unsaid = (folder.path / SETTINGS).read_text()
    for similar, sizes in (("same", [1, 2]), ("different", [1, 1, 1])):
        (folder.path / SETTINGS).write_text(f'{unsaid}similar_identifiers = "{similar}"\n')
        assert [len(unit) for unit in updated(folder, study.model)[1]] == sizes


def test_what_a_study_costs_is_reserved_before_a_record_is_read(folder):
    (folder.path / "notes.jsonl").unlink()
    with pytest.raises(DataError):
        open_site(folder)
    (statement,) = Reservations(SiteDatabase.open(folder.state)).statements()
    assert [reservation.study for reservation in statement.reservations] == [folder.study().manifest().study_id]


def test_a_paused_site_refuses_what_is_new_until_it_goes_on(opened: WorkerService, folder, federation):
    folder.pause()
    attempt = federation.attempt()
    begin = attempt.messages()[SITE]
    assert refusal(opened.answer(begin)) == RefusalCode.PAUSED
    folder.go_on()
    assert SITE in finish(federation, attempt, opened.answer).survivors


def policy_below(folder: SiteFolder) -> None:
    write_policy(folder, folder.study().manifest(), epsilon=1.0)


def another_key(folder: SiteFolder) -> None:
    (folder.path / KEY).write_text(Identity.generate().secret.hex())


def another_frozen_adapter(folder: SiteFolder) -> None:
    size = len(folder.study().frozen_adapter())
    (folder.study().path / FROZEN_ADAPTER).write_bytes(bytes(size))


def prepared_array(folder: SiteFolder, name: str) -> np.ndarray:
    """An array of what is prepared, as it lies on the disk."""
    SiteRecords.open(folder, folder.study().manifest().study)
    (path,) = folder.prepared.glob(f"*/{name}.npy")
    return np.load(path, mmap_mode="r+")


def no_window_left(folder: SiteFolder) -> None:
    prepared_array(folder, "windows")[:] = 0


def tokens_of_nothing(folder: SiteFolder) -> None:
    tokens = prepared_array(folder, "tokens")
    tokens[:] = np.iinfo(tokens.dtype).max


def nothing_to_learn(folder: SiteFolder) -> None:
    prepared_array(folder, "spans")[:] = 0


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (no_window_left, StorageError, "prepared records in .* are damaged"),
        (tokens_of_nothing, StorageError, "prepared records are damaged"),
        (nothing_to_learn, DataError, "has a token left to learn"),
        (policy_below, StudyError, "study.largest_epsilon is 1.0, and the study needs 50.0"),
        (another_key, StudyError, "another key for site-2"),
        (another_frozen_adapter, StudyError, "the frozen adapter is another"),
        (lambda folder: (folder.path / KEY).chmod(0o644), StorageError, "is open to other users"),
        (lambda folder: (folder.path / KEY).write_text("no key"), StorageError, "key is damaged"),
        (lambda folder: (folder.path / KEY).unlink(), StorageError, "there is no .*key"),
        (lambda folder: (folder.study().path / MANIFEST).unlink(), StudyError, "takes part in no study"),
        (lambda folder: (folder.study().path / MANIFEST).write_text("{}"), StorageError, "study.json is damaged"),
        (lambda folder: (folder.study().path / FROZEN_ADAPTER).unlink(), StorageError, "frozen-adapter.bin is damaged"),
        (lambda folder: (folder.path / SETTINGS).write_text("name = 3"), StudyError, "name = 3"),
        (lambda folder: (folder.path / "opted-out.txt").unlink(), DataError, "the opt-outs"),
    ],
)
def test_a_folder_that_does_not_fit_the_study_is_refused_and_lets_go_of_its_state(
    folder, change: Callable[[SiteFolder], object], error: type[GrandRoundsError], text
):
    lock = folder.study().lock
    change(folder)
    with pytest.raises(error, match=text):
        open_site(folder)
    SiteState.open_existing(folder.state, lock=lock).close()


def test_two_workers_never_hold_one_study(opened, folder):
    with pytest.raises(StorageError, match="another worker holds"):
        open_site(folder)


def test_a_budget_that_is_used_up_is_refused_before_a_record_is_read(folder):
    statement = Reservations(database := SiteDatabase.open_existing(folder.state)).statements()[0]
    with database.write(CrashPoint.BEFORE_CANCELLATION, CrashPoint.AFTER_CANCELLATION):
        database.change("UPDATE reservations SET study = ?", "cd" * 32)  # as if another had reserved it
        database.change("UPDATE reservations SET epsilon = ?", statement.asset.limit.epsilon)
    database.close()
    (folder.path / "notes.jsonl").unlink()
    with pytest.raises(PrivacyError, match="asks for ε = 50"):
        open_site(folder)


def rename_asset(folder: SiteFolder, name: str) -> None:
    text = (folder.path / POLICY).read_text()
    (folder.path / POLICY).write_text(text.replace("[data]", f'[data]\nasset = "{name}"'))


def test_patients_under_another_name_have_no_second_budget(folder, study, federation, tmp_path):
    open_site(folder).close()
    leave(folder)
    bundle = study.bundle(federation, tmp_path / "tls")

    def join(folder):
        site_operator.join_study(folder, bundle, agreed=lambda agreement: True)

    (folder.path / "notes.jsonl").rename(folder.path / "away")
    (folder.path / "notes.jsonl").write_text('{"patient_id": "patient-9", "text": "no complaints"}')
    rename_asset(folder, "renamed")
    join(folder)
    (folder.path / "away").rename(folder.path / "notes.jsonl")
    for refused in (open_site, check, join):
        with pytest.raises(PrivacyError, match="data asset renamed has patients of data asset 1, patients") as error:
            refused(folder)
        assert "patient-" not in error.value.diagnostics()


def test_other_patients_may_have_an_asset_of_their_own(folder, study, federation, tmp_path):
    open_site(folder).close()
    leave(folder)
    rename_asset(folder, "others")
    (folder.path / "notes.jsonl").write_text('{"patient_id": "patient-9", "text": "no complaints"}')
    site_operator.join_study(folder, study.bundle(federation, tmp_path / "tls"), agreed=lambda agreement: True)
    open_site(folder).close()


@pytest.mark.parametrize("lose", [shutil.rmtree, lambda state: (state / DATABASE).write_bytes(b"")])
def test_a_state_that_is_lost_is_never_made_anew_in_silence(folder, study, federation, tmp_path, lose):
    lose(folder.state)
    bundle = study.bundle(federation, tmp_path / "tls")
    for refused in (
        open_site,
        check,
        leave,
        lambda folder: site_operator.join_study(folder, bundle, agreed=lambda agreement: True),
        lambda folder: site_operator.init(folder, name=SITE, data=folder.path, model=str(study.base)),
    ):
        with pytest.raises(GrandRoundsError, match="holds no site's state") as error:
            refused(folder)
    assert "grandrounds client recover" in error.value.fix


def test_a_site_that_lost_its_state_starts_with_everything_spent(folder, study, federation, tmp_path):
    with pytest.raises(StudyError, match="holds the site's state"):
        site_operator.recover(folder)
    shutil.rmtree(folder.state)
    site_operator.recover(folder)
    bundle = study.bundle(federation, tmp_path / "tls")
    with pytest.raises(PrivacyError, match="and 0 is left"):
        site_operator.join_study(folder, bundle, agreed=lambda agreement: True)
    rename_asset(folder, "renamed")
    with pytest.raises(PrivacyError, match="has patients of data asset 1, patients"):
        site_operator.join_study(folder, bundle, agreed=lambda agreement: True)


def test_a_recovery_spends_the_budget_of_all_that_a_patient_is_known_by(folder):
    shutil.rmtree(folder.state)
    (folder.path / "walk.csv").write_text("from,to\nOLD,patient-0\n")
    said = (folder.path / SETTINGS).read_text().splitlines(keepends=True)
    lines = [line for line in said if not line.startswith("data = ")]
    source = '[data]\nfiles = ["notes.jsonl"]\ncrosswalk = "walk.csv"\n'
    (folder.path / SETTINGS).write_text("".join(lines) + source)
    site_operator.recover(folder)
    database = SiteDatabase.open_existing(folder.state)
    try:
        patients = Patients(database, folder.fingerprint_key())
        patients.check("renamed", ["somebody else"])
        for known in ("patient-0", "old"):
            with pytest.raises(PrivacyError, match="has patients of data asset 1"):
                patients.check("renamed", [known])
    finally:
        database.close()


def test_a_recovery_that_was_broken_off_has_made_no_state(folder):
    shutil.rmtree(folder.state)
    (folder.path / "notes.jsonl").rename(folder.path / "away")
    with pytest.raises(DataError):
        site_operator.recover(folder)
    assert not SiteDatabase.is_in(folder.state)
    (folder.path / "away").rename(folder.path / "notes.jsonl")
    site_operator.recover(folder)
    assert [path.name for path in folder.state.iterdir()] == [DATABASE]
