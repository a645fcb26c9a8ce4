"""What a replayed ledger says of each attempt and round."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """An attempt that was begun. ``dropouts`` says at which exchange a site was lost.

    ``survivors`` are the sites whose updates are in the sum, if it was ``unmasked``, and ``shown`` those of them that
    showed the layers of their noise which are more than so many survivors need; ``charged`` are those that may have
    paid. One that was not ``ended`` was cut off by a crash, or is running: anybody may have paid.
    """

    attempt: int
    round: int
    manifest: str
    begin_hash: str
    invited: tuple[str, ...]
    ended: bool = False
    unmasked: bool = False
    survivors: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    dropouts: dict[str, str] = field(default_factory=dict)
    charged: tuple[str, ...] = ()

    def may_have_charged(self, site: str) -> bool:
        """Whether ``site`` can have paid for it, by what the ledger has."""
        return site in (self.charged if self.ended else self.invited)


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """A round that was closed by its last attempt; ``average_sha256`` where the study leaves an average."""

    round: int
    attempt: int
    survivors: tuple[str, ...]
    sum_sha256: str
    adapter_sha256: str
    optimizer_sha256: str
    average_sha256: str | None

    @property
    def left_sha256(self) -> str:
        """The hash of the adapter that the study would leave after this round."""
        return self.average_sha256 or self.adapter_sha256
