"""The resident worker of a site: one worker for as long as the study runs, which can be paused and asked how it is."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from ...common.crypto.identity import Identity
from ...common.errors import EnvelopeError
from ...common.ledger.chain import MAX_ENTRY_BYTES
from ...common.protocol.envelope import MAX_HEADER_BYTES, Envelope
from ...common.protocol.messages import Close, Invitation, Refusal, RefusalCode
from ...common.secagg.transcript import seal_message
from ...common.study.manifest import Manifest
from ..state.site_state import Budget
from .worker import Keep, Release, Worker

_log = logging.getLogger(__name__)


class Resident:
    """A site's worker as a process keeps it: it can be paused, says how it is, and nothing that it is sent ends it."""

    def __init__(
        self,
        *,
        name: str,
        identity: Identity,
        manifest: Manifest,
        release: Release,
        budget: Budget,
        keep: Keep = lambda files: None,
        frozen_bytes: int = 0,
        is_paused: Callable[[], bool] = lambda: False,
    ) -> None:
        """``is_paused`` is asked before each answer, ``frozen_bytes`` the size of the adapter's public tensors.

        The rest is ``Worker``'s. Raises StorageError and LedgerError.
        """
        self._worker = Worker(
            name=name, identity=identity, manifest=manifest, release=release, budget=budget, keep=keep
        )
        self._frozen_bytes = frozen_bytes
        self._name = name
        self._identity = identity
        self._manifest = manifest
        self._budget = budget
        self._is_paused = is_paused
        self._up_since = datetime.now(UTC).isoformat(timespec="seconds")
        self._last_attempt = budget.last_attempt(manifest.study_id)
        self._exchange: str | None = None

    @property
    def largest_request_bytes(self) -> int:
        """The size that no request of this study's honest server exceeds."""
        return largest_request_bytes(self._manifest, frozen_bytes=self._frozen_bytes)

    def answer(self, request: bytes) -> bytes:
        """The answer to one message; empty where the site stays silent. Never raises.

        A paused site refuses all but what belongs to an attempt that it has paid for.
        """
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

    def health(self) -> dict[str, Any]:
        """How the worker is: nothing measured, and nothing about records. May be asked while an answer is computed."""
        return {
            "site": self._name,
            "study": self._manifest.study_id,
            "manifest": self._manifest.sha256,
            "up_since": self._up_since,
            "last_attempt": self._last_attempt,
            "exchange": self._exchange,
            "paused": self._is_paused(),
        }

    def close(self) -> None:
        """Give the site's state free for another worker."""
        self._worker.close()

    def _answer(self, asked: Envelope | None, request: bytes) -> bytes:
        if asked and self._is_paused() and self._is_new(asked):
            return self._refuse_paused(asked.attempt)
        answer = self._worker.handle(request)
        self._last_attempt = self._budget.last_attempt(self._manifest.study_id)
        return answer

    def _is_new(self, asked: Envelope) -> bool:
        """Whether it asks for more than the rest of what was paid for."""
        of_no_attempt = asked.exchange in (Invitation.exchange, Close.exchange)
        return of_no_attempt or not self._budget.is_charged(self._manifest.study_id, asked.attempt)

    def _refuse_paused(self, attempt: int) -> bytes:
        parameters, refusal = self._manifest.secagg_parameters, Refusal(code=RefusalCode.PAUSED)
        return seal_message(parameters, self._identity, refusal, attempt=attempt, sender=self._name).to_bytes()


def _parsed(message: bytes) -> Envelope | None:
    """The envelope, whoever signed it; None for what is none."""
    try:
        return Envelope.parse(message)
    except EnvelopeError:
        return None


def largest_request_bytes(manifest: Manifest, *, frozen_bytes: int = 0) -> int:
    """The size that no message of the study's honest server exceeds: the adapter, and the whole ledger of its schedule.

    ``frozen_bytes`` is the size of the adapter's public tensors, which come with the finished one.
    Generous, and there only so that memory cannot be filled: the worker checks what a message says.
    """
    sites = len(manifest.study.sites)
    names = 72 * sites  # each of at most 63 characters, quoted
    statement = 2048 + 2 * names  # the longest, a view of the attempt, names two groups of sites
    attempt = 4096 + 4 * names + 3 * sites * statement
    others = MAX_ENTRY_BYTES  # manifests with their countersignatures; of what the study leaves, all but its numbers
    return MAX_HEADER_BYTES + 4 * manifest.dimension + frozen_bytes + manifest.max_attempts * attempt + others
