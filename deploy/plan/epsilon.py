"""What a schedule costs, before there is a study."""

from collections.abc import Sequence

from ...common.privacy import accountant
from ...common.privacy.accountant import Epsilon
from ...common.privacy.events import NoiseStage, SampledGaussianRelease, Schedule
from ...common.privacy.trust import Trust


def epsilon(
    *,
    noise_multiplier: float,
    sampling_probability: float,
    steps: int,
    delta: float,
    trust: Trust = "distributed",
    sites_per_patient: int = 1,
    noise_stages: Sequence[NoiseStage] = (),
) -> Epsilon:
    """The epsilon of ``steps`` noisy sums, each over a fresh draw: what ``grandrounds epsilon`` prints.

    Args:
        noise_multiplier: noise over sensitivity, z; with ``noise_stages`` in the first of the steps.
        sampling_probability: chance of a patient to be in a step, q.
        steps: noisy sums that are released; of a study, its attempts times its local steps.
        delta: at most 1/(10 * patients) by default in a study.
        trust: ``distributed`` where sites share the noise, ``local`` where each adds all of it.
        sites_per_patient: most sites at which one patient has records.
        noise_stages: pairs of a step and a factor: from that step on, noise is so many times that of the first.

    Returns:
        Upper bounds: ``epsilon`` by privacy loss distributions, ``epsilon_rdp`` by Renyi divergences (None where no
        analysis is known), and by which ``accountant``.

    Raises:
        PrivacyError: for a value out of range, or an epsilon above a million.

    >>> cost = epsilon(noise_multiplier=1.0, sampling_probability=0.05, steps=200, delta=1e-5)
    >>> round(cost.epsilon, 2), round(cost.epsilon_rdp, 2)
    (4.77, 5.37)
    """
    event = SampledGaussianRelease(
        sampling_probability=sampling_probability,
        noise_multiplier=noise_multiplier,
        trust=trust,
        sites_per_patient=sites_per_patient,
    )
    schedule = Schedule(event=event, count=steps, stages=tuple((start, factor) for start, factor in noise_stages))
    return accountant.epsilon(schedule, delta=delta)
