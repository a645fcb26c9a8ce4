"""A site's signature on a manifest stands for one place in the ledger: after all that the site took part in."""

import pytest
from support.ledger.ledger_history import History, history_study, two_rounds
from support.study.federation import reserved

from grandrounds.client.state.site_state import SiteState
from grandrounds.common.errors import ProtocolError
from grandrounds.common.ledger.chain import EMPTY_LEDGER_HEAD, Entry
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import Agreed, Invitation, pack
from grandrounds.common.study.manifest import Countersignature
from grandrounds.server.rounds.signing import BEFORE, Signing

SITE, NEW = "site-2", "site-6"
SILENCE = ""
UNITS = {f"site-{i}": 4 for i in range(1, 6)}


@pytest.fixture
def history():
    """Two rounds, and the workers of a successor in which a site joins; nobody has signed it yet."""
    made = two_rounds().fork()
    made.manifest, identities = made.successor(UNITS | {NEW: 8})
    made.study = made.manifest.study
    made.identities.update(identities)
    made.budgets[NEW] = reserved(SiteState.in_memory(), made.manifest)
    for site in made.sites:
        made.restart(site)
    return made


def invited(history, site, lines, *, length=None, head=None):
    """What a site answers to an invitation to sign after ``lines``; a code where it refuses.

    One that paid for the last attempt and was restarted since does not know that it is over, and refuses by silence.
    """
    place = Invitation(
        ledger_length=len(lines) if length is None else length,
        ledger_head=head or (Entry.parse(lines[-1]).hash if lines else EMPTY_LEDGER_HEAD),
    )
    wire = history.workers[site].handle(history.server_says(place, pack(lines), attempt=BEFORE))
    if not wire:
        return SILENCE
    answer = Envelope.parse(wire)
    return answer.body.get("code") or answer


def test_every_site_signs_a_successor_after_the_whole_ledger(history):
    before = list(history.lines)
    signing = Signing(manifest=history.manifest, ledger=history.writer())
    for site, message in signing.messages().items():
        signing.receive(site, history.workers[site].handle(message))
    signing.advance()
    assert signing.finished
    assert history.verified.place == (len(before), Entry.parse(before[-1]).hash)
    assert history.budgets[NEW].ledger(history.manifest.study_id) == before
    assert history.attempt().survivors == history.sites


def test_what_a_site_signs_names_the_manifest_and_the_ledger_before_it(history):
    answer = invited(history, SITE, history.lines)
    signed = Countersignature(
        site=SITE,
        manifest=history.manifest.sha256,
        ledger_length=len(history.lines),
        ledger_head=Entry.parse(history.lines[-1]).hash,
        key=history.identities[SITE].public_key,
        reservation=Agreed.of(answer).reservation,
        signature=Agreed.of(answer).signature,
    )
    signed.verify()
    assert invited(history, SITE, history.lines).body == answer.body, "and again, if its answer was lost"


def ends(history, kind, attempt):
    """How long the ledger is with the entry of that kind and attempt."""
    entries = [Entry.parse(line) for line in history.lines]
    return 1 + next(e.sequence for e in entries if e.type == kind and e.body.get("attempt") == attempt)


def test_no_site_signs_a_successor_before_attempts_that_it_took_part_in(history):
    for end in (ends(history, "round-closed", 1), ends(history, "attempt-begun", 2) - 1, 6):
        hidden = history.lines[:end]
        assert {invited(history, site, hidden) for site in UNITS} == {SILENCE}
        assert isinstance(invited(history, NEW, hidden), Envelope), "who was not there cannot know"
        history.budgets[NEW] = reserved(SiteState.in_memory(), history.manifest)
        history.restart(NEW)


def test_a_site_that_was_not_told_how_an_attempt_ended_still_signs_after_no_ledger_without_its_charge(history):
    begun = ends(history, "attempt-begun", 2)
    assert len(history.budgets[SITE].ledger(history.manifest.study_id)) == begun
    assert isinstance(invited(history, SITE, history.lines), Envelope)


def test_a_site_whose_state_was_set_back_does_not_sign(history):
    history.budgets[SITE] = reserved(SiteState.in_memory(), history.manifest)
    history.restart(SITE)
    assert invited(history, SITE, history.lines) == "set-back"


@pytest.mark.parametrize("place", [{"length": 0}, {"head": "ab" * 32}, {"head": EMPTY_LEDGER_HEAD}])
def test_a_site_signs_no_other_place_than_that_of_the_ledger_it_was_shown(history, place):
    assert invited(history, SITE, history.lines, **place) == SILENCE
    assert invited(history, NEW, history.lines, **place) == "ledger"


def test_a_successor_of_another_manifest_is_not_signed(history):
    history.manifest = history.manifest.model_copy(update={"previous": "ab" * 32})
    for site, answer in ((SITE, SILENCE), (NEW, "ledger")):
        history.restart(site)
        assert invited(history, site, history.lines) == answer


def test_a_first_manifest_is_signed_before_everything_else_alone():
    history = History(study=history_study())
    lines, site = history.lines, SITE
    assert invited(history, site, lines) == "ledger"
    assert isinstance(invited(history, site, []), Envelope)
    history.attempt()
    assert invited(history, site, []) == "ledger"


def test_signatures_that_were_given_for_a_shorter_ledger_are_none_for_a_longer_one(history):
    """The ledger went on under the manifest before, while a site's signature was underway."""
    early = Signing(manifest=history.manifest, ledger=history.writer())
    answers = {site: history.workers[site].handle(message) for site, message in early.messages().items()}
    old = two_rounds().fork()
    old.attempt(away=[SITE])
    late = Signing(manifest=history.manifest, ledger=old.writer())
    for site, answer in answers.items():
        late.receive(site, answer)
    with pytest.raises(ProtocolError, match="does not verify"):
        late.advance()
