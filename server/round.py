"""One round as a state machine: open an attempt, carry its exchanges, retry, and end with an aggregate."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..common.adapter import vector_bytes
from ..common.identity import Identity, sha256
from ..common.manifest import Manifest
from ..common.messages import EMPTY_LEDGER_HEAD, Begin
from .accountant import CentralAccountant
from .secagg import ServerAttempt


@dataclass(frozen=True, kw_only=True)
class AttemptOutcome:
    """How one attempt of a round ended; ``reason`` is empty where it was unmasked."""

    attempt: int
    survivors: tuple[str, ...]
    dropouts: dict[str, str]
    reason: str


@dataclass(kw_only=True)
class Round:
    """Attempts of one round: ``open_attempt`` again where one ``failed``, until one is unmasked.

    Each attempt is checked against the schedule before it begins and counted as it begins, unmasked or not: once a
    site has answered, noise and draw are spent. ``charge_counters``, the last that each site told, is brought up to
    date: a site whose counter fell is left out, since its peers would refuse the attempt.
    """

    number: int
    manifest: Manifest
    identity: Identity
    accountant: CentralAccountant
    adapter: NDArray[np.float32]
    charge_counters: dict[str, int] = field(default_factory=dict)
    outcomes: list[AttemptOutcome] = field(default_factory=list)
    _attempt: ServerAttempt | None = None

    def open_attempt(self) -> None:
        """Begin the next attempt; raises ScheduleExhaustedError where the schedule holds no further one."""
        self.accountant.check()
        self.accountant.commit()
        payload = vector_bytes(self.adapter)
        begin = Begin(
            round=self.number,
            invited=tuple(site.name for site in self.manifest.study.sites),
            adapter_sha256=sha256(payload),
            ledger_length=0,
            ledger_head=EMPTY_LEDGER_HEAD,
        )
        self._attempt = ServerAttempt(
            parameters=self.manifest.secagg_parameters,
            identity=self.identity,
            begin=begin,
            attempt=self.accountant.attempts_committed,
            adapter=payload,
            least_charge_counters=self.charge_counters,
        )

    def messages(self) -> dict[str, bytes]:
        """What each site is to be sent in the current exchange."""
        return self._running.messages()

    def receive(self, site: str, answer: bytes) -> None:
        """A site's answer; one that is wrong only removes that site from the attempt."""
        self._running.receive(site, answer)

    def advance(self) -> tuple[str, frozenset[str]]:
        """Close the exchange: all answers are in, or its deadline passed. Returns the exchange and who answered it."""
        attempt = self._running
        exchange, answered = attempt.exchange, attempt.answered
        attempt.advance()
        if attempt.done or attempt.aborted:
            self.charge_counters |= attempt.charge_counters
            self.outcomes.append(
                AttemptOutcome(
                    attempt=self.accountant.attempts_committed,
                    survivors=tuple(attempt.survivors) if attempt.done else (),
                    dropouts=dict(attempt.dropouts),
                    reason=attempt.aborted or "",
                )
            )
        return exchange, answered

    @property
    def finished(self) -> bool:
        """Whether an attempt was unmasked."""
        return self._running.done

    @property
    def failed(self) -> bool:
        """Whether the attempt was aborted, so that the round needs another."""
        return self._running.aborted is not None

    @property
    def aggregate(self) -> NDArray[np.int64]:
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
