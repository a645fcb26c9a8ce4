"""One attempt of secure aggregation for a benchmark: the real machines, real envelopes, and a clock for each side."""

import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...client.worker.attempt import ClientAttempt
from ...common.crypto.identity import Identity, sha256
from ...common.errors import StudyError
from ...common.ledger.chain import EMPTY_LEDGER_HEAD
from ...common.protocol.envelope import Envelope
from ...common.protocol.messages import (
    Advert,
    Adverts,
    Begin,
    Ciphertexts,
    Consistencies,
    Consistency,
    MaskedInput,
    Message,
    Shares,
    Survivors,
    Unmask,
    unpack,
)
from ...common.secagg.encoding import FixedPoint, ModulusBits
from ...common.secagg.parameters import RosterEntry, SecaggParameters, default_threshold, largest_corrupt
from ...common.secagg.transcript import verify_sender
from ...common.system.content import Content
from ...server.rounds.attempt import ServerAttempt

UPDATE_RANGE = 0.1
_ATTEMPT = 1
_RELAYED: tuple[type[Message], ...] = (Adverts, Consistencies)
_PACKED: tuple[type[Message], ...] = (*_RELAYED, Shares, Ciphertexts, Unmask)
_ALL: tuple[type[Message], ...] = (*_PACKED, Begin, Advert, MaskedInput, Survivors, Consistency)
_MESSAGES = {message.exchange: message for message in _ALL}
# (site, exchange, the server's message) -> the site's answer.
Answer = Callable[[str, str, Content], bytes]


class Clock:
    """CPU seconds of this process, all its threads together, by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, work: str) -> Iterator[None]:
        """Add what the block takes to ``work``."""
        start_s = time.process_time()
        yield
        self.seconds[work] += time.process_time() - start_s


@dataclass(frozen=True, kw_only=True)
class BenchCohort:
    """Who takes part, with their keys; the last ``dropouts`` sites deal shares and then fall silent.

    Raises StudyError if too few sites would be left. The threshold is the default one.
    """

    sites: int
    dimension: int
    dropouts: int
    modulus_bits: ModulusBits
    signing_keys: tuple[bytes, ...] = field(repr=False)

    def __post_init__(self) -> None:
        most = self.sites - default_threshold(self.sites)
        if not 0 <= self.dropouts <= most:
            raise StudyError(
                f"{self.dropouts} of {self.sites} sites drop out",
                why="with fewer answers than the threshold the attempt aborts",
                fix=f"at most {most} dropouts",
            )

    @classmethod
    def fresh(cls, *, sites: int, dimension: int, dropouts: int, modulus_bits: ModulusBits) -> "BenchCohort":
        """A cohort with new keys."""
        signing_keys = tuple(secrets.token_bytes(32) for _ in range(sites + 1))
        return cls(
            sites=sites, dimension=dimension, dropouts=dropouts, modulus_bits=modulus_bits, signing_keys=signing_keys
        )

    @cached_property
    def parameters(self) -> SecaggParameters:
        """The protocol's parameters."""
        threshold = default_threshold(self.sites)
        return SecaggParameters(
            manifest=sha256(b"benchmark"),
            roster=tuple(
                RosterEntry(name=name, public_key=identity.public_key) for name, identity in self.identities.items()
            ),
            server_key=self.server_identity.public_key,
            threshold=threshold,
            corrupt_sites=largest_corrupt(self.sites, threshold),
            modulus_bits=self.modulus_bits,
            dimension=self.dimension,
        )

    @cached_property
    def identities(self) -> dict[str, Identity]:
        """The sites' signing keys, by name in roster order."""
        return {f"site-{i}": Identity.from_bytes(key) for i, key in enumerate(self.signing_keys[1:], start=1)}

    @cached_property
    def server_identity(self) -> Identity:
        """The server's signing key."""
        return Identity.from_bytes(self.signing_keys[0])

    @property
    def survivors(self) -> tuple[str, ...]:
        """The sites that last to the end."""
        return self.parameters.names[: self.sites - self.dropouts]

    @property
    def fixed_point(self) -> FixedPoint:
        """How updates become integers."""
        return FixedPoint(modulus_bits=self.modulus_bits, update_range=UPDATE_RANGE, sites=self.sites)

    def update(self, site: str) -> NDArray[np.float64]:
        """A site's update [d]: the same numbers in every repetition and for every protocol."""
        return np.random.default_rng(self.parameters.point(site)).uniform(-UPDATE_RANGE, UPDATE_RANGE, self.dimension)

    def check(self, mean: NDArray[np.float64]) -> None:
        """Raises RuntimeError unless ``mean`` [d] is that of the survivors' updates, but for rounding."""
        expected = np.zeros(self.dimension)
        for site in self.survivors:
            expected += self.update(site)
        expected /= len(self.survivors)
        error = float(np.abs(mean - expected).max())
        # Half an integer for each site; Flower's integers are 4e-6 apart.
        tolerance = max(4e-6, self.sites / self.fixed_point.scale)
        if error > tolerance:
            raise RuntimeError(f"the benchmark's mean is wrong by {error}, where rounding explains {tolerance}")


class BenchSite:
    """One site: an update of floats in, the answers of the real machine out."""

    def __init__(self, cohort: BenchCohort, name: str) -> None:
        self._cohort = cohort
        self._name = name
        self._machine: ClientAttempt

    def answer(self, exchange: str, message: Content, clock: Clock) -> bytes:
        """The answer due in ``exchange``; its time counts as ``client``, encoding the update as ``client_encoding``."""
        with clock("client"):
            match exchange:
                case Advert.exchange:
                    self._machine = ClientAttempt(
                        parameters=self._cohort.parameters,
                        name=self._name,
                        identity=self._cohort.identities[self._name],
                        begin=Envelope.parse(message),
                        charge_counter=0,
                        least_charge_counters={},
                    )
                    return self._machine.advertise()
                case Shares.exchange:
                    return self._machine.share(message)
                case MaskedInput.exchange:
                    self._machine.accept(message)
                case Consistency.exchange:
                    return self._machine.sign_survivors(message)
                case _:
                    return self._machine.unmask(message)
        encoded_update = self._encoded(clock)
        with clock("client"):
            return self._machine.mask(encoded_update, charge_counter=1)

    def _encoded(self, clock: Clock) -> NDArray[np.unsignedinteger]:
        update = self._cohort.update(self._name)
        with clock("client_encoding"):
            return self._cohort.fixed_point.encode(update, 1 / self._cohort.sites)


def play(cohort: BenchCohort, answer: Answer, clock: Clock) -> NDArray[np.float64]:
    """One attempt, whose server counts as ``server`` and ``server_encoding``; the sum [d] of the survivors' shares.

    Begin goes out without an adapter: sending the model is no part of secure aggregation.
    """
    begin = Begin(
        round=1,
        invited=cohort.parameters.names,
        adapter_sha256=sha256(b""),
        ledger_length=0,
        ledger_head=EMPTY_LEDGER_HEAD,
    )
    with clock("server"):
        server = ServerAttempt(
            parameters=cohort.parameters,
            identity=cohort.server_identity,
            begin=begin,
            attempt=_ATTEMPT,
            payloads=dict.fromkeys(begin.invited, b""),
        )
    while not (server.done or server.aborted):
        exchange = server.exchange
        with clock("server"):
            messages = server.messages()
        for site, message in messages.items():
            if exchange == MaskedInput.exchange and site not in cohort.survivors:
                continue
            wire = answer(site, exchange, message)
            with clock("server"):
                server.receive(site, wire)
            del wire  # the next input replaces it, and two are one too many
        with clock("server"):
            server.advance()
    if not server.done or server.survivors != cohort.survivors:
        raise RuntimeError(f"the benchmark's attempt failed: {server.aborted or server.reasons}")
    with clock("server_encoding"):
        return cohort.fixed_point.decode(server.aggregate)


def play_ours(cohort: BenchCohort, clock: Clock) -> tuple[NDArray[np.float64], float]:
    """The mean [d] of the survivors' updates, and the bytes a parameter that one of them sends.

    ``client`` and ``server`` are whole machines, so with what it takes to seal and open envelopes. As
    ``client_authentication`` and ``server_authentication`` the same envelopes are sealed and opened once more. Sites
    that drop out count nowhere.
    """
    nowhere = Clock()
    sites = {name: BenchSite(cohort, name) for name in cohort.parameters.names}
    sent_bytes = 0
    last_message: Content = b""

    def answer(site: str, exchange: str, message: Content) -> bytes:
        nonlocal sent_bytes, last_message
        site_clock = clock if site in cohort.survivors else nowhere
        wire = sites[site].answer(exchange, message, site_clock)
        if message is not last_message:  # the server seals what goes to everyone once
            _seal_again(message, cohort.server_identity, clock, "server_authentication")
        last_message = message
        _seal_again(wire, cohort.identities[site], site_clock, "client_authentication")
        with site_clock("client_authentication"):
            _open_again(message, cohort)
        with clock("server_authentication"):
            _open_again(wire, cohort)
        if exchange == MaskedInput.exchange:
            sent_bytes = len(wire)
        return wire

    total = play(cohort, answer, clock)
    return total * (cohort.sites / len(cohort.survivors)), sent_bytes / cohort.dimension


def _open_again(wire: Content, cohort: BenchCohort) -> None:
    envelope = Envelope.parse(wire)
    message = _MESSAGES[envelope.exchange]
    verify_sender(cohort.parameters, envelope, attempt=_ATTEMPT, senders=(envelope.sender,))
    message.of(envelope)
    parts = unpack(envelope.payload) if message in _PACKED else []
    if message in _RELAYED:
        for part in parts:
            _open_again(part, cohort)


def _seal_again(wire: Content, identity: Identity, clock: Clock, work: str) -> None:
    envelope = Envelope.parse(wire)
    with clock(work):
        Envelope.seal(
            identity,
            manifest=envelope.manifest,
            attempt=envelope.attempt,
            exchange=envelope.exchange,
            sender=envelope.sender,
            body=envelope.body,
            payload=envelope.payload,
        ).to_bytes()
