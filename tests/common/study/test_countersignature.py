"""A countersignature: one site, under one key, agrees to one manifest in one place."""

import pytest
from pydantic import ValidationError

from grandrounds.common.crypto.identity import Identity
from grandrounds.common.errors import EnvelopeError
from grandrounds.common.ledger.chain import LEDGER_LABEL
from grandrounds.common.protocol.envelope import ENVELOPE_LABEL
from grandrounds.common.study.manifest import COUNTERSIGNATURE_LABEL, Countersignature

KEY, MANIFEST = Identity.generate(), "ab" * 32


def made_by(key, site="site-1"):
    return Countersignature.of(key, site=site, manifest=MANIFEST, ledger_length=3, ledger_head="0d" * 32, reservation=2)


def signed(**changes):
    made = made_by(KEY)
    return Countersignature(**(made.model_dump() | changes))


def test_a_countersignature_is_its_keys():
    assert signed().key == KEY.public_key
    signed().verify()
    Countersignature.model_validate_json(signed().model_dump_json()).verify()


@pytest.mark.parametrize(
    "changes",
    [
        {"site": "site-2"},
        {"manifest": "cd" * 32},
        {"ledger_length": 2},
        {"ledger_head": "0e" * 32},
        {"reservation": 3},
        {"key": Identity.generate().public_key},
        {"key": "00" * 32},
        {"signature": "00" * 64},
        {"signature": made_by(KEY, site="site-2").signature},
        {"signature": made_by(Identity.generate()).signature},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_countersignature_stands_for_nothing_else(changes):
    with pytest.raises(EnvelopeError):
        signed(**changes).verify()


@pytest.mark.parametrize("label", [b"", ENVELOPE_LABEL, LEDGER_LABEL])
def test_what_the_key_signed_elsewhere_is_no_countersignature(label):
    assert label != COUNTERSIGNATURE_LABEL
    signature = KEY.sign(label, f"{MANIFEST} site-1 3 {'0d' * 32} 2".encode()).hex()
    with pytest.raises(EnvelopeError):
        signed(signature=signature).verify()


@pytest.mark.parametrize(
    "changes",
    [{"extra": 1}, {"site": "a b"}, {"site": ""}, {"manifest": "AB" * 32}, {"signature": "AB" * 64}, {"key": "ab"}],
    ids=str,
)
def test_a_countersignature_has_one_form(changes):
    with pytest.raises(ValidationError):
        signed(**changes)
