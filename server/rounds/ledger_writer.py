"""The server's ledger: the one that is written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ...common.crypto.identity import Identity
from ...common.ledger.chain import Entry, EntryType
from ...common.ledger.entries import Body
from ...common.ledger.replay import VerifiedLedger


@dataclass(kw_only=True)
class LedgerWriter:
    """Chains, signs and stores entries. What a replay would refuse is not written.

    ``store`` has an entry on disk when it returns, and raises StorageError if it cannot.
    """

    identity: Identity
    store: Callable[[bytes], None]
    verified: VerifiedLedger = field(default_factory=VerifiedLedger)

    def append(self, body: Body) -> Entry:
        """Write an entry, which is on disk when this returns. Raises LedgerError and StorageError."""
        ledger = self.verified.ledger
        entry = Entry.seal(
            self.identity, entry_type=body.type, body=body.fields, sequence=len(ledger), previous=ledger.head
        )
        verified = self.verified.continued([entry.line])
        self.store(entry.line)
        self.verified = verified
        return entry

    def rounds_since(self, start: int) -> int | None:
        """How many rounds were closed in the entries from ``start`` on; None where there are none before it."""
        if start == 0:
            return None
        return sum(entry.type is EntryType.ROUND_CLOSED for entry in list(self.verified.ledger)[start:])

    def lines(self, start: int = 0) -> Sequence[bytes]:
        """The entries from ``start`` on."""
        return self.verified.ledger.lines(start)
