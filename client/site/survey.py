"""What a site's data come to, before any study: in aggregate, for the site's own operator and nobody else."""

from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import Final

from ...common.data.records import Chat, PromptCompletion, Record, Text, read_records
from ...common.data.text_lengths import TextLengths
from ...common.errors import DataError, ModelError
from ..budget.policy import Policy
from .folder import SiteSettings
from .site_records import SiteRecords, read_site_records

_COLUMNS: Final = {Text: "text", PromptCompletion: "prompt, completion", Chat: "messages"}
# What studies read of a record, for an operator who does not know yet what one will: tokens.
_USUAL: Final = (64, 256, 1024)


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Records, patients and lengths of a site's data, as they were read; nothing of it leaves the site."""

    file: str
    site_records: SiteRecords
    lengths: TextLengths

    @classmethod
    def of(cls, settings: SiteSettings, policy: Policy, site_records: SiteRecords | None = None) -> "Survey":
        """Read all that site.toml names, or what was read of it already. Raises DataError and ModelError."""
        if site_records is None:
            check_readable(settings)
            site_records = read_site_records(settings, policy)
        if settings.held_out is not None:
            read_records(settings.held_out, similar=settings.similar_identifiers)
        if not site_records.records:
            raise DataError(
                f"of {settings.data.name} no record is left: all of its patients are among the opt-outs",
                why="there is nothing to train on",
                fix="check the file that data.opted_out in policy.toml names",
            )
        lengths = TextLengths.of(site_records.records, settings.model)
        return cls(file=settings.data.name, site_records=site_records, lengths=lengths)

    @property
    def lines(self) -> list[str]:
        """All that can be said before there is a study."""
        return [self.counts, self.read_by_studies, *self.site_records.told()]

    @property
    def counts(self) -> str:
        """What was read, in one line."""
        records = self.site_records.records
        each = Counter(record.patient_id for record in records)
        return (
            f"{self.file}: {len(records):,} records (patient_id, {_columns(records)}) of {len(each):,} patients, "
            f"{median(each.values()):g} of a patient in the median"
        )

    @property
    def read_by_studies(self) -> str:
        """How much of the text studies read, by how many tokens of a record they read."""
        first, *others = ((f"{most:,}", self._share(most)) for most in _USUAL)
        more = "".join(f", one of {most} {share}" for most, share in others)
        return f"{self._median}; a study that reads {first[0]} of each reads {first[1]} of your text{more}"

    def read_by(self, max_tokens: int) -> str:
        """How much of the text one study reads."""
        return (
            f"{self._median}; this study reads the first {max_tokens:,} of each, {self._share(max_tokens)} of your text"
        )

    @property
    def _median(self) -> str:
        return f"your median record has {self.lengths.median:,.0f} tokens"

    def _share(self, max_tokens: int) -> str:
        return _percent(self.lengths.share_read(max_tokens))


def check_readable(settings: SiteSettings) -> None:
    """Before the model is loaded, which may take minutes, and names other causes. Raises DataError and ModelError."""
    try:
        for path in settings.data.paths:
            path.open("rb").close()
    except OSError as error:
        raise DataError(
            f"{error.filename} cannot be read ({error.strerror})",
            why="these are the records that the site trains on",
            fix="check the path (`data` in site.toml, --data of init), and that the worker's user may read the file",
        ) from error
    try:
        for path in settings.model.iterdir():
            if path.is_file():
                path.open("rb").close()
    except OSError as error:
        raise ModelError(
            f"{error.filename} cannot be read ({error.strerror})",
            why="the study fine-tunes this model, and every site has its files",
            fix="check `model` in site.toml, and that the worker's user may read the folder and all its files",
        ) from error


def _columns(records: list[Record]) -> str:
    return next((_COLUMNS[kind] for record in records if (kind := type(record.content)) in _COLUMNS), "no content")


def _percent(share: float) -> str:
    """A share for people.

    >>> _percent(0.0321), _percent(0.004), _percent(1.0)
    ('3 %', 'less than 1 %', 'all')
    """
    if share > 0.995:
        return "all"
    return f"{100 * share:.0f} %" if share >= 0.01 else "less than 1 %"
