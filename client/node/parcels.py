"""Where a node keeps an envelope that comes in pieces until it is whole, and an answer until it is fetched."""

import fcntl
import hashlib
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any, Final

from ...common.errors import EnvelopeError
from ...common.protocol.messages import FIELD
from ...common.protocol.pieces import PIECE_BYTES, Held, Piece, Wanted, Whole, read_said

# Asks the worker: reads a request to its end, writes the answer. Raises OSError where none came whole.
Ask = Callable[[IO[bytes], IO[bytes]], None]
_REQUEST: Final = "request-"
_ANSWER: Final = "answer-"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Parcels:
    """Of a study's envelopes at most one request and one answer, in files below ``folder``, named by their hashes.

    They outlive whoever wrote them: after a node, a worker or a server was killed, an envelope goes on where it was. No
    request of more than ``largest_bytes`` is kept. Nothing in an envelope is read: it is for the worker to judge.
    """

    folder: Path
    largest_bytes: int
    ask: Ask
    piece_bytes: int = PIECE_BYTES

    def answered(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of the reply to those of a message. Raises EnvelopeError and OSError, at which nothing is said."""
        if set(record) == {FIELD} and isinstance(record[FIELD], bytes):
            return self._asked(BytesIO(record[FIELD]))
        match read_said(record):
            case Piece() as piece:
                return self._taken(piece).model_dump()
            case Whole(whole=whole):
                return self._asked_whole(whole)
            case Wanted(answer=answer, start=start):
                return self._piece_of(answer, start)
            case _:
                raise EnvelopeError(
                    "a message that no server sends",
                    why="a node answers what is said to it",
                    fix="check that both ends run the version in the manifest",
                )

    def _taken(self, piece: Piece) -> Held:
        """Keep a piece that begins where what is held ends; any other changes nothing."""
        if piece.size > self.largest_bytes or piece.start + len(piece.piece) > piece.size:
            raise EnvelopeError(
                f"an envelope of {piece.size} bytes comes in pieces, or has a piece beyond its end",
                why=f"none of the study has more than {self.largest_bytes}, and the disk is not the server's to fill",
                fix="check that both ends run the version in the manifest",
            )
        path = self.folder / f"{_REQUEST}{piece.whole}"
        self._forget(_REQUEST, but=path)
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # a piece that is sent again may meet its first coming
            if file.seek(0, 2) == piece.start:
                file.write(piece.piece)
            return Held(held=file.tell())

    def _asked_whole(self, whole: str) -> dict[str, Any]:
        path = self.folder / f"{_REQUEST}{whole}"
        try:
            with path.open("rb") as request:
                if hashlib.file_digest(request, "sha256").hexdigest() == whole:
                    request.seek(0)
                    return self._asked(request)
        except FileNotFoundError:
            return Held(held=0).model_dump()
        _log.error("an envelope that came in pieces is damaged, and comes anew")
        path.unlink(missing_ok=True)
        return Held(held=0).model_dump()

    def _asked(self, request: IO[bytes]) -> dict[str, Any]:
        """The worker's answer; of a large one the first piece, and all of it in a file."""
        self._forget(_ANSWER)
        with SpooledTemporaryFile(self.piece_bytes, dir=str(self.folder)) as answer:
            self.ask(request, answer)
            size = answer.tell()
            answer.seek(0)
            if size <= self.piece_bytes:
                return {FIELD: answer.read()}
            sha256 = hashlib.file_digest(answer, "sha256").hexdigest()
            answer.seek(0)
            with (self.folder / f"{_ANSWER}{sha256}").open("wb") as kept:
                shutil.copyfileobj(answer, kept)
        return self._piece_of(sha256, 0)

    def _piece_of(self, answer: str, start: int) -> dict[str, Any]:
        with (self.folder / f"{_ANSWER}{answer}").open("rb") as file:
            size = file.seek(0, 2)
            file.seek(start)
            return Piece(whole=answer, size=size, start=start, piece=file.read(self.piece_bytes)).model_dump()

    def _forget(self, kind: str, *, but: Path | None = None) -> None:
        """Remove what was kept of a ``kind``: a new message says that nobody waits for it."""
        self.folder.mkdir(mode=0o700, exist_ok=True)  # what TLS kept from others on its way is not theirs here
        for path in self.folder.glob(f"{kind}*"):
            if path != but:
                path.unlink(missing_ok=True)
