"""What the attacks found, beside what ε promises: figures, and a verdict in words. No torch."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Final, Self

from pydantic import Field

from ...common.audit.membership import Seen, attacks, loss_gap
from ...common.audit.roc import Detection, Estimate, auc, share
from ...common.schema import Section, Words
from ...common.study.manifest import Manifest
from . import rounding
from .claim import count
from .figures import detection_at_most, epsilon_curve

FALSE_ALARM_RATES: Final = (0.1, 0.01)
VERBATIM: Final = 20  # tokens
# How much better members are predicted than others, in nats a token: below the first little, above the second much.
GAPS: Final = (0.2, 0.5)
_CONFIDENCE: Final = 0.95  # that all attacks' intervals of one column hold at once
_STEPS: Final = 1000
_NAME_WIDTH: Final = 38
_WIDTH: Final = 20

# Pairs of δ and ε that a study has; None where it promises nothing.
Curve = Annotated[tuple[Annotated[tuple[float, float], Field(strict=False)], ...], Field(strict=False)] | None


class Attack(Section):
    """One attack: the area under its ROC curve, and whom it finds at each of ``FALSE_ALARM_RATES``."""

    name: Words
    auc: Estimate
    detections: Annotated[tuple[Detection, ...], Field(min_length=1, max_length=10, strict=False)]

    @property
    def finds(self) -> bool:
        """Whether it tells the two apart, in whichever direction: an attacker may turn it round."""
        return self.auc.low > 0.5 or self.auc.high < 0.5


class Verbatim(Section):
    """Of how many patients ``VERBATIM`` tokens or more are continued verbatim, by the adapter and by the base model."""

    adapter: Estimate
    base: Estimate


class Findings(Section):
    """Of all attacks on ``members`` patients who were trained on and ``others`` who were not.

    Attributes:
        base_alone: the attack by the base model's loss, which knows of no training: how far the two kinds of patients
            differ by themselves.
        base_gap: by how much better the base model predicts members, in nats a token.
        adapter_gap: by how much better the adapter does.
        curve: what ε allows.
    """

    members: int
    others: int
    attacks: Annotated[tuple[Attack, ...], Field(min_length=1, max_length=50, strict=False)]
    base_alone: Estimate
    base_gap: float
    adapter_gap: float
    members_verbatim: Verbatim
    others_verbatim: Verbatim
    curve: Curve

    @classmethod
    def of(cls, members: Seen, others: Seen, *, curve: Curve) -> Self:
        """What comes of the patients' scores."""
        scored = attacks(members, others)
        confidence = 1 - (1 - _CONFIDENCE) / len(scored)  # Bonferroni

        def verbatim(seen: Seen) -> Verbatim:
            adapter, base = (
                share(int((runs >= VERBATIM).sum()), len(seen), confidence=confidence)
                for runs in (seen.adapter_run, seen.base_run)
            )
            return Verbatim(adapter=adapter, base=base)

        base_gap, adapter_gap = loss_gap(members, others)
        return cls(
            members=len(members),
            others=len(others),
            attacks=tuple(
                Attack(
                    name=name,
                    auc=auc(*scores, confidence=confidence),
                    detections=tuple(Detection.at(rate, *scores, confidence=confidence) for rate in FALSE_ALARM_RATES),
                )
                for name, scores in scored.items()
            ),
            base_alone=auc(-members.base, -others.base, confidence=confidence),
            base_gap=base_gap,
            adapter_gap=adapter_gap,
            members_verbatim=verbatim(members),
            others_verbatim=verbatim(others),
            curve=curve,
        )

    @property
    def promised_auc(self) -> float:
        """The largest area under a ROC curve that the study allows any attack; 1 where it promises nothing."""
        if not self.curve:
            return 1.0
        return sum(detection_at_most((step + 1) / _STEPS, self.curve) for step in range(_STEPS)) / _STEPS

    def promised(self, false_alarm_rate: float) -> float:
        """The largest share of members that the study allows any attack to find; 1 where it promises nothing."""
        return detection_at_most(false_alarm_rate, self.curve) if self.curve else 1.0

    @property
    def allowed(self) -> dict[str, float | list[float]]:
        """What ε allows any attack, in the order of ``FALSE_ALARM_RATES``, for machines."""
        return {"auc": self.promised_auc, "found": [self.promised(rate) for rate in FALSE_ALARM_RATES]}

    @property
    def are_alike(self) -> bool:
        """Whether the base model alone, which saw neither, does not tell members from others."""
        return self.base_alone.low <= 0.5 <= self.base_alone.high

    @property
    def broken(self) -> list[Attack]:
        """Attacks that find more than the study allows, by both intervals, or would if they were turned round."""
        return [
            attack
            for attack in self.attacks
            if max(attack.auc.low, 1 - attack.auc.high) > self.promised_auc
            or any(found.members.low > self.promised(found.false_alarms.high) for found in attack.detections)
        ]

    def lines(self) -> Iterator[str]:
        """The figures, and the verdict at their end: of counts and shares alone, and no word of a record."""
        yield (
            f"{self.members} patients who were trained on, and {self.others} who were not; in brackets, 95 % "
            "intervals, which hold for all attacks of a column at once"
        )
        heads = [f"found at {_percent(rate)}" for rate in FALSE_ALARM_RATES]
        yield _row("attack", ["AUC", *heads])
        for attack in self.attacks:
            shares = [rounding.share(found.members.model_dump()) for found in attack.detections]
            yield _row(attack.name, [rounding.area(attack.auc.model_dump()), *shares])
        if self.curve:
            most = [_percent(self.promised(rate)) for rate in FALSE_ALARM_RATES]
            yield _row("what ε allows any attack", [f"{self.promised_auc:.2f}", *most])
        yield _row("base model alone, untrained", [rounding.area(self.base_alone.model_dump())])
        for rate in FALSE_ALARM_RATES:
            if rate * self.others < 1:
                least = share(0, self.others, confidence=_CONFIDENCE).high
                yield (
                    f"{_percent(rate)} of {self.others} others is nobody: that column is at no false alarm, of which "
                    f"there may be up to {_percent(least)}"
                )
        yield (
            f"loss: members are predicted {self.adapter_gap:.2f} nats a token better than the others by the adapter, "
            f"and {self.base_gap:.2f} by the base model: a difference of {self.adapter_gap - self.base_gap:.2f}, which "
            f"is {_judged(self.adapter_gap - self.base_gap)}"
        )
        yield f"{VERBATIM} tokens or more are continued verbatim for " + "; ".join(
            f"{_percent(found.adapter.value)} of the {who} ({_percent(found.base.value)} by the base model)"
            for who, found in (("members", self.members_verbatim), ("others", self.others_verbatim))
        )
        for sentence in self.verdict():
            yield f"VERDICT: {sentence}"

    def verdict(self) -> Iterator[str]:
        """What follows, in sentences without their full stops."""
        found = [attack for attack in self.attacks if attack.finds]
        if self.broken:
            yield (
                f"MORE THAN ε ALLOWS, by {_named(self.broken)}. Either those held out are other patients than "
                "a random part of all, or what ran is not what the study says. Do not release the adapter before it is "
                "known which"
            )
        elif found:
            worst = max(found, key=lambda attack: abs(attack.auc.value - 0.5))
            right = max(worst.auc.value, 1 - worst.auc.value)
            yield (
                f"the adapter tells who was trained on, by {_named(found)}: of a member and another, "
                f"{worst.name} picks the member in {_percent(right)} of all cases, where guessing does in 50 %"
                + (
                    f" and ε allows {_percent(self.promised_auc)}"
                    if self.curve
                    else "; the study promises a patient nothing"
                )
            )
        else:
            missed = max(max(attack.auc.high, 1 - attack.auc.low) for attack in self.attacks)
            yield (
                "none of these attacks tells who was trained on. That is no proof: with so few patients, one "
                f"that is right in {_percent(missed)} of all cases could look like this, and ε alone says what no "
                f"attack exceeds ({_percent(self.promised_auc)})"
                if self.curve
                else "none of these attacks tells who was trained on, and nothing bounds others: the study "
                "promises a patient nothing"
            )
        repeated = self.members_verbatim.adapter.low
        if repeated > max(self.members_verbatim.base.high, self.others_verbatim.adapter.high):
            yield (
                "the adapter says records verbatim that it was trained on, of more patients than of others, "
                "and of more than the base model does"
            )
        if not self.are_alike:
            yield (
                "the base model, which no site's records trained, tells the two kinds of patients apart by itself: "
                "they are not alike, and a part of what was found above is no leak. Hold out patients at random"
            )


def promise(manifest: Manifest) -> Curve:
    """What a study has for a patient at one site; None where nothing is promised to a patient."""
    if manifest.schedule is None or manifest.study.privacy.unit != "patient":
        return None
    return tuple(epsilon_curve(manifest.schedule))


def _named(found: Sequence[Attack]) -> str:
    return f"{count(len(found), 'attack')} ({'; '.join(attack.name for attack in found)})"


def _judged(gap: float) -> str:
    little, much = GAPS
    if gap <= little:
        return f"little (up to {little} nats)"
    return f"{'much' if gap > much else 'noticeable'} (above {much if gap > much else little} nats)"


def _percent(part: float) -> str:
    return f"{100 * part:.0f} %"


def _row(name: str, cells: Sequence[str]) -> str:
    return (name.ljust(_NAME_WIDTH) + "".join(cell.ljust(_WIDTH) for cell in cells)).rstrip()
