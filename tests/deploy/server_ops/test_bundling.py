"""A study is fixed once: what is edited afterwards reaches no site in silence."""

import re

import pytest
from support.study.audited_study import audit_of, audited_manifest
from support.study.enrolled_server import SITES, card, initialised, write_study

from grandrounds.client.budget.policy import read_policy, violations
from grandrounds.common.crypto.identity import sha256
from grandrounds.common.errors import DataError, StudyError
from grandrounds.common.study.artefacts import PUBLIC
from grandrounds.common.study.training import TrainingSection
from grandrounds.deploy.enrolment.bundle import Bundle, described
from grandrounds.deploy.flower.archive import app_sha256
from grandrounds.deploy.server_ops import bundling
from grandrounds.deploy.server_ops import commands as server_operator


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_study_is_of_the_sites_that_are_enrolled_and_of_no_others(tmp_path):
    folder = initialised(tmp_path / "server")
    write_study(folder)
    server_operator.enroll(folder, card(tmp_path, "north"))
    with pytest.raises(StudyError, match="the study is of north, south, west, and enrolled are north"):
        bundling.bundle(folder)
    assert not folder.has_study


def test_no_study_is_fixed_without_records_to_evaluate_on(tmp_path):
    folder = initialised(tmp_path / "server")
    with pytest.raises(StudyError, match="no evaluation records"):
        bundling.bundle(folder)
    folder.settings().evaluation.write_text('{"note": "of nobody"}\n')
    with pytest.raises(DataError, match=r"evaluation.jsonl, line 1"):
        bundling.bundle(folder)


def test_a_machine_too_slow_for_the_stated_deadline_is_told_both_settings():
    with pytest.raises(StudyError, match=r"needs 860 s .* ends after 600 s \(training.deadline_s\)") as refused:
        bundling._in_time(TrainingSection(rounds=4), 860.0, is_stated=True)
    assert "set training.deadline_s = 1720" in refused.value.fix and "training.answer_after_s" in refused.value.fix


def test_a_deadline_that_is_not_stated_leaves_as_long_again_for_slower_sites():
    training = TrainingSection(rounds=4)
    slow, quick = (bundling._in_time(training, instant_s, is_stated=False) for instant_s in (620.0, 2.0))
    assert (slow.answer_after_s, slow.deadline_s) == (620.0, 1240.0)
    assert (quick.answer_after_s, quick.deadline_s) == (2.0, training.deadline_s)


def test_the_bundle_has_what_sites_need(bundled):
    bundle = Bundle.read(bundled.bundle)
    assert bundle.manifest.server_key == bundled.identity().public_key
    assert bundle.manifest.site_keys == {name: site.public_key for name, site in bundled.sites().items()}
    assert bundle.flower.address == bundled.settings().address
    assert bundle.manifest.app_sha256 == app_sha256()
    terms = (bundled.path / "terms.jsonl").read_bytes()
    assert bundle.public == terms == (bundled.study.path / PUBLIC).read_bytes()
    assert bundle.manifest.study.data.public == f"sha256:{sha256(terms)}"
    assert "2 of public records beside" in described(bundle.manifest)["reads"]
    assert bundle.certificates == (bundled.certificates / "ca.crt").read_bytes()


def test_a_bundle_says_what_it_does_and_then_the_whole_study_as_joining_does(bundled):
    before = bundled.bundle.read_bytes()
    done: list[str] = []
    said = bundling.bundle(bundled, say=done.append)
    assert done
    for field, text in described(bundled.study.manifest()).items():
        assert f"{field:10}{text}" in said
    assert any("All 3 sites must answer: one that is lost" in line for line in said)
    assert said[-1] == f"next: grandrounds server start {bundled.path}"
    assert bundled.bundle.read_bytes() == before, "a second bundle is the same"


def test_each_site_gets_what_its_policy_has_to_allow(bundled):
    manifest = bundled.study.manifest()
    for site in SITES:
        points = violations(read_policy(bundled.policies / f"{site}.toml"), manifest, name=site)
        assert {point.field for point in points} == {"study.verified_peers"}


EDITS = (
    ("rounds = 1", "rounds = 2", "training.rounds is 2, and in the study 1"),
    ("target_epsilon = 4.0", "target_epsilon = 3.0", "privacy.target_epsilon is 3.0, and in the study 4.0"),
    ("deadline_s = 1.0", "deadline_s = 2.0", "training.deadline_s is 2.0, and in the study 1.0"),
    ("answer_after_s = 0.5", "answer_after_s = 0.75", "training.answer_after_s is 0.75, and in the study 0.5"),
    (
        'south"\nnominal_units = 20',
        'south"\nnominal_units = 21',
        "sites.south.nominal_units is 21, and in the study 20",
    ),
    ('"west"', '"east"', "; study.toml does not name the site west, unlike the study; "),
)


def test_every_edit_of_a_study_that_is_fixed_is_named_and_refused(folder):
    before = folder.bundle.read_bytes()
    for old, new, _ in EDITS:
        edit(folder.study_toml, old, new)
    with pytest.raises(StudyError) as refused:
        bundling.bundle(folder)
    for _, _, said in EDITS:
        assert said in refused.value.what
    assert "west.nominal_units" not in refused.value.what, "a site that is named here or there alone is told as one"
    assert f"grandrounds server bundle {folder.path} --redo" in refused.value.fix
    assert folder.bundle.read_bytes() == before


def test_other_public_records_are_an_edit_and_fewer_than_a_step_needs_fix_no_study(folder):
    terms = folder.path / "terms.jsonl"
    text = folder.study_toml.read_text()
    folder.study_toml.write_text(re.sub(r'public = "[^"]*"', f'public = "{terms}"', text))
    bundling.bundle(folder)
    terms.write_text(terms.read_text().splitlines()[0])
    with pytest.raises(StudyError, match=r"data\.public is .sha256:.*, and in the study .sha256:"):
        bundling.bundle(folder)
    with pytest.raises(StudyError, match="has 1 patients, and a step needs 2"):
        bundling.bundle_anew(folder)


def test_an_audit_that_is_named_later_is_an_edit_and_one_of_other_parameters_fixes_no_study(folder):
    audit = folder.path / "audit.json"
    audit.write_bytes(audit_of(audited_manifest()))
    with folder.study_toml.open("a") as file:
        file.write(f'[about]\naudit = "{audit}"\n')
    with pytest.raises(StudyError, match=r"about\.audit is .sha256:.*, and in the study not there"):
        bundling.bundle(folder)
    before = folder.bundle.read_bytes()
    with pytest.raises(StudyError, match=r"audited twin is not this study’s: .*sites is 4 there and 3 here"):
        bundling.bundle_anew(folder)
    audit.unlink()
    with pytest.raises(StudyError, match=r"audit\.json cannot be read") as refused:
        bundling.bundle_anew(folder)
    assert "grandrounds audit study.toml --output audit.json" in refused.value.fix
    assert folder.bundle.read_bytes() == before


def test_what_is_left_open_is_no_edit_and_neither_is_what_is_for_a_simulation(folder):
    edit(folder.study_toml, ", deadline_s = 1.0, answer_after_s = 0.5", "")
    with folder.study_toml.open("a") as file:
        file.write('[simulation]\ndropouts = ["none"]\n')
    bundling.bundle(folder)


def test_another_key_of_a_site_is_an_edit(folder, tmp_path):
    server_operator.dismiss(folder, "west")
    said = server_operator.enroll(folder, card(tmp_path, "west"))
    assert f"next: grandrounds server bundle {folder.path}, which says" in said[-1]
    with pytest.raises(StudyError, match=r"west is enrolled with the key .*, and in the study enrolled with the key"):
        bundling.bundle(folder)


def test_a_study_that_has_not_begun_is_fixed_anew_and_the_one_before_is_kept(folder):
    before = folder.study.manifest()
    edit(folder.study_toml, "rounds = 1", "rounds = 2")
    bundling.bundle_anew(folder)
    after = Bundle.read(folder.bundle).manifest
    assert (after.study.training.rounds, after.study_id != before.study_id) == (2, True)
    aside = folder.path / "replaced" / before.sha256[:16]
    assert Bundle.read(aside / "study.zip").manifest == before
    bundling.bundle(folder)


def test_no_study_is_fixed_for_a_host_that_its_certificate_does_not_name(folder):
    edit(folder.path / "server.toml", 'host = "localhost"', 'host = "aggregation.example.org"')
    with pytest.raises(StudyError, match=r"it is not for aggregation\.example\.org"):
        bundling.bundle(folder)
