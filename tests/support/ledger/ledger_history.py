"""A study driven attempt by attempt: real sites, real keys, and a network and a server that may fail."""

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from safetensors.numpy import save

from grandrounds.client.state.database import SiteDatabase
from grandrounds.client.state.site_state import SiteState
from grandrounds.client.worker.worker import Worker
from grandrounds.common.crypto.identity import Identity, canonical_json, sha256
from grandrounds.common.ledger import entries
from grandrounds.common.ledger.chain import Entry
from grandrounds.common.ledger.replay import VerifiedLedger, begin_of
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import (
    SERVER,
    Advert,
    Close,
    Consistency,
    MaskedInput,
    Message,
    Shares,
    Unmask,
    pack,
)
from grandrounds.common.schema import validated
from grandrounds.common.secagg.transcript import seal_message
from grandrounds.common.study.manifest import Countersignature, Manifest
from grandrounds.common.study.step import DueStep, LastStep, Trained, average_sha256, left, step, sum_bytes
from grandrounds.common.study.study import Study
from grandrounds.common.system.content import Content
from grandrounds.server.rounds.accountant import CentralAccountant
from grandrounds.server.rounds.ledger_writer import LedgerWriter
from grandrounds.server.rounds.round import Round
from support.study.federation import MAX_UNITS, reserved, small_manifest, small_study

DIMENSION = 7
EXCHANGES = tuple(answer.exchange for answer in (Advert, Shares, MaskedInput, Consistency, Unmask))
# (site, exchange) whose answer is lost: the site gave it, and the server never had it.
Lost = Iterable[tuple[str, str]]


def history_study(**training: Any) -> Study:
    """Five sites, of which four must answer."""
    return small_study(training={"rounds": 4, "max_attempts": 9, **training})


@dataclass
class History:
    """A study whose server, sites and keys are real; every step is an honest one.

    ``lines`` is what the server stored. Its memory is otherwise as good as none: each attempt begins with a ``Round``
    of its own. ``told`` says which entries the server thinks that each site has.
    """

    study: Study = field(default_factory=history_study)
    identities: dict[str, Identity] = field(default_factory=dict)
    server: Identity = field(default_factory=Identity.generate)
    # Every key that ever signed an entry, by its public half.
    servers: dict[str, Identity] = field(default_factory=dict)
    lines: list[bytes] = field(default_factory=list)
    budgets: dict[str, SiteState] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    last_step: LastStep = field(
        default_factory=lambda: LastStep(after=Trained(adapter=np.zeros(DIMENSION, np.float32)))
    )
    told: dict[str, int] = field(default_factory=dict)
    answers: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for site in self.study.sites:
            self.identities.setdefault(site.name, Identity.generate())
        self.manifest = small_manifest(self.study, self.identities, self.server, dimension=DIMENSION)
        self._agree(self.manifest, self.identities)

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites of the manifest in force."""
        return self.manifest.secagg_parameters.names

    @property
    def verified(self) -> VerifiedLedger:
        """What the ledger says."""
        return VerifiedLedger.of(self.lines)

    @property
    def paid(self) -> dict[str, int]:
        """What every site that ever was in the study paid, by its own record."""
        return {site: budget.charges(self.manifest.study_id) for site, budget in self.budgets.items()}

    def writer(self) -> LedgerWriter:
        """The server as it starts: it knows what it stored."""
        return LedgerWriter(identity=self.server, store=self.lines.append, verified=self.verified)

    def round(self, writer: LedgerWriter | None = None) -> Round:
        """The round that is next, its attempt not yet begun."""
        writer = writer or self.writer()
        accountant = CentralAccountant(
            schedule=self.manifest.schedule,
            max_attempts=self.manifest.max_attempts,
            delta=self.manifest.delta,
            committed=len(writer.verified.attempts),
        )
        return Round(
            number=len(writer.verified.rounds) + 1,
            accountant=accountant,
            ledger=writer,
            last_step=self.last_step,
            held=self.told,
        )

    def begin(self) -> tuple[Round, dict[str, Content]]:
        """An attempt that has begun, and the Begin for each site."""
        round_ = self.round()
        round_.open_attempt()
        return round_, round_.messages()

    def attempt(self, lost: Lost = (), *, away: Collection[str] = (), until: str = "", close: bool = True) -> Round:
        """One attempt over a network that loses ``lost`` and does not reach who is ``away``.

        The server dies once the exchange ``until`` was answered.
        """
        lost = set(lost)
        round_, messages = self.begin()
        while not (round_.finished or round_.failed):
            exchange = Envelope.parse(next(iter(messages.values()))).exchange
            answer_due = EXCHANGES[("begin", "adverts", "ciphertexts", "survivors", "consistencies").index(exchange)]
            reached = messages.keys() - set(away)
            self.answers = {site: self.workers[site].handle(messages[site]) for site in messages if site in reached}
            if answer_due == until:
                return round_
            for site, answer in self.answers.items():
                if (site, answer_due) not in lost:
                    round_.receive(site, answer)
            round_.advance()
            messages = round_.messages()
        if round_.finished and close:
            self.close_round(round_)
        return round_

    def close_round(self, round_: Round) -> None:
        """The adapter takes the step of the round's sum."""
        before = self.last_step.after
        total = bytes(sum_bytes(self.manifest, round_.aggregate))
        after = step(
            DueStep(
                manifest=self.manifest,
                before=before,
                total=total,
                survivors=round_.survivors,
                round=round_.number,
                attempt=round_.outcomes[-1].attempt,
                shown=(),
            )
        )
        self.last_step = LastStep(after=after, before=before, total=total)
        round_.ledger.append(round_closed(self.manifest, round_.outcomes[-1].attempt, round_.number, self.last_step))

    def begin_with(self, lines: Sequence[bytes], *, shown: Sequence[bytes] | None = None) -> bytes:
        """The Begin of the attempt that ends ``lines``, whatever they are; ``shown`` is what is sent with it."""
        last = Entry.parse(lines[-1])
        return self.server_says(
            begin_of(last),
            pack([self.missing, *(lines if shown is None else shown)]),
            attempt=last.body["attempt"],
        )

    @property
    def missing(self) -> bytes:
        """What a site is sent of the adapter that holds nothing of it."""
        return self.last_step.missing(behind=None).packed()[:]

    def server_says(self, message: Message, payload: bytes = b"", *, attempt: int) -> bytes:
        """Any message, signed by the server."""
        parameters = self.manifest.secagg_parameters
        return seal_message(
            parameters, self.server, message, attempt=attempt, sender=SERVER, payload=payload
        ).to_bytes()

    def refusals(self) -> dict[str, str]:
        """The codes of those that refused in the exchange before."""
        envelopes = {site: Envelope.parse(answer) for site, answer in self.answers.items() if answer}
        return {site: e.body["code"] for site, e in envelopes.items() if e.exchange == "refusal"}

    def restart(self, site: str) -> None:
        """The site's worker starts anew, with what its state remembers."""
        self.workers[site] = Worker(
            name=site,
            identity=self.identities[site],
            manifest=self.manifest,
            release=lambda adapter, mechanism: np.ones(DIMENSION, "<u4"),
            state=self.budgets[site],
        )

    def successor(
        self,
        sites: Mapping[str, int] | None = None,
        *,
        rotate: Sequence[str] = (),
        server: Identity | None = None,
        threshold: int | None = None,
        **changes: Any,
    ) -> tuple[Manifest, dict[str, Identity]]:
        """A manifest that may follow, and its keys: ``sites`` with their nominal units, some with a new key."""
        units = {site.name: site.nominal_units for site in self.study.sites} if sites is None else dict(sites)
        identities = {
            site: self.identities[site] if site in self.identities and site not in rotate else Identity.generate()
            for site in units
        }
        fields = self.study.model_dump()
        fields["sites"] = [
            {"name": site, "nominal_units": number, "max_units": MAX_UNITS} for site, number in units.items()
        ]
        fields["secagg"]["threshold"] = threshold or self.manifest.threshold
        manifest = small_manifest(
            validated(Study, fields),
            identities,
            server or self.server,
            dimension=DIMENSION,
            **{"version": self.manifest.version + 1, "previous": self.manifest.sha256, **changes},
        )
        return manifest, identities

    def succeed(
        self, sites: Mapping[str, int] | None = None, *, server: Identity | None = None, **changes: Any
    ) -> None:
        """A successor that everybody signs: its own sites, and those of the roster before it with their old keys."""
        manifest, identities = self.successor(sites, server=server, **changes)
        previous = {site: self.identities[site] for site in self.sites}
        self.server = server or self.server
        self.study, self.manifest = manifest.study, manifest
        self.identities.update(identities)
        self._agree(manifest, identities, previous)

    def close(self) -> dict[str, bytes]:
        """The study ends; what each site answers to it. Who signs is on the ledger."""
        writer = self.writer()
        report = self.report()
        files = {"report.json": sha256(report)}
        writer.append(entries.StudyClosed(charges=writer.verified.charges, files=files))
        wire = self.close_with(self.lines, report)
        answers = {site: self.workers[site].handle(wire) for site in self.sites}
        for answer in answers.values():
            if answer and Envelope.parse(answer).exchange == "closed":
                signed = entries.SignedStatement.of(Envelope.parse(answer).statement)
                writer.append(entries.ClosingSignature(closed=signed))
        return answers

    @property
    def weights(self) -> bytes:
        """The adapter that the study leaves, as its file has it."""
        return save({"model.layer.lora_B.weight": left(self.manifest, self.last_step.after)[None]})

    def report(self, epsilon: float | None = None) -> bytes:
        """A report as far as a site reads it."""
        return canonical_json({"epsilon": epsilon, "manifest_sha256": self.manifest.sha256})

    def close_with(self, lines: Sequence[bytes], *contents: bytes) -> bytes:
        """The Close of the study that ``lines`` end, whatever they are, with these files."""
        last, attempts = Entry.parse(lines[-1]), sum(b'"type":"attempt-begun"' in line for line in lines)
        close = Close(ledger_length=last.sequence + 1, ledger_head=last.hash)
        return self.server_says(close, pack([pack(list(lines)), self.missing, *contents]), attempt=attempts)

    def fork(self) -> "History":
        """The same study at the same point, to go on by itself."""
        twin = copy.copy(self)
        for name in ("identities", "servers", "lines", "told", "answers"):
            setattr(twin, name, copy.copy(getattr(self, name)))
        twin.budgets = {site: copied(budget) for site, budget in self.budgets.items()}
        twin.workers = {}
        for site, worker in self.workers.items():
            twin.workers[site] = copy.copy(worker)
            twin.workers[site]._state = twin.budgets[site]
            twin.workers[site]._ledger = copy.copy(worker._ledger)
            twin.workers[site]._ledger._state = twin.budgets[site]
            twin.workers[site]._adapters = copy.copy(worker._adapters)
            twin.workers[site]._adapters._state = twin.budgets[site]
            twin.workers[site]._attempt = None
        return twin

    def _agree(self, manifest: Manifest, *signers: Mapping[str, Identity]) -> None:
        self.servers[self.server.public_key] = self.server
        writer = self.writer()
        place = (len(writer.verified.ledger), writer.verified.ledger.head)
        writer.append(entries.StudyEntry(manifest=manifest))
        for signature in countersignatures(manifest, *signers, place=place):
            writer.append(entries.CountersignatureEntry(countersignature=signature))
        for site in manifest.site_keys:
            if site not in self.budgets:
                self.budgets[site] = reserved(SiteState.in_memory(), manifest)
            self.restart(site)


@cache
def two_rounds() -> History:
    """Two attempts of two rounds, in which all took part; who goes on from there takes a fork."""
    made = History(study=history_study(rounds=9))
    made.attempt()
    made.attempt()
    return made


def round_closed(manifest: Manifest, attempt: int, round_: int, last_step: LastStep) -> entries.RoundClosed:
    """The entry of a round whose sum led to ``last_step``."""
    return entries.RoundClosed(
        attempt=attempt,
        round=round_,
        sum_sha256=sha256(last_step.total),
        adapter_sha256=last_step.after.adapter_sha256,
        optimizer_sha256=last_step.after.optimizer_sha256,
        average_sha256=average_sha256(manifest, last_step.after),
    )


def copied(budget: SiteState) -> SiteState:
    """A state in memory that remembers the same."""
    copied = SiteDatabase.in_memory()
    budget.database._connection.backup(copied._connection)
    return SiteState(copied)


def countersignatures(
    manifest: Manifest, *signers: Mapping[str, Identity], place: tuple[int, str]
) -> list[Countersignature]:
    """Each site's, once under each of its keys, after a ledger of that length and head."""
    signatures: dict[str, Countersignature] = {}
    for site, identity in (pair for identities in signers for pair in identities.items()):
        length, head = place
        made = Countersignature.of(
            identity,
            site=site,
            manifest=manifest.sha256,
            ledger_length=length,
            ledger_head=head,
            reservation=1,
        )
        signatures.setdefault(made.signature, made)
    return list(signatures.values())
