"""The audit of the links to removable noise: who showed what is the sites' to say, and what fits their adverts counts.

As in ``test_replay.py``, each lie names the words with which it is refused, and the checks without which it would pass.
"""

import json
from typing import Any

import pytest
from support.ledger.ledger_forger import (
    ENDED,
    SITES,
    Draft,
    Lies,
    check_lie,
    noisy_story,
    resealed,
    resigned,
    statement_of,
    story,
    upto,
)
from support.ledger.ledger_history import History

from grandrounds.common.crypto.identity import Identity
from grandrounds.common.ledger.replay import VerifiedLedger

STRANGER = Identity.generate()
lie = Lies()


def change(history: History, body: Draft, site: str, **changes: Any) -> None:
    """The site's last answer as it might have signed it otherwise, or as another signed it in its name."""
    at = body["unmasks"].index(statement_of(body, "unmasks", site))
    body["unmasks"][at] = resigned(history, body["unmasks"][at], **changes)


@lie("unmasks are out of order", "out of order", of=story, until=(ENDED, 6))
def links_that_are_out_of_order(history, found):
    found[-1]["body"]["unmasks"].reverse()


@lie("unmasks are out of order", "out of order", of=story, until=(ENDED, 6))
def a_link_that_is_shown_twice(history, found):
    found[-1]["body"]["unmasks"].append(found[-1]["body"]["unmasks"][-1])


@lie("a message of site-1 for attempt 1, in attempt 6", "verify_sender", of=story, until=(ENDED, 6))
def a_link_of_another_attempt(history, found):
    found[-1]["body"]["unmasks"][0] = statement_of(upto(history, ENDED, 1)[-1]["body"], "unmasks", "site-1")


@lie("does not verify", "verify_sender", of=story, until=(ENDED, 6))
def a_link_that_its_site_did_not_sign(history, found):
    change(history, found[-1]["body"], "site-4", by=STRANGER, noise_link="ab" * 32)


@lie("a message of site-1 for attempt 3, in attempt 3", "verify_sender", of=story, until=(ENDED, 3))
def a_link_of_a_site_that_signed_no_view(history, found):
    given = statement_of(upto(history, ENDED, 1)[-1]["body"], "unmasks", "site-1")
    found[-1]["body"]["unmasks"] = [resigned(history, given, context={"attempt": 3})]


@pytest.mark.parametrize("name", lie)
def test_a_lie_is_refused_by_its_check(name, monkeypatch):
    check_lie(lie[name], monkeypatch)


def shown_where(site: str, link: str) -> tuple[str, ...]:
    """Whose links lead to their adverts in the third attempt, where ``site`` has signed this one."""
    found = upto(noisy_story(), ENDED, 3)
    change(noisy_story(), found[-1]["body"], site, noise_link=link)
    return VerifiedLedger.of(resealed(noisy_story(), found)).attempts[-1].shown


def test_a_link_that_does_not_lead_to_its_site_s_advert_counts_as_not_shown() -> None:
    first, third = (upto(noisy_story(), ENDED, attempt)[-1]["body"] for attempt in (1, 3))

    def said(body: Draft, site: str, kind: str = "unmasks") -> Draft:
        return json.loads(statement_of(body, kind, site)["header"])["body"]

    without_2 = tuple(site for site in SITES if site != "site-2")
    # Where four last, nothing may go, and there is nothing to show.
    assert [attempt.shown for attempt in noisy_story().verified.attempts] == [SITES, (), SITES]
    assert shown_where("site-2", said(third, "site-2")["noise_link"]) == SITES
    wrong = [
        said(third, "site-3")["noise_link"],
        said(first, "site-2")["noise_link"],
        said(third, "site-2", "adverts")["noise_end"],
        "ab" * 32,
    ]
    for link in wrong:
        assert shown_where("site-2", link) == without_2
