"""The server and its accomplices lie: without the check they have an update, with it they have nothing."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from secagg_cohort import Cohort
from secagg_opponent import Opponent, unmasked

from grandrounds.client.secagg import ClientAttempt, Turn
from grandrounds.common.errors import EnvelopeError, GrandRoundsError, ProtocolError, StudyError
from grandrounds.common.identity import Envelope
from grandrounds.common.messages import Advert, Adverts, Ciphertexts, Unmask, pack, unpack
from grandrounds.common.secagg import keys, shamir
from grandrounds.common.secagg.encoding import residues
from grandrounds.common.secagg.transcript import SecaggParameters, check_group, transcript_hash

VICTIM = "site-2"
Loot = tuple[list[int], list[int]]


# --- sites that lack a check ------------------------------------------------------------------------------------------


class TakesAnyAdvert(ClientAttempt):
    def _check_adverts(self, wires: Sequence[bytes]) -> tuple[dict[str, Advert], bytes]:
        envelopes = [Envelope.parse(wire) for wire in wires]
        return {e.sender: Advert.of(e) for e in envelopes}, transcript_hash(self._begin_hash, envelopes)


class TakesAnySize(ClientAttempt):
    sets: tuple[str, ...] = ()

    def _check_group(self, group: Sequence[str], *, what: str, within: object) -> None:
        parameters = copy.copy(self._parameters)
        if what in self.sets:
            object.__setattr__(parameters, "threshold", 1)
        check_group(parameters, group, what=what, within=within, member=self._name)


class TakesAnyU2(TakesAnySize):
    sets = ("U2",)


class TakesAnyU3(TakesAnySize):
    sets = ("U3",)


class UnmasksUnsigned(ClientAttempt):
    def _check_consistencies(self, wires: Sequence[bytes]) -> None:
        pass


class AnswersTwice(ClientAttempt):
    @contextmanager
    def _taking(self, turn: Turn) -> Iterator[None]:
        held = dict(self._held_shares)
        yield
        self._held_shares |= held


class GivesBothShares(ClientAttempt):
    def unmask(self, message: bytes) -> bytes:
        return self._seal(Unmask(), payload=pack([b"".join(self._held_shares[site]) for site in self._u2]))


# --- attacks: what the opponent has in the end, and what that should be -----------------------------------------------


def man_in_the_middle(machine: type[ClientAttempt]) -> Loot:
    """The server shows the victim peers whose keys are all its own."""
    cohort = Cohort(machine=machine)
    client = cohort.client(VICTIM, cohort.server_says(cohort.begin()))
    own = client.advertise()
    puppets = {name: keys.AttemptSecrets.fresh() for name in cohort.names if name != VICTIM}
    impostor = Cohort()  # the same names with other keys
    wires = {VICTIM: own}
    for name, secrets in puppets.items():
        changes = {"channel_key": keys.public_key(secrets.channel), "mask_key": keys.public_key(secrets.mask)}
        wires[name] = impostor.site_says(name, Advert.of(Envelope.parse(own)).model_copy(update=changes))
    adverts = {name: Advert.of(Envelope.parse(wires[name])) for name in cohort.names}
    answer = client.share(cohort.server_says(Adverts(), pack([wires[name] for name in cohort.names])))
    transcript = transcript_hash(adverts[VICTIM].begin_hash, [Envelope.parse(wires[name]) for name in cohort.names])

    shares, ciphertexts = {}, []
    for (name, secrets), ciphertext in zip(puppets.items(), unpack(Envelope.parse(answer).payload), strict=True):
        route = {"transcript": transcript, "sender": VICTIM, "recipient": name}
        channel = keys.channel_key(secrets.channel, adverts[VICTIM].channel_key, **route)
        shares[cohort.parameters.point(name)] = keys.decrypt(channel, ciphertext, **route)[: shamir.SHARE_BYTES]
        route = {"transcript": transcript, "sender": name, "recipient": VICTIM}
        channel = keys.channel_key(secrets.channel, adverts[VICTIM].channel_key, **route)
        ciphertexts.append(keys.encrypt(channel, bytes(2 * shamir.SHARE_BYTES), **route))
    client.accept(cohort.server_says(Ciphertexts(u2=cohort.names), pack(ciphertexts)))
    update = cohort.updates()[VICTIM]
    wire = client.mask(residues(update, 32), 1)
    loot = unmasked(
        cohort,
        {VICTIM: np.frombuffer(Envelope.parse(wire).payload, "<u4")},
        transcript=transcript,
        adverts=adverts,
        seeds={VICTIM: shamir.combine(shamir.lagrange_weights(list(shares)), shares)},
        mask_keys={name: secrets.mask for name, secrets in puppets.items()},
        peers=cohort.names,
    )
    return loot, update.tolist()


def alone_with_an_accomplice(machine: type[ClientAttempt]) -> Loot:
    """The victim's U2 is itself and the accomplice; the others' is everyone, and they open its seed."""
    opponent = Opponent(Cohort(sites=5, machine=machine), ["site-5"])
    opponent.collect_shares()
    opponent.collect_inputs(lambda name: (VICTIM, "site-5") if name == VICTIM else opponent.names)
    signers = ("site-1", "site-3", "site-4", "site-5")
    signatures = opponent.sign(signers, opponent.names)
    for name in signers[:3]:
        opponent.unmask(name, opponent.names, signatures)
    return opponent.loot(VICTIM, masked_with=["site-5"]), opponent.truth(VICTIM)


def survivors_of_two(machine: type[ClientAttempt]) -> Loot:
    """Every site is told that it and the victim alone are left: between them they open its seed and all other keys."""
    opponent = Opponent(Cohort(sites=5, machine=machine), ["site-5"])
    opponent.collect_shares()
    opponent.collect_inputs()
    for name in opponent.honest:
        u3 = opponent.cohort.parameters.in_order({name, VICTIM})
        opponent.unmask(name, u3, opponent.sign([name], u3))
    return opponent.loot(VICTIM), opponent.truth(VICTIM)


def split_survivors(machine: type[ClientAttempt]) -> Loot:
    """Sites are told of different sets of t survivors, as the symbolic search found; two updates are left together."""
    opponent = Opponent(Cohort(sites=6, machine=machine), ["site-6"])
    opponent.collect_shares()
    opponent.collect_inputs()
    for number, left_out in {1: "56", 2: "45", 3: "24", 4: "25", 5: "24"}.items():
        name = f"site-{number}"
        u3 = tuple(site for site in opponent.names if site[-1] not in left_out)
        opponent.unmask(name, u3, opponent.sign([name], u3))
    return opponent.loot("site-1", "site-3"), opponent.truth("site-1", "site-3")


def asked_twice(machine: type[ClientAttempt]) -> Loot:
    """All sites sign and answer for everyone as survivors, then for everyone but the victim."""
    opponent = Opponent(Cohort(sites=5, machine=machine), ["site-5"])
    opponent.collect_shares()
    opponent.collect_inputs()
    signers = ("site-1", "site-3", "site-4", "site-5")
    for u3 in (opponent.names, signers):
        signatures = opponent.sign(signers, u3)
        for name in signers[:3]:
            opponent.unmask(name, u3, signatures)
    return opponent.loot(VICTIM), opponent.truth(VICTIM)


def both_shares(machine: type[ClientAttempt]) -> Loot:
    """An honest course of events, in which the server takes what it is given."""
    opponent = Opponent(Cohort(sites=5, machine=machine), ["site-5"])
    opponent.collect_shares()
    opponent.collect_inputs()
    signatures = opponent.sign(opponent.names, opponent.names)
    for name in opponent.honest:
        opponent.unmask(name, opponent.names, signatures)
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


def copied_keys(machine: type[ClientAttempt]) -> Loot:
    """Accomplices on the victim's one side copy the keys of honest sites on its other: the masks cancel out."""
    victim, copies = "site-3", {"site-1": "site-4", "site-5": "site-2"}
    opponent = Opponent(Cohort(sites=5, corrupt_sites=2, machine=machine), list(copies))

    def copied(name: str, adverts: dict[str, Advert]) -> Advert:
        return adverts[name].model_copy(update={"mask_key": adverts[copies[name]].mask_key})

    opponent.collect_shares(copied)
    opponent.collect_inputs()
    signatures = opponent.sign(opponent.names, opponent.names)
    for name in opponent.honest:
        opponent.unmask(name, opponent.names, signatures)
    return opponent.loot(victim, masked_with=[]), opponent.truth(victim)


# --- with and without the check ---------------------------------------------------------------------------------------

Attack = Callable[[type[ClientAttempt]], Loot]


@pytest.mark.parametrize(
    ("attack", "lacking", "complaint"),
    [
        (man_in_the_middle, TakesAnyAdvert, "does not verify"),
        (alone_with_an_accomplice, TakesAnyU2, "U2 has 2 sites where 4 are needed"),
        (split_survivors, UnmasksUnsigned, "U4 has 1 sites where 4 are needed"),
        (asked_twice, AnswersTwice, "asked to SIGN_SURVIVORS when OVER was due"),
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


def test_both_shares_of_a_site_are_its_update_and_one_share_is_not() -> None:
    loot, truth = both_shares(GivesBothShares)
    assert loot == truth
    with pytest.raises(KeyError):  # no mask key to be had
        both_shares(ClientAttempt)


def test_a_threshold_that_is_too_low_for_the_accomplices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StudyError, match="threshold 3 does not fit"):
        each_with_two_accomplices(ClientAttempt)
    monkeypatch.setattr(SecaggParameters, "__post_init__", lambda self: None)
    loot, truth = each_with_two_accomplices(ClientAttempt)
    assert loot == truth


def test_copied_keys_are_refused_and_would_cancel_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProtocolError, match="twice"):
        copied_keys(ClientAttempt)
    monkeypatch.setattr(keys, "check_public_keys", lambda public_keys: None)
    loot, truth = copied_keys(ClientAttempt)
    assert loot != truth  # the names in the derivation are enough by themselves
    monkeypatch.setattr(keys, "named", lambda name: b"")
    loot, truth = copied_keys(ClientAttempt)
    assert loot == truth


def test_sites_on_different_begins_end_up_with_nothing_in_common() -> None:
    """Were the hash of Begin not compared, no ciphertext would cross: it is in the transcript as well."""

    def two_begins(machine: type[ClientAttempt]) -> None:
        cohort = Cohort(machine=machine)
        begins = {name: cohort.server_says(cohort.begin(round=1 + (name == VICTIM))) for name in cohort.names}
        clients = {name: cohort.client(name, begins[name]) for name in cohort.names}
        adverts = cohort.server_says(Adverts(), pack([client.advertise() for client in clients.values()]))
        shares = {name: unpack(Envelope.parse(client.share(adverts)).payload) for name, client in clients.items()}
        # In every other site's list the victim, second in the roster, is first or second.
        for_victim = [shares["site-1"][0], shares["site-3"][1], shares["site-4"][1]]
        clients[VICTIM].accept(cohort.server_says(Ciphertexts(u2=cohort.names), pack(for_victim)))

    with pytest.raises(ProtocolError, match="another Begin"):
        two_begins(ClientAttempt)
    with pytest.raises(ProtocolError, match="does not open"):
        two_begins(TakesAnyAdvert)


def test_everything_of_an_earlier_attempt_is_refused_in_a_later_one() -> None:
    cohort = Cohort()
    recorded: dict[str, dict[str, bytes]] = {}
    first = cohort.attempt(serial=1)
    while not first.server.done:
        recorded[first.server.exchange] = first.server.messages()
        first.exchange()
    for exchange, messages in recorded.items():
        if exchange == "advert":
            continue  # the worker refuses a serial that does not grow
        second = cohort.attempt(serial=2).until(exchange)
        with pytest.raises(GrandRoundsError):
            second.answer(VICTIM, messages[VICTIM])


def test_a_retry_after_a_secret_unmasking_has_nothing_of_the_first_attempt() -> None:
    """The server unmasks an attempt, says that it failed, and runs another: that one has new keys, masks and charge."""
    cohort = Cohort(dimension=64)
    first, second = cohort.run(serial=1), cohort.run(serial=2)
    assert first.exact
    assert second.exact
    ours, theirs = first.server._adverts[VICTIM], second.server._adverts[VICTIM]
    assert not {ours.channel_key, ours.mask_key, ours.seed_commitment} & {theirs.channel_key, theirs.mask_key}
    assert ours.seed_commitment != theirs.seed_commitment
    assert first.server._transcript != second.server._transcript


def test_a_restarted_site_has_left_the_attempt() -> None:
    """A new machine for the old Begin has other secrets: it cannot answer for the one that began."""
    for exchange in ("shares", "masked-input", "consistency", "unmask"):
        cohort = Cohort()
        attempt = cohort.attempt().until(exchange)
        message = attempt.server.messages()[VICTIM]
        restarted = cohort.client(VICTIM, cohort.server_says(cohort.begin()))
        restarted.advertise()
        attempt.clients[VICTIM] = restarted
        with pytest.raises(ProtocolError, match=r"in this site's name|SHARE was due"):
            attempt.answer(VICTIM, message)
