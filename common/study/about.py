"""What a study is for and who answers for it: what a reader needs who files its report."""

from contextlib import suppress
from datetime import date
from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ..schema import LINE, Help, Section, Spelt, Words


def _spelt(value: object) -> object:
    """TOML has dates of its own, and JSON does not."""
    return value.isoformat() if isinstance(value, date) else value


def _day(value: str) -> str:
    with suppress(ValueError):
        if date.fromisoformat(value).isoformat() == value:
            return value
    raise ValueError("this is no day; write it as 2026-11-30")


Day = Annotated[str, BeforeValidator(_spelt), AfterValidator(_day)]
AuditFile = Annotated[str, Spelt(LINE, "needs the file of an audit (audit.json), in one line", 512)]


class AboutSection(Section):
    """The study in the words of those who run it: declared, signed by every site, and checked by nobody.

    ``audit`` alone is checked: a study that is fixed names the file by its hash.
    """

    title: Annotated[Words | None, Help("What people call the study", example='"Shorter letters, 2026"')] = None
    purpose: Annotated[Words | None, Help("What it is for, in one sentence", example='"letters that write …"')] = None
    institutions: Annotated[
        tuple[Words, ...], Help("Who takes part and who coordinates it"), Field(max_length=1000, strict=False)
    ] = ()
    contact: Annotated[
        Words | None, Help("Who answers questions about it", example='"data protection, dpo@example.org"')
    ] = None
    dated: Annotated[Day | None, Help("The day on which this was written", example='"2026-11-30"')] = None
    begins: Annotated[Day | None, Help("The day from which it may run", example='"2026-12-01"')] = None
    ends: Annotated[Day | None, Help("The last day on which it may run", example='"2027-03-31"')] = None
    audit: Annotated[
        AuditFile | None,
        Help("What `grandrounds audit` found of it, which comes to the sites before they sign", example='"audit.json"'),
    ] = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.begins is not None and self.ends is not None and self.ends < self.begins:
            raise ValueError(f"ends: {self.ends} is before it begins, {self.begins}")
        return self
