"""The server's machine: whatever drops out or answers badly, the sum is exact or the attempt aborts."""

import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.secagg.cohort import EXCHANGES, Attempt, Cohort

from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import (
    Advert,
    Consistency,
    MaskedInput,
    Message,
    Refusal,
    RefusalCode,
    Shares,
    Unmask,
    pack,
    unpack,
)
from grandrounds.common.secagg.encoding import residues
from grandrounds.common.secagg.transcript import open_message
from grandrounds.server.rounds.attempt import ServerAttempt

VICTIM = "site-2"
# What becomes of a good answer.
Change = Callable[[Attempt, bytes], bytes]


def test_what_the_server_adds_up_is_not_the_updates_until_it_is_unmasked() -> None:
    attempt = Cohort(dimension=64).attempt().until("consistency")
    assert attempt.server.exchange == "consistency"
    plain = sum(attempt.updates.values()) % 2**32
    assert sum(attempt.server._sum == plain) <= 2  # 3 of 64 uniform words agree by chance with less than 1e-24


def bad_answers(cohort: Cohort) -> dict[str, tuple[str, Change]]:
    """By name: the exchange, and what becomes of the victim's good answer in it."""

    def says(message: Message, payload: bytes = b"", **context: int) -> Change:
        return lambda attempt, answer: cohort.site_says(VICTIM, message, payload, **context)

    def advert(**changes: object) -> Change:
        def change(attempt: Attempt, answer: bytes) -> bytes:
            body = Advert.of(Envelope.parse(answer)).model_copy(update=changes)
            return cohort.site_says(VICTIM, body)

        return change

    def by_a_peer(attempt: Attempt, answer: bytes) -> bytes:
        return cohort.site_says("site-3", Advert.of(Envelope.parse(answer)))

    def copied_key(attempt: Attempt, answer: bytes) -> bytes:
        return advert(mask_key=attempt.server._adverts["site-1"].mask_key)(attempt, answer)

    def repacked(message: Message, change: Callable[[list[bytes]], list[bytes]]) -> Change:
        def pack_again(attempt: Attempt, answer: bytes) -> bytes:
            return cohort.site_says(VICTIM, message, pack(change(unpack(Envelope.parse(answer).payload))))

        return pack_again

    def other_view(attempt: Attempt, answer: bytes) -> bytes:
        body = Consistency.of(Envelope.parse(answer))
        return cohort.site_says(VICTIM, body.model_copy(update={"u3": body.u3[1:]}))

    return {
        "nothing": ("advert", lambda attempt, answer: b""),
        "noise": ("advert", lambda attempt, answer: answer[:-1] + bytes([answer[-1] ^ 1])),
        "another attempt": ("advert", lambda attempt, answer: cohort.site_says(VICTIM, Shares(), attempt=2)),
        "another exchange": ("advert", says(Shares())),
        "a peer's answer": ("advert", by_a_peer),
        "a refusal": ("advert", says(Refusal(code=RefusalCode.ADAPTER))),
        "another begin": ("advert", advert(begin_hash="00" * 32)),
        "a low-order key": ("advert", advert(channel_key="00" * 32)),
        "a non-canonical key": ("advert", advert(mask_key="ff" * 32)),
        "one key for two purposes": ("advert", advert(mask_key="09" + "00" * 31, channel_key="09" + "00" * 31)),
        "a peer's key": ("advert", copied_key),
        "a ciphertext missing": ("shares", repacked(Shares(), lambda parts: parts[1:])),
        "a ciphertext too long": ("shares", repacked(Shares(), lambda parts: [parts[0] + b"x", *parts[1:]])),
        "no packing": ("shares", says(Shares(), b"\xff\xff\xff\xff")),
        "no charge": ("masked-input", says(MaskedInput(charge_counter=1), bytes(20))),
        "a short vector": ("masked-input", says(MaskedInput(charge_counter=9), bytes(19))),
        "another view": ("consistency", other_view),
        "a share missing": ("unmask", repacked(Unmask(noise_link="00" * 32), lambda parts: parts[1:])),
        "no field element": (
            "unmask",
            repacked(Unmask(noise_link="00" * 32), lambda parts: [b"\xff" * 33, *parts[1:]]),
        ),
    }


@pytest.mark.parametrize("bad", bad_answers(Cohort()))
def test_a_bad_answer_removes_its_site_and_nobody_else(bad: str) -> None:
    cohort = Cohort()
    exchange, change = bad_answers(cohort)[bad]
    attempt = cohort.attempt().until(exchange)
    if bad == "no charge":
        attempt.server._adverts[VICTIM] = attempt.server._adverts[VICTIM].model_copy(update={"charge_counter": 1})
    attempt.exchange(tamper=lambda site, _, answer: change(attempt, answer) if site == VICTIM else answer)
    assert attempt.server.dropouts == {VICTIM: exchange}
    assert attempt.server.reasons[VICTIM]
    attempt.silent.add(VICTIM)
    while not (attempt.server.done or attempt.server.aborted):
        attempt.exchange()
    assert attempt.exact


def test_a_refusal_s_code_is_kept_for_the_operator() -> None:
    cohort = Cohort()
    attempt = cohort.attempt()
    attempt.server.receive(VICTIM, cohort.site_says(VICTIM, Refusal(code=RefusalCode.SCHEDULE)))
    assert "schedule" in attempt.server.reasons[VICTIM]
    assert VICTIM not in attempt.server.awaited


def test_a_fallen_charge_counter_removes_the_site() -> None:
    cohort = Cohort()
    server = ServerAttempt(
        parameters=cohort.parameters,
        identity=cohort.server,
        begin=cohort.begin(),
        attempt=1,
        payloads=dict.fromkeys(cohort.names, b""),
        possible_charges={VICTIM: range(1, 2)},
    )
    for site, begin in server.messages().items():
        server.receive(site, cohort.client(site, begin).advertise())
    assert server.dropouts == {VICTIM: "advert"}


def test_a_second_answer_and_one_from_a_stranger_do_nothing() -> None:
    attempt = Cohort().attempt().until("masked-input")
    answers = {site: attempt.answer(site, message) for site, message in attempt.server.messages().items()}
    for site, answer in [*answers.items(), *answers.items(), ("stranger", answers[VICTIM])]:
        attempt.server.receive(site, answer)
    assert not attempt.server.dropouts
    assert not attempt.server.awaited
    attempt.server.advance()
    while not attempt.server.done:
        attempt.exchange()
    assert attempt.exact


@pytest.mark.parametrize("dropped", [True, False])
def test_shares_of_another_secret_abort_the_attempt(dropped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site deals shares that fit each other but not what it published."""
    cohort = Cohort()
    attempt = cohort.attempt().until("shares")
    liar = attempt.clients[VICTIM]._secrets
    object.__setattr__(liar, "mask" if dropped else "seed", bytes(32))
    drops = {VICTIM: "masked-input"} if dropped else {}
    while not (attempt.server.done or attempt.server.aborted):
        attempt.exchange(drops=drops)
    assert attempt.server.aborted == f"the {'mask key' if dropped else 'seed'} of {VICTIM} is not the one it published"


def test_one_wrong_share_aborts_the_attempt() -> None:
    cohort = Cohort()

    def wrong_share(site: str, exchange: str, answer: bytes) -> bytes:
        if (site, exchange) != (VICTIM, "unmask"):
            return answer
        parts = unpack(Envelope.parse(answer).payload)
        return cohort.site_says(VICTIM, Unmask(noise_link="00" * 32), pack([bytes(33), *parts[1:]]))

    server = cohort.run(tamper=wrong_share).server
    assert server.aborted
    assert not server.done


def test_the_server_keeps_what_the_sites_signed() -> None:
    cohort = Cohort()
    server = cohort.run(drops={VICTIM: "masked-input"}).server
    survivors = {"site-1", "site-3", "site-4"}
    assert {exchange: set(by_site) for exchange, by_site in server.statements.items()} == {
        "advert": set(cohort.names),
        "shares": set(cohort.names),
        "masked-input": survivors,
        "consistency": survivors,
        "unmask": survivors,
    }
    statement = server.statements["consistency"]["site-1"]
    wire = len(statement.header).to_bytes(4, "little") + statement.header + statement.signature
    _, view = open_message(cohort.parameters, wire, Consistency, attempt=1, senders=("site-1",))
    assert view.u3 == server.survivors


def test_an_attempt_that_is_over_asks_for_nothing() -> None:
    for server in (Cohort().run().server, Cohort().run(drops={"site-1": "advert", "site-2": "shares"}).server):
        assert server.messages() == {}
        assert not server.awaited
        with pytest.raises(RuntimeError, match="over"):
            server.advance()


def test_there_is_no_aggregate_before_the_end() -> None:
    attempt = Cohort().attempt().until("unmask")
    with pytest.raises(RuntimeError, match="no aggregate"):
        _ = attempt.server.aggregate


def test_memory_does_not_grow_with_the_number_of_inputs() -> None:
    """A client adds its answer to its vector, the server nothing to its accumulator."""
    cohort = Cohort(sites=6, dimension=500_000)
    attempt = cohort.attempt().until("masked-input")
    update_bytes = cohort.parameters.update_bytes
    for site, message in attempt.server.messages().items():
        attempt.clients[site].accept(message)
        update = residues(attempt.updates[site], 32)
        tracemalloc.start()
        answer = attempt.clients[site].mask(update, 1)
        client_peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        tracemalloc.start()
        attempt.server.receive(site, answer)
        server_peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert client_peak_bytes < 1.3 * update_bytes
        assert server_peak_bytes < 0.1 * update_bytes
    assert not attempt.server.dropouts


@pytest.mark.parametrize("exchange", EXCHANGES)
@settings(max_examples=15, deadline=None)
@given(parts=st.lists(st.binary(max_size=90), max_size=6), tail=st.binary(max_size=3))
def test_whatever_a_site_signs_is_taken_or_removes_that_site(exchange: str, parts: list[bytes], tail: bytes) -> None:
    cohort = Cohort()
    attempt = cohort.attempt().until(exchange)
    body = Envelope.parse(attempt.answer(VICTIM, attempt.server.messages()[VICTIM])).body
    wire = Envelope.seal(
        cohort.identities[VICTIM],
        manifest=cohort.manifest,
        attempt=1,
        exchange=exchange,
        sender=VICTIM,
        body=body,
        payload=pack(parts) + tail,
    ).to_bytes()
    attempt.server.receive(VICTIM, wire)
    assert set(attempt.server.dropouts) <= {VICTIM}
    assert VICTIM not in attempt.server.awaited
