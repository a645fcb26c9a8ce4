"""The figures of a study's privacy: its claim, what an attack can find, and what the same schedule means otherwise."""

import math
from collections.abc import Sequence
from typing import Any, Final

from ...common.errors import PrivacyError
from ...common.privacy.accountant import Relation, epsilon
from ...common.privacy.events import Schedule
from ...common.study.manifest import Manifest
from ..rounds.accountant import CentralAccountant
from . import claim

# The large ones are no claim of their own: with them, what an attack can find is bounded nearly as well as it can be.
CURVE_DELTAS: Final = (1e-6, 1e-5, 1e-4, 1e-3, 0.003, 0.01, 0.02, 0.05, 0.1)
FALSE_ALARM_RATES: Final = (0.001, 0.01, 0.05)
_NAMES: Final = (
    "claim",
    "protected",
    "adversary",
    "adversary_sees",
    "epsilon",
    "epsilon_rdp",
    "delta",
    "noise_multiplier",
    "sampling_probability",
    "accountant",
    "epsilon_curve",
    "attack",
    "epsilon_replace_one",
    "epsilon_without_amplification",
    "overlap",
)


def privacy_figures(manifests: Sequence[Manifest]) -> dict[str, Any]:
    """The claim and every figure of privacy, of a study under a manifest and its successors; all None without noise.

    A figure beside the claim is None where no useful bound exists. Raises PrivacyError where the claim has none.
    """
    manifest = manifests[-1]
    schedule, delta = manifest.schedule, manifest.delta
    if schedule is None:
        return dict.fromkeys(_NAMES)
    spent = epsilon(schedule, delta=delta)
    curve = epsilon_curve(schedule)
    return {
        "claim": claim.claim(manifest, spent.epsilon),
        "protected": claim.protected(manifest),
        "adversary": claim.adversary(manifest),
        "adversary_sees": claim.seen(manifests),
        "epsilon": spent.epsilon,
        "epsilon_rdp": spent.epsilon_rdp,
        "delta": delta,
        "noise_multiplier": schedule.event.noise_multiplier,
        "sampling_probability": schedule.event.sampling_probability,
        "accountant": spent.accountant,
        "epsilon_curve": [{"delta": at, "epsilon": value} for at, value in curve],
        "attack": _attack([*curve, (delta, spent.epsilon)]),
        "epsilon_replace_one": _epsilon_replace_one(schedule, delta),
        "epsilon_without_amplification": _bound(schedule.without_amplification(), delta),
        "overlap": _overlap(manifest, sites=max(len(each.study.sites) for each in manifests)),
    }


def epsilon_curve(schedule: Schedule) -> list[tuple[float, float]]:
    """Pairs of δ and ε, all of which a schedule has: together they bound what an attack finds."""
    return [(at, value) for at in CURVE_DELTAS if (value := _bound(schedule, at)) is not None]


def detection_at_most(false_alarm_rate: float, curve: Sequence[tuple[float, float]]) -> float:
    """The largest share of patients that any attack finds, by the share of false alarms it accepts.

    An (epsilon, delta) allows at most min(e^epsilon a + delta, 1 - e^-epsilon (1 - delta - a)) at false alarm rate a
    (Kairouz, Oh and Viswanath 2015, theorem 2.1). Every pair of the curve holds, so the least of these bounds does.
    """
    return min(_detection(false_alarm_rate, *pair) for pair in curve)


def _attack(curve: Sequence[tuple[float, float]]) -> list[dict[str, Any]]:
    return [
        {"false_alarm_rate": rate, "detection_rate_at_most": detection_at_most(rate, curve)}
        for rate in FALSE_ALARM_RATES
    ]


def _detection(false_alarm_rate: float, delta: float, epsilon: float) -> float:
    without_overflow = min(epsilon, 700.0)
    by_removal = math.exp(without_overflow) * false_alarm_rate + delta
    by_addition = 1 - math.exp(-without_overflow) * (1 - delta - false_alarm_rate)
    return min(by_removal, by_addition, 1.0)


def _epsilon_replace_one(schedule: Schedule, delta: float) -> float | None:
    """None where no analysis exists: a patient at several sites under distributed trust."""
    event = schedule.event
    if event.trust == "distributed" and event.sites_per_patient > 1:
        return None
    return _bound(schedule, delta, relation="replace_one")


def _bound(schedule: Schedule, delta: float, *, relation: Relation = "add_or_remove_one") -> float | None:
    """A figure beside the claim; None where no useful bound exists, which must not cost a finished study its report."""
    try:
        return epsilon(schedule, delta=delta, relation=relation).epsilon
    except PrivacyError:
        return None


def _overlap(manifest: Manifest, *, sites: int) -> list[dict[str, Any]]:
    """What the same schedule means for someone with records at one site, at the stated number, at all ``sites``."""
    accountant = CentralAccountant(schedule=manifest.schedule, max_attempts=manifest.max_attempts, delta=manifest.delta)
    return [
        {
            "sites_per_patient": overlap,
            "epsilon": None if spent is None else spent.epsilon,
            "epsilon_rdp": None if spent is None else spent.epsilon_rdp,
        }
        for overlap, spent in accountant.claims(sites).items()
    ]
