"""What a site's data come to, before any study: in aggregate, for the site's own operator and nobody else."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ...common.data.quarantine import Quarantine
from ...common.data.record import Chat, Content, PromptCompletion, SetAsideContent, Text
from ...common.data.records import RecordChecks, parsed
from ...common.data.text_lengths import TextLengths, TextSample, text_of
from ...common.errors import DataError, ModelError
from ...common.sources.identifiers import Similar, canonical
from ...common.sources.source import DataSource, read_rows
from ..budget.policy import Policy
from .folder import SiteSettings
from .opt_outs import OptOuts, told_unmatched
from .reading import Reading, windows_in
from .repetition import Repetition

_COLUMNS: Final[dict[type[Content], str]] = {Text: "text", PromptCompletion: "prompt, completion", Chat: "messages"}
# What studies read of a record at a time, for an operator who does not know yet what one will: tokens.
USUAL: Final = (64, 256, 1024)
# Tags that end or break lines, the beginning of RTF, and what is base64 from end to end.
_MARKED_UP: Final = re.compile(
    r"</(?:p|div|span|td|li|font|body|html)\s*>|<br\s*/?>|\{\\rtf\d|\A[A-Za-z0-9+/]{64}[A-Za-z0-9+/\r\n]*+={0,2}\s*\Z",
    re.IGNORECASE,
)
_BEGINNING: Final = 1000  # characters of a text, in which these show: microseconds, however long it is


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Records, patients and lengths of a site's data, read one after another; nothing of it leaves the site.

    Attributes:
        file: what people call the source.
        kind: of which most records are.
        patients: how many records each has, of those who did not opt out.
        lengths: of some of their records.
        completions: of these, where they are prompts with completions, the completions' alone.
        repeated: how many records say what another of the same patient says.
        shared: how many texts several patients have.
        marked_up: how many records look like HTML, RTF or base64.
        quarantine: what cannot be read.
        opt_out_lines: how many lines of the opt-outs may mean a patient.
        unmatched: the numbers of those that mean none.
    """

    file: str
    kind: type[Content]
    patients: Counter[str]
    lengths: TextLengths
    completions: TextLengths
    repeated: int
    shared: int
    marked_up: int
    quarantine: Quarantine
    opt_out_lines: int
    unmatched: list[int]

    @classmethod
    def of(cls, settings: SiteSettings, policy: Policy) -> "Survey":
        """Read all that site.toml names, holding no record. Raises DataError and ModelError."""
        check_readable(settings)
        opt_outs, quarantine, similar = OptOuts.read(policy.data.opted_out), Quarantine(), settings.similar_identifiers
        checks = RecordChecks(settings.data.name, similar, quarantine)
        left_out, sample, completions, said = opt_outs.patients, TextSample(), TextSample(), Repetition()
        gone = set[str]()  # spellings of who opted out
        kinds = Counter[type[Content]]()
        counts, forms, known, marked_up = Counter[str](), dict[str, str](), set[str](), 0
        for one in parsed(read_rows(settings.data, similar=similar), settings.data.patient):
            record = checks.admit(one)
            if record is None:
                continue
            counts[record.patient_id] += 1
            kinds[type(record.content)] += not isinstance(record.content, SetAsideContent)
            if record.patient_id not in forms:
                forms[record.patient_id] = canonical(record.patient_id)
                ids = {forms[record.patient_id], *map(canonical, record.other_ids)}
                known |= ids
                if not left_out.isdisjoint(ids):
                    gone.add(record.patient_id)
            form = forms[record.patient_id]
            if record.patient_id not in gone and (text := text_of(record.content)):
                sample.add(text)
                if isinstance(record.content, PromptCompletion):
                    completions.add(record.content.completion)
                said.add(form, text.encode())
                marked_up += _is_marked_up(text)
        findings = checks.finish()
        kind = max(kinds, key=kinds.__getitem__, default=SetAsideContent)
        if settings.held_out is not None:
            _check(settings.held_out, similar)
        patients = Counter[str]()
        for spelling, patient in findings.spellings.items():
            if spelling not in gone:
                patients[patient] += counts[spelling]
        if not patients:
            raise DataError(
                f"of {settings.data.name} no record is left: all of its patients are among the opt-outs",
                why="there is nothing to train on",
                fix="check the file that data.opted_out in policy.toml names",
            )
        return cls(
            file=settings.data.name,
            kind=kind,
            patients=patients,
            lengths=sample.lengths(settings.model),
            completions=completions.lengths(settings.model),
            repeated=said.repeated,
            shared=said.shared,
            marked_up=marked_up,
            quarantine=quarantine,
            opt_out_lines=opt_outs.count,
            unmatched=opt_outs.unmatched(known),
        )

    @property
    def lines(self) -> list[str]:
        """All that can be said before there is a study."""
        return [self.counts, self.read_by_studies, *self.told()]

    def told(self) -> Iterator[str]:
        """Lines for the site's operator, who alone gets them."""
        yield from self.quarantine.lines()
        if self.marked_up:
            yield (
                f"{self.marked_up:,} of the records look like HTML, RTF or base64, and would be learnt as they are: "
                "have their text exported, or give them as documents of FHIR"
            )
        yield from told_unmatched(self.opt_out_lines, self.unmatched)

    @property
    def records(self) -> int:
        """How many records there are."""
        return self.patients.total()

    @property
    def counts(self) -> str:
        """What was read, in one line."""
        return (
            f"{self.file}: {self.records:,} records (patient_id, {_COLUMNS.get(self.kind, 'no content')}) of "
            f"{len(self.patients):,} patients, {median(self.patients.values()):g} of a patient in the median"
        )

    @property
    def read_by_studies(self) -> str:
        """How many windows the text makes, by how many tokens a study reads at a time."""
        made = [f"{self.windows(most).sum():,.0f} of {most:,}" for most in USUAL]
        return (
            f"{self._median}; studies read windows of your text, of which it makes about {made[0]} tokens, "
            f"{' or '.join(made[1:])}"
        )

    def read_by(self, reading: Reading) -> str:
        """How much of the text one study reads."""
        windows = self.windows(reading.max_tokens, reading.overlap)
        return f"{self._median}; {reading.told(reading.units(windows, self.records_each))}"

    @property
    def records_each(self) -> NDArray[np.int64]:
        """How many records each patient has: int64 [patients]."""
        return np.fromiter(self.patients.values(), dtype=np.int64)

    @property
    def tokens(self) -> NDArray[np.float64]:
        """How many tokens each record has: [records], those that were counted standing for the others."""
        return np.resize(np.asarray(self.lengths.tokens or [0.0]), self.records)

    @property
    def continued(self) -> NDArray[np.float64]:
        """How many of them go on in further windows: [records]; a prompt loses its beginning instead."""
        prompts = self.kind is PromptCompletion
        return np.resize(np.asarray(self.completions.tokens or [0.0]), self.records) if prompts else self.tokens

    def windows(self, max_tokens: int, overlap: int = 0) -> NDArray[np.int64]:
        """How many windows each record makes: int64 [records], as ``tokens``."""
        return windows_in(self.continued, max_tokens, overlap)

    @property
    def _median(self) -> str:
        return f"your median record has {self.lengths.median:,.0f} tokens"


def _is_marked_up(text: str) -> bool:
    """Whether a text looks like HTML, RTF or base64; words are told from base64 by their spaces.

    >>> [_is_marked_up(text) for text in ("a<br/>b", "{\\\\rtf1 a}", "QUJD" * 20, "BP<120 " * 20, "temperature " * 20)]
    [True, True, True, False, False]
    """
    return _MARKED_UP.search(text, 0, _BEGINNING) is not None


def _check(source: DataSource, similar: Similar | None) -> None:
    """Raises DataError where records cannot be used."""
    checks = RecordChecks(source.name, similar, None)
    for one in parsed(read_rows(source, similar=similar), source.patient):
        checks.admit(one)
    checks.finish()


def check_readable(settings: SiteSettings) -> None:
    """Before the model is loaded, which may take minutes, and names other causes. Raises DataError and ModelError."""
    try:
        for file in settings.data.found():
            file.path.open("rb").close()
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
