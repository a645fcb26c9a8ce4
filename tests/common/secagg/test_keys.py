"""Keys: both ends derive the same, everything else derives another, and bad points are refused."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grandrounds.common.errors import ProtocolError
from grandrounds.common.secagg import keys

P = 2**255 - 19
TRANSCRIPT = bytes(range(32))
# Every encoding of a point of order 1, 2, 4 or 8, canonical or not: https://cr.yp.to/ecdh.html#validate
ORDER_8 = (
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)
LOW_ORDER = [0, 1, *ORDER_8, P - 1, P, P + 1]


def encoding(point: int) -> str:
    return point.to_bytes(32, "little").hex()


def secrets_of(*numbers: int) -> list[keys.AttemptSecrets]:
    return [
        keys.AttemptSecrets(
            channel=bytes([n]) * 32, mask=bytes([n + 100]) * 32, seed=bytes([n + 200]) * 32, noise=bytes([n + 50]) * 32
        )
        for n in numbers
    ]


def test_fresh_secrets_are_new_each_time_and_hidden_when_printed() -> None:
    one, other = keys.AttemptSecrets.fresh(), keys.AttemptSecrets.fresh()
    drawn = [secret for s in (one, other) for secret in (s.channel, s.mask, s.seed, s.noise)]
    assert len(set(drawn)) == 8
    assert not any(secret.hex() in repr(one) or repr(secret) in repr(one) for secret in drawn)


@pytest.mark.parametrize("point", [point + high for point in LOW_ORDER for high in (0, 2**255)])
def test_a_low_order_point_is_refused_in_every_encoding(point: int) -> None:
    with pytest.raises(ProtocolError, match=r"low order|not canonical"):
        keys.check_public_keys([encoding(point)])


@pytest.mark.parametrize("point", [P, P + 9, 2**255 - 1, 2**255 + 9, 2**256 - 1])
def test_a_second_encoding_of_a_point_is_refused(point: int) -> None:
    with pytest.raises(ProtocolError, match="not canonical"):
        keys.check_public_keys([encoding(point)])


def test_one_key_twice_is_refused() -> None:
    key = keys.public_key(bytes(32))
    with pytest.raises(ProtocolError, match="twice"):
        keys.check_public_keys([key, encoding(9), key])


@given(st.binary(min_size=32, max_size=32))
def test_every_key_that_a_site_draws_is_accepted(private: bytes) -> None:
    keys.check_public_keys([keys.public_key(private)])


def test_both_ends_of_a_pair_derive_one_mask_key_and_no_other_pair_does() -> None:
    a, b = secrets_of(1, 2)
    own = keys.pair_mask_key(a.mask, keys.public_key(b.mask), transcript=TRANSCRIPT, first="a", second="b")
    assert own == keys.pair_mask_key(b.mask, keys.public_key(a.mask), transcript=TRANSCRIPT, first="a", second="b")
    # Names are in the derivation: a site that copies b's key still shares no mask with a.
    copied = keys.pair_mask_key(a.mask, keys.public_key(b.mask), transcript=TRANSCRIPT, first="a", second="copy")
    assert own != copied


def test_a_loaded_key_agrees_on_what_its_bytes_agree_on() -> None:
    one, other = secrets_of(1, 2)
    peer = keys.public_key(other.mask)
    ends: dict[str, Any] = {"transcript": bytes(32), "first": "a", "second": "b"}
    assert keys.public_key(one.mask_key) == keys.public_key(one.mask)
    assert keys.pair_mask_key(one.mask_key, peer, **ends) == keys.pair_mask_key(one.mask, peer, **ends)


def test_every_derivation_differs_by_purpose_transcript_and_ends() -> None:
    a, b = secrets_of(1, 2)
    public = keys.public_key(b.mask)
    derived = [
        derive
        for transcript in (TRANSCRIPT, bytes(32))
        for one, other in itertools.permutations(("site-1", "site-11", "1"), 2)
        for derive in (
            keys.pair_mask_key(a.mask, public, transcript=transcript, first=one, second=other),
            keys.channel_key(a.mask, public, transcript=transcript, sender=one, recipient=other),
            keys.self_mask_key(a.mask, transcript=transcript, name=one),
        )
    ]
    assert len(set(derived)) == 2 * 6 * 2 + 2 * 3  # a self mask depends on one name only


def test_names_cannot_run_into_each_other() -> None:
    sequences = [("ab", "c"), ("a", "bc"), ("abc", ""), ("", "abc")]
    assert len({keys.named(one) + keys.named(other) for one, other in sequences}) == len(sequences)


def test_a_ciphertext_opens_only_for_its_sender_recipient_and_transcript() -> None:
    context: dict[str, Any] = {"transcript": TRANSCRIPT, "sender": "a", "recipient": "b"}
    ciphertext = keys.encrypt(bytes(32), b"shares", **context)
    assert keys.decrypt(bytes(32), ciphertext, **context) == b"shares"
    for change in ({"transcript": bytes(32)}, {"sender": "b", "recipient": "a"}, {"sender": "c"}, {"recipient": "c"}):
        with pytest.raises(ProtocolError, match="does not open"):
            keys.decrypt(bytes(32), ciphertext, **(context | change))


@given(st.integers(0, 21), st.integers(1, 255))
def test_an_altered_ciphertext_does_not_open(position: int, change: int) -> None:
    context: dict[str, Any] = {"transcript": TRANSCRIPT, "sender": "a", "recipient": "b"}
    altered = bytearray(keys.encrypt(bytes(32), b"shares", **context))
    altered[position] ^= change
    with pytest.raises(ProtocolError, match="does not open"):
        keys.decrypt(bytes(32), bytes(altered), **context)


@pytest.mark.parametrize("ciphertext", [b"", b"short"])
def test_what_is_too_short_for_a_ciphertext_does_not_open(ciphertext: bytes) -> None:
    with pytest.raises(ProtocolError, match="does not open"):
        keys.decrypt(bytes(32), ciphertext, transcript=TRANSCRIPT, sender="a", recipient="b")


def test_a_commitment_is_to_the_seed_in_its_context() -> None:
    context: dict[str, Any] = {"manifest": "ab" * 32, "attempt": 1, "sender": "a"}
    commitments = {
        keys.seed_commitment(seed, **(context | change))
        for seed in (bytes(32), b"\x01" * 32)
        for change in ({}, {"manifest": "cd" * 32}, {"attempt": 2}, {"sender": "b"})
    }
    assert len(commitments) == 8
