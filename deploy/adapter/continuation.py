"""What a finished study left, as what another one begins with: a stage, with the claim of the one before it."""

from dataclasses import replace

from ...common.errors import StudyError
from ...common.model.lora import Lora
from ...common.study.first_adapter import FirstAdapter, Made
from ...common.study.manifest import Manifest
from ...common.study.study import Study
from ...server.report.claim import for_whom
from ...server.report.rounding import probability, up
from .finished import FinishedAdapter

_WHY = "patients of both studies are promised the sum of both claims, which has to be shown first"


def continued(study: Study, adapter: FinishedAdapter) -> FirstAdapter:
    """The first adapter of a ``study`` that goes on where a finished one stopped.

    What the later study makes of the adapter is post-processing for the earlier one's patients; for whoever is in both,
    the two compose (Dwork and Roth 2014, proposition 2.1 and theorem 3.16). Raises StudyError where the earlier study's
    claim is not established, or it promised nothing, or where one of the two trains a core.
    """
    if adapter.case is None:
        raise StudyError(
            "there is an adapter alone, and no study beside it",
            why=_WHY,
            fix="name the folder of the finished study, with its ledger and report",
        )
    adapter.require_claim()
    manifest, report = adapter.case.verified.manifest, adapter.case.report
    if report["epsilon"] is None:
        raise StudyError(
            f"study {manifest.study_id[:12]} was trained without privacy",
            why="no noise of a later study protects the patients of this one",
            fix="go on from a study with a claim; what is trained on public text alone: grandrounds adapter prepare",
        )
    before, after = manifest.study.model.lora, study.model.lora
    if "core" in (before.kind, after.kind):
        raise StudyError(
            "a core adapter is not continued",
            why="what is left of it is folded into B, of which no core follows",
            fix='begin with adapter = "ffa" or "lora", in both studies',
        )
    if _scaling(before) != _scaling(after):
        raise StudyError(
            "alpha, rank, rslora or dora are not those of the earlier study",
            why="the same numbers would be another adapter",
            fix=f"take over the [model] of study {manifest.study_id[:12]}",
        )
    claim = f"({up(report['epsilon'])}, {probability(report['delta'])})-DP for {_whose(manifest)}"
    made = Made(
        base_sha256=manifest.model_sha256, text=claim, text_sha256=adapter.weights_sha256, study_sha256=manifest.sha256
    )
    return FirstAdapter.of(adapter.tensors, made)


def _whose(manifest: Manifest) -> str:
    """Whom the claim is for, with what a reader of it alone would take for granted, in one line of few words."""
    privacy, before = manifest.study.privacy, manifest.study.model
    whose = for_whom(privacy.unit, privacy.sites_per_patient, of=f" of study {manifest.study_id[:12]}")
    if before.first_study is not None:
        whose += f", which began with what the study of manifest {before.first_study[:12]} left"
    elif before.first_adapter is not None:
        whose += ", which began with text called public"
    return whose


def _scaling(lora: Lora) -> Lora:
    """What is left when the layers are, which the tensors' names say, and how those are trained."""
    return replace(lora, kind="lora", a_init="uniform", target_modules=(), layers=None)
