import pytest
from support.study.audited_study import audited_manifest, twin_of

from grandrounds.common.audit.evidence import AuditedParameters
from grandrounds.common.errors import StudyError
from grandrounds.common.privacy.accountant import epsilon
from grandrounds.deploy.audit.audit import CONFIDENCE, audited, planted, scores_of
from grandrounds.deploy.audit.faults import AS_CLAIMED
from grandrounds.deploy.audit.twin import Twin


@pytest.mark.parametrize(
    "trust, attempts, missing",
    [
        ("distributed", 2, set()),
        ("local", 2, {"a mask left in"}),  # sums of one site are judged, and no mask is on them
        ("local", 1, {"a mask left in", "a draw reused"}),
    ],
)
def test_each_fault_is_planted_that_a_study_can_have(trust: str, attempts: int, missing: set[str]) -> None:
    every = {fault.name for fault in planted(audited_manifest())}
    assert {fault.name for fault in planted(audited_manifest(trust=trust, attempts=attempts))} == every - missing


def test_scores_are_of_canaries_and_foils_and_a_canary_that_is_in_scores_higher() -> None:
    twin = twin_of(audited_manifest(), canaries=100)
    run = scores_of(twin, AS_CLAIMED)
    assert (len(run.scores), len(run.foils)) == (100, 720)
    inside = sum(score for score, bit in zip(run.scores, run.bits, strict=True) if bit) / sum(run.bits)
    assert inside > sum(run.foils) / 720 + 0.5  # by 3 on average, of scores that deviate by 1.7


def test_text_canaries_of_which_nobody_would_be_guessed_are_refused_before_anything_runs() -> None:
    said: list[str] = []
    with pytest.raises(StudyError, match="5 text canaries"):
        audited(audited_manifest(), canaries=20, text_canaries=5, tell=said.append)
    assert not said


def test_synthetic_notes_without_canaries_to_look_for_are_refused_before_anything_runs() -> None:
    said: list[str] = []
    with pytest.raises(StudyError, match="8 synthetic notes, and no text canaries"):
        audited(audited_manifest(), canaries=20, synthetic_notes=8, tell=said.append)
    assert not said


@pytest.mark.soak
def test_of_two_hundred_audits_no_more_bounds_are_above_epsilon_than_one_in_twenty() -> None:
    """More than 27 of 200 have a chance of less than 1e-6 where each has 0.05."""
    manifest = audited_manifest(sampling_probability=0.5)
    parameters = AuditedParameters.of(manifest.study)
    true = epsilon(parameters.schedule, delta=parameters.delta).epsilon
    above = 0
    for number in range(200):
        twin = Twin.of(manifest, canaries=100, seed=number.to_bytes(32, "little"))
        chosen, *_ = scores_of(twin, AS_CLAIMED).bounds(parameters, confidence=CONFIDENCE)
        above += chosen.epsilon > true
    assert above <= 27
