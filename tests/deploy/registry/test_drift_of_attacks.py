"""Attacks on a release count as drift where they find more than at its release, or more than ε allows."""

import numpy as np
import pytest

from grandrounds.common.audit.membership import AGAINST_BASE, Seen
from grandrounds.common.model.perplexity import Interval
from grandrounds.deploy.registry.drift import Drift, Measured
from grandrounds.server.report.findings import Curve, Findings

COUNT = 100
SAME = Measured(**dict.fromkeys(("base", "adapter", "gain"), Interval(value=1.0, low=0.9, high=1.1)), patients=None)
MUCH, LITTLE = ((0.0, 8.0),), ((0.0, 0.5),)
TOLD = "who was trained on is told better than at its release, by "
BROKEN = "attacks tell who was trained on from these patients better than ε ALLOWS"
OTHER_PATIENTS = "; so does the base model alone: these are other patients by themselves"


def found(leak: float, *, easier: float = 0.0, curve: Curve = MUCH) -> Findings:
    """Of members whose loss the adapter lowers by a ``leak`` more than others', and who are ``easier`` without it."""
    rng = np.random.default_rng(3)

    def seen(lower: float, easier: float) -> Seen:
        base, other = rng.normal(3 - easier, 0.3, COUNT), rng.normal(size=(2, COUNT))
        adapter, zeros = base - rng.normal(lower, 0.3, COUNT), np.zeros(COUNT)
        return Seen(
            tokens=np.full(COUNT, 50.0),
            base=base,
            adapter=adapter,
            base_run=zeros,
            adapter_run=zeros,
            moved=np.abs(other[0]),
            aligned=other[1],
        )

    return Findings.of(seen(leak, easier), seen(0.0, 0.0), curve=curve)


def warned(then: Findings | None, now: Findings | None) -> list[str]:
    drift = Drift(then=SAME, now=SAME, attacks_then=then, attacks_now=now)
    assert drift.verdict.startswith("DRIFT" if drift.warnings else "No drift is shown")
    return drift.warnings


@pytest.mark.parametrize("then", [None, found(0.0), found(0.6)])
def test_attacks_that_find_no_more_than_they_did_are_no_drift(then: Findings | None) -> None:
    assert warned(then, found(0.0)) == [] == warned(then, None)


def test_attacks_that_find_more_than_at_the_release_are_named_and_those_that_were_never_made_are_not() -> None:
    (said,) = warned(found(0.0), found(0.6))
    assert said.startswith(TOLD) and AGAINST_BASE in said and "weights" not in said and "so does" not in said
    assert warned(None, found(0.6)) == []


def test_more_than_epsilon_allows_is_drift_whatever_was_found_at_the_release() -> None:
    assert warned(None, found(0.6, curve=LITTLE)) == [BROKEN]
    assert BROKEN in warned(found(0.6), found(0.6, curve=LITTLE))


def test_patients_whom_the_base_model_tells_apart_as_well_are_said_to_be_others() -> None:
    said = warned(found(0.0), found(0.0, easier=0.6, curve=LITTLE))
    assert len(said) == 2 and all(each.endswith(OTHER_PATIENTS) for each in said)
