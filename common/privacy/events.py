"""What was released, as values: the accountant turns them into epsilon."""

from dataclasses import dataclass, replace
from typing import Final

from ..errors import PrivacyError
from .trust import Trust

MIN_NOISE_MULTIPLIER: Final = 0.1
MAX_NOISE_MULTIPLIER: Final = 10_000.0
MAX_SITES_PER_PATIENT: Final = 1000
MAX_RELEASES: Final = 1_000_000


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
                why="below 0.1 the noise hides nobody, above 10000 nothing is left of the data",
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
    """The same event, ``count`` times, fixed beforehand: a whole study has max_attempts * local_steps of them.

    ``cut_probability`` is that with which the draw of one release may be cut at one site (``draw_cap``).
    """

    event: SampledGaussianRelease
    count: int
    cut_probability: float = 0.0

    def __post_init__(self) -> None:
        """Raises PrivacyError unless ``count`` is from 1 to a million, and the probability one."""
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

    @property
    def cut_delta(self) -> float:
        """The part of delta that is spent on cut draws: of every release, at every site of a person."""
        return self.count * self.event.sites_per_patient * self.cut_probability

    def without_amplification(self) -> "Schedule":
        """The same schedule for a unit whose participation in every step is known: sampling hides nothing."""
        return replace(self, event=replace(self.event, sampling_probability=1.0))
