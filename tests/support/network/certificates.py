"""Server certificates that are wrong in one thing, where ``provision`` makes good ones."""

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from grandrounds.deploy.enrolment.certificates import CA_CERTIFICATE, CA_KEY, CERTIFICATE


def reissue(folder, *, host=None, begins=None, ends=None):
    """Let the authority in ``folder`` sign the certificate there anew, for ``host`` alone, or with other dates."""
    old = x509.load_pem_x509_certificate((folder / CERTIFICATE).read_bytes())
    authority = serialization.load_pem_private_key((folder / CA_KEY).read_bytes(), password=None)
    assert isinstance(authority, EllipticCurvePrivateKey)
    builder = x509.CertificateBuilder(
        issuer_name=old.issuer,
        subject_name=old.subject,
        public_key=old.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=begins or old.not_valid_before_utc,
        not_valid_after=ends or old.not_valid_after_utc,
    )
    for extension in old.extensions:
        value = extension.value
        if host is not None and isinstance(value, x509.SubjectAlternativeName):
            value = x509.SubjectAlternativeName([x509.DNSName(host)])
        builder = builder.add_extension(value, extension.critical)
    new = builder.sign(authority, hashes.SHA384())
    chain = new.public_bytes(serialization.Encoding.PEM) + (folder / CA_CERTIFICATE).read_bytes()
    (folder / CERTIFICATE).write_bytes(chain)
