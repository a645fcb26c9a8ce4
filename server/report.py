"""The report of a study: what it claims, from which figures, and how useful its adapter is, as one JSON object."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final, Literal

from ..common.errors import PrivacyError
from ..common.manifest import Manifest
from ..common.messages import EMPTY_LEDGER_HEAD
from ..common.privacy.accountant import Relation, epsilon
from ..common.privacy.events import Schedule
from . import claim
from .training import RoundClosed

FORMAT: Final = "grandrounds/report/v1"
Report = dict[str, Any]

# The large ones are no claim of their own: with them, what an attack can find is bounded nearly as well as it can be.
CURVE_DELTAS: Final = (1e-6, 1e-5, 1e-4, 1e-3, 0.003, 0.01, 0.02, 0.05, 0.1)
FALSE_ALARM_RATES: Final = (0.001, 0.01, 0.05)
_FIGURES_OF_THE_CLAIM: Final = (
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


def build_report(
    *,
    manifest: Manifest,
    rounds: Sequence[RoundClosed],
    attempts: int,
    exhausted: RoundClosed | None,
    perplexity_before: float,
    base_model: str,
    evaluation: str,
    data_sources: Mapping[str, str],
    counted: bool,
    setting: Literal["simulation", "federation"],
) -> Report:
    """The report of a study that committed ``rounds`` within ``attempts``; plain JSON values throughout.

    ``exhausted`` is the round that was not committed because the schedule ended, if there is one: its attempts are
    spent like any other's, so it is in every figure but the number of rounds and the perplexity. ``base_model`` is the
    name or folder that the adapter is loaded onto; ``evaluation`` and ``data_sources`` (by site) say in words where
    the records come from, and ``counted`` that nominal units were counted in them. Every other figure is computed from
    the manifest, from releases, or from public or synthetic data. Without noise there is no claim, and the figures
    that would support one are None; a figure beside the claim is None where no useful bound exists.
    """
    study = manifest.study
    training = study.training
    ended = [*rounds, exhausted] if exhausted else rounds
    return {
        "format": FORMAT,
        "study_id": manifest.study_id,
        "manifest_sha256": manifest.sha256,
        "package_version": manifest.package_version,
        "setting": setting,
        "base_model": base_model,
        **_claim(manifest),
        "privacy_unit": study.privacy.unit,
        "neighboring_relation": "add_or_remove_one",
        "trust": study.privacy.trust,
        "rounds": len(rounds),
        "planned_rounds": training.rounds,
        "attempts": attempts,
        "max_attempts": manifest.max_attempts,
        "exhausted": exhausted is not None,
        "local_steps": training.local_steps,
        "sites": len(study.sites),
        "sites_per_patient": study.privacy.sites_per_patient,
        "perplexity_before": _finite(perplexity_before),
        "perplexity_after": _finite(rounds[-1].perplexity if rounds else perplexity_before),
        "dropouts": _dropouts(ended),
        "released": list(claim.released(manifest)),
        "mechanism": _mechanism(manifest),
        "secure_aggregation": {
            "threshold": manifest.threshold,
            "corrupt_sites": study.privacy.corrupt_sites,
            "modulus_bits": study.secagg.modulus_bits,
        },
        "sampler": {
            "name": "Poisson" if study.privacy.sampling_probability < 1 else "none: everyone takes part in every step",
            "max_records_per_unit": study.data.records_per_unit,
            "max_tokens": study.data.max_tokens,
        },
        "training": {
            "model": study.model.model_dump(mode="json"),
            "model_sha256": manifest.model_sha256,
            "frozen_adapter_sha256": manifest.frozen_adapter_sha256,
            "optimizer": training.optimizer,
            "learning_rate": training.learning_rate,
        },
        "data": [{"site": site.name, "source": data_sources.get(site.name, "not stated")} for site in study.sites],
        "data_touches": list(claim.data_touches(manifest, counted=counted)),
        "randomness": "Sampling, noise and masks come from AES-256-CTR under keys drawn anew from the operating "
        "system; no setting can seed them. What rests on them is therefore computational. The frozen part of the "
        "adapter is public.",
        "number_representation": "Gradients are floating point until they are clipped. Each unit’s clipped gradient is "
        "rounded to integers and its norm checked exactly; sums, noise and secure aggregation are exact on integers.",
        "utility": {"evaluation": evaluation, "evaluation_kind": study.data.evaluation, "rounds": _rounds(ended)},
        "audit": "not performed in this version",
        "verification": "not independently verifiable",
        "ledger": {"length": 0, "head": EMPTY_LEDGER_HEAD},
        "not_claimed": [asdict(limit) for limit in claim.not_claimed(manifest, counted=counted)],
    }


def render_json(report: Report) -> bytes:
    """The report as report.json: UTF-8, indented, in the order in which ``build_report`` states it."""
    return json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _claim(manifest: Manifest) -> Report:
    """The claim and every figure of privacy; all None without noise."""
    schedule, delta = manifest.schedule, manifest.delta
    if schedule is None:
        return dict.fromkeys(_FIGURES_OF_THE_CLAIM)
    spent = epsilon(schedule, delta=delta)
    curve = [(at, value) for at in CURVE_DELTAS if (value := _bound(schedule, at)) is not None]
    return {
        "claim": claim.claim(manifest, spent.epsilon),
        "protected": claim.protected(manifest),
        "adversary": claim.adversary(manifest),
        "adversary_sees": claim.seen(manifest),
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
        "overlap": _overlap(schedule, delta, sites=len(manifest.study.sites)),
    }


def _attack(curve: Sequence[tuple[float, float]]) -> list[Report]:
    """The largest share of patients that any attack finds, by the share of false alarms it accepts.

    An (epsilon, delta) allows at most min(e^epsilon a + delta, 1 - e^-epsilon (1 - delta - a)) at false alarm rate a
    (Kairouz, Oh and Viswanath 2015, theorem 2.1). Every pair of the curve holds, so the least of these bounds does.
    """
    return [
        {"false_alarm_rate": rate, "detection_rate_at_most": min(_detection(rate, *pair) for pair in curve)}
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


def _overlap(schedule: Schedule, delta: float, *, sites: int) -> list[Report]:
    """What the same schedule means for someone whose records are at one site, at the stated number, at all."""
    rows: list[Report] = []
    for overlap in sorted({1, schedule.event.sites_per_patient, sites}):
        try:
            shared = replace(schedule, event=replace(schedule.event, sites_per_patient=overlap))
            spent = epsilon(shared, delta=delta)
        except PrivacyError:
            rows.append({"sites_per_patient": overlap, "epsilon": None, "epsilon_rdp": None})
        else:
            rows.append({"sites_per_patient": overlap, "epsilon": spent.epsilon, "epsilon_rdp": spent.epsilon_rdp})
    return rows


def _mechanism(manifest: Manifest) -> Report:
    lattice, stddev, shares = manifest.lattice, manifest.noise_stddev, manifest.honest_shares
    every_share = len(manifest.study.sites) if manifest.study.privacy.trust == "distributed" else 1
    return {
        "name": "rounded Gaussian on integers" if stddev else "none",
        "dimension": lattice.dimension,
        "clipping_norm": lattice.clipping_norm,
        "lattice_scale": lattice.scale,
        "integer_sensitivity": lattice.sensitivity,
        "noise_stddev_per_site": stddev,
        "honest_shares": shares,
        "noise_multiplier_credited": math.sqrt(shares) * stddev / lattice.sensitivity,
        "noise_multiplier_with_all_sites": math.sqrt(every_share) * stddev / lattice.sensitivity,
    }


def _dropouts(rounds: Sequence[RoundClosed]) -> list[Report]:
    return [
        {
            "round": closed.round,
            "attempt": outcome.attempt,
            "site": site,
            "exchange": exchange,
            "in_sum": site in outcome.survivors,
        }
        for closed in rounds
        for outcome in closed.outcomes
        for site, exchange in outcome.dropouts.items()
    ]


def _rounds(rounds: Sequence[RoundClosed]) -> list[Report]:
    return [
        {
            "round": closed.round,
            "attempts": [outcome.attempt for outcome in closed.outcomes],
            "survivors": list(closed.survivors),
            "epsilon_spent": closed.epsilon_spent,
            "perplexity": _finite(closed.perplexity),
        }
        for closed in rounds
    ]


def _finite(value: float) -> float | None:
    """JSON knows no infinity."""
    return value if math.isfinite(value) else None
