"""A study from its first signature to its last, as its server carries it out, in a simulation and in a deployment."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.audit.attack_scores import require_of_nobody
from ...common.crypto.identity import sha256
from ...common.data.tokenisation import EvaluationSet
from ...common.errors import StorageError
from ...common.ledger.replay import VerifiedLedger
from ...common.model.adapter import Vector, vector_sha256
from ...common.model.language_model import LanguageModel
from ...common.model.perplexity import Perplexity, RecordLosses
from ...common.study.artefacts import REPORT
from ...common.study.manifest import Manifest
from ...common.study.step import step
from ...common.system.content import Content
from ..report import attacks as attack_figures
from ..report import audit as audit_figures
from ..report.attacks import Attacked
from ..report.audit import Audited
from ..report.claim import count
from ..report.groups import in_groups
from ..report.report import Declared, Report, build_report, render_json
from ..report.utility import AtPosition, published
from ..rounds.app import Conversation
from ..rounds.checkpoint import Checkpoint
from ..rounds.closing import Closing
from ..rounds.ledger_writer import LedgerWriter
from ..rounds.signing import Signing
from ..rounds.training import Training, accountant_of
from .progress import Observer, StudyReady, phase
from .study_folder import StudyFolder

# Makes an audit of a study, audit.json; None where there is none to be made, of which it tells.
MakeAudit = Callable[[Manifest, Observer], bytes | None]
# Attacks a trained adapter on the study's model: the bytes of attacks.json.
Attack = Callable[[LanguageModel, Vector, Manifest], bytes]


@dataclass(kw_only=True)
class StudyRun:
    """What the server has to say in a study, in order, from where its ledger and its folder stand.

    ``model`` is the base model with the study's adapter, ``base`` the folder it was loaded from, ``evaluation`` the
    study's evaluation set, and ``evaluation_source`` where it comes from, in words. Without a ``folder`` nothing is
    kept. ``make_audit`` is called after training, where no audit lies in the folder; ``attack`` makes the bytes of
    attacks.json of the trained adapter, in simulations alone. ``training`` and ``report`` are there once begun.
    """

    manifest: Manifest
    ledger: LedgerWriter
    folder: StudyFolder | None
    model: LanguageModel
    base: Path
    evaluation: EvaluationSet
    evaluation_source: str
    observe: Observer
    make_audit: MakeAudit | None = None
    attack: Attack | None = None
    training: Training = field(init=False)
    report: Report = field(init=False)

    def conversations(self) -> Iterator[Conversation]:
        """Signing, training and closing. Raises what they raise, StorageError, and StudyError without a named audit."""
        if self.folder is not None and self.ledger.verified.closed is None:
            self.folder.named_audit(self.manifest.study)  # or the report could not state it
        with phase(self.observe, "signing", "every site signs the study"):
            yield Signing(manifest=self.manifest, ledger=self.ledger)
        checkpoint = self._checkpoint()
        claimed = accountant_of(self.manifest, ()).epsilon_of_schedule
        self.observe(
            StudyReady(
                manifest=self.manifest,
                epsilon=None if claimed is None else claimed.epsilon,
                perplexity_before=float(checkpoint.perplexities[0, 0]),
            )
        )
        self.training = Training(
            ledger=self.ledger,
            checkpoint=checkpoint,
            evaluate=self._losses,
            save=self._save,
            observe=self.observe,
            take_step=step if self.folder is None else self.folder.take_step,
        )
        with phase(self.observe, "training", count(self.manifest.study.training.rounds, "round")):
            yield self.training
        self._audit()
        self._attack()
        with phase(self.observe, "report", "claims, adapter and model card"):
            files = self._results()
        with phase(self.observe, "closing", "every site signs the ledger"):
            yield Closing(ledger=self.ledger, files=files, last_step=self.training.checkpoint.last_step)

    def _checkpoint(self) -> Checkpoint:
        """The last that was saved, or the first."""
        saved = None if self.folder is None else self.folder.checkpoint(self.manifest)
        if saved is not None:
            return saved
        adapter = self.model.get_adapter()
        if vector_sha256(adapter) != self.manifest.adapter_sha256:
            raise StorageError(
                "the adapter that this program begins with is not the study's",
                why="every site begins with the one that its manifest names, and follows no other",
                fix="run the version of the program that made the study, or fix the study anew",
            )
        with phase(self.observe, "evaluation", "the base model on held-out records"):
            losses = self._losses(adapter)
        first = Checkpoint.initial(study=self.manifest.study_id, adapter=adapter, losses=losses)
        return self._save(first)

    def _losses(self, adapter: NDArray[np.float32]) -> RecordLosses:
        return self.model.record_losses(self.evaluation.examples, adapter)

    def _save(self, checkpoint: Checkpoint) -> Checkpoint:
        if self.folder is None:
            return checkpoint
        self.folder.save_sum(self.manifest, checkpoint.round, checkpoint.last_step)
        return self.folder.save_checkpoint(checkpoint)

    def _audit(self) -> None:
        if self.make_audit is None or self.folder is None or self.folder.has_audit or self.ledger.verified.closed:
            return
        self.folder.save_audit(self.make_audit(self.manifest, self.observe))

    def _attack(self) -> None:
        if self.attack is None or self.folder is None or self.ledger.verified.closed:
            return
        require_of_nobody(self.manifest.study, app_sha256=self.manifest.app_sha256)
        with phase(self.observe, "attacks", "can it be told who was trained on?"):
            self.folder.save_attacks(self.attack(self.model, self.training.adapter, self.manifest))

    def _results(self) -> Mapping[str, Content]:
        """What the study leaves, the contents of each file by its path, with its ``report``."""
        closed = self.ledger.verified.closed
        # What was closed stays as it is; only what was lost of it since is written again.
        if self.folder is not None and closed is not None and self.folder.holds(closed.files):
            files = self.folder.contents(closed.files)
            self.report = json.loads(bytes(files[REPORT][:]))
            return files
        if self.folder is None:
            self.report = self._report(audit=None, attacks=None)
            return {REPORT: render_json(self.report)}
        audit = audit_figures.attached(self.folder.path, self.manifest)
        attacks = attack_figures.attached(
            self.folder.path, self.manifest, adapter_sha256=vector_sha256(self.training.adapter)
        )
        for audit_then, attacks_then in product((audit, None), (attacks, None)):
            self.report = self._report(audit=audit_then, attacks=attacks_then)
            # What came after the end stands beside the report, which is written as it was closed.
            if closed is None or sha256(render_json(self.report)) == closed.files[REPORT]:
                break
        self.model.set_adapter(self.training.adapter)
        return self.folder.contents(
            self.folder.save_results(self.report, self.model, described=self.manifest.study.model)
        )

    def _report(self, *, audit: Audited | None, attacks: Attacked | None) -> dict[str, Any]:
        checkpoint = self.training.checkpoint
        before = Perplexity.of_values(checkpoint.perplexities[0])
        left = [] if self.training.exhausted is None else [self.training.exhausted]
        declared = Declared(
            perplexity_before=published(before.whole),
            perplexities={
                closed.round: published(closed.perplexity)
                for closed in [*self.training.rounds, *left]
                if closed.perplexity is not None
            },
            by_position=AtPosition.all_of(before, checkpoint.last_evaluated),
            evaluation=self.evaluation_source,
            evaluation_max_tokens=self.evaluation.max_tokens,
            evaluation_cut=self.evaluation.cut,
            groups=in_groups(checkpoint.evaluated, patients=self.evaluation.patients, groups=self.evaluation.groups),
            audit=audit,
            attacks=attacks,
        )
        return build_report(self.ledger.verified, declared)


def check_ledger_of(manifest: Manifest, verified: VerifiedLedger) -> None:
    """Raises StorageError unless the ledger is empty, of this manifest, or of the one that this succeeds."""
    if verified.manifests and verified.manifest != manifest and verified.manifest.sha256 != manifest.previous:
        raise put_back("the ledger is that of another manifest")


def put_back(what: str) -> StorageError:
    """A ledger that is not the study's newest."""
    return StorageError(
        what,
        why="no site would follow it, and the attempts that they refuse would be spent",
        fix="put back the newest of the study's files; nothing was changed",
    )
