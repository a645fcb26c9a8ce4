"""A site's turns: each answer once, in order, for its own attempt only, and whatever it is sent, a refusal at worst."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.secagg.cohort import EXCHANGES, Cohort

from grandrounds.common.errors import EnvelopeError, GrandRoundsError, ProtocolError
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import Adverts, Ciphertexts, Consistencies, Message, Survivors, pack

SITE = "site-2"
ASKS: dict[str, type[Message]] = {
    "shares": Adverts,
    "masked-input": Ciphertexts,
    "consistency": Survivors,
    "unmask": Consistencies,
}


@pytest.fixture
def cohort() -> Cohort:
    return Cohort(sites=5)


def out_of_turn(call: Callable[[], object], due: str) -> None:
    with pytest.raises(ProtocolError, match=f"{due} was due"):
        call()


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_no_answer_is_given_twice(cohort: Cohort, exchange: str) -> None:
    attempt = cohort.attempt().until(exchange)
    message = attempt.server.messages()[SITE]
    attempt.answer(SITE, message)
    client = attempt.clients[SITE]
    ask = {
        "advert": client.advertise,
        "shares": lambda: client.share(message),
        "masked-input": lambda: client.mask(np.zeros(5, "<u4"), 2),
        "consistency": lambda: client.sign_survivors(message),
        "unmask": lambda: client.unmask(message),
    }[exchange]
    out_of_turn(ask, "")
    assert not hasattr(client, "_secrets")


@pytest.mark.parametrize("exchange", ASKS)
def test_no_turn_can_be_skipped(cohort: Cohort, exchange: str) -> None:
    attempt = cohort.attempt().until(exchange)
    message = attempt.server.messages()[SITE]
    fresh = cohort.client(SITE, cohort.server_says(cohort.begin()))
    ask = {
        "shares": fresh.share,
        "masked-input": fresh.accept,
        "consistency": fresh.sign_survivors,
        "unmask": fresh.unmask,
    }[exchange]
    out_of_turn(lambda: ask(message), "ADVERTISE")
    out_of_turn(fresh.advertise, "OVER")


def test_an_update_is_not_masked_before_the_ciphertexts_are_accepted(cohort: Cohort) -> None:
    attempt = cohort.attempt().until("masked-input")
    out_of_turn(lambda: attempt.clients[SITE].mask(np.zeros(5, "<u4"), 1), "ACCEPT")


@pytest.mark.parametrize("exchange", ASKS)
def test_a_message_of_another_attempt_or_study_or_signer_is_refused(cohort: Cohort, exchange: str) -> None:
    for lie in ("attempt", "signer", "bytes", "exchange"):
        attempt = cohort.attempt().until(exchange)
        envelope = Envelope.parse(attempt.server.messages()[SITE])
        message, payload = ASKS[exchange].of(envelope), bytes(envelope.payload[:])
        wire = {
            "attempt": cohort.server_says(message, payload, attempt=2),
            "signer": cohort.site_says("site-1", message, payload),
            "bytes": envelope.to_bytes()[:-1],
            "exchange": cohort.server_says(cohort.begin()),
        }[lie]
        with pytest.raises(GrandRoundsError):
            attempt.answer(SITE, wire)
        assert not hasattr(attempt.clients[SITE], "_secrets")


@pytest.mark.parametrize("exchange", ASKS)
@settings(max_examples=15, deadline=None)
@given(
    parts=st.lists(st.binary(max_size=90), max_size=6),
    tail=st.binary(max_size=3),
    sites=st.lists(st.sampled_from(["site-1", "site-2", "site-3", "site-4", "site-5", "x"]), max_size=6),
)
def test_whatever_the_server_signs_is_answered_or_refused(
    exchange: str, parts: list[bytes], tail: bytes, sites: list[str]
) -> None:
    cohort = Cohort(sites=5)
    attempt = cohort.attempt().until(exchange)
    kind = ASKS[exchange]
    body = {field: tuple(sites) for field in kind.model_fields}
    payload = pack(parts) + tail if kind.has_payload else b""
    with pytest.raises((EnvelopeError, ProtocolError)):
        attempt.answer(SITE, cohort.server_says(kind(**body), payload))


@pytest.mark.parametrize("exchange", ASKS)
@settings(max_examples=25, deadline=None)
@given(position=st.integers(0, 10**6), change=st.integers(1, 255))
def test_no_byte_of_the_server_s_message_can_be_changed(exchange: str, position: int, change: int) -> None:
    attempt = Cohort().attempt().until(exchange)
    message = bytearray(attempt.server.messages()[SITE][:])
    message[position % len(message)] ^= change
    with pytest.raises((EnvelopeError, ProtocolError)):
        attempt.answer(SITE, bytes(message))
