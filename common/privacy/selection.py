"""What it costs to release the best of several runs: private selection, by stopping after a random number of them."""

import math
from dataclasses import dataclass
from typing import Final, Literal

from ..errors import PrivacyError
from . import accountant
from .events import MAX_RELEASES, SampledGaussianRelease, Schedule

# The law of the number of runs: the logarithmic series, or one in which each run is the last with one probability.
Stopping = Literal["logarithmic", "geometric"]

# η, as Papernot and Steinke have it (definition 1).
_SHAPES: Final[dict[Stopping, float]] = {"logarithmic": 0.0, "geometric": 1.0}
_LEAST_GAMMA: Final = 1e-12
_LEAST_RUNS: Final = 1.01


@dataclass(frozen=True, kw_only=True)
class SelectionCost:
    """The ε of a choice among runs, at one δ.

    Attributes:
        of_best: for whoever sees the best run alone, and neither the others nor how many there were.
        of_all: for whoever sees all of them, where they are as many as is expected, or the next whole number.
        gamma: γ of the law of their number: numpy's ``geometric(γ)``, or ``logseries(1 - γ)``.
    """

    of_best: float
    of_all: float
    gamma: float


def selection_cost(
    event: SampledGaussianRelease, *, steps: int, expected_runs: float, stopping: Stopping, delta: float
) -> SelectionCost:
    """What the best of a random number of runs costs, each of which is ``steps`` times ``event``, and no draw is cut.

    *Formal guarantee* (Papernot and Steinke 2022, arXiv:2110.03620, theorem 2). Let the number K of runs be drawn by
    ``stopping``, with the mean ``expected_runs`` and independently of all data, and each run's setting from one
    distribution, independently of the other runs. Let nothing be released but the run of the highest score, which
    follows from that run's output and public data alone. Where a run has the Rényi divergence ε(λ) at each order λ,
    the choice has, for any μ ≥ 1, at most

        ε(λ) + log(E[K]) / (λ − 1) + (1 + η) · ((1 − 1/μ) · ε(μ) + log(1/γ) / μ).

    *Not covered*: who sees the other runs, as a federation's server and sites see every sum; who learns K, be it by
    how long it took; a score on private records, which is a release of its own; settings chosen in view of other runs.

    Raises PrivacyError for a number of runs out of range, where a run has no known Rényi analysis, and as
    ``accountant.epsilon`` does.
    """
    if steps < 1 or not _LEAST_RUNS <= expected_runs <= MAX_RELEASES / steps:
        raise PrivacyError(
            f"{expected_runs:g} runs of {steps} steps",
            why="among one there is no choice, and of millions of steps no bound is of use",
            fix=f"give a mean of {_LEAST_RUNS} or more runs, each of a step or more, and all of at most {MAX_RELEASES}",
        )
    if accountant.is_mixture(event):
        raise PrivacyError(
            "a choice among runs in which the records of a patient at several sites meet in one sum",
            why="the bound is by Rényi divergences, and of that mixture of Gaussians none are known",
            fix="compute it for one site a patient, or for local trust",
        )
    # Imported here: as in the accountant.
    from dp_accounting import dp_event
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant

    each = accountant.sampled_gaussian(event.sampling_probability, event.noise_multiplier)
    run = dp_event.SelfComposedDpEvent(each, steps * event.sites_per_patient)
    chosen = RdpAccountant(accountant.RDP_ORDERS)
    chosen.compose(dp_event.RepeatAndSelectDpEvent(run, expected_runs, _SHAPES[stopping]))
    # What composes all runs refuses a δ that means nothing, before the choice is asked for its ε.
    of_all = accountant.epsilon(Schedule(event=event, count=steps * math.ceil(expected_runs)), delta=delta).epsilon
    return SelectionCost(of_best=float(chosen.get_epsilon(delta)), of_all=of_all, gamma=_gamma(expected_runs, stopping))


def _gamma(expected_runs: float, stopping: Stopping) -> float:
    """γ, by which the law has that mean."""
    if stopping == "geometric":
        return 1 / expected_runs
    from scipy.optimize import brentq

    def excess(gamma: float) -> float:
        return (1 / gamma - 1) / math.log(1 / gamma) - expected_runs

    return float(brentq(excess, _LEAST_GAMMA, 1 - _LEAST_GAMMA, xtol=1e-300, rtol=1e-12))
