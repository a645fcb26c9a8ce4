"""A federation of processes that are killed at named points, goes on, and is held against what it had written by then.

``python -m soak.killed_federation COUNT [JOURNAL]`` makes the first COUNT studies: one killed at every place that a
study without kills comes to, then at random ones, half of those twice. JOURNAL keeps what came of each, so that the
next call goes on after it. At the end a table says what the kills have cost (``make soak``).
"""

import json
import logging
import random
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from support.ledger.left_on_disk import check_kept, rows
from support.process.forked_federation import ROUNDS, SERVER, SITES, ForkedFederation, Kill, study_of
from support.study.allowed_study import policy

from grandrounds.client.budget.agreement import cost_of
from grandrounds.common.ledger.replay import VerifiedLedger
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import MaskedInput, Refusal
from grandrounds.deploy.verify.claims import verify
from grandrounds.deploy.verify.verdict import Status

# A kill costs an attempt at most: GENEROUS attempts are enough for two, and TIGHT ones may be used up.
GENEROUS, TIGHT = ROUNDS + 2, ROUNDS
NOTHING, WITHOUT, REPEATED, USED_UP = OUTCOMES = (
    "nothing lost",
    "attempt without the site",
    "attempt repeated",
    "schedule used up",
)
OF_AN_ATTEMPT = ("advert", "shares", "masked-input", "consistency", "unmask")
# The rows of the table, and the points that belong to each.
ROWS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "worker": {
        "joining: around each write": ("*_state", "*_asset", "*_reservation", "*_signature", "*_cancellation"),
        "the patients' fingerprints: around their write": ("*_patients",),
        "an attempt's serial: around its write": ("*_serial",),
        "its charge: around its write": ("*_charge",),
        "the end of the ledger: around its write": ("*_ledger",),
        **{
            f"{exchange}: asked, computed, sent": (f"{exchange} *",)
            for exchange in ("agreed", *OF_AN_ATTEMPT, "closed")
        },
    },
    "server": {
        "study, countersignature: around and in the entry": ("* study", "* countersignature"),
        **{
            f"{entry}: around and in the entry": (f"* {entry}",)
            for entry in ("attempt-begun", "attempt-ended", "round-closed", "study-closed", "closing-signature")
        },
        "checkpoint: around its write": ("* checkpoint",),
        "results: around and in their writing": ("* results",),
        "agreed: made, asked, in part, answered": ("agreed *",),
        "an attempt's exchange: made, asked, in part, answered": tuple(f"{exchange} *" for exchange in OF_AN_ATTEMPT),
        "closed: made, asked, in part, answered": ("closed *",),
    },
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Who is killed where, whether a network sends once more what was not answered, and how many attempts there are."""

    kills: tuple[Kill, ...]
    redelivers: bool
    max_attempts: int = GENEROUS


def places(federation: ForkedFederation) -> list[Kill]:
    """Every place that the processes of a study without kills came to: first once by each point, then again."""
    found = [
        Kill(victim, point, occurrence)
        for victim, party in {SERVER: federation.server, **federation.sites}.items()
        for point, times in Counter(party.reached()).items()
        for occurrence in range(1, times + 1)
    ]
    return sorted(found, key=lambda kill: (kill.occurrence, kill.victim != SERVER, kill.victim))


def plan(number: int, known: Sequence[Kill]) -> Plan:
    """The plan of this number, always the same one: each of the places that are ``known``, then random ones."""
    if number < len(known):
        return Plan(kills=(known[number],), redelivers=number % 2 == 0)
    draw = random.Random(number)
    return Plan(
        kills=tuple(draw.choice(known) for _ in range(draw.randint(1, 2))),
        redelivers=draw.random() < 0.5,
        max_attempts=draw.choice([GENEROUS, GENEROUS, TIGHT]),
    )


def killed(folder: Path, planned: Plan) -> ForkedFederation:
    """The study with its kills, at its end, checked."""
    manifest = study_of(planned.max_attempts)
    federation = ForkedFederation(folder, manifest, planned.kills, planned.redelivers).run()
    check(federation)
    return federation


def check(federation: ForkedFederation) -> None:
    """Fails unless everything is in order, and nothing is lost but an attempt for each kill."""
    end, manifest = federation.on_disk(), federation.manifest
    check_kept([*federation.left, end])
    verified = VerifiedLedger.of(end.lines)
    assert len(verified.rounds) == ROUNDS or len(verified.attempts) == manifest.max_attempts, "it ends where it may"
    assert len(verified.attempts) <= ROUNDS + len(federation.left), "a kill costs an attempt at most"
    for site in SITES:
        _check_site(federation, site, verified)
        assert answered(federation, site) <= end.paid(site), f"{site} has paid for every masked input that left it"
    assert not list(federation.study.path.rglob(".*")), "nothing half written is left"
    verdict = verify(federation.study.path, manifest_hash=manifest.sha256)
    assert {finding.status for finding in verdict.findings if finding.name not in ("audit", "attacks")} == {
        Status.AGREES
    }, verdict


def _check_site(federation: ForkedFederation, site: str, verified: VerifiedLedger) -> None:
    """What it holds and reserved, and that it gave no two answers to one question."""
    state, manifest = federation.states[site], federation.manifest
    ledger = [entry for (entry,) in rows(state, "SELECT entry FROM ledger ORDER BY sequence")]
    assert ledger == verified.ledger.lines()[: len(ledger)], f"{site} holds the ledger that is left"
    cost = cost_of(manifest, policy().data.data_asset())
    reserved = rows(state, "SELECT study, epsilon, delta FROM reservations")
    assert reserved == [(manifest.study_id, cost.epsilon, cost.delta)], f"{site} has reserved the study once, in full"
    assert verified.charges.get(site, 0) <= manifest.max_attempts
    said = {answer for answer in federation.said[site] if answer}
    envelopes = [Envelope.parse(answer) for answer in said]
    asked = Counter((e.attempt, e.exchange) for e in envelopes if e.attempt and e.exchange != Refusal.exchange)
    assert set(asked.values()) == {1}, f"{site} answered differently to one question: {asked}"


def answered(federation: ForkedFederation, site: str) -> set[int]:
    """The attempts in which a masked input left the site, whether or not the server took it."""
    envelopes = [Envelope.parse(answer) for answer in federation.said[site] if answer]
    return {envelope.attempt for envelope in envelopes if envelope.exchange == MaskedInput.exchange}


def outcome(federation: ForkedFederation) -> str:
    """What the kills cost."""
    verified = VerifiedLedger.of(federation.on_disk().lines)
    if len(verified.rounds) < ROUNDS:
        return USED_UP
    if len(verified.attempts) > ROUNDS:
        return REPEATED
    return WITHOUT if any(record.dropouts for record in verified.attempts) else NOTHING


def row(kills: Sequence[Kill]) -> tuple[str, str]:
    """The row of the table: who was killed, and at what kind of point."""
    victims = [SERVER if kill.victim == SERVER else "worker" for kill in kills]
    if len(kills) > 1:
        return " and ".join(sorted(victims)), "two points, at random"
    for name, parts in ROWS[victims[0]].items():
        if any(fnmatchcase(kills[0].point, part) for part in parts):
            return victims[0], name
    raise AssertionError(f"the table has no row for {kills[0].point}")


def table(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The results as Markdown."""
    found: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for result in results:
        kills = [Kill(**kill) for kill in result["kills"]]
        if result["happened"]:
            found[row(kills)].update(["kills"] * int(result["happened"]) + [result["outcome"]])
            found[row(kills)]["again"] += int(result["commands"]) > 1
    yield f"| killed | where | kills | {' | '.join(OUTCOMES)} | `server run` again |"
    yield f"|---|---|{'---:|' * (len(OUTCOMES) + 2)}"
    order = [(victim, name) for victim, names in ROWS.items() for name in names]
    for key in sorted(found, key=lambda key: order.index(key) if key in order else len(order)):
        counts = [found[key][column] for column in ("kills", *OUTCOMES, "again")]
        yield f"| {' | '.join((*key, *(str(count or '') for count in counts)))} |"


def main(count: int, journal: Path | None) -> int:
    """The studies up to number ``count``; 1 at the first that goes wrong."""
    logging.disable(logging.CRITICAL)
    results = [json.loads(line) for line in journal.read_text().splitlines()] if journal and journal.exists() else []
    with tempfile.TemporaryDirectory() as name:
        whole = killed(Path(name) / "whole", Plan(kills=(), redelivers=False))
        known = places(whole)
        for number in range(len(results), count):
            planned = plan(number, known)
            with tempfile.TemporaryDirectory(dir=name) as folder:
                try:
                    federation = killed(Path(folder) / "study", planned)
                except AssertionError as error:
                    print(f"plan {number}, {planned}: {error}", file=sys.stderr)
                    return 1
                result = {
                    "kills": [asdict(kill) for kill in planned.kills],
                    "happened": len(federation.left),
                    "outcome": outcome(federation),
                    "commands": federation.commands,
                }
            results.append(result)
            if journal:
                with journal.open("a") as file:
                    file.write(json.dumps(result) + "\n")
    happened = sum(result["happened"] for result in results)
    print(f"{happened} kills in {len(results)} studies, of which {len(known)} were at each place in turn\n")
    print("\n".join(table(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000, Path(sys.argv[2]) if len(sys.argv) > 2 else None))
