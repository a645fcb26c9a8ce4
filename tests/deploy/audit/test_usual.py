"""The audit that a simulation makes of itself, or why it makes none."""

import pytest
from support.study.audited_study import audited_manifest

from grandrounds.common.audit.evidence import AuditEvidence
from grandrounds.deploy.audit import usual
from grandrounds.deploy.audit.usual import usual_audit
from grandrounds.server.run.progress import PhaseProgress, Told


def test_it_has_as_many_canaries_as_there_is_room_for_and_its_progress_comes_to_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(usual, "CANARIES", 30)
    events: list[object] = []
    found = usual_audit(audited_manifest(attempts=2), events.append)
    assert found is not None
    assert {len(run.scores) for run in AuditEvidence.parse(found).canaries} == {30}
    done = [(event.done, event.total) for event in events if isinstance(event, PhaseProgress)]
    assert done == [(number, 13) for number in range(13)]


@pytest.mark.parametrize(
    "manifest, why",
    [
        (audited_manifest(noise_multiplier=None), "adds no noise"),
        (audited_manifest().model_copy(update={"dimension": 40}), "has no room for 20 planted canaries"),
        (audited_manifest().model_copy(update={"dimension": 1 << 26}), "it takes minutes; `grandrounds audit DIR"),
    ],
)
def test_a_study_that_none_is_made_of_is_told_why(manifest, why) -> None:
    events: list[object] = []
    assert usual_audit(manifest, events.append) is None
    (told,) = events
    assert isinstance(told, Told) and why in told.text
