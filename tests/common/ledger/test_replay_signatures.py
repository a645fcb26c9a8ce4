"""The audit of what is agreed: rounds, the end, manifests and who signed them; what does not fit is refused.

As in ``test_audit.py``, each lie names the words with which it is refused, and the checks without which it would pass.
"""

import pytest
from support.ledger.ledger_forger import (
    BEGUN,
    CLOSED,
    ENDED,
    Draft,
    Lies,
    check_lie,
    next_begun,
    resigned,
    story,
    succeeded_story,
    whole_story,
)
from support.ledger.ledger_history import History

from grandrounds.common.crypto.identity import Identity
from grandrounds.common.ledger.chain import EMPTY_LEDGER_HEAD
from grandrounds.common.study.manifest import Countersignature

SITES = tuple(f"site-{i}" for i in range(1, 6))
STRANGER = Identity.generate()
lie = Lies()


# --- rounds -----------------------------------------------------------------------------------------------------------


def closing(attempt: int, round_: int) -> Draft:
    hashes = dict.fromkeys(("sum_sha256", "adapter_sha256", "optimizer_sha256"), "ab" * 32)
    return {"attempt": attempt, "round": round_, **hashes}


@lie("has no attempt that was unmasked", of=story, until=(ENDED, 3))
def a_round_closes_without_an_unmasked_attempt(history, found):
    found.append({**found[-1], "type": CLOSED, "body": closing(3, 3)})


@lie("has no attempt that was unmasked", of=story, until=(BEGUN, 6))
def a_round_closes_while_its_attempt_runs(history, found):
    found.append({**found[-1], "type": CLOSED, "body": closing(6, 3)})


@lie("has no attempt that was unmasked", of=story, until=(CLOSED, 2))
def one_attempt_closes_two_rounds(history, found):
    found.append({**found[-1], "body": closing(2, 3)})


@lie("it averages rounds otherwise than the study", of=story, until=(CLOSED, 2))
def a_round_leaves_an_average_that_its_study_does_not(history, found):
    found[-1]["body"]["average_sha256"] = "ab" * 32


@lie("has no attempt that was unmasked", of=story, until=(CLOSED, 2))
def a_round_closes_twice(history, found):
    found.append(found[-1])


@lie("has no attempt that was unmasked", of=story)
def an_earlier_attempt_closes_the_round(history, found):
    found.append({**found[-1], "type": CLOSED, "body": closing(2, 3)})


# --- the end ----------------------------------------------------------------------------------------------------------


def study_closed(found: list[Draft]) -> int:
    return next(i for i, d in enumerate(found) if d["type"] == "study-closed")


@lie("not those that the sites told", "not those that the sites told", of=whole_story)
def charges_that_do_not_fit(history, found):
    del found[study_closed(found) + 1 :]
    found[-1]["body"]["charges"]["site-1"] = 0


@lie("lacks signatures of its sites", of=whole_story)
def a_study_that_closes_before_all_have_signed(history, found):
    found[:] = [found[0], {**found[study_closed(found)], "body": {"charges": {}, "files": {}}}]


@lie("the study is not closed", "the study is not closed", "signed another ledger", of=whole_story)
def a_closing_signature_before_the_end(history, found):
    del found[study_closed(found)]


@lie("site-1 signed another ledger", "signed another ledger", of=whole_story)
def closing_signatures_on_another_end(history, found):
    found[study_closed(found)]["body"]["files"]["report.json"] = "ab" * 32


@lie("site-5 signed before", "signed before", of=whole_story)
def a_closing_signature_that_stands_twice(history, found):
    found.append(found[-1])


@lie("does not verify", "verify_sender", of=whole_story)
def a_closing_signature_of_a_stranger(history, found):
    found[-1]["body"]["closed"] = resigned(history, found[-1]["body"]["closed"], by=STRANGER)


@lie("the study was closed before", of=whole_story)
def a_study_that_closes_twice(history, found):
    del found[study_closed(found) + 1 :]
    found.append(found[-1])


# --- manifests and those who signed them ------------------------------------------------------------------------------


def signature(history: History, site: str, by: Identity, **changes: str) -> Draft:
    fields = {"site": site, "manifest": history.manifest.sha256} | changes
    signed = Countersignature.of(by, **fields, ledger_length=0, ledger_head=EMPTY_LEDGER_HEAD, reservation=1)
    return {"countersignature": signed.model_dump()}


def countersigning(found: list[Draft], body: Draft) -> Draft:
    return {**found[0], "type": "countersignature", "body": body}


@lie("the key is not that of site-1", "the key is not", "signed before", "lacks signatures", of=story, until=(BEGUN, 1))
def a_countersignature_by_another_key(history, found):
    found[1]["body"] = signature(history, "site-1", STRANGER)


@lie("the key is not that of stranger", "the key is not", "signed before", of=story, until=(BEGUN, 1))
def a_countersignature_of_a_stranger(history, found):
    found.insert(1, countersigning(found, signature(history, "stranger", STRANGER)))


@lie("site-1 signed another manifest", "signed another manifest", of=story, until=(BEGUN, 1))
def a_countersignature_on_another_manifest(history, found):
    found[1]["body"] = signature(history, "site-1", history.identities["site-1"], manifest="ab" * 32)


@lie("does not verify", "verify", of=story, until=(BEGUN, 1))
def a_countersignature_that_was_not_made(history, found):
    found[1]["body"]["countersignature"]["signature"] = "00" * 64


@lie("site-1 signed before", "signed before", of=story, until=(BEGUN, 1))
def a_countersignature_that_stands_twice(history, found):
    found.insert(2, found[1])


@lie("attempts of this manifest have begun", "have begun", "signed before", of=story, until=(BEGUN, 1))
def a_countersignature_that_comes_too_late(history, found):
    found.insert(len(found), found[1])


@lie("lacks signatures of its sites", of=succeeded_story)
def a_successor_at_work_that_a_site_did_not_sign(history, found):
    found[:] = [
        d for d in found if d["body"].get("countersignature", {}).get("key") != history.manifest.site_keys["site-3"]
    ]
    found.append(next_begun(found))


@lie("was never agreed to", "was never agreed to", "after another ledger", of=succeeded_story, until=None)
def a_successor_of_a_manifest_that_was_not_agreed_to(history, found):
    del found[1]
    found[:] = [d for d in found if d["type"] in ("study", "countersignature")]


@lie("version 3 after 1", "check_successor", of=succeeded_story)
def a_successor_that_does_not_follow(history, found):
    at = [i for i, d in enumerate(found) if d["type"] == "study"][1]
    found[at]["body"]["manifest"]["version"] = 3
    del found[at + 1 :]


@lie("signed the manifest after another ledger", of=succeeded_story)
def a_successor_that_stands_before_attempts_which_it_hides(history, found):
    found[:] = [d for d in found if d["type"] in ("study", "countersignature")]


@lie("signed the manifest after another ledger", of=succeeded_story)
def a_successor_after_another_end_of_the_attempt_before_it(history, found):
    # One answer to the last exchange is all that differs: lost, or kept back.
    (ended,) = (d["body"] for d in found if d["type"] == ENDED)
    del ended["unmasks"][0]
    ended["dropouts"]["site-1"] = "unmask"


@lie("not signed by the study's server", of=story, until=(BEGUN, 1))
def an_entry_that_another_key_signed(history, found):
    history.servers[STRANGER.public_key] = STRANGER
    found[-1]["author"] = STRANGER.public_key


@pytest.mark.parametrize("name", lie)
def test_a_lie_is_refused_by_its_check(name, monkeypatch):
    check_lie(lie[name], monkeypatch)
