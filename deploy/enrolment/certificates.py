"""Certificates of the server. None of it is what a claim rests on."""

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ...common.errors import StorageError, StudyError, reason
from ...common.system.files import write_atomically

CA_CERTIFICATE: Final = "ca.crt"
CA_KEY: Final = "ca.key"
CERTIFICATE: Final = "server.pem"
CERTIFICATE_KEY: Final = "server.key"
_PEM = serialization.Encoding.PEM
_WHY_TLS = "a site speaks to nobody else than who can show it"
_CA_DAYS, _SERVER_DAYS = 3650, 397
_USES = {
    "content_commitment": False,
    "key_encipherment": False,
    "data_encipherment": False,
    "key_agreement": False,
    "encipher_only": False,
    "decipher_only": False,
}


def make_certificates(folder: Path, host: str) -> None:
    """A certificate authority of this server's own, unless there is one, and a certificate for ``host``.

    Sites get ``ca.crt`` with the study and trust nothing else. Raises StudyError as ``renew_certificate`` does, and
    StorageError.
    """
    if not (folder / CA_CERTIFICATE).exists():  # it is written last: nobody can trust a key without it
        _make_authority(folder, f"Grand Rounds CA of {host}")
    renew_certificate(folder, host)


def renew_certificate(folder: Path, host: str) -> None:
    """A new key and certificate for ``host`` (a name or an address) of the authority in ``folder``.

    Sites that trust the authority need nothing new; a gate that runs has to be started again. Raises StudyError where
    the authority's key is not there, and StorageError.
    """
    ca, authority = _authority(folder)
    key = new_key()
    certificate = (
        _builder(_name(host), ca.subject, key.public_key(), _SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(_alternatives(host)), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.KeyUsage(digital_signature=True, key_cert_sign=False, crl_sign=False, **_USES), critical=True
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA384())
    )
    write_atomically(folder / CERTIFICATE_KEY, private_pem(key, serialization.PrivateFormat.PKCS8), mode=0o600)
    write_atomically(folder / CERTIFICATE, certificate.public_bytes(_PEM) + ca.public_bytes(_PEM))


def _make_authority(folder: Path, name: str) -> None:
    key = new_key()
    ca = (
        _builder(_name(name), _name(name), key.public_key(), _CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, **_USES), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    write_atomically(folder / CA_KEY, private_pem(key, serialization.PrivateFormat.PKCS8), mode=0o600)
    write_atomically(folder / CA_CERTIFICATE, ca.public_bytes(_PEM))


def _authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The authority's certificate, and the key that is its own."""
    try:
        ca = x509.load_pem_x509_certificate((folder / CA_CERTIFICATE).read_bytes())
        key = serialization.load_pem_private_key((folder / CA_KEY).read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise _no_authority(folder, f"its files cannot be read ({reason(error)})") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != ca.public_key():
        raise _no_authority(folder, f"{CA_KEY} is another authority's")
    return ca, key


def check_certificates(folder: Path, host: str, *, now: datetime) -> timedelta:
    """How long the certificate in ``folder`` holds from ``now``, with its chain and the authority beside it.

    Raises StudyError unless it is one for ``host``, in force, with its own key, and with an authority beside it; and
    StorageError. Whether that authority signed it, whoever connects finds out.
    """
    path = folder / CERTIFICATE
    try:
        trusted = x509.load_pem_x509_certificates((folder / CA_CERTIFICATE).read_bytes())
        certificate, *chain = x509.load_pem_x509_certificates(path.read_bytes())
        key = serialization.load_pem_private_key((folder / CERTIFICATE_KEY).read_bytes(), password=None)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except OSError as error:
        raise StorageError(
            f"{error.filename} cannot be read", why=_WHY_TLS, fix="put it there, or run `grandrounds server init`"
        ) from error
    except (ValueError, TypeError, x509.ExtensionNotFound) as error:
        raise _no_certificate(folder, "one of its files is no certificate or no plain key, or names no host") from error
    if key.public_key() != certificate.public_key():
        raise _no_certificate(folder, "its key is another certificate's")
    if not _is_named(names, host):
        raise _no_certificate(folder, f"it is not for {host}, by which hospitals reach this server")
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= now < end:
        raise _no_certificate(folder, f"it is in force from {begin:%d %B %Y %H:%M} to {end:%d %B %Y %H:%M}")
    # Of several authorities one is enough.
    ends = (end, *(each.not_valid_after_utc for each in chain), max(each.not_valid_after_utc for each in trusted))
    if min(ends) <= now:
        raise _no_certificate(folder, f"its chain or its authority was in force until {min(ends):%d %B %Y %H:%M}")
    return min(ends) - now


def certificate_in_words(der: bytes) -> str:
    """Whose a certificate is, who signed it, and when it is in force; it may be anybody's."""
    try:
        found = x509.load_der_x509_certificate(der)
        subject, issuer = (name.rfc4514_string() for name in (found.subject, found.issuer))
    except ValueError:
        return "one that cannot be read"
    text = f"that of {subject}, signed by {issuer}"
    force = f"in force from {found.not_valid_before_utc:%d %B %Y} to {found.not_valid_after_utc:%d %B %Y}"
    return f"{''.join(filter(str.isprintable, text))[:300]}, {force}"


def _is_named(names: x509.SubjectAlternativeName, host: str) -> bool:
    try:
        return ipaddress.ip_address(host) in names.get_values_for_type(x509.IPAddress)
    except ValueError:
        pass  # a name, then
    name = host.lower().rstrip(".")
    given = [given.lower() for given in names.get_values_for_type(x509.DNSName)]
    return name in given or f"*.{name.partition('.')[2]}" in given


def _no_certificate(folder: Path, what: str) -> StudyError:
    return StudyError(
        f"the certificate in {folder} cannot serve: {what}",
        why=_WHY_TLS,
        fix=f"put {CERTIFICATE} (with its chain), {CERTIFICATE_KEY} and {CA_CERTIFICATE} there that fit, or remove "
        f"{CERTIFICATE} and run `grandrounds server init` for a new one of the same authority; sites need nothing new",
    )


def _no_authority(folder: Path, what: str) -> StudyError:
    return StudyError(
        f"the authority in {folder} can sign no certificate: {what}",
        why="sites trust what it signed, and nothing else",
        fix=f"put {CA_KEY} back beside {CA_CERTIFICATE}; or get a certificate where {CA_CERTIFICATE} is from, and give "
        f"it to `grandrounds server init`; without {CA_CERTIFICATE} that makes a new one, which sites have to be sent",
    )


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key on the one curve that certificates and nodes use here."""
    return ec.generate_private_key(ec.SECP384R1())


def private_pem(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    """The key in PEM, without a password."""
    return key.private_bytes(_PEM, form, serialization.NoEncryption())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # a site's clock may be behind
        .not_valid_after(now + timedelta(days=days))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _alternatives(host: str) -> list[x509.GeneralName]:
    """The host, and the loopback names under which the server reaches itself."""
    loopback: list[x509.GeneralName] = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    if host in ("localhost", "127.0.0.1"):
        return loopback
    try:
        return [x509.IPAddress(ipaddress.ip_address(host)), *loopback]
    except ValueError:
        return [x509.DNSName(host), *loopback]
