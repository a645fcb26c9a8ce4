"""A search over all views that a server can show: no leak with every check, and one as soon as a needed one is gone.

Checks that a later one implies are made early to spare keys and budget: without them alone nothing leaks, and without
both something does.
"""

from typing import Any

import pytest
from support.secagg.symbolic import Checks, Game, View, find_leak


def all_views(game: Game, variants: int = 1) -> dict[int, list[View]]:
    return {site: list(game.views(site, variants=variants)) for site in game.honest}


def survivor_views(game: Game) -> dict[int, list[View]]:
    """Only U3 differs between sites: enough where all that matters is who is said to have survived."""
    everyone = frozenset(range(game.sites))
    return {
        site: [view for view in game.views(site) if view.u1 == view.u2 == everyone and view.u3 is not None]
        for site in game.honest
    }


@pytest.mark.parametrize(
    ("sites", "corrupt_sites", "threshold", "transcripts"),
    [(3, 1, 3, 2), (3, 2, 3, 2), (4, 1, 3, 2), (4, 3, 4, 2), (5, 2, 4, 2), (5, 1, 4, 1)],
)
def test_no_views_of_a_small_cohort_leak(sites: int, corrupt_sites: int, threshold: int, transcripts: int) -> None:
    game = Game(sites, corrupt_sites, threshold)
    assert find_leak(game, all_views(game, transcripts)) is None


@pytest.mark.parametrize(
    "removed",
    [
        {"u2_size": False},
        {"u1_size": False, "u2_size": False},
        {"either_or": False},
        {"u3_size": False, "signed_by_t": False},
    ],
    ids=lambda removed: " and ".join(removed),
)
def test_a_check_that_is_gone_leaks(removed: dict[str, Any]) -> None:
    game = Game(4, 1, 3, Checks(**removed))
    leak = find_leak(game, all_views(game))
    assert leak is not None
    assert min(map(len, game.learned(leak))) == 1


@pytest.mark.parametrize("checks", [Checks(signed_by_t=False), Checks(signed=frozenset({"transcript", "u2"}))])
def test_without_t_signatures_on_the_survivors_a_split_leaks_a_sum_with_less_noise_than_is_claimed(
    checks: Checks,
) -> None:
    game = Game(6, 1, 4, checks)
    leak = find_leak(game, survivor_views(game))
    assert leak is not None
    (group,) = game.learned(leak)
    assert len(group) == 3 == game.threshold - game.corrupt_sites and game.noise_left(leak, group) < 1
    assert not Game(6, 1, 4).leaks(leak)


@pytest.mark.parametrize("checks", [Checks(signed_by_t=False), Checks(signed=frozenset({"transcript", "u2"}))])
def test_without_t_signatures_on_the_survivors_another_split_leaks_a_sum_of_too_few(checks: Checks) -> None:
    everyone = frozenset(range(6))
    left_out = {0: {4, 5}, 1: {3, 4}, 2: {1, 3}, 3: {1, 4}, 4: {1, 3}}
    split = {site: View(transcript=(0, everyone), u2=everyone, u3=everyone - out) for site, out in left_out.items()}
    game = Game(6, 1, 4, checks)
    assert game.learned(split) == [{0, 2}] and game.leaks(split)
    assert not Game(6, 1, 4).leaks(split)


@pytest.mark.parametrize("habit", [Checks(shows_by="u2"), Checks(shows_beyond=1)])
@pytest.mark.parametrize(("sites", "corrupt_sites", "threshold"), [(4, 1, 3), (5, 2, 4)])
def test_a_site_that_shows_more_of_its_noise_than_its_survivors_allow_leaks(
    sites: int, corrupt_sites: int, threshold: int, habit: Checks
) -> None:
    game = Game(sites, corrupt_sites, threshold, habit)
    leak = find_leak(game, survivor_views(game))
    assert leak is not None
    (group,) = game.learned(leak)
    assert len(group) >= threshold - corrupt_sites and game.noise_left(leak, group) < 1
    assert not Game(sites, corrupt_sites, threshold).leaks(leak)


@pytest.mark.parametrize(("sites", "corrupt_sites", "threshold"), [(4, 2, 3), (3, 1, 2)])
def test_a_threshold_that_is_too_low_for_the_corrupt_sites_leaks(
    sites: int, corrupt_sites: int, threshold: int
) -> None:
    game = Game(sites, corrupt_sites, threshold)
    assert 2 * threshold <= sites + corrupt_sites
    assert find_leak(game, all_views(game)) is not None


@pytest.mark.parametrize(
    "implied",
    [
        {"u1_size": False},
        {"u3_size": False},
        {"ciphertexts_open": False},
        {"signed": frozenset({"u2", "u3"})},
        {"signed": frozenset({"transcript", "u3"})},
    ],
    ids=["u1-size", "u3-size", "ciphertexts-open", "transcript-unsigned", "u2-unsigned"],
)
def test_a_check_that_others_imply_leaks_nothing_by_itself(implied: dict[str, Any]) -> None:
    game = Game(4, 1, 3, Checks(**implied))
    assert find_leak(game, all_views(game, 1 if "u1_size" in implied or "u3_size" in implied else 2)) is None


def test_an_honest_server_learns_the_sum_and_nothing_else() -> None:
    game = Game(5, 1, 4)
    everyone = frozenset(range(5))
    for dropped in (None, 0, 3):
        u3 = everyone - {dropped}
        shown = {
            site: View(transcript=(0, everyone), u2=everyone, u3=None if site == dropped else u3)
            for site in game.honest
        }
        (group,) = game.learned(shown)
        assert group == u3 & set(game.honest)
        assert game.noise_left(shown, group) == 1
