"""What was released, as values: the accountant turns them into epsilon."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from ..errors import PrivacyError
from .trust import Trust

MIN_NOISE_MULTIPLIER: Final = 0.1
MAX_NOISE_MULTIPLIER: Final = 10_000.0
WHY_IN_RANGE: Final = "below 0.1 the noise hides nobody, above 10000 nothing is left of the data"
MAX_SITES_PER_PATIENT: Final = 1000
MAX_RELEASES: Final = 1_000_000
MAX_STAGES: Final = 7  # beside the first; each is one more event to compose
LEAST_FACTOR: Final = 0.25
LARGEST_FACTOR: Final = 4.0

# From the release, or the attempt, of which number on noise is how many times that of the first.
NoiseStage = tuple[int, float]


@dataclass(frozen=True, kw_only=True)
class SampledGaussianRelease:
    """One noisy sum over privacy units that were sampled independently.

    Attributes:
        sampling_probability: q, with which each unit enters the sum.
        noise_multiplier: z, the standard deviation of the noise nobody in the adversary knows, over the sensitivity.
        trust: whether sites share the noise of one release ("distributed") or each makes its own ("local").
        sites_per_patient: m, the largest number of sites at which one person's records may be.
    """

    sampling_probability: float
    noise_multiplier: float
    trust: Trust
    sites_per_patient: int = 1

    def __post_init__(self) -> None:
        """Raises PrivacyError for values outside the range in which an epsilon means something."""
        if not 0 < self.sampling_probability <= 1:
            raise PrivacyError(
                f"the sampling probability is {self.sampling_probability}",
                why="it is the chance with which a patient takes part in a step",
                fix="choose a number above 0 and at most 1",
            )
        if not MIN_NOISE_MULTIPLIER <= self.noise_multiplier <= MAX_NOISE_MULTIPLIER:
            raise PrivacyError(
                f"the noise multiplier is {self.noise_multiplier}",
                why=WHY_IN_RANGE,
                fix="choose a number from 0.1 to 10000; useful values are often 0.5 to 10",
            )
        if self.trust not in ("distributed", "local"):
            raise PrivacyError(
                f"trust is {self.trust!r}",
                why="what the server may see decides how the noise counts",
                fix="choose distributed or local",
            )
        if not 1 <= self.sites_per_patient <= MAX_SITES_PER_PATIENT:
            raise PrivacyError(
                f"sites_per_patient is {self.sites_per_patient}",
                why="a patient has records at one site at least, and is protected at no more than the stated number",
                fix=f"choose a number from 1 to {MAX_SITES_PER_PATIENT}",
            )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """So many releases, fixed beforehand: a whole study has max_attempts * local_steps of them.

    Each is the ``event``, but for its noise: from each of the ``stages`` on, which count releases from 1, that is
    ``factor`` times the event's. ``cut_probability`` is that with which the draw of one release may be cut at one site
    (``draw_cap``).

    *Formal guarantee*: which noise a release has follows from its number alone, and so from nothing that was released
    before. Whatever is done with releases, or left undone, no more is ever seen than the events of the numbers 1 to
    ``count``, each once: a composition fixed in advance, of mechanisms that differ and whose inputs may be chosen along
    the way (Dwork and Roth 2014, section 3.5; of dominating pairs, Zhu, Dong and Wang 2022). By rounds it would not be
    so: whoever has each attempt of one round fail has all releases made under that round's noise.
    """

    event: SampledGaussianRelease
    count: int
    cut_probability: float = 0.0
    stages: tuple[NoiseStage, ...] = ()

    def __post_init__(self) -> None:
        """Raises PrivacyError unless ``count`` is from 1 to a million, the probability one, and the stages rise."""
        if not 0 <= self.cut_probability <= 1:
            raise PrivacyError(
                f"a draw is cut with a probability of {self.cut_probability}",
                why="it is part of delta",
                fix="choose a number from 0 to 1",
            )
        if not 1 <= self.count <= MAX_RELEASES:
            raise PrivacyError(
                f"the schedule has {self.count} steps",
                why="the claim covers a fixed number of steps",
                fix=f"choose a number from 1 to {MAX_RELEASES}",
            )
        is_rising = all(before < start for (before, _), (start, _) in pairwise([(1, 1.0), *self.stages]))
        in_range = all(LEAST_FACTOR <= factor <= LARGEST_FACTOR for _, factor in self.stages)
        if not (is_rising and in_range and len(self.stages) <= MAX_STAGES):
            raise PrivacyError(
                f"the stages of noise are {self.stages}",
                why="each release has one noise, which is fixed beforehand",
                fix=f"give at most {MAX_STAGES} pairs, of rising numbers from 2 and factors from {LEAST_FACTOR:g} to "
                f"{LARGEST_FACTOR:g}",
            )
        for start, factor in self.stages:
            of_stage = self.event.noise_multiplier * factor
            if start <= self.count and not MIN_NOISE_MULTIPLIER <= of_stage <= MAX_NOISE_MULTIPLIER:
                raise PrivacyError(
                    f"the noise multiplier is {of_stage:g} from release {start} on: {factor:g} times the first "
                    f"one's {self.event.noise_multiplier:g} (noise_stages)",
                    why=WHY_IN_RANGE,
                    fix="choose another factor in noise_stages, or another noise multiplier: each stage's has to be "
                    f"from {MIN_NOISE_MULTIPLIER:g} to {MAX_NOISE_MULTIPLIER:g}",
                )

    @property
    def events(self) -> tuple[tuple[SampledGaussianRelease, int], ...]:
        """Each stage's event with how many releases it is of, in their order; stages after the last release have none.

        >>> event = SampledGaussianRelease(sampling_probability=0.1, noise_multiplier=2.0, trust="distributed")
        >>> schedule = Schedule(event=event, count=10, stages=((4, 0.5), (99, 0.25)))
        >>> [(each.noise_multiplier, count) for each, count in schedule.events]
        [(2.0, 3), (1.0, 7)]
        """
        begun = [(1, 1.0), *(stage for stage in self.stages if stage[0] <= self.count)]
        ends = [*(start for start, _ in begun[1:]), self.count + 1]
        return tuple((self._with(factor), end - start) for (start, factor), end in zip(begun, ends, strict=True))

    def event_of(self, release: int) -> SampledGaussianRelease:
        """The event of the release of that number, 1 the first."""
        return self._with(([1.0] + [factor for start, factor in self.stages if start <= release])[-1])

    def _with(self, factor: float) -> SampledGaussianRelease:
        return replace(self.event, noise_multiplier=self.event.noise_multiplier * factor)

    @property
    def cut_delta(self) -> float:
        """The part of delta that is spent on cut draws: of every release, at every site of a person."""
        return self.count * self.event.sites_per_patient * self.cut_probability

    def without_amplification(self) -> "Schedule":
        """The same schedule for a unit whose participation in every step is known: sampling hides nothing."""
        return replace(self, event=replace(self.event, sampling_probability=1.0))
