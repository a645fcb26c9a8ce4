"""A cohort in memory: both state machines driven over an honest network, with dropouts, or by parties that lie.

``Cohort.run`` plays one attempt to its end. A test that plays the adversary takes an attempt ``until`` some exchange
and speaks on in the server's or a site's name with ``server_says`` and ``site_says``, which sign whatever they are
given.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from grandrounds.client.worker.attempt import ClientAttempt
from grandrounds.common.crypto.identity import Identity, sha256
from grandrounds.common.privacy.rounded_gaussian import add_rounded_gaussian
from grandrounds.common.privacy.site_noise import SiteNoise
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import SERVER, Begin, Message
from grandrounds.common.secagg.encoding import centred, residues
from grandrounds.common.secagg.parameters import RosterEntry, SecaggParameters, default_threshold
from grandrounds.common.secagg.transcript import seal_message
from grandrounds.common.system.content import Content
from grandrounds.server.rounds.attempt import ServerAttempt

EXCHANGES = ("advert", "shares", "masked-input", "consistency", "unmask")
ADAPTER = b"adapter"
MachineT = TypeVar("MachineT")
Updates = Mapping[str, NDArray[np.int64]]
# What may happen to an answer on its way: (site, exchange, answer) -> what arrives.
Tamper = Callable[[str, str, bytes], bytes]


@dataclass
class Cohort:
    """n sites and a server, with real keys.

    Where noise of a deviation is ``claimed``, z Delta, each site adds the layers of its share, and leaves out its base,
    which stays.
    """

    sites: int = 4
    threshold: int | None = None
    corrupt_sites: int = 1
    modulus_bits: Literal[16, 32] = 32
    dimension: int = 5
    claimed: int = 0
    manifest: str = "ab" * 32
    machine: type[ClientAttempt] = ClientAttempt
    identities: dict[str, Identity] = field(default_factory=dict)
    server: Identity = field(default_factory=Identity.generate)
    noise: SiteNoise = field(init=False, default=SiteNoise(stddev=64))
    parameters: SecaggParameters = field(init=False)

    def __post_init__(self) -> None:
        self.identities = self.identities or {f"site-{i}": Identity.generate() for i in range(1, self.sites + 1)}
        threshold = self.threshold or default_threshold(self.sites)
        if self.claimed:
            self.noise = SiteNoise.of(
                noise_multiplier=1.0,
                sensitivity=self.claimed,
                trust="distributed",
                sites=self.sites,
                threshold=threshold,
                corrupt_sites=self.corrupt_sites,
            )
        self.parameters = SecaggParameters(
            manifest=self.manifest,
            roster=tuple(RosterEntry(name=n, public_key=i.public_key) for n, i in self.identities.items()),
            server_key=self.server.public_key,
            threshold=threshold,
            corrupt_sites=self.corrupt_sites,
            modulus_bits=self.modulus_bits,
            dimension=self.dimension,
            noise_layers=self.noise.layers,
        )

    @property
    def names(self) -> tuple[str, ...]:
        return self.parameters.names

    def begin(self, **changes: Any) -> Begin:
        fields: dict[str, Any] = {
            "round": 1,
            "invited": self.names,
            "adapter_sha256": sha256(ADAPTER),
            "ledger_length": 0,
            "ledger_head": "00" * 32,
        }
        return Begin(**(fields | changes))

    def server_says(self, message: Message, payload: bytes = b"", *, attempt: int = 1) -> bytes:
        return seal_message(
            self.parameters, self.server, message, attempt=attempt, sender=SERVER, payload=payload
        ).to_bytes()

    def site_says(self, name: str, message: Message, payload: bytes = b"", *, attempt: int = 1) -> bytes:
        return seal_message(
            self.parameters, self.identities[name], message, attempt=attempt, sender=name, payload=payload
        ).to_bytes()

    def client(
        self, name: str, begin: Content, *, charge_counter: int = 0, ledger: Mapping[str, int] | None = None
    ) -> ClientAttempt:
        return self.machine(
            parameters=self.parameters,
            name=name,
            identity=self.identities[name],
            begin=Envelope.parse(begin),
            charge_counter=charge_counter,
            least_charge_counters=ledger or {},
        )

    def updates(self, seed: int = 0) -> Updates:
        """Small signed integers, whose sum any modulus holds."""
        generator = np.random.default_rng(seed)
        return {name: generator.integers(-300, 300, self.dimension) for name in self.names}

    def noise_above(self, level: int, layer_keys: Mapping[int, bytes]) -> NDArray[np.int64]:
        """What a site's layers above ``level`` add under their keys [d]."""
        noise = np.zeros(self.dimension, np.int64)
        for layer in self.noise.layers:
            if layer.level > level:
                add_rounded_gaussian(noise, layer.stddev, layer_keys[layer.level])
        return noise

    def attempt(self, serial: int = 1, *, updates: Updates | None = None, **begin: object) -> "Attempt":
        message = self.begin(**begin)
        server = ServerAttempt(
            parameters=self.parameters,
            identity=self.server,
            begin=message,
            attempt=serial,
            payloads=dict.fromkeys(message.invited, ADAPTER),
        )
        return Attempt(cohort=self, server=server, updates=updates or self.updates())

    def run(
        self, *, drops: Mapping[str, str] | None = None, tamper: Tamper | None = None, serial: int = 1
    ) -> "Attempt":
        """One attempt to its end; ``drops`` says at which answer a site falls silent for good."""
        attempt = self.attempt(serial)
        while not (attempt.server.done or attempt.server.aborted):
            attempt.exchange(drops=drops or {}, tamper=tamper)
        return attempt


@dataclass
class Attempt:
    """An attempt under way: the server and its clients."""

    cohort: Cohort
    server: ServerAttempt
    updates: Updates
    clients: dict[str, ClientAttempt] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    # The keys of each site's layers of noise, and who shows no link to them that fits.
    layer_keys: dict[str, dict[int, bytes]] = field(default_factory=dict)
    unshown: set[str] = field(default_factory=set)

    def until(self, exchange: str) -> "Attempt":
        """Honest until the server is about to ask for the answer ``exchange``."""
        while self.server.exchange != exchange:
            self.exchange()
        return self

    def exchange(self, *, drops: Mapping[str, str] | None = None, tamper: Tamper | None = None) -> None:
        """One exchange over an honest network."""
        exchange = self.server.exchange
        self.silent |= {site for site, at in (drops or {}).items() if at == exchange}
        for site, message in self.server.messages().items():
            if site not in self.silent:
                answer = self.answer(site, message)
                self.server.receive(site, tamper(site, exchange, answer) if tamper else answer)
        self.server.advance()

    def answer(self, site: str, message: Content) -> bytes:
        """What the site answers to ``message``, which it takes for the current exchange's."""
        match self.server.exchange:
            case "advert":
                self.clients[site] = self.cohort.client(site, message)
                self.layer_keys[site] = dict(self.clients[site].layer_keys)
                return self.clients[site].advertise()
            case "shares":
                return self.clients[site].share(message)
            case "masked-input":
                self.clients[site].accept(message)
                noised = self.updates[site] + self.cohort.noise_above(0, self.clients[site].layer_keys)
                return self.clients[site].mask(residues(noised, self.cohort.modulus_bits), 1)
            case "consistency":
                return self.clients[site].sign_survivors(message)
            case _:
                return self.clients[site].unmask(message)

    def fork(self) -> "Attempt":
        """The same attempt once more."""
        clients = {site: fork(client) for site, client in self.clients.items()}
        keys = dict(self.layer_keys)
        return replace(self, server=fork(self.server), clients=clients, silent=set(self.silent), layer_keys=keys)

    @property
    def exact(self) -> bool:
        """Whether the aggregate is the survivors' plain sum, with the layers of their noise that stay and no others."""
        survivors = self.server.survivors
        stripped = set(survivors) - self.unshown - set(self.server.dropouts)
        reached = max((layer.level for layer in self.cohort.noise.layers if layer.level <= len(survivors)), default=0)
        due = [
            self.updates[site] + self.cohort.noise_above(reached if site in stripped else 0, self.layer_keys[site])
            for site in survivors
        ]
        words = residues(np.sum(due, axis=0), self.cohort.modulus_bits)
        return self.server.aggregate.tolist() == centred(words).tolist()


def fork(machine: MachineT) -> MachineT:
    """A machine in the same state: messages and keys never change and are shared, what holds them is not."""
    twin = copy.copy(machine)
    vars(twin).update({name: _copied(value) for name, value in vars(machine).items()})
    return twin


def _copied(value: object) -> object:
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return copy.copy(value) if isinstance(value, (list, set, np.ndarray)) else value
