"""The report of a study: what it claims, from which figures, and how useful its adapter is, as one JSON object."""

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any, Final, Self

from pydantic import Field, ValidationError

from ...common.audit.attack_scores import require_of_nobody
from ...common.errors import StudyError
from ...common.ledger.chain import EMPTY_LEDGER_HEAD, EntryType, Ledger, UnknownFormError, broken
from ...common.ledger.records import AttemptRecord
from ...common.ledger.replay import VerifiedLedger
from ...common.model.base_folder import published_name
from ...common.privacy.composition import composed_epsilon
from ...common.privacy.events import Schedule
from ...common.schema import Section, Words
from ...common.study.first_adapter import BY_HASH
from ...common.study.manifest import Manifest
from . import attacks, claim, groups, utility
from .attacks import Attacked
from .audit import NONE, Audited
from .figures import privacy_figures
from .findings import promise
from .groups import InGroup
from .utility import AtPosition, Perplexity

FORMAT: Final = "grandrounds/report/v1"
Report = dict[str, Any]


class Declared(Section):
    """What the report says and no ledger can bear out: the word of those who ran the study.

    Attributes:
        perplexity_before: of the base model on the evaluation set; None, as in all perplexities, if it is not finite.
        perplexities: after each round that was evaluated; for one that was begun and not closed, what it left.
        by_position: of the base model and of the adapter, by where in its record a token stands.
        evaluation: what the evaluation set is, in words.
        evaluation_max_tokens: at which its records are cut; else they are whole, however little is trained on.
        evaluation_cut: how many of them were longer.
        groups: how well text about each group of people is predicted, everyone first.
        audit: what was found by an audit that was attached before the study's end.
        attacks: what was found by attacks on the adapter, of a simulation, before its end.
    """

    perplexity_before: Perplexity | None
    perplexities: dict[int, Perplexity | None]
    by_position: tuple[AtPosition, ...]
    evaluation: Words
    evaluation_max_tokens: Annotated[int, Field(ge=1)]
    evaluation_cut: Annotated[int, Field(ge=0)]
    groups: tuple[InGroup, ...] = ()
    audit: Audited | None = None
    attacks: Attacked | None = None

    @classmethod
    def of(cls, report: Any) -> Self:
        """What the JSON of a report declares; raises UnknownFormError where it is none."""
        try:
            utility = report["utility"]
            return cls(
                perplexity_before=report["perplexity_before"],
                perplexities={row["round"]: row["perplexity"] for row in utility["rounds"] if row["evaluated"]},
                by_position=tuple(AtPosition.of(row) for row in utility["by_position"]),
                evaluation=utility["evaluation"],
                evaluation_max_tokens=utility["max_tokens"],
                evaluation_cut=utility["cut"],
                groups=tuple(InGroup.of(row) for row in utility["groups"]),
                audit=None if report["audit"]["found"] is None else Audited(**report["audit"]["found"]),
                attacks=None if report["attacks"]["found"] is None else Attacked(**report["attacks"]["found"]),
            )
        except (KeyError, TypeError, ValidationError) as error:
            raise UnknownFormError.of("the report is not one that this version writes") from error


def build_report(verified: VerifiedLedger, declared: Declared) -> Report:
    """The report of a study that has ended, from its ledger and what is declared; plain JSON values throughout.

    Pure: whoever has the ledger and what was declared gets the same, before the study is closed and after. Every
    figure is computed from the manifest, from releases, or from public or synthetic data. Without noise there is no
    claim, and the figures that would support one are None. Raises LedgerError where the ledger begins with no study,
    and where what is declared cannot be this study's.
    """
    manifest = verified.manifest
    study = manifest.study
    if declared.audit is not None and study.about.audit not in (None, f"{BY_HASH}{declared.audit.sha256}"):
        raise broken("the report states another audit than the one that the manifest names")
    training = study.training
    begun_under = {attempt.manifest for attempt in verified.attempts}
    ran = [each for each in verified.manifests if each.sha256 in begun_under or each == manifest]
    figures = privacy_figures(ran)
    rounds = _rounds(verified, declared, figures["epsilon"])
    closed = len(verified.rounds)
    before = declared.perplexity_before
    after = rounds[closed - 1]["perplexity"] if closed else before
    return {
        "format": FORMAT,
        "study_id": manifest.study_id,
        "manifest_sha256": manifest.sha256,
        "manifest_version": manifest.version,
        "package_version": manifest.package_version,
        "package_sha256": manifest.package_sha256,
        # Only a federation has an archive for Flower to carry.
        "setting": "simulation" if manifest.app_sha256 is None else "federation",
        "about": study.about.model_dump(mode="json"),
        "base_model": published_name(study.model.name),
        **figures,
        "privacy_unit": study.privacy.unit,
        "neighboring_relation": "add_or_remove_one",
        "trust": study.privacy.trust,
        "rounds": closed,
        "planned_rounds": training.rounds,
        "attempts": len(verified.attempts),
        "max_attempts": manifest.max_attempts,
        "exhausted": _is_exhausted(verified),
        "local_steps": training.local_steps,
        "sites": len(study.sites),
        "sites_per_patient": study.privacy.sites_per_patient,
        "perplexity_before": before,
        "perplexity_after": after,
        "dropouts": _dropouts(verified.attempts),
        "never_ended": [{"round": each.round, "attempt": each.attempt} for each in verified.attempts if not each.ended],
        "charges": verified.charges,
        "released": list(claim.released(manifest)),
        "mechanism": _mechanism(manifest),
        "secure_aggregation": {
            "threshold": manifest.threshold,
            "must_answer": claim.must_answer(ran),
            "corrupt_sites": study.privacy.corrupt_sites,
            "modulus_bits": study.secagg.modulus_bits,
        },
        "sampler": _sampler(ran, attempts=len(verified.attempts)),
        "training": {
            "model": study.model.model_dump(mode="json"),
            "model_sha256": manifest.model_sha256,
            "frozen_adapter_sha256": manifest.frozen_adapter_sha256,
            "began_with": claim.began_with(study.model),
            "optimizer": training.optimizer,
            "learning_rate": training.learning_rate,
            "steps": training.steps_in_words,
        },
        "data": [
            {
                "site": site.name,
                "source": site.records,
                "sensitivity": site.sensitivity,
                "nominal_size": site.nominal_units,
                "residency": site.residency,
                "sha256": site.sha256,
                "minimised": None if site.minimised is None else list(site.minimised),
                "largest_epsilon": site.largest_epsilon,
                "budget_epsilon": site.budget_epsilon,
                "has_left": site.name not in manifest.site_keys,
            }
            for site in {site.name: site for each in ran for site in each.study.sites}.values()
        ],
        "data_touches": list(claim.data_touches(manifest)),
        "randomness": "Sampling, noise and masks come from AES-256-CTR under keys drawn anew from the operating "
        "system; no setting can seed them. What rests on them is therefore computational. The frozen part of the "
        "adapter is public.",
        "number_representation": "Gradients are floating point until they are clipped. Each unit’s clipped gradient is "
        "rounded to integers and its norm checked exactly; sums, noise and secure aggregation are exact on integers.",
        "utility": {
            "evaluation": declared.evaluation,
            "evaluation_kind": study.data.evaluation,
            "evaluated": utility.evaluated(max_tokens=declared.evaluation_max_tokens, cut=declared.evaluation_cut),
            "max_tokens": declared.evaluation_max_tokens,
            "cut": declared.evaluation_cut,
            "verdict": utility.verdict(before, after, declared.by_position),
            "by_position": [
                {**band.model_dump(), "tokens": band.name, "worse": band.is_worse} for band in declared.by_position
            ],
            "groups": [group.row for group in declared.groups],
            "groups_verdict": groups.verdict(declared.groups),
            "rounds": rounds,
        },
        "audit": {
            "says": NONE if declared.audit is None else declared.audit.in_words,
            "beforehand": [] if declared.audit is None else declared.audit.beforehand,
            "power": [] if declared.audit is None else declared.audit.power,
            "is_signed": study.about.audit is not None,
            "found": None if declared.audit is None else declared.audit.stated,
        },
        "attacks": _attacks(manifest, declared.attacks),
        "verification": f"grandrounds verify DIR --manifest-hash {manifest.sha256}",
        "signatures": {
            "server": manifest.server_key,
            "sites": {site: manifest.site_keys[site] for site in sorted(verified.countersigned)},
        },
        "ledger": _ledger(verified.ledger),
        "not_claimed": [asdict(limit) for limit in claim.not_claimed(manifest)],
    }


def render_json(report: Report) -> bytes:
    """The report as report.json: UTF-8, indented, in the order in which ``build_report`` states it."""
    return json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _attacks(manifest: Manifest, found: Attacked | None) -> Report:
    """What attacks found, beside what ε allows. Raises LedgerError where patients may be real."""
    if found is None:
        return {"says": attacks.NONE, "allowed": None, "found": None}
    try:
        require_of_nobody(manifest.study, app_sha256=manifest.app_sha256)
    except StudyError as error:
        raise broken(f"the report has figures of attacks: {error.what}") from error
    found = found.under(promise(manifest))
    return {
        "says": found.in_words,
        "allowed": None if found.findings.curve is None else found.findings.allowed,
        "found": found.model_dump(mode="json"),
    }


def _mechanism(manifest: Manifest) -> Report:
    """What sites add; where its noise has stages, figures are those of the first, and the others are listed."""
    lattice, stddev, shares = manifest.lattice, manifest.noise_stddev(1), manifest.honest_shares
    noise = manifest.site_noise(1)
    stays = 0 if noise is None else noise.stddev
    every_share = len(manifest.study.sites) if manifest.study.privacy.trust == "distributed" else 1
    return {
        "name": "rounded Gaussian on integers" if stddev else "none",
        "dimension": lattice.dimension,
        "clipping": lattice.clipping,
        "clipping_norm": lattice.clipping_norm,
        "lattice_scale": lattice.scale,
        "integer_sensitivity": lattice.sensitivity,
        "noise_stddev_per_site": stddev,
        "noise_stddev_that_stays": stays,
        "removable_noise": [] if noise is None else [asdict(layer) for layer in noise.layers],
        "noise_stages": [
            {
                "from_attempt": attempt,
                "factor": factor,
                "noise_multiplier": manifest.noise_multiplier(attempt),
                "noise_stddev_per_site": manifest.noise_stddev(attempt),
            }
            for attempt, factor in manifest.study.privacy.noise_stages
        ],
        "honest_shares": shares,
        "noise_multiplier_credited": math.sqrt(shares) * stddev / lattice.sensitivity,
        "noise_multiplier_with_all_sites": math.sqrt(every_share) * stays / lattice.sensitivity,
    }


def _noise_in_sum(verified: VerifiedLedger, attempt: AttemptRecord) -> Report | None:
    """How much noise is left in the sum of an attempt that was unmasked, as a multiplier, and over what is claimed.

    Where sites added what they must, and the server took off what they showed: the sites that showed it signed it. A
    site that shows nothing by the ledger may have shown it to the server alone; a server may leave in what was shown.
    None under local trust: what becomes of noise in a site's own steps is not known.
    """
    manifest = next(each for each in verified.manifests if each.sha256 == attempt.manifest)
    privacy = manifest.study.privacy
    if not privacy.noise or privacy.trust == "local" or not attempt.unmasked:
        return None
    level = manifest.secagg_parameters.levels_reached(attempt.survivors)[-1]
    variance = manifest.variance_in_sum(attempt.survivors, shown=attempt.shown, attempt=attempt.attempt)
    in_sum = math.sqrt(variance) / manifest.lattice.sensitivity
    return {
        "attempt": attempt.attempt,
        "noise_multiplier": in_sum,
        "over_claimed": in_sum / manifest.noise_multiplier(attempt.attempt),
        "sites_that_kept_theirs": sorted(set(attempt.survivors) - set(attempt.shown))
        if level > manifest.threshold
        else [],
    }


def _sampler(ran: Sequence[Manifest], *, attempts: int) -> Report:
    """How units are drawn, and how often each takes part on average."""
    manifest = ran[-1]
    study = manifest.study
    q, steps = study.privacy.sampling_probability, study.training.local_steps
    return {
        "name": "Poisson" if q < 1 else "none: everyone takes part in every step",
        "epochs": claim.epochs(manifest, attempts=attempts),
        "expected_participations": q * steps * attempts,
        "expected_participations_in_whole_schedule": q * steps * manifest.max_attempts,
        "max_records_per_unit": study.data.records_per_unit,
        "draw_caps": {site.name: each.draw_cap(site.name) for each in ran for site in each.study.sites},
        "delta_of_caps": None if manifest.schedule is None else manifest.schedule.cut_delta,
        "max_tokens": study.data.max_tokens,
    }


def _dropouts(attempts: Sequence[AttemptRecord]) -> list[Report]:
    return [
        {
            "round": attempt.round,
            "attempt": attempt.attempt,
            "site": site,
            "exchange": exchange,
            "in_sum": site in attempt.survivors,
        }
        for attempt in attempts
        for site, exchange in attempt.dropouts.items()
    ]


def _rounds(verified: VerifiedLedger, declared: Declared, claimed: float | None) -> list[Report]:
    """Every round that was begun; the last of them may not have been closed, and then has no survivors."""
    survivors = {closed.round: list(closed.survivors) for closed in verified.rounds}
    attempts: dict[int, list[AttemptRecord]] = {}
    for attempt in verified.attempts:
        attempts.setdefault(attempt.round, []).append(attempt)
    evaluated = set(verified.manifest.study.training.evaluated_rounds)
    if _is_exhausted(verified):  # what is left is evaluated
        evaluated |= {len(verified.rounds), len(verified.rounds) + 1}
    return [
        {
            "round": round_,
            "attempts": [each.attempt for each in begun],
            "survivors": survivors.get(round_, []),
            "noise_in_sums": [said for each in begun if (said := _noise_in_sum(verified, each))],
            "epsilon_spent": _spent(verified.manifest, begun[-1].attempt, claimed),
            "evaluated": round_ in evaluated,
            "perplexity": declared.perplexities.get(round_) if round_ in evaluated else None,
        }
        for round_, begun in attempts.items()
    ]


def _spent(manifest: Manifest, attempts: int, claimed: float | None) -> float | None:
    """What the attempts so far cost: a figure of progress, which the claim bounds as well."""
    if manifest.schedule is None or claimed is None:
        return None
    begun = replace(manifest.schedule, count=attempts * manifest.study.training.local_steps)
    return min(claimed, _epsilon(begun, manifest.delta))


@functools.cache
def _epsilon(schedule: Schedule, delta: float) -> float:
    """In milliseconds, where the claim's accountant takes a third of a second; there may be a thousand rounds."""
    return composed_epsilon([schedule], delta=delta)


def _is_exhausted(verified: VerifiedLedger) -> bool:
    """Whether the schedule has no attempt left for a round that needs one."""
    spent = len(verified.attempts) == verified.manifest.max_attempts
    return (
        spent and len(verified.rounds) < verified.manifest.study.training.rounds and not verified.attempts[-1].unmasked
    )


def _ledger(ledger: Ledger) -> Report:
    """What the report was made from: the ledger without its end, which names the report's own hash."""
    length, head = 0, EMPTY_LEDGER_HEAD
    for entry in ledger:
        if entry.type is EntryType.STUDY_CLOSED:
            break
        length, head = entry.sequence + 1, entry.hash
    return {"length": length, "head": head}
