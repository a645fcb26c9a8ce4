"""What the fuzzers feed to a ledger: entries, which the study's server chains and signs whatever they say."""

import json
from collections.abc import Sequence
from functools import cache

from grandrounds.common.crypto.identity import canonical_json
from grandrounds.common.errors import GrandRoundsError, LedgerError
from grandrounds.common.ledger.replay import VerifiedLedger
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import Advert, Refusal
from support.ledger.ledger_forger import drafts, resealed
from support.ledger.ledger_history import History

SITE = "site-2"


@cache
def ledger_story() -> History:
    """A study with a round, a successor, an attempt that failed, and its end."""
    whole = History()
    whole.attempt()
    whole.succeed(rotate=[SITE])
    whole.attempt([("site-1", "consistency"), ("site-3", "consistency")])
    whole.close()
    return whole


@cache
def at_begin() -> tuple[History, list[bytes]]:
    """A study whose sites are about to hear of their second attempt, and the ledger with it."""
    whole = History()
    whole.attempt(close=False)
    stored = list(whole.lines)
    whole.begin()
    lines, whole.lines[:] = list(whole.lines), stored
    return whole, lines


def sealed_entries(whole: History, data: bytes) -> list[bytes]:
    """A ledger of what ``written`` wrote; raises LedgerError where no entry could hold it."""
    try:
        told = [json.loads(line) for line in data.split(b"\n")]
        return resealed(whole, [{key: draft[key] for key in ("author", "body", "type")} for draft in told])
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise LedgerError("nothing that an entry could hold", why="", fix="") from error


def written(lines: Sequence[bytes]) -> bytes:
    return b"\n".join(canonical_json(draft) for draft in drafts(lines))


def feed_ledger(data: bytes) -> None:
    VerifiedLedger.of(sealed_entries(ledger_story(), data))


def feed_begin(data: bytes) -> None:
    """A site refuses an attempt whose ledger is not whole, and is whole itself for the one that is."""
    whole, honest = at_begin()
    lines, site = sealed_entries(whole, data), whole.fork().workers[SITE]
    try:
        begin = whole.begin_with(lines)
    except (GrandRoundsError, ValueError, LookupError, TypeError) as error:
        raise LedgerError("no Begin could name it", why="", fix="") from error
    answer = Envelope.parse(site.handle(begin))
    if answer.exchange == Refusal.exchange:
        assert Advert.exchange == Envelope.parse(site.handle(whole.begin_with(honest))).exchange
        raise LedgerError("refused", why="", fix="")
