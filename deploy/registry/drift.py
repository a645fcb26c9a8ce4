"""Whether a release still serves: what it gains on later records, held against what it gained when it was released."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...client.site.folder import SiteFolder
from ...client.site.site_records import read_beside
from ...common.data.groups import held_out
from ...common.data.records import read_records
from ...common.data.tokenisation import Tokenisation
from ...common.errors import DataError, StudyError
from ...common.model.language_model import LanguageModel
from ...common.model.perplexity import Interval, by_patient
from ...common.sources.source import DataSource
from ...server.report.findings import Findings
from .entries import Facts

FEWEST_PATIENTS: Final = 5
# A report's perplexities have three digits: each may be off by half a percent, and two of them by twice that.
_ROUNDED: Final = 0.005


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is lost per token, in nats, by the base model and with the adapter, and what the adapter gains: base − it.

    ``patients`` is None of what a report says.
    """

    base: Interval
    adapter: Interval
    gain: Interval
    patients: int | None

    @classmethod
    def by_report(cls, facts: Facts) -> "Measured":
        """What the report of the release says: of perplexities no interval but their rounding."""
        before, after, gain = facts.perplexity_before, facts.perplexity_after, facts.gain
        if before is None or after is None:
            raise StudyError(
                "the release's report has no finite perplexity",
                why="what is measured now is held against it",
                fix="give the records that were held out when it was released, with --against",
            )
        base, adapter = math.log(before), math.log(after)
        return cls(
            base=_within(base, _ROUNDED),
            adapter=_within(adapter, _ROUNDED),
            gain=_within(base - adapter, 2 * _ROUNDED)
            if gain is None
            else Interval(value=gain.value, low=gain.low, high=gain.high),
            patients=None,
        )


@dataclass(frozen=True, kw_only=True)
class Drift:
    """What was measured ``then`` and ``now``; None of attacks that were not made."""

    then: Measured
    now: Measured
    attacks_then: Findings | None = None
    attacks_now: Findings | None = None

    @property
    def base(self) -> Interval:
        """By how much more the base model loses: how the text changed."""
        return self.now.base.minus(self.then.base)

    @property
    def adapter(self) -> Interval:
        """By how much more is lost with the adapter."""
        return self.now.adapter.minus(self.then.adapter)

    @property
    def gain(self) -> Interval:
        """By how much more the adapter gains."""
        return self.now.gain.minus(self.then.gain)

    @property
    def warnings(self) -> list[str]:
        """What is shown to have become worse, each with its whole interval on one side of zero."""
        said = []
        if self.now.gain.high < 0:
            said.append("on these records the adapter is WORSE than the base model without it")
        if self.gain.high < 0:
            said.append("the adapter gains less than it did when it was released")
        if self.adapter.low > 0:
            harder = "so does the base model: the text has changed" if self.base.low > 0 else "the base model does not"
            said.append(f"with the adapter these records are predicted worse than those at its release; {harder}")
        return said + self._attack_warnings

    @property
    def _attack_warnings(self) -> list[str]:
        now, then = self.attacks_now, self.attacks_then
        if now is None:
            return []
        alike = "" if now.are_alike else "; so does the base model alone: these are other patients by themselves"
        said = []
        if now.broken:
            said.append(f"attacks tell who was trained on from these patients better than ε ALLOWS{alike}")
        before = {} if then is None else {attack.name: attack.auc for attack in then.attacks}
        better = [each.name for each in now.attacks if each.name in before and each.auc.low > before[each.name].high]
        if better:
            said.append(f"who was trained on is told better than at its release, by {', '.join(better)}{alike}")
        return said

    @property
    def verdict(self) -> str:
        """In a sentence."""
        if self.warnings:
            return f"DRIFT: {'; '.join(self.warnings)}."
        return (
            "No drift is shown, which is not to say that there is none: smaller changes than the intervals go unseen."
        )


def measure(
    model: LanguageModel, tokenisation: Tokenisation, source: DataSource, *, site: SiteFolder | None = None
) -> Measured:
    """What base model and adapter lose on a source's records, by patient; the adapter is the one on ``model``.

    Of a ``site``'s records, nobody is read who opted out there, and what is read is minimised as its policy says.
    Nothing is kept. Raises DataError, also where there are fewer than ``FEWEST_PATIENTS``, StudyError and ModelError.
    """
    records = read_records(source) if site is None else read_beside(site, source)
    patients = [record.patient_id for record in records]
    if (found := len(set(patients))) < FEWEST_PATIENTS:
        raise DataError(
            f"{source.name} has {found} patients, and {FEWEST_PATIENTS} are the fewest",
            why="an interval over so few says nothing, and a figure over them may say something of one",
            fix="give records of more patients",
        )
    examples = tokenisation.evaluation_set(records, positions=model.positions).examples
    adapter = model.get_adapter()
    with_adapter = model.record_losses(examples, adapter)
    with model.module.disable_adapter():
        without = model.record_losses(examples, adapter)
    tokens = by_patient(with_adapter.tokens.sum(axis=1), patients)
    base, adapted = (by_patient(losses.losses.sum(axis=1), patients) for losses in (without, with_adapter))
    return Measured(
        base=Interval.per_token(base, tokens),
        adapter=Interval.per_token(adapted, tokens),
        gain=Interval.per_token(base - adapted, tokens),
        patients=found,
    )


def source_of(path: Path, *, patient: str | None, text: str | None) -> DataSource:
    """The records of a file, in whose columns of these names patients and texts stand, where they have other names."""
    return held_out(DataSource(files=(path,), patient=patient, text=text))


def _within(value: float, half: float) -> Interval:
    return Interval(value=value, low=value - half, high=value + half)
