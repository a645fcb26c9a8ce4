"""The server and its accomplices lie to have noise taken off a sum: of what must be there they know nothing.

Six sites, of which four must answer and the last is an accomplice; layers come off where five and where six last. Each
attack ends with a sum of honest sites' inputs that the opponent has bare, and with how much of the noise in it the
opponent does not know, over what is claimed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from support.secagg.cohort import Attempt, Cohort
from support.secagg.lacking import (
    AnswersTwice,
    CountsDoubles,
    GivesBothShares,
    KeepsItsSecrets,
    ShowsOneLinkTooMany,
    ShowsTheLinkOfThoseWhoShared,
    TakesAnyView,
    UnmasksUnsigned,
)
from support.secagg.opponent import Opponent

from grandrounds.client.worker import attempt as client_secagg
from grandrounds.client.worker.attempt import ClientAttempt
from grandrounds.common.errors import ProtocolError
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import Advert, Unmask
from grandrounds.common.secagg import keys
from grandrounds.common.secagg import noise_chain as chain
from grandrounds.server.rounds import attempt as server_secagg

ACCOMPLICE, LIAR = "site-6", "site-2"
Attack = Callable[[type[ClientAttempt]], float]


def six_sites(machine: type[ClientAttempt] = ClientAttempt) -> Cohort:
    return Cohort(sites=6, machine=machine, claimed=1000)


def with_inputs(cohort: Cohort, *, serial: int = 1) -> Opponent:
    opponent = Opponent(cohort, [ACCOMPLICE], serial=serial)
    opponent.collect_shares()
    opponent.collect_inputs()
    return opponent


def called(numbers: str) -> tuple[str, ...]:
    return tuple(f"site-{number}" for number in numbers)


def answered(opponent: Opponent, survivors: str, by: str = "") -> None:
    """``by`` whom it is given, or all survivors: they sign who has survived, and answer for it."""
    u3, signers = called(survivors), called(by or survivors)
    signatures = opponent.sign(signers, u3)
    for name in signers:
        if name in opponent.honest:
            opponent.unmask(name, u3, signatures)


def left_in(opponent: Opponent, numbers: str) -> float:
    """The noise left in the sum of these honest sites, which the opponent does have."""
    sites = called(numbers)
    assert opponent.loot(*sites) == opponent.truth(*sites)
    return opponent.noise_left(*sites)


# --- attacks ----------------------------------------------------------------------------------------------------------


def all_last(machine: type[ClientAttempt]) -> float:
    """Nobody lies."""
    opponent = with_inputs(six_sites(machine))
    answered(opponent, "123456")
    return left_in(opponent, "12345")


def one_is_said_to_be_lost(machine: type[ClientAttempt]) -> float:
    """The server has every input."""
    opponent = with_inputs(six_sites(machine))
    answered(opponent, "12346")
    return left_in(opponent, "1234")


def two_are_said_to_be_lost(machine: type[ClientAttempt]) -> float:
    opponent = with_inputs(six_sites(machine))
    answered(opponent, "1236")
    return left_in(opponent, "123")


def a_lost_one_is_said_to_last(machine: type[ClientAttempt]) -> float:
    """The sum is to be that of the others, whom the lie had show more."""
    opponent = with_inputs(six_sites(machine))
    answered(opponent, "123456", by="12346")
    return left_in(opponent, "1234")


def split_survivors(machine: type[ClientAttempt], signatures: str = "its own") -> float:
    """Sites are told of different survivors: three are left together, two of whom were told that five had lasted."""
    opponent = with_inputs(six_sites(machine))
    told = {"1": "1236", "2": "12356", "3": "12346", "4": "12346", "5": "12356"}
    signed = {number: opponent.sign(called(number), called(u3))[0] for number, u3 in told.items()}
    for number, u3 in told.items():
        match signatures:
            case "its own":
                shown = [signed[number]]
            case "its own, four times":
                shown = [signed[number]] * 4
            case _:
                others = signed | {"6": opponent.sign([ACCOMPLICE], called(u3))[0]}
                shown = [others[survivor] for survivor in u3]
        opponent.unmask(f"site-{number}", called(u3), shown)
    return left_in(opponent, "123")


def split_survivors_with_one_signature_for_four(machine: type[ClientAttempt]) -> float:
    return split_survivors(machine, "its own, four times")


def split_survivors_with_signatures_on_other_views(machine: type[ClientAttempt]) -> float:
    return split_survivors(machine, "those of its survivors")


def two_views_are_answered(machine: type[ClientAttempt]) -> float:
    """All are said to last, and then three of the honest ones and the accomplice: the sum is of these three."""
    opponent = with_inputs(six_sites(machine))
    answered(opponent, "123456")
    answered(opponent, "1236")
    return left_in(opponent, "123")


def few_last_in_the_retry(machine: type[ClientAttempt]) -> float:
    """All show what may go in an attempt that the server then calls failed; in the retry four are said to last."""
    cohort = six_sites(machine)
    first, retry = with_inputs(cohort), with_inputs(cohort, serial=2)
    answered(first, "123456")
    answered(retry, "1236")
    for site in retry.honest:
        retry.shown[site] |= first.shown[site]
    return left_in(retry, "123")


# --- with and without the check ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [all_last, one_is_said_to_be_lost, two_are_said_to_be_lost, few_last_in_the_retry])
def test_what_the_opponent_does_not_know_of_the_noise_is_all_that_is_claimed(attack: Attack) -> None:
    assert 1 <= attack(ClientAttempt) < 1.01


@pytest.mark.parametrize(
    ("attack", "lacking", "left", "complaint"),
    [
        (split_survivors, UnmasksUnsigned, 1 / 3 + 2 / 4, "U4 has 1 sites where 4 are needed"),
        (split_survivors_with_one_signature_for_four, CountsDoubles, 1 / 3 + 2 / 4, "each site once"),
        (split_survivors_with_signatures_on_other_views, TakesAnyView, 1 / 3 + 2 / 4, "sites signed different views"),
        (two_views_are_answered, AnswersTwice, 3 / 5, "asked to SIGN_SURVIVORS when OVER was due"),
    ],
)
def test_a_check_stands_between_the_opponent_and_noise_that_is_needed(
    attack: Attack, lacking: type[ClientAttempt], left: float, complaint: str
) -> None:
    assert attack(lacking) == pytest.approx(left, rel=0.01)
    with pytest.raises(ProtocolError, match=complaint):
        attack(ClientAttempt)


@pytest.mark.parametrize(
    ("attack", "lacking", "left"),
    [
        (one_is_said_to_be_lost, ShowsOneLinkTooMany, 4 / 5),
        (two_are_said_to_be_lost, ShowsTheLinkOfThoseWhoShared, 3 / 5),
        (few_last_in_the_retry, KeepsItsSecrets, 3 / 5),
    ],
)
def test_a_site_that_shows_more_than_it_may_leaves_less_than_is_claimed(
    attack: Attack, lacking: type[ClientAttempt], left: float
) -> None:
    assert attack(lacking) == pytest.approx(left, rel=0.01)


def test_links_for_more_sites_than_sent_their_inputs_open_no_sum() -> None:
    """The masks with who is said to have lasted remain: of it all give seeds, and nobody its mask key."""
    assert a_lost_one_is_said_to_last(GivesBothShares) == pytest.approx(4 / 5, rel=0.01)
    with pytest.raises(LookupError):
        a_lost_one_is_said_to_last(ClientAttempt)


def test_links_that_were_shown_in_an_attempt_that_then_failed_unmask_nothing() -> None:
    opponent = with_inputs(six_sites())
    u3 = called("123456")
    signatures = opponent.sign(u3, u3)
    for name in called("12"):
        opponent.unmask(name, u3, signatures)
    with pytest.raises(LookupError, match="3 shares"):
        opponent.loot(*opponent.honest)


def test_a_site_shows_a_link_once_and_keeps_none() -> None:
    opponent = with_inputs(six_sites())
    u3 = called("123456")
    signatures = opponent.sign(u3, u3)
    opponent.unmask(LIAR, u3, signatures)
    with pytest.raises(ProtocolError, match="asked to UNMASK when OVER was due"):
        opponent.unmask(LIAR, u3, signatures)
    assert opponent.clients[LIAR]._links == opponent.clients[LIAR].layer_keys == {}


# --- the chain --------------------------------------------------------------------------------------------------------

Chain = tuple[dict[int, bytes], dict[int, bytes]]


def links_and_keys(links: dict[int, bytes], key_of: dict[int, int], bound_to: bytes) -> Chain:
    """With the key of the layer at each level from the link of the level that ``key_of`` names."""
    label = {level: chain.LAYER_LABEL + bound_to + level.to_bytes(4, "little") for level in key_of}
    return links, {level: keys.derive(links[source], label[level]) for level, source in key_of.items()}


def upwards(link: bytes, levels: Sequence[int], **context: Any) -> Chain:
    """Each link from the one below it: the public end is the secret."""
    bound_to, links = keys.context(**context), {levels[0]: link}
    for below, level in pairwise(levels):
        links[level] = keys.derive(links[below], chain.LINK_LABEL + bound_to + level.to_bytes(4, "little"))
    return links_and_keys(links, {level: level for level in levels[1:]}, bound_to)


def one_level_off(link: bytes, levels: Sequence[int], **context: Any) -> Chain:
    """Each layer's key from the link below it."""
    links, _ = chain.noise_chain(link, levels, **context)
    return links_and_keys(links, {level: below for below, level in pairwise(levels)}, keys.context(**context))


@pytest.mark.parametrize(("broken", "left"), [(upwards, 3 / 5), (one_level_off, 3 / 4)])
def test_a_chain_that_runs_otherwise_gives_layers_away_before_they_may_go(
    broken: Callable[..., Chain], left: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_secagg, "noise_chain", broken)
    assert two_are_said_to_be_lost(ClientAttempt) == pytest.approx(left, rel=0.01)


# --- sites that lie about their links ---------------------------------------------------------------------------------


@dataclass
class Links:
    """What a liar has when all six last, and it is asked to show the link of level 6."""

    due: bytes
    lower: bytes
    end: bytes
    peer_s: bytes
    earlier: bytes


def asked_to_unmask() -> tuple[Attempt, Links]:
    cohort = six_sites()
    first, attempt = cohort.attempt().until("unmask"), cohort.attempt(2).until("unmask")
    own, peer, earlier = (
        client._links for client in (attempt.clients[LIAR], attempt.clients["site-3"], first.clients[LIAR])
    )
    return attempt, Links(due=own[6], lower=own[5], end=own[4], peer_s=peer[6], earlier=earlier[6])


def ended(attempt: Attempt, link: bytes) -> Attempt:
    """The attempt, in which the liar shows ``link``."""
    for site, message in attempt.server.messages().items():
        answer = attempt.answer(site, message)
        if site == LIAR:
            payload = bytes(Envelope.parse(answer).payload[:])
            said = Unmask.model_construct(noise_link=link.hex())
            answer = attempt.cohort.site_says(site, said, payload, attempt=2)
        attempt.server.receive(site, answer)
    attempt.server.advance()
    return attempt


def test_who_shows_another_link_than_is_due_keeps_its_noise_and_nobody_else_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, links = asked_to_unmask()
    wrong = {
        "of a lower level": links.lower,
        "its public end": links.end,
        "another site's": links.peer_s,
        "an earlier attempt's": links.earlier,
        "nothing's": bytes(32),
        "one byte too short": links.due[:-1],
    }
    assert ended(asked.fork(), links.due).exact
    asked.unshown = {LIAR}
    for what, link in wrong.items():
        attempt = ended(asked.fork(), link)
        assert attempt.server.done and attempt.exact, what
        assert attempt.server.dropouts == ({LIAR: "unmask"} if len(link) < 32 else {}), what
    monkeypatch.setattr(server_secagg, "shown_layer_keys", lambda *args, end, link, **fields: {})
    assert not ended(asked.fork(), links.lower).exact, "the others' layers are taken off"


def as_if_its_own(cohort: Cohort) -> Attempt:
    """The accomplice advertises the end of an honest site's chain, and shows the link that this one has shown."""
    attempt = cohort.attempt()

    def copied(site: str, exchange: str, answer: bytes) -> bytes:
        if site != ACCOMPLICE or exchange not in ("advert", "unmask"):
            said[exchange] = answer
            return answer
        envelope, honest = Envelope.parse(answer), Envelope.parse(said[exchange])
        if exchange == "advert":
            end = Advert.of(honest).noise_end
            own = cohort.site_says(site, Advert.of(envelope).model_copy(update={"noise_end": end}))
            attempt.clients[site]._own_advert = own
            return own
        return cohort.site_says(site, Unmask.of(honest), bytes(envelope.payload[:]))

    said: dict[str, bytes] = {}
    while not attempt.server.done:
        attempt.exchange(tamper=copied)
    attempt.unshown = {ACCOMPLICE}
    return attempt


def test_a_copied_link_takes_nothing_off_whose_ever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert as_if_its_own(six_sites()).exact
    # If a chain were bound to no site, the honest one's layers would go twice.
    monkeypatch.setattr(chain, "context", lambda manifest, attempt, sender: bytes(8))
    assert not as_if_its_own(six_sites()).exact
