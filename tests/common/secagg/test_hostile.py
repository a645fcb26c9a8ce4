"""The server and its accomplices lie: without the check they have an update, with it they have nothing.

Each attack returns what the opponent has in the end and what it was after. What a lying Begin gains is in
``test_hostile_begin.py``.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from support.secagg.cohort import Cohort
from support.secagg.lacking import (
    AnswersTwice,
    CountsDoubles,
    GivesBothShares,
    TakesAnyAdvert,
    TakesAnyCiphertext,
    TakesAnyU1,
    TakesAnyU2,
    TakesAnyU3,
    TakesAnyView,
    UnmasksUnsigned,
)
from support.secagg.opponent import Opponent, surrounded

from grandrounds.client.worker.attempt import ClientAttempt
from grandrounds.common.crypto.identity import Identity
from grandrounds.common.errors import EnvelopeError, ProtocolError, StudyError
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import Advert
from grandrounds.common.secagg import keys
from grandrounds.common.secagg.encoding import residues
from grandrounds.common.secagg.parameters import SecaggParameters

VICTIM = "site-2"
ACCOMPLICE = "site-5"
Loot = tuple[list[int], list[int]]
Attack = Callable[[type[ClientAttempt]], Loot]


def five_sites(machine: type[ClientAttempt]) -> Opponent:
    """n = 5, t = 4, and the last site is an accomplice."""
    return Opponent(Cohort(sites=5, machine=machine), [ACCOMPLICE])


def all_unmask(opponent: Opponent, u3: tuple[str, ...] | None = None) -> None:
    """All sites of ``u3`` sign it and answer for it."""
    u3 = u3 or opponent.names
    signatures = opponent.sign(u3, u3)
    for name in u3:
        if name in opponent.honest:
            opponent.unmask(name, u3, signatures)


# --- attacks: what the opponent has in the end, and what that should be -----------------------------------------------


def swapped_keys(machine: type[ClientAttempt]) -> Loot:
    """The server shows the victim peers whose keys are all its own."""
    cohort = Cohort(machine=machine)
    puppets = {name: Identity.generate() for name in cohort.names if name != VICTIM}
    return surrounded(cohort, cohort.client(VICTIM, cohort.server_says(cohort.begin())), puppets)


def u2_of_one(machine: type[ClientAttempt]) -> Loot:
    """The victim is told that nobody else has shared: its input has no mask but its own, which the others open."""
    return _small_u2(machine, (VICTIM,), masked_with=[])


def u2_of_two(machine: type[ClientAttempt]) -> Loot:
    """The victim is told that it and the accomplice have shared."""
    return _small_u2(machine, (VICTIM, ACCOMPLICE), masked_with=[ACCOMPLICE])


def u2_with_a_double(machine: type[ClientAttempt]) -> Loot:
    """As before, but the accomplice stands for three."""
    return _small_u2(machine, (VICTIM, *[ACCOMPLICE] * 3), masked_with=[ACCOMPLICE] * 3)


def _small_u2(machine: type[ClientAttempt], u2: tuple[str, ...], *, masked_with: list[str]) -> Loot:
    opponent = five_sites(machine)
    opponent.collect_shares()
    opponent.collect_inputs(lambda name: u2 if name == VICTIM else opponent.names)
    signers = ("site-1", "site-3", "site-4", ACCOMPLICE)
    signatures = opponent.sign(signers, opponent.names)
    for name in signers[:3]:
        opponent.unmask(name, opponent.names, signatures)
    return opponent.loot(VICTIM, masked_with=masked_with), opponent.truth(VICTIM)


def survivors_of_two(machine: type[ClientAttempt]) -> Loot:
    """Every site is told that it and the victim alone are left: between them they open its seed and all other keys."""
    opponent = five_sites(machine)
    opponent.collect_shares()
    opponent.collect_inputs()
    for name in opponent.honest:
        u3 = opponent.cohort.parameters.in_order({name, VICTIM})
        opponent.unmask(name, u3, opponent.sign([name], u3))
    return opponent.loot(VICTIM), opponent.truth(VICTIM)


def split_survivors(machine: type[ClientAttempt], signatures: str = "its own") -> Loot:
    """Sites are told of different sets of t survivors, as the symbolic search found; two updates are left together."""
    opponent = Opponent(Cohort(sites=6, machine=machine), ["site-6"])
    opponent.collect_shares()
    opponent.collect_inputs()
    left_out = {1: "56", 2: "45", 3: "24", 4: "25", 5: "24"}
    u3 = {f"site-{n}": tuple(s for s in opponent.names if s[-1] not in out) for n, out in left_out.items()}
    signed = {name: opponent.sign([name], survivors)[0] for name, survivors in u3.items()}
    for name, survivors in u3.items():
        match signatures:
            case "its own":
                shown = [signed[name]]
            case "its own, four times":
                shown = [signed[name]] * 4
            case _:
                others = signed | {"site-6": opponent.sign(["site-6"], survivors)[0]}
                shown = [others[site] for site in survivors]
        opponent.unmask(name, survivors, shown)
    return opponent.loot("site-1", "site-3"), opponent.truth("site-1", "site-3")


def split_survivors_with_one_signature_for_four(machine: type[ClientAttempt]) -> Loot:
    return split_survivors(machine, "its own, four times")


def split_survivors_with_signatures_on_other_views(machine: type[ClientAttempt]) -> Loot:
    return split_survivors(machine, "those of its survivors")


def signed_twice(machine: type[ClientAttempt]) -> Loot:
    """All sites sign and answer for everyone as survivors, then for everyone but the victim."""
    opponent = five_sites(machine)
    opponent.collect_shares()
    opponent.collect_inputs()
    signers = ("site-1", "site-3", "site-4", ACCOMPLICE)
    for u3 in (opponent.names, signers):
        signatures = opponent.sign(signers, u3)
        for name in signers[:3]:
            opponent.unmask(name, u3, signatures)
    return opponent.loot(VICTIM), opponent.truth(VICTIM)


def masked_twice(machine: type[ClientAttempt]) -> Loot:
    """One set of masks over two updates: their difference is bare."""
    opponent = five_sites(machine)
    opponent.collect_shares()
    opponent.collect_inputs()
    first, step = opponent.inputs[VICTIM], np.arange(opponent.cohort.dimension)
    client = opponent.clients[VICTIM]
    client.accept(opponent.ciphertexts_for(VICTIM))
    wire = client.mask(residues(opponent.updates[VICTIM] + step, 32), 2)
    return (np.frombuffer(Envelope.parse(wire).payload[:], "<u4") - first).tolist(), step.tolist()


def said_to_have_dropped(machine: type[ClientAttempt]) -> Loot:
    """The victim's input arrived, and the server says that it did not."""
    opponent = five_sites(machine)
    opponent.collect_shares()
    opponent.collect_inputs()
    all_unmask(opponent, ("site-1", "site-3", "site-4", ACCOMPLICE))
    return opponent.loot(VICTIM), opponent.truth(VICTIM)


def both_shares(machine: type[ClientAttempt]) -> Loot:
    """An honest course of events, in which the server takes what it is given."""
    opponent = five_sites(machine)
    opponent.collect_shares()
    opponent.collect_inputs()
    all_unmask(opponent)
    return opponent.loot(VICTIM), opponent.truth(VICTIM)


def each_with_two_accomplices(machine: type[ClientAttempt]) -> Loot:
    """n = 4, t = 3, c = 2: each honest site and the accomplices are enough for a view of their own."""
    cohort = Cohort(sites=4, threshold=3, corrupt_sites=2, machine=machine)
    opponent = Opponent(cohort, ["site-3", "site-4"])
    opponent.collect_shares()
    opponent.collect_inputs()
    for name, u3 in ((VICTIM, opponent.names), ("site-1", ("site-1", "site-3", "site-4"))):
        opponent.unmask(name, u3, opponent.sign([name, "site-3", "site-4"], u3))
    return opponent.loot(VICTIM), opponent.truth(VICTIM)


def copied_keys(machine: type[ClientAttempt], alias: Callable[[str], str] = lambda key: key) -> Loot:
    """Accomplices on the victim's one side copy the keys of honest sites on its other: the masks cancel out."""
    victim, copies = "site-3", {"site-1": "site-4", "site-5": "site-2"}
    opponent = Opponent(Cohort(sites=5, corrupt_sites=2, machine=machine), list(copies))

    def copied(name: str, adverts: Mapping[str, Advert]) -> Advert:
        return adverts[name].model_copy(update={"mask_key": alias(adverts[copies[name]].mask_key)})

    opponent.collect_shares(copied)
    opponent.collect_inputs()
    all_unmask(opponent)
    return opponent.loot(victim, masked_with=[]), opponent.truth(victim)


# --- with and without the check ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "lacking", "complaint"),
    [
        (swapped_keys, TakesAnyAdvert, "does not verify"),
        (u2_of_one, TakesAnyU2, "U2 has 1 sites where 4 are needed"),
        (u2_of_two, TakesAnyU2, "U2 has 2 sites where 4 are needed"),
        (u2_with_a_double, CountsDoubles, "U2 is not in roster order, each site once"),
        (split_survivors, UnmasksUnsigned, "U4 has 1 sites where 4 are needed"),
        (split_survivors_with_one_signature_for_four, CountsDoubles, "U4 is not in roster order, each site once"),
        (split_survivors_with_signatures_on_other_views, TakesAnyView, "sites signed different views"),
        (signed_twice, AnswersTwice, "asked to SIGN_SURVIVORS when OVER was due"),
        (masked_twice, AnswersTwice, "asked to ACCEPT when SIGN_SURVIVORS was due"),
    ],
)
def test_a_check_stands_between_the_opponent_and_an_update(
    attack: Attack, lacking: type[ClientAttempt], complaint: str
) -> None:
    loot, truth = attack(lacking)
    assert loot == truth
    with pytest.raises((ProtocolError, EnvelopeError), match=complaint):
        attack(ClientAttempt)


def test_a_sum_of_one_needs_both_a_site_that_takes_any_survivors_and_one_that_unmasks_unsigned() -> None:
    class TakesAnyU3Unsigned(TakesAnyU3, UnmasksUnsigned):
        pass

    loot, truth = survivors_of_two(TakesAnyU3Unsigned)
    assert loot == truth
    for machine, complaint in ((UnmasksUnsigned, "U3 has 2 sites"), (TakesAnyU3, "U4 has 1 sites")):
        with pytest.raises(ProtocolError, match=complaint):
            survivors_of_two(machine)


@pytest.mark.parametrize("u1", [(VICTIM,), (VICTIM, ACCOMPLICE)])
def test_what_a_site_would_share_with_too_few_it_masks_with_nobody(u1: tuple[str, ...]) -> None:
    """Of t shares at most two would exist, and no U2 within such a U1 is large enough."""

    def shared_with(machine: type[ClientAttempt]) -> None:
        opponent = five_sites(machine)
        opponent.collect_shares(u1_for=lambda name: u1 if name == VICTIM else opponent.names)
        opponent.clients[VICTIM].accept(opponent.ciphertexts_for(VICTIM, u1))

    for machine, complaint in ((ClientAttempt, f"U1 has {len(u1)} sites"), (TakesAnyU1, f"U2 has {len(u1)} sites")):
        with pytest.raises(ProtocolError, match=complaint):
            shared_with(machine)


@pytest.mark.parametrize("attack", [both_shares, said_to_have_dropped])
def test_both_shares_of_a_site_are_its_update_and_one_share_is_not(attack: Attack) -> None:
    loot, truth = attack(GivesBothShares)
    assert loot == truth
    # Nothing is amiss for the sites, but of one secret the accomplice's share is all that is to be had.
    with pytest.raises(LookupError):
        attack(ClientAttempt)


def test_an_input_that_is_said_to_be_lost_keeps_its_own_mask_and_the_other_sum_is_exact() -> None:
    opponent = five_sites(ClientAttempt)
    opponent.collect_shares()
    opponent.collect_inputs()
    all_unmask(opponent, ("site-1", "site-3", "site-4", ACCOMPLICE))
    rest = ("site-1", "site-3", "site-4")
    assert opponent.loot(*rest) == opponent.truth(*rest)
    assert list(opponent.seed_shares[VICTIM]) == [opponent.cohort.parameters.point(ACCOMPLICE)]


def test_a_threshold_that_is_too_low_for_the_accomplices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StudyError, match="threshold 3 does not fit"):
        each_with_two_accomplices(ClientAttempt)
    monkeypatch.setattr(SecaggParameters, "__post_init__", lambda self: None)
    loot, truth = each_with_two_accomplices(ClientAttempt)
    assert loot == truth


# --- keys and ciphertexts ---------------------------------------------------------------------------------------------


def with_the_top_bit(key: str) -> str:
    """The same point once more: X25519 ignores the highest bit (RFC 7748, section 5)."""
    return (int.from_bytes(bytes.fromhex(key), "little") | 1 << 255).to_bytes(32, "little").hex()


@pytest.mark.parametrize(
    ("alias", "complaint"), [(lambda key: key, "occurs twice"), (with_the_top_bit, "is not canonical")]
)
def test_copied_keys_are_refused_and_would_cancel_nothing(
    alias: Callable[[str], str], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        copied_keys(ClientAttempt, alias)
    monkeypatch.setattr(keys, "check_public_keys", lambda public_keys: None)
    loot, truth = copied_keys(ClientAttempt, alias)
    assert loot != truth  # the names in the derivation are enough by themselves
    monkeypatch.setattr(keys, "named", lambda name: b"")
    loot, truth = copied_keys(ClientAttempt, alias)
    assert loot == truth


def test_a_low_order_key_is_refused_and_would_let_anyone_read_the_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 7748 computes zero with such a key, of whoever's secret; section 6.1 leaves it to the protocol to look."""
    one = "01" + "00" * 31

    def read_by_anyone() -> bytes:
        opponent = five_sites(ClientAttempt)
        opponent.collect_shares(lambda name, adverts: adverts[name].model_copy(update={"channel_key": one}))
        route: dict[str, Any] = {"transcript": opponent.transcript, "sender": VICTIM, "recipient": ACCOMPLICE}
        channel = keys.channel_key(bytes(32), one, **route)  # with any private key
        return keys.decrypt(channel, opponent.ciphertexts[VICTIM][ACCOMPLICE], **route)

    with pytest.raises(ProtocolError, match="low order"):
        read_by_anyone()
    monkeypatch.setattr(keys, "check_public_keys", lambda public_keys: None)
    with pytest.raises(ValueError, match="shared key"):
        read_by_anyone()  # the library looks too, but its error is no refusal
    agree = keys._agree
    monkeypatch.setattr(keys, "_agree", lambda own, peer: bytes(32) if peer == one else agree(own, peer))
    assert len(read_by_anyone()) == 66


def altered(opponent: Opponent) -> None:
    for recipient, sealed in opponent.ciphertexts[VICTIM].items():
        opponent.ciphertexts[VICTIM][recipient] = bytes([sealed[0] ^ 1]) + sealed[1:]


def swapped(opponent: Opponent) -> None:
    by_recipient = opponent.ciphertexts[VICTIM]
    by_recipient["site-1"], by_recipient["site-3"] = by_recipient["site-3"], by_recipient["site-1"]


def reflected(opponent: Opponent) -> None:
    opponent.ciphertexts[VICTIM]["site-3"] = opponent.ciphertexts["site-3"][VICTIM]


def of_an_old_attempt(opponent: Opponent) -> None:
    old = Opponent(opponent.cohort, [ACCOMPLICE])
    old.collect_shares()
    opponent.ciphertexts[VICTIM] = old.ciphertexts[VICTIM]


@pytest.mark.parametrize("lie", [altered, swapped, reflected, of_an_old_attempt])
def test_ciphertexts_that_do_not_open_are_refused_before_anyone_pays(lie: Callable[[Opponent], None]) -> None:
    """Taken as they come, they give no update away, but every site pays for a sum that nobody can unmask."""

    def paid_for(machine: type[ClientAttempt]) -> Opponent:
        opponent = five_sites(machine)
        opponent.collect_shares()
        lie(opponent)
        opponent.collect_inputs()
        return opponent

    with pytest.raises(ProtocolError, match=f"from {VICTIM} does not open"):
        paid_for(ClientAttempt)
    opponent = paid_for(TakesAnyCiphertext)
    assert set(opponent.inputs) == set(opponent.honest)
    all_unmask(opponent)
    try:
        loot = opponent.loot(*opponent.honest)
    except ProtocolError:
        return  # the shares are of no secret
    assert loot != opponent.truth(*opponent.honest)


def test_a_reflected_ciphertext_opens_for_nobody_but_its_recipient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends agree on one secret: only the names in the derivation tell the two directions apart."""

    def accept_own() -> dict[str, tuple[bytes, bytes]]:
        opponent = five_sites(ClientAttempt)
        opponent.collect_shares()
        for peer in opponent.names:
            if peer != VICTIM:
                opponent.ciphertexts[peer][VICTIM] = opponent.ciphertexts[VICTIM][peer]
        opponent.clients[VICTIM].accept(opponent.ciphertexts_for(VICTIM))
        return opponent.clients[VICTIM]._held_shares

    with pytest.raises(ProtocolError, match="does not open"):
        accept_own()
    monkeypatch.setattr(keys, "named", lambda name: b"")
    assert len(accept_own()) == 5


def test_a_withheld_advert_leaves_no_channel_between_those_who_saw_it_and_those_who_did_not() -> None:
    opponent, u2 = five_sites(ClientAttempt), ("site-1", "site-2", "site-3", "site-4")
    opponent.collect_shares(u1_for=lambda name: opponent.names if name in (VICTIM, ACCOMPLICE) else u2)
    with pytest.raises(ProtocolError, match="from site-1 does not open"):
        opponent.clients[VICTIM].accept(opponent.ciphertexts_for(VICTIM, u2))
