"""Rules of minimisation, as policy.toml states them, and what a study may say of them: rules in words, no counts."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from ...common.schema import Section, Spelt

_HOOK: Final = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$"
HookName = Annotated[str, Spelt(_HOOK, "needs module:function, as hospital.deid:anonymise", 150)]


class Replacement(Section):
    """What matches ``pattern`` (a regular expression) anywhere in a text becomes ``instead``, as it is written."""

    model_config = ConfigDict(serialize_by_alias=True)

    pattern: str = Field(min_length=1, max_length=2000)
    instead: str = Field(alias="with", max_length=200)

    @model_validator(mode="after")
    def _can_be_found(self) -> Self:
        import regex

        try:
            found = regex.compile(self.pattern)
        except regex.error as error:
            raise ValueError(f"pattern: {self.pattern!r} is no regular expression ({error.msg})") from error
        if found.search(""):
            raise ValueError(f"pattern: {self.pattern!r} matches nothing at all, and so everywhere")
        return self


class RecordsPerPatient(Section):
    """Patients with fewer records than ``least`` are left out; of more than ``most``, a secret chooses so many."""

    least: int = Field(default=1, ge=1, le=10**6)
    most: int | None = Field(default=None, ge=1, le=10**6)

    @model_validator(mode="after")
    def _leaves_somebody(self) -> Self:
        if self.most is not None and self.most < self.least:
            raise ValueError(f"most: {self.most} is below the least, {self.least}")
        return self


# Tuples are not strict: TOML has lists alone. What stands in them is as strict as the rest.
class Minimisation(Section):
    """What is taken out of records, in this order: patterns, names, dates, numbers; a hook sees what is left.

    Where a rule is about texts, all spaces and hyphens in them are plain ones before, and what is not seen is gone.

    Attributes:
        suppress_columns: columns of the source that no text is made of.
        replace: what is replaced by regular expressions.
        names_file: names, one a line, each of which becomes [NAME].
        shift_dates: whether all dates of a patient move by a secret number of days, at most a year.
        day_first: whether 3/7/2024 is in July.
        numbers: whether long numbers become [NUMBER].
        hook: a function of lists of texts, ``module:function``.
        duplicates: whether records of a patient that say the same count "once".
        near_duplicates: how much two records of a patient share, of 1, that count once.
        records_per_patient: how few and how many records a patient may have.
    """

    suppress_columns: tuple[str, ...] = Field(default=(), strict=False)
    replace: tuple[Replacement, ...] = Field(default=(), strict=False)
    names_file: Path | None = Field(default=None, strict=False)
    shift_dates: bool = False
    day_first: bool = False
    numbers: bool = False
    hook: HookName | None = None
    duplicates: Literal["all", "once"] = "all"
    near_duplicates: float | None = Field(default=None, ge=0.5, le=1)
    records_per_patient: RecordsPerPatient = RecordsPerPatient()

    def below(self, folder: Path) -> Self:
        """The rules whose paths start from ``folder``."""
        return self.model_copy(update={"names_file": self.names_file and folder / self.names_file})

    @property
    def in_words(self) -> tuple[str, ...]:
        """The rules as a study may state them of the site (``minimised``): whoever has the policy gets the same."""
        return tuple(self._in_words())

    def _in_words(self) -> Iterator[str]:
        said: Mapping[str, object] = {
            "columns suppressed": self.suppress_columns,
            "patterns replaced": self.replace,
            "names on a list replaced": self.names_file,
            "dates shifted": self.shift_dates,
            "long numbers replaced": self.numbers,
            f"passed through {self.hook}": self.hook,
            "duplicates counted once": self.counts_once,
            f"near-duplicates ({self.near_duplicates}) counted once": self.near_duplicates,
        }
        yield from (words for words, rule in said.items() if rule)
        least, most = self.records_per_patient.least, self.records_per_patient.most
        if least > 1:
            yield f"patients with fewer than {least} records left out"
        if most is not None:
            yield f"at most {most} records of a patient"

    @property
    def told(self) -> list[str]:
        """What the site's operator is told of them, to be passed on or not."""
        if not self.in_words:
            return []
        stated = json.dumps(self.in_words, ensure_ascii=False)
        return [
            f"what policy.toml takes out of the records, as a study may state it of this site: minimised = {stated}"
        ]

    @property
    def counts_once(self) -> bool:
        """Whether records of a patient that say the same count once; they do where those that nearly do."""
        return self.duplicates == "once" or self.near_duplicates is not None

    @property
    def changes_texts(self) -> bool:
        """Whether a rule is about what records say."""
        return bool(self.replace or self.names_file or self.shift_dates or self.numbers or self.hook)

    @property
    def chooses_records(self) -> bool:
        """Whether a rule is about which of a patient's records are kept."""
        return self.counts_once or self.records_per_patient != RecordsPerPatient()
