"""A site's training as its operator sees it: what there is, then what comes, and nothing but what the worker wrote."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from grandrounds.client.site.training_view import NEVER_LEAVES, STEPS, TrainingView
from grandrounds.client.training.step_figures import StepFigures
from grandrounds.common.errors import StorageError, StudyError
from grandrounds.deploy.views import training
from grandrounds.deploy.views.training import follow


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "training"


def write(folder, *norms):
    """A worker that takes a step for each of ``norms``."""
    view = TrainingView(folder, at=iter([(number, number) for number in range(4, 99)]).__next__)
    for norm in norms:
        units = np.array([norm, 3 * norm, np.nan]) if norm else np.zeros(0)
        times = {"seconds": 2.0, "gradients_s": 1.5, "sums_s": 0.25, "noise_s": 0.0}
        view(
            StepFigures(
                norms=units,
                clipping_norm=0.5,
                clipping="norm",
                signal=3.0,
                noise=12.0,
                records=7,
                tokens=4000,
                computed=5000,
                batches={"4 x 16": 2},
                **times,
            )
        )


def watched(folder, *, is_written=True, terminal=False, during=()):
    """What is shown while each of ``during`` is done in turn."""
    doing = iter(during)
    printer = io.StringIO()

    def stopped():
        act = next(doing, None)
        if act is not None:
            act()
        return act is None

    console = Console(file=printer, width=130, force_terminal=terminal, color_system=None)
    follow(console, folder, is_written=is_written, stopped=stopped)
    return printer.getvalue()


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch):
    monkeypatch.setattr(training, "_PAUSE_S", 0.0)


def test_without_a_terminal_each_step_is_a_line_below_the_one_that_says_whom_they_are_for(folder):
    write(folder, 0.25)
    first, *steps = watched(folder, during=[lambda: write(folder, 0.0, 2.0)]).splitlines()
    assert first == NEVER_LEAVES
    assert len(steps) == 3, "those that come meanwhile, too, and none twice"
    assert "round 4, attempt 4, step 1, units 3, median norm 0.5, clipped 50 %, signal/noise 0.25" in steps[0]
    assert "tokens/s 2,000, padding 20 %, seconds 2" in steps[0]
    assert "units 0, median norm –, clipped –" in steps[1]


def test_a_terminal_shows_the_last_step_and_how_its_figures_came_about(folder):
    shown = watched(folder, terminal=True, during=[lambda: write(folder, *[0.25] * 11, 1.0)])
    waiting, _, picture = shown.rpartition(NEVER_LEAVES[:50])
    assert "no step was seen yet" in waiting
    assert "round 15 · attempt 15 · step 1" in picture
    assert "3 drawn, of whom 1 count as zero; 7 windows" in picture
    assert "2 in the median; half 1.5 to 2.5, all 1 to 3" in picture
    assert "▁" * 11 + "█" in picture
    assert "gradients 75 %, clip and sum 12 %, waiting for noise 0 %" in picture
    assert "2 of 4 x 16" in picture
    assert [int(row) for row in re.findall(r"^ +(\d+) +\d+ +1 +3 ", picture, re.MULTILINE)] == list(range(8, 16))


def test_whoever_asks_for_a_view_that_is_not_written_is_told_what_to_set(folder):
    with pytest.raises(StudyError) as refused:
        watched(folder, is_written=False)
    assert "training_view = true" in refused.value.fix
    assert all("no step was seen yet" in watched(folder, terminal=terminal) for terminal in (True, False))
    write(folder, 1.0)
    assert "median norm 2" in watched(folder, is_written=False), "what was written before the setting was taken back"


def test_a_file_that_cannot_be_read_is_told_by_its_name_and_reason(folder):
    (folder / STEPS).mkdir(parents=True)
    with pytest.raises(StorageError, match=r"steps.jsonl cannot be read: Is a directory"):
        watched(folder)
