"""Whoever drops out, and whenever: the sum of those that remain is exact, or the attempt aborts with a reason.

Exact is the sum of the updates with those layers of noise that are to stay: all of a site's that did not answer to the
end, and of the others' those for more sites than remain.

The tree of all attempts is walked exchange by exchange: what a site answers does not depend on who falls silent beside
it, so the answers of a cohort that got this far are computed once, and every subset of them is given to a server.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.secagg.cohort import EXCHANGES, Attempt, Cohort, Updates

from grandrounds.common.errors import ProtocolError
from grandrounds.common.secagg.masks import add_masks
from grandrounds.common.secagg.noise_chain import shown_layer_keys
from grandrounds.common.secagg.parameters import SecaggParameters
from grandrounds.server.rounds import attempt as server_secagg

# Every cohort of at most five sites with every threshold that 2t > n + c allows for some c >= 1.
SMALL = [(3, 3), (4, 3), (4, 4), (5, 4), (5, 5)]
# How an answer can fail to arrive: (the good answer) -> what arrives before the exchange is closed.
Loss = Callable[[bytes], list[bytes]]
LOSSES: dict[str, Loss] = {
    "silent or late": lambda answer: [],
    "cut short": lambda answer: [answer[:-1]],
    "altered, then as it was": lambda answer: [answer[:-1] + bytes([answer[-1] ^ 1]), answer],
}


def subsets(sites: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return itertools.chain.from_iterable(itertools.combinations(sites, size) for size in range(len(sites) + 1))


def explore(attempt: Attempt) -> Iterator[Attempt]:
    """Every end of an attempt, whoever is lost from here on and however."""
    if attempt.server.done or attempt.server.aborted:
        yield attempt
        return
    exchange = attempt.server.exchange
    answers = {site: attempt.answer(site, message) for site, message in attempt.server.messages().items()}
    for lost in subsets(tuple(answers)):
        branches = [close_exchange(attempt.fork(), answers, lost, loss) for loss in LOSSES.values()]
        for branch in branches:
            assert branch.server.dropouts == attempt.server.dropouts | dict.fromkeys(lost, exchange)
            assert branch.server.reasons.keys() == branch.server.dropouts.keys()
            assert branch.server.aborted == branches[0].server.aborted
            assert branch.server._groups == branches[0].server._groups
        # However they were lost, the server is where it is: the tree goes on from one of them.
        yield from explore(branches[0])


def close_exchange(attempt: Attempt, answers: Mapping[str, bytes], lost: Sequence[str], loss: Loss) -> Attempt:
    """Take the answers, but those of ``lost`` in the way of ``loss``; what was lost arrives when it is too late."""
    for site, answer in answers.items():
        for wire in loss(answer) if site in lost else [answer]:
            attempt.server.receive(site, wire)
    attempt.server.advance()
    for site in lost:
        attempt.server.receive(site, answers[site])
    return attempt


def check_end(attempt: Attempt) -> None:
    """Exact over exactly those whose masked input arrived, or aborted because too few answered."""
    server, parameters = attempt.server, attempt.cohort.parameters
    left = len(server._begin.invited)
    for exchange in EXCHANGES:
        left -= sum(at == exchange for at in server.dropouts.values())
        if left < parameters.threshold:
            assert server.aborted == f"{left} sites answered with {exchange}, {parameters.threshold} are needed"
            assert not server.done
            return
    assert server.aborted is None
    lost = {site for site, at in server.dropouts.items() if at in EXCHANGES[:3]}
    assert server.survivors == tuple(site for site in server._begin.invited if site not in lost)
    assert attempt.exact


@pytest.mark.parametrize(("sites", "threshold"), SMALL)
def test_every_dropout_at_every_exchange_of_a_small_cohort_ends_exact_or_aborts(sites: int, threshold: int) -> None:
    cohort = Cohort(sites=sites, threshold=threshold, claimed=1000)
    ends = set()
    for invited in subsets(cohort.names):
        if len(invited) < threshold:
            with pytest.raises(ProtocolError, match="the invitation"):
                cohort.client("site-1", cohort.server_says(cohort.begin(invited=invited)))
            continue
        for end in explore(cohort.attempt(invited=invited)):
            check_end(end)
            ends.add((invited, *sorted(end.server.dropouts.items())))
    assert len(ends) == number_of_ends(sites, threshold)


def number_of_ends(sites: int, threshold: int) -> int:
    """Counted without the machines: each site is not invited, lasts, or falls at one exchange before the abort."""
    count = 0
    for last in itertools.product(range(7), repeat=sites):  # 0: not invited, 6: to the end
        left = [sum(stage > closed for stage in last) for closed in range(6)]
        if left[0] < threshold:
            continue
        aborted = next((stage for stage in range(1, 6) if left[stage] < threshold), None)
        # After an abort nobody falls: of such patterns the one in which the others last is counted.
        count += aborted is None or all(stage <= aborted or stage == 6 for stage in last)
    return count


@pytest.mark.parametrize("taken_off", [(), (5,), (5, 6)])
def test_the_walk_finds_a_server_that_takes_other_layers_off_than_may_go(
    taken_off: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six sites and threshold four: where five of them last, it is the layer of five and no other."""

    def layers_of(parameters: SecaggParameters, *, survivors: Sequence[str], **fields: Any) -> dict[int, bytes]:
        whole = shown_layer_keys(parameters, survivors=survivors, **fields)
        return {level: whole.get(level, bytes(32)) for level in taken_off}

    cohort = Cohort(sites=6, claimed=1000)
    assert cohort.run(drops={"site-2": "masked-input"}).exact
    monkeypatch.setattr(server_secagg, "shown_layer_keys", layers_of)
    assert cohort.run(drops={"site-2": "masked-input"}).exact == (taken_off == (5,))


@pytest.mark.parametrize("forgotten", ["minus", "plus"])
def test_the_walk_finds_a_server_that_forgets_a_mask(forgotten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(vector: np.ndarray, **masks: list[bytes]) -> None:
        add_masks(vector, **(masks | {forgotten: masks[forgotten][1:]}))

    monkeypatch.setattr(server_secagg, "add_masks", forgetful)
    assert any(end.server.done and not end.exact for end in explore(Cohort(sites=4).attempt()))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_dropouts_of_up_to_twenty_sites_end_exact_or_abort(data: st.DataObject) -> None:
    sites = data.draw(st.integers(3, 20))
    threshold = data.draw(st.integers((sites + 1) // 2 + 1, sites))
    bits: Any = data.draw(st.sampled_from([16, 32]))
    cohort = Cohort(sites=sites, threshold=threshold, modulus_bits=bits, dimension=3, claimed=2000)
    updates: Updates = {
        name: np.array(data.draw(st.lists(st.integers(-1600, 1600), min_size=3, max_size=3))) for name in cohort.names
    }
    names = data.draw(st.lists(st.sampled_from(cohort.names), max_size=sites - threshold + 1, unique=True))
    drops = {name: data.draw(st.sampled_from(EXCHANGES)) for name in names}
    loss = LOSSES[data.draw(st.sampled_from(list(LOSSES)))]
    attempt = cohort.attempt(updates=updates)
    while not (attempt.server.done or attempt.server.aborted):
        lost = [site for site, at in drops.items() if at == attempt.server.exchange]
        answers = {site: attempt.answer(site, message) for site, message in attempt.server.messages().items()}
        close_exchange(attempt, answers, lost, loss)
    check_end(attempt)
