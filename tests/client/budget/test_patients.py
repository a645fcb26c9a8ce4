"""A patient has one budget: assets know theirs by fingerprints, which say nothing of anybody without the site's key."""

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grandrounds.client.budget.asset import Asset
from grandrounds.client.budget.patients import FingerprintKey, Patients
from grandrounds.client.budget.reservations import Reservations
from grandrounds.client.state.database import DATABASE, SiteDatabase
from grandrounds.common.errors import PrivacyError, StorageError
from grandrounds.common.sources.identifiers import canonical

KEY = FingerprintKey(bytes(32))


def registered(database):
    for name in ("first", "second", "third"):
        Reservations(database).register(Asset.summed(name, epsilon=1.0, delta=1e-6))
    return database


@pytest.fixture
def database():
    return registered(SiteDatabase.in_memory())


@given(first=st.sets(st.text(max_size=4), max_size=6), second=st.sets(st.text(max_size=4), max_size=6))
def test_an_asset_is_refused_exactly_where_it_shares_a_patient_with_another(first, second):
    database = registered(SiteDatabase.in_memory())
    patients = Patients(database, KEY)
    patients.claim("first", first)
    patients.claim("first", first | {"more"})  # who come later are the asset's, too
    known = {canonical(patient) for patient in first | {"more"}}
    shared = any(canonical(patient) in known for patient in second)
    try:
        patients.claim("second", second)
    except PrivacyError:
        assert shared
        patients.claim("third", {patient for patient in second if canonical(patient) not in known})  # nothing was kept
    else:
        assert not shared


def test_the_asset_is_named_by_its_number_and_no_patient_is(database):
    patients = Patients(database, KEY)
    patients.claim("second", ["Wilhelmina"])
    for refused in (patients.check, patients.claim):
        with pytest.raises(PrivacyError, match="asset third has patients of data asset 2, second") as error:
            refused("third", ["someone", "Wilhelmina"])
        assert "Wilhelmina" not in error.value.diagnostics()


def test_what_is_kept_of_a_patient_has_sixteen_bytes_and_follows_from_the_key(tmp_path):
    database = registered(SiteDatabase.open(tmp_path))
    Patients(database, KEY).claim("first", ["Wilhelmina"])
    database.close()
    assert b"Wilhelmina" not in (tmp_path / DATABASE).read_bytes()
    with sqlite3.connect(tmp_path / DATABASE) as read:
        kept = read.execute("SELECT fingerprint FROM patients WHERE asset = 'first'").fetchall()
    # HMAC-SHA256 under 32 zero bytes, by `openssl dgst -sha256 -mac HMAC -macopt hexkey:00…`, cut to 16 bytes; of the
    # identifier's canonical form.
    assert kept == [(bytes.fromhex("c94b96dc37991732e725ffed19b82aa5"),)]
    assert FingerprintKey(b"1" * 32).of("Wilhelmina") != KEY.of("Wilhelmina")


def test_under_another_key_no_patient_is_new(database):
    Patients(database, KEY).claim("first", ["Wilhelmina"])
    with pytest.raises(StorageError, match="another than the one that its state was written with"):
        Patients(database, FingerprintKey(b"1" * 32)).claim("second", ["Wilhelmina"])


def test_a_key_is_made_once_is_private_and_is_missed(tmp_path):
    path = tmp_path / "fingerprint.key"
    with pytest.raises(StorageError, match="is missing"):
        FingerprintKey.read(path)
    FingerprintKey.make(path)
    assert path.stat().st_mode & 0o077 == 0
    key = FingerprintKey.read(path)
    FingerprintKey.make(path)
    assert FingerprintKey.read(path) == key
    path.write_text("00")
    with pytest.raises(StorageError, match="damaged"):
        FingerprintKey.read(path)
