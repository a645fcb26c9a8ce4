"""A site's own records as studies may read them: without who opted out, and with what its operator is told of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...common.data.quarantine import Quarantine
from ...common.data.records import Record, read_records
from ...common.errors import DataError
from ...common.study.manifest import Manifest
from ..budget.policy import Policy
from .folder import SiteSettings
from .opt_outs import OptOuts, told_unmatched

# How far the units that a study counts on may be from those that were read before the operator is warned.
_FAR: Final = 1.5
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
            unmatched=opt_outs.unmatched({record.patient_id for record in records}),
        )

    def told(self) -> Iterator[str]:
        """Lines for the site's operator, who alone gets them."""
        yield from self.quarantine.lines()
        yield from told_unmatched(self.opt_out_lines, self.unmatched)

    @property
    def patients(self) -> list[str]:
        """Whose records they are, one after another."""
        return [record.patient_id for record in self.records]

    def told_far(self, manifest: Manifest, name: str) -> Iterator[str]:
        """What ``told_far`` says of them."""
        return told_far(len(set(self.patients)), len(self.records), manifest, name)

    def check_opt_outs(self) -> None:
        """Raises DataError where there are opt-outs and none of them matches a patient."""
        if self.unmatched and len(self.unmatched) == self.opt_out_lines:
            raise DataError(
                f"none of the opt-outs' {self.opt_out_lines} lines matches a patient of the records",
                why=_WHY_MATCHED,
                fix="write identifiers as in the records, one a line; if it is right that none has records here, say "
                "--opt-outs-match-nobody",
            )


def told_far(patients: int, records: int, manifest: Manifest, name: str) -> Iterator[str]:
    """A line where the study counts on quite another number of units of the site ``name``."""
    unit, nominal = manifest.study.privacy.unit, manifest.nominal_units(name)
    units = patients if unit == "patient" else records
    if max(units, nominal) > _FAR * min(units, nominal):
        yield (
            f"warning: the study counts on {nominal} {unit}s of this site, and {units} were read: its part of each "
            f"step is {units / nominal:.2g} times as large as the study means, and the claim is what it was. Is "
            "this the right file? If so, ask the study's author for nominal_units near the true number, rounded"
        )


def read_site_records(settings: SiteSettings, policy: Policy) -> SiteRecords:
    """The records that the site's settings and policy name. Raises DataError."""
    similar = settings.similar_identifiers
    return SiteRecords.read(
        lambda quarantine: read_records(settings.data, similar=similar, quarantine=quarantine), policy.data.opted_out
    )
