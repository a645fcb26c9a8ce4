"""What OPERATIONS.md says of what leaves a hospital is all that does, and its commands exist."""

import re

import numpy as np
import pytest
from support.process.operations_page import PAGE, largest_messages
from support.study.federation import Federation, small_study
from typer.testing import CliRunner

from grandrounds.common.ledger.replay import VerifiedLedger
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.deploy.cli.main import app
from grandrounds.server.rounds.closing import Closing
from grandrounds.server.rounds.ledger_writer import LedgerWriter
from grandrounds.server.rounds.signing import Signing

SITE, SITES, DIMENSION = "site-2", 5, 1000


@pytest.fixture(scope="module")
def page():
    return PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def left():
    """The size of every message that leaves one site in a whole study, by what it is."""
    federation = Federation(
        study=small_study(),
        dimension=DIMENSION,
        release=lambda manifest, site: lambda adapter, mechanism: np.ones(DIMENSION, "<u4"),
    )
    sizes = {}

    def answer(site, message):
        said = federation.workers[site].handle(message)
        if site == SITE:
            sizes[Envelope.parse(said).exchange] = len(said)
        return said

    def carry(conversation):
        while not conversation.finished:
            for site, message in conversation.messages().items():
                conversation.receive(site, answer(site, message))
            conversation.advance()

    federation.ledger = LedgerWriter(identity=federation.server, store=lambda line: None, verified=VerifiedLedger())
    carry(Signing(manifest=federation.manifest, ledger=federation.ledger))
    training = federation.open_training()
    begin = training.messages()[SITE]
    carry(training)
    answer(SITE, begin)  # again, which it refuses
    report = b'{"manifest_sha256": "%s", "epsilon": null}' % federation.manifest.sha256.encode()
    files = {"report.json": report}
    carry(Closing(ledger=federation.ledger, files=files, last_step=training.checkpoint.last_step))
    assert SITE in federation.ledger.verified.closing_signatures
    return sizes


def test_the_table_of_what_leaves_a_hospital_is_complete(left):
    most = largest_messages(sites=SITES, dimension=DIMENSION)
    assert most.keys() == left.keys()
    assert {name for name, size in left.items() if size > most[name]} == set()
    assert {name for name, size in left.items() if size < most[name] / 2} == set(), "nor is it far above"


def test_every_command_of_the_page_exists(page):
    blocks = re.findall(r"^```\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    commands = {tuple(words) for block in blocks for words in re.findall(r"^grandrounds (\w+)(?: (\w+))?", block, re.M)}
    assert len(commands) > 10
    for command in commands:
        words = [word for word in command if word and word.islower()]
        result = CliRunner().invoke(app, [*words, "--help"])
        assert result.exit_code == 0, (words, result.output)
