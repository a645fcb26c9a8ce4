"""``grandrounds server`` as its operator types it."""

import json
import re

import pytest
from typer.testing import CliRunner

from grandrounds.common.crypto.identity import Identity
from grandrounds.common.errors import StudyError
from grandrounds.deploy.cli.main import app
from grandrounds.deploy.enrolment.bundle import SiteCard
from grandrounds.deploy.enrolment.node_keys import make_node_key
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
    assert f"grandrounds server bundle {folder}" in said
    key = json.loads(card.read_text())["public_key"]
    assert key in said.replace(" ", "")


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
    assert result.exit_code == 2
    assert not folder.exists()


def test_a_study_that_is_not_fixed_is_neither_run_nor_reported(folder):
    call("init", folder)
    for command in ("run", "report"):
        with pytest.raises(StudyError):
            call(command, folder)
