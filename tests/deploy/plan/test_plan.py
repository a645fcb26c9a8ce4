"""A plan's figures: against closed forms, against the mechanism itself, and against what a slip would give."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from grandrounds.client.training.grad_samples import Shape
from grandrounds.common.errors import DataError, GrandRoundsError
from grandrounds.common.privacy.accountant import epsilon
from grandrounds.common.privacy.events import SampledGaussianRelease, Schedule
from grandrounds.common.privacy.mechanism import Lattice, site_noise_stddev
from grandrounds.common.schema import validated
from grandrounds.common.study.completion import complete_study
from grandrounds.common.study.study import PrivacySection, Study
from grandrounds.deploy.plan.plan import Plan, _hours, noise_to_signal, with_clipping_norm, with_enough_units
from grandrounds.deploy.plan.trial import Trial

TRIAL = Trial(source="a test", norms=(0.2, 0.4, 0.6, 0.8, 1.0), dimension=1000, shapes=(Shape(64, 4),), batch_s=2.0)


BUILT_IN = {"noise_multiplier": None, "sampling_probability": 0.2}  # with 24 units a site


def study(*, sites: int = 5, units: int = 240, **sections: dict[str, Any]) -> Study:
    """Without sampling and with its noise given, which is accounted for in no time."""
    fields: dict[str, Any] = {
        "privacy": {"noise_multiplier": 10.0, "sampling_probability": 1.0, "delta": 5e-4, "clipping_norm": 0.5},
        "training": {"rounds": 20},
        "sites": [{"name": f"hospital-{number}", "nominal_units": units} for number in range(1, sites + 1)],
    }
    for name, section in sections.items():
        fields[name] = {**fields.get(name, {}), **section}
    return validated(Study, fields)


@pytest.fixture(scope="module")
def built_in() -> Plan:
    """The built-in study at its default ε of 4."""
    return Plan.of(study(units=24, privacy=BUILT_IN), TRIAL, epsilons=[4.0])


def schedule(event: SampledGaussianRelease, count: int) -> Schedule:
    """Of a study with δ = 5e-4, a thousandth of which is spent on cut draws."""
    return Schedule(event=event, count=count, cut_probability=5e-4 / 1000 / count)


def test_the_noise_covers_every_attempt_and_no_more(built_in: Plan) -> None:
    z, training = built_in.study.privacy.noise_multiplier, built_in.study.training
    assert z is not None
    assert (training.rounds, training.max_attempts) == (20, 24)
    event = SampledGaussianRelease(sampling_probability=0.2, noise_multiplier=z, trust="distributed")
    spent = epsilon(schedule(event, 24), delta=5e-4).epsilon
    assert built_in.epsilon == pytest.approx(spent, rel=1e-9)
    assert built_in.epsilon <= 4
    assert epsilon(schedule(event, 25), delta=5e-4).epsilon > 4


def test_epsilon_is_that_of_unsampled_gaussians_in_closed_form() -> None:
    plan = Plan.of(
        study(privacy={"noise_multiplier": 5.0}, training={"rounds": 5, "max_attempts": 10}),
        epsilons=(),
    )
    # T releases of multiplier z are one of z/√T (Balle and Wang 2018, theorem 8).
    mu = math.sqrt(10) / 5
    delta = norm.cdf(mu / 2 - plan.epsilon / mu) - math.exp(plan.epsilon) * norm.cdf(-mu / 2 - plan.epsilon / mu)
    assert delta == pytest.approx(5e-4, rel=1e-2)
    assert delta <= 5e-4
    assert plan.epochs == 5


def test_noise_to_signal_is_what_the_sites_shares_add_up_to() -> None:
    """σ from the shares that sites draw; the length of a sum from gradients that have nothing in common."""
    complete = complete_study(study(units=24, privacy={"sampling_probability": 0.2}))
    lattice = Lattice(dimension=1000, clipping_norm=0.5)
    for trust, h in (("distributed", 4), ("local", 1)):  # all are there, and one may be corrupt
        share = site_noise_stddev(noise_multiplier=1.2, sensitivity=lattice.sensitivity, honest_shares=h)
        stddev_of_sum = share * math.sqrt(5) / lattice.scale
        gradients = np.eye(24) * 0.4  # 24 units, each in a direction of its own
        signal = float(np.linalg.norm(gradients.sum(axis=0)))
        trial = Trial(source="a test", norms=(0.4, 0.4), dimension=1000, shapes=(Shape(64, 4),), batch_s=1)
        ratio = noise_to_signal(complete, noise_multiplier=1.2, trust=trust, trial=trial)  # type: ignore[arg-type]
        assert ratio == pytest.approx(stddev_of_sum / signal, rel=0.02)
        assert ratio != pytest.approx(share / lattice.scale / signal, rel=0.2), "the noise of one site alone"
        assert ratio != pytest.approx(1.2 * 0.5 / signal, rel=0.05), "c taken for 0"


def test_the_mean_is_of_clipped_norms_and_without_a_trial_the_ratio_is_the_least() -> None:
    privacy = PrivacySection(clipping_norm=0.5)
    assert TRIAL.mean_clipped_norm(privacy) == pytest.approx((0.2 + 0.4 + 3 * 0.5) / 5)
    automatic = privacy.model_copy(update={"clipping": "auto"})
    expected = sum(0.5 * norm / (norm + 0.01) for norm in TRIAL.norms) / 5
    assert TRIAL.mean_clipped_norm(automatic) == pytest.approx(expected)
    complete = complete_study(study(units=24, privacy={"sampling_probability": 0.2}))
    measured = noise_to_signal(complete, noise_multiplier=1.2, trust="distributed", trial=TRIAL)
    least = noise_to_signal(complete, noise_multiplier=1.2, trust="distributed", trial=None)
    assert least == pytest.approx(1.2 * math.sqrt(5 / 4) / math.sqrt(24))
    assert measured == pytest.approx(least * 0.5 / 0.42)
    for stages, most in (([[2, 4.0], [3, 0.5]], 4.0), ([[2, 0.25]], 1.0)):  # judged by the attempts with the most noise
        staged = complete_study(study(units=24, privacy={"sampling_probability": 0.2, "noise_stages": stages}))
        ratio = noise_to_signal(staged, noise_multiplier=1.2, trust="distributed", trial=None)
        assert ratio == pytest.approx(most * least)


def test_shares_count_the_honest_ones_of_the_least_that_must_answer(built_in: Plan) -> None:
    shares = built_in.shares
    assert (shares.sites, shares.threshold, shares.honest_shares) == (5, 4, 3)
    planned, most = shares.by_threshold
    assert (planned.threshold, planned.may_be_absent, most.threshold, most.may_be_absent) == (4, 1, 5, 0)
    assert (planned.none_absent, planned.one_absent) == pytest.approx((math.sqrt(5 / 4), math.sqrt(4 / 3)))
    assert (most.none_absent, most.one_absent, most.most_absent) == (planned.none_absent, None, planned.none_absent)
    assert shares.units_per_step == pytest.approx(24)
    local = Plan.of(study(privacy={"trust": "local"}), epsilons=()).shares
    row = next(row for row in local.by_threshold if row.threshold == 4)
    assert local.honest_shares == 1
    assert (row.none_absent, row.most_absent) == pytest.approx((math.sqrt(5), 2.0))


def test_another_site_helps_by_the_honest_share_that_it_adds() -> None:
    grown = Plan.of(study(sites=4), epsilons=())
    assert grown.one_more_site is not None
    assert (grown.shares.honest_shares, grown.one_more_site.honest_shares) == (2, 3)
    assert grown.one_more_site.units_per_step == grown.shares.units_per_step + 240
    assert grown.one_more_site.noise_to_signal == pytest.approx(grown.shares.noise_to_signal * math.sqrt(3 / 4))


def test_another_site_that_the_stated_threshold_does_not_suit_is_none() -> None:
    assert Plan.of(study(sites=4, secagg={"threshold": 3}), epsilons=()).one_more_site is None


def test_distributed_stands_beside_local_trust(built_in: Plan) -> None:
    (row,) = built_in.by_epsilon
    assert row.epsilon == 4
    assert row.distributed is not None
    assert row.local is not None
    assert row.distributed.noise_to_signal == built_in.shares.noise_to_signal
    # One release each: the same multiplier, which the four honest of five sites share or each site adds whole.
    assert row.local.noise_multiplier == row.distributed.noise_multiplier
    assert row.local.noise_to_signal == pytest.approx(row.distributed.noise_to_signal * math.sqrt(4))


def test_a_stated_overlap_takes_more_noise_where_contributions_meet() -> None:
    (row,) = Plan.of(study(privacy={"sites_per_patient": 2}), epsilons=[2.0]).by_epsilon
    assert row.distributed is not None
    assert row.local is not None
    # Unsampled, two contributions in one sum are twice the sensitivity; in two sums they are two releases.
    assert row.distributed.noise_multiplier == pytest.approx(math.sqrt(2) * row.local.noise_multiplier, rel=2e-3)


def test_overlap_is_mixed_under_distributed_and_composed_under_local_trust(built_in: Plan) -> None:
    alone, two, all_sites = built_in.by_overlap
    assert [row.sites_per_patient for row in built_in.by_overlap] == [1, 2, 5]
    assert alone.distributed == alone.local == built_in.epsilon
    z = built_in.study.privacy.noise_multiplier
    assert z is not None
    event = SampledGaussianRelease(sampling_probability=0.2, noise_multiplier=z, trust="local")
    assert two.local == pytest.approx(epsilon(schedule(event, 2 * 24), delta=5e-4).epsilon, rel=1e-9)
    assert all(row.distributed and row.local and row.distributed > row.local for row in (two, all_sites))


def test_hours_are_batches_of_all_sites_with_half_a_batch_more_each(built_in: Plan) -> None:
    assert built_in.hours is not None
    batches = 0.2 * 24 / 4 + 0.5
    planned, most = built_in.hours.all_sites
    assert planned == pytest.approx(20 * 5 * batches * 2.0 / 3600)
    assert most == pytest.approx(24 * 5 * batches * 2.0 / 3600)
    assert built_in.hours.largest_site == pytest.approx((planned / 5, most / 5))
    data = built_in.study.data.model_copy(update={"public": "public.jsonl", "public_units": 6})
    mixed = _hours(built_in.study.model_copy(update={"data": data}), TRIAL)
    assert mixed.all_sites[0] == pytest.approx(20 * 5 * (batches + 6 / 4) * 2.0 / 3600)


@pytest.mark.parametrize(
    ("norms", "expected"), [((1.041, 1.043, 9.0), 1.1), ((0.2, 0.4, 0.9), 0.4), ((1e-3, 0.0123, 3), 0.013)]
)
def test_the_clipping_norm_is_the_median_rounded_up(norms: tuple[float, ...], expected: float) -> None:
    trial = Trial(source="a test", norms=norms, dimension=10, shapes=(Shape(64, 1),), batch_s=1)
    assert with_clipping_norm(study(), trial).privacy.clipping_norm == expected


def test_a_study_whose_rate_was_tuned_for_its_norm_keeps_it() -> None:
    trial = Trial(source="a test", norms=(0.9, 1.0, 1.1), dimension=10, shapes=(Shape(64, 1),), batch_s=1)
    tuned = validated(Study, {"sites": study().sites})
    assert with_clipping_norm(tuned, trial) == tuned and tuned.privacy.clipping_norm == 0.3
    rated = validated(Study, {"sites": study().sites, "training": {"learning_rate": 1.2}})
    assert with_clipping_norm(rated, trial) == rated
    other = validated(Study, {"sites": study().sites, "model": {"rank": 8}})
    assert with_clipping_norm(other, trial).privacy.clipping_norm == 1.0


def test_a_step_takes_more_units_only_where_the_noise_shows() -> None:
    assert with_enough_units(study(), None) == study()
    demanding = study(units=24, privacy={**BUILT_IN, "target_epsilon": 1.0})
    larger = with_enough_units(demanding, None)
    assert larger.privacy.sampling_probability > 0.2
    complete = complete_study(larger)
    assert complete.privacy.noise_multiplier is not None
    ratio = noise_to_signal(
        complete, noise_multiplier=complete.privacy.noise_multiplier, trust="distributed", trial=None
    )
    assert ratio <= 0.5 or larger.privacy.sampling_probability == 1


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({}, []),
        ({"privacy": {"noise_multiplier": 20.0}}, ["The noise shows"]),
        ({"privacy": {"noise_multiplier": 100.0}}, ["The noise rules"]),
        ({"privacy": {"noise_multiplier": 2.0}}, ["is called weak"]),
        ({"privacy": {"sampling_probability": 0.04, "noise_multiplier": 2.0}}, ["in 0.8 steps"]),
    ],
)
def test_what_makes_a_plan_questionable_is_told(sections: dict[str, Any], told: list[str]) -> None:
    warnings = Plan.of(study(**sections), epsilons=()).warnings
    assert len(warnings) == len(told)
    assert all(part in warning for part, warning in zip(told, warnings, strict=True))


def test_a_plan_without_a_spare_site_says_what_losing_one_means_and_how_many_sites_there_should_be() -> None:
    warnings = Plan.of(study(sites=3), epsilons=()).warnings
    assert any("All 3 sites must answer" in told and "With 4 sites, of which 3" in told for told in warnings)
    assert not any("must answer" in told for told in Plan.of(study(sites=4), epsilons=()).warnings)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"privacy": {"noise": False, "noise_multiplier": None}}, "noise is false"),
        ({"privacy": {"delta": 0.02}}, "privacy.delta"),
        ({"secagg": {"threshold": 3}}, "secagg.threshold"),
        ({"sites": 3, "privacy": {"corrupt_sites": 2}}, "honest noise shares"),
        (
            {
                "privacy": {"noise_multiplier": None, "target_epsilon": 0.01},
                "training": {"rounds": 100_000},
            },
            "epsilon 0.01",
        ),
    ],
)
def test_nonsense_is_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(GrandRoundsError, match=named):
        Plan.of(study(**fields), epsilons=())


def test_an_epsilon_out_of_reach_is_none_in_the_table() -> None:
    plan = Plan.of(
        study(privacy={"noise_multiplier": 1000.0}, training={"rounds": 100_000}),
        epsilons=(0.01,),
    )
    assert plan.by_epsilon[0].distributed is None


@pytest.mark.parametrize("norms", [(1.0,), (0.0, 0.0, 1.0), (1.0, math.inf, math.inf), ()])
def test_a_trial_without_norms_of_use_is_refused(norms: tuple[float, ...]) -> None:
    with pytest.raises(DataError):
        Trial(source="a test", norms=norms, dimension=10, shapes=(Shape(64, 1),), batch_s=1)
