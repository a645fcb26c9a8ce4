"""What a ledger says of the adapter: its hash after each round, and whether a step came to that."""

from ..crypto.identity import sha256
from ..errors import GrandRoundsError
from ..study.step import Trained, step, sum_from_bytes
from .chain import broken
from .replay import VerifiedLedger

_FIX = "take part no further; show the ledger to every site: the server, or this machine's arithmetic, is at fault"


def stepped(verified: VerifiedLedger, round_: int, before: Trained, total: bytes | memoryview) -> Trained:
    """What the sum ``total`` of a round makes of the state ``before`` it, by the manifest that its attempt ran under.

    Raises LedgerError unless state, sum and what comes of them are those that the ledger names.
    """
    check_state(verified, round_ - 1, before)
    record = verified.rounds[round_ - 1]
    if sha256(total) != record.sum_sha256:
        raise broken(f"the sum of round {round_} is another than the ledger names", fix=_FIX)
    ran_under = verified.attempts[record.attempt - 1].manifest
    manifest = next(manifest for manifest in verified.manifests if manifest.sha256 == ran_under)
    try:
        after = step(manifest, before, sum_from_bytes(manifest, total), record.survivors)
    except GrandRoundsError as error:
        raise broken(f"round {round_} cannot be stepped: {error.what}", fix=_FIX) from error
    check_state(verified, round_, after)
    return after


def check_state(verified: VerifiedLedger, round_: int, trained: Trained) -> None:
    """Raises LedgerError unless adapter and optimiser are those that the ledger has after ``round_``, 0 for before."""
    if round_:
        record = verified.rounds[round_ - 1]
        named = record.adapter_sha256, record.optimizer_sha256
    else:
        named = verified.manifest.adapter_sha256, sha256(b"")
    if named != (trained.adapter_sha256, trained.optimizer_sha256):
        raise broken(f"after round {round_} the adapter, or its optimiser, is another than the ledger names", fix=_FIX)
