"""A policy changes as its operator confirms, so that the study passes, and in nothing else."""

import tomllib
from importlib import resources

import pytest
from support.study.allowed_study import KEYS, SITE, manifest

from grandrounds.client.budget.policy import Policy, violations
from grandrounds.common.crypto.identity import shown_key
from grandrounds.common.errors import StudyError
from grandrounds.common.schema import validated
from grandrounds.deploy import templates
from grandrounds.deploy.site_ops.adoption import adopted, offer_policy

TEMPLATE = resources.files(templates).joinpath("policy.basic.toml").read_text()
OWNERS = {shown_key(key): f"owner-{number}" for number, key in enumerate(KEYS)}


def policy_of(text):
    return validated(Policy, tomllib.loads(text))


def points(text):
    return list(violations(policy_of(text), manifest(), name=SITE))


class Site:
    """What of a site's folder is asked for its policy."""

    def __init__(self, path):
        self.path, self.file = path, path / "policy.toml"

    def settings(self):
        return type("Settings", (), {"name": SITE, "worker_user": None, "node_user": None})

    def policy(self):
        return policy_of(self.file.read_text())


@pytest.fixture
def site(tmp_path):
    (tmp_path / "policy.toml").write_text(TEMPLATE)
    return Site(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        TEMPLATE,
        "",
        "[data]\nepsilon = 9.0\n",
        f'[study]  # of this site\ntrust = ["local"]\nverified_peers = ["{KEYS[0]}"]\n',
        f'[study]\nlargest_epsilon = 0.5  # little\npackage_versions = []\nverified_peers = ["{KEYS[0]}",  # it\n]\n',
    ],
)
def test_a_changed_policy_allows_the_study_and_says_all_else_as_before(text):
    assert points(text)
    changed = adopted(text, points(text), OWNERS)
    assert points(changed) == []
    assert not any(line.isspace() for line in changed.splitlines())
    before, after = policy_of(text), policy_of(changed)
    assert after.data == before.data
    assert set(after.study.verified_peers) >= set(before.study.verified_peers)
    assert all(remark in changed for remark in ("# of this site", "# little", "# it") if remark in text)
    assert all(f"# {OWNERS[shown_key(key)]}" in changed for key in KEYS[3:])


def test_what_is_confirmed_is_written_and_was_shown_with_each_key_s_owner(site):
    said: list[str] = []
    asked: list[str] = []

    def confirmed(question):
        asked.append(question)
        return True

    site.file.write_text(TEMPLATE.replace("4.0", "1.0"))
    offer_policy(site, manifest(), confirmed=confirmed, say=said.append)
    assert points(site.file.read_text()) == []
    assert len(asked) == 2
    assert "  study.largest_epsilon is 1.0, and the study needs 2.0 (its ε)" in said
    assert any(line.endswith(f"the key of server: {shown_key(KEYS[0])}") for line in said)
    offer_policy(site, manifest(), confirmed=lambda question: pytest.fail(question), say=pytest.fail)


@pytest.mark.parametrize("confirmations", [[False], [True, False]])
def test_who_declines_a_point_or_has_not_compared_the_keys_keeps_the_policy(site, confirmations):
    site.file.write_text(TEMPLATE.replace("4.0", "1.0"))
    before, answers = site.file.read_text(), iter(confirmations)
    offer_policy(site, manifest(), confirmed=lambda question: next(answers), say=lambda line: None)
    assert site.file.read_text() == before
    assert next(answers, None) is None


def test_what_reads_like_a_setting_inside_another_is_not_taken_for_it(site):
    said = '[study]\nmodels = [{ name = """\nlargest_epsilon = 1.0\n""" }]\nlargest_epsilon = 1.0\n'
    site.file.write_text(said)
    with pytest.raises(StudyError, match="in a form that this does not know"):
        offer_policy(site, manifest(), confirmed=lambda question: True, say=lambda line: None)
    assert site.file.read_text() == said


def test_a_policy_in_a_form_that_cannot_be_changed_line_by_line_is_left_as_it_is(site):
    site.file.write_text("study = { largest_epsilon = 1.0, models = [] }\n")
    with pytest.raises(StudyError, match="in a form that this does not know"):
        offer_policy(site, manifest(), confirmed=lambda question: True, say=lambda line: None)
    assert site.file.read_text() == "study = { largest_epsilon = 1.0, models = [] }\n"
