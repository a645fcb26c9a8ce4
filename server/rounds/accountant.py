"""The central accountant: remembers which sites paid in each attempt, and refuses any attempt beyond the schedule."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace

from ...common.errors import PrivacyError, ScheduleExhaustedError
from ...common.privacy.accountant import Epsilon, epsilon
from ...common.privacy.composition import composed_epsilon
from ...common.privacy.events import SampledGaussianRelease, Schedule
from ...common.schema import known

_NOTHING = Epsilon(epsilon=0.0, epsilon_rdp=0.0, accountant="nothing was released")


class CentralAccountant:
    """Check, then commit: ``check`` before an attempt begins, ``commit`` once it has begun, whatever becomes of it.

    The study's claim is ``epsilon_of_schedule`` from the start to the end: stopping early changes nothing about it,
    and an attempt that failed counts like one that succeeded. What follows from who paid, ``spent``, is progress
    within the claim, and never a claim: whether to go on may have been decided by what was released.
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
        self._charged: dict[int, frozenset[str]] = {}

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

    def record(self, attempt: int, charged: Collection[str]) -> None:
        """Note that the sites ``charged`` paid in ``attempt``, in which until then every site counted as having paid.

        What was once noted stays: noting it again, or more, never takes a charge back. Raises PrivacyError for an
        attempt that has not begun.
        """
        if not 1 <= attempt <= self._committed:
            raise PrivacyError(
                f"charges of attempt {attempt}, of {self._committed} that have begun",
                why="an attempt is counted before any site can pay in it",
                fix="commit the attempt first",
            )
        self._charged[attempt] = self._charged.get(attempt, frozenset()).union(charged)

    def attempts_charged(self, site: str) -> int:
        """In how many attempts ``site`` paid; those of which nothing was recorded count."""
        return self._unknown + sum(site in charged for charged in self._charged.values())

    def spent(self, sites_per_patient: int) -> Epsilon | None:
        """The ε so far of a person at any ``sites_per_patient`` sites: progress within the schedule, and no claim.

        Local trust: the releases of the sites that paid most are composed. Distributed trust: each attempt mixes as
        many contributions as sites paid in it, ``sites_per_patient`` at most; a contribution of that person that is
        missing is one of length 0, which the mixture covers. None without noise, and where no useful bound exists.
        """
        if self._schedule is None:
            return None
        steps = self._schedule.count // self._max_attempts
        if self._schedule.event.trust == "local":  # each release is of one event, whoever paid in it
            paid = Counter(site for charged in self._charged.values() for site in charged)
            most = sum(count for _, count in paid.most_common(sites_per_patient)) + self._unknown * sites_per_patient
            return self._bound(1, steps * most) if most else _NOTHING
        releases: Counter[tuple[int, SampledGaussianRelease]] = Counter()
        for attempt in range(1, self._committed + 1):
            charged = self._charged.get(attempt)
            contributions = sites_per_patient if charged is None else min(len(charged), sites_per_patient)
            if contributions:
                releases[contributions, self._schedule.event_of((attempt - 1) * steps + 1)] += steps
        return self._composed(releases)

    def claims(self, sites: int) -> dict[int, Epsilon | None]:
        """What the whole schedule costs a person at one site, at the stated number of them, and at all ``sites``.

        The keys are those numbers, rising. Empty without noise; None where no useful bound exists.
        """
        if self._schedule is None:
            return {}
        event, count = self._schedule.event, self._schedule.count
        return {m: self._bound(m, count) for m in sorted({1, event.sites_per_patient, sites})}

    @property
    def _unknown(self) -> int:
        """How many attempts have begun of which no charges were recorded: everybody counts as having paid."""
        return self._committed - len(self._charged)

    def _composed(self, releases: Mapping[tuple[int, SampledGaussianRelease], int]) -> Epsilon | None:
        """ε of releases of attempts that have begun, by one person's contributions to each, and by its event."""
        if not releases:
            return _NOTHING
        schedule, count = known(self._schedule), sum(releases.values())
        if schedule.stages:  # which of them are left out, their number does not say
            count = self._committed * (schedule.count // self._max_attempts)
        # A missing contribution only costs less, so that the most of them in every attempt is a bound as well.
        bound = self._bound(max(m for m, _ in releases), count)
        if bound is None or (len(releases) == 1 and not schedule.stages):
            return bound
        parts = (
            replace(schedule, event=replace(event, sites_per_patient=m), count=times, stages=())
            for (m, event), times in releases.items()
        )
        mixed = composed_epsilon(parts, delta=self._delta)
        if mixed >= bound.epsilon:
            return bound
        return Epsilon(epsilon=mixed, epsilon_rdp=None, accountant="PLD, pessimistic, of attempts that differ")

    def _bound(self, sites_per_patient: int, count: int) -> Epsilon | None:
        try:
            return epsilon(self._part(sites_per_patient, count), delta=self._delta)
        except PrivacyError:
            return None

    def _epsilon_of(self, attempts: int) -> Epsilon | None:
        if self._schedule is None:
            return None
        events = self._schedule.count // self._max_attempts * attempts
        return epsilon(replace(self._schedule, count=events), delta=self._delta)

    def _part(self, sites_per_patient: int, count: int) -> Schedule:
        """The first ``count`` releases of the schedule, for a person at so many sites."""
        schedule = known(self._schedule)
        return replace(schedule, event=replace(schedule.event, sites_per_patient=sites_per_patient), count=count)
