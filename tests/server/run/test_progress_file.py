"""What a run tells reaches who follows it as it was told."""

import json
import math
from datetime import UTC, datetime

import pytest
from support.study.federation import small_manifest, small_study

from grandrounds.common.crypto.identity import Identity
from grandrounds.common.errors import ProtocolError
from grandrounds.server.rounds.round import AttemptOutcome
from grandrounds.server.rounds.training import ExchangeClosed, RoundOutcome
from grandrounds.server.run.progress import PhaseEnded, PhaseProgress, PhaseStarted, StudyReady
from grandrounds.server.run.progress_file import Finished, ProgressFile, RunBegan, Stopped, Waiting, event_of, line_of

EVENTS = (
    PhaseStarted(name="model", detail="“tiny”"),
    PhaseProgress(name="data", done=1, total=2),
    PhaseEnded(name="model", seconds=1.5),
    ExchangeClosed(
        round=1,
        attempt=2,
        exchange="advert",
        answered=frozenset({"north", "west"}),
        lost={"south": "it refused: paused"},
    ),
    RoundOutcome(
        round=1,
        outcomes=(AttemptOutcome(attempt=1, survivors=(), dropouts={"north": "shares"}, ended=False),),
        survivors=("south",),
        epsilon_spent=None,
        perplexity=math.inf,
    ),
    RunBegan(process=7),
    Waiting(sites=("north",)),
    Finished(),
    Stopped(what="a", why="b", fix="c"),
)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_is_read_as_it_was_told(event):
    assert event_of(line_of(event)) == event


def test_so_is_the_study_that_is_ready():
    study = small_study()
    keys = {site.name: Identity.generate() for site in study.sites}
    manifest = small_manifest(study, keys, Identity.generate(), dimension=8)
    event = StudyReady(manifest=manifest, epsilon=4.0, perplexity_before=9.5)
    assert event_of(line_of(event)) == event


def test_who_follows_gets_whole_events_and_each_once(tmp_path):
    file = ProgressFile(tmp_path / "progress.jsonl")
    assert file.read() == ([], 0)
    file.tell(RunBegan(process=1))
    with file.path.open("a") as raw:
        raw.write(line_of(Waiting(sites=("north",)))[:10])
    first, start = file.read()
    assert first == [RunBegan(process=1)]
    with file.path.open("a") as raw:
        raw.write(line_of(Waiting(sites=("north",)))[10:] + "\n")
    assert file.read(start) == ([Waiting(sites=("north",))], file.size_bytes)


def test_the_last_run_is_found_among_several(tmp_path):
    file = ProgressFile(tmp_path / "progress.jsonl")
    for event in (RunBegan(process=1), Finished(), RunBegan(process=2), Waiting(sites=())):
        file.tell(event)
    assert file.read(file.last_run())[0] == [RunBegan(process=2), Waiting(sites=())]


@pytest.mark.parametrize("line", ["", "{", "[]", '{"event": "other"}', '{"event": "waiting"}', '{"event": []}'])
def test_a_line_of_another_version_is_passed_over(tmp_path, line):
    file = ProgressFile(tmp_path / "progress.jsonl")
    file.path.write_text(f"{line}\n{line_of(Finished())}\n")
    assert file.read()[0] == [Finished()]


def test_an_error_that_was_written_to_be_read_is_told_in_full_and_another_by_its_type_alone():
    assert Stopped.by(ProtocolError("a", why="b", fix="c")) == Stopped(what="a", why="b", fix="c")
    told = line_of(Stopped.by(ValueError("Mrs Abernathy")))
    assert "ValueError" in told and "Abernathy" not in told


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt()])
def test_a_run_that_somebody_stopped_is_told_in_plain_words(error):
    assert Stopped.by(error).what == "the run was stopped"


def test_what_is_told_has_its_second_and_a_line_without_one_is_read_too(tmp_path):
    moments = [datetime(2026, 2, 1, 9, 30, 0, 250_000, UTC), datetime(2026, 2, 1, 9, 31, tzinfo=UTC)]
    file = ProgressFile(tmp_path / "progress.jsonl", iter(moments).__next__)
    file.tell(RunBegan(process=1))
    with file.path.open("a") as raw:
        raw.write(line_of(Waiting(sites=())) + "\n")
    file.tell(Finished())
    times = [json.loads(line).get("at") for line in file.path.read_text().splitlines()]
    assert times == ["2026-02-01T09:30:00+00:00", None, "2026-02-01T09:31:00+00:00"]
    assert file.read()[0] == [RunBegan(process=1), Waiting(sites=()), Finished()]
