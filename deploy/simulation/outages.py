"""Sites that go away in the middle of a simulated round."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from flwr.app import Message

from ...common.ledger.replay import VerifiedLedger
from ...common.protocol.envelope import Envelope
from ...common.protocol.messages import FIELD, RECORD, Begin, Ciphertexts, Consistencies, Survivors

_LATE = (Ciphertexts.exchange, Survivors.exchange, Consistencies.exchange)


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """A site that goes away in the middle of a round's first attempt, after its shares, and is back for the next."""

    site: str
    round: int


@dataclass
class Outages:
    """Says which messages meet a site that is away, as the simulation's network asks."""

    dropouts: Sequence[Dropout]
    # The round of every attempt that was begun, also before this process.
    _rounds: dict[int, int] = field(default_factory=dict)

    @classmethod
    def since(cls, verified: VerifiedLedger, dropouts: Sequence[Dropout]) -> "Outages":
        """Those of a study that has begun the attempts of ``verified``."""
        return cls(dropouts, {record.attempt: record.round for record in verified.attempts})

    def is_lost(self, site: str, message: Message) -> bool:
        """Whether ``message`` belongs to the later exchanges of an attempt in which ``site`` drops out."""
        content = message.content.config_records[RECORD][FIELD]
        assert isinstance(content, bytes)  # noqa: S101 (server/rounds/app.py sends nothing else)
        envelope = Envelope.parse(content)
        if envelope.exchange == Begin.exchange:
            self._rounds[envelope.attempt] = Begin.of(envelope).round
        if envelope.exchange not in _LATE:
            return False
        round_ = self._rounds[envelope.attempt]
        first = min(attempt for attempt, number in self._rounds.items() if number == round_)
        return envelope.attempt == first and Dropout(site=site, round=round_) in self.dropouts
