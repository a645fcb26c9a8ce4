import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism, from_mixture_gaussian_mechanism
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from support.study.closed_form import gaussian_epsilon

from grandrounds.common.errors import PrivacyError, ScheduleExhaustedError
from grandrounds.common.privacy.accountant import epsilon
from grandrounds.common.privacy.events import SampledGaussianRelease, Schedule
from grandrounds.common.privacy.trust import Trust
from grandrounds.common.schema import known
from grandrounds.server.rounds.accountant import CentralAccountant

EVENT = SampledGaussianRelease(sampling_probability=0.4, noise_multiplier=2.0, trust="local")
STEPS = 3
DELTA = 1e-4


def _accountant(max_attempts: int, committed: int = 0) -> CentralAccountant:
    schedule = Schedule(event=EVENT, count=STEPS * max_attempts)
    return CentralAccountant(schedule=schedule, max_attempts=max_attempts, delta=DELTA, committed=committed)


def test_an_attempt_beyond_the_schedule_is_refused_and_not_counted() -> None:
    accountant = _accountant(2)
    for _ in range(2):
        accountant.check()
        accountant.commit()
    for refuse in (accountant.check, accountant.commit):
        with pytest.raises(ScheduleExhaustedError, match="all 2 attempts"):
            refuse()
    assert accountant.attempts_committed == 2


def test_checking_commits_nothing() -> None:
    accountant = _accountant(1)
    accountant.check()
    accountant.check()
    assert accountant.attempts_committed == 0


def test_the_claim_is_that_of_the_whole_schedule_from_the_start() -> None:
    accountant = _accountant(4)
    whole = epsilon(Schedule(event=EVENT, count=4 * STEPS), delta=DELTA)
    assert accountant.epsilon_of_schedule == whole
    accountant.commit()
    assert accountant.epsilon_of_schedule == whole


def test_progress_composes_the_steps_of_the_attempts_begun() -> None:
    accountant = _accountant(4)
    assert accountant.epsilon_spent == 0.0
    figures = []
    for attempts in range(1, 5):
        accountant.commit()
        assert accountant.epsilon_spent == epsilon(Schedule(event=EVENT, count=attempts * STEPS), delta=DELTA).epsilon
        figures.append(accountant.epsilon_spent)
    assert figures == sorted(set(figures))
    claim = accountant.epsilon_of_schedule
    assert claim is not None and figures[-1] == claim.epsilon
    assert figures[-1] < 4 * figures[0]  # composed, not added up


def test_of_noise_that_has_stages_progress_is_of_the_attempts_that_began_and_were_paid() -> None:
    event = replace(EVENT, trust="distributed")
    half = replace(event, noise_multiplier=EVENT.noise_multiplier / 2)
    schedule = Schedule(event=event, count=6, stages=((3, 0.5), (5, 1.0)))
    accountant = CentralAccountant(schedule=schedule, max_attempts=6, delta=DELTA)
    spent = {}
    for attempt in range(1, 5):
        accountant.commit()
        accountant.record(attempt, {"site-1"} if attempt > 2 else ())
        if attempt in (2, 4):
            spent[attempt - 1] = accountant.epsilon_spent
    assert spent[1] == epsilon(Schedule(event=event, count=2), delta=DELTA).epsilon
    assert spent[3] == epsilon(replace(schedule, count=4), delta=DELTA).epsilon > 1.5 * known(spent[1])
    of_a_person = known(accountant.spent(1))
    assert of_a_person.epsilon == pytest.approx(
        epsilon(Schedule(event=half, count=2), delta=DELTA).epsilon, rel=1e-3
    ), "of the third and the fourth, and not of two under the first one's noise"
    accountant.record(1, {"site-1", "site-2"})
    accountant.record(2, {"site-1", "site-2"})
    assert known(accountant.spent(1)).epsilon == spent[3] > of_a_person.epsilon


def test_a_resumed_accountant_goes_on_where_it_stopped() -> None:
    accountant = _accountant(3, committed=2)
    accountant.commit()
    with pytest.raises(ScheduleExhaustedError):
        accountant.check()


@pytest.mark.parametrize("committed", [-1, 4])
def test_a_count_outside_the_schedule_is_refused(committed: int) -> None:
    with pytest.raises(PrivacyError, match="committed"):
        _accountant(3, committed=committed)


def test_a_schedule_that_is_no_whole_number_of_events_an_attempt_is_refused() -> None:
    schedule = Schedule(event=EVENT, count=7)
    with pytest.raises(PrivacyError, match="7 events"):
        CentralAccountant(schedule=schedule, max_attempts=3, delta=DELTA)
    CentralAccountant(schedule=replace(schedule, count=6), max_attempts=3, delta=DELTA)


def test_without_noise_attempts_are_counted_and_nothing_is_claimed() -> None:
    accountant = CentralAccountant(schedule=None, max_attempts=1, delta=DELTA)
    accountant.commit()
    assert accountant.epsilon_of_schedule is None
    assert accountant.epsilon_spent is None
    with pytest.raises(ScheduleExhaustedError):
        accountant.check()


SITES = ("a", "b", "c", "d")
Charges = Sequence[frozenset[str] | None]  # by attempt; None where nothing was recorded


def _charged(trust: Trust, charges: Charges, *, q: float = 1.0, z: float = 10.0, m: int = 2) -> CentralAccountant:
    """An accountant that has begun one attempt for each of ``charges``, and may begin one more."""
    event = SampledGaussianRelease(sampling_probability=q, noise_multiplier=z, trust=trust, sites_per_patient=m)
    attempts = len(charges) + 1
    schedule = Schedule(event=event, count=STEPS * attempts)
    accountant = CentralAccountant(schedule=schedule, max_attempts=attempts, delta=DELTA)
    for attempt, charged in enumerate(charges, start=1):
        accountant.commit()
        if charged is not None:
            accountant.record(attempt, charged)
    return accountant


def _truth(trust: Trust, charges: Charges, sites: Sequence[str], *, z: float = 10.0) -> float:
    """Exactly what a person at all of ``sites`` has paid, without sampling."""
    contributions = [len(set(sites) if charged is None else charged.intersection(sites)) for charged in charges]
    squares = sum(count if trust == "local" else count**2 for count in contributions)
    return gaussian_epsilon(math.sqrt(STEPS * squares) / z, DELTA) if squares else 0.0


CHARGES = st.lists(st.none() | st.frozensets(st.sampled_from(SITES)), max_size=5)


@given(CHARGES, st.sampled_from(("local", "distributed")), st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_nobody_has_paid_more_than_is_spent_and_under_local_trust_somebody_has_paid_that(
    charges: Charges, trust: Trust, m: int
) -> None:
    spent = _charged(trust, charges).spent(m)
    assert spent is not None
    truths = [_truth(trust, charges, sites) for sites in itertools.combinations(SITES, m)]
    assert max(truths) <= spent.epsilon
    if trust == "local":
        assert spent.epsilon <= max(truths) * 1.001 + 1e-6


@given(CHARGES, st.integers(1, 4))
@settings(deadline=None, max_examples=20)
def test_under_distributed_trust_what_is_spent_is_that_of_as_many_contributions_as_sites_paid(
    charges: Charges, m: int
) -> None:
    contributions = [m if charged is None else min(m, len(charged)) for charged in charges]
    truth = (
        gaussian_epsilon(math.sqrt(STEPS * sum(k * k for k in contributions)) / 10, DELTA) if any(contributions) else 0
    )
    spent = _charged("distributed", charges).spent(m)
    assert spent is not None
    assert truth <= spent.epsilon <= truth * 1.001 + 1e-6


@pytest.mark.parametrize("trust", ["local", "distributed"])
def test_what_is_spent_agrees_with_dp_accounting_where_attempts_differ(trust: Trust) -> None:
    q, z, m, interval = 0.4, 2.0, 3, 4e-3
    charges = [frozenset("abc"), frozenset("ab"), frozenset("a"), frozenset(), frozenset("bcd"), None]
    spent = _charged(trust, charges, q=q, z=z).spent(m)
    if trust == "local":  # the sites a, b, c paid 3 + 3 + 2 times, and each of them in the attempt nobody recorded
        one = from_gaussian_mechanism(z, sampling_prob=q, value_discretization_interval=interval)
        composed = one.self_compose(STEPS * (3 + 3 + 2 + 3))
    else:
        plds = []
        for count, attempts in ((1, 1), (2, 1), (3, 3)):
            weights = [float(p) for p in binom.pmf(range(count + 1), count, q)]
            one = from_mixture_gaussian_mechanism(
                z, list(range(count + 1)), weights, value_discretization_interval=interval
            )
            plds.append(one.self_compose(STEPS * attempts))
        composed = plds[0].compose(plds[1]).compose(plds[2])
    assert spent is not None
    assert spent.epsilon == pytest.approx(composed.get_epsilon_for_delta(DELTA), rel=1e-3)


@pytest.mark.parametrize("trust", ["local", "distributed"])
def test_what_everybody_paid_throughout_is_the_claim_to_the_last_digit(trust: Trust) -> None:
    accountant = _charged(trust, [frozenset("abc"), None, frozenset("abcd")], q=0.4, z=2.0)
    accountant.commit()
    spent, claim = accountant.spent(2), accountant.epsilon_of_schedule
    assert spent is not None
    assert claim is not None
    assert spent.epsilon == claim.epsilon == accountant.epsilon_spent


def test_a_site_that_joined_later_has_fewer_charges_and_an_unrecorded_attempt_counts_for_all() -> None:
    accountant = _charged("local", [frozenset("a"), None, frozenset("ab")])
    assert [accountant.attempts_charged(site) for site in ("a", "b", "joined later")] == [3, 2, 1]


def test_a_charge_once_noted_is_never_taken_back() -> None:
    accountant = _charged("local", [frozenset("ab")])
    for charged in ((), ("a",), ("a", "b"), ("c",), ("c",)):
        accountant.record(1, charged)
    assert [accountant.attempts_charged(site) for site in SITES] == [1, 1, 1, 0]


@pytest.mark.parametrize("attempt", [-1, 0, 3])
def test_a_charge_of_an_attempt_that_has_not_begun_is_refused(attempt: int) -> None:
    accountant = _charged("local", [None, None])
    with pytest.raises(PrivacyError, match=f"attempt {attempt}, of 2"):
        accountant.record(attempt, SITES)
    assert accountant.attempts_charged("a") == 2


def test_a_resumed_accountant_counts_everybody_until_it_is_told_who_paid() -> None:
    accountant = _accountant(4, committed=3)
    assert accountant.attempts_charged("a") == 3
    accountant.record(2, ["b"])
    assert [accountant.attempts_charged(site) for site in "ab"] == [2, 3]


@pytest.mark.parametrize("trust", ["local", "distributed"])
def test_before_anybody_paid_nothing_is_spent(trust: Trust) -> None:
    nobody: list[Charges] = [[], [frozenset(), frozenset()]]
    for charges in nobody:
        spent = _charged(trust, charges).spent(3)
        assert spent is not None
        assert (spent.epsilon, spent.epsilon_rdp) == (0.0, 0.0)


@pytest.mark.parametrize("trust", ["local", "distributed"])
def test_the_claims_are_those_of_one_site_of_the_stated_number_and_of_all(trust: Trust) -> None:
    accountant = _charged(trust, [frozenset(), None], q=0.4, z=3.0, m=2)
    event = SampledGaussianRelease(sampling_probability=0.4, noise_multiplier=3.0, trust=trust)
    claims = accountant.claims(5)
    assert list(claims) == [1, 2, 5]
    for m, claim in claims.items():
        schedule = Schedule(event=replace(event, sites_per_patient=m), count=3 * STEPS)
        assert claim == epsilon(schedule, delta=DELTA)
    assert list(accountant.claims(2)) == [1, 2]
    assert accountant.claims(2)[2] == accountant.epsilon_of_schedule


@pytest.mark.parametrize("trust", ["local", "distributed"])
def test_where_no_bound_exists_there_is_no_figure(trust: Trust) -> None:
    accountant = _charged(trust, [None, frozenset("a")], m=1)
    assert accountant.spent(400_000) is None
    claims = accountant.claims(400_000)
    assert claims[400_000] is None
    assert claims[1] == accountant.epsilon_of_schedule


def test_without_noise_charges_are_counted_and_no_figure_is_given() -> None:
    accountant = CentralAccountant(schedule=None, max_attempts=1, delta=DELTA)
    accountant.commit()
    accountant.record(1, ["a"])
    assert [accountant.attempts_charged(site) for site in "ab"] == [1, 0]
    assert accountant.spent(1) is None
    assert accountant.claims(3) == {}
