"""``grandrounds server`` as its operator types it."""

import json
import re
import tomllib

import pytest
from typer.testing import CliRunner

from grandrounds.common.crypto.identity import Identity
from grandrounds.common.errors import StudyError
from grandrounds.common.study.about import AboutSection
from grandrounds.common.study.study import read_study
from grandrounds.deploy.cli.main import app
from grandrounds.deploy.enrolment.bundle import SiteCard
from grandrounds.deploy.enrolment.node_keys import make_node_key
from grandrounds.deploy.server_ops.about import with_about
from grandrounds.server.rounds.training import ExchangeClosed
from grandrounds.server.run.server_folder import ServerFolder


def call(*arguments):
    result = CliRunner().invoke(app, ["server", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "server"


@pytest.fixture
def card(tmp_path):
    make_node_key(tmp_path / "node.key", tmp_path / "node.pub")
    site = SiteCard(
        name="north", public_key=Identity.generate().public_key, node_key=(tmp_path / "node.pub").read_text().strip()
    )
    path = tmp_path / "site.json"
    path.write_text(site.model_dump_json())
    return path


def test_each_step_says_the_next_and_the_keys_to_compare(folder, card):
    said = call("init", folder)
    assert f"grandrounds server enroll {folder}" in said
    assert re.search(r"^  ([0-9a-f]{4} ){15}[0-9a-f]{4}$", said, re.MULTILINE)
    said = call("enroll", folder, card)
    assert f"next: grandrounds server enroll {folder} site.json, for south, west" in said
    key = json.loads(card.read_text())["public_key"]
    assert key in said.replace(" ", "")


def test_what_is_said_of_a_study_stands_in_it_and_is_not_written_over(folder):
    said = ["--title=Letters", "--institution=Oslo, Norway", "--institution=Bergen", "--begins=2026-12-01"]
    for _ in range(2):
        call("init", folder, *said)
    about = read_study(folder / "study.toml").about
    assert (about.title, about.institutions, about.begins) == ("Letters", ("Oslo, Norway", "Bergen"), "2026-12-01")
    assert about.dated is not None and about.contact is None
    with pytest.raises(StudyError, match=r"study.toml is there, and its \[about\] says otherwise: title"):
        call("init", folder, "--title=Notes")
    with pytest.raises(StudyError, match="ends: 2026-11-30 is before it begins"):
        call("init", folder.with_name("other"), "--begins=2026-12-01", "--ends=2026-11-30")
    assert not folder.with_name("other").exists()


def test_what_is_said_comes_in_the_place_of_what_a_file_says_in_whatever_form():
    text = '[model]\nrank = 8\n[about]\ninstitutions = [\n  "Oslo",\n  "Bergen",\n]\ntitle = "Notes"'  # no line's end
    said = tomllib.loads(with_about(text, AboutSection(title="Letters", institutions=("Turku",), contact="dpo")))
    assert said == {"model": {"rank": 8}, "about": {"title": "Letters", "institutions": ["Turku"], "contact": "dpo"}}


def test_at_a_terminal_what_was_not_given_is_asked_for_once_and_again_where_it_cannot_be(folder, monkeypatch):
    monkeypatch.setattr("grandrounds.deploy.cli.server.at_terminal", lambda: True)
    answers = "better letters\nOslo; Bergen\ndpo@example.org\n1.12.2026\n2026-12-01\n\n"
    result = CliRunner().invoke(app, ["server", "init", str(folder), "--title=Letters"], input=answers)
    assert "this is no day; write it as 2026-11-30" in result.output
    about = read_study(folder / "study.toml").about
    assert (about.purpose, about.institutions, about.ends) == ("better letters", ("Oslo", "Bergen"), None)
    again = CliRunner().invoke(app, ["server", "init", str(folder)])
    assert (again.exit_code, "Enter leaves one out" in again.output) == (0, False)


def test_status_says_where_a_server_stands_for_people_and_for_machines(folder, card):
    call("init", folder)
    call("enroll", folder, card)
    status = json.loads(call("status", folder, "--json"))
    assert (status["started"], status["running"], status["closed"]) == (False, False, False)
    assert status["sites"]["north"]["connection"] == "unknown"
    said = call("status", folder)
    assert "not started" in said and "north" in said and status["next"] in said


def test_status_says_by_which_code_a_site_refused(folder, card):
    call("init", folder)
    call("enroll", folder, card)
    refused = ExchangeClosed(
        round=1, attempt=3, exchange="advert", answered=frozenset(), lost={"north": "it refused: set-back"}
    )
    ServerFolder(folder).progress.tell(refused)
    assert json.loads(call("status", folder, "--json"))["sites"]["north"]["last_error"] in call("status", folder)
    assert "attempt 3, advert: it refused: set-back" in call("status", folder)


def test_a_certificate_is_given_with_its_key_and_authority_or_not_at_all(folder, card):
    result = CliRunner().invoke(app, ["server", "init", str(folder), "--ca", str(card)])
    assert isinstance(result.exception, StudyError) and "give all three, or none" in result.exception.fix
    assert not folder.exists()


def test_what_cannot_be_a_server_s_address_leaves_nothing_to_correct(folder):
    for wrong in ("--port=99999", "--superlink-port=0", "--host=exa mple"):
        with pytest.raises(StudyError, match=f"^{wrong[2:].partition('=')[0].replace('-', '_')} = .*: needs "):
            call("init", folder, wrong)
    call("init", folder)


@pytest.mark.parametrize("command", ["enroll", "dismiss", "status", "run", "report", "amend"])
def test_a_folder_that_init_did_not_make_is_named_and_nothing_is_made_of_it(folder, card, command):
    named = {"enroll": [card], "dismiss": ["north"]}.get(command, [])
    with pytest.raises(StudyError, match=r"server.toml cannot be read: No such file") as refused:
        call(command, folder, *named)
    assert refused.value.fix == "give the folder that `grandrounds server init` made"
    assert not folder.exists()


def test_a_study_that_is_not_fixed_is_neither_run_nor_reported(folder):
    call("init", folder)
    for command in ("run", "report"):
        with pytest.raises(StudyError):
            call(command, folder)
