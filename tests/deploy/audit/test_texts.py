import numpy as np
import pytest
from support.study.federation import small_manifest

from grandrounds.common.crypto.identity import Identity
from grandrounds.common.errors import StudyError
from grandrounds.common.study.completion import complete_study
from grandrounds.common.study.study import Study
from grandrounds.deploy.audit.texts import Patients, text_scores

NAMES = ("north", "south", "west")
PATIENTS = Patients(
    cohorts={name: [{"patient_id": f"{name}-{n}", "text": "no complaints"} for n in range(4)] for name in NAMES},
    evaluation=[{"patient_id": "nobody", "text": "well rested"}],
)


def manifest(**model):
    study = complete_study(
        Study.model_validate(
            {
                "model": {"name": "tiny", **model},
                "data": {"max_tokens": 64, "evaluation": "synthetic"},
                "privacy": {"sampling_probability": 1.0, "clipping_norm": 0.5},
                "training": {"rounds": 2, "optimizer": "adam", "learning_rate": 0.5},
                "sites": [{"name": name, "nominal_units": 4, "max_units": 5} for name in NAMES],
            }
        )
    )
    keys = {name: Identity.generate() for name in NAMES}
    return small_manifest(study, keys, Identity.generate(), dimension=1024, app_sha256=None, connection_sha256=None)


def scored(manifest, said):
    return text_scores(manifest, count=16, patients=PATIENTS, seed=bytes(32), tell=said.append)


def test_texts_are_scored_by_what_the_finished_adapter_gains_on_them_with_noise_and_without() -> None:
    said: list[str] = []
    claimed, off = scored(manifest(), said)
    assert (claimed.protection, off.protection) == ("as claimed", "noise off")
    assert claimed.bits == off.bits
    assert 2 < sum(claimed.bits) < 14
    scores, bits = np.array(off.scores), np.array(off.bits)
    assert np.isfinite(scores).all()
    assert len(set(off.scores)) == len(off.scores)
    assert scores[bits].mean() > scores[~bits].mean()
    assert "noise off: round 2 of 2" in said


def test_a_study_with_a_first_adapter_is_refused_before_anything_is_trained() -> None:
    said: list[str] = []
    with pytest.raises(StudyError, match="first adapter"):
        scored(manifest(first_adapter=f"sha256:{'ab' * 32}", first_text="terms"), said)
    assert not said
