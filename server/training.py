"""A study's training at the server: rounds in order, the global adapter, its optimiser and its checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..common.errors import ScheduleExhaustedError
from ..common.identity import Identity
from ..common.manifest import Manifest
from ..common.optimizer import Optimizer, make_optimizer
from .accountant import CentralAccountant
from .checkpoint import Checkpoint
from .round import AttemptOutcome, Round


@dataclass(frozen=True, kw_only=True)
class ExchangeClosed:
    """An exchange of an attempt ended; ``answered`` are the sites whose answers were in."""

    round: int
    attempt: int
    exchange: str
    answered: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class RoundClosed:
    """A round ended: it was committed or, without survivors, left unfinished because the schedule was exhausted.

    All figures are releases or come from public or synthetic data; ``perplexity`` is that of the adapter after it.
    """

    round: int
    outcomes: tuple[AttemptOutcome, ...]
    survivors: tuple[str, ...]
    epsilon_spent: float | None
    perplexity: float

    @property
    def committed(self) -> bool:
        """Whether the adapter took this round's step."""
        return bool(self.survivors)


Observer = Callable[[ExchangeClosed | RoundClosed], None]


@dataclass(kw_only=True)
class Training:
    """The rounds of a study as one state machine: the transport asks for messages, delivers answers, and advances.

    ``evaluate`` gives the perplexity of an adapter [d] on the study's evaluation set; ``save`` stores a checkpoint.
    The training ends after the manifest's rounds, or earlier where the schedule holds no further attempt: ``rounds``
    are those that were committed, and ``exhausted`` is then the one that was not.
    """

    manifest: Manifest
    identity: Identity
    accountant: CentralAccountant
    adapter: NDArray[np.float32]
    evaluate: Callable[[NDArray[np.float32]], float]
    save: Callable[[Checkpoint], None]
    observe: Observer
    rounds: list[RoundClosed] = field(default_factory=list)
    exhausted: RoundClosed | None = None

    def __post_init__(self) -> None:
        training = self.manifest.study.training
        self._optimizer: Optimizer = make_optimizer(
            training.optimizer, learning_rate=training.learning_rate, beta1=training.beta1, beta2=training.beta2
        )
        self._charge_counters: dict[str, int] = {}
        self._open_attempt(self._new_round(1))

    @property
    def finished(self) -> bool:
        """Whether every round was committed, or the schedule is exhausted."""
        return self.exhausted is not None or len(self.rounds) == self.manifest.study.training.rounds

    @property
    def deadline_s(self) -> float:
        """How long the current exchange may take."""
        return self.manifest.study.training.deadline_s

    def messages(self) -> dict[str, bytes]:
        """What each site is to be sent now."""
        return self._round.messages()

    def receive(self, site: str, answer: bytes) -> None:
        """One site's answer."""
        self._round.receive(site, answer)

    def advance(self) -> None:
        """Close the current exchange; then commit the round if it has its sum, or retry if its attempt failed."""
        round_, attempt = self._round.number, self.accountant.attempts_committed
        exchange, answered = self._round.advance()
        self.observe(ExchangeClosed(round=round_, attempt=attempt, exchange=exchange, answered=answered))
        if self._round.failed:
            self._open_attempt(self._round)
        elif self._round.finished:
            self._commit(self._round)
            if not self.finished:
                self._open_attempt(self._new_round(round_ + 1))

    def _open_attempt(self, round_: Round) -> None:
        """Begin the next attempt of a round that is new or has failed; without one, the training ends there."""
        self._round = round_
        try:
            round_.open_attempt()
        except ScheduleExhaustedError:
            self.exhausted = self._closed(round_)
            self.observe(self.exhausted)

    def _commit(self, closing: Round) -> None:
        gradient = mean_gradient(self.manifest, closing.aggregate, closing.survivors)
        stepped = self._optimizer.step(self.adapter.astype(np.float64), gradient)
        self.adapter = stepped.astype(np.float32)
        self.rounds.append(self._closed(closing))
        self.save(
            Checkpoint(
                manifest=self.manifest.sha256,
                round=closing.number,
                attempts=self.accountant.attempts_committed,
                adapter=self.adapter,
                optimizer=self._optimizer.state,
            )
        )
        self.observe(self.rounds[-1])

    def _closed(self, round_: Round) -> RoundClosed:
        return RoundClosed(
            round=round_.number,
            outcomes=tuple(round_.outcomes),
            survivors=round_.survivors,
            epsilon_spent=self.accountant.epsilon_spent,
            perplexity=self.evaluate(self.adapter),
        )

    def _new_round(self, number: int) -> Round:
        return Round(
            number=number,
            manifest=self.manifest,
            identity=self.identity,
            accountant=self.accountant,
            adapter=self.adapter,
            charge_counters=self._charge_counters,
        )


def mean_gradient(manifest: Manifest, aggregate: NDArray[np.int64], survivors: tuple[str, ...]) -> NDArray[np.float64]:
    """The gradient [d] that the optimiser is given, from the aggregate [d] over the survivors.

    Divided by a public denominator, never by a true count. Distributed trust: q × the survivors' nominal units. Local
    trust: the survivors' share of all nominal units; the sites' mean change, negated, stands for a gradient.
    """
    units = sum(manifest.nominal_units(site) for site in survivors)
    if manifest.study.privacy.trust == "distributed":
        return manifest.lattice.decode(aggregate) / (manifest.study.privacy.sampling_probability * units)
    return -manifest.fixed_point.decode(aggregate) / (units / manifest.study.total_nominal_units)
