"""A site whose state was set back between two studies gives a reservation's number twice, and its peers see it."""

from dataclasses import replace

import numpy as np
import pytest
from support.process.resident_process import refusal
from support.study.federation import Federation, agreed_ledger, reserved, small_study

from grandrounds.client.budget.reservations import Reservations
from grandrounds.client.state.site_state import SiteState
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import RefusalCode

SITE, SET_BACK = "site-1", "site-2"


@pytest.fixture
def states():
    return {f"site-{number}": SiteState.in_memory() for number in range(1, 6)}


@pytest.fixture
def first(states):
    """A study that was carried; each site's first reservation."""

    def release(manifest, site):
        return lambda adapter, mechanism: np.ones(7, "<u4")

    return Federation(study=small_study(), dimension=7, release=release, state=states.__getitem__).run()


def another(first, **stated):
    """Another study of the same sites, which sign it as their second reservation or as is ``stated``."""
    study = replace(first)
    study.pin(study_id="ef" * 32)
    study.lines.clear()
    numbers = dict.fromkeys(study.identities, 2) | stated
    study.ledger = agreed_ledger(
        study.manifest, study.identities, study.server, study.lines.append, reservations=numbers
    )
    return study


def answer_of(study, site):
    return study.workers[site].handle(study.open_training().messages()[site])


def test_reservations_are_counted_over_all_studies_and_none_is_counted_twice(first, states):
    study = another(first)
    ids = [each.manifest.study_id for each in (first, study)]
    assert [states[SITE].reservation(each) for each in ids] == [1, 2]
    Reservations(states[SITE].database).cancel(ids[1])
    reserved(states[SITE], study.manifest)
    assert states[SITE].reservation(ids[1]) == 3, "not even where one was given back"


def test_sites_whose_states_only_grew_carry_another_study(first):
    assert Envelope.parse(answer_of(another(first), SITE)).exchange == "advert"


def test_a_number_that_comes_again_in_another_study_is_refused_by_all_who_saw_it(first):
    study = another(first, **{SET_BACK: 1})
    assert refusal(answer_of(study, SITE)) == RefusalCode.LEDGER


def test_who_does_not_remember_the_other_study_cannot_know(first, states):
    """What the numbers are kept for: without them the set-back site is a site like others."""
    study = another(first, **{SET_BACK: 1})
    database = states[SITE].database
    database.change("DELETE FROM peer_reservations")
    assert Envelope.parse(answer_of(study, SITE)).exchange == "advert"
