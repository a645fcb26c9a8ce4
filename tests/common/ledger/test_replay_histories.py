"""Honest histories of any kind pass their audit; no single lie about them changes what a site's signature stands on.

The server can sign its whole ledger anew. What it cannot change is whatever came before an attempt in which somebody
advertised: an advert names the hash of its Begin, and that the ledger up to it.
"""

from copy import deepcopy
from functools import cache
from typing import Any

from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.ledger.ledger_forger import Draft, drafts, resealed
from support.ledger.ledger_history import EXCHANGES, History, history_study

from grandrounds.common.crypto.identity import Identity
from grandrounds.common.errors import LedgerError
from grandrounds.common.ledger.entries import SignedStatement
from grandrounds.common.ledger.replay import VerifiedLedger
from grandrounds.common.protocol.envelope import Envelope

SITES = st.integers(0, 5)
MAX_ENTRIES = 60
MANY = 100


@cache
def start() -> History:
    """Five sites that have agreed."""
    return History(study=history_study(rounds=30, max_attempts=40))


def senders(statements: list[Draft]) -> list[str]:
    return [Envelope.of_statement(SignedStatement(**signed).statement).sender for signed in statements]


def committed(found: list[Draft]) -> int:
    """How many entries a site's statement among them stands on."""
    last = 0
    for i, draft in enumerate(found):
        if draft["type"] == "attempt-ended" and draft["body"]["adverts"]:
            last = max(j for j in range(i) if found[j]["type"] == "attempt-begun") + 1
        elif draft["type"] == "closing-signature":
            last = next(j for j in range(i) if found[j]["type"] == "study-closed") + 1
    return last


def inner(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value, as its container and key."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, child in items for place in [(value, key), *inner(child)]]


def tell(data: st.DataObject, found: list[Draft]) -> str:
    """One lie: about the entries, or in the body of one; in a word."""
    at = data.draw(st.integers(0, len(found) - 1))
    about = found[at]["type"]
    how = data.draw(st.sampled_from(["drop", "double", "swap", "cut", "change", "change", "change", "change"]))
    if how == "change":
        change(data, found, at)
    elif how == "drop":
        del found[at]
    elif how == "double":
        found.insert(at, found[at])
    elif how == "swap":
        found[at - 1], found[at] = found[at], found[at - 1]
    else:
        del found[at:]
    return f"{how} {about}"


def change(data: st.DataObject, found: list[Draft], at: int) -> None:
    """Change one place in a body: drop it, put it twice, or put something in it that stands elsewhere."""
    container, key = data.draw(st.sampled_from(inner(found[at]["body"])))
    value = container[key]
    if isinstance(value, bool):
        container[key] = not value
    elif isinstance(value, int):
        container[key] = value + data.draw(st.sampled_from([-1, 1, 2]))
    elif data.draw(st.booleans()):
        del container[key]
    elif isinstance(container, list):
        container.insert(key, value)
    else:
        like = [c[k] for draft in found for c, k in inner(draft["body"]) if k == key and type(c[k]) is type(value)]
        container[key] = data.draw(st.sampled_from([*like, *EXCHANGES] if isinstance(value, str) else like))


def check_lie(data: st.DataObject, history: History) -> None:
    """A lie is refused, or it is about what no site has seen yet."""
    honest = drafts(history.lines)
    told = deepcopy(honest)
    how = tell(data, told)
    assume(told != honest)
    lines = resealed(history, told)
    try:
        verified = VerifiedLedger.of(lines)
    except LedgerError:
        return
    event(f"passes: {how}")
    kept = committed(told)
    assert lines[:kept] == history.lines[:kept]
    signed = {d["body"]["attempt"]: senders(d["body"]["masked_inputs"]) for d in honest if "adverts" in d["body"]}
    assert all(list(a.survivors) == signed[a.attempt] for a in verified.attempts if a.unmasked)
    assert all(charges <= history.paid[site] for site, charges in verified.charges.items())


@cache
def told_of() -> list[History]:
    """Histories to lie about: a study with failures; the same after a successor; the same at its end."""
    failing = start().fork()
    failing.attempt()
    failing.attempt([("site-2", "masked-input")])
    failing.attempt(until="consistency")
    failing.attempt([("site-1", "consistency"), ("site-2", "consistency")])
    failing.attempt([("site-1", "unmask")], close=False)
    succeeded = failing.fork()
    succeeded.succeed(rotate=["site-3"])
    succeeded.attempt([("site-4", "shares"), ("site-5", "masked-input")])
    closed = succeeded.fork()
    closed.close()
    return [failing, succeeded, closed]


@settings(max_examples=MANY, deadline=None)
@given(data=st.data(), which=st.integers(0, 2))
def test_a_lie_changes_nothing_that_a_site_stands_for(data: st.DataObject, which: int) -> None:
    check_lie(data, told_of()[which])


@settings(max_examples=8, stateful_step_count=8, deadline=None)
class Histories(RuleBasedStateMachine):
    """Attempts, losses, crashes, successors, and now and then a server that lies."""

    @initialize()
    def begin(self) -> None:
        self.history = start().fork()
        self.joined = len(self.history.sites)

    def room(self) -> bool:
        return len(self.history.lines) < MAX_ENTRIES

    @precondition(room)
    @rule(lost=st.sets(st.tuples(SITES, st.sampled_from(EXCHANGES)), max_size=4), closes=st.booleans())
    def attempt(self, lost: set[tuple[int, str]], closes: bool) -> None:
        sites = self.history.sites
        self.history.attempt({(sites[i % len(sites)], exchange) for i, exchange in lost}, close=closes)

    @precondition(room)
    @rule(away=st.sets(SITES, max_size=2))
    def attempt_without(self, away: set[int]) -> None:
        sites = self.history.sites
        self.history.attempt(away={sites[i % len(sites)] for i in away})

    @precondition(room)
    @rule(exchange=st.sampled_from(EXCHANGES))
    def the_server_crashes(self, exchange: str) -> None:
        self.history.attempt(until=exchange)
        self.history.told.clear()

    @rule(site=SITES)
    def a_worker_starts_anew(self, site: int) -> None:
        self.history.restart(self.history.sites[site % len(self.history.sites)])

    @precondition(room)
    @rule(site=SITES, kind=st.sampled_from(["join", "leave", "rotate", "server"]))
    def a_successor(self, site: int, kind: str) -> None:
        units = {entry.name: entry.nominal_units for entry in self.history.study.sites}
        chosen = list(units)[site % len(units)]
        if kind == "rotate":
            self.history.succeed(rotate=[chosen])
        elif kind == "server":
            self.history.succeed(server=Identity.generate())
        elif kind == "join" and len(units) < 6:
            self.joined += 1
            self.history.succeed(units | {f"site-{self.joined}": 4})
        elif kind == "leave" and len(units) > 4:
            self.history.succeed({name: number for name, number in units.items() if name != chosen})

    @rule(data=st.data())
    def a_lie_changes_nothing_that_a_site_stands_for(self, data: st.DataObject) -> None:
        check_lie(data, self.history)

    @invariant()
    def the_audit_passes_and_fits_what_the_sites_know(self) -> None:
        verified, paid = self.history.verified, self.history.paid
        for site, charges in paid.items():
            assert verified.charges.get(site, 0) <= charges <= verified.most_charges(site)
        for site, budget in self.history.budgets.items():
            held = budget.ledger(self.history.manifest.study_id)
            assert held == self.history.lines[: len(held)], site
        assert len(verified.rounds) == sum(d["type"] == "round-closed" for d in drafts(self.history.lines))

    def teardown(self) -> None:
        """It can always end, and every site signs."""
        self.history.close()
        assert self.history.verified.closing_signatures == set(self.history.sites)


TestHistories = Histories.TestCase
