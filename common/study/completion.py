"""What follows from a study: δ, attempts, threshold and noise, where the people who wrote it left them open."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import PrivacyError, StudyError
from ..model.base_folder import BUILTIN_MODEL
from ..privacy.draw_cap import cut_probability, draw_cap
from ..privacy.events import NoiseStage, SampledGaussianRelease, Schedule
from ..privacy.mechanism import honest_shares
from ..schema import WHY_STUDY, known, validated
from .builtin import tuned_rate
from .study import DEFAULT_TARGET_EPSILON, LARGEST_DEFAULT_DELTA, PrivacySection, Study
from .training import ATTEMPTS_PER_ROUND, DEFAULT_LEARNING_RATE, LARGEST_LEARNING_RATE


def complete_study(study: Study) -> Study:
    """Fill in what the study leaves open: δ, attempts, rate, cohorts' bounds, threshold, modulus, and noise.

    Calibration covers all ``max_attempts`` and the stated overlap. Raises StudyError or PrivacyError.
    """
    # Imported here: it loads dp_accounting, which reading a study does not need.
    from ..privacy.accountant import calibrate_noise_multiplier, epsilon

    privacy, training, secagg = study.privacy, study.training, study.secagg
    distributed = privacy.trust == "distributed"
    attempts = training.max_attempts or math.ceil(ATTEMPTS_PER_ROUND * training.rounds)
    delta = privacy.delta or default_delta(study.total_nominal_units)
    secagg = secagg.model_copy(
        update={"threshold": study.threshold, "modulus_bits": secagg.modulus_bits or (32 if distributed else 16)}
    )
    # Refuses a threshold too low for the corrupt sites before any time goes into calibration.
    honest_shares(trust=privacy.trust, threshold=study.threshold, corrupt_sites=privacy.corrupt_sites)
    filled: dict[str, Any] = {"delta": delta}
    if privacy.noise and privacy.noise_multiplier is None:
        filled["target_epsilon"] = DEFAULT_TARGET_EPSILON if privacy.target_epsilon is None else privacy.target_epsilon
        steps = attempts * training.local_steps
        filled["noise_multiplier"] = calibrate_noise_multiplier(
            target_epsilon=filled["target_epsilon"],
            delta=delta,
            sampling_probability=privacy.sampling_probability,
            steps=steps,
            trust=privacy.trust,
            sites_per_patient=privacy.sites_per_patient,
            cut_probability=cut_probability_of(privacy, delta=delta, releases=steps),
            stages=stages_of(privacy, local_steps=training.local_steps),
        )
    elif privacy.noise_multiplier is not None:
        schedule = schedule_of(
            privacy,
            local_steps=training.local_steps,
            attempts=attempts,
            delta=delta,
            noise_multiplier=privacy.noise_multiplier,
        )
        spent = epsilon(schedule, delta=delta).epsilon
        filled["target_epsilon"] = privacy.target_epsilon or math.ceil(spent * 1e4) / 1e4
        if spent > filled["target_epsilon"]:
            raise StudyError(
                f"privacy.noise_multiplier = {privacy.noise_multiplier:g}{_staged(study)} costs ε = {spent:.4f} over "
                f"{attempts} attempts, above privacy.target_epsilon = {filled['target_epsilon']:g}",
                why=WHY_STUDY,
                fix="leave one of the two out, and it follows from the other"
                + ("; or raise the factors of privacy.noise_stages" if _staged(study) else ""),
            )
    return validated(
        Study,
        {
            **study.model_dump(),
            "privacy": {**privacy.model_dump(), **filled},
            "training": {
                **training.model_dump(),
                "max_attempts": attempts,
                "learning_rate": _learning_rate(study, filled.get("noise_multiplier", privacy.noise_multiplier)),
            },
            "secagg": secagg.model_dump(),
            "sites": [
                {**site.model_dump(), "max_units": site.max_units or default_max_units(site.nominal_units)}
                for site in study.sites
            ],
        },
    )


def learning_rate_of(study: Study) -> float:
    """The server's, as stated, or what follows when the study is completed. Raises as ``complete_study`` does."""
    stated = study.training.learning_rate
    return known(complete_study(study).training.learning_rate) if stated is None else stated


def rate_follows_noise(study: Study) -> bool:
    """Whether a rate that is not stated is ``tuned_rate``: of gradient descent on the built-in model."""
    is_builtin, optimizer = study.model.name == BUILTIN_MODEL, study.training.optimizer
    return is_builtin and study.privacy.trust == "distributed" and optimizer in ("sgd", "disk")


def _learning_rate(study: Study, noise_multiplier: float | None) -> float:
    """Of a study whose noise multiplier is known, where it has noise."""
    if study.training.learning_rate is not None:
        return study.training.learning_rate
    if not rate_follows_noise(study):
        return DEFAULT_LEARNING_RATE
    privacy, noise = study.privacy, 0.0
    if noise_multiplier is not None:
        noise = noise_multiplier / (privacy.sampling_probability * study.total_nominal_units)
    return min(tuned_rate(noise=noise, clipping_norm=privacy.clipping_norm), LARGEST_LEARNING_RATE)


def schedule_of(
    privacy: PrivacySection, *, local_steps: int, attempts: int, delta: float, noise_multiplier: float
) -> Schedule:
    """Every release that ``attempts`` of ``local_steps`` each allow, where draws are cut for ``delta``."""
    event = SampledGaussianRelease(
        sampling_probability=privacy.sampling_probability,
        noise_multiplier=noise_multiplier,
        trust=privacy.trust,
        sites_per_patient=privacy.sites_per_patient,
    )
    count = attempts * local_steps
    return Schedule(
        event=event,
        count=count,
        cut_probability=cut_probability_of(privacy, delta=delta, releases=count),
        stages=stages_of(privacy, local_steps=local_steps),
    )


def stages_of(privacy: PrivacySection, *, local_steps: int) -> tuple[NoiseStage, ...]:
    """The stages of noise by the release that each begins with; ``privacy`` has them by attempts.

    >>> stages_of(PrivacySection(noise_stages=((3, 0.5),)), local_steps=4)
    ((9, 0.5),)
    """
    return tuple(((attempt - 1) * local_steps + 1, factor) for attempt, factor in privacy.noise_stages)


@contextmanager
def naming_stage(attempt: int) -> Iterator[None]:
    """What is refused of the noise from that attempt on is refused with the stage that begins there."""
    try:
        yield
    except PrivacyError as error:
        if attempt == 1:
            raise
        what = f"{error.what}, from attempt {attempt} on (privacy.noise_stages)"
        raise PrivacyError(what, why=error.why, fix=f"{error.fix}; or change the stage's factor") from error


def _staged(study: Study) -> str:
    """That some attempts have other noise than the study's noise multiplier says, where they have."""
    stages = [f"{factor:g} times it from attempt {attempt} on" for attempt, factor in study.privacy.noise_stages]
    return f" with {', '.join(stages)} (privacy.noise_stages)" if stages else ""


def cut_probability_of(privacy: PrivacySection, *, delta: float, releases: int) -> float:
    """With which a draw may be cut at one site in one of ``releases``; none is where every unit is in every step."""
    if privacy.sampling_probability == 1:
        return 0.0
    return cut_probability(delta=delta, releases=releases, sites_per_patient=privacy.sites_per_patient)


def draw_cap_of(study: Study, *, max_units: int, delta: float) -> int:
    """B: the most units that one step reads at a site of at most ``max_units``, in a study whose attempts are known."""
    releases = known(study.training.max_attempts) * study.training.local_steps
    return draw_cap(
        max_units=max_units,
        sampling_probability=study.privacy.sampling_probability,
        probability=cut_probability_of(study.privacy, delta=delta, releases=releases),
    )


def default_max_units(nominal_units: int) -> int:
    """A quarter above the nominal units, rounded up.

    >>> default_max_units(24), default_max_units(1)
    (30, 2)
    """
    return -(-5 * nominal_units // 4)


def default_delta(total_nominal_units: int) -> float:
    """A tenth of one over all nominal units, rounded down to one digit, and at most 5e-4.

    >>> default_delta(380), default_delta(120)
    (0.0002, 0.0005)
    """
    bound = min(LARGEST_DEFAULT_DELTA, 1 / (10 * total_nominal_units))
    power = math.floor(math.log10(bound))
    return float(f"{math.floor(bound / 10.0**power + 1e-9)}e{power}")
