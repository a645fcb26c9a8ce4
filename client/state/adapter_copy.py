"""A site's own copy of the adapter: it begins as the manifest says, and takes each round's step from its sum."""

from collections.abc import Mapping
from dataclasses import dataclass

from ...common.errors import EnvelopeError
from ...common.ledger.chain import broken
from ...common.ledger.replay import VerifiedLedger
from ...common.ledger.steps import check_state, stepped
from ...common.model.adapter import Vector, adapter_from, check_numbers
from ...common.model.adapter_file import is_folded, trained_sha256
from ...common.study.artefacts import WEIGHTS, trained_path
from ...common.study.manifest import Manifest
from ...common.study.step import DueStep, Missing, Trained, left_sha256, step, step_into
from ...common.system.content import BLOCK_BYTES, Content, Stored
from .database import storage_errors
from .site_state import SiteState


@dataclass(frozen=True, kw_only=True, eq=False)
class Held:
    """The adapter and its optimiser after ``round``, 0 for before the first, and whether they are on disk so."""

    round: int
    trained: Trained
    kept: bool = False


class AdapterCopy:
    """The adapter of one study as its site holds it, in its ``SiteState``, beside the ledger, and nowhere else.

    *What it is for.* A site answers only for an adapter that the sums made. It steps its own from each sum and compares
    with the ledger. One that was away takes the state before the last round, whose hashes the ledger names: each of the
    t sites that took part in that round had come to it by itself and signed it, within H(Begin).

    Of large ones nothing is in memory: they are read from files, and the step is taken into files, block by block.
    """

    def __init__(self, state: SiteState, manifest: Manifest) -> None:
        self._state = state
        self._manifest = manifest

    def adapter(self) -> Vector | Stored:
        """The adapter [d] that is held. Raises StorageError, and EnvelopeError where it is not finite."""
        return self._trained.adapter

    def after_rounds(self, verified: VerifiedLedger, payload: Content) -> Held:
        """The adapter after the ledger's rounds, by what is held and what was sent of it; nothing is kept yet.

        Raises LedgerError where it is another than the ledger names, and EnvelopeError where what it takes is missing
        or it is not finite.
        """
        sent, rounds = Missing.parse(payload, dimension=self._manifest.dimension), len(verified.rounds)
        held = self._state.adapter_round(self._manifest.study_id)
        if held == rounds:
            trained = self._trained
            check_state(verified, rounds, trained)
            return Held(round=rounds, trained=trained, kept=True)
        before = self._trained if held is not None and held == rounds - 1 else sent.before
        if before is None:
            raise _missing(rounds)
        if rounds == 0:
            check_state(verified, 0, before)
            return Held(round=0, trained=before)
        after = stepped(verified, rounds, before, sent.total, take=self._take_step)
        check_numbers(after.numbers, dimension=self._manifest.dimension)
        return Held(round=rounds, trained=after)

    @property
    def _trained(self) -> Trained:
        """What is held."""
        adapter, optimizer = self._state.adapter(self._manifest.study_id)
        return Trained(adapter=adapter_from(adapter, dimension=self._manifest.dimension), optimizer=optimizer)

    def _take_step(self, due: DueStep) -> Trained:
        """As ``step``, into files where the adapter is large. Raises StorageError, too."""
        if 4 * due.manifest.dimension <= BLOCK_BYTES:
            return step(due)
        with storage_errors():
            return step_into(due, self._state.database.nameless_file)

    def check_closing(self, verified: VerifiedLedger, payload: Content, files: Mapping[str, Content]) -> None:
        """Raises what ``after_rounds`` does, and LedgerError or ModelError unless ``files`` have this site's adapter.

        They are what the study leaves, by their paths; a study need not leave an adapter.
        """
        own = left_sha256(self._manifest, self.after_rounds(verified, payload).trained)
        kind = self._manifest.study.model.adapter
        trained = files.get(trained_path(kind))
        if trained is not None and trained_sha256(trained[:], kind=kind) != own:
            raise broken("the adapter that the study leaves is not the one that the sums made")
        if (
            trained is not None
            and kind == "core"
            and not is_folded(bytes(files.get(WEIGHTS, b"")[:]), bytes(trained[:]))
        ):
            raise broken("the LoRA that the study leaves is not its core adapter")


def _missing(rounds: int) -> EnvelopeError:
    return EnvelopeError(
        f"this site does not hold the adapter before round {rounds}, and was not sent it",
        why="it answers only for an adapter that it came to by itself",
        fix="begin another attempt: the server then sends what a site lacks that did not answer",
    )
