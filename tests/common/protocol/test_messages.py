"""Messages: one body each, nothing unknown in it, and packed payloads that fill their bytes."""

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from grandrounds.common.crypto.identity import Identity
from grandrounds.common.errors import EnvelopeError
from grandrounds.common.protocol import messages
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import (
    MAX_PARTS,
    Advert,
    Begin,
    Message,
    Refusal,
    RefusalCode,
    begin_hash,
    pack,
    packed,
    unpack,
    views,
)
from grandrounds.common.system.content import Stored

IDENTITY = Identity.from_bytes(bytes(32))
HEX = "0a" * 32
SAMPLES: dict[str, Message] = {
    message.exchange: message
    for message in (
        Begin(round=1, invited=("a", "b"), adapter_sha256=HEX, ledger_length=0, ledger_head=HEX),
        Advert(channel_key=HEX, mask_key=HEX, seed_commitment=HEX, noise_end=HEX, begin_hash=HEX, charge_counter=0),
        messages.Adverts(),
        messages.Shares(),
        messages.Ciphertexts(u2=("a",)),
        messages.MaskedInput(charge_counter=1),
        messages.Survivors(u3=("a",)),
        messages.Consistency(transcript=HEX, u2=("a",), u3=("a",)),
        messages.Consistencies(),
        messages.Unmask(noise_link=HEX),
        Refusal(code=RefusalCode.SERIAL),
        messages.Invitation(ledger_length=0, ledger_head=HEX),
        messages.Agreed(reservation=1, signature="0a" * 64),
        messages.Close(ledger_length=1, ledger_head=HEX),
        messages.Closed(ledger_length=1, ledger_head=HEX),
    )
}


def envelope(body: dict[str, object], exchange: str, payload: bytes = b"", attempt: int = 1) -> Envelope:
    wire = Envelope.seal(
        IDENTITY, manifest=HEX, attempt=attempt, exchange=exchange, sender="a", body=body, payload=payload
    ).to_bytes()
    return Envelope.parse(wire)


def test_every_message_of_the_protocol_has_a_sample() -> None:
    assert {kind.exchange for kind in Message.__subclasses__()} >= SAMPLES.keys()
    assert len(SAMPLES) == 15


@pytest.mark.parametrize("message", SAMPLES.values(), ids=SAMPLES)
def test_a_message_survives_its_envelope(message: Message) -> None:
    assert type(message).of(envelope(message.model_dump(mode="json"), message.exchange)) == message


@pytest.mark.parametrize("message", SAMPLES.values(), ids=SAMPLES)
def test_unknown_missing_and_mistyped_fields_are_refused(message: Message) -> None:
    body = message.model_dump(mode="json")
    bodies = [{**body, "unknown": 1}]
    bodies += [{k: v for k, v in body.items() if k != missing} for missing in body]
    mistyped: list[Any] = [None, 1.5, {}, [1], "é", True, -1]
    bodies += [{**body, field: wrong} for field in body for wrong in mistyped]
    for wrong_body in bodies:
        with pytest.raises(EnvelopeError, match="wrong form"):
            type(message).of(envelope(wrong_body, message.exchange))


@pytest.mark.parametrize("message", SAMPLES.values(), ids=SAMPLES)
def test_a_message_is_not_taken_for_another(message: Message) -> None:
    sealed = envelope(message.model_dump(mode="json"), message.exchange)
    for other in SAMPLES.values():
        if other is not message:
            with pytest.raises(EnvelopeError, match="was due"):
                type(other).of(sealed)


@pytest.mark.parametrize("message", SAMPLES.values(), ids=SAMPLES)
def test_a_payload_comes_only_where_one_is_due(message: Message) -> None:
    sealed = envelope(message.model_dump(mode="json"), message.exchange, payload=b"x")
    if message.has_payload:
        assert type(message).of(sealed) == message
    else:
        with pytest.raises(EnvelopeError, match="with a payload"):
            type(message).of(sealed)


def test_the_hash_of_begin_covers_its_study_attempt_and_every_field() -> None:
    begin = SAMPLES["begin"]
    assert isinstance(begin, Begin)
    changes: list[dict[str, Any]]
    changes = [{}, {"round": 2}, {"invited": ("a",)}, {"adapter_sha256": "00" * 32}, {"ledger_length": 1}]
    changes.append({"ledger_head": "00" * 32})
    hashes = {begin_hash(begin.model_copy(update=change), manifest=HEX, attempt=1) for change in changes}
    hashes.add(begin_hash(begin, manifest=HEX, attempt=2))
    hashes.add(begin_hash(begin, manifest="00" * 32, attempt=1))
    assert len(hashes) == len(changes) + 2


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_what_is_packed_is_unpacked(parts: list[bytes]) -> None:
    assert unpack(pack(parts)) == parts


def test_parts_of_more_than_four_gigabytes_are_packed_and_found_where_they_lie(tmp_path: Path) -> None:
    with (tmp_path / "payload").open("wb+") as file:
        file.truncate(5 << 30)  # of which the disk holds nothing
        payload = packed([Stored(file), b"end"])
        head = payload[: len(payload) - (5 << 30) - 3]
        file.write(head)
        file.truncate(len(payload) - 3)
        file.seek(0, 2)
        file.write(b"end")
        file.flush()
        large, end = views(Stored(file))
        assert (len(large), end[:]) == (5 << 30, b"end")


@given(st.lists(st.binary(max_size=5), max_size=5), st.integers(0, 100), st.integers(1, 255))
def test_a_changed_count_or_length_is_refused_or_read_as_other_parts(parts: list[bytes], at: int, change: int) -> None:
    payload = bytearray(pack(parts))
    payload[at % len(payload)] ^= change
    try:
        again = unpack(bytes(payload))
    except EnvelopeError:
        return
    assert pack(again) == bytes(payload)


@given(st.binary(max_size=60))
@example(struct.pack("<I", 2**32 - 1))
@example(struct.pack("<IQ", 1, 2**64 - 1))
@example(struct.pack("<I", MAX_PARTS + 1) + bytes(8 * (MAX_PARTS + 1)))
@example(struct.pack("<IQQQ", 3, 2**63, 2**63, 0))
def test_any_payload_is_unpacked_or_refused(payload: bytes) -> None:
    try:
        parts = unpack(payload)
    except EnvelopeError:
        return
    assert pack(parts) == payload
