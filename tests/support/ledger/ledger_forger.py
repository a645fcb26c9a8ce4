"""A server that rewrites its ledger and signs it anew, and audits that lack a check."""

import json
from collections.abc import Callable, Collection, Iterable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from grandrounds.common.crypto.identity import Identity, canonical_json
from grandrounds.common.errors import LedgerError
from grandrounds.common.ledger import entries
from grandrounds.common.ledger import replay as audit_module
from grandrounds.common.ledger.chain import EMPTY_LEDGER_HEAD, Entry, EntryType
from grandrounds.common.ledger.replay import VerifiedLedger
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.study.manifest import Countersignature
from support.ledger.ledger_history import History, countersignatures
from support.study.federation import small_study

Draft = dict[str, Any]
# Changes the entries of a history in place.
Tell = Callable[[History, list[Draft]], None]
SITES = tuple(f"site-{i}" for i in range(1, 6))
BEGUN, ENDED, CLOSED = "attempt-begun", "attempt-ended", "round-closed"


@cache
def story() -> History:
    """Attempts: 1, all took part. 2, site-2 was lost before its masked input. 3, aborted with three views.

    4, aborted with two masked inputs, while all had paid. 5, aborted with three adverts. 6, unmasked, its round not
    closed yet.
    """
    history = History()
    history.attempt()
    history.attempt([("site-2", "masked-input")])
    history.attempt([("site-1", "consistency"), ("site-2", "consistency")])
    history.attempt([(site, "masked-input") for site in SITES[:3]])
    history.attempt([("site-1", "advert"), ("site-2", "advert")])
    history.attempt(close=False)
    return history


@cache
def noisy_story() -> History:
    """With noise, of which a layer may go where all five last. Attempts: 1, all took part.

    2, site-2 was lost before its masked input. 3, all took part.
    """
    history = History(study=small_study(noise_multiplier=1.0, training={"rounds": 4, "max_attempts": 9}))
    history.attempt()
    history.attempt([("site-2", "masked-input")])
    history.attempt()
    return history


@cache
def whole_story() -> History:
    """A study that is over, and signed by all its sites."""
    history = History()
    history.attempt()
    history.close()
    return history


@cache
def succeeded_story() -> History:
    """A successor, with site-3's key changed, signed by all and not yet at work."""
    history = History()
    history.attempt()
    history.succeed(rotate=["site-3"])
    return history


def drafts(lines: Iterable[bytes]) -> list[Draft]:
    """The entries without what ties them together: for each its type, its body and who signs it."""
    parsed = [_parsed(line) for line in lines]
    return [{"type": entry.type, "body": entry.body, "author": entry.author} for entry in parsed]


@cache
def _parsed(line: bytes) -> Entry:
    return Entry.parse(line)


@cache
def _sealed(signer: Identity, entry_type: str, body: bytes, sequence: int, previous: str) -> Entry:
    return Entry.seal(
        signer, entry_type=EntryType(entry_type), body=json.loads(body), sequence=sequence, previous=previous
    )


def resealed(history: History, forged: Iterable[Draft]) -> list[bytes]:
    """A ledger of these entries, chained and signed as the server would have; what did not change is as it was."""
    lines: list[bytes] = []
    previous = EMPTY_LEDGER_HEAD
    for sequence, draft in enumerate(forged):
        signer = history.servers.get(draft["author"], history.server)
        entry = _sealed(signer, draft["type"], canonical_json(draft["body"]), sequence, previous)
        lines.append(entry.line)
        previous = entry.hash
    return lines


def resigned(
    history: History, signed: Draft, *, by: Identity | None = None, context: Draft | None = None, **body: Any
) -> Draft:
    """A statement like ``signed`` but for its ``context`` or ``body``: what its site, or another key, could sign."""
    envelope = Envelope.of_statement(entries.SignedStatement(**signed).statement)
    own: Draft = {"manifest": envelope.manifest, "attempt": envelope.attempt, "exchange": envelope.exchange}
    made = Envelope.seal(
        by or history.identities[envelope.sender],
        **own | {"sender": envelope.sender} | (context or {}),
        body={**envelope.body, **body},
    )
    return entries.SignedStatement.of(made.statement).model_dump()


def statement_of(body: Draft, kind: str, site: str) -> Draft:
    """What ``site`` signed of a kind, in the body of an attempt that ended."""
    return next(signed for signed in body[kind] if json.loads(signed["header"])["sender"] == site)


def signed_there(history: History, found: list[Draft]) -> None:
    """The manifest entered last is signed where it now stands, under the keys that its sites have now."""
    at = max(index for index, draft in enumerate(found) if draft["type"] == "study")
    place = (at, Entry.parse(resealed(history, found[:at])[-1]).hash)
    rest = [draft for draft in found[at:] if draft["type"] != "countersignature"]
    signatures = countersignatures(history.manifest, history.identities, place=place)
    body = {"type": "countersignature", "author": history.server.public_key}
    rest[1:1] = [{**body, "body": {"countersignature": signed.model_dump(mode="json")}} for signed in signatures]
    found[at:] = rest


def upto(history: History, entry_type: str, attempt: int) -> list[Draft]:
    """The entries up to the one of that type and attempt: what follows is not written yet."""
    found = deepcopy(drafts(history.lines))
    at = next(i for i, d in enumerate(found) if d["type"] == entry_type and d["body"].get("attempt") == attempt)
    return found[: at + 1]


@dataclass(frozen=True)
class Lie:
    """``tell`` changes entries in place; they are ``of`` a history, its first ones up to the entry named ``until``."""

    tell: Tell
    words: str
    without: tuple[str, ...]
    of: Callable[[], History]
    until: tuple[str, int] | None

    def told(self) -> list[bytes]:
        """The ledger with the lie in it."""
        history = self.of()
        found = upto(history, *self.until) if self.until else deepcopy(drafts(history.lines))
        self.tell(history, found)
        return resealed(history, found)


class Lies(dict[str, Lie]):
    """Lies by name; a decorator for the functions that tell them."""

    def __call__(
        self, words: str, *without: str, of: Callable[[], History], until: tuple[str, int] | None = None
    ) -> Callable[[Tell], None]:
        """Refused with ``words``, a lie passes ``without`` some checks: by default the one with these words."""

        def register(tell: Tell) -> None:
            self[tell.__name__] = Lie(tell, words, without or (words,), of, until)

        return register


def check_lie(lie: Lie, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused with its words; and is not, once its checks are gone."""
    lines = lie.told()
    with pytest.raises(LedgerError, match=r"entry \d+ .* cannot be") as refused:
        VerifiedLedger.of(lines)
    assert lie.words in refused.value.what
    audit_without(monkeypatch, lie.without).of(lines)


def audit_without(monkeypatch: pytest.MonkeyPatch, checks: Collection[str]) -> type[VerifiedLedger]:
    """An audit that lacks checks, each given by words of its refusal or by the name of the function that makes it."""
    for check in checks:
        for owner in (VerifiedLedger, Countersignature, audit_module):
            if hasattr(owner, check):
                monkeypatch.setattr(owner, check, lambda *_, **__: None)

    class Lenient(VerifiedLedger):
        def _require(self, holds: bool, otherwise: str) -> None:
            super()._require(holds or any(words in otherwise for words in checks), otherwise)

    return Lenient


def next_begun(found: list[Draft]) -> Draft:
    """An attempt that would begin after the round that was closed last."""
    begun = deepcopy([d for d in found if d["type"] == BEGUN][-1])
    closed = [d for d in found if d["type"] == CLOSED][-1]["body"]
    begun["body"] |= {"round": closed["round"] + 1, "adapter_sha256": closed["adapter_sha256"]}
    begun["body"]["attempt"] += 1
    return begun
