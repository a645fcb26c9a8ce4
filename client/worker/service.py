"""The resident worker of a site: one worker for as long as the study runs, which can be paused and asked how it is."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import IO, Any

from ...common.errors import GrandRoundsError
from ...common.ledger.message_sizes import largest_request_bytes
from ...common.protocol.envelope import Envelope
from ...common.protocol.messages import Close, Invitation, RefusalCode
from ...common.system.content import Content
from ...common.system.freed_memory import return_freed
from .worker import Worker

_log = logging.getLogger(__name__)


class WorkerService:
    """A site's worker as a process keeps it: it can be paused, says how it is, and nothing that it is sent ends it."""

    def __init__(self, worker: Worker, *, frozen_bytes: int = 0, is_paused: Callable[[], bool] = lambda: False) -> None:
        """``is_paused`` is asked before each answer, ``frozen_bytes`` the size of the adapter's public tensors."""
        self._worker = worker
        self._frozen_bytes = frozen_bytes
        self._is_paused = is_paused
        self._up_since = datetime.now(UTC).isoformat(timespec="seconds")
        self._exchange: str | None = None
        return_freed()  # of the start

    @property
    def largest_request_bytes(self) -> int:
        """The size that no request of this study's honest server exceeds."""
        return largest_request_bytes(self._worker.manifest, frozen_bytes=self._frozen_bytes)

    def answer(self, request: Content) -> bytes:
        """The answer to one message; empty where the site stays silent. Never raises.

        A paused site refuses all but what belongs to an attempt that it has paid for.
        """
        return_freed()  # of the last one; not behind this one, whose instant may be public
        asked = _parsed(request)
        about = {"exchange": asked.exchange, "attempt": asked.attempt} if asked else {}
        self._exchange = asked.exchange if asked else None
        try:
            answer = self._answer(asked, request)
        except Exception as error:  # of any library: its text could quote a record, and it must not end the process
            _log.error("unexpected: %s", error, extra=about)
            answer = b""
        said = _parsed(answer)
        code = said.body.get("code") if said else None
        _log.info("answered by %s", said.exchange if said else "silence", extra={**about, "code": code})
        self._exchange = None
        return answer

    def nameless_file(self) -> IO[bytes]:
        """As the worker's. Raises StorageError."""
        return self._worker.nameless_file()

    def health(self) -> dict[str, Any]:
        """How the worker is: nothing measured, and nothing about records. May be asked while an answer is computed."""
        return {
            "site": self._worker.name,
            "study": self._worker.manifest.study_id,
            "manifest": self._worker.manifest.sha256,
            "up_since": self._up_since,
            "last_attempt": self._worker.last_attempt,
            "exchange": self._exchange,
            "paused": self._is_paused(),
        }

    def close(self) -> None:
        """Give the site's state free for another worker."""
        self._worker.close()

    def _answer(self, asked: Envelope | None, request: Content) -> bytes:
        if asked and self._is_paused() and self._is_new(asked):
            return self._worker.refuse(RefusalCode.PAUSED, attempt=asked.attempt)
        return self._worker.handle(request)

    def _is_new(self, asked: Envelope) -> bool:
        """Whether it asks for more than the rest of what was paid for."""
        of_no_attempt = asked.exchange in (Invitation.exchange, Close.exchange)
        return of_no_attempt or not self._worker.paid_for(asked.attempt)


def _parsed(message: Content) -> Envelope | None:
    """The envelope, whoever signed it; None for what is none, or cannot be read."""
    try:
        return Envelope.parse(message)
    except GrandRoundsError:
        return None
