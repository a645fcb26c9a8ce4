"""What a simulated site decides for itself: its policy, and that it follows no older ledger than its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ...client.budget.policy import AllowedModel, DataPolicy, Policy, StudyPolicy
from ...client.state.site_state import SiteState
from ...common.errors import StudyError
from ...common.schema import Section, Words, validated
from ...common.study.manifest import Manifest
from ...common.study.study import Site, Study
from ...server.rounds.ledger_writer import LedgerWriter
from ...server.run.study_run import check_ledger_of, put_back
from .outages import Dropout


def check_newest(ledger: LedgerWriter, manifest: Manifest, states: Mapping[str, SiteState]) -> None:
    """Raises StorageError unless the ledger is the manifest's, and has whatever its sites have of it.

    They would refuse any other, and each attempt that they refuse is spent.
    """
    lines = ledger.lines()
    check_ledger_of(manifest, ledger.verified)
    for site, state in states.items():
        held = state.ledger(manifest.study_id)
        if lines[: len(held)] != held:
            raise put_back(f"the ledger lacks what {site} has of it")


class _Said(Section):
    evaluation_source: Words


def check_records_said(study: Study, source: str) -> None:
    """Raises StudyError where the study says of its records what is not so in a simulation, or leaves open what is.

    The evaluation's come from ``source``, which has to be a line.
    """
    validated(_Said, {"evaluation_source": source})
    if stated := [site.name for site in study.sites if site.minimised]:
        raise StudyError(
            f"the study says of {', '.join(stated)} what is taken out of the records (minimised)",
            why="a simulation applies no site's rules, and its report would say that they were",
            fix="leave minimised out of the sites' tables for a simulation",
        )
    if study.data.evaluation is None:
        raise StudyError(
            "evaluation records are given, but not whether they are public or synthetic",
            why="their figures are released without noise, so records of patients must not be among them",
            fix="say --evaluation-kind public or synthetic, or set data.evaluation",
        )


def simulated_policy(manifest: Manifest, site: Site, *, opted_out: Path | None) -> Policy:
    """A simulated site's policy: this one study, on records that this one study may use up.

    What the study says of the site's own limits is so. All keys count as compared, because one process made them.
    """
    privacy, delta = manifest.study.privacy, manifest.delta
    # Without noise there is no target, and nothing that these would limit.
    epsilon = privacy.target_epsilon or 1.0
    return Policy(
        study=StudyPolicy(
            largest_epsilon=site.largest_epsilon or epsilon,
            largest_delta=delta,
            trust=(privacy.trust,),
            smallest_honest_shares=2,
            models=(AllowedModel(name=manifest.study.model.name, sha256=manifest.model_sha256),),
            verified_peers=(manifest.server_key, *manifest.site_keys.values()),
        ),
        data=DataPolicy(
            unit=privacy.unit,
            epsilon=site.budget_epsilon or epsilon,
            delta=delta,
            synthetic_data_only=not privacy.noise or site.sensitivity == "synthetic",
            opted_out=opted_out,
        ),
    )


def check_dropouts(study: Study, dropouts: Sequence[Dropout]) -> None:
    """Raises StudyError where a site or a round is none of the study's."""
    names = {site.name for site in study.sites}
    for dropout in dropouts:
        if dropout.site not in names or not 1 <= dropout.round <= study.training.rounds:
            raise StudyError(
                f"there is no {dropout.site} in round {dropout.round} to drop out",
                why="the simulation would not show what was asked for",
                fix=f"name one of {', '.join(sorted(names))} and a round from 1 to {study.training.rounds}",
            )


def check_cohorts(
    study: Study, cohorts: Mapping[str, object], dropouts: Sequence[Dropout], opted_out: Mapping[str, object]
) -> None:
    """Raises StudyError where data, opt-outs or dropouts are of other sites than the study's."""
    names = {site.name for site in study.sites}
    if set(cohorts) != names:
        raise StudyError(
            f"data for {sorted(cohorts)} but sites {sorted(names)}",
            why="every site trains on its own records and no others exist",
            fix="give one data file for each site of the study",
        )
    if not set(opted_out) <= names:
        raise StudyError(
            f"opt-outs for {sorted(set(opted_out) - names)} but sites {sorted(names)}",
            why="whoever opted out would be read all the same, at the site that was meant",
            fix="name the site as the study does",
        )
    check_dropouts(study, dropouts)
