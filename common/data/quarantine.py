"""Records that cannot be trained on: each keeps its place, counts as zero, and is on a list that stays at the site."""

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """A record that is set aside: its file and line or row, and why, without a word of it."""

    position: str
    reason: str


@dataclass
class Quarantine:
    """What was set aside of a site's records, in their order: for the site's operator, and never sent.

    A record alone must not decide whether its site takes part, since the others see who does.
    """

    set_aside: list[SetAside] = field(default_factory=list)

    def add(self, position: str, reason: str) -> None:
        """Note one more."""
        self.set_aside.append(SetAside(position=position, reason=reason))

    def lines(self, *, most: int = 100) -> Iterator[str]:
        """What an operator is told: how many, and the first ``most`` of them."""
        if not self.set_aside:
            return
        yield f"{len(self.set_aside)} of the records cannot be trained on and count as zero, which nobody else is told:"
        yield from (f"  {one.position}: {one.reason}" for one in self.set_aside[:most])
        if len(self.set_aside) > most:
            yield f"  and {len(self.set_aside) - most} more"
