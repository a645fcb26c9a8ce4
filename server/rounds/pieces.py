"""How the server carries an envelope that is too large for one message of Flower's, and fetches such an answer."""

import hashlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar

from ...common.crypto.identity import sha256
from ...common.errors import EnvelopeError, StorageError
from ...common.protocol.messages import FIELD
from ...common.protocol.pieces import PIECE_BYTES, Held, Piece, Said, Wanted, Whole, read_said
from ...common.system.content import Content, Stored

Record = Mapping[str, Any]
# Yields the fields of a message, is sent those of the reply to it, and returns the site's answer.
Carried = Generator[Record, Record, Content]
SaidT = TypeVar("SaidT", bound=Said)


def whole(message: Content) -> Carried:
    """A message that is carried at once, however large, and answered so."""
    answer = (yield {FIELD: bytes(message[:])}).get(FIELD)
    return answer if isinstance(answer, bytes) else b""


@dataclass(frozen=True, kw_only=True)
class InPieces:
    """Carries a message in pieces where it has more than one, and fetches an answer of at most ``largest_bytes``.

    An answer lies in a file of ``folder`` then. What a site replies is only ever taken for its own answer; what does
    not fit raises EnvelopeError, and a full disk StorageError.
    """

    folder: Path
    largest_bytes: int
    piece_bytes: int = PIECE_BYTES

    def __call__(self, message: Content) -> Carried:
        """Carry one message."""
        if len(message) <= self.piece_bytes:
            reply = yield {FIELD: bytes(message[:])}
        else:
            reply = yield from self._sent(message)
        if isinstance(reply.get(FIELD), bytes):
            return bytes(reply[FIELD])
        return (yield from self._fetched(_expect(Piece, reply)))

    def _sent(self, message: Content) -> Generator[Record, Record, Record]:
        """The reply to ``message``, once the site has all of it."""
        name, held = sha256(message), 0
        while True:
            while held < len(message):
                piece = bytes(message[held : held + self.piece_bytes])
                reply = yield Piece(whole=name, size=len(message), start=held, piece=piece).model_dump()
                held = min(_expect(Held, reply).held, len(message))
            reply = yield Whole(whole=name).model_dump()
            if set(reply) != {"held"}:
                return reply
            held = min(_expect(Held, reply).held, len(message) - 1)

    def _fetched(self, first: Piece) -> Generator[Record, Record, Stored]:
        if first.size > self.largest_bytes:
            raise _unfit(f"an answer of {first.size} bytes, where none has more than {self.largest_bytes}")
        digest, piece = hashlib.sha256(), first
        try:
            answer = TemporaryFile(dir=self.folder)  # noqa: SIM115 (what is returned lies in it)
            while True:
                place = (piece.whole, piece.size, piece.start)
                if place != (first.whole, first.size, answer.tell()) or not piece.piece:
                    raise _unfit("a piece of an answer that is not the one asked for")
                answer.write(piece.piece)
                digest.update(piece.piece)
                if answer.tell() >= first.size:
                    break
                piece = _expect(Piece, (yield Wanted(answer=first.whole, start=answer.tell()).model_dump()))
            answer.flush()
        except OSError as error:
            raise StorageError(
                f"an answer cannot be kept in {self.folder}: {error.strerror}",
                why="a large one is put together there from its pieces",
                fix="free space, then run the same command again; no more than this attempt is lost",
            ) from error
        if answer.tell() != first.size or digest.hexdigest() != first.whole:
            raise _unfit("an answer that is not the one announced")
        return Stored(answer)


def may_repeat(record: Record) -> bool:
    """Whether a message may be sent again where no reply came: what it asks for changes nothing more then."""
    return "piece" in record or "answer" in record


def _expect(kind: type[SaidT], reply: Record) -> SaidT:
    said = read_said(reply)
    if not isinstance(said, kind):
        raise _unfit("a reply that is not the one due")
    return said


def _unfit(what: str) -> EnvelopeError:
    return EnvelopeError(
        what,
        why="pieces of an envelope are put together by their places",
        fix="check that both ends run the version in the manifest",
    )
