from types import SimpleNamespace

import numpy as np
import pytest
from support.study.federation import small_manifest

from grandrounds.common.audit.coins import coins
from grandrounds.common.crypto.identity import Identity
from grandrounds.common.errors import StudyError
from grandrounds.common.study.completion import complete_study
from grandrounds.common.study.study import Study
from grandrounds.deploy.audit import texts
from grandrounds.deploy.audit.audit import audited
from grandrounds.deploy.audit.texts import Patients, text_scores
from grandrounds.deploy.generate.prompts import Prompt
from grandrounds.deploy.generate.sampling import Note

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


def scored(manifest, said, *, count=16, synthetic_notes=0):
    return text_scores(
        manifest, count=count, synthetic_notes=synthetic_notes, patients=PATIENTS, seed=bytes(32), tell=said.append
    )


def test_texts_are_scored_by_the_finished_adapter_and_by_its_synthetic_notes_with_noise_and_without() -> None:
    said: list[str] = []
    text, notes, text_off, notes_off = scored(manifest(), said, synthetic_notes=8)
    assert [(run.kind, run.protection) for run in (text, notes, text_off, notes_off)] == [
        ("text", "as claimed"),
        ("synthetic notes", "as claimed"),
        ("text", "noise off"),
        ("synthetic notes", "noise off"),
    ]
    assert text.bits == notes.bits == text_off.bits == notes_off.bits
    assert 2 < sum(text.bits) < 14
    for run in (text, notes, text_off, notes_off):
        assert np.isfinite(run.scores).all() and len(set(run.scores)) == 16
    scores, bits = np.array(text_off.scores), np.array(text_off.bits)
    assert scores[bits].mean() > scores[~bits].mean()
    assert len({text.scores, notes.scores, text_off.scores, notes_off.scores}) == 4
    wrote, trained = "noise off: writing 8 synthetic notes", "noise off: training an auxiliary adapter on them"
    assert said.index("noise off: round 2 of 2") < said.index(wrote) < said.index(trained)


def test_what_is_scored_by_synthetic_notes_knows_of_the_coins_by_the_twin_s_adapter_alone(monkeypatch) -> None:
    """Under other coins, and the same adapter, every score is the same: nothing else leads from a coin to a score."""
    monkeypatch.setattr(texts, "simulate", lambda *_, **__: SimpleNamespace(adapter=np.full(128, 0.1, np.float32)))
    one = scored(manifest(), [], synthetic_notes=4)
    monkeypatch.setattr(texts, "coins", lambda kind, count, *, seed: coins(kind, count, seed=bytes([1]) * 32))
    other = scored(manifest(), [], synthetic_notes=4)
    assert one[1].kind == "synthetic notes" and one[1].bits != other[1].bits
    assert [run.scores for run in one] == [run.scores for run in other]


def test_the_twin_of_a_study_whose_noise_changes_has_none_where_it_is_off() -> None:
    study = manifest().study
    study = study.model_copy(update={"privacy": study.privacy.model_copy(update={"noise_stages": ((2, 0.5),)})})
    off = texts._twin(study, PATIENTS.cohorts, has_noise=False)
    assert not off.privacy.noise and not off.privacy.noise_stages
    assert texts._twin(study, PATIENTS.cohorts, has_noise=True).privacy.noise_stages == ((2, 0.5),)


def test_a_model_that_ends_its_notes_at_once_makes_up_no_canaries(monkeypatch) -> None:
    ended = Note(prompt=Prompt(text="Plan:", controls={}), written=" none", ended=True)
    monkeypatch.setattr(texts, "batches", lambda *_, **__: iter([[ended] * 80]))
    with pytest.raises(StudyError, match="writes 0 notes of 48 tokens in 64 tries"):
        scored(manifest(), [])


def test_a_study_with_a_first_adapter_is_refused_before_anything_runs() -> None:
    said: list[str] = []
    study = manifest(first_adapter=f"sha256:{'ab' * 32}", first_text="terms")
    with pytest.raises(StudyError, match="first adapter"):
        audited(study, canaries=20, text_canaries=20, tell=said.append)
    assert not said
