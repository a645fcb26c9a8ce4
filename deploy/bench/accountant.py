"""What it costs to certify the epsilon of a whole federation's releases, beside dp_accounting on a few of them."""

import time
from collections.abc import Callable

import numpy as np
from dp_accounting import dp_event
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

from ...common.privacy.composition import composed_epsilon
from ...common.privacy.events import SampledGaussianRelease, Schedule

_DELTA = 1e-5
_SAMPLING_PROBABILITY = 0.02
_FINE_TOLERANCE = 5e-6  # an interval ten times as fine
_LIBRARY_INTERVAL = 1e-4


def bench_accountant(*, sites: int, rounds: int, identical: int, for_library: int) -> dict[str, float]:
    """CPU seconds for ``sites`` * ``rounds`` distinct site-rounds, and for ``identical`` equal ones, at delta 1e-5.

    Noise multipliers are spread from 1 to 4, sampling is 0.02. Returns heterogeneous_s, homogeneous_s, the epsilon
    of the distinct ones and epsilon_fine, at a tenth of the interval; and for ``for_library`` of them, spread alike,
    what dp_accounting at an interval of 1e-4 gives and costs beside ours: few_epsilon, few_s, few_epsilon_library,
    few_library_s.
    """
    distinct = _spread(sites * rounds)
    epsilon, heterogeneous_s = _timed(lambda: composed_epsilon(distinct, delta=_DELTA))
    _, homogeneous_s = _timed(lambda: composed_epsilon([_schedule(12.0, identical)], delta=_DELTA))
    few = _spread(for_library)
    few_epsilon, few_s = _timed(lambda: composed_epsilon(few, delta=_DELTA))
    few_epsilon_library, few_library_s = _timed(lambda: _library_epsilon(few))
    return {
        "heterogeneous_s": heterogeneous_s,
        "homogeneous_s": homogeneous_s,
        "epsilon": epsilon,
        "epsilon_fine": composed_epsilon(distinct, delta=_DELTA, tolerance=_FINE_TOLERANCE),
        "few_epsilon": few_epsilon,
        "few_s": few_s,
        "few_epsilon_library": few_epsilon_library,
        "few_library_s": few_library_s,
    }


def accountant_lines(figures: dict[str, float]) -> str:
    """The figures of ``bench_accountant`` as three lines.

    >>> print(accountant_lines({"heterogeneous_s": 2.5, "homogeneous_s": 0.012, "epsilon": 3.8131,
    ...     "epsilon_fine": 3.8125, "few_epsilon": 0.9432, "few_s": 0.02, "few_epsilon_library": 0.9431,
    ...     "few_library_s": 4.0}))
    distinct releases: 2.5 s, epsilon 3.8131, at a tenth of the interval 3.8125
    identical releases: 0.012 s
    a few distinct ones: 0.02 s, epsilon 0.9432; dp_accounting 4 s, epsilon 0.9431
    """
    return (
        f"distinct releases: {figures['heterogeneous_s']:.3g} s, epsilon {figures['epsilon']:.5g}, "
        f"at a tenth of the interval {figures['epsilon_fine']:.5g}\n"
        f"identical releases: {figures['homogeneous_s']:.2g} s\n"
        f"a few distinct ones: {figures['few_s']:.2g} s, epsilon {figures['few_epsilon']:.4g}; "
        f"dp_accounting {figures['few_library_s']:.3g} s, epsilon {figures['few_epsilon_library']:.4g}"
    )


def _spread(releases: int) -> list[Schedule]:
    return [_schedule(float(z), 1) for z in np.geomspace(1.0, 4.0, releases)]


def _schedule(noise_multiplier: float, count: int) -> Schedule:
    event = SampledGaussianRelease(
        sampling_probability=_SAMPLING_PROBABILITY, noise_multiplier=noise_multiplier, trust="local"
    )
    return Schedule(event=event, count=count)


def _library_epsilon(schedules: list[Schedule]) -> float:
    accountant = PLDAccountant(value_discretization_interval=_LIBRARY_INTERVAL)
    for schedule in schedules:
        gaussian = dp_event.GaussianDpEvent(schedule.event.noise_multiplier)
        accountant.compose(dp_event.PoissonSampledDpEvent(_SAMPLING_PROBABILITY, gaussian), schedule.count)
    return float(accountant.get_epsilon(_DELTA))


def _timed(work: Callable[[], float]) -> tuple[float, float]:
    start = time.process_time()  # of all threads: what one core would take
    result = work()
    return result, time.process_time() - start
