"""Budgets across studies: never overspent, never raised, given back only while nothing was spent."""

import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grandrounds.client.budget.amounts import Amounts, shown_down, shown_up
from grandrounds.client.budget.asset import Asset
from grandrounds.client.budget.reservations import Reservations
from grandrounds.client.state.database import SiteDatabase
from grandrounds.client.state.site_state import SiteState
from grandrounds.common.errors import PrivacyError
from grandrounds.common.privacy.draw_cap import CUT_SHARE
from grandrounds.common.privacy.filters import rdp_budget
from grandrounds.common.system.crash_points import CrashPoint

STUDY, OTHER, THIRD = "ab" * 32, "cd" * 32, "ef" * 32
PATIENTS = Asset.summed("patients", epsilon=4.0, delta=1e-5)
COST = Amounts.rounded_up(epsilon=1.5, delta=4e-6)


def study(number):
    return f"{number:064x}"


@pytest.fixture
def reservations():
    reservations = Reservations(SiteDatabase.in_memory())
    reservations.register(PATIENTS)
    return reservations


def reserved(reservations, asset="patients"):
    return [reservation.study for reservation in reservations.statement(asset).reservations]


def test_a_site_signs_one_manifest_of_a_version_of_a_study(reservations):
    reservations.sign("aa" * 32, study=STUDY, version=1)
    reservations.sign("aa" * 32, study=STUDY, version=1)
    with pytest.raises(PrivacyError, match="version 1 of study abababababab was signed before, as aaaaaaaaaaaaaaaa"):
        reservations.sign("bb" * 32, study=STUDY, version=1)
    reservations.sign("bb" * 32, study=STUDY, version=2)
    reservations.sign("bb" * 32, study=OTHER, version=1)


def test_a_site_never_returns_to_a_version_below_the_highest_that_it_signed(reservations):
    for version, manifest in ((1, "aa" * 32), (2, "bb" * 32), (3, "cc" * 32)):
        reservations.sign(manifest, study=STUDY, version=version)
    for version, manifest in ((1, "aa" * 32), (2, "bb" * 32)):
        with pytest.raises(PrivacyError, match=f"version 3 .* was signed, and this is version {version}"):
            reservations.sign(manifest, study=STUDY, version=version)
    reservations.sign("cc" * 32, study=STUDY, version=3)
    with pytest.raises(PrivacyError, match="version 4"):
        reservations.sign("ff" * 32, study=STUDY, version=4)
        reservations.sign("cc" * 32, study=STUDY, version=3)
    reservations.sign("dd" * 32, study=OTHER, version=1)


@given(
    costs=st.lists(st.tuples(st.floats(1e-6, 3), st.floats(1e-9, 9e-6)), min_size=1, max_size=12),
    limit=st.tuples(st.floats(0.01, 8), st.floats(1e-8, 1e-4)),
)
def test_a_sum_filter_accepts_exactly_what_fits_beside_the_rest(costs, limit):
    reservations = Reservations(SiteDatabase.in_memory())
    reservations.register(Asset.summed("patients", epsilon=limit[0], delta=limit[1]))
    spent = [Fraction(0), Fraction(0)]
    for number, cost in enumerate(costs):
        after = [total + Fraction(str(value)) for total, value in zip(spent, cost, strict=True)]
        fits = all(total <= Fraction(str(most)) for total, most in zip(after, limit, strict=True))
        try:
            reservations.reserve("patients", study(number), Amounts.rounded_up(epsilon=cost[0], delta=cost[1]))
        except PrivacyError:
            # Rounding to trillionths is against the spender, and by less than one for each study.
            nearly = [total + Fraction(len(costs), 10**12) for total in after]
            assert not all(total <= Fraction(str(most)) for total, most in zip(nearly, limit, strict=True))
        else:
            assert fits
            spent = after


def test_ten_tenths_fill_a_budget_to_the_last(reservations):
    reservations.register(Asset.summed("more", epsilon=1.0, delta=1e-5))
    for number in range(10):
        reservations.reserve("more", study(number), Amounts.rounded_up(epsilon=0.1, delta=1e-6))
    statement = reservations.statement("more")
    assert (statement.left("epsilon"), statement.left("delta")) == (0, 0)
    assert sum([0.1] * 10) != 1.0, "as floats they would not"
    with pytest.raises(PrivacyError):
        reservations.reserve("more", study(11), Amounts.rounded_up(epsilon=1e-12, delta=1e-12))


@pytest.mark.parametrize(
    ("cost", "said"),
    [
        (Amounts.rounded_up(epsilon=3.0001, delta=1e-6), "ε = 3.001 of data asset patients, and 2.5 is left: 0.5001 "),
        (Amounts.rounded_up(epsilon=1.0, delta=7e-6), "δ = 7e-06 of data asset patients, and 6e-06 is left: 1e-06 "),
    ],
)
def test_a_study_that_asks_for_more_than_is_left_is_told_by_how_much(reservations, cost, said):
    reservations.reserve("patients", STUDY, COST)
    with pytest.raises(PrivacyError) as refusal:
        reservations.reserve("patients", OTHER, cost)
    assert said in refusal.value.what
    assert reserved(reservations) == [STUDY]


@given(value=st.floats(0, 1e6))
def test_what_is_spent_is_rounded_up_and_what_may_be_spent_is_rounded_down(value):
    exact = Fraction(str(value)) * 10**12
    spent, allowed = (amounts(epsilon=1, delta=value) for amounts in (Amounts.rounded_up, Amounts.rounded_down))
    assert allowed.delta <= exact <= spent.delta
    assert spent.delta - allowed.delta == (exact.denominator != 1)


@given(amount=st.integers(0, 10**19))
def test_what_is_shown_of_an_amount_never_favours_the_spender(amount):
    assert Fraction(shown_down(amount)) <= Fraction(amount, 10**12) <= Fraction(shown_up(amount))


def test_a_study_reserves_once_and_the_same_again_changes_nothing(reservations):
    reservations.reserve("patients", STUDY, COST)
    reservations.reserve("patients", STUDY, COST)
    assert reservations.statement("patients").reserved == COST
    reservations.register(Asset.synthetic("elsewhere"))
    for asset, cost in (
        ("patients", Amounts.rounded_up(epsilon=1.5, delta=4.1e-6)),
        ("patients", Amounts.rounded_up(epsilon=1.4, delta=4e-6)),
        ("elsewhere", COST),
    ):
        with pytest.raises(PrivacyError, match=r"reserved ε = 1\.5 of patients before"):
            reservations.reserve(asset, STUDY, cost)
    with pytest.raises(PrivacyError, match="for another schedule"):
        reservations.reserve("patients", STUDY, COST, schedule="99" * 32)
    assert reservations.statement("patients").reserved == COST


@pytest.mark.parametrize(
    "other",
    [
        Asset.summed("patients", epsilon=4.1, delta=1e-5),
        Asset.summed("patients", epsilon=3.9, delta=1e-5),
        Asset.summed("patients", epsilon=4.0, delta=2e-5),
        Asset.summed("patients", epsilon=4.0, delta=1e-5, unit="record"),
        Asset.renyi("patients", epsilon=4.0, delta=1e-5, order=8),
        Asset.synthetic("patients"),
    ],
    ids=lambda asset: asset.described,
)
def test_a_budget_is_registered_once_and_never_becomes_another(reservations, other):
    reservations.register(PATIENTS)
    with pytest.raises(PrivacyError, match="is registered with ε = 4 and δ = 1e-05") as refusal:
        reservations.register(other)
    assert "raised after looking" in refusal.value.why
    assert [statement.asset for statement in reservations.statements()] == [PATIENTS]


def test_an_rdp_filter_adds_up_divergences_at_its_order_and_hardly_any_delta(reservations):
    limit = rdp_budget(epsilon=4.0, delta=0.99e-5, order=8)
    reservations.register(Asset.renyi("longitudinal", epsilon=4.0, delta=1e-5, order=8))
    share = Amounts.rounded_up(epsilon=3.0, delta=9e-6, rdp=0.3 * limit)
    for number in range(3):
        reservations.reserve("longitudinal", study(number), share)
    with pytest.raises(PrivacyError, match="asks for RDP = "):
        reservations.reserve("longitudinal", study(3), share)
    assert len(reserved(reservations, "longitudinal")) == 3, "three ε of 3 within one of 4"


def test_an_rdp_filter_holds_what_studies_spend_on_cut_draws_within_the_hundredth_that_is_set_aside(reservations):
    asset = Asset.renyi("longitudinal", epsilon=4.0, delta=1e-5, order=8)
    assert (
        asset.limit.rdp
        == Amounts.rounded_down(epsilon=0, delta=0, rdp=rdp_budget(epsilon=4.0, delta=0.99e-5, order=8)).rdp
    )
    reservations.register(asset)
    share = Amounts.rounded_up(epsilon=0.1, delta=4e-5, rdp=1e-6)
    for number in range(2):
        reservations.reserve("longitudinal", study(number), share)
    assert 2 * 4e-5 * CUT_SHARE <= 0.01 * 1e-5 < 3 * 4e-5 * CUT_SHARE
    with pytest.raises(PrivacyError, match="asks for δ = "):
        reservations.reserve("longitudinal", study(2), share)


@pytest.mark.parametrize("asset", ["patients", "longitudinal"])
def test_a_study_without_noise_or_without_a_cost_in_the_filter_s_terms_gets_no_real_patient(reservations, asset):
    reservations.register(Asset.renyi("longitudinal", epsilon=4.0, delta=1e-5, order=8))
    cost = Amounts() if asset == "patients" else COST
    with pytest.raises(PrivacyError, match="states no cost"):
        reservations.reserve(asset, STUDY, cost)
    reservations.register(Asset.synthetic("nobody"))
    reservations.reserve("nobody", STUDY, Amounts())


def test_an_asset_that_nobody_registered_has_no_budget(reservations):
    with pytest.raises(PrivacyError, match="not registered"):
        reservations.reserve("others", STUDY, COST)


def test_a_reservation_is_given_back_only_while_no_attempt_was_begun(reservations):
    budget = SiteState(reservations._database)
    reservations.reserve("patients", STUDY, COST)
    reservations.reserve("patients", OTHER, COST)
    budget.begin(STUDY, 1)
    with pytest.raises(PrivacyError, match="stays spent") as refusal:
        reservations.cancel(STUDY)
    assert "stopping early gives nothing back" in refusal.value.why
    reservations.cancel(OTHER)
    assert reserved(reservations) == [STUDY]
    with pytest.raises(PrivacyError, match="no budget is reserved"):
        budget.begin(OTHER, 1)
    with pytest.raises(PrivacyError, match="nothing reserved"):
        reservations.cancel(OTHER)


def test_a_statement_says_which_attempts_were_begun_and_paid_for(reservations):
    budget = SiteState(reservations._database)
    for name in (STUDY, OTHER):
        reservations.reserve("patients", name, COST)
    for attempt in (1, 2, 4):
        budget.begin(STUDY, attempt)
    budget.charge(STUDY, 4, {})
    counts = [(r.attempts_begun, r.attempts_charged) for r in reservations.statement("patients").reservations]
    assert counts == [(3, 1), (0, 0)]


def test_a_study_joins_beside_a_running_worker(tmp_path):
    worker = SiteState.open(tmp_path)
    joining = Reservations(SiteDatabase.open(tmp_path))
    joining.register(PATIENTS)
    joining.reserve("patients", STUDY, COST)
    worker.begin(STUDY, 1)
    with pytest.raises(PrivacyError, match="stays spent"):
        joining.cancel(STUDY)


JOIN = """
import sys
from pathlib import Path
from grandrounds.client.budget.amounts import Amounts
from grandrounds.client.budget.reservations import Reservations
from grandrounds.client.state.database import SiteDatabase
from grandrounds.common.errors import PrivacyError
reservations = Reservations(SiteDatabase.open(Path(sys.argv[1])))
print("ready", flush=True)
sys.stdin.read(1)
for number in range(10):
    try:
        reservations.reserve("patients", f"{sys.argv[2]}{number:063x}", Amounts.rounded_up(epsilon=0.25, delta=1e-7))
    except PrivacyError:
        break
"""


def test_processes_that_reserve_at_once_never_overspend_together(tmp_path):
    Reservations(SiteDatabase.open(tmp_path)).register(PATIENTS)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", JOIN, str(tmp_path), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for name in "abcd"
    ]
    for process in processes:
        assert process.stdout and process.stdout.readline() == b"ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write(b"!")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    statement = Reservations(SiteDatabase.open(tmp_path)).statement("patients")
    assert statement.left("epsilon") == 0, "40 asked for, 16 of a quarter each fit"
    assert len(statement.reservations) == 16


LIFE = """
import os, sys
from pathlib import Path
from grandrounds.client.budget.amounts import Amounts
from grandrounds.client.budget.asset import Asset
from grandrounds.client.budget.reservations import Reservations
from grandrounds.client.state.site_state import SiteState

def reach(point):
    if point == sys.argv[2]:
        os._exit(9)

budget = SiteState.open(Path(sys.argv[1]), reach=reach)
reservations = Reservations(budget.database)
reservations.register(Asset.summed("patients", epsilon=4.0, delta=1e-5))
reservations.reserve("patients", "ab" * 32, Amounts.rounded_up(epsilon=1.5, delta=4e-6))
budget.append("ab" * 32, [b"study", b"countersignature"])
reservations.cancel("ab" * 32)
"""
WRITES = ("state", "asset", "reservation", "ledger", "cancellation")


@pytest.mark.parametrize("point", [CrashPoint(f"{when}_{write}") for write in WRITES for when in ("before", "after")])
def test_a_process_killed_at_a_point_has_done_the_writes_before_it_and_none_after(tmp_path, point):
    assert subprocess.run([sys.executable, "-c", LIFE, str(tmp_path), point]).returncode == 9
    when, write = point.split("_")
    done = WRITES[: WRITES.index(write) + (when == "after")]
    budget = SiteState.open(tmp_path)
    reservations = Reservations(budget.database)
    assert [statement.asset for statement in reservations.statements()] == [PATIENTS] * ("asset" in done)
    held = "reservation" in done and "cancellation" not in done
    assert [r.study for s in reservations.statements() for r in s.reservations] == [STUDY] * held
    assert budget.ledger(STUDY) == [b"study", b"countersignature"] * ("ledger" in done)
    reservations.register(PATIENTS)
    reservations.reserve("patients", STUDY, COST)
    budget.begin(STUDY, 1)


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(0, 1e-5), (-1, 1e-5), (float("nan"), 1e-5), (2e6, 1e-5), (1, 0), (1, 1)]
)
def test_a_budget_that_bounds_nothing_or_allows_nothing_is_refused(epsilon, delta):
    for make in (Asset.summed, lambda name, **limit: Asset.renyi(name, order=8, **limit)):
        with pytest.raises(PrivacyError, match="budget is ε"):
            make("patients", epsilon=epsilon, delta=delta)
