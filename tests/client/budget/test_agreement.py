"""Joining: the policy is checked, then the whole schedule is paid for, and only then may an attempt begin."""

import pytest
from support.study.allowed_study import NOISELESS, SITE, manifest, policy

from grandrounds.client.budget.agreement import cost_of, join, propose
from grandrounds.client.budget.amounts import Amounts
from grandrounds.client.budget.asset import Asset
from grandrounds.client.budget.reservations import Reservations
from grandrounds.client.state.site_state import SiteState
from grandrounds.common.errors import PrivacyError, StudyError
from grandrounds.common.privacy.filters import rdp_cost


@pytest.fixture
def budget():
    return SiteState.in_memory()


def test_a_site_that_joined_reserved_the_target_and_may_begin(budget):
    study = manifest(trust="local", privacy={"noise_multiplier": 8.0})
    agreement = join(study, policy(), name=SITE, reservations=Reservations(budget.database))
    assert agreement.cost == Amounts.rounded_up(epsilon=2.0, delta=1e-4)
    assert (agreement.site, agreement.study_id, agreement.manifest_sha256) == (SITE, study.study_id, study.sha256)
    assert agreement.budget.left("epsilon") == 2 * 10**12
    budget.begin(study.study_id, 1)


def test_joining_again_and_joining_a_successor_change_nothing(budget):
    reservations = Reservations(budget.database)
    first = manifest(privacy={"noise_multiplier": 8.0})
    with_more_corrupt = first.study.privacy.model_copy(update={"corrupt_sites": 2})
    study = first.study.model_copy(update={"privacy": with_more_corrupt})
    successor = first.model_copy(update={"version": 2, "previous": first.sha256, "study": study})
    agreements = [
        join(each, policy(smallest_honest_shares=2), name=SITE, reservations=reservations)
        for each in (first, first, successor)
    ]
    assert len(agreements[-1].budget.reservations) == 1
    assert agreements[-1].budget.left("epsilon") == 2 * 10**12


@pytest.mark.parametrize(
    "changed",
    [
        {"privacy": {"noise_multiplier": 9.0}},
        {"privacy": {"noise_multiplier": 8.0, "sampling_probability": 0.5}},
        {"privacy": {"noise_multiplier": 8.0, "clipping_norm": 2.0}},
        {"privacy": {"noise_multiplier": 8.0}, "training": {"max_attempts": 4}},
    ],
)
def test_another_schedule_under_the_same_study_is_refused_though_it_costs_the_same(budget, changed):
    reservations = Reservations(budget.database)
    join(manifest(privacy={"noise_multiplier": 8.0}), policy(), name=SITE, reservations=reservations)
    with pytest.raises(PrivacyError, match="for another schedule"):
        join(manifest(**changed), policy(), name=SITE, reservations=reservations)


def test_a_study_that_breaks_the_policy_leaves_no_trace(budget):
    reservations = Reservations(budget.database)
    with pytest.raises(StudyError):
        join(manifest(), policy(largest_epsilon=1.0), name=SITE, reservations=reservations)
    assert reservations.statements() == []


def test_studies_are_joined_until_the_budget_is_spent(budget):
    reservations = Reservations(budget.database)
    for number in ("11", "22", "33"):
        study = manifest(privacy={"noise_multiplier": 8.0}, study_id=number * 32)
        if number != "33":
            join(study, policy(), name=SITE, reservations=reservations)
    with pytest.raises(PrivacyError, match="asks for ε = 2 of data asset patients, and 0 is left"):
        join(study, policy(), name=SITE, reservations=reservations)


def test_a_schedule_that_costs_more_than_its_target_is_refused(budget):
    with pytest.raises(PrivacyError, match=r"the schedule costs ε = .*, above its target 2\.0"):
        join(
            manifest(privacy={"noise_multiplier": 1.0}), policy(), name=SITE, reservations=Reservations(budget.database)
        )


def test_an_rdp_asset_is_charged_the_divergence_of_the_whole_schedule():
    study = manifest(privacy={"noise_multiplier": 8.0})
    asset = Asset.renyi("patients", epsilon=4.0, delta=1e-3, order=8)
    charged = cost_of(study, asset).rdp / 10**12
    own = rdp_cost(study.schedule, order=8)
    assert own <= charged <= own + 1e-6


def test_a_study_without_noise_costs_nothing_and_is_reserved_among_synthetic_records(budget):
    rules = policy(data={"synthetic_data_only": True, "asset": "demo"})
    agreement = join(manifest(privacy=NOISELESS), rules, name=SITE, reservations=Reservations(budget.database))
    assert agreement.cost == Amounts()
    assert agreement.budget.asset == Asset.synthetic("demo")


def test_patients_cannot_be_declared_synthetic_once_a_study_has_read_them(budget):
    reservations = Reservations(budget.database)
    join(manifest(privacy={"noise_multiplier": 8.0}), policy(), name=SITE, reservations=reservations)
    noiseless = manifest(privacy=NOISELESS, study_id="44" * 32)
    with pytest.raises(PrivacyError, match="is registered with ε = 4"):
        join(noiseless, policy(data={"synthetic_data_only": True}), name=SITE, reservations=reservations)


def test_what_joining_would_come_to_is_said_and_nothing_of_it_stays(budget):
    reservations, study = Reservations(budget.database), manifest(privacy={"noise_multiplier": 8.0})
    proposal = propose(study, policy(), name=SITE, reservations=reservations)
    assert reservations.statements() == []
    assert proposal.budget == (
        "patients: ε = 4 before, 2 reserved by this study, 2 left after; "
        "δ = 0.001 before, 0.0001 reserved by this study, 0.0009 left after"
    )
    join(study, policy(), name=SITE, reservations=reservations)
    again = propose(study, policy(), name=SITE, reservations=reservations)
    assert "ε = 2 before, 2 reserved already, 2 left after" in again.budget
    assert again.new_beside == []
    other = propose(
        study.model_copy(update={"study_id": "ef" * 32}),
        policy(data={"asset": "b"}),
        name=SITE,
        reservations=reservations,
    )
    assert other.new_beside == ["patients"]
