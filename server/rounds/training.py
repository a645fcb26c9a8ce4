"""A study's training at the server: rounds in order, the global adapter, its optimiser and its checkpoints."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ...common.errors import LedgerError, ScheduleExhaustedError, StorageError
from ...common.ledger import entries
from ...common.ledger.records import AttemptRecord, RoundRecord
from ...common.ledger.steps import check_state
from ...common.model.perplexity import NOT_EVALUATED, RecordLosses
from ...common.study.manifest import Manifest
from ...common.study.step import DueStep, LastStep, TakeStep, average_sha256, left, step, sum_bytes
from ...common.system.content import Content
from .accountant import CentralAccountant
from .checkpoint import Checkpoint
from .ledger_writer import LedgerWriter
from .round import AttemptOutcome, Round


@dataclass(frozen=True, kw_only=True)
class ExchangeClosed:
    """An exchange of an attempt ended: the sites whose answers were in, and why others were lost, in words."""

    round: int
    attempt: int
    exchange: str
    answered: frozenset[str]
    lost: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RoundOutcome:
    """A round ended: it was committed or, without survivors, left unfinished because the schedule was exhausted.

    All figures are releases or come from public or synthetic data; ``perplexity`` is that of the adapter after it,
    over whole records; None where the schedule does not evaluate it.
    """

    round: int
    outcomes: tuple[AttemptOutcome, ...]
    survivors: tuple[str, ...]
    epsilon_spent: float | None
    perplexity: float | None

    @property
    def committed(self) -> bool:
        """Whether the adapter took this round's step."""
        return bool(self.survivors)


RoundObserver = Callable[[ExchangeClosed | RoundOutcome], None]


@dataclass(kw_only=True)
class Training:
    """The rounds of a study as one state machine: the transport asks for messages, delivers answers, and advances.

    It goes on from ``checkpoint``, the last that was saved, and from the ledger: attempts that were begun since count.
    ``evaluate`` gives what an adapter [d] loses on the study's evaluation set, after the rounds that the study
    states and where the training ends; ``take_step`` takes a step, and ``save`` stores a checkpoint: what they return
    may lie in files, and only then does nothing of it stay in memory.
    The training ends after the manifest's rounds, or earlier where the schedule holds no further attempt: ``rounds``
    are those that were committed, and ``exhausted`` is then the one that was not. Raises StorageError where checkpoint
    and ledger do not belong together.
    """

    ledger: LedgerWriter
    checkpoint: Checkpoint
    evaluate: Callable[[NDArray[np.float32]], RecordLosses]
    save: Callable[[Checkpoint], Checkpoint]
    observe: RoundObserver
    take_step: TakeStep = step
    rounds: list[RoundOutcome] = field(default_factory=list)
    exhausted: RoundOutcome | None = None
    # How many of the ledger's entries each site is known to have.
    held: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.accountant = accountant_of(self.manifest, self.ledger.verified.attempts)
        self._resume()
        if not self.finished:
            self._open_attempt(self._new_round(len(self.rounds) + 1))

    @property
    def manifest(self) -> Manifest:
        """The manifest in force."""
        return self.ledger.verified.manifest

    @property
    def adapter(self) -> NDArray[np.float32]:
        """What the last committed round left [d]: its adapter, or the average of those of the rounds so far."""
        return left(self.manifest, self.checkpoint.last_step.after)

    @property
    def finished(self) -> bool:
        """Whether every round was committed, or the schedule is exhausted."""
        return self.exhausted is not None or len(self.rounds) == self.manifest.study.training.rounds

    @property
    def deadline_s(self) -> float:
        """How long the current exchange may take."""
        return self.manifest.study.training.deadline_s

    def messages(self) -> dict[str, Content]:
        """What each site is to be sent now."""
        return self._round.messages()

    def receive(self, site: str, answer: Content) -> None:
        """One site's answer."""
        self._round.receive(site, answer)

    def advance(self) -> None:
        """Close the current exchange; then commit the round if it has its sum, or retry if its attempt failed."""
        round_, attempt = self._round.number, self.accountant.attempts_committed
        closed = self._round.advance()
        self.observe(
            ExchangeClosed(
                round=round_, attempt=attempt, exchange=closed.exchange, answered=closed.answered, lost=closed.lost
            )
        )
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
            self._evaluate_last()
            self.exhausted = RoundOutcome(
                round=round_.number,
                outcomes=tuple(round_.outcomes),
                survivors=(),
                epsilon_spent=self.accountant.epsilon_spent,
                perplexity=self.checkpoint.last_evaluated.whole,
            )
            self.observe(self.exhausted)

    def _commit(self, closing: Round) -> None:
        before, total = self.checkpoint.last_step.after, sum_bytes(self.manifest, closing.aggregate)
        after = self.take_step(
            DueStep(
                manifest=self.manifest,
                before=before,
                total=total,
                survivors=closing.survivors,
                round=closing.number,
                attempt=self.ledger.verified.attempts[-1].attempt,
                shown=self.ledger.verified.attempts[-1].shown,
            )
        )
        ledger = self.ledger.verified.ledger
        evaluated = closing.number in self.manifest.study.training.evaluated_rounds
        losses = self.evaluate(left(self.manifest, after)) if evaluated else None
        perplexity = NOT_EVALUATED if losses is None else losses.perplexity.values
        self.checkpoint = self.save(
            Checkpoint(
                study=self.manifest.study_id,
                round=closing.number,
                attempts=self.accountant.attempts_committed,
                last_step=LastStep(after=after, before=before, total=total),
                perplexities=np.vstack([self.checkpoint.perplexities, perplexity]),
                evaluated=self.checkpoint.evaluated if losses is None else self.checkpoint.evaluated_by(losses),
                ledger_length=len(ledger),
                ledger_head=ledger.head,
            )
        )
        self._close_round()
        self.observe(self.rounds[-1])

    def _evaluate_last(self) -> None:
        """Evaluate what is left of a training that ends before its last round, and was not to be evaluated there."""
        if math.isnan(self.checkpoint.perplexities[-1, 0]):
            perplexities = self.checkpoint.perplexities.copy()
            losses = self.evaluate(self.adapter)
            perplexities[-1] = losses.perplexity.values
            evaluated = self.checkpoint.evaluated_by(losses)
            self.checkpoint = self.save(replace(self.checkpoint, perplexities=perplexities, evaluated=evaluated))
            self.rounds[-1] = replace(self.rounds[-1], perplexity=self._perplexity_after(self.checkpoint.round))

    def _perplexity_after(self, round_: int) -> float | None:
        """NaN is no figure that an event could carry, for it is not equal to itself."""
        whole = float(self.checkpoint.perplexities[round_, 0])
        return None if math.isnan(whole) else whole

    def _close_round(self) -> None:
        """Enter the checkpoint's round in the ledger: after it was saved, so that no round of the ledger is lost."""
        last_step = self.checkpoint.last_step
        self.ledger.append(
            entries.RoundClosed(
                attempt=self.checkpoint.attempts,
                round=self.checkpoint.round,
                sum_sha256=last_step.total_sha256,
                adapter_sha256=last_step.after.adapter_sha256,
                optimizer_sha256=last_step.after.optimizer_sha256,
                average_sha256=average_sha256(self.manifest, last_step.after),
            )
        )
        self.rounds.append(self._closed(self.ledger.verified.rounds[-1]))

    def _resume(self) -> None:
        """Take up what the ledger and the checkpoint hold; the last round may be in the checkpoint alone."""
        verified, checkpoint = self.ledger.verified, self.checkpoint
        same_ledger = verified.ledger.head_at(checkpoint.ledger_length) == checkpoint.ledger_head
        if checkpoint.study != self.manifest.study_id or not same_ledger:
            raise _foreign("was not saved with this ledger")
        self.rounds = [self._closed(closed) for closed in verified.rounds[: checkpoint.round]]
        if checkpoint.round == len(verified.rounds) + 1:
            self._close_round()
        if checkpoint.round != len(self.ledger.verified.rounds):
            raise _foreign(f"is of round {checkpoint.round}, and the ledger has {len(verified.rounds)}")
        try:
            check_state(self.ledger.verified, checkpoint.round, checkpoint.last_step.after)
        except LedgerError as error:
            raise _foreign("has another adapter than the ledger") from error

    def _closed(self, closed: RoundRecord) -> RoundOutcome:
        return RoundOutcome(
            round=closed.round,
            outcomes=self._outcomes(closed.round),
            survivors=closed.survivors,
            epsilon_spent=accountant_of(self.manifest, self.ledger.verified.attempts[: closed.attempt]).epsilon_spent,
            perplexity=self._perplexity_after(closed.round),
        )

    def _outcomes(self, round_: int) -> tuple[AttemptOutcome, ...]:
        attempts = [record for record in self.ledger.verified.attempts if record.round == round_]
        return tuple(AttemptOutcome.of(record) for record in attempts)

    def _new_round(self, number: int) -> Round:
        return Round(
            number=number,
            accountant=self.accountant,
            ledger=self.ledger,
            last_step=self.checkpoint.last_step,
            held=self.held,
            outcomes=list(self._outcomes(number)),
        )


def accountant_of(manifest: Manifest, attempts: Sequence[AttemptRecord]) -> CentralAccountant:
    """The central accountant of a study after the ``attempts`` of its ledger."""
    accountant = CentralAccountant(
        schedule=manifest.schedule,
        max_attempts=manifest.max_attempts,
        delta=manifest.delta,
        committed=len(attempts),
    )
    for record in attempts:
        if record.ended:
            accountant.record(record.attempt, record.charged)
    return accountant


def _foreign(what: str) -> StorageError:
    return StorageError(
        f"the checkpoint {what}",
        why="training would go on from an adapter that the ledger does not have",
        fix="put back ledger and checkpoints as they were; an older ledger must never replace a newer one",
    )
