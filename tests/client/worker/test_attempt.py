"""The client's machine: it answers an honest server once, and a lying one not at all."""

from collections.abc import Callable

import numpy as np
import pytest
from support.secagg.cohort import Attempt, Cohort

from grandrounds.client.worker.attempt import ClientAttempt, check_begin
from grandrounds.common.crypto.identity import Identity
from grandrounds.common.errors import EnvelopeError, ProtocolError
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import (
    Advert,
    Adverts,
    Ciphertexts,
    Consistencies,
    Consistency,
    MaskedInput,
    Survivors,
    Unmask,
    pack,
    unpack,
)
from grandrounds.common.secagg import shamir
from grandrounds.common.system.content import Content

SITE = "site-2"
PEER = "site-3"


@pytest.fixture
def cohort() -> Cohort:
    return Cohort(sites=5)


def parts(wire: Content) -> list[bytes]:
    return unpack(Envelope.parse(wire).payload)


def refuses(call: Callable[[], object], complaint: str, client: ClientAttempt | None = None) -> None:
    """``call`` is refused for the stated reason, and the client then has no secrets and answers nothing."""
    with pytest.raises((ProtocolError, EnvelopeError), match=complaint):
        call()
    if client is not None:
        assert not hasattr(client, "_secrets")
        assert not client._held_shares
        for again in (client.share, client.accept, client.sign_survivors, client.unmask):
            with pytest.raises(ProtocolError, match="OVER was due"):
                again(b"")


# --- begin ------------------------------------------------------------------------------------------------------------


def test_an_honest_begin_is_accepted(cohort: Cohort) -> None:
    begin = cohort.begin(invited=cohort.names[:4])
    assert check_begin(cohort.parameters, SITE, Envelope.parse(cohort.server_says(begin))) == begin


@pytest.mark.parametrize(
    ("invited", "complaint"),
    [
        (("site-1", "site-2", "site-3", "intruder"), "cannot be in it"),
        (("site-1", "site-2", "site-2", "site-3", "site-4"), "each site once"),
        (("site-2", "site-1", "site-3", "site-4"), "roster order"),
        (("site-1", "site-2", "site-3"), "4 are needed"),
        (("site-1", "site-3", "site-4", "site-5"), "without site-2"),
    ],
)
def test_an_invitation_is_t_or_more_sites_of_the_roster(
    cohort: Cohort, invited: tuple[str, ...], complaint: str
) -> None:
    wire = cohort.server_says(cohort.begin(invited=invited))
    refuses(lambda: check_begin(cohort.parameters, SITE, Envelope.parse(wire)), complaint)
    refuses(lambda: cohort.client(SITE, wire), complaint)


def test_a_begin_is_signed_by_the_manifest_s_server_for_this_study(cohort: Cohort) -> None:
    begin = cohort.begin()
    by_a_site = cohort.site_says("site-1", begin)
    cohort.server = Identity.generate()
    by_another_server = cohort.server_says(begin)
    of_another_study = Cohort(sites=5, manifest="cd" * 32).server_says(begin)
    for wire in (by_a_site, by_another_server, of_another_study):
        with pytest.raises(EnvelopeError):
            check_begin(cohort.parameters, SITE, Envelope.parse(wire))


# --- advertise and share ----------------------------------------------------------------------------------------------


def test_two_attempts_share_no_key_and_no_commitment(cohort: Cohort) -> None:
    begin = cohort.server_says(cohort.begin())
    adverts = [Advert.of(Envelope.parse(cohort.client(SITE, begin).advertise())) for _ in range(2)]
    drawn = [value for a in adverts for value in (a.channel_key, a.mask_key, a.seed_commitment)]
    assert len(set(drawn)) == 6


def lying_adverts(attempt: Attempt) -> dict[str, tuple[str, list[bytes]]]:
    """By lie: what the site complains of, and the adverts that it is shown."""
    cohort, wires = attempt.cohort, parts(attempt.server.messages()[SITE])
    own, peer = wires[1], wires[2]

    def peer_says(**changes: object) -> list[bytes]:
        advert = Advert.of(Envelope.parse(peer)).model_copy(update=changes)
        return [*wires[:2], cohort.site_says(PEER, advert), *wires[3:]]

    own_advert = Advert.of(Envelope.parse(own))
    other_own = cohort.site_says(SITE, own_advert.model_copy(update={"mask_key": "09" + "00" * 31}))
    forged = bytearray(peer)
    forged[-1] ^= 1  # the last byte of the signature: an advert has no payload
    intruder = Cohort(sites=6).site_says("site-6", own_advert)
    other_begin = cohort.client(PEER, cohort.server_says(cohort.begin(round=2))).advertise()
    replayed = cohort.client(PEER, cohort.server_says(cohort.begin(), attempt=2)).advertise()
    padded = cohort.site_says(PEER, Advert.of(Envelope.parse(peer)), b"payload")
    return {
        "U1 below t": ("3 sites where 4 are needed", wires[:3]),
        "U1 of the site alone": ("1 sites where 4 are needed", [own]),
        "U1 empty": ("without site-2", []),
        "U1 without the site": ("without site-2", [wires[0], *wires[2:]]),
        "U1 out of order": ("roster order", wires[::-1]),
        "a doubled site": ("each site once", [*wires[:2], wires[1], *wires[2:]]),
        "an invented site": ("another study", [*wires, intruder]),
        "another advert in the site's own name": ("in this site's name", [wires[0], other_own, *wires[2:]]),
        "a forged signature": ("does not verify", [*wires[:2], bytes(forged), *wires[3:]]),
        "an advert of another attempt": ("another study", [*wires[:2], replayed, *wires[3:]]),
        "an advert for another Begin": ("another Begin", [*wires[:2], other_begin, *wires[3:]]),
        "the site's own mask key, copied": ("twice", peer_says(mask_key=own_advert.mask_key)),
        "the site's own channel key, copied": ("twice", peer_says(mask_key=own_advert.channel_key)),
        "a low-order key": ("low order", peer_says(mask_key="01" + "00" * 31)),
        "a low-order channel key": ("low order", peer_says(channel_key="00" * 32)),
        "a non-canonical key": ("not canonical", peer_says(channel_key="ff" * 32)),
        "a fallen charge counter": ("fell", peer_says(charge_counter=2)),
        "a payload on an advert": ("payload", [*wires[:2], padded, *wires[3:]]),
        "no advert": ("its worker did not answer", [*wires[:2], b"", *wires[3:]]),
    }


@pytest.mark.parametrize("lie", lying_adverts(Cohort(sites=5).attempt().until("shares")))
def test_a_site_shares_nothing_on_lying_adverts(cohort: Cohort, lie: str) -> None:
    attempt = cohort.attempt()
    ledger = {PEER: 3} if lie == "a fallen charge counter" else {}
    for site, begin in attempt.server.messages().items():
        counter = 3 if lie == "a fallen charge counter" and site == PEER else 0
        attempt.clients[site] = cohort.client(site, begin, charge_counter=counter, ledger=ledger)
        attempt.server.receive(site, attempt.clients[site].advertise())
    attempt.server.advance()
    complaint, wires = lying_adverts(attempt)[lie]
    client = attempt.clients[SITE]
    refuses(lambda: client.share(cohort.server_says(Adverts(), pack(wires))), complaint, client)


def test_a_fallen_own_counter_is_refused_too(cohort: Cohort) -> None:
    attempt = cohort.attempt().until("shares")
    client = cohort.client(SITE, cohort.server_says(cohort.begin()), ledger={SITE: 1})
    own = client.advertise()
    wires = [own if i == 1 else wire for i, wire in enumerate(parts(attempt.server.messages()[SITE]))]
    refuses(lambda: client.share(cohort.server_says(Adverts(), pack(wires))), "fell", client)


# --- accept -----------------------------------------------------------------------------------------------------------


def lying_ciphertexts(attempt: Attempt) -> dict[str, tuple[str, tuple[str, ...], list[bytes]]]:
    names = attempt.cohort.names
    wires = parts(attempt.server.messages()[SITE])
    for_peer = parts(attempt.server.messages()[PEER])
    altered = bytes([wires[0][0] ^ 1]) + wires[0][1:]
    sent = attempt.server._ciphertexts[SITE][PEER]
    return {
        "U2 below t": ("3 sites where 4 are needed", names[:3], wires[:2]),
        "U2 of the site alone": ("1 sites where 4 are needed", (SITE,), []),
        "U2 without the site": ("without site-2", ("site-1", *names[2:]), wires),
        "U2 beyond U1": ("cannot be in it", (*names, "site-6"), [*wires, wires[0]]),
        "U2 out of order": ("roster order", names[::-1], wires[::-1]),
        "a doubled site": ("each site once", (*names[:3], *names[2:]), [*wires, wires[0]]),
        "a ciphertext withheld": ("3 ciphertexts for 5 sites", names, wires[1:]),
        "an altered ciphertext": ("does not open", names, [altered, *wires[1:]]),
        "swapped ciphertexts": ("does not open", names, [wires[1], wires[0], *wires[2:]]),
        "a peer's ciphertext": ("does not open", names, [for_peer[0], *wires[1:]]),
        "the site's own ciphertext, reflected": ("does not open", names, [wires[0], sent, *wires[2:]]),
        "an empty ciphertext": ("does not open", names, [b"", *wires[1:]]),
    }


@pytest.mark.parametrize("lie", lying_ciphertexts(Cohort(sites=5).attempt().until("masked-input")))
def test_a_site_does_not_go_on_with_lying_ciphertexts(cohort: Cohort, lie: str) -> None:
    attempt = cohort.attempt().until("masked-input")
    complaint, u2, wires = lying_ciphertexts(attempt)[lie]
    client = attempt.clients[SITE]
    refuses(lambda: client.accept(cohort.server_says(Ciphertexts(u2=u2), pack(wires))), complaint, client)


def test_sites_that_were_shown_different_sets_share_no_channel(cohort: Cohort) -> None:
    """U1 is everyone for one site and everyone but site-5 for the others: no ciphertext crosses."""
    attempt = cohort.attempt().until("shares")
    message = attempt.server.messages()[SITE]
    attempt.clients[SITE].share(message)
    fewer = cohort.server_says(Adverts(), pack(parts(message)[:4]))
    crossing = parts(attempt.clients["site-1"].share(fewer))[0]  # site-2 is the first of its peers
    lie = cohort.server_says(Ciphertexts(u2=cohort.names[:4]), pack([crossing, bytes(82), bytes(82)]))
    refuses(lambda: attempt.clients[SITE].accept(lie), "from site-1 does not open", attempt.clients[SITE])


@pytest.mark.parametrize("bad", ["seed", "mask"])
def test_a_peer_s_share_that_is_no_field_element_is_refused(
    cohort: Cohort, bad: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = cohort.attempt().until("shares")
    split, lied_about = shamir.split, getattr(attempt.clients[PEER]._secrets, bad)

    def lying_split(secret: bytes, *, threshold: int, points: list[int]) -> list[bytes]:
        shares = split(secret, threshold=threshold, points=points)
        return [b"\xff" * 33] * len(points) if secret == lied_about else shares

    monkeypatch.setattr(shamir, "split", lying_split)
    attempt.exchange()
    client = attempt.clients[SITE]
    refuses(lambda: client.accept(attempt.server.messages()[SITE]), "no field element", client)


# --- mask -------------------------------------------------------------------------------------------------------------


def test_the_update_is_masked_in_place_and_leaves_no_secret_behind(cohort: Cohort) -> None:
    attempt = cohort.attempt().until("masked-input")
    client = attempt.clients[SITE]
    client.accept(attempt.server.messages()[SITE])
    update = np.arange(5, dtype="<u4")
    envelope = Envelope.parse(client.mask(update, 1))
    assert MaskedInput.of(envelope).charge_counter == 1
    assert envelope.payload == update.tobytes()
    assert update.tolist() != [0, 1, 2, 3, 4]
    assert not hasattr(client, "_secrets")


@pytest.mark.parametrize(
    "update",
    [np.zeros(4, "<u4"), np.zeros((5, 1), "<u4"), np.zeros(5, "<u2"), np.zeros(5, "<i4"), np.zeros(10, "<u4")[::2]],
    ids=lambda update: f"{update.shape} {update.dtype} {update.strides}",
)
def test_an_update_that_is_not_the_manifest_s_is_refused(cohort: Cohort, update: np.ndarray) -> None:
    attempt = cohort.attempt().until("masked-input")
    client = attempt.clients[SITE]
    client.accept(attempt.server.messages()[SITE])
    refuses(lambda: client.mask(update, 1), "an update of shape", client)


def test_an_update_does_not_leave_without_a_charge(cohort: Cohort) -> None:
    attempt = cohort.attempt().until("masked-input")
    client = attempt.clients[SITE]
    client.accept(attempt.server.messages()[SITE])
    refuses(lambda: client.mask(np.zeros(5, "<u4"), 0), "charge counter 0 after 0", client)


# --- consistency and unmask -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("u3", "complaint"),
    [
        (("site-1", "site-2", "site-3"), "4 are needed"),
        (("site-2",), "4 are needed"),
        (("site-1", "site-3", "site-4", "site-5"), "without site-2"),
        (("site-1", "site-2", "site-3", "site-6"), "cannot be in it"),
        (("site-5", "site-4", "site-3", "site-2"), "roster order"),
        (("site-1", "site-2", "site-2", "site-3"), "each site once"),
    ],
)
def test_a_site_signs_only_survivors_that_can_be(cohort: Cohort, u3: tuple[str, ...], complaint: str) -> None:
    attempt = cohort.attempt().until("consistency")
    client = attempt.clients[SITE]
    refuses(lambda: client.sign_survivors(cohort.server_says(Survivors(u3=u3))), complaint, client)


def test_survivors_come_from_u2(cohort: Cohort) -> None:
    attempt = cohort.attempt().until("shares")
    attempt.exchange(drops={"site-5": "shares"})
    attempt.exchange()
    client = attempt.clients[SITE]
    lie = cohort.server_says(Survivors(u3=("site-1", "site-2", "site-3", "site-5")))
    refuses(lambda: client.sign_survivors(lie), "cannot be in it", client)


def lying_consistencies(attempt: Attempt) -> dict[str, tuple[str, list[bytes]]]:
    cohort, wires = attempt.cohort, parts(attempt.server.messages()[SITE])
    view = Consistency.of(Envelope.parse(wires[0]))

    def peer_signs(**changes: object) -> list[bytes]:
        return [*wires[:2], cohort.site_says(PEER, view.model_copy(update=changes)), *wires[3:]]

    forged = bytearray(wires[2])
    forged[-1] ^= 1
    return {
        "signatures below t": ("3 sites where 4 are needed", wires[:3]),
        "no signature": ("without site-2", []),
        "one signature four times": ("each site once", [wires[1]] * 4),
        "signatures out of order": ("roster order", wires[::-1]),
        "a forged signature": ("does not verify", [*wires[:2], bytes(forged), *wires[3:]]),
        "another transcript": ("different views", peer_signs(transcript="00" * 32)),
        "another U2": ("different views", peer_signs(u2=cohort.names[1:])),
        "another U3": ("different views", peer_signs(u3=cohort.names[1:])),
        "a signature of another attempt": (
            "another study",
            [*wires[:2], cohort.site_says(PEER, view, attempt=2), *wires[3:]],
        ),
    }


@pytest.mark.parametrize("lie", lying_consistencies(Cohort(sites=5).attempt().until("unmask")))
def test_a_site_unmasks_nothing_without_t_signatures_on_its_own_view(cohort: Cohort, lie: str) -> None:
    attempt = cohort.attempt().until("unmask")
    complaint, wires = lying_consistencies(attempt)[lie]
    client = attempt.clients[SITE]
    refuses(lambda: client.unmask(cohort.server_says(Consistencies(), pack(wires))), complaint, client)


def test_only_survivors_may_vouch_for_the_view(cohort: Cohort) -> None:
    attempt = cohort.attempt().until("masked-input")
    attempt.exchange(drops={"site-5": "masked-input"})
    attempt.exchange()
    client, wires = attempt.clients[SITE], parts(attempt.server.messages()[SITE])
    view = Consistency.of(Envelope.parse(wires[0]))
    lie = cohort.server_says(Consistencies(), pack([*wires[:3], cohort.site_says("site-5", view)]))
    refuses(lambda: client.unmask(lie), "another study", client)


def test_a_site_gives_one_share_of_each_site_and_never_both(cohort: Cohort) -> None:
    attempt = cohort.attempt().until("masked-input")
    attempt.exchange(drops={"site-5": "masked-input"})
    attempt.exchange()
    client = attempt.clients[SITE]
    held = dict(client._held_shares)
    answer = Envelope.parse(client.unmask(attempt.server.messages()[SITE]))
    assert set(Unmask.of(answer).model_dump()) == {"noise_link"}
    given = dict(zip(cohort.names, unpack(answer.payload), strict=True))
    assert given == {site: held[site][1 if site == "site-5" else 0] for site in cohort.names}
    withheld = {site: held[site][0 if site == "site-5" else 1] for site in cohort.names}
    assert not any(share in bytes(answer.payload[:]) for share in withheld.values())
    assert not client._held_shares


def test_nothing_is_given_for_a_site_that_sent_no_shares(cohort: Cohort) -> None:
    attempt = cohort.attempt().until("shares")
    attempt.exchange(drops={"site-5": "shares"})
    attempt.exchange()
    attempt.exchange()
    answer = Envelope.parse(attempt.clients[SITE].unmask(attempt.server.messages()[SITE]))
    assert len(unpack(answer.payload)) == 4
