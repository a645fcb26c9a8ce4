"""A simulation that is killed anywhere goes on: no charge is lost or doubled, and what was written stays."""

import itertools
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from soak.killed_simulation import (
    ATTEMPTS,
    COHORTS,
    HELD_OUT,
    ROUNDS,
    SITES,
    Writes,
    begin,
    check,
    go_on,
    in_child,
    killed,
    left_in,
)

from grandrounds.client.state.site_state import SiteState
from grandrounds.common.audit.evidence import AuditEvidence, CanaryScores
from grandrounds.common.errors import GrandRoundsError, LedgerError, StorageError, StudyError
from grandrounds.common.ledger.replay import VerifiedLedger
from grandrounds.common.study.artefacts import AUDIT, LEDGER, REPORT
from grandrounds.common.study.artefacts import MANIFEST as STUDY
from grandrounds.deploy.builtin.models import base_model_folder
from grandrounds.deploy.simulation import site_data
from grandrounds.deploy.simulation.outages import Dropout
from grandrounds.deploy.simulation.simulate import resume
from grandrounds.deploy.verify.claims import verify
from grandrounds.deploy.verify.verdict import Status
from grandrounds.server.report.report import render_json
from grandrounds.server.rounds.closing import Closing
from grandrounds.server.run.study_folder import StudyFolder

KILLS = 8
PRIVATE = "server/private.json"
CLOSING = "Enough sites signed the end of the ledger"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A study that nobody killed, and at how many places it might have been."""
    folder = tmp_path_factory.mktemp("finished") / "study"
    writes = Writes()
    with writes.counted():
        begin(folder)
    return folder, writes.reached


def until(round_: int, exchange: str = "") -> Callable[[object], None]:
    """Stops a study when that exchange of the round is over; without one, when the round is."""

    def observe(event: object) -> None:
        if (getattr(event, "round", None), getattr(event, "exchange", "")) == (round_, exchange):
            raise KeyboardInterrupt

    return observe


def stopped(run: Callable[..., object], folder: Path, observe: Callable[[object], None]) -> Path:
    """The folder of a study that ``run`` began or went on with, and that was stopped."""
    with pytest.raises(KeyboardInterrupt):
        run(folder, observe=observe)
    return folder


@pytest.fixture(scope="module")
def round_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was stopped between its rounds."""
    return stopped(begin, tmp_path_factory.mktemp("round-one") / "study", until(1))


@pytest.fixture(scope="module")
def in_round_two(round_one: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same study, stopped in the middle of an attempt that all sites have paid for."""
    return stopped(go_on, copied(round_one, tmp_path_factory.mktemp("in-round-two")), until(2, "masked-input"))


def copied(study: Path, folder: Path) -> Path:
    """The study in a folder of its own."""
    return Path(shutil.copytree(study, folder / "study"))


def test_a_study_whose_model_is_another_by_now_goes_on_with_none(
    round_one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(base_model_folder("tiny"), tmp_path / "other"))
    (other / "generation_config.json").write_text("{}")
    monkeypatch.setattr(site_data, "base_model_folder", lambda name: other)
    with pytest.raises(StudyError, match=r"another than the study's: its SHA-256 is [0-9a-f]{64}, and not"):
        go_on(copied(round_one, tmp_path))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def statuses(folder: Path) -> dict[str, Status]:
    return {finding.claim: finding.status for finding in verify(folder).findings}


# --- killed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(KILLS))
def test_a_simulation_killed_at_a_write_goes_on_with_no_charge_lost_or_doubled(
    finished: tuple[Path, int], tmp_path: Path, number: int
) -> None:
    """At places that are spread over all writes, the first and the last among them; at every one in ``make soak``."""
    place = 1 + number * (finished[1] - 1) // (KILLS - 1)
    left = killed(tmp_path / "study", place)
    assert len(left) == 1, "it got there"
    check(tmp_path / "study", left)


@pytest.mark.usefixtures("finished")  # which has loaded everything, so that each of these is quick
def test_a_study_is_begun_with_all_that_it_goes_on_with_or_not_at_all(tmp_path: Path) -> None:
    for place in itertools.count(1):
        left = killed(tmp_path / str(place), place)
        check(tmp_path / str(place), left)
        if (tmp_path / str(place) / STUDY).exists():
            return


@pytest.mark.parametrize(("first", "second"), [(0.4, 0.1), (0.6, 0.2), (0.8, 0.15)])
def test_a_simulation_killed_again_while_it_goes_on_goes_on(
    finished: tuple[Path, int], tmp_path: Path, first: float, second: float
) -> None:
    left = killed(tmp_path / "study", *(int(share * finished[1]) for share in (first, second)))
    assert len(left) == 2
    check(tmp_path / "study", left)


def test_a_kill_that_loses_a_charge_would_be_noticed(finished: tuple[Path, int], tmp_path: Path) -> None:
    left = killed(tmp_path / "study", finished[1] * 2 // 3)
    shutil.rmtree(tmp_path / "study" / "sites" / "south")
    with pytest.raises(AssertionError):
        check(tmp_path / "study", left)


def test_a_kill_during_an_attempt_costs_that_attempt_alone(in_round_two: Path, tmp_path: Path) -> None:
    folder = copied(in_round_two, tmp_path)
    result = go_on(folder)
    verified = VerifiedLedger.of(StudyFolder(folder).ledger_lines())
    assert (len(verified.rounds), len(verified.attempts)) == (ROUNDS, ATTEMPTS + 1)
    assert [record.attempt for record in verified.attempts if not record.ended] == [ATTEMPTS]
    assert result.report["attempts"] == ATTEMPTS + 1, "the report counts it"
    for site in SITES:
        assert left_in(folder).attempts[site] == {1: site != "south", 2: True, 3: True, 4: True}


def test_a_dropout_of_a_round_that_was_tried_before_is_over(in_round_two: Path, tmp_path: Path) -> None:
    """Otherwise every resumption would meet the same outage, and the schedule would end in it."""
    folder = copied(in_round_two, tmp_path)
    result = resume(folder, COHORTS, evaluation=HELD_OUT, dropouts=[Dropout(site="west", round=2)])
    assert (result.report["rounds"], result.report["attempts"]) == (ROUNDS, ATTEMPTS + 1)


def test_a_study_that_was_stopped_between_its_results_and_its_end_is_closed_with_all_of_them(
    round_one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(**options: object) -> None:
        raise KeyboardInterrupt

    folder = copied(round_one, tmp_path)
    monkeypatch.setattr("grandrounds.server.run.study_run.Closing", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go_on(folder)
    assert (folder / REPORT).exists()
    monkeypatch.undo()
    check(folder, [left_in(folder)])


# --- finished ---------------------------------------------------------------------------------------------------------


def test_going_on_with_a_finished_study_changes_nothing(finished: tuple[Path, int], tmp_path: Path) -> None:
    folder = copied(finished[0], tmp_path)
    before = contents(folder)
    result = go_on(folder)
    assert contents(folder) == before
    assert before[REPORT] == render_json(result.report)


def test_what_was_lost_of_a_finished_study_s_results_is_written_again(
    finished: tuple[Path, int], tmp_path: Path
) -> None:
    """As the sites signed it: without an audit that came after the end."""
    folder = copied(finished[0], tmp_path)
    canaries = CanaryScores.of("gradient", "as claimed", scores=range(20), bits=[False, True] * 10)
    evidence = AuditEvidence.of(twin=StudyFolder(folder).manifest(), canaries=[canaries], seed="01" * 32)
    (folder / AUDIT).write_bytes(evidence.to_json())
    before = contents(folder)
    (folder / REPORT).unlink()
    shutil.rmtree(folder / "adapter")
    go_on(folder)
    assert contents(folder) == before


def test_sites_that_were_absent_at_the_end_sign_it_when_the_study_is_resumed(
    round_one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(round_one, tmp_path)
    messages = Closing.messages
    monkeypatch.setattr(Closing, "messages", lambda closing: {"south": messages(closing)["south"]})
    go_on(folder)
    assert statuses(folder)[CLOSING] is Status.OPEN
    before = contents(folder)
    monkeypatch.setattr(Closing, "messages", messages)
    go_on(folder)
    assert statuses(folder)[CLOSING] is Status.AGREES
    after = contents(folder)
    assert after[LEDGER].startswith(before[LEDGER])
    assert {path for path in after if after[path] != before[path]} <= {
        LEDGER,
        *(f"sites/{site}/budget.sqlite" for site in SITES),
    }


# --- refused ----------------------------------------------------------------------------------------------------------


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def newest_checkpoint(folder: Path) -> Path:
    return sorted((folder / "checkpoints").iterdir())[-1]


def with_the_end_of_the_ledger_cut(entries: int) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        lines = (folder / LEDGER).read_bytes().splitlines(keepends=True)
        (folder / LEDGER).write_bytes(b"".join(lines[:-entries]))

    return cut


def with_an_older_checkpoint(folder: Path) -> None:
    newest_checkpoint(folder).unlink()


def with_another_study_s(path: str) -> Callable[[Path], None]:
    """The file of a study with the same sites, which they never signed."""

    def replace(folder: Path) -> None:
        stopped(begin, folder.parent / "other", until(1))
        shutil.copyfile(folder.parent / "other" / path, folder / path)

    return replace


def with_other_rounds(folder: Path) -> None:
    manifest = (folder / STUDY).read_bytes()
    assert b'"rounds":2' in manifest
    (folder / STUDY).write_bytes(manifest.replace(b'"rounds":2', b'"rounds":3'))


WRONG: dict[str, tuple[Callable[[Path], object], type[GrandRoundsError], str]] = {
    "no study": (lambda folder: (folder / STUDY).unlink(), StorageError, "holds no study that was begun"),
    "a damaged manifest": (lambda folder: flip(folder / STUDY, 0), StorageError, "study.json is damaged"),
    "a manifest that was changed": (with_other_rounds, StorageError, "the ledger is that of another manifest"),
    "damaged keys": (lambda folder: flip(folder / PRIVATE, 0), StorageError, "private.json is damaged"),
    "no keys": (lambda folder: (folder / PRIVATE).unlink(), StorageError, "private.json is damaged"),
    "a damaged checkpoint": (
        lambda folder: flip(newest_checkpoint(folder), 1000),
        StorageError,
        "no whole checkpoint",
    ),
    "an older checkpoint": (with_an_older_checkpoint, StorageError, "is of round 0, and the ledger has 1"),
    "another study's checkpoint": (
        with_another_study_s("checkpoints/round-000001.checkpoint"),
        StorageError,
        "belongs to study",
    ),
    "a changed byte of the ledger": (lambda folder: flip(folder / LEDGER, 1000), LedgerError, "entry"),
    "no ledger": (lambda folder: (folder / LEDGER).unlink(), StorageError, "the ledger lacks what north has of it"),
    "another study's ledger": (with_another_study_s(LEDGER), StorageError, "the ledger is that of another manifest"),
    "an older ledger than the checkpoint's": (
        with_the_end_of_the_ledger_cut(3),
        StorageError,
        "the ledger lacks what north has of it",
    ),
    "an older ledger than the sites'": (
        with_the_end_of_the_ledger_cut(1),
        StorageError,
        "the ledger lacks what north has of it",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_folder_that_is_not_as_it_was_left_is_refused_and_nothing_is_spent(
    in_round_two: Path, tmp_path: Path, wrong: str
) -> None:
    change, error, complaint = WRONG[wrong]
    folder = copied(in_round_two, tmp_path)
    change(folder)
    before = contents(folder)
    with pytest.raises(error, match=complaint):
        go_on(folder)
    assert contents(folder) == before


def test_a_ledger_older_than_its_checkpoint_is_refused_whatever_the_sites_have(round_one: Path, tmp_path: Path) -> None:
    folder = copied(round_one, tmp_path)
    with_the_end_of_the_ledger_cut(2)(folder)
    with pytest.raises(StorageError, match="was not saved with this ledger"):
        go_on(folder)


def test_an_entry_that_was_cut_short_is_dropped_and_the_study_goes_on(round_one: Path, tmp_path: Path) -> None:
    folder = copied(round_one, tmp_path)
    whole = (folder / LEDGER).read_bytes()
    (folder / LEDGER).write_bytes(whole + whole[:100])
    go_on(folder)
    assert (folder / LEDGER).read_bytes().startswith(whole)
    assert set(statuses(folder).values()) == {Status.AGREES, Status.OPEN, Status.ABSENT}


def test_a_study_that_another_process_runs_is_left_alone(round_one: Path, tmp_path: Path) -> None:
    folder = copied(round_one, tmp_path)
    before = contents(folder)
    other = SiteState.open(folder / "sites" / "north")
    try:
        with pytest.raises(StorageError, match="another worker holds"):
            go_on(folder)
        assert contents(folder) == before
    finally:
        other.close()
    go_on(folder)


def test_a_study_that_is_refused_leaves_its_sites_free_for_the_next(round_one: Path, tmp_path: Path) -> None:
    folder = copied(round_one, tmp_path)
    other = SiteState.open(folder / "sites" / "west")
    with pytest.raises(StorageError, match="another worker holds"):
        go_on(folder)
    other.close()
    go_on(folder)


def test_a_site_whose_older_state_was_put_back_answers_no_more_and_does_not_sign_the_end(tmp_path: Path) -> None:
    """All three sites are needed, so that the schedule runs out; the round that was closed before stands."""
    folder = stopped(begin, tmp_path / "study", until(1, "shares"))
    older = (folder / "sites" / "south" / "budget.sqlite").read_bytes()
    stopped(go_on, folder, until(1))
    (folder / "sites" / "south" / "budget.sqlite").write_bytes(older)
    result = go_on(folder)
    assert (result.report["rounds"], result.report["exhausted"]) == (1, True)
    verified = VerifiedLedger.of(StudyFolder(folder).ledger_lines())
    assert [record.dropouts for record in verified.attempts[2:]] == [{"south": "advert"}] * 3
    assert verified.closing_signatures == {"north", "west"}
    assert statuses(folder)[CLOSING] is Status.OPEN
    assert Status.DISAGREES not in statuses(folder).values()


def test_a_full_disk_in_the_middle_of_an_entry_leaves_the_ledger_as_it_was(round_one: Path, tmp_path: Path) -> None:
    folder = copied(round_one, tmp_path)
    before = left_in(folder)

    def on_a_full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before.ledger) + 100, resource.RLIM_INFINITY))
        with pytest.raises(StorageError, match=r"entries\.jsonl cannot be written"):
            go_on(folder)

    assert in_child(on_a_full_disk) == 0
    assert (folder / LEDGER).read_bytes() == before.ledger
    check(folder, [before])
