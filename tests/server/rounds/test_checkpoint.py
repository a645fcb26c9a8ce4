"""Checkpoints: what comes back is what was saved, or nothing does."""

import json
from dataclasses import replace

import numpy as np
import pytest

from grandrounds.common.crypto.identity import sha256
from grandrounds.common.errors import StorageError
from grandrounds.common.model.perplexity import RecordLosses
from grandrounds.common.study.step import LastStep, Trained
from grandrounds.common.system.content import Stored
from grandrounds.server.rounds.checkpoint import KEPT, Checkpoint

STUDY = "ab" * 32
# Before the first round and after three, whole and by position; the second was not evaluated.
PERPLEXITIES = np.array([[54.0, *[50.0] * 4], [9.5, 8.0, 9.0, np.inf, np.nan], [np.nan] * 5, [np.inf, *[1.0] * 4]])


def state(number=3, optimizer=b""):
    adapter = np.array([0.1, -0.0, 3e38, 1e-45, number], dtype=np.float32)
    return Trained(adapter=adapter, optimizer=optimizer)


def checkpoint(number=3, optimizer=b"", *, study=STUDY):
    return Checkpoint(
        study=study,
        round=number,
        attempts=number + 2,
        last_step=LastStep(after=state(number, optimizer), before=state(number - 1), total=bytes(range(20))),
        perplexities=np.resize(PERPLEXITIES, (number + 1, 5)),
        evaluated=np.array([[3.0, 0.0], [7.5, np.inf], [np.nan, 1e-300]]),
        ledger_length=17,
        ledger_head="0f" * 32,
    )


def saved(folder, number=3, **options):
    checkpoint(number, **options).save(folder)
    return folder / f"round-{number:06d}.checkpoint"


def equal(one, other):
    return (
        (one.study, one.round, one.attempts) == (other.study, other.round, other.attempts)
        and (one.ledger_length, one.ledger_head) == (other.ledger_length, other.ledger_head)
        and one.perplexities.tobytes() == other.perplexities.tobytes()
        and one.evaluated.tobytes() == other.evaluated.tobytes()
        and one.last_step.total[:] == other.last_step.total[:]
        and same(one.last_step.after, other.last_step.after)
        and same(one.last_step.before, other.last_step.before)
    )


def same(one, other):
    if one is None or other is None:
        return one is other
    return (one.numbers[:], one.optimizer[:]) == (other.numbers[:], other.optimizer[:])


def test_what_is_saved_comes_back_to_the_last_bit(tmp_path):
    path = saved(tmp_path, optimizer=bytes(range(256)))
    assert equal(Checkpoint.load(path, STUDY), checkpoint(optimizer=bytes(range(256))))


def test_a_checkpoint_before_the_first_round_has_nothing_that_it_came_of(tmp_path):
    losses = RecordLosses(losses=np.ones((2, 4)), tokens=np.array([[1, 2, 3, 4], [5, 6, 7, 8]]))
    first = Checkpoint.initial(study=STUDY, adapter=state().adapter, losses=losses)
    first.save(tmp_path)
    assert equal(Checkpoint.newest(tmp_path, STUDY), first)
    assert first.last_step.before is None


def test_the_newest_and_the_one_before_it_are_kept(tmp_path):
    other = tmp_path / "notes.txt"
    other.write_text("not a checkpoint")
    for number in (1, 2, 3, 10):
        saved(tmp_path, number)
    kept = sorted(path.name for path in tmp_path.glob("round-*"))
    assert kept == ["round-000003.checkpoint", "round-000010.checkpoint"]
    assert len(kept) == KEPT
    assert other.exists()


def test_a_save_that_fails_leaves_the_ones_before_it(tmp_path, monkeypatch):
    for number in (1, 2):
        saved(tmp_path, number)

    def full(path, data):
        raise StorageError("full", why="", fix="")

    monkeypatch.setattr("grandrounds.server.rounds.checkpoint.write_atomically", full)
    with pytest.raises(StorageError):
        saved(tmp_path, 3)
    for number in (1, 2):
        assert equal(Checkpoint.load(tmp_path / f"round-{number:06d}.checkpoint", STUDY), checkpoint(number))


def test_an_older_checkpoint_that_cannot_be_removed_is_told_and_the_newest_is_whole(tmp_path):
    for number in (2, 3):
        saved(tmp_path, number)
    (tmp_path / "round-000001.checkpoint").mkdir()
    with pytest.raises(StorageError, match=r"older checkpoints in .* cannot be removed"):
        saved(tmp_path, 4)
    assert equal(Checkpoint.load(tmp_path / "round-000004.checkpoint", STUDY), checkpoint(4))


def test_the_newest_is_the_one_of_the_last_round(tmp_path):
    assert Checkpoint.newest(tmp_path / "missing", STUDY) is None
    assert Checkpoint.newest(tmp_path, STUDY) is None
    for number in (9, 10):
        saved(tmp_path, number)
    assert equal(Checkpoint.newest(tmp_path, STUDY), checkpoint(10))


def test_a_save_that_was_cut_short_by_a_crash_is_not_the_newest(tmp_path):
    whole = saved(tmp_path, 2).read_bytes()
    (tmp_path / ".round-000003.checkpoint-x1y2").write_bytes(whole[:100])
    assert equal(Checkpoint.newest(tmp_path, STUDY), checkpoint(2))


def test_where_the_newest_is_damaged_no_older_one_takes_its_place(tmp_path):
    """Training would go on from a round that the ledger has closed."""
    for number in (2, 3):
        path = saved(tmp_path, number)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StorageError, match=r"round-000003\.checkpoint is no whole checkpoint"):
        Checkpoint.newest(tmp_path, STUDY)


def test_another_study_s_checkpoint_is_refused(tmp_path):
    path = saved(tmp_path, study="cd" * 32)
    with pytest.raises(StorageError, match="belongs to study cdcdcdcdcdcdcdcd"):
        Checkpoint.load(path, STUDY)


def test_no_byte_of_a_checkpoint_may_be_another(tmp_path):
    path = saved(tmp_path, optimizer=np.array([1.0, 2.0]).tobytes())
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[position] ^= 0x81
        path.write_bytes(damaged)
        with pytest.raises(StorageError, match="no whole checkpoint"):
            Checkpoint.load(path, STUDY)


def test_what_was_saved_is_gone_on_with_where_it_lies_also_when_its_file_has_made_room(tmp_path):
    first = checkpoint(1).save(tmp_path)
    for number in (2, 3):
        saved(tmp_path, number)
    assert not (tmp_path / "round-000001.checkpoint").exists()
    assert isinstance(first.last_step.after.adapter, Stored)
    assert equal(first, checkpoint(1))


def test_no_part_of_a_checkpoint_passes_for_one(tmp_path):
    path = saved(tmp_path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 10):
        path.write_bytes(whole[:size])
        with pytest.raises(StorageError, match="no whole checkpoint"):
            Checkpoint.load(path, STUDY)


def with_header(path, **changes):
    """A checkpoint whose header says something else, under a hash that fits it."""
    line, _, parts = path.read_bytes()[64:].partition(b"\n")
    line = json.dumps(json.loads(line) | changes).encode() + b"\n"
    path.write_bytes(sha256(line).encode() + line + parts)


@pytest.mark.parametrize("changes", [{"parts": {}}, {"round": 2}, {"round": -1}, {"attempts": "1"}, {"more": 1}])
def test_a_header_that_no_save_writes_is_refused(tmp_path, changes):
    path = saved(tmp_path)
    with_header(path, **changes)
    with pytest.raises(StorageError, match="no whole checkpoint"):
        Checkpoint.load(path, STUDY)


@pytest.mark.parametrize("content", [b"", b"\n", bytes(1 << 13), b"x" * 64 + b"{}\n"])
def test_a_file_of_something_else_or_none_is_refused(tmp_path, content):
    path = tmp_path / "round-000001.checkpoint"
    with pytest.raises(StorageError, match="no whole checkpoint"):
        Checkpoint.load(path, STUDY)
    path.write_bytes(content)
    with pytest.raises(StorageError, match="no whole checkpoint"):
        Checkpoint.load(path, STUDY)


def test_a_checkpoint_without_the_perplexities_of_each_round_is_refused(tmp_path):
    for perplexities in (PERPLEXITIES[:3], PERPLEXITIES[:, :4], PERPLEXITIES[:, 0]):
        with pytest.raises(StorageError, match="no whole checkpoint"):
            replace(checkpoint(3), perplexities=perplexities).save(tmp_path)
        with pytest.raises(StorageError, match="no whole checkpoint"):
            Checkpoint.newest(tmp_path, STUDY)


def test_the_last_that_was_evaluated_is_found_where_later_rounds_were_not():
    assert checkpoint(2).last_evaluated.whole == 9.5
    assert checkpoint(3).last_evaluated.whole == np.inf
