"""What synthetic notes were made by, and what of the study's claim goes with them."""

import importlib.metadata
from dataclasses import asdict
from typing import Any, Final

from ...common.version import __version__
from ...server.report.claim import NO_PRIVACY, for_whom
from ...server.report.rounding import probability, up
from ..adapter.finished import UNVOUCHED, FinishedAdapter
from ..verify.case import Case
from .prompts import Prompts
from .sampling import Sampling

FORMAT: Final = "grandrounds/synthetic-notes/v1"
# Differential privacy is closed under post-processing (Dwork and Roth 2014, "The Algorithmic Foundations of
# Differential Privacy", proposition 2.1): whatever is computed from the adapter and from nothing else of the records.
POST_PROCESSING: Final = (
    "These notes are post-processing of a released adapter: nothing of the sites’ records was read to make them. They "
    "add nothing to what the study spent (ε + 0, δ + 0), however many are made, and the study’s claim holds of them as "
    "it holds of the adapter."
)
PROVIDED: Final = (
    "This holds provided that the prompts have nothing of the sites’ records in them, and that no note is kept, left "
    "out or changed by comparing it with such records: whoever does so releases something that no ε covers."
)
NOBODY_S: Final = "Nothing shows whose adapter this is: no claim of privacy goes with the notes."
BASE_ALONE: Final = "No adapter was active: the notes are the base model’s, and have nothing of any study."


def claimed(adapter: FinishedAdapter) -> dict[str, Any] | None:
    """The claim of the adapter's study, which was recomputed; None where there is no study beside the adapter.

    ``epsilon`` is None where the study promised nothing. Raises StudyError where its claim is not established.
    """
    if adapter.case is None:
        return None
    adapter.require_claim()
    return _claim_of(adapter.case)


def _claim_of(case: Case) -> dict[str, Any]:
    manifest, report = case.verified.manifest, case.report
    return {
        "study_id": manifest.study_id,
        "manifest_sha256": manifest.sha256,
        "epsilon": report["epsilon"],
        "delta": report["delta"],
        "privacy_unit": manifest.study.privacy.unit,
        "sites_per_patient": manifest.study.privacy.sites_per_patient,
        "neighboring_relation": report["neighboring_relation"],
        "claim": report["claim"],
        "began_with": report["training"]["began_with"],
        "vouched_for": case.manifest_hash is not None,
    }


def in_short(claim: dict[str, Any] | None) -> str:
    """The claim in a few words, which every note carries."""
    if claim is None:
        return "no claim"
    study = f"study {claim['manifest_sha256'][:12]}"
    if claim["epsilon"] is None:
        return f"NO PRIVACY; {study}"
    before = "" if claim["began_with"] is None else "; it began with another adapter, which this claim is not of"
    whom = for_whom(claim["privacy_unit"], claim["sites_per_patient"])
    unvouched = "" if claim["vouched_for"] else "; nobody vouched for that study"
    return (
        f"({up(claim['epsilon'])}, {probability(claim['delta'])})-DP for {whom}, by {study}; "
        f"post-processing, ε + 0{before}{unvouched}"
    )


def about(
    adapter: FinishedAdapter,
    claim: dict[str, Any] | None,
    prompts: Prompts,
    sampling: Sampling,
    *,
    with_adapter: bool = True,
) -> dict[str, Any]:
    """All that the notes follow from, as JSON has it, and what is claimed of them."""
    if not with_adapter:
        privacy = [BASE_ALONE]
    elif claim is None:
        privacy = [NOBODY_S]
    else:
        privacy = [POST_PROCESSING, PROVIDED] if claim["epsilon"] is not None else [NO_PRIVACY]
        privacy += [] if claim["vouched_for"] else [UNVOUCHED]
    return {
        "format": FORMAT,
        "synthetic": "Every note was written by a language model. None is a record of a person.",
        "privacy": " ".join(privacy),
        "study": claim if with_adapter else None,
        "adapter": adapter.origin if with_adapter else None,
        "adapter_sha256": adapter.weights_sha256 if with_adapter else None,
        "base_model": adapter.published,
        "base_model_sha256": adapter.base_sha256,
        "license": adapter.license,
        "precision": adapter.precision,
        "prompts": {"file": prompts.name, "sha256": prompts.sha256},
        "sampling": asdict(sampling),
        "versions": {
            "grandrounds": __version__,
            **{name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        },
    }
