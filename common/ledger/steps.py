"""What a ledger says of the adapter: its hash after each round, and whether a step came to that."""

from ..crypto.identity import sha256
from ..errors import GrandRoundsError, StorageError
from ..study.step import DueStep, TakeStep, Trained, average_sha256, step
from ..system.content import Content
from .chain import broken
from .replay import VerifiedLedger

_FIX = "take part no further; show the ledger to every site: the server, or this machine's arithmetic, is at fault"


def stepped(
    verified: VerifiedLedger, round_: int, before: Trained, total: Content, *, take: TakeStep = step
) -> Trained:
    """What the sum ``total`` of a round makes of the state ``before`` it, by the manifest that its attempt ran under.

    Raises LedgerError unless state, sum and what comes of them are those that the ledger names, and what else ``take``
    does.
    """
    check_state(verified, round_ - 1, before)
    record = verified.rounds[round_ - 1]
    if sha256(total) != record.sum_sha256:
        raise broken(f"the sum of round {round_} is another than the ledger names", fix=_FIX)
    attempt = verified.attempts[record.attempt - 1]
    manifest = next(manifest for manifest in verified.manifests if manifest.sha256 == attempt.manifest)
    due = DueStep(
        manifest=manifest,
        before=before,
        total=total,
        survivors=attempt.survivors,
        round=round_,
        attempt=attempt.attempt,
        shown=attempt.shown,
    )
    try:
        after = take(due)
    except StorageError:  # of this machine, and nothing of the ledger
        raise
    except GrandRoundsError as error:
        raise broken(f"round {round_} cannot be stepped: {error.what}", fix=_FIX) from error
    check_state(verified, round_, after)
    return after


def check_state(verified: VerifiedLedger, round_: int, trained: Trained) -> None:
    """Raises LedgerError unless adapter and optimiser are those that the ledger has after ``round_``, 0 for before.

    And their average, where the study has one; EnvelopeError where such a state cannot be the study's.
    """
    manifest, average = verified.manifest, None
    named = manifest.adapter_sha256, sha256(b"")
    if round_:
        record = verified.rounds[round_ - 1]
        named, average = (record.adapter_sha256, record.optimizer_sha256), record.average_sha256
    is_named = named == (trained.adapter_sha256, trained.optimizer_sha256)
    if not is_named or average != average_sha256(manifest, trained):
        raise broken(f"after round {round_} the adapter, or its optimiser, is another than the ledger names", fix=_FIX)
