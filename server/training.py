"""A study's training at the server: rounds in order, the global adapter, its optimiser and its checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..common.errors import ScheduleExhaustedError
from ..common.identity import Identity
from ..common.optimizer import Optimizer, make_optimizer
from ..common.study import Manifest
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
    """A round was committed. All figures are releases or come from public or synthetic data."""

    round: int
    outcomes: tuple[AttemptOutcome, ...]
    survivors: tuple[str, ...]
    epsilon_spent: float | None
    perplexity: float


Observer = Callable[[ExchangeClosed | RoundClosed], None]


@dataclass(kw_only=True)
class Training:
    """The rounds of a study as one state machine: the transport asks for messages, delivers answers, and advances.

    ``evaluate`` gives the perplexity of an adapter [d] on the study's evaluation set; ``save`` stores a checkpoint.
    The training ends after the manifest's rounds, or earlier where the schedule holds no further attempt.
    """

    manifest: Manifest
    identity: Identity
    accountant: CentralAccountant
    adapter: NDArray[np.float32]
    evaluate: Callable[[NDArray[np.float32]], float]
    save: Callable[[Checkpoint], None]
    observe: Observer
    rounds: list[RoundClosed] = field(default_factory=list)
    exhausted: bool = False

    def __post_init__(self) -> None:
        training = self.manifest.study.training
        self._optimizer: Optimizer = make_optimizer(
            training.optimizer, learning_rate=training.learning_rate, beta1=training.beta1, beta2=training.beta2
        )
        self._round = self._open_round(1)

    @property
    def finished(self) -> bool:
        """Whether every round was committed, or the schedule is exhausted."""
        return self.exhausted or len(self.rounds) == self.manifest.study.training.rounds

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
        try:
            if self._round.finished:
                self._commit()
            elif self._round.failed:
                self._round.open_attempt()
        except ScheduleExhaustedError:
            self.exhausted = True

    def _commit(self) -> None:
        closing = self._round
        gradient = mean_gradient(self.manifest, closing.aggregate, closing.survivors)
        stepped = self._optimizer.step(self.adapter.astype(np.float64), gradient)
        self.adapter = stepped.astype(np.float32)
        self.rounds.append(
            RoundClosed(
                round=closing.number,
                outcomes=tuple(closing.outcomes),
                survivors=closing.survivors,
                epsilon_spent=self.accountant.epsilon_spent,
                perplexity=self.evaluate(self.adapter),
            )
        )
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
        if not self.finished:
            self._round = self._open_round(closing.number + 1)

    def _open_round(self, number: int) -> Round:
        opened = Round(
            number=number,
            manifest=self.manifest,
            identity=self.identity,
            accountant=self.accountant,
            adapter=self.adapter,
        )
        opened.open_attempt()
        return opened


def mean_gradient(manifest: Manifest, aggregate: NDArray[np.int64], survivors: tuple[str, ...]) -> NDArray[np.float64]:
    """The gradient [d] that the optimiser is given, from the aggregate [d] over the survivors.

    Divided by a public denominator, never by a true count. Distributed trust: q × the survivors' nominal units. Local
    trust: the survivors' share of all nominal units; the sites' mean change, negated, stands for a gradient.
    """
    units = sum(manifest.nominal_units(site) for site in survivors)
    if manifest.study.privacy.trust == "distributed":
        return manifest.lattice.decode(aggregate) / (manifest.study.privacy.sampling_probability * units)
    return -manifest.fixed_point.decode(aggregate) / (units / manifest.study.total_nominal_units)
