"""What both ends agree on: the parameters, who is in an attempt, and the transcript that its keys are bound to."""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

from ..crypto.identity import Identity
from ..errors import EnvelopeError, ProtocolError
from ..protocol.envelope import Envelope
from ..protocol.messages import Message
from ..system.content import Content
from .parameters import SecaggParameters

TRANSCRIPT_LABEL = b"grandrounds/secagg/v1/transcript\n"
M = TypeVar("M", bound=Message)


def open_message(
    parameters: SecaggParameters, wire: Content, message: type[M], *, attempt: int, senders: Iterable[str]
) -> tuple[Envelope, M]:
    """A message of this study and attempt that one of ``senders`` signed.

    Raises EnvelopeError if it is of another study, attempt or exchange, malformed, or not signed by whom it names.
    """
    envelope = Envelope.parse(wire)
    verify_sender(parameters, envelope, attempt=attempt, senders=senders)
    return envelope, message.of(envelope)


def seal_message(
    parameters: SecaggParameters,
    identity: Identity,
    message: Message,
    *,
    attempt: int,
    sender: str,
    payload: Content = b"",
) -> Envelope:
    """``message`` signed in its context; what ``open_message`` opens."""
    return Envelope.seal(
        identity,
        manifest=parameters.manifest,
        attempt=attempt,
        exchange=message.exchange,
        sender=sender,
        body=message.model_dump(mode="json"),
        payload=payload,
    )


def verify_sender(parameters: SecaggParameters, envelope: Envelope, *, attempt: int, senders: Iterable[str]) -> None:
    """Raises EnvelopeError unless one of ``senders`` signed ``envelope`` for this study and attempt."""
    if envelope.manifest != parameters.manifest or envelope.attempt != attempt or envelope.sender not in senders:
        raise EnvelopeError(
            f"a message of {envelope.sender} for attempt {envelope.attempt}, in attempt {attempt} or another study",
            why="a replayed message could make a site answer for another attempt",
            fix="check what carried the message; sites and server must hold the same manifest",
        )
    envelope.verify(parameters.key_of(envelope.sender))


def check_group(
    parameters: SecaggParameters, group: Sequence[str], *, what: str, within: Iterable[str], member: str | None = None
) -> None:
    """Raises ProtocolError unless ``group`` is t or more of ``within``, each once, in roster order, with ``member``."""
    if not set(group) <= set(within):
        raise _bad_group(f"{what} has sites that cannot be in it")
    if any(parameters.point(one) >= parameters.point(other) for one, other in pairwise(group)):
        raise _bad_group(f"{what} is not in roster order, each site once")
    if member is not None and member not in group:
        raise _bad_group(f"{what} is without {member}, to whom it was sent")
    if len(group) < parameters.threshold:
        raise _bad_group(f"{what} has {len(group)} sites where {parameters.threshold} are needed")


def transcript_hash(begin_hash: str, adverts: Iterable[Envelope]) -> bytes:
    """T1, 32 bytes: H(Begin) and the signed header of every advert of U1, in roster order, each with its length.

    Sites that were shown different adverts, or other sites, have different transcripts and so share no keys.
    """
    digest = hashlib.sha256(TRANSCRIPT_LABEL + bytes.fromhex(begin_hash))
    for advert in adverts:
        digest.update(len(advert.header).to_bytes(4, "little") + advert.header)
    return digest.digest()


def refused(what: str, *, why: str) -> ProtocolError:
    """A message that the protocol does not allow, as the error with which a site leaves the attempt."""
    return ProtocolError(what, why=why, fix="leave this attempt; if it happens again, ask who runs the server")


def _bad_group(what: str) -> ProtocolError:
    return refused(what, why="a sum over too few or invented sites could reveal one site's update")
