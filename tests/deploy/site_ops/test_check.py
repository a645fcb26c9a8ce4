"""What a site finds out about itself before a study: nothing is reserved, kept or sent."""

import itertools
import re
import shutil

import pytest
from support.study.site_study import SiteStudy
from support.study.tiny_models import save_tiny_model

from grandrounds.client.training import rehearsal
from grandrounds.common.errors import DataError, ModelError, StorageError, StudyError
from grandrounds.deploy.site_ops import check as site_check
from grandrounds.deploy.site_ops import commands as site_operator
from grandrounds.deploy.site_ops.records import data_report


def check(folder, **options):
    return site_check.check(folder, folder.study(), **options)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return SiteStudy(save_tiny_model(tmp_path_factory.mktemp("llama")))


def joined(study, root, **training):
    federation = study.federation(**training)
    folder = study.initialised(root / "site", federation)
    site_operator.join_study(folder, study.bundle(federation, root / "tls"), agreed=lambda agreement: True)
    return folder


@pytest.fixture
def folder(study, tmp_path):
    return joined(study, tmp_path)


def contents(folder):
    kept = folder.study().machine  # which says when it was written
    return {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file() and path != kept}


def test_a_site_that_fits_is_told_what_was_read_and_what_an_answer_takes_and_nothing_changes(folder):
    before = contents(folder)
    said = check(folder)
    assert {path: kept for path, kept in contents(folder).items() if folder.prepared not in path.parents} == before
    written = contents(folder)
    again = check(folder)
    assert again[:3] == said[:3] and contents(folder) == written, "what was prepared is opened"
    assert said[0] == "key, policy, model and records fit the study; nothing was reserved, and nothing was sent"
    assert "2 records of 2 patients were read; the study counts on 4" in said[1], "one of three has opted out"
    assert "and at most 5, of which a step reads 5 at most" in said[1]
    assert said[2] == (
        "your text makes 2 windows of at most 16 tokens; a step draws all of your patients, and reads at most 1 of "
        "each, at random: over the study's 1 step, all of your text is read at least once, on average"
    )
    assert re.search(r"an update \d+\.\d s, the most work that one can be \d+\.\d s", said[3])
    assert said[4] == "the model computes on processors"
    assert any(
        line.startswith("records are padded to the next of 16 tokens, and computed 1 at a time") for line in said
    )
    assert any("12 % fills records up to these lengths, and 0 % is in rows" in line for line in said)
    assert any(line.startswith("updates leave 2 s after they are asked for, whatever was drawn") for line in said)
    _, *machine = data_report(folder, folder.study()).machine
    assert machine == again[3 : 3 + len(machine)] and machine[-1].startswith("updates leave"), (
        "kept for the site's page"
    )


def test_a_machine_that_is_not_ready_at_the_instant_is_told_so_beforehand(folder, monkeypatch):
    monkeypatch.setattr(site_check, "monotonic", itertools.count(step=3.0).__next__)  # each step of the check's clock
    with pytest.raises(StudyError, match="may take 3 s here, and the study lets updates leave after 2 s"):
        check(folder)


def test_the_most_work_is_measured_with_the_training_view_where_the_site_has_one(folder, monkeypatch):
    measured = []

    def with_most_work(update):
        measured.append(update.observer is not None)
        return rehearsal.with_most_work(update)

    monkeypatch.setattr(site_check, "with_most_work", with_most_work)
    check(folder)
    settings = folder.path / "site.toml"
    settings.write_text(f"training_view = true\n{settings.read_text()}")
    check(folder)
    assert measured == [False, True]
    assert not folder.study().training.exists(), "of a check nothing is written there"


def test_files_that_every_user_may_read_and_a_pause_are_said(folder):
    (folder.path / "notes.jsonl").chmod(0o644)
    (folder.path / "opted-out.txt").chmod(0o600)
    folder.pause()
    far, readable, paused = check(folder)[-3:]
    assert "the study counts on 4 patients of this site, and 2 were read" in far
    assert "may read" in readable
    assert "notes.jsonl" in readable
    assert "paused" in paused


def test_an_operator_is_told_which_records_count_as_zero_and_which_opt_outs_match_nobody(folder):
    with (folder.path / "notes.jsonl").open("a") as file:
        file.write('\n{"patient_id": "patient-0", "text": ""}')
    (folder.path / "opted-out.txt").write_text("patient-1 # on 3 May\n\npatient-9\n")
    said = check(folder)
    told = "\n".join(said)
    assert "3 records of 2 patients were read" in said[1]
    assert "1 of the records cannot be trained on and count as zero" in told
    assert "  notes.jsonl, line 4: its text is empty" in told
    assert "1 of the opt-outs' 2 lines match no patient of the records (line 3)" in told


def test_opt_outs_of_which_none_matches_are_refused_unless_that_is_said_to_be_right(folder):
    (folder.path / "opted-out.txt").write_text("# asked in May\n17\n18\n")
    with pytest.raises(DataError, match="none of the opt-outs' 2 lines matches a patient"):
        check(folder)
    said = check(folder, opt_outs_match_nobody=True)
    assert "3 records of 3 patients were read" in said[1]
    assert any("2 of the opt-outs' 2 lines match no patient of the records (line 2, 3)" in line for line in said)
    (folder.path / "opted-out.txt").write_text("# nobody so far\n")
    check(folder)


def another_model(folder):
    name_model(folder, "/nowhere")


def name_model(folder, path):
    settings = folder.path / "site.toml"
    settings.write_text(re.sub(r'model = "[^"]*"', f'model = "{path}"', settings.read_text()))


def test_another_model_s_folder_is_named_with_both_hashes_and_the_setting(folder, study, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(study.base, other)
    (other / "generation_config.json").write_text("{}")
    name_model(folder, other)
    with pytest.raises(StudyError, match=r"another than the study's: its SHA-256 is [0-9a-f]{64}, and not") as refused:
        check(folder)
    assert study.model.folder_sha256 in refused.value.what
    assert "(model in site.toml)" in refused.value.fix


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda folder: (folder.path / "notes.jsonl").unlink(), DataError, r"notes.jsonl cannot be read \(No such"),
        (another_model, ModelError, r"/nowhere cannot be read \(No such file"),
        (lambda folder: (folder.path / "key").unlink(), StorageError, "there is no .*key"),
        (
            lambda folder: (folder.path / "policy.toml").write_text(""),
            StudyError,
            r"breaks this site's policy, policy\.toml: study\.largest_epsilon",
        ),
        (lambda folder: (folder.study().path / "study.json").unlink(), StudyError, "takes part in no study"),
        (lambda folder: (folder.path / "notes.jsonl").write_text("no json"), DataError, "notes.jsonl, line 1"),
    ],
)
def test_what_does_not_fit_is_a_diagnosis(folder, change, error, text):
    change(folder)
    with pytest.raises(error, match=text):
        check(folder)
