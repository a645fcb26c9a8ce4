"""One round as a state machine: open an attempt, carry its exchanges, retry, and end with an aggregate."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...common.ledger import entries
from ...common.ledger.entries import SignedStatement, Statements
from ...common.ledger.records import AttemptRecord
from ...common.ledger.replay import begin_of
from ...common.protocol.messages import Advert, Consistency, MaskedInput, Unmask, packed
from ...common.study.manifest import Manifest
from ...common.study.step import LastStep
from ...common.system.content import Content, Joined
from .accountant import CentralAccountant
from .attempt import ServerAttempt
from .ledger_writer import LedgerWriter


@dataclass(frozen=True, kw_only=True)
class AttemptOutcome:
    """How one attempt of a round ended, if it did: with survivors where it was unmasked."""

    attempt: int
    survivors: tuple[str, ...]
    dropouts: dict[str, str]
    ended: bool = True

    @classmethod
    def of(cls, record: AttemptRecord) -> "AttemptOutcome":
        """What the ledger says of it."""
        return cls(
            attempt=record.attempt,
            survivors=record.survivors,
            dropouts=dict(record.dropouts),
            ended=record.ended,
        )


@dataclass(frozen=True, kw_only=True)
class ClosedExchange:
    """An exchange that is over: who answered it, and why the sites that were ``lost`` in it were, in words."""

    exchange: str
    answered: frozenset[str]
    lost: Mapping[str, str]


@dataclass(kw_only=True)
class Round:
    """Attempts of one round: ``open_attempt`` again where one ``failed``, until one is unmasked.

    Each attempt is checked against the schedule before it begins, and counted and on the ledger as it begins, unmasked
    or not: once a site has answered, noise and draw are spent. Of ``held``, how many of the ledger's entries each site
    is known to have, what is out of date is brought up to date, and the adapter with it. A site whose charge counter
    fell is left out, since its peers would refuse the attempt.
    """

    number: int
    accountant: CentralAccountant
    ledger: LedgerWriter
    last_step: LastStep
    held: dict[str, int] = field(default_factory=dict)
    outcomes: list[AttemptOutcome] = field(default_factory=list)
    _attempt: ServerAttempt | None = None

    @property
    def manifest(self) -> Manifest:
        """The manifest in force."""
        return self.ledger.verified.manifest

    def open_attempt(self) -> None:
        """Begin the next attempt; raises ScheduleExhaustedError where the schedule holds no further one."""
        self.accountant.check()
        entry = self.ledger.append(
            entries.AttemptBegun(
                attempt=self.accountant.attempts_committed + 1,
                round=self.number,
                invited=tuple(site.name for site in self.manifest.study.sites),
                adapter_sha256=self.last_step.after.adapter_sha256,
            )
        )
        self.accountant.commit()
        begin = begin_of(entry)
        lacking = {start: self._lacking(start) for start in {self.held.get(site, 0) for site in begin.invited}}
        serial = self.accountant.attempts_committed
        self._attempt = ServerAttempt(
            parameters=self.manifest.attempt_parameters(serial),
            identity=self.ledger.identity,
            begin=begin,
            attempt=serial,
            payloads={site: lacking[self.held.get(site, 0)] for site in begin.invited},
            possible_charges={site: self.ledger.verified.possible_charges(site) for site in begin.invited},
        )

    def _lacking(self, start: int) -> Joined:
        missing = self.last_step.missing(behind=self.ledger.rounds_since(start))
        return packed([missing.packed(), *self.ledger.lines(start)])

    def messages(self) -> dict[str, Content]:
        """What each site is to be sent in the current exchange."""
        return self._running.messages()

    def receive(self, site: str, answer: Content) -> None:
        """A site's answer; one that is wrong only removes that site from the attempt."""
        self._running.receive(site, answer)

    def advance(self) -> ClosedExchange:
        """Close the exchange: all answers are in, or its deadline passed."""
        attempt = self._running
        exchange, answered = attempt.exchange, attempt.answered
        attempt.advance()
        lost = {site: attempt.reasons[site] for site, at in attempt.dropouts.items() if at == exchange}
        if exchange == Advert.exchange:
            # Who advertised has the ledger up to this attempt; who did not is sent all of it next time.
            length = len(self.ledger.verified.ledger)
            self.held |= {site: length if site in answered else 0 for site in self.manifest.site_keys}
        if attempt.done or attempt.aborted:
            self._end(attempt)
        return ClosedExchange(exchange=exchange, answered=answered, lost=lost)

    def _end(self, attempt: ServerAttempt) -> None:
        serial = self.accountant.attempts_committed
        self.ledger.append(
            entries.AttemptEnded(
                attempt=serial,
                unmasked=attempt.done,
                dropouts=attempt.dropouts,
                adverts=self._statements(attempt, Advert.exchange),
                masked_inputs=self._statements(attempt, MaskedInput.exchange),
                consistencies=self._statements(attempt, Consistency.exchange),
                unmasks=self._statements(attempt, Unmask.exchange),
            )
        )
        record = self.ledger.verified.attempts[-1]
        self.accountant.record(serial, record.charged)
        self.outcomes.append(AttemptOutcome.of(record))

    def _statements(self, attempt: ServerAttempt, exchange: str) -> Statements:
        said = attempt.statements[exchange]
        return tuple(SignedStatement.of(said[site]) for site in self.manifest.secagg_parameters.in_order(said))

    @property
    def finished(self) -> bool:
        """Whether an attempt was unmasked."""
        return self._running.done

    @property
    def failed(self) -> bool:
        """Whether the attempt was aborted, so that the round needs another."""
        return self._running.aborted is not None

    @property
    def aggregate(self) -> NDArray[np.signedinteger]:
        """The sum over the survivors, [d]."""
        return self._running.aggregate

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose updates are in the aggregate; nobody's before an attempt was unmasked."""
        return self.outcomes[-1].survivors if self.outcomes else ()

    @property
    def _running(self) -> ServerAttempt:
        if self._attempt is None:
            raise RuntimeError("the round has no attempt yet: call open_attempt first")
        return self._attempt
