"""A whole federation in one process: real Flower apps over a LocalGrid, real keys, and every message kept.

``Federation.run`` trains to the end; ``attempt`` opens one attempt by hand, for tests that speak in the server's name.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from scipy import stats

from grandrounds.client.budget.amounts import Amounts
from grandrounds.client.budget.asset import Asset
from grandrounds.client.budget.reservations import Reservations
from grandrounds.client.node.app import make_app as make_client_app
from grandrounds.client.state.site_state import SiteState
from grandrounds.client.training.cohort import Cohort
from grandrounds.client.training.grad_samples import GradSampler
from grandrounds.client.training.update import SiteUpdate
from grandrounds.client.worker.worker import ComputeUpdate, Worker
from grandrounds.common.crypto.identity import Identity
from grandrounds.common.ledger import entries
from grandrounds.common.ledger.chain import EMPTY_LEDGER_HEAD, Entry
from grandrounds.common.ledger.replay import begin_of
from grandrounds.common.model.adapter import vector_bytes, vector_sha256
from grandrounds.common.model.example import Example
from grandrounds.common.model.perplexity import BANDS, RecordLosses
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import FIELD, RECORD, SERVER, Ciphertexts, Consistencies, Survivors, pack
from grandrounds.common.protocol.messages import Message as Body
from grandrounds.common.schema import validated
from grandrounds.common.secagg.transcript import seal_message
from grandrounds.common.study.manifest import Countersignature, Manifest
from grandrounds.common.study.study import Study
from grandrounds.common.system.package_hash import running_sha256
from grandrounds.common.version import __version__
from grandrounds.deploy.simulation.local_grid import SERVER_NODE, LocalGrid, local_context
from grandrounds.server.rounds.app import make_app as make_server_app
from grandrounds.server.rounds.attempt import ServerAttempt
from grandrounds.server.rounds.checkpoint import Checkpoint
from grandrounds.server.rounds.ledger_writer import LedgerWriter
from grandrounds.server.rounds.training import RoundObserver, Training

# What a site is sent once it has given its shares.
AFTER_SHARES = (Ciphertexts.exchange, Survivors.exchange, Consistencies.exchange)
Unit = Sequence[Example]
# Of a small study's site; its cohort has far fewer.
MAX_UNITS = 1000
# What a federation without an evaluation set evaluates to.
EVEN = RecordLosses(losses=np.zeros((1, len(BANDS))), tokens=np.ones((1, len(BANDS)), dtype=np.int64))
# (site, what it is sent, the exchange's envelope) -> whether it is lost on the way.
IsLost = Callable[[str, Envelope], bool]


def small_study(
    nominal_units: Sequence[int] = (4, 4, 4, 4, 4),
    max_units: int = MAX_UNITS,
    *,
    trust: str = "distributed",
    noise_multiplier: float | None = None,
    privacy: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    secagg: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> Study:
    """A complete study of ``site-1`` …: everyone sampled, plain SGD, no noise unless a multiplier is given."""
    sites = [
        {"name": f"site-{i}", "nominal_units": units, "max_units": max_units}
        for i, units in enumerate(nominal_units, start=1)
    ]
    noise = (
        {"noise": False} if noise_multiplier is None else {"noise_multiplier": noise_multiplier, "target_epsilon": 99}
    )
    fields: dict[str, dict[str, Any]] = {
        "data": {"max_tokens": 16, "records_per_unit": 3, "evaluation": "synthetic", **(data or {})},
        "privacy": {"trust": trust, "delta": 1e-3, "sampling_probability": 1, "clipping_norm": 0.5}
        | {**noise, **(privacy or {})},
        "training": {"rounds": 1, "max_attempts": 3, "optimizer": "sgd", "learning_rate": 1, "evaluations": 100}
        | {"answer_after_s": 2.0}
        | dict(training or {}),
        "secagg": {"threshold": 4, "modulus_bits": 32 if trust == "distributed" else 16, **(secagg or {})},
    }
    return validated(Study, {**fields, "sites": sites})


def small_manifest(study: Study, identities: Mapping[str, Identity], server: Identity, **changes: Any) -> Manifest:
    """The study's manifest for an adapter of ``changes["dimension"]`` numbers."""
    fields = {
        "study_id": "11" * 32,
        "study": study.model_dump(),
        "site_keys": {site: identity.public_key for site, identity in identities.items()},
        "server_key": server.public_key,
        "model_sha256": "22" * 32,
        "frozen_adapter_sha256": "33" * 32,
        "adapter_layout_sha256": "34" * 32,
        "adapter_sha256": vector_sha256(np.zeros(changes["dimension"], np.float32)),
        "tensor_sizes": [changes["dimension"]],
        "package_version": __version__,
        "package_sha256": running_sha256(),
        "app_sha256": "44" * 32,
        "connection_sha256": "55" * 32,
    }
    return validated(Manifest, fields | changes)


def reserved(budget: SiteState, manifest: Manifest) -> SiteState:
    """The budget of a site that has joined, with records of nobody."""
    reservations = Reservations(budget.database)
    reservations.register(Asset.synthetic("records"))
    reservations.reserve("records", manifest.study_id, Amounts())
    return budget


def agreed_ledger(
    manifest: Manifest,
    identities: Mapping[str, Identity],
    server: Identity,
    store: Callable[[bytes], Any] = lambda line: None,
    *,
    reservations: Mapping[str, int] = {},
) -> LedgerWriter:
    """The ledger of a study that every site has signed, as its first reservation or as the one given."""
    ledger = LedgerWriter(identity=server, store=store)
    ledger.append(entries.StudyEntry(manifest=manifest))
    for site in manifest.secagg_parameters.names:
        signature = Countersignature.of(
            identities[site],
            site=site,
            manifest=manifest.sha256,
            ledger_length=0,
            ledger_head=EMPTY_LEDGER_HEAD,
            reservation=reservations.get(site, 1),
        )
        ledger.append(entries.CountersignatureEntry(countersignature=signature))
    return ledger


def trained_on(
    cohorts: Mapping[str, Sequence[Unit]],
    sampler: GradSampler,
    *,
    cohort: Callable[[Sequence[Unit]], Cohort[Example]] = Cohort,
) -> Callable[[Manifest, str], ComputeUpdate]:
    """What each site computes: its real update over its own units."""
    return lambda manifest, site: SiteUpdate(
        manifest=manifest, name=site, cohort=cohort(cohorts[site]), sampler=sampler
    )


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """A message to a site and, unless it was lost, the bytes of the answer in its Flower reply."""

    site: str
    request: bytes
    answer: bytes | None

    @property
    def exchange(self) -> str:
        """What was sent to the site."""
        return Envelope.parse(self.request).exchange

    @property
    def attempt(self) -> int:
        """The attempt that it belongs to."""
        return Envelope.parse(self.request).attempt


@dataclass(kw_only=True)
class Federation:
    """A study, its server and its sites. ``dataclasses.replace`` gives the same study and keys a new run."""

    study: Study
    dimension: int
    release: Callable[[Manifest, str], ComputeUpdate]
    adapter: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    # A site's state: of this process alone, unless a test gives folders.
    state: Callable[[str], SiteState] = lambda site: SiteState.in_memory()
    identities: dict[str, Identity] = field(default_factory=dict)
    server: Identity = field(default_factory=Identity.generate)
    manifest: Manifest = field(init=False)
    workers: dict[str, Worker] = field(init=False)
    # The server's ledger, as it was stored line by line.
    lines: list[bytes] = field(init=False, default_factory=list)
    ledger: LedgerWriter = field(init=False, repr=False)
    training: Training = field(init=False, repr=False)
    traffic: list[Traffic] = field(init=False, default_factory=list)
    # The global adapter after each round, and what was saved with it.
    adapters: list[NDArray[np.float32]] = field(init=False, default_factory=list)
    checkpoints: list[Checkpoint] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        names = [site.name for site in self.study.sites]
        self.identities = self.identities or {name: Identity.generate() for name in names}
        if not self.adapter.size:
            self.adapter = np.zeros(self.dimension, dtype=np.float32)
        self.manifest = small_manifest(
            self.study,
            self.identities,
            self.server,
            dimension=self.dimension,
            adapter_sha256=vector_sha256(self.adapter),
        )
        self.ledger = agreed_ledger(self.manifest, self.identities, self.server, self.lines.append)
        self.workers = {name: self.worker(name) for name in names}

    def pin(self, **changes: Any) -> None:
        """Other fields of the manifest, such as a model's hash: a study that nobody has begun."""
        self.manifest = self.manifest.model_copy(update=changes)
        self.lines.clear()
        self.ledger = agreed_ledger(self.manifest, self.identities, self.server, self.lines.append)
        self.workers = {name: self.worker(name) for name in self.workers}

    def worker(self, name: str) -> Worker:
        """A site's worker as it starts, with whatever its state remembers."""
        return Worker(
            name=name,
            identity=self.identities[name],
            manifest=self.manifest,
            release=self.release(self.manifest, name),
            state=reserved(self.state(name), self.manifest),
        )

    def restart(self, name: str) -> None:
        """The site's worker dies and is started anew."""
        self.workers[name].close()
        self.workers[name] = self.worker(name)

    def open_training(self, observe: RoundObserver = lambda event: None) -> Training:
        """The server's state machine at its first attempt, or at the next after its last checkpoint."""
        manifest = self.manifest
        self.training = Training(
            ledger=self.ledger,
            checkpoint=self.checkpoints[-1]
            if self.checkpoints
            else Checkpoint.initial(study=manifest.study_id, adapter=self.adapter, losses=EVEN),
            evaluate=self._keep_adapter,
            save=self._keep_checkpoint,
            observe=observe,
        )
        return self.training

    def run(
        self, is_lost: IsLost = lambda site, envelope: False, *, observe: RoundObserver = lambda event: None
    ) -> "Federation":
        """Train to the end through the Flower apps."""
        app = make_client_app(lambda context: self.workers[str(context.node_config["site"])].handle)
        grid = LocalGrid(
            {site: _Tap(site, app, self.traffic) for site in self.workers},
            lambda site, message: self._is_lost(site, message, is_lost),
        )
        server_app = make_server_app(lambda context: [self.open_training(observe)], lambda grid_: grid.nodes)
        server_app(grid, local_context(SERVER_NODE, SERVER))
        return self

    def attempt(self, serial: int = 1, *, payload: bytes | None = None, **begin: Any) -> ServerAttempt:
        """One attempt, to be driven by hand with ``exchange``; ``begin`` changes what its Begin says.

        ``payload`` is sent as the adapter instead of the study's own. The ledger shown with it has the attempts up to
        it as begun, and of none that it ended.
        """
        missing = pack([vector_bytes(self.adapter) if payload is None else payload, b"", b""])
        lines = self.lines[: 1 + len(self.workers)]
        for attempt in range(1, serial + 1):
            lines.append(
                self.forged(
                    entries.AttemptBegun(
                        attempt=attempt,
                        round=1,
                        invited=tuple(self.workers),
                        adapter_sha256=vector_sha256(self.adapter),
                    ),
                    after=lines[-1],
                )
            )
        message = begin_of(Entry.parse(lines[-1])).model_copy(update=begin)
        return ServerAttempt(
            parameters=self.manifest.attempt_parameters(serial),
            identity=self.server,
            begin=message,
            attempt=serial,
            payloads=dict.fromkeys({*self.workers, *message.invited}, pack([missing, *lines])),
        )

    def forged(self, body: entries.Body, *, after: bytes) -> bytes:
        """Any entry that the server signs, whether or not an honest one would write it."""
        previous = Entry.parse(after)
        return Entry.seal(
            self.server,
            entry_type=body.type,
            body=body.fields,
            sequence=previous.sequence + 1,
            previous=previous.hash,
        ).line

    def server_says(self, body: Body, payload: bytes = b"", *, attempt: int = 1) -> bytes:
        """Any message, signed by the server."""
        parameters = self.manifest.secagg_parameters
        return seal_message(parameters, self.server, body, attempt=attempt, sender=SERVER, payload=payload).to_bytes()

    def exchange(self, attempt: ServerAttempt) -> dict[str, bytes]:
        """One exchange over an honest network; the sites' answers."""
        answers = {site: self.workers[site].handle(message) for site, message in attempt.messages().items()}
        for site, answer in answers.items():
            attempt.receive(site, answer)
        attempt.advance()
        return answers

    def until(self, exchange: str, attempt: ServerAttempt) -> ServerAttempt:
        """Honest until the server is about to ask for the answer ``exchange``."""
        while attempt.exchange != exchange:
            self.exchange(attempt)
        return attempt

    def answers(self, attempt: int | None = None) -> Iterator[tuple[str, Envelope]]:
        """Every envelope that left a site (of one attempt), in order."""
        for traffic in self.traffic:
            if traffic.answer and attempt in (None, traffic.attempt):
                yield traffic.site, Envelope.parse(traffic.answer)

    def _keep_checkpoint(self, checkpoint: Checkpoint) -> Checkpoint:
        self.checkpoints.append(checkpoint)
        return checkpoint

    def _keep_adapter(self, adapter: NDArray[np.float32]) -> RecordLosses:
        self.adapters.append(adapter.copy())
        return EVEN

    def _is_lost(self, site: str, message: Message, is_lost: IsLost) -> bool:
        request = _wire(message)
        lost = is_lost(site, Envelope.parse(request))
        if lost:
            self.traffic.append(Traffic(site=site, request=request, answer=None))
        return lost


def _wire(message: Message) -> bytes:
    carried = message.content.config_records[RECORD][FIELD]
    assert isinstance(carried, bytes)
    return carried


@dataclass(frozen=True)
class _Tap:
    """A ClientApp whose messages are kept."""

    site: str
    app: ClientApp
    traffic: list[Traffic]

    def __call__(self, message: Message, context: Context) -> Message:
        reply = self.app(message, context)
        request = _wire(message)
        self.traffic.append(Traffic(site=self.site, request=request, answer=_wire(reply)))
        return reply


def lost_after_shares(**attempts: int) -> IsLost:
    """A network on which ``site_2=3`` loses site-2 in attempt 3, after its shares."""
    gone = {(site.replace("_", "-"), attempt) for site, attempt in attempts.items()}
    return lambda site, envelope: envelope.exchange in AFTER_SHARES and (site, envelope.attempt) in gone


def is_noise_of(vector: NDArray[np.floating[Any]], stddev: float) -> bool:
    """Whether [d] independent draws look like the noise of this deviation: its size, and its shape.

    False alarm below 1e-8 in all.
    """
    scaled = vector / stddev
    low, high = stats.chi2.ppf([2.5e-9, 1 - 2.5e-9], vector.size)
    return bool(low < np.square(scaled).sum() < high and stats.kstest(scaled, "norm").pvalue > 2.5e-9)
