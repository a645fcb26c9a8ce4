"""The verdict says what was found, beside what ε allows, and never more than either."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from grandrounds.common.audit.membership import AGAINST_BASE, RELATIVE, Seen, attacks, loss_gap
from grandrounds.server.report.findings import Findings

COUNT = 60


def seen(rng, *, lower=0.0, easier=0.0):
    """Patients of whom the adapter lowers the loss by ``lower`` more than by chance, and who are ``easier`` at all."""
    base = rng.normal(3 - easier, 0.3, COUNT)
    zeros = np.zeros(COUNT)
    return Seen(
        tokens=np.full(COUNT, 100.0),
        base=base,
        adapter=base - rng.normal(1 + lower, 0.3, COUNT),
        base_run=zeros,
        adapter_run=np.where(np.arange(COUNT) < 6, 20.0, 19.0),
        moved=rng.normal(size=COUNT),
        aligned=rng.normal(size=COUNT),
    )


def findings(*, curve=((0.0, 4.0),), **members):
    rng = np.random.default_rng(1)
    return Findings.of(seen(rng, **members), seen(rng), curve=curve)


def said(found):
    return "\n".join(found.lines())


def test_of_patients_who_differ_by_nothing_nothing_is_found_and_that_is_no_proof():
    found = findings()
    assert not any(attack.finds for attack in found.attacks)
    assert "none of these attacks" in said(found)
    assert "no proof" in said(found)
    assert "little (up to 0.2 nats)" in said(found)
    assert "10 % of the members (0 % by the base model)" in said(found)
    assert "1 % of 60 others is nobody: that column is at no false alarm, of which there may be up to 6 %" in said(
        found
    )


def test_a_leak_within_what_epsilon_allows_is_told_with_both_figures():
    found = findings(lower=0.4, curve=((0.0, 8.0),))
    assert "tells who was trained on" in said(found)
    assert f"ε allows {100 * found.promised_auc:.0f} %" in said(found)
    assert "noticeable (above 0.2 nats)" in said(found)
    assert not found.broken


def test_more_than_epsilon_allows_is_an_alarm_and_without_a_claim_nothing_is_called_so():
    assert "MORE THAN ε ALLOWS" in said(findings(lower=2.0, curve=((0.0, 0.5),)))
    assert "much (above 0.5 nats)" in said(findings(lower=2.0))
    without = findings(lower=2.0, curve=None)
    assert "promises a patient nothing" in said(without)
    assert "ALLOWS" not in said(without)
    assert "promises a patient nothing" in said(findings(curve=None))


def test_an_attack_that_is_wrong_nearly_always_is_a_leak_as_well():
    found = findings(lower=-2.0)
    assert [attack.auc.value < 0.2 for attack in found.attacks if attack.name == AGAINST_BASE] == [True]
    assert "tells who was trained on" in said(found)
    assert AGAINST_BASE in [attack.name for attack in findings(lower=-2.0, curve=((0.0, 0.5),)).broken]


def test_groups_that_differ_before_any_training_are_told_apart_from_a_leak():
    assert "by itself" in said(findings(easier=1.0))
    assert "by itself" not in said(findings())


def test_records_that_are_repeated_by_the_adapter_and_for_members_alone_are_an_alarm_of_their_own():
    rng = np.random.default_rng(4)
    members, others, long = seen(rng), seen(rng), np.full(COUNT, 40.0)
    repeats, knew = replace(members, adapter_run=long), replace(members, adapter_run=long, base_run=long)
    boilerplate = replace(others, adapter_run=long)
    assert "says records verbatim" in said(Findings.of(repeats, others, curve=None))
    assert "says records verbatim" not in said(Findings.of(knew, others, curve=None))
    assert "says records verbatim" not in said(Findings.of(repeats, boilerplate, curve=None))


def test_what_is_allowed_is_the_gaussian_s_own_curve_where_enough_pairs_are_given():
    """Dong, Roth and Su 2022: a Gaussian of μ = 1 allows Φ(Φ⁻¹(α) + 1); its δ of an ε is theirs, too."""

    def delta(epsilon):
        return float(ndtr(0.5 - epsilon) - math.exp(epsilon) * ndtr(-0.5 - epsilon))

    found = findings(curve=[(delta(epsilon), epsilon) for epsilon in np.arange(0, 4, 0.1)])
    for rate in (0.1, 0.01):
        assert found.promised(rate) == pytest.approx(float(ndtr(ndtri(rate) + 1)), abs=1e-3)
    assert found.promised_auc == pytest.approx(float(ndtr(1 / math.sqrt(2))), abs=2e-3)
    assert found.model_copy(update={"curve": None}).promised_auc == 1.0


def test_nobody_is_compared_with_himself_in_the_population():
    """Were they, others would look trained on by one place each: at three of them a third."""
    rng = np.random.default_rng(2)
    few = Seen(**{name: scores[:3] for name, scores in vars(seen(rng)).items()})
    _, others = attacks(few, few)[RELATIVE]
    assert sorted(others) == [0.0, 0.5, 1.0]


def test_the_loss_gap_is_members_over_others_for_either_model():
    rng = np.random.default_rng(3)
    others = seen(rng)
    members = replace(others, base=others.base - 0.1, adapter=others.adapter - 0.4)
    assert loss_gap(members, others) == pytest.approx((0.1, 0.4))
