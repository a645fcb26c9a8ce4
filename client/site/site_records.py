"""A site's own records as studies may read them: without who opted out, and with what its operator is told of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...common.data.quarantine import Quarantine
from ...common.data.records import Record, read_records
from ...common.errors import DataError
from ..budget.policy import Policy
from .folder import SiteSettings
from .opt_outs import OptOuts, told_unmatched

_WHY_MATCHED: Final = "whoever opted out would be trained on"


@dataclass(frozen=True, kw_only=True)
class SiteRecords:
    """The records of patients who did not opt out, and what stays at the site of how they were read.

    Attributes:
        records: in the file's order; what ``quarantine`` lists of them counts as zero.
        quarantine: grows where a record cannot be laid out as the model reads it.
        opt_out_lines: how many lines of the opt-outs may mean a patient.
        unmatched: the numbers of those that mean none.
    """

    records: list[Record]
    quarantine: Quarantine
    opt_out_lines: int
    unmatched: list[int]

    @classmethod
    def read(cls, read: Callable[[Quarantine], list[Record]], opted_out: Path | None) -> "SiteRecords":
        """What ``read`` gives, without whom the file ``opted_out`` means. Raises DataError."""
        quarantine, opt_outs = Quarantine(), OptOuts.read(opted_out)
        records = read(quarantine)
        return cls(
            records=opt_outs.without(records),
            quarantine=quarantine,
            opt_out_lines=opt_outs.count,
            unmatched=opt_outs.unmatched(records),
        )

    def told(self) -> Iterator[str]:
        """Lines for the site's operator, who alone gets them."""
        yield from self.quarantine.lines()
        yield from told_unmatched(self.opt_out_lines, self.unmatched)

    def check_opt_outs(self) -> None:
        """Raises DataError where there are opt-outs and none of them matches a patient."""
        if self.unmatched and len(self.unmatched) == self.opt_out_lines:
            raise DataError(
                f"none of the opt-outs' {self.opt_out_lines} lines matches a patient of the records",
                why=_WHY_MATCHED,
                fix="write identifiers as in the records, one a line; if it is right that none has records here, say "
                "--opt-outs-match-nobody",
            )


def read_site_records(settings: SiteSettings, policy: Policy) -> SiteRecords:
    """The records that the site's settings and policy name. Raises DataError."""
    similar = settings.similar_identifiers
    return SiteRecords.read(
        lambda quarantine: read_records(settings.data, similar=similar, quarantine=quarantine), policy.data.opted_out
    )
