"""The central accountant: counts a study's attempts and refuses any beyond the schedule."""

from dataclasses import replace

from ..common.errors import PrivacyError, ScheduleExhaustedError
from ..common.privacy.accountant import Epsilon, epsilon
from ..common.privacy.events import Schedule


class CentralAccountant:
    """Check, then commit: ``check`` before an attempt begins, ``commit`` once it has begun, whatever becomes of it.

    The study's claim is ``epsilon_of_schedule`` from the start to the end: stopping early changes nothing about it,
    and an attempt that failed counts like one that succeeded.
    """

    def __init__(self, *, schedule: Schedule | None, max_attempts: int, delta: float, committed: int = 0) -> None:
        """``schedule`` covers ``max_attempts`` attempts, ``committed`` of them already begun; None: without noise.

        Raises PrivacyError where the schedule is no whole number of events an attempt.
        """
        if not 0 <= committed <= max_attempts:
            raise PrivacyError(
                f"{committed} attempts are committed of at most {max_attempts}",
                why="the claim covers the schedule and nothing beyond it",
                fix="resume with the study's own checkpoint",
            )
        if schedule is not None and schedule.count % max_attempts:
            raise PrivacyError(
                f"a schedule of {schedule.count} events does not divide into {max_attempts} attempts",
                why="every attempt releases the same number of noisy sums",
                fix="take the schedule from the manifest",
            )
        self._schedule = schedule
        self._max_attempts = max_attempts
        self._delta = delta
        self._committed = committed

    @property
    def attempts_committed(self) -> int:
        """How many attempts have begun."""
        return self._committed

    @property
    def epsilon_of_schedule(self) -> Epsilon | None:
        """What the whole schedule costs: the claim. None without noise."""
        return self._epsilon_of(self._max_attempts)

    @property
    def epsilon_spent(self) -> float | None:
        """The ε of the attempts begun so far: progress within the schedule, and never the study's claim."""
        spent = self._epsilon_of(self._committed) if self._committed else None
        return spent.epsilon if spent is not None else (None if self._schedule is None else 0.0)

    def check(self) -> None:
        """Confirm that one more attempt fits. Raises ScheduleExhaustedError if the schedule is spent."""
        if self._committed >= self._max_attempts:
            raise ScheduleExhaustedError(
                f"all {self._max_attempts} attempts of the schedule are spent",
                why="the privacy claim covers that many and no more",
                fix="finish the study with what it has; a longer schedule is another study with another epsilon",
            )

    def commit(self) -> None:
        """Count one attempt. Raises ScheduleExhaustedError, and counts nothing, if it does not fit."""
        self.check()
        self._committed += 1

    def _epsilon_of(self, attempts: int) -> Epsilon | None:
        if self._schedule is None:
            return None
        events = self._schedule.count // self._max_attempts * attempts
        return epsilon(replace(self._schedule, count=events), delta=self._delta)
