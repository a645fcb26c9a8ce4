"""What an attack scores: of those who differ by themselves, and of those who were trained on."""

from dataclasses import replace

import numpy as np
import pytest
from support.study.attacked_study import PATIENTS, seen

from grandrounds.common.audit.membership import AGAINST_BASE, CALIBRATED, Seen, attacks
from grandrounds.common.audit.roc import auc


def area(members: Seen, others: Seen, name: str) -> float:
    return auc(*attacks(members, others)[name], confidence=0.95).value


def test_patients_whom_the_base_model_finds_harder_are_no_members_for_that() -> None:
    """An adapter that halves what the base model loses: the plain difference takes the harder half for members."""
    rng = np.random.default_rng(1)
    harder, others = seen(rng, easier=-0.45, slope=0.5), seen(rng, slope=0.5)
    assert area(harder, others, AGAINST_BASE) > 0.7
    assert abs(area(harder, others, CALIBRATED) - 0.5) < 0.2
    assert area(seen(rng, easier=-0.45, slope=0.5, lower=0.3), others, CALIBRATED) > 0.85


def test_a_patient_of_the_others_is_held_against_the_line_through_the_rest_of_them() -> None:
    rng = np.random.default_rng(2)
    others = seen(rng, slope=0.5)
    _, found = attacks(seen(rng, slope=0.5), others)[CALIBRATED]
    for number in range(PATIENTS):
        rest = np.arange(PATIENTS) != number
        line = np.polynomial.Polynomial.fit(others.base[rest], others.adapter[rest], 1)
        assert found[number] == pytest.approx(line(others.base[number]) - others.adapter[number])


def test_where_all_are_alike_to_the_base_model_what_is_foretold_is_their_mean() -> None:
    rng = np.random.default_rng(3)
    members, others = (replace(seen(rng), base=np.full(PATIENTS, 3.0)) for _ in range(2))
    scores, _ = attacks(members, others)[CALIBRATED]
    assert scores == pytest.approx(others.adapter.mean() - members.adapter)
