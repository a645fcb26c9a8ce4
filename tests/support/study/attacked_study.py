"""A small simulation of nobody's patients that ran, and what attacks on its adapter leave."""

from typing import Any

import numpy as np

from grandrounds.common.audit.attack_scores import AttackEvidence, PatientScores
from grandrounds.common.audit.membership import Seen
from support.study.federation import small_study
from support.study.verified_study import SmallStudy

PATIENTS = 40


def simulated(*, sensitivity: str = "synthetic", **manifest_fields: Any) -> SmallStudy:
    """A study of one round, of patients of this ``sensitivity``, by default in one process."""
    study = small_study(noise_multiplier=1.5, privacy={"sampling_probability": 0.25})
    sites = tuple(site.model_copy(update={"sensitivity": sensitivity}) for site in study.sites)
    fields = {"app_sha256": None, "connection_sha256": None, **manifest_fields}
    made = SmallStudy(study=study.model_copy(update={"sites": sites}), manifest_fields=fields)
    made.run(lambda site, envelope: False)
    return made


def seen(rng: np.random.Generator, *, lower: float = 0.0, easier: float = 0.0, slope: float = 1.0) -> Seen:
    """Patients of whom the adapter lowers the loss by ``lower`` more than by chance, and who are ``easier`` at all.

    ``slope`` is by how much the adapter's loss grows with the base model's.
    """
    base = rng.normal(3 - easier, 0.3, PATIENTS)
    zeros = np.zeros(PATIENTS)
    return Seen(
        tokens=np.full(PATIENTS, 100.0),
        base=base,
        adapter=slope * base + rng.normal(0.5 - lower, 0.1, PATIENTS),
        base_run=zeros,
        adapter_run=zeros,
        moved=np.abs(rng.normal(size=PATIENTS)),
        aligned=rng.normal(size=PATIENTS),
    )


def attacks_of(study: SmallStudy, *, lower: float = 0.0, seed: int = 1) -> bytes:
    """Evidence of attacks on the adapter that the study left."""
    rng = np.random.default_rng(seed)
    return AttackEvidence(
        package_sha256=study.manifest.package_sha256,
        manifest_sha256=study.manifest.sha256,
        adapter_sha256=study.ledger.verified.rounds[-1].left_sha256,
        members=PatientScores.of(seen(rng, lower=lower)),
        others=PatientScores.of(seen(rng)),
    ).to_json()
