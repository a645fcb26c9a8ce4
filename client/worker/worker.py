"""The worker of a site: owns its data, model and key, and answers one request at a time."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ...common.crypto.identity import Identity
from ...common.errors import EnvelopeError, GrandRoundsError, PrivacyError, ProtocolError, StorageError
from ...common.model.adapter import Vector
from ...common.privacy.mechanism import Mechanism
from ...common.protocol.envelope import Envelope
from ...common.protocol.messages import (
    SERVER,
    Adverts,
    Agreed,
    Begin,
    Ciphertexts,
    Close,
    Consistencies,
    Invitation,
    Message,
    Refusal,
    RefusalCode,
    Survivors,
    at_least,
    unpack,
)
from ...common.secagg.transcript import seal_message, verify_sender
from ...common.study.manifest import Countersignature, Manifest
from ...common.system.content import Content, Stored
from ...common.system.freed_memory import return_freed
from ..state.adapter_copy import AdapterCopy
from ..state.ledger_copy import SetBackError, SiteLedger
from ..state.site_state import SiteState
from .attempt import ClientAttempt, check_begin
from .instant import Pace, at_once

# adapter [d], keys of the noise's layers by level -> this attempt's update as unsigned integers [d]. Nothing about
# records raises. At a site: ``training/update``.
ComputeUpdate = Callable[[Vector | Stored, Mechanism], NDArray[np.unsignedinteger]]
# What a finished study leaves, by its path in the study's folder; raises StorageError where it cannot be kept.
Keep = Callable[[Mapping[str, Content]], None]
_log = logging.getLogger(__name__)
_CODES = {
    SetBackError: RefusalCode.SET_BACK,
    StorageError: RefusalCode.STORAGE,
    PrivacyError: RefusalCode.BUDGET,
}


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

    What it has begun and paid for is in ``state``, on disk before the answer leaves, and with it the ledger, which a
    Begin must continue. An attempt's secrets are in memory only: a worker that was started anew answers nothing in an
    attempt that was begun before.
    """

    def __init__(
        self,
        *,
        name: str,
        identity: Identity,
        manifest: Manifest,
        release: ComputeUpdate,
        state: SiteState,
        keep: Keep = lambda files: None,
        pace: Pace = at_once,
    ) -> None:
        """``state`` is this site's, open for this worker alone. Raises StorageError and LedgerError."""
        self.name = name
        self.manifest = manifest
        self._identity = identity
        self._parameters = manifest.secagg_parameters
        self._release = release
        self._state = state
        self._keep = keep
        self._pace = pace
        self._study = manifest.study_id
        self._ledger = SiteLedger(state, manifest, name=name)
        self._adapters = AdapterCopy(state, manifest)
        self._last_attempt, self._round = state.last_attempt(self._study), 0
        # Whether the last attempt was paid for and may not be over: after a restart nobody knows that it is.
        self._charged = state.is_charged(self._study, self._last_attempt)
        self._attempt: ClientAttempt | None = None

    @property
    def last_attempt(self) -> int:
        """The highest serial that this site began, 0 for none. May be asked while an answer is computed."""
        return self._last_attempt

    @property
    def round(self) -> int:
        """The round of the attempt that was begun last since this worker started, 0 before."""
        return self._round

    def paid_for(self, attempt: int) -> bool:
        """Whether this site paid for ``attempt``. Raises StorageError."""
        return self._state.is_charged(self._study, attempt)

    def refuse(self, code: RefusalCode, *, attempt: int) -> bytes:
        """A refusal, whatever the attempt."""
        return self._seal(Refusal(code=code), attempt=attempt)

    @property
    def charges(self) -> int:
        """How many attempts this site has paid for in this study."""
        return self._state.charges(self._study)

    def nameless_file(self) -> IO[bytes]:
        """A new file for a request that is too large for memory, beside the site's state. Raises StorageError."""
        return self._state.database.nameless_file()

    def close(self) -> None:
        """Give the site's state free for another worker."""
        self._state.close()

    def handle(self, request: Content) -> bytes:
        """The answer to one message; empty where the site stays silent."""
        try:
            envelope = Envelope.parse(request)
            if envelope.exchange == Begin.exchange:
                return self._begin(envelope)
            if envelope.exchange == Close.exchange:
                return self._close(envelope)
            if envelope.exchange == Invitation.exchange:
                return self._agree(envelope)
            return self._answer(envelope, request)
        except _RefusedError as refusal:
            return self._refuse(refusal.code, attempt=refusal.attempt)
        except GrandRoundsError as error:
            _log.warning("%s leaves attempt %d: %s", self.name, self._last_attempt, error.diagnostics())
            self._attempt = None
            return self._refuse(RefusalCode.PROTOCOL, attempt=self._last_attempt)

    def _begin(self, envelope: Envelope) -> bytes:
        """Check a Begin, leave what is left of an older attempt, and advertise.

        A Begin that does not pass leaves the attempt in progress as it is: anyone can send one.
        """
        if envelope.manifest != self._parameters.manifest:
            raise _RefusedError(RefusalCode.MANIFEST, envelope)
        with self._refusing(RefusalCode.BEGIN, envelope):
            begin = check_begin(self._parameters, self.name, envelope)
            missing, *lines = at_least(1, envelope.payload)
        if envelope.attempt <= self._last_attempt:
            raise _RefusedError(RefusalCode.SERIAL, envelope)
        if envelope.attempt > self.manifest.max_attempts:
            raise _RefusedError(RefusalCode.SCHEDULE, envelope)
        with self._refusing(RefusalCode.LEDGER, envelope):
            verified = self._ledger.begun([bytes(line[:]) for line in lines], begin, attempt=envelope.attempt)
        with self._refusing(RefusalCode.ADAPTER, envelope):
            held = self._adapters.after_rounds(verified, missing)
        with self._refusing(RefusalCode.LEDGER, envelope):
            trained = held.trained
            charges = self._ledger.begin(
                verified, adapter=None if held.kept else (held.round, trained.numbers, trained.optimizer)
            )
        self._last_attempt, self._charged = envelope.attempt, False
        self._round = begin.round
        peers = self._state.peer_charges(self._study)
        self._attempt = ClientAttempt(
            parameters=self._parameters,
            name=self.name,
            identity=self._identity,
            begin=envelope,
            charge_counter=charges,
            least_charge_counters={
                site: max(peers.get(site, 0), told) for site, told in (peers | verified.charges).items()
            },
        )
        return self._attempt.advertise()

    def _agree(self, envelope: Envelope) -> bytes:
        """Sign the manifest, which this site checked and paid for before its worker started, after this ledger alone.

        A successor is signed after a ledger with all that this site took part in: no signature of it lets a server
        enter one before.
        """
        if envelope.manifest != self._parameters.manifest:
            raise _RefusedError(RefusalCode.MANIFEST, envelope)
        verify_sender(self._parameters, envelope, attempt=envelope.attempt, senders=(SERVER,))
        invitation = Invitation.of(envelope)
        with self._refusing(RefusalCode.LEDGER, envelope):
            self._ledger.agree(unpack(envelope.payload), invitation)
        signed = Countersignature.of(
            self._identity,
            site=self.name,
            manifest=self._parameters.manifest,
            reservation=self._state.reservation(self._study),
            **invitation.model_dump(),
        )
        agreed = Agreed(signature=signed.signature, reservation=signed.reservation)
        return self._seal(agreed, attempt=envelope.attempt)

    def _close(self, envelope: Envelope) -> bytes:
        """Sign the ledger of a study that is over, if it is whole and leaves this site's own adapter; then keep it.

        No attempt can follow.
        """
        verify_sender(self._parameters, envelope, attempt=envelope.attempt, senders=(SERVER,))
        close = Close.of(envelope)
        self._attempt, self._charged = None, False
        with self._refusing(RefusalCode.LEDGER, envelope):
            lines, missing, *contents = at_least(2, envelope.payload)
            verified, files = self._ledger.closed(unpack(lines), close, contents)
        with self._refusing(RefusalCode.ADAPTER, envelope):
            if files:
                self._adapters.check_closing(verified, missing, files)
        with self._refusing(RefusalCode.LEDGER, envelope):
            self._keep(files)
            closed = self._ledger.close(verified)
        return self._seal(closed, attempt=envelope.attempt)

    def _answer(self, envelope: Envelope, request: Content) -> bytes:
        attempt = self._attempt
        if attempt is None:
            raise ProtocolError("no attempt is open", why="an answer would belong to nothing", fix="begin a new one")
        if envelope.exchange == Adverts.exchange:
            return attempt.share(request)
        if envelope.exchange == Ciphertexts.exchange:
            attempt.accept(request)
            adapter, charges = self._charge(attempt, envelope)
            answer = self._pace(lambda: self._masked(attempt, adapter, charges))
            if not answer:
                self._attempt = None
            return answer
        if envelope.exchange == Survivors.exchange:
            return attempt.sign_survivors(request)
        if envelope.exchange == Consistencies.exchange:
            answer = attempt.unmask(request)
            self._attempt, self._charged = None, False
            return answer
        raise EnvelopeError(
            "a message that no server sends", why="it has no answer", fix="compare the versions of both ends"
        )

    def _masked(self, attempt: ClientAttempt, adapter: Vector | Stored, charges: int) -> bytes:
        """The masked update. What it has freed is given back before its instant: how much that is tells of the draw."""
        mechanism = self.manifest.mechanism(attempt.layer_keys, attempt=attempt.serial)
        answer = attempt.mask(self._release(adapter, mechanism), charges)
        return_freed()
        return answer

    def _charge(self, attempt: ClientAttempt, envelope: Envelope) -> tuple[Vector | Stored, int]:
        """Pay for the attempt; its adapter and the new charge counter. Nothing was computed from records yet."""
        try:
            with self._refusing(RefusalCode.STORAGE, envelope):
                adapter = self._adapters.adapter()
                charges = self._state.charge(self._study, envelope.attempt, attempt.peer_charge_counters)
        except _RefusedError:
            self._attempt = None
            raise
        self._charged = True
        return adapter, charges

    @contextmanager
    def _refusing(self, code: RefusalCode, envelope: Envelope) -> Iterator[None]:
        """Whatever is wrong inside stays in this site's log; the server learns ``code``, or one more exact."""
        try:
            yield
        except GrandRoundsError as error:
            _log.warning("%s refuses %s: %s", self.name, envelope.exchange, error.diagnostics())
            exact = next((known for kind, known in _CODES.items() if isinstance(error, kind)), code)
            raise _RefusedError(exact, envelope) from error

    def _refuse(self, code: RefusalCode, *, attempt: int) -> bytes:
        """A refusal; silence in an attempt that was paid for and is not over."""
        silent = self._charged and attempt <= self._last_attempt
        return b"" if silent else self.refuse(code, attempt=attempt)

    def _seal(self, message: Message, *, attempt: int) -> bytes:
        return seal_message(self._parameters, self._identity, message, attempt=attempt, sender=self.name).to_bytes()
