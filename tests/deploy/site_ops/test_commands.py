"""The site operator's road: each step once, and again; what cannot be used is refused with a diagnosis."""

import json
import os
import stat

import pytest
from support.process.other_users import AS_ROOT, done_as, open_folder, user
from support.process.resident_process import SITE
from support.study.site_study import SiteStudy, reserved, write_policy
from support.study.tiny_models import save_tiny_model

from grandrounds.client.budget.policy import POLICY
from grandrounds.client.budget.reservations import Reservations
from grandrounds.client.site.folder import SiteFolder
from grandrounds.client.site.site_log import SiteLog
from grandrounds.client.state.database import SiteDatabase
from grandrounds.client.state.site_state import SiteState
from grandrounds.common.errors import DataError, StoppedError, StorageError, StudyError
from grandrounds.deploy.site_ops import commands as site_operator
from grandrounds.deploy.site_ops.owner import act_as
from grandrounds.deploy.site_ops.site_data import SiteData
from grandrounds.deploy.site_ops.terms import Terms
from grandrounds.deploy.site_ops.users import SiteUsers, operators_users


@pytest.fixture(scope="module")
def study():
    with open_folder() as root:
        yield SiteStudy(save_tiny_model(root / "llama"))


@pytest.fixture
def federation(study):
    return study.federation()


@pytest.fixture
def root():
    with open_folder() as folder:
        yield folder


@pytest.fixture
def folder(tmp_path, study, federation):
    return study.initialised(tmp_path / "site", federation)


@pytest.fixture
def join(tmp_path, study, folder):
    def joined(federation, agrees=True):
        bundle = study.bundle(federation, tmp_path / "tls")
        return site_operator.join_study(folder, bundle, agreed=lambda agreement: agrees)

    return joined


def contents(folder):
    return {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


DELETE = "grandrounds client data --delete DIR"


def leave(folder):
    return site_operator.leave(folder, folder.study())


def begin(folder, federation):
    budget = SiteState.open(folder.state)
    budget.begin(federation.manifest.study_id, 1)
    budget.close()


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "notes.csv"
    path.write_text("patient_id,text\na,no complaints\n")
    return path


def test_a_folder_that_cannot_be_made_is_refused(tmp_path, study, records):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be used"):
        site_operator.init(SiteFolder(tmp_path / "file" / "site"), name="north", data=records, model=str(study.base))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (None, "notes.csv cannot be read .No such file"),
        ("patient;note\na;no complaints\n", "no column is called patient_id"),
        ("patient_id,text\n", "it holds no records"),
    ],
)
def test_data_that_cannot_be_used_are_told_before_a_site_is_made(tmp_path, study, records, text, what):
    records.unlink() if text is None else records.write_text(text)
    with pytest.raises(DataError, match=what):
        site_operator.init(SiteFolder(tmp_path / "site"), name="north", data=records, model=str(study.base))
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("text", ['[data]\nfiles = ["notes.csv"\n', '[data]\nfile = "notes.csv"\n'])
def test_a_file_that_does_not_say_what_the_data_are_concerns_the_site_and_no_study(tmp_path, text):
    (tmp_path / "source.toml").write_text(text)
    with pytest.raises(StudyError) as refused:
        SiteData.given(tmp_path / "source.toml")
    assert refused.value.why == "it says what records the site trains on"


def test_a_site_is_told_what_its_data_come_to_when_it_is_made(tmp_path, study, records):
    said = site_operator.init(SiteFolder(tmp_path / "site"), name="north", data=records, model=str(study.base))
    assert said[0] == "notes.csv: 1 records (patient_id, text) of 1 patients, 1 of a patient in the median"
    assert said[1].startswith("your median record has 13 tokens; studies read windows of your text, of which it makes")


def test_a_site_is_told_how_a_study_may_state_what_it_takes_out_of_its_records(folder, study):
    with (folder.path / POLICY).open("a") as policy:
        policy.write("[minimise]\nshift_dates = true\nnumbers = true\n")
    said = site_operator.init(folder, name="another", data=folder.path / "another", model=str(study.base))
    assert any(line.endswith('minimised = ["dates shifted", "long numbers replaced"]') for line in said)
    assert json.loads((folder.path / "site.json").read_bytes())["minimised"] == [
        "dates shifted",
        "long numbers replaced",
    ]
    with (folder.path / POLICY).open("a") as policy:
        policy.write('suppress_columns = ["text"]\n')
    with pytest.raises(StudyError, match="made of the column text"):
        site_operator.init(folder, name="another", data=folder.path / "another", model=str(study.base))


def test_init_and_join_again_change_nothing(folder, join, federation, study):
    join(federation)
    before = contents(folder)
    site_operator.init(folder, name="another", data=folder.path / "another", model=str(study.base))
    join(federation)
    assert contents(folder) == before


def test_what_a_node_needs_is_below_node_and_says_nothing_of_records(folder, join, federation):
    join(federation)
    place = folder.study().node
    assert {path.name for path in place.path.iterdir()} == {
        "ca.crt",
        "exec.secret",
        "node.json",
        "node.key",
        "var",
    }
    written = json.loads((place.path / "node.json").read_text())
    assert (written["address"], written["socket"]) == ("localhost:9", "run/worker.sock")
    unit = place.supernode()
    assert (unit.socket, unit.runtime_port) == (
        folder.study().path / "run" / "worker.sock",
        folder.settings().runtime_port,
    )
    assert unit.app_sha256 == federation.manifest.app_sha256
    assert unit.timeout_s == federation.manifest.study.training.deadline_s
    assert all(path.parent == place.path for path in (unit.certificates, unit.node_key, unit.secret))


def test_who_does_not_agree_has_joined_and_reserved_nothing(folder, join, federation):
    before = contents(folder)
    with pytest.raises(StoppedError, match="nothing was joined, and nothing more was reserved"):
        join(federation, agrees=False)
    assert contents(folder) == before


def test_data_that_were_never_readable_reserve_nothing(folder, join, federation):
    (folder.path / "notes.jsonl").unlink()
    with pytest.raises(DataError, match=r"notes\.jsonl cannot be read"):
        join(federation)
    assert reserved(folder) == []
    assert folder.joined() == []


def test_rules_that_cannot_be_applied_reserve_nothing(folder, join, federation):
    with (folder.path / POLICY).open("a") as policy:
        policy.write('[minimise]\nhook = "nowhere_deid:run"\n')
    with pytest.raises(StudyError, match=r"the hook nowhere_deid:run cannot be used \(ModuleNotFoundError\)"):
        join(federation)
    assert reserved(folder) == []


def test_an_operator_decides_on_budget_and_data_in_words_and_on_a_further_data_asset(tmp_path, folder, study):
    terms: list[Terms] = []

    def agreed(found):
        terms.append(found)
        return True

    def join():
        bundle = study.bundle(study.federation(), tmp_path / "tls")
        write_policy(folder, bundle.manifest)
        if terms:
            (folder.path / POLICY).write_text((folder.path / POLICY).read_text().replace("[data]", '[data]\nasset="b"'))
        site_operator.join_study(folder, bundle, agreed=agreed)

    join()
    join()
    first, second = terms
    assert first.budget.startswith(
        "patients: ε = 99 before, 50 reserved by this study, 49 left after; δ = 0.001 before"
    )
    assert first.data == [
        "notes.jsonl: 2 records (patient_id, text) of 2 patients, 1 of a patient in the median",
        "your median record has 13 tokens; your text makes 2 windows of at most 16 tokens; a step draws all of your "
        "patients, and reads at most 1 of each, at random: over the study's 1 step, all of your text is read at least "
        "once, on average",
        "warning: the study counts on 4 patients of this site, and 2 were read: its part of each step is 0.5 times as "
        "large as the study means, and the claim is what it was. Is this the right file? If so, ask the study's author "
        "for nominal_units near the true number, rounded",
    ]
    assert (first.beside, second.asset, second.beside) == ([], "b", ["patients"])
    events = [entry["event"] for entry in SiteLog(folder).entries()]
    assert events[2:] == ["policy-changed", "agreed", "policy-changed", "asset-added", "agreed"]


def test_a_site_that_leaves_before_an_attempt_has_its_budget_back(folder, join, federation):
    join(federation)
    name = folder.study().name
    said = " ".join(leave(folder))
    assert "the budget has back what it reserved" in said
    assert f"has left, with manifest {federation.manifest.sha256[:16]}…; the study goes " in said
    assert reserved(folder) == []
    left = {path.name for path in (folder.path / "left" / name).iterdir()}
    assert left >= {"study.json", "frozen-adapter.bin", "results"}
    with pytest.raises(StudyError, match="takes part in no study"):
        folder.study()
    join(federation)
    (folder.prepared / "0123456789abcdef").mkdir(parents=True)
    assert "client data --delete" not in said
    assert f"its records stay prepared, for the next study that reads them alike; or remove that: {DELETE}" in " ".join(
        leave(folder)
    ).replace(str(folder.path), "DIR")
    assert {path.name for path in (folder.path / "left").iterdir()} == {name, f"{name}-1"}, "nothing is overwritten"


def test_what_was_reserved_stays_spent_once_an_attempt_was_begun(folder, join, federation):
    join(federation)
    begin(folder, federation)
    said = " ".join(leave(folder))
    assert "stays spent" in said
    assert "tell the server's operator" in said
    assert reserved(folder) == [federation.manifest.study_id]


def test_who_leaves_a_finished_study_is_told_that_it_is_finished(folder, join, federation):
    join(federation)
    begin(folder, federation)
    folder.study().results.mkdir(parents=True)
    said = " ".join(leave(folder))
    assert "the study is finished" in said
    assert "tell the server's operator" not in said
    (left,) = (folder.path / "left").iterdir()
    assert f"what the study left stays in {left / 'results'}, and what it reserved of the budget stays spent" in said
    assert (left / "results" / "study").is_dir()


def test_leaving_that_was_broken_off_is_repeated(folder, join, federation):
    join(federation)
    database = SiteDatabase.open(folder.state)
    Reservations(database).cancel(federation.manifest.study_id)
    database.close()
    leave(folder)
    assert folder.joined() == []


def test_a_site_whose_worker_runs_is_not_left(folder, join, federation):
    join(federation)
    worker = SiteState.open_existing(folder.state, lock=folder.study().lock)
    before = contents(folder)
    with pytest.raises(StudyError, match="another worker holds"):
        leave(folder)
    worker.close()
    assert contents(folder) == before


def test_a_site_without_a_study_has_none_to_leave(folder):
    with pytest.raises(StudyError, match="takes part in no study"):
        leave(folder)


def test_users_that_keep_nothing_apart_leave_nothing_behind(tmp_path):
    with pytest.raises(StudyError, match="name one user, and not two"):
        site_operator.init(
            SiteFolder(tmp_path / "site"), name="north", data=tmp_path / "d", model="tiny", worker_user="65533"
        )
    assert not (tmp_path / "site").exists()


def test_users_that_differ_from_the_folder_s_are_refused(folder, study):
    with pytest.raises(StudyError, match="has worker_user and node_user"):
        site_operator.init(
            folder, name=SITE, data=folder.path, model=str(study.base), worker_user="65533", node_user="65532"
        )


@AS_ROOT
def test_each_user_gets_its_part_again_after_every_step_of_root(root, study, federation):
    folder = study.initialised(root / "site", federation, worker_user="65533", node_user="65532")
    bundle = study.bundle(federation, root / "tls")
    site_operator.join_study(folder, bundle, agreed=lambda agreement: True)
    leave(folder)
    site_operator.join_study(folder, bundle, agreed=lambda agreement: True)
    owners = {
        str(path.relative_to(root)): (
            path.stat().st_uid,
            path.stat().st_gid,
            oct(stat.S_IMODE(path.stat().st_mode)),
        )
        for path in (root, *root.rglob("*"))
    }
    own = f"site/studies/{folder.study().name}"
    expected = {
        "site": (0, 0, "0o711"),
        "site/key": (65533, 65533, "0o600"),
        "site/fingerprint.key": (65533, 65533, "0o600"),
        "site/state": (65533, 65533, "0o700"),
        "site/node": (0, 0, "0o700"),
        "site/studies": (0, 0, "0o711"),
        own: (0, 0, "0o711"),
        f"{own}/store": (65533, 65533, "0o700"),
        f"{own}/results": (65533, 65533, "0o700"),
        f"{own}/run": (65533, 65532, "0o2750"),
        f"{own}/node": (0, 65532, "0o750"),
        f"{own}/node/node.key": (0, 65532, "0o640"),
        f"{own}/node/var": (65532, 65532, "0o700"),
        f"{own}/study.json": (0, 65533, "0o640"),
        **{f"site/{name}": (0, 65533, "0o640") for name in ("site.toml", "policy.toml", "notes.jsonl")},
    }
    assert {name: owners[name] for name in expected} == expected
    below = [owner for name, owner in owners.items() if name.startswith("site/state/")]
    assert {owner[:2] for owner in below} == {(65533, 65533)}


@AS_ROOT
@pytest.mark.parametrize("name", ["key", "state"])
def test_a_link_in_place_of_what_a_user_gets_is_refused(root, study, federation, name):
    folder = study.initialised(root / "site", federation, worker_user="65533", node_user="65532")
    (folder.path / name).rename(root / name)
    (root / name).chmod(0o600)
    os.chown(root / name, 0, 0)
    (folder.path / name).symlink_to(root / name)
    with pytest.raises(StorageError, match="cannot be given to its user"):
        site_operator.init(folder, name=SITE, data=folder.path, model=str(study.base))
    assert (root / name).stat().st_uid == 0


@AS_ROOT
@pytest.mark.parametrize(
    ("users", "text"),
    [
        ('worker_user = "65533"\n', "name one user, and not two"),
        ('worker_user = "65533"\nnode_user = "65533"\n', "are one user, or root"),
        ('worker_user = "0"\nnode_user = "65533"\n', "are one user, or root"),
        ('worker_user = "nobody-of-this-name"\nnode_user = "65533"\n', "no user nobody-of-this-name"),
    ],
)
def test_users_that_keep_nothing_apart_are_refused(folder, users, text):
    with (folder.path / "site.toml").open("a") as file:
        file.write(users)
    with pytest.raises(StudyError, match=text):
        site_operator.init(folder, name=SITE, data=folder.path, model="tiny")


@AS_ROOT
def test_who_is_not_root_cannot_take_a_step_of_a_site_with_two_users(root, study, federation):
    folder = study.initialised(root / "site", federation, worker_user="65533", node_user="65532")
    settings = folder.settings()
    users = SiteUsers.of(settings)
    assert users is not None
    assert done_as(user(65533), lambda: operators_users(settings) is None) == "StudyError"
    assert done_as(user(65533), lambda: act_as(users.worker)) is None
    assert done_as(user(65533), lambda: act_as(users.node)) == "StudyError"
