"""The keys and secrets with which Flower knows a site's node. None of it is what a claim rests on."""

import secrets
from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ...common.errors import StorageError, StudyError, reason
from ...common.system.files import write_atomically
from .certificates import new_key, private_pem

_PEM = serialization.Encoding.PEM

_OPENSSH = serialization.Encoding.OpenSSH
_KEY, _SIGNATURE, _TIME = "flwr-public-key", "flwr-signature", "flwr-timestamp"
_LONGEST_HEADER: Final = 1024
# As Flower bears of a node's clock against the server's.
_AHEAD, _BEHIND = timedelta(seconds=5), timedelta(seconds=305)


def make_node_key(private: Path, public: Path) -> None:
    """The key with which Flower knows a site's node, in the encodings that it reads. What a site says is signed by
    the site's own key, and not by this one."""
    key = new_key()
    write_atomically(private, private_pem(key, serialization.PrivateFormat.OpenSSH), mode=0o600)
    write_atomically(public, key.public_key().public_bytes(_OPENSSH, serialization.PublicFormat.OpenSSH) + b"\n")


def node_public_key(private: Path) -> str:
    """The public half of a node's key, as Flower reads it. Raises StorageError."""
    return _read(private).public_key().public_bytes(_OPENSSH, serialization.PublicFormat.OpenSSH).decode()


def check_node_key(text: str) -> None:
    """Raises StudyError unless ``text`` is the public key of a node."""
    _public(text)


def node_pem(text: str) -> bytes:
    """A node's public key as Flower has it (PEM). Raises StudyError unless it is one."""
    return _pem(_public(text))


def _public(text: str) -> ec.EllipticCurvePublicKey:
    try:
        key = serialization.load_ssh_public_key(text.strip().encode())
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_node_key() from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise _no_node_key()
    return key


def _pem(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(_PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def node_proof(private: Path, *, now: datetime) -> tuple[bytes, dict[str, str]]:
    """A node's public key as Flower has it (PEM), and the headers with which it calls the server at ``now``.

    Raises StorageError.
    """
    key = _read(private)
    public = _pem(key.public_key())
    time = now.isoformat()
    signature = key.sign(time.encode(), ec.ECDSA(hashes.SHA256()))
    headers = {_KEY: b64encode(public), _SIGNATURE: b64encode(signature)}
    return public, {_TIME: time} | {name: value.decode() for name, value in headers.items()}


def _read(private: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_ssh_private_key(private.read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("a key of another kind")
    except (OSError, ValueError, TypeError) as error:
        raise StorageError(
            f"{private} cannot be read as a node's key ({reason(error)})",
            why="Flower knows the site's node by it",
            fix="run this as the node's user; if the file is damaged, put it back",
        ) from error
    return key


def proven_key(headers: Mapping[str, str], *, now: datetime) -> bytes | None:
    """The public key (PEM) that a call's headers prove at ``now``, as Flower would judge; None where they prove none.

    It may be anybody's: whether it was enrolled, they do not say.
    """
    given = [headers.get(name, "") for name in (_KEY, _SIGNATURE, _TIME)]
    if any(len(value) > _LONGEST_HEADER for value in given):
        return None
    try:
        public, signature = (b64decode(value, validate=True) for value in given[:2])
        age = now - datetime.fromisoformat(given[2])
        key = serialization.load_pem_public_key(public)
        if not isinstance(key, ec.EllipticCurvePublicKey) or not -_AHEAD < age < _BEHIND:
            return None
        key.verify(signature, given[2].encode("ascii"), ec.ECDSA(hashes.SHA256()))
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return None
    return _pem(key)


def public_pem(node_key: str) -> bytes:
    """A node's public key (OpenSSH), in PEM. Raises StudyError."""
    return _pem(_public(node_key))


def make_secret(path: Path) -> None:
    """The secret by which a SuperLink or a SuperNode knows its executor."""
    write_atomically(path, secrets.token_bytes(32), mode=0o600)


def _no_node_key() -> StudyError:
    return StudyError(
        "the node key is no ECDSA key in OpenSSH's form",
        why="Flower knows a site's node by it",
        fix="send the file site.json as `grandrounds client init` wrote it",
    )
