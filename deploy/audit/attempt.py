"""One attempt of a twin: the real state machines of both ends, in one process, and what an adversary has of the sum."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...client.worker.attempt import ClientAttempt
from ...common.crypto.identity import Identity, sha256
from ...common.ledger.chain import EMPTY_LEDGER_HEAD
from ...common.privacy.rounded_gaussian import subtract_rounded_gaussian
from ...common.protocol.envelope import Envelope
from ...common.protocol.messages import Advert, Begin, Consistency, MaskedInput, Shares
from ...common.secagg.encoding import centred, residue_dtype
from ...common.secagg.parameters import SecaggParameters
from ...common.system.content import Content
from ...server.rounds.attempt import ServerAttempt

# A site's integers [d] for an attempt, under the keys of its layers of noise.
Update = Callable[[Mapping[int, bytes]], NDArray[np.unsignedinteger]]


@dataclass(frozen=True, kw_only=True)
class Parties:
    """Who takes part, with their keys; what the ``corrupt`` among the sites add is known to the adversary."""

    parameters: SecaggParameters
    server: Identity
    sites: Mapping[str, Identity]
    corrupt: Sequence[str]

    def released(self, updates: Mapping[str, Update], *, attempt: int) -> NDArray[np.signedinteger]:
        """What is unmasked of the sites' updates, without what the corrupt ones added: integers [d].

        All sites last to the end, so that every layer of noise is taken off.
        """
        begin = Begin(
            round=attempt,
            invited=self.parameters.names,
            adapter_sha256=sha256(b""),
            ledger_length=0,
            ledger_head=EMPTY_LEDGER_HEAD,
        )
        server = ServerAttempt(
            parameters=self.parameters,
            identity=self.server,
            begin=begin,
            attempt=attempt,
            payloads=dict.fromkeys(begin.invited, b""),
        )
        known = np.zeros(self.parameters.dimension, dtype=residue_dtype(self.parameters.modulus_bits))
        sites = {
            name: _Party(self, name, update, known if name in self.corrupt else None)
            for name, update in updates.items()
        }
        while not (server.done or server.aborted):
            exchange = server.exchange
            for name, message in server.messages().items():
                server.receive(name, sites[name].answer(exchange, message))
            server.advance()
        if not server.done or server.survivors != self.parameters.names:
            raise RuntimeError(f"an attempt of the twin failed: {server.aborted or server.reasons}")
        return centred(server.aggregate.view(known.dtype) - known)


class _Party:
    """One site in one attempt; where it is corrupt, what stays of its update in the sum is added to ``known``."""

    def __init__(self, parties: Parties, name: str, update: Update, known: NDArray[np.unsignedinteger] | None) -> None:
        self._parties = parties
        self._name = name
        self._update = update
        self._known = known
        self._machine: ClientAttempt

    def answer(self, exchange: str, message: Content) -> bytes:
        """The answer due in ``exchange``."""
        match exchange:
            case Advert.exchange:
                self._machine = ClientAttempt(
                    parameters=self._parties.parameters,
                    name=self._name,
                    identity=self._parties.sites[self._name],
                    begin=Envelope.parse(message),
                    charge_counter=0,
                    least_charge_counters={},
                )
                return self._machine.advertise()
            case Shares.exchange:
                return self._machine.share(message)
            case MaskedInput.exchange:
                self._machine.accept(message)
                return self._machine.mask(self._encoded(), charge_counter=1)
            case Consistency.exchange:
                return self._machine.sign_survivors(message)
            case _:
                return self._machine.unmask(message)

    def _encoded(self) -> NDArray[np.unsignedinteger]:
        layer_keys = self._machine.layer_keys
        encoded = self._update(layer_keys)
        if self._known is not None:
            self._known += encoded
            for layer in self._parties.parameters.noise_layers:
                subtract_rounded_gaussian(self._known, layer.stddev, layer_keys[layer.level])
        return encoded
