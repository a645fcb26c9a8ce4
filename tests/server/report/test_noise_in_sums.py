"""What the report says of the noise in a sum: what its sites kept, by what they signed.

Five sites, of which four must answer and one may be corrupt: where all last, each keeps a share of what four need, and
who shows nothing a share of what three need.
"""

import math
from collections.abc import Callable

import pytest
from support.ledger.ledger_forger import ENDED, Draft, noisy_story, resealed, resigned, statement_of, upto

from grandrounds.common.ledger.replay import VerifiedLedger
from grandrounds.server.report.report import Report, _noise_in_sum

SITE = "site-1"


def said_of(verified: VerifiedLedger) -> list[Report | None]:
    return [_noise_in_sum(verified, attempt) for attempt in verified.attempts]


def test_the_noise_in_each_sum_is_what_its_sites_kept() -> None:
    claimed = 1.0
    for said, last in zip(said_of(noisy_story().verified), (5, 4, 5), strict=True):
        assert said is not None and said["sites_that_kept_theirs"] == []
        assert said["over_claimed"] == pytest.approx(math.sqrt(last / (last - 1)), rel=0.01)
        assert said["noise_multiplier"] == pytest.approx(claimed * said["over_claimed"])


def lost_at_consistency(body: Draft) -> None:
    for kind in ("consistencies", "unmasks"):
        body[kind].remove(statement_of(body, kind, SITE))
    body["dropouts"] = {SITE: "consistency"}


def lost_at_unmask(body: Draft) -> None:
    body["unmasks"].remove(statement_of(body, "unmasks", SITE))
    body["dropouts"] = {SITE: "unmask"}


def with_a_link_that_leads_nowhere(body: Draft) -> None:
    at = body["unmasks"].index(statement_of(body, "unmasks", SITE))
    body["unmasks"][at] = resigned(noisy_story(), body["unmasks"][at], noise_link="ab" * 32)


@pytest.mark.parametrize("change", [lost_at_consistency, lost_at_unmask, with_a_link_that_leads_nowhere])
def test_a_survivor_who_shows_nothing_that_fits_has_all_its_noise_in_the_sum(change: Callable[[Draft], None]) -> None:
    found = upto(noisy_story(), ENDED, 3)
    change(found[-1]["body"])
    *_, said = said_of(VerifiedLedger.of(resealed(noisy_story(), found)))
    assert said is not None and said["sites_that_kept_theirs"] == [SITE]
    assert said["over_claimed"] == pytest.approx(math.sqrt(4 / 4 + 1 / 3), rel=0.01)


def test_nothing_is_said_of_an_attempt_that_was_not_unmasked() -> None:
    found = upto(noisy_story(), ENDED, 3)
    body = found[-1]["body"]
    for site in (SITE, "site-3"):
        body["unmasks"].remove(statement_of(body, "unmasks", site))
    body |= {"unmasked": False, "dropouts": dict.fromkeys((SITE, "site-3"), "unmask")}
    *_, said = said_of(VerifiedLedger.of(resealed(noisy_story(), found)))
    assert said is None
