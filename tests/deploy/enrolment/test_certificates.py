"""Certificates and node keys: what Flower takes, and what cannot serve is refused before a site meets it."""

import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from grandrounds.common.errors import StorageError, StudyError
from grandrounds.deploy.enrolment.certificates import (
    CA_CERTIFICATE,
    CA_KEY,
    CERTIFICATE,
    CERTIFICATE_KEY,
    check_certificates,
    make_certificates,
    renew_certificate,
)
from grandrounds.deploy.enrolment.node_keys import check_node_key, make_node_key, make_secret


def now():
    """Asked when a certificate is made, which holds from a few minutes before that."""
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    make_certificates(folder, "server.example.org")
    return folder


@pytest.fixture
def folder(made, tmp_path):
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def handshake(folder, host):
    """TLS in memory, between who has the certificate and who trusts the authority."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / CERTIFICATE, folder / CERTIFICATE_KEY)
    client = ssl.create_default_context(cafile=folder / CA_CERTIFICATE)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(back, there, server_hostname=host), server.wrap_bio(there, back, server_side=True)]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue


@pytest.mark.parametrize("host", ["server.example.org", "localhost", "127.0.0.1"])
def test_who_trusts_the_authority_trusts_the_server_under_its_names(made, host):
    handshake(made, host)


def test_and_under_no_other(made):
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
        handshake(made, "other.example.org")


def test_another_authority_does_not_vouch_for_it(folder, tmp_path):
    make_certificates(tmp_path / "other", "server.example.org")
    (folder / CA_CERTIFICATE).write_bytes((tmp_path / "other" / CA_CERTIFICATE).read_bytes())
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(folder, "server.example.org")


def test_keys_and_secrets_are_for_their_owner_alone(made, tmp_path):
    make_node_key(tmp_path / "node.key", tmp_path / "node.pub")
    make_secret(tmp_path / "secret")
    private = [made / "ca.key", made / CERTIFICATE_KEY, tmp_path / "node.key", tmp_path / "secret"]
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}


def test_a_certificate_that_fits_holds_for_as_long_as_it_says(made):
    assert timedelta(days=396) < check_certificates(made, "server.example.org", now=now()) < timedelta(days=398)


def test_an_address_is_a_name_too(tmp_path):
    make_certificates(tmp_path, "192.0.2.7")
    check_certificates(tmp_path, "192.0.2.7", now=now())
    with pytest.raises(StudyError, match=r"not for 192\.0\.2\.8"):
        check_certificates(tmp_path, "192.0.2.8", now=now())


def test_a_wildcard_names_the_hosts_one_level_below_it(tmp_path):
    make_certificates(tmp_path, "*.example.org")
    check_certificates(tmp_path, "Server.example.org", now=now())
    for host in ("example.org", "a.server.example.org"):
        with pytest.raises(StudyError, match="not for"):
            check_certificates(tmp_path, host, now=now())


@pytest.mark.parametrize("days", [-1, 398])
def test_a_certificate_out_of_its_time_is_refused(made, days):
    with pytest.raises(StudyError, match="in force"):
        check_certificates(made, "server.example.org", now=now() + timedelta(days=days))


def test_a_certificate_without_its_own_key_is_refused(folder, tmp_path):
    make_certificates(tmp_path / "other", "server.example.org")
    (folder / CERTIFICATE_KEY).write_bytes((tmp_path / "other" / CERTIFICATE_KEY).read_bytes())
    with pytest.raises(StudyError, match="another certificate's"):
        check_certificates(folder, "server.example.org", now=now())


@pytest.mark.parametrize("name", [CERTIFICATE, CERTIFICATE_KEY, CA_CERTIFICATE])
def test_a_file_that_is_none_or_is_missing_is_refused(folder, name):
    (folder / name).write_bytes(b"none")
    with pytest.raises(StudyError, match="one of its files"):
        check_certificates(folder, "server.example.org", now=now())
    (folder / name).unlink()
    with pytest.raises(StorageError, match=name):
        check_certificates(folder, "server.example.org", now=now())


def test_a_renewed_certificate_is_trusted_by_who_trusted_the_one_before(made, folder):
    renew_certificate(folder, "server.example.org")
    before, after = (x509.load_pem_x509_certificate((path / CERTIFICATE).read_bytes()) for path in (made, folder))
    assert before.public_key() != after.public_key()
    for name in (CA_CERTIFICATE, CA_KEY):
        assert (folder / name).read_bytes() == (made / name).read_bytes()
    check_certificates(folder, "server.example.org", now=now())
    handshake(folder, "server.example.org")


def test_who_has_an_authority_keeps_it_and_gets_a_missing_certificate_of_it(made, folder):
    (folder / CERTIFICATE).unlink()
    make_certificates(folder, "moved.example.org")
    assert (folder / CA_CERTIFICATE).read_bytes() == (made / CA_CERTIFICATE).read_bytes()
    handshake(folder, "moved.example.org")


def test_an_authority_that_was_half_made_is_made_again(folder):
    (folder / CA_CERTIFICATE).unlink()
    make_certificates(folder, "server.example.org")
    handshake(folder, "server.example.org")


def test_without_its_own_key_an_authority_signs_nothing(folder, tmp_path):
    before = (folder / CERTIFICATE).read_bytes()
    make_certificates(tmp_path / "other", "server.example.org")
    (folder / CA_KEY).write_bytes((tmp_path / "other" / CA_KEY).read_bytes())
    with pytest.raises(StudyError, match="another authority's"):
        renew_certificate(folder, "server.example.org")
    (folder / CA_KEY).unlink()
    with pytest.raises(StudyError, match="cannot be read"):
        make_certificates(folder, "server.example.org")
    assert (folder / CERTIFICATE).read_bytes() == before


def test_a_node_key_is_one_that_flower_reads(tmp_path):
    make_node_key(tmp_path / "node.key", tmp_path / "node.pub")
    text = (tmp_path / "node.pub").read_text()
    assert text.startswith("ecdsa-sha2-nistp384 ")
    check_node_key(text)


@pytest.mark.parametrize(
    "text",
    ["", "none", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBbR2IKUzAQs7mhaF4cyUXW9Ia1cGFpUbnEYGZkzyV7y"],
)
def test_another_key_is_refused_as_a_node_s(text):
    with pytest.raises(StudyError, match="node key"):
        check_node_key(text)
