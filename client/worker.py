"""The resident worker of a site: owns its data, model and key, and answers one request at a time."""

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..common.adapter import Vector, vector_from_bytes
from ..common.errors import EnvelopeError, GrandRoundsError, ProtocolError, StorageError
from ..common.identity import Envelope, Identity, sha256
from ..common.manifest import Manifest
from ..common.messages import (
    EMPTY_LEDGER_HEAD,
    Adverts,
    Begin,
    Ciphertexts,
    Consistencies,
    Refusal,
    RefusalCode,
    Survivors,
)
from .budget import Budget
from .secagg import ClientAttempt, check_begin

# adapter [d] -> this attempt's update as unsigned integers [d]; never raises.
Release = Callable[[Vector], NDArray[np.unsignedinteger]]
_log = logging.getLogger(__name__)


class _RefusedError(Exception):
    """A refusal that is allowed to travel: before the charge, and only as a code."""

    def __init__(self, code: RefusalCode, envelope: Envelope) -> None:
        super().__init__(code)
        self.code = code
        self.attempt = envelope.attempt


class Worker:
    """Answers the server's messages of one study for one site.

    Before the charge, a message that may not be followed is answered by a ``Refusal`` with a code from a closed list.
    From the charge on, nothing computed from records changes whether or what kind of message is sent: ``release``
    turns every failure of data into noise, and a message that breaks the protocol is met with silence (empty bytes).
    The texts of errors stay here.

    What it has begun and paid for is in ``budget``, on disk before the answer leaves. An attempt's secrets are in
    memory only: a worker that was started anew answers nothing in an attempt that was begun before.
    """

    def __init__(self, *, name: str, identity: Identity, manifest: Manifest, release: Release, budget: Budget) -> None:
        """``budget`` is this site's, open for this worker alone. Raises StorageError."""
        self._name = name
        self._identity = identity
        self._manifest = manifest
        self._parameters = manifest.secagg_parameters
        self._release = release
        self._budget = budget
        self._last_attempt = budget.last_attempt(manifest.sha256)
        # Whether the last attempt was paid for and may not be over: after a restart nobody knows that it is.
        self._charged = budget.is_charged(manifest.sha256, self._last_attempt)
        self._attempt: ClientAttempt | None = None
        self._adapter = np.empty(0, dtype=np.float32)

    @property
    def charges(self) -> int:
        """How many attempts this site has paid for in this study."""
        return self._budget.charges(self._manifest.sha256)

    def close(self) -> None:
        """Give the site's state free for another worker."""
        self._budget.close()

    def handle(self, request: bytes) -> bytes:
        """The answer to one message; empty where the site stays silent."""
        try:
            envelope = Envelope.parse(request)
            return self._begin(envelope) if envelope.exchange == Begin.exchange else self._answer(envelope, request)
        except _RefusedError as refusal:
            return self._refuse(refusal.code, attempt=refusal.attempt)
        except GrandRoundsError as error:
            _log.warning("%s leaves attempt %d: %s", self._name, self._last_attempt, error.diagnostics())
            self._attempt = None
            return self._refuse(RefusalCode.PROTOCOL, attempt=self._last_attempt)

    def _begin(self, envelope: Envelope) -> bytes:
        """Check a Begin, leave what is left of an older attempt, and advertise.

        A Begin that does not pass leaves the attempt in progress as it is: anyone can send one.
        """
        if envelope.manifest != self._manifest.sha256:
            raise _RefusedError(RefusalCode.MANIFEST, envelope)
        try:
            begin = check_begin(self._parameters, self._name, envelope)
        except GrandRoundsError as error:
            _log.warning("%s refuses a Begin: %s", self._name, error.diagnostics())
            raise _RefusedError(RefusalCode.BEGIN, envelope) from error
        if envelope.attempt <= self._last_attempt:
            raise _RefusedError(RefusalCode.SERIAL, envelope)
        if envelope.attempt > self._manifest.max_attempts:
            raise _RefusedError(RefusalCode.SCHEDULE, envelope)
        if (begin.ledger_length, begin.ledger_head) != (0, EMPTY_LEDGER_HEAD):
            raise _RefusedError(RefusalCode.BEGIN, envelope)
        if sha256(envelope.payload) != begin.adapter_sha256:
            raise _RefusedError(RefusalCode.ADAPTER, envelope)
        try:
            self._adapter = vector_from_bytes(bytes(envelope.payload), dimension=self._manifest.dimension)
        except GrandRoundsError as error:
            raise _RefusedError(RefusalCode.ADAPTER, envelope) from error
        study = self._manifest.sha256
        try:
            self._budget.begin(study, envelope.attempt)
            charges, peer_charges = self._budget.charges(study), self._budget.peer_charges(study)
        except StorageError as error:
            raise self._unwritten(error, envelope) from error
        self._last_attempt, self._charged = envelope.attempt, False
        self._attempt = ClientAttempt(
            parameters=self._parameters,
            name=self._name,
            identity=self._identity,
            begin=envelope,
            charge_counter=charges,
            least_charge_counters=peer_charges,
        )
        return self._attempt.advertise()

    def _answer(self, envelope: Envelope, request: bytes) -> bytes:
        attempt = self._attempt
        if attempt is None:
            raise ProtocolError("no attempt is open", why="an answer would belong to nothing", fix="begin a new one")
        if envelope.exchange == Adverts.exchange:
            return attempt.share(request)
        if envelope.exchange == Ciphertexts.exchange:
            attempt.accept(request)
            charges = self._charge(attempt, envelope)
            return attempt.mask(self._release(self._adapter), charges)
        if envelope.exchange == Survivors.exchange:
            return attempt.sign_survivors(request)
        if envelope.exchange == Consistencies.exchange:
            answer = attempt.unmask(request)
            self._attempt, self._charged = None, False
            return answer
        raise EnvelopeError(
            "a message that no server sends", why="it has no answer", fix="compare the versions of both ends"
        )

    def _charge(self, attempt: ClientAttempt, envelope: Envelope) -> int:
        """Pay for the attempt; the new charge counter. Nothing was computed from records yet."""
        try:
            charges = self._budget.charge(self._manifest.sha256, envelope.attempt, attempt.peer_charge_counters)
        except StorageError as error:
            self._attempt = None
            raise self._unwritten(error, envelope) from error
        self._charged = True
        return charges

    def _unwritten(self, error: StorageError, envelope: Envelope) -> _RefusedError:
        _log.error("%s cannot take part: %s", self._name, error.diagnostics())
        return _RefusedError(RefusalCode.STORAGE, envelope)

    def _refuse(self, code: RefusalCode, *, attempt: int) -> bytes:
        """A refusal; silence where a charge was paid and its attempt is not over."""
        if self._charged:
            return b""
        return Envelope.seal(
            self._identity,
            manifest=self._manifest.sha256,
            attempt=attempt,
            exchange=Refusal.exchange,
            sender=self._name,
            body=Refusal(code=code).model_dump(mode="json"),
        ).to_bytes()
