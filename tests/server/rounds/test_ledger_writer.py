"""The server's ledger: an entry is on disk before it counts, and nothing is written that an audit would refuse."""

import pytest
from support.ledger.ledger_forger import drafts, resealed
from support.ledger.ledger_history import History
from support.study.federation import agreed_ledger

from grandrounds.common.errors import LedgerError, StorageError
from grandrounds.common.ledger import entries
from grandrounds.common.ledger.replay import VerifiedLedger
from grandrounds.server.rounds.ledger_writer import LedgerWriter


@pytest.fixture(scope="module")
def history():
    """One attempt of one round."""
    made = History()
    made.attempt()
    return made


def begun(history):
    last = history.verified.rounds[-1]
    return entries.AttemptBegun(
        attempt=len(history.verified.attempts) + 1,
        round=last.round + 1,
        invited=history.sites,
        adapter_sha256=last.adapter_sha256,
    )


def writer(history, store):
    return LedgerWriter(identity=history.server, store=store, verified=VerifiedLedger.of(history.lines))


def test_what_is_stored_is_what_the_writer_has(history):
    stored = list(history.lines)
    made = writer(history, stored.append)
    entry = made.append(begun(history))
    assert stored[-1] == entry.line
    assert made.lines() == stored
    assert made.lines(len(history.lines)) == [entry.line]


def test_a_writer_that_starts_anew_goes_on_where_the_stored_ledger_ends(history):
    stored = list(history.lines)
    writer(history, stored.append).append(begun(history))
    again = LedgerWriter(identity=history.server, store=stored.append, verified=VerifiedLedger.of(stored))
    ended = entries.AttemptEnded(
        attempt=2,
        unmasked=False,
        dropouts=dict.fromkeys(history.sites, "advert"),
        adverts=(),
        masked_inputs=(),
        consistencies=(),
        unmasks=(),
    )
    again.append(ended)
    assert VerifiedLedger.of(stored).attempts[-1].ended


def test_what_an_audit_would_refuse_is_neither_stored_nor_kept(history):
    stored: list[bytes] = []
    made = writer(history, stored.append)
    wrong = begun(history).model_copy(update={"attempt": 7})
    with pytest.raises(LedgerError, match="attempt 7 follows attempt 1"):
        made.append(wrong)
    assert stored == []
    assert made.append(begun(history)).sequence == len(history.lines)


def test_an_entry_that_could_not_be_stored_does_not_count(history):
    refusing = [True]
    stored = []

    def store(line):
        if refusing.pop() if refusing else False:
            raise StorageError("full", why="", fix="")
        stored.append(line)

    made = writer(history, store)
    with pytest.raises(StorageError):
        made.append(begun(history))
    assert len(made.verified.attempts) == 1
    entry = made.append(begun(history))
    assert stored == [entry.line]


def test_a_server_with_another_key_than_the_studys_writes_nothing(history):
    other = History()
    made = LedgerWriter(
        identity=other.server, store=lambda line: pytest.fail("stored"), verified=VerifiedLedger.of(history.lines)
    )
    with pytest.raises(LedgerError, match="not signed by the study's server"):
        made.append(begun(history))


def test_a_ledger_begins_with_a_study(history):
    made = LedgerWriter(identity=history.server, store=lambda line: pytest.fail("stored"))
    with pytest.raises(LedgerError, match="does not begin with a study"):
        made.append(begun(history))


def test_the_ledger_of_an_agreed_study_is_whole_and_the_same_entry_is_the_same_bytes(history):
    made = agreed_ledger(history.manifest, history.identities, history.server)
    assert made.verified.agreed
    assert made.lines() == history.lines[: len(made.lines())]
    assert resealed(history, drafts(history.lines)) == history.lines
