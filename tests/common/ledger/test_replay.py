"""The audit of attempts: what an honest study cannot contain is refused, each by the check that is there for it.

The server is the liar: it signs whatever it likes, and of the sites whatever they signed elsewhere. Each lie names the
words with which it is refused, and the checks without which it would pass.
"""

import json
from functools import cache
from typing import Any

import pytest
from support.ledger.ledger_forger import (
    BEGUN,
    ENDED,
    SITES,
    Draft,
    Lies,
    check_lie,
    drafts,
    next_begun,
    resealed,
    resigned,
    signed_there,
    story,
    succeeded_story,
    upto,
    whole_story,
)
from support.ledger.ledger_history import History, history_study

from grandrounds.common.crypto.identity import Identity
from grandrounds.common.errors import LedgerError
from grandrounds.common.ledger.replay import VerifiedLedger

STRANGER = Identity.generate()
lie = Lies()


@cache
def exhausted() -> History:
    """A schedule of two attempts, both begun; one of the two rounds is open."""
    history = History(study=history_study(rounds=2, max_attempts=2))
    history.attempt([(site, "advert") for site in SITES])
    history.attempt()
    return history


@cache
def finished() -> History:
    """A schedule of one round, which is closed, and an attempt that was not needed."""
    history = History(study=history_study(rounds=1, max_attempts=2))
    history.attempt()
    return history


def of(body: Draft, kind: str, site: str) -> int:
    """Where the statement of ``site`` stands."""
    return next(i for i, signed in enumerate(body[kind]) if json.loads(signed["header"])["sender"] == site)


def change(history: History, body: Draft, kind: str, site: str, **changes: Any) -> None:
    """The site's statement as it might have signed it otherwise, or as another signed it in its name."""
    at = of(body, kind, site)
    body[kind][at] = resigned(history, body[kind][at], **changes)


# --- what an honest study has -----------------------------------------------------------------------------------------


def test_every_beginning_of_an_honest_ledger_passes_entry_by_entry():
    for history in (story(), exhausted(), finished(), whole_story(), succeeded_story()):
        verified = VerifiedLedger()
        for line in history.lines:
            verified = verified.continued([line])
        assert verified == VerifiedLedger.of(history.lines)


def test_an_audit_says_who_was_lost_who_is_in_the_sum_and_who_may_have_paid():
    attempts = story().verified.attempts
    assert [attempt.round for attempt in attempts] == [1, 2, 3, 3, 3, 3]
    assert [attempt.unmasked for attempt in attempts] == [True, True, False, False, False, True]
    without_2 = tuple(site for site in SITES if site != "site-2")
    assert [attempt.survivors for attempt in attempts] == [SITES, without_2, (), (), (), SITES]
    assert [attempt.charged for attempt in attempts] == [SITES, SITES, SITES, SITES, SITES[2:], SITES]
    assert attempts[1].dropouts == {"site-2": "masked-input"}
    assert attempts[4].dropouts == {"site-1": "advert", "site-2": "advert"}
    assert [round_.attempt for round_ in story().verified.rounds] == [1, 2]
    assert story().verified.charges == story().paid == dict.fromkeys(SITES, 5)


def test_an_attempt_that_was_cut_off_may_have_been_paid_for_by_all_whom_it_invited():
    history = story().fork()
    history.attempt(until="masked-input")
    cut = history.verified.attempts[-1]
    assert (cut.ended, cut.unmasked, cut.survivors) == (False, False, ())
    assert all(cut.may_have_charged(site) for site in SITES)
    assert {site: history.verified.most_charges(site) for site in SITES} == history.paid == dict.fromkeys(SITES, 6)
    assert history.verified.charges == dict.fromkeys(SITES, 5)
    assert history.attempt().survivors == SITES


def test_what_a_site_did_not_sign_leaves_no_room_for_a_charge():
    verified = VerifiedLedger.of(resealed(story(), upto(story(), ENDED, 5)))
    assert {site: verified.most_charges(site) for site in SITES} == dict.fromkeys(SITES[:2], 4) | dict.fromkeys(
        SITES[2:], 5
    )


def test_an_audit_that_refuses_is_as_it_was():
    verified = VerifiedLedger.of(story().lines)
    for attempt in (2, 9):
        begun = upto(story(), BEGUN, 2)[-1]
        begun["body"]["attempt"] = attempt
        with pytest.raises(LedgerError):
            verified.continued(resealed(story(), [*drafts(story().lines), begun]))
    assert verified == VerifiedLedger.of(story().lines)


def test_nothing_comes_before_the_study():
    with pytest.raises(LedgerError, match="does not begin with a study"):
        VerifiedLedger.of(resealed(story(), drafts(story().lines)[1:]))
    with pytest.raises(LedgerError, match="does not begin with a study"):
        _ = VerifiedLedger().manifest


# --- attempts that begin ----------------------------------------------------------------------------------------------


@lie("attempt 4 follows attempt 2", "follows attempt", of=story, until=(BEGUN, 4))
def an_attempt_is_left_out(history, found):
    found[:] = [d for d in found if d["body"].get("attempt") != 3]


@lie("attempt 2 follows attempt 2", "follows attempt", of=story, until=(BEGUN, 2))
def an_attempt_begins_twice(history, found):
    found.append(found[-1])


@lie("the schedule has no attempt left", of=exhausted)
def an_attempt_begins_beyond_the_schedule(history, found):
    found.append(next_begun(found))


@lie("all rounds are closed", of=finished)
def an_attempt_begins_after_the_last_round(history, found):
    found.append(next_begun(found))


@lie("follows round", of=story, until=(BEGUN, 2))
def a_round_is_left_out(history, found):
    found[-1]["body"]["round"] += 1


@lie("another adapter than the last round left", of=story, until=(BEGUN, 2))
def an_attempt_starts_from_another_adapter(history, found):
    found[-1]["body"]["adapter_sha256"] = "ab" * 32


@lie("where 4 are needed", "check_group", of=story, until=(BEGUN, 2))
def fewer_sites_are_invited_than_must_answer(history, found):
    found[-1]["body"]["invited"] = SITES[:3]


@lie("sites that cannot be in it", "check_group", of=story, until=(BEGUN, 2))
def a_stranger_is_invited(history, found):
    found[-1]["body"]["invited"] = [*SITES, "stranger"]


@lie("each site once", "check_group", of=story, until=(BEGUN, 2))
def a_site_is_invited_twice(history, found):
    found[-1]["body"]["invited"] = [*SITES, "site-5"]


@lie("lacks signatures of its sites", of=story, until=(BEGUN, 1))
def an_attempt_begins_before_all_have_signed(history, found):
    del found[3]


@lie("the study was closed before", of=whole_story)
def an_attempt_begins_after_the_end(history, found):
    found.append(next_begun(found))


# --- attempts that end ------------------------------------------------------------------------------------------------


@lie("is not the one that runs", of=story, until=(ENDED, 5))
def an_attempt_ends_twice(history, found):
    found.append(found[-1])


@lie("is not the one that runs", of=story, until=(ENDED, 5))
def another_attempt_ends_than_runs(history, found):
    found[-1]["body"]["attempt"] = 4


@lie("a message of site-4 for attempt 4", "verify_sender", of=story, until=(ENDED, 5))
def a_statement_of_another_attempt(history, found):
    change(history, found[-1]["body"], "adverts", "site-4", context={"attempt": 4})


@lie("or another study", "verify_sender", of=story, until=(ENDED, 5))
def a_statement_of_another_study(history, found):
    change(history, found[-1]["body"], "adverts", "site-4", context={"manifest": "ab" * 32})


@lie("does not verify", "verify_sender", of=story, until=(ENDED, 5))
def a_statement_that_its_site_did_not_sign(history, found):
    change(history, found[-1]["body"], "adverts", "site-4", by=STRANGER)


@lie("does not verify", "verify_sender", of=story, until=(ENDED, 5))
def a_statement_of_one_site_in_the_name_of_another(history, found):
    change(history, found[-1]["body"], "adverts", "site-4", by=history.identities["site-5"])


@lie(
    "attempt 1, in attempt 5", "verify_sender", "was shown another Begin", "_check_charges", of=story, until=(ENDED, 5)
)
def a_statement_that_is_replayed(history, found):
    before = upto(history, ENDED, 1)[-1]["body"]["adverts"]
    found[-1]["body"]["adverts"][0] = before[of({"adverts": before}, "adverts", "site-3")]


@lie("adverts are out of order", "out of order", of=story, until=(ENDED, 5))
def a_statement_that_stands_twice(history, found):
    found[-1]["body"]["adverts"].append(found[-1]["body"]["adverts"][-1])


@lie("masked-inputs are out of order", "out of order", of=story, until=(ENDED, 4))
def statements_that_are_out_of_order(history, found):
    found[-1]["body"]["masked_inputs"].reverse()


@lie("was shown another Begin", of=story, until=(ENDED, 5))
def an_advert_for_another_begin(history, found):
    change(history, found[-1]["body"], "adverts", "site-4", begin_hash="ab" * 32)


@lie("was shown another Begin", "was shown another Begin", "_check_charges", of=story, until=(ENDED, 5))
def another_history_before_the_adverts(history, found):
    assert found[-3]["body"]["dropouts"]["site-1"] == "masked-input"
    found[-3]["body"]["dropouts"]["site-1"] = "shares"


@lie("answered without one charge", of=story, until=(ENDED, 4))
def a_masked_input_without_a_charge(history, found):
    body = found[-1]["body"]
    counter = json.loads(body["adverts"][3]["header"])["body"]["charge_counter"]
    change(history, body, "masked_inputs", "site-4", charge_counter=counter)


@lie("the charge counter of site-4 fell from 4 to 3", "_check_charges", of=story, until=(ENDED, 5))
def a_charge_counter_that_falls(history, found):
    change(history, found[-1]["body"], "adverts", "site-4", charge_counter=3)


@lie("site-4 paid for more attempts", "_check_charges", of=story, until=(ENDED, 5))
def a_charge_counter_that_rises_too_fast(history, found):
    change(history, found[-1]["body"], "adverts", "site-4", charge_counter=5)


@lie("site-3 signed another set of adverts", "another set of adverts", of=story, until=(ENDED, 3))
def views_of_other_adverts_than_are_listed(history, found):
    body = found[-1]["body"]
    del body["adverts"][0], body["masked_inputs"][0]
    body["dropouts"]["site-1"] = "advert"
    for site in SITES[2:]:
        change(history, body, "consistencies", site, u3=SITES[1:], u2=SITES[1:])


@lie("site-1 signed other survivors", "signed other survivors", "dropouts are not those", of=story, until=(ENDED, 6))
def a_survivor_who_is_left_out(history, found):
    body = found[-1]["body"]
    del body["masked_inputs"][-1], body["consistencies"][-1], body["unmasks"][-1]
    body["dropouts"]["site-5"] = "masked-input"


@lie("site-1 signed other survivors", "signed other survivors", of=story, until=(ENDED, 2))
def a_survivor_whom_the_others_did_not_sign(history, found):
    body, before = found[-1]["body"], upto(history, ENDED, 1)[-1]["body"]["masked_inputs"][1]
    body["masked_inputs"].insert(1, resigned(history, before, context={"attempt": 2}, charge_counter=2))
    body["dropouts"]["site-2"] = "consistency"


@lie("the sites signed different views", of=story, until=(ENDED, 3))
def views_that_differ(history, found):
    change(history, found[-1]["body"], "consistencies", "site-5", u2=SITES[::-1])


@lie("signed an impossible view", "signed an impossible view", "dropouts are not those", of=story, until=(ENDED, 3))
def views_with_a_site_that_did_not_advertise(history, found):
    for site in SITES[2:]:
        change(history, found[-1]["body"], "consistencies", site, u2=[*SITES, "stranger"])


@lie("0 sites gave their shares, 4 must", "gave their shares", of=story, until=(ENDED, 3))
def an_unmasked_attempt_with_too_few_views(history, found):
    found[-1]["body"]["unmasked"] = True


@lie("3 sites gave their shares, 4 must", "gave their shares", of=story, until=(ENDED, 6))
def an_unmasked_attempt_with_too_few_shares(history, found):
    del found[-1]["body"]["unmasks"][:2]
    found[-1]["body"]["dropouts"] = {"site-1": "unmask", "site-2": "unmask"}


@lie("dropouts are not those", of=story, until=(ENDED, 6))
def a_site_that_gave_its_shares_and_is_called_lost(history, found):
    found[-1]["body"]["dropouts"] = {"site-1": "unmask"}


@lie("dropouts are not those", of=story, until=(ENDED, 2))
def a_dropout_who_is_not_named(history, found):
    found[-1]["body"]["dropouts"] = {}


@lie("dropouts are not those", of=story, until=(ENDED, 6))
def a_dropout_who_took_part(history, found):
    found[-1]["body"]["dropouts"]["site-3"] = "masked-input"


@lie("dropouts are not those", of=story, until=(ENDED, 2))
def a_dropout_at_another_exchange(history, found):
    found[-1]["body"]["dropouts"]["site-2"] = "shares"


@lie("dropouts are not those", of=story, until=(ENDED, 5))
def a_dropout_whom_nobody_invited(history, found):
    found[-1]["body"]["dropouts"]["stranger"] = "advert"


@lie("its manifest was succeeded", of=succeeded_story)
def an_attempt_that_ends_under_a_later_manifest(history, found):
    at = next(i for i, d in enumerate(found) if d["type"] == ENDED)
    nobody = {"adverts": [], "masked_inputs": [], "consistencies": [], "unmasks": [], "unmasked": False}
    found.append({**found[at], "body": {**found[at]["body"], **nobody, "dropouts": dict.fromkeys(SITES, "advert")}})
    del found[at : at + 2]
    signed_there(history, found)


@pytest.mark.parametrize("name", lie)
def test_a_lie_is_refused_by_its_check(name, monkeypatch):
    check_lie(lie[name], monkeypatch)
