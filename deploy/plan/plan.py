"""A plan: what a study promises, how much noise its steps carry and how long it takes, before a record is read."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Final

from ...common.errors import PrivacyError, StudyError
from ...common.privacy import accountant
from ...common.privacy.events import MAX_SITES_PER_PATIENT
from ...common.privacy.mechanism import honest_shares
from ...common.privacy.noise_layers import noise_over_claim
from ...common.privacy.trust import Trust
from ...common.schema import known, validated
from ...common.study.builtin import is_tuned
from ...common.study.completion import complete_study, cut_probability_of, schedule_of, stages_of
from ...common.study.study import Site, Study
from ...server.report.rounding import up
from .rounding import two_digits_up
from .spare_site import no_spare_site

if TYPE_CHECKING:  # it loads torch, which a plan without a trial does not need
    from .trial import Trial

EPSILONS: Final = (1.0, 2.0, 4.0, 8.0, 10.0)
# At these noise-to-signal ratios the noise reverses 2 and 16 steps of 100: see ``steps_reversed``.
NOISE_SHOWS: Final = 0.5
NOISE_RULES: Final = 1.0
# Up to 10 a guarantee is called reasonable, beyond it weak (Ponomareva et al. 2023).
REASONABLE_EPSILON: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What one kind of trust takes for one ε: the noise multiplier, and the noise-to-signal ratio of a step."""

    noise_multiplier: float
    noise_to_signal: float


@dataclass(frozen=True, kw_only=True)
class EpsilonRow:
    """One ε under both kinds of trust; None where it cannot be reached, or the sites are too few."""

    epsilon: float
    distributed: Noise | None
    local: Noise | None


@dataclass(frozen=True, kw_only=True)
class OverlapRow:
    """ε of the planned noise for a patient at ``sites_per_patient`` sites; None where it is beyond all meaning."""

    sites_per_patient: int
    distributed: float | None
    local: float | None


@dataclass(frozen=True, kw_only=True)
class ThresholdRow:
    """What a threshold costs: deviations of the noise in a sum, over what is claimed, by how many sites are absent.

    With none, with one, and with as many as may be.
    """

    threshold: int
    may_be_absent: int
    none_absent: float
    one_absent: float | None
    most_absent: float


@dataclass(frozen=True, kw_only=True)
class NoiseShares:
    """Who carries the noise: h honest shares of ``sites``, any ``threshold`` of which must answer.

    ``by_threshold`` has this threshold and others.
    """

    sites: int
    threshold: int
    honest_shares: int
    by_threshold: tuple[ThresholdRow, ...]
    units_per_step: float
    noise_to_signal: float


@dataclass(frozen=True, kw_only=True)
class Hours:
    """Time on this machine for all sites in turn, as in a simulation, and for the largest site alone.

    From the planned rounds without a failure to all attempts. Without evaluation, network and secure aggregation.
    ``answer_after_s`` is what a deployment waits for in each attempt, on sites as fast as this machine.
    """

    all_sites: tuple[float, float]
    largest_site: tuple[float, float]
    answer_after_s: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A complete study with what follows from it. Without a ``trial`` every gradient is taken to be clipped: ḡ = C."""

    study: Study
    trial: "Trial | None"
    epsilon: float
    epochs: float
    shares: NoiseShares
    one_more_site: NoiseShares | None
    by_epsilon: tuple[EpsilonRow, ...]
    by_overlap: tuple[OverlapRow, ...]
    hours: Hours | None
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, study: Study, trial: "Trial | None" = None, *, epsilons: Collection[float] = EPSILONS) -> "Plan":
        """The plan of a study, complete or not, with a row of comparison for each of ``epsilons``.

        Raises StudyError or PrivacyError for what no study can promise.
        """
        _require_noise(study)
        complete = complete_study(study)
        privacy, training = complete.privacy, complete.training
        z, attempts = known(privacy.noise_multiplier), known(training.max_attempts)
        schedule = schedule_of(
            privacy,
            local_steps=training.local_steps,
            attempts=attempts,
            delta=known(privacy.delta),
            noise_multiplier=z,
        )
        epsilon = accountant.epsilon(schedule, delta=known(privacy.delta)).epsilon
        shares = _shares(complete, trial)
        epochs = privacy.sampling_probability * training.rounds * training.local_steps
        return cls(
            study=complete,
            trial=trial,
            epsilon=epsilon,
            epochs=epochs,
            shares=shares,
            one_more_site=_one_more_site(study, z, trial),
            by_epsilon=tuple(_epsilon_row(complete, target, trial) for target in sorted(epsilons)),
            by_overlap=_by_overlap(complete),
            hours=None if trial is None else _hours(complete, trial),
            warnings=(
                *_warnings(shares.noise_to_signal, epsilon, epochs),
                *filter(None, [no_spare_site(sites=shares.sites, threshold=shares.threshold)]),
            ),
        )


def noise_to_signal(study: Study, *, noise_multiplier: float, trust: Trust, trial: "Trial | None") -> float:
    """σC/(√B·ḡ): deviation of a step's noise in any one direction, over the length of its gradients' sum.

    σ is that of the **sum** of all sites, of which what so many need not add is taken off (``site_noise``), in the
    attempts with the most noise. √B·ḡ is the sum's length if the B gradients have nothing in common; what they have in
    common makes it longer, up to B·ḡ, and the ratio smaller. Raises PrivacyError where there are not enough honest
    shares.
    """
    privacy = study.privacy
    threshold, sites = study.threshold, len(study.sites)
    honest_shares(trust=trust, threshold=threshold, corrupt_sites=privacy.corrupt_sites)
    over_claim = noise_over_claim(
        sites, trust=trust, sites=sites, threshold=threshold, corrupt_sites=privacy.corrupt_sites
    )
    most = max([1.0, *(factor for _, factor in privacy.noise_stages)])
    stddev_of_sum = noise_multiplier * most * over_claim * privacy.clipping_norm
    mean_norm = privacy.clipping_norm if trial is None else trial.mean_clipped_norm(privacy)
    return stddev_of_sum / (math.sqrt(_units_per_step(study)) * mean_norm)


def steps_reversed(ratio: float) -> float:
    """Φ(−1/ratio): the chance that noise turns a step against the sum of its own gradients.

    Along that sum the released step is its length plus Gaussian noise of ``ratio`` times its length.

    >>> round(steps_reversed(0.5), 3), round(steps_reversed(1.0), 3)
    (0.023, 0.159)
    """
    return NormalDist().cdf(-1 / ratio)


def with_clipping_norm(study: Study, trial: "Trial") -> Study:
    """The study, clipping at the median of the public norms (Andrew et al. 2021), rounded up to two digits.

    One that is trained as the built-in model was tuned keeps its norm: at another, each step would be as much longer.
    """
    if is_tuned(study.model_dump()):
        return study
    _, median, _ = trial.quartiles
    return _with_privacy(study, clipping_norm=two_digits_up(median))


def with_enough_units(study: Study, trial: "Trial | None") -> Study:
    """The study, with units a step doubled until noise-to-signal is at most 0.5 or every unit is in every step.

    Larger batches carry less noise a unit at the same ε (De et al. 2022; Li et al. 2022). Raises as ``Plan.of`` does.
    """
    _require_noise(study)
    complete = complete_study(study)
    z, q = known(complete.privacy.noise_multiplier), complete.privacy.sampling_probability
    ratio = noise_to_signal(complete, noise_multiplier=z, trust=complete.privacy.trust, trial=trial)
    if ratio <= NOISE_SHOWS or q == 1:
        return study
    return with_enough_units(_with_privacy(study, sampling_probability=min(1.0, 2 * q)), trial)


def _epsilon_row(study: Study, epsilon: float, trial: "Trial | None") -> EpsilonRow:
    return EpsilonRow(
        epsilon=epsilon,
        distributed=_noise(study, epsilon, "distributed", trial),
        local=_noise(study, epsilon, "local", trial),
    )


def _noise(study: Study, epsilon: float, trust: Trust, trial: "Trial | None") -> Noise | None:
    privacy, training = study.privacy, study.training
    # At one site a patient meets the same releases under both, and what is computed once is cached.
    counted_as = trust if privacy.sites_per_patient > 1 else privacy.trust
    local_steps = training.local_steps if trust == "local" else 1
    try:
        z = accountant.calibrate_noise_multiplier(
            target_epsilon=epsilon,
            delta=known(privacy.delta),
            sampling_probability=privacy.sampling_probability,
            steps=known(training.max_attempts) * local_steps,
            trust=counted_as,
            sites_per_patient=privacy.sites_per_patient,
            cut_probability=cut_probability_of(
                privacy, delta=known(privacy.delta), releases=known(training.max_attempts) * local_steps
            ),
            stages=() if trust == "local" else stages_of(privacy, local_steps=local_steps),  # of which it has none
        )
        ratio = noise_to_signal(study, noise_multiplier=z, trust=trust, trial=trial)
    except PrivacyError:  # the table shows that there is none
        return None
    return Noise(noise_multiplier=z, noise_to_signal=ratio)


def _by_overlap(study: Study) -> tuple[OverlapRow, ...]:
    most = min(len(study.sites), MAX_SITES_PER_PATIENT)
    return tuple(
        OverlapRow(
            sites_per_patient=m,
            distributed=_epsilon_at(study, "distributed", m),
            local=_epsilon_at(study, "local", m),
        )
        for m in sorted({1, 2, study.privacy.sites_per_patient, most})
    )


def _epsilon_at(study: Study, trust: Trust, sites_per_patient: int) -> float | None:
    local_steps = study.training.local_steps if trust == "local" else 1
    # At one site both kinds of trust are one event, and what is computed once is cached.
    changed = _with_privacy(
        study,
        trust=trust if sites_per_patient > 1 else study.privacy.trust,
        sites_per_patient=sites_per_patient,
        noise_stages=() if trust == "local" else study.privacy.noise_stages,
    )
    schedule = schedule_of(
        changed.privacy,
        local_steps=local_steps,
        attempts=known(study.training.max_attempts),
        delta=known(study.privacy.delta),
        noise_multiplier=known(study.privacy.noise_multiplier),
    )
    try:
        return accountant.epsilon(schedule, delta=known(study.privacy.delta)).epsilon
    except PrivacyError:  # above a million; the table shows that there is none
        return None


def _shares(study: Study, trial: "Trial | None") -> NoiseShares:
    privacy, threshold = study.privacy, study.threshold
    h = honest_shares(trust=privacy.trust, threshold=threshold, corrupt_sites=privacy.corrupt_sites)
    z = known(privacy.noise_multiplier)
    return NoiseShares(
        sites=len(study.sites),
        threshold=threshold,
        honest_shares=h,
        by_threshold=_by_threshold(study),
        units_per_step=_units_per_step(study),
        noise_to_signal=noise_to_signal(study, noise_multiplier=z, trust=privacy.trust, trial=trial),
    )


def _by_threshold(study: Study) -> tuple[ThresholdRow, ...]:
    """For this threshold and for others that the protocol allows: as many sites absent as 0, 1, 2, 4, …."""
    privacy, sites, planned = study.privacy, len(study.sites), study.threshold
    least = (sites + privacy.corrupt_sites) // 2 + 1
    if privacy.trust == "distributed":
        least = max(least, privacy.corrupt_sites + 2)
    others = {sites, *(sites - 2**power for power in range(sites.bit_length()))}

    def row(threshold: int) -> ThresholdRow:
        def over_claim(absent: int) -> float:
            return noise_over_claim(
                sites - absent,
                trust=privacy.trust,
                sites=sites,
                threshold=threshold,
                corrupt_sites=privacy.corrupt_sites,
            )

        may_be_absent = sites - threshold
        return ThresholdRow(
            threshold=threshold,
            may_be_absent=may_be_absent,
            none_absent=over_claim(0),
            one_absent=over_claim(1) if may_be_absent else None,
            most_absent=over_claim(may_be_absent),
        )

    return tuple(row(threshold) for threshold in sorted({planned, *others}) if threshold >= least)


def _one_more_site(study: Study, noise_multiplier: float, trial: "Trial | None") -> NoiseShares | None:
    """With another site of average size, at the same q, δ and z, and so at the same ε. None: it would be no study."""
    average = max(1, round(study.total_nominal_units / len(study.sites)))
    sites = [*study.sites, Site(name="one-more-site", nominal_units=average)]
    try:
        larger = validated(Study, {**study.model_dump(), "sites": [site.model_dump() for site in sites]})
        larger = _with_privacy(larger, target_epsilon=None, noise_multiplier=noise_multiplier)
        return _shares(complete_study(larger), trial)
    except (StudyError, PrivacyError):  # the stated threshold or δ does not suit it
        return None


def _hours(study: Study, trial: "Trial") -> Hours:
    from .instant import instant_of  # it loads torch, as the trial did

    training, attempts = study.training, known(study.training.max_attempts)

    def hours(sites: Sequence[Site]) -> tuple[float, float]:
        q, data = study.privacy.sampling_probability, study.data
        records = (data.records_per_unit * (q * site.nominal_units + data.public_units) for site in sites)
        # A batch that is not full takes as long as a full one: half a batch more, on average.
        batches = sum(of_site / trial.shapes[-1].batch + 0.5 for of_site in records)
        attempt_h = batches * training.local_steps * trial.batch_s / 3600
        return training.rounds * attempt_h, attempts * attempt_h

    largest = max(study.sites, key=lambda site: site.nominal_units)
    return Hours(
        all_sites=hours(study.sites),
        largest_site=hours([largest]),
        answer_after_s=instant_of(study, batch_s=trial.batch_s, shapes=trial.shapes, dimension=trial.dimension),
    )


def _warnings(ratio: float, epsilon: float, epochs: float) -> tuple[str, ...]:
    found = []
    if ratio > NOISE_SHOWS:
        degree = "The noise rules" if ratio > NOISE_RULES else "The noise shows"
        found.append(
            f"{degree}: noise-to-signal is {ratio:.2f}, so that {steps_reversed(ratio):.0%} of the steps may go "
            "against their own gradients. More units a step, fewer rounds, more patients, a larger epsilon, or (under "
            "distributed trust) a higher threshold or another site lower it."
        )
    if epsilon > REASONABLE_EPSILON:
        found.append(
            f"Epsilon is {up(epsilon)}: above {REASONABLE_EPSILON:g} a formal guarantee is called weak "
            "(Ponomareva et al. 2023)."
        )
    if epochs < 1:
        found.append(
            f"A unit takes part in {epochs:.2g} steps on average, so that much of the data is never read. More units a "
            "step or more rounds change that."
        )
    return tuple(found)


def _units_per_step(study: Study) -> float:
    return study.privacy.sampling_probability * study.total_nominal_units


def _with_privacy(study: Study, **changes: Any) -> Study:
    return study.model_copy(update={"privacy": study.privacy.model_copy(update=changes)})


def _require_noise(study: Study) -> None:
    if not study.privacy.noise:
        raise StudyError(
            "privacy.noise is false",
            why="a study without noise promises nothing, so there is nothing to plan",
            fix="leave it out",
        )
