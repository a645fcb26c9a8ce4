"""Envelopes: what was signed is what arrives, and anything else is refused with one kind of error."""

import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st
from support.places import VECTORS

from grandrounds.common.crypto.identity import Identity, canonical_json, sha256, verify_signature
from grandrounds.common.errors import EnvelopeError
from grandrounds.common.protocol.envelope import ENVELOPE_LABEL, MAX_HEADER_BYTES, Envelope

RFC_8785 = json.loads((VECTORS / "rfc8785.json").read_text())
RFC_8032 = json.loads((VECTORS / "ed25519.json").read_text())

GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493  # L of RFC 8032
IDENTITY = Identity.from_bytes(bytes(32))
CONTEXT = {"manifest": "ab" * 32, "attempt": 1, "exchange": "advert", "sender": "site-1"}
BODIES = st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=5,
    ),
    max_size=4,
)


def sealed(**changes: Any) -> Envelope:
    fields: dict[str, Any] = CONTEXT | {"body": {"x": 1}, "payload": b"payload"} | changes
    return Envelope.seal(IDENTITY, **fields)


def header(**changes: object) -> bytes:
    fields = {**CONTEXT, "body": {}, "payload_bytes": 0, "payload_sha256": sha256(b"")} | changes
    return canonical_json(fields)


def wire_of(header_bytes: bytes, payload: bytes = b"") -> bytes:
    signature = IDENTITY.sign(ENVELOPE_LABEL, header_bytes)
    return struct.pack("<I", len(header_bytes)) + header_bytes + signature + payload


@given(body=BODIES, payload=st.binary(max_size=100), attempt=st.integers(0, 2**31))
def test_what_is_sealed_arrives(body: dict[str, object], payload: bytes, attempt: int) -> None:
    envelope = sealed(body=body, payload=payload, attempt=attempt)
    arrived = Envelope.parse(envelope.to_bytes())
    assert arrived == envelope
    arrived.verify(IDENTITY.public_key)


def test_the_payload_is_not_copied_on_arrival() -> None:
    wire = sealed(payload=b"update").to_bytes()
    payload = Envelope.parse(wire).payload
    assert isinstance(payload, memoryview) and payload.obj is wire


def test_a_signature_holds_for_its_key_label_and_data_only() -> None:
    signature = IDENTITY.sign(b"label\n", b"data")
    verify_signature(IDENTITY.public_key, signature, b"label\n", b"data")
    for key, label, data, s in (
        (Identity.generate().public_key, b"label\n", b"data", signature),
        (IDENTITY.public_key, b"other\n", b"data", signature),
        (IDENTITY.public_key, b"label\n", b"date", signature),
        (IDENTITY.public_key, b"label\n", b"data", bytes(64)),
        (IDENTITY.public_key, b"label\n", b"data", b""),
        ("not hex", b"label\n", b"data", signature),
        ("ab", b"label\n", b"data", signature),
    ):
        with pytest.raises(EnvelopeError, match="does not verify"):
            verify_signature(key, s, label, data)


@pytest.mark.parametrize("name, secret, public, message, signature", RFC_8032["cases"])
def test_keys_and_signatures_are_those_of_rfc_8032(
    name: str, secret: str, public: str, message: str, signature: str
) -> None:
    identity = Identity.from_bytes(bytes.fromhex(secret))
    assert identity.public_key == public
    data = bytes.fromhex(message)
    for cut in (0, len(data) // 2, len(data)):  # a label is nothing but the beginning of what is signed
        assert identity.sign(data[:cut], data[cut:]).hex() == signature
        verify_signature(public, bytes.fromhex(signature), data[:cut], data[cut:])


@pytest.mark.parametrize("multiple", [1, 2, 14])
def test_a_signature_has_one_encoding(multiple: int) -> None:
    # S and S + L satisfy the same equation; RFC 8032, section 5.1.7, accepts S < L only. 14 L is the most that fits.
    signature = IDENTITY.sign(b"label\n", b"data")
    scalar = int.from_bytes(signature[32:], "little") + multiple * GROUP_ORDER
    malleated = signature[:32] + scalar.to_bytes(32, "little")
    with pytest.raises(EnvelopeError, match="does not verify"):
        verify_signature(IDENTITY.public_key, malleated, b"label\n", b"data")


@pytest.mark.parametrize("size", [0, 1, 32, 63, 65, 128])
def test_a_signature_of_another_length_is_refused(size: int) -> None:
    signature = (IDENTITY.sign(b"label\n", b"data") * 2)[:size]
    with pytest.raises(EnvelopeError, match="does not verify"):
        verify_signature(IDENTITY.public_key, signature, b"label\n", b"data")


@pytest.mark.parametrize("size", [0, 1, 31, 33, 64])
def test_a_public_key_of_another_length_is_refused(size: int) -> None:
    key = (IDENTITY.public_key * 2)[: 2 * size]
    with pytest.raises(EnvelopeError, match="does not verify"):
        verify_signature(key, IDENTITY.sign(b"label\n", b"data"), b"label\n", b"data")


@pytest.mark.parametrize("key", RFC_8032["small_order_keys"])
def test_a_key_under_which_anybody_can_sign_is_refused(key: str) -> None:
    # With R of order 1 or 2 and S = 0, one message in the key's order (at most 8) verifies at least.
    for commitment in RFC_8032["small_order_keys"][:2]:
        for message in range(64):
            with pytest.raises(EnvelopeError):
                verify_signature(key, bytes.fromhex(commitment) + bytes(32), b"label\n", bytes([message]))


@given(position=st.integers(0, 10**6), change=st.integers(1, 255))
def test_no_byte_of_an_envelope_can_be_changed(position: int, change: int) -> None:
    wire = bytearray(sealed().to_bytes())
    wire[position % len(wire)] ^= change
    with pytest.raises(EnvelopeError):
        Envelope.parse(bytes(wire)).verify(IDENTITY.public_key)


@given(cut=st.integers(0, 10**6), extra=st.binary(max_size=3))
def test_no_byte_can_be_missing_or_added(cut: int, extra: bytes) -> None:
    wire = sealed().to_bytes()
    shorter = wire[: cut % len(wire)]
    for changed in (shorter, shorter + extra if len(shorter + extra) != len(wire) else b"", wire + b"\x00"):
        with pytest.raises(EnvelopeError):
            Envelope.parse(changed)


@given(st.binary(max_size=300))
@example(b"\xff" * 200)
@example(struct.pack("<I", 2) + b"{}" + bytes(64))
def test_any_bytes_parse_or_are_refused(wire: bytes) -> None:
    with pytest.raises(EnvelopeError):
        Envelope.parse(wire)


@given(st.binary(max_size=200) | BODIES.map(lambda body: json.dumps(body).encode()))
@example(b'{"a":' * 10_000)
@example(b"[" * 100_000)
@example(b"1" * 500_000)
@example(b'{"body":{"x":' + b"9" * 100_000 + b"}}")
@example(b"NaN")
@example(b'"\\ud800"')
def test_any_header_parses_or_is_refused(header_bytes: bytes) -> None:
    with pytest.raises(EnvelopeError):
        Envelope.parse(wire_of(header_bytes))


HOSTILE_BODIES = [
    "1" * 400,
    "1" * 5000,
    "NaN",
    "Infinity",
    "1e400",
    "-0",
    "1.0",
    '"\\ud800"',
    "[" * 500 + "]" * 500,
    "{" * 9,
]


@pytest.mark.parametrize("value", HOSTILE_BODIES, ids=lambda value: value[:12])
def test_a_hostile_body_in_a_good_header_is_refused(value: str) -> None:
    hostile = header().replace(b'"body":{}', b'"body":{"x":' + value.encode() + b"}")
    with pytest.raises(EnvelopeError):
        Envelope.parse(wire_of(hostile))


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.replace(b'"attempt":1', b'"attempt": 1'),
        lambda h: h.replace(b'"attempt":1', b'"attempt":1.0'),
        lambda h: h.replace(b'"attempt":1', b'"attempt":1,"attempt":1'),
        lambda h: h.replace(b'"body":{}', b'"body":{"b":1,"a":2}'),
        lambda h: h.replace(b'"body":{}', b'"body":{"\\u0061":2}'),
        lambda h: h + b" ",
        lambda h: b"\xef\xbb\xbf" + h,
    ],
)
def test_a_header_has_one_encoding(change: Callable[[bytes], bytes]) -> None:
    Envelope.parse(wire_of(header()))
    with pytest.raises(EnvelopeError):
        Envelope.parse(wire_of(change(header())))


@pytest.mark.parametrize(
    "changes",
    [
        {"manifest": "AB" * 32},
        {"manifest": "ab" * 31},
        {"attempt": -1},
        {"attempt": 2**31 + 1},
        {"attempt": True},
        {"attempt": "1"},
        {"exchange": "Advert"},
        {"sender": ""},
        {"sender": "site_1"},
        {"sender": "site-1\n"},
        {"sender": "s" * 64},
        {"body": []},
        {"payload_bytes": 1},
        {"payload_sha256": sha256(b"x")},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_header_holds_what_it_should(changes: dict[str, object]) -> None:
    with pytest.raises(EnvelopeError):
        Envelope.parse(wire_of(header(**changes)))


def test_a_header_beyond_the_limit_is_refused_before_it_is_read() -> None:
    wire = struct.pack("<I", MAX_HEADER_BYTES + 1) + bytes(MAX_HEADER_BYTES + 200)
    with pytest.raises(EnvelopeError, match="impossible length"):
        Envelope.parse(wire)


def test_canonical_json_sorts_and_leaves_no_space() -> None:
    assert canonical_json({"b": [1, "é"], "a": None}) == '{"a":null,"b":[1,"é"]}'.encode()


@pytest.mark.parametrize("bits, expected", RFC_8785["numbers"])
def test_numbers_are_written_as_rfc_8785_says(bits: str, expected: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical_json(number) == expected.encode()
    assert canonical_json({"x": [number]}) == b'{"x":[%b]}' % expected.encode()


@pytest.mark.parametrize("bits", RFC_8785["refused_numbers"])
def test_numbers_without_a_form_in_json_are_refused(bits: str) -> None:
    with pytest.raises(ValueError, match="not representable"):
        canonical_json(struct.unpack(">d", bytes.fromhex(bits)))


@pytest.mark.parametrize("name", RFC_8785["documents"])
def test_documents_are_written_as_rfc_8785_says(name: str) -> None:
    document, expected = RFC_8785["documents"][name]
    assert canonical_json(json.loads(document)) == expected.encode()
    assert canonical_json(json.loads(expected)) == expected.encode()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner),
    )
)
@example({"\U00010000": 1, "\uffff": 2})
@example(['"\\/', "\x7f", "\x1f", "\ud800"])
@example([2**53 - 1, -(2**53) + 1, 2**53, 1e21, -0.0])
@example({1: "a"})
def test_canonical_json_is_that_of_rfc_8785_or_nothing(value: Any) -> None:
    try:
        expected = rfc8785.dumps(value)
    except ValueError as error:
        with pytest.raises(type(error)):
            canonical_json(value)
    else:
        assert canonical_json(value) == expected
