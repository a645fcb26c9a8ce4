"""The keys and secrets with which Flower knows a site's node. None of it is what a claim rests on."""

import secrets
from base64 import b64encode
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ...common.errors import StorageError, StudyError
from ...common.system.files import write_atomically
from .certificates import new_key, private_pem

_PEM = serialization.Encoding.PEM

_OPENSSH = serialization.Encoding.OpenSSH


def make_node_key(private: Path, public: Path) -> None:
    """The key with which Flower knows a site's node, in the encodings that it reads. What a site says is signed by
    the site's own key, and not by this one."""
    key = new_key()
    write_atomically(private, private_pem(key, serialization.PrivateFormat.OpenSSH), mode=0o600)
    write_atomically(public, key.public_key().public_bytes(_OPENSSH, serialization.PublicFormat.OpenSSH) + b"\n")


def check_node_key(text: str) -> None:
    """Raises StudyError unless ``text`` is the public key of a node."""
    try:
        key = serialization.load_ssh_public_key(text.strip().encode())
    except (ValueError, TypeError) as error:
        raise _no_node_key() from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise _no_node_key()


def node_proof(private: Path, *, now: datetime) -> tuple[bytes, dict[str, str]]:
    """A node's public key as Flower has it (PEM), and the headers with which it calls the server at ``now``.

    Raises StorageError.
    """
    try:
        key = serialization.load_ssh_private_key(private.read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("a key of another kind")
    except (OSError, ValueError, TypeError) as error:
        raise StorageError(
            f"{private} cannot be read as a node's key ({type(error).__name__})",
            why="Flower knows the site's node by it",
            fix="run this as the node's user; if the file is damaged, put it back",
        ) from error
    public = key.public_key().public_bytes(_PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    time = now.isoformat()
    signature = key.sign(time.encode(), ec.ECDSA(hashes.SHA256()))
    headers = {"flwr-public-key": b64encode(public), "flwr-signature": b64encode(signature)}
    return public, {"flwr-timestamp": time} | {name: value.decode() for name, value in headers.items()}


def make_secret(path: Path) -> None:
    """The secret by which a SuperLink or a SuperNode knows its executor."""
    write_atomically(path, secrets.token_bytes(32), mode=0o600)


def _no_node_key() -> StudyError:
    return StudyError(
        "the node key is no ECDSA key in OpenSSH's form",
        why="Flower knows a site's node by it",
        fix="send the file site.json as `grandrounds client init` wrote it",
    )
