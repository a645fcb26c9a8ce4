"""A site's own copy of the adapter: it begins as the manifest says, and takes each round's step from its sum."""

from dataclasses import dataclass

from ...common.errors import EnvelopeError
from ...common.ledger.chain import broken
from ...common.ledger.replay import VerifiedLedger
from ...common.ledger.steps import check_state, stepped
from ...common.model.adapter import check_finite, vector_from_bytes, vector_view
from ...common.model.adapter_file import trained_sha256
from ...common.protocol.envelope import Bytes
from ...common.study.manifest import Manifest
from ...common.study.step import Missing, Trained
from .site_state import AdapterRow, SiteState


@dataclass(frozen=True, kw_only=True, eq=False)
class Held:
    """The adapter and its optimiser after ``round``, 0 for before the first."""

    round: int
    trained: Trained


class AdapterCopy:
    """The adapter of one study as its site holds it, in its ``SiteState``, beside the ledger.

    *What it is for.* A site answers only for an adapter that the sums made. It steps its own from each sum and compares
    with the ledger. One that was away takes the state before the last round, whose hashes the ledger names: each of the
    t sites that took part in that round had come to it by itself and signed it, within H(Begin).
    """

    def __init__(self, state: SiteState, manifest: Manifest) -> None:
        """Raises StorageError."""
        self._state = state
        self._manifest = manifest
        self._held: Held | None = None
        if stored := state.adapter(manifest.study_id):
            round_, adapter, optimizer = stored
            vector = vector_from_bytes(adapter, dimension=manifest.dimension)
            self._held = Held(round=round_, trained=Trained(adapter=vector, optimizer=optimizer))

    def after_rounds(self, verified: VerifiedLedger, payload: Bytes) -> Held:
        """The adapter after the ledger's rounds, by what is held and what was sent of it; nothing is kept yet.

        Raises LedgerError where it is another than the ledger names, and EnvelopeError where what it takes is missing
        or it is not finite.
        """
        sent, rounds = Missing.parse(payload, dimension=self._manifest.dimension), len(verified.rounds)
        if self._held is not None and self._held.round == rounds:
            check_state(verified, rounds, self._held.trained)
            return self._held
        before = self._held.trained if self._held is not None and self._held.round == rounds - 1 else sent.before
        if before is None:
            raise _missing(rounds)
        if rounds == 0:
            check_state(verified, 0, before)
            return Held(round=0, trained=before)
        after = stepped(verified, rounds, before, sent.total)
        check_finite(after.adapter)
        return Held(round=rounds, trained=after)

    def to_write(self, held: Held) -> AdapterRow | None:
        """``held`` as the state has it; None where it is there."""
        if held is self._held:
            return None
        return held.round, vector_view(held.trained.adapter), held.trained.optimizer

    def keep(self, held: Held) -> None:
        """Go on with ``held``, which is on disk."""
        self._held = held

    def check_closing(self, verified: VerifiedLedger, payload: Bytes, weights: Bytes | None) -> None:
        """Raises what ``after_rounds`` does, and LedgerError or ModelError unless ``weights`` are this site's adapter.

        They are the file that the study leaves, if it leaves one.
        """
        self._held = self.after_rounds(verified, payload)  # so that what it came of need not stay in memory
        if weights is None:
            return
        left = trained_sha256(weights, kind=self._manifest.study.model.adapter)
        if left != self._held.trained.adapter_sha256:
            raise broken("the adapter that the study leaves is not the one that the sums made")


def _missing(rounds: int) -> EnvelopeError:
    return EnvelopeError(
        f"this site does not hold the adapter before round {rounds}, and was not sent it",
        why="it answers only for an adapter that it came to by itself",
        fix="begin another attempt: the server then sends what a site lacks that did not answer",
    )
