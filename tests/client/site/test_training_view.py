"""What a site sees of its own training: exact, in files of its own user, and never in the way of a run."""

import json
import logging
import resource
import stat
import struct
import sys
from typing import Any

import numpy as np
import pytest
from tensorboardX import event_file_writer
from tensorboardX.proto.event_pb2 import Event

from grandrounds.client.site.training_view import NEVER_LEAVES, STEPS, TrainingView, read_steps
from grandrounds.client.training.step_figures import StepFigures


def figures(**changed):
    usual: dict[str, Any] = {
        "norms": np.array([0.5, np.nan, 1.0, 3.0, 2.0]),
        "clipping_norm": 1.0,
        "clipping": "norm",
        "signal": 3.0,
        "noise": 12.0,
    }
    usual |= {"records": 7, "tokens": 90, "computed": 100, "batches": {"4 x 16": 2}}
    usual |= {"seconds": 2.0, "gradients_s": 1.5, "sums_s": 0.25, "noise_s": 0.0}
    return StepFigures(**(usual | changed))


EMPTY: dict[str, Any] = {"norms": np.zeros(0), "records": 0, "tokens": 0, "computed": 0, "batches": {}}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "training"


def view(folder, attempts=(1,)):
    return TrainingView(folder, at=iter([(attempt, attempt) for attempt in attempts]).__next__)


def events(folder):
    """All that TensorBoard would read, in order."""
    (file,) = folder.glob("events*")
    held, found = file.read_bytes(), []
    while held:
        (size,) = struct.unpack("<Q", held[:8])
        found.append(Event.FromString(held[12 : 12 + size]))
        held = held[16 + size :]
    return found


def test_lines_and_event_files_have_the_same_figures_and_begin_by_saying_that_they_never_leave(folder):
    write = view(folder, attempts=(1, 2, 2))
    write(figures())
    write(figures(**EMPTY, noise=0.0))
    write(figures())
    assert json.loads((folder / STEPS).read_text().splitlines()[0]) == {"never to leave": NEVER_LEAVES}
    first, empty, last = read_steps(folder / STEPS)[0]
    assert [(seen.round, seen.attempt, seen.step) for seen in (first, empty, last)] == [(1, 1, 1), (2, 2, 1), (2, 2, 2)]
    assert (first.units, first.failed, first.norms) == (5, 1, (0.5, 0.875, 1.5, 2.25, 3.0))
    assert (first.clipped, first.signal_to_noise, round(first.padding or 0, 9)) == (0.5, 0.25, 0.1)
    assert (first.tokens_a_second, first.batches) == (45.0, {"4 x 16": 2})
    assert (empty.norms, empty.clipped, empty.signal_to_noise, empty.padding) == (None,) * 4
    _, warning, *drawn = events(folder)
    assert warning.summary.value[0].tensor.string_val == [NEVER_LEAVES.encode()]
    assert [event.step for event in drawn] == [1, 2, 3]
    for event, seen in zip(drawn, (first, empty, last), strict=True):
        shown = {value.tag: value.simple_value for value in event.summary.value}
        assert shown == pytest.approx(dict(seen.scalars()), rel=1e-6)


def test_no_other_user_can_read_them(folder):
    view(folder)(figures())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert len(list(folder.iterdir())) == 2


def test_a_worker_that_is_started_anew_goes_on_behind_a_line_that_was_cut_short(folder):
    view(folder)(figures())
    with (folder / STEPS).open("a") as file:
        file.write('{"time": "20')
    whole, place = read_steps(folder / STEPS)
    view(folder, attempts=(2,))(figures())
    assert [seen.attempt for seen in whole] == [1]
    assert [seen.attempt for seen in read_steps(folder / STEPS, place)[0]] == [2]


@pytest.fixture
def full_disk():
    """From here on no file of this process grows beyond 4 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_the_view_with_one_line_of_the_log_and_training_goes_on(folder, full_disk, caplog):
    write = view(folder, attempts=range(40))
    for _ in range(40):
        write(figures())
    (line,) = caplog.messages
    assert line == "figures of steps are no longer written (File too large); training goes on without them"
    assert 1 <= len(read_steps(folder / STEPS)[0]) < 40


def a_file_in_its_place(folder):
    folder.touch()


def a_link_in_its_place(folder):
    folder.mkdir()
    (folder / STEPS).symlink_to(folder.parent / "elsewhere")


def a_tensorboard_that_does_not_fit(folder):
    event_file_writer.EventsWriter = None


@pytest.mark.parametrize("spoil", [a_file_in_its_place, a_link_in_its_place, a_tensorboard_that_does_not_fit])
def test_a_view_that_cannot_be_written_is_said_once_and_nothing_is_raised(folder, caplog, monkeypatch, spoil):
    monkeypatch.setattr(event_file_writer, "EventsWriter", event_file_writer.EventsWriter)  # put back afterwards
    spoil(folder)
    write = view(folder)
    write(figures())
    assert len(caplog.messages) == 1 and "training goes on" in caplog.text
    assert not (folder.parent / "elsewhere").exists()


def test_without_tensorboard_s_extra_the_lines_are_written_and_it_is_said_once(folder, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    with caplog.at_level(logging.INFO):
        write = view(folder, attempts=(1, 2))
        write(figures())
        write(figures())
    assert len(read_steps(folder / STEPS)[0]) == 2
    (line,) = caplog.messages
    assert "install grandrounds[tensorboard]" in line
