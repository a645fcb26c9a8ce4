"""The display: the same facts on a terminal and in lines, and a summary whose commands can be run."""

import json
import re
import shlex
from collections.abc import Collection, Mapping
from copy import copy
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support.study.federation import Federation, small_study
from support.study.verified_study import BETTER, HARMFUL
from typer.testing import CliRunner

from grandrounds.deploy.cli.epsilon import epsilon as epsilon_command
from grandrounds.deploy.views.display import Display, sparkline
from grandrounds.deploy.views.summary import next_commands, print_summary
from grandrounds.server.report.report import Declared, Report, build_report
from grandrounds.server.rounds.training import ExchangeClosed
from grandrounds.server.run.progress import Event, PhaseEnded, PhaseProgress, PhaseStarted, StudyReady, Told

DIMENSION, ROUNDS = 50, 3
SECONDS_PER_EVENT = 5.0


class Study:
    """A study that ran, with the events that a display would have seen.

    ``lost`` says which sites are away in the middle of which attempt: by default site-2 in round 2.
    """

    def __init__(
        self,
        sites: int = 5,
        noise_multiplier: float | None = 1.5,
        lost: Collection[tuple[int, str]] = frozenset({(2, "site-2")}),
        evaluations: int = 100,
        rounds: int = ROUNDS,
    ) -> None:
        study = small_study(
            [4] * sites,
            noise_multiplier=noise_multiplier,
            privacy={"sampling_probability": 0.25},
            training={"rounds": rounds, "max_attempts": 4, "evaluations": evaluations},
            secagg={"threshold": sites - 1},
        )
        federation = Federation(
            study=study,
            dimension=DIMENSION,
            release=lambda m, s: lambda adapter, mechanism: np.zeros(DIMENSION, np.uint32),
        )
        self.events: list[Event] = [
            PhaseStarted(name="data", detail="synthetic patients"),
            PhaseProgress(name="data", done=1, total=2),
            PhaseEnded(name="data", seconds=61.0),
        ]
        seen: list[Any] = []
        federation.run(
            lambda site, envelope: envelope.exchange == "ciphertexts" and (envelope.attempt, site) in lost,
            observe=seen.append,
        )
        accountant = federation.training.accountant.epsilon_of_schedule
        self.epsilon = accountant.epsilon if accountant is not None else None
        self.events += [
            StudyReady(manifest=federation.manifest, epsilon=self.epsilon, perplexity_before=54.2),
            PhaseStarted(name="training", detail="3 rounds"),
            *seen,
            PhaseEnded(name="training", seconds=372.0),
        ]
        self.federation = federation
        self.report = self.report_of()

    def report_of(self, **declared: Any) -> Report:
        training = self.federation.training
        closed = [*training.rounds, *([training.exhausted] if training.exhausted else [])]
        fields: dict[str, Any] = {
            "perplexity_before": 54.2,
            "perplexities": {each.round: each.perplexity for each in closed if each.perplexity is not None},
            "by_position": BETTER,
            "evaluation": "synthetic notes",
            "evaluation_max_tokens": 8192,
            "evaluation_cut": 0,
        }
        return build_report(self.federation.ledger.verified, Declared(**(fields | declared)))


@pytest.fixture(scope="module")
def study() -> Study:
    return Study()


@pytest.fixture(scope="module")
def unfinished() -> Study:
    """Its second round fails until the four attempts are used up."""
    return Study(lost={(attempt, site) for attempt in (2, 3, 4) for site in ("site-1", "site-2")})


@pytest.fixture(scope="module")
def without_noise() -> Study:
    return Study(noise_multiplier=None)


class Clock:
    """Stands still until a test moves it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(display: Display, events: list[Event], clock: Clock) -> str:
    with display:
        for event in events:
            clock.now += SECONDS_PER_EVENT
            display.observe(event)
    file = display.console.file
    assert isinstance(file, StringIO)
    return file.getvalue()


def in_lines(events: list[Event]) -> str:
    clock = Clock()
    return shown(Display(Console(file=StringIO(), width=80), clock=clock), events, clock)


def on_a_terminal(events: list[Event], *, width: int = 80) -> tuple[str, Display]:
    clock = Clock()
    console = Console(file=StringIO(), force_terminal=True, width=width, height=40, color_system="truecolor")
    display = Display(console, clock=clock)
    return shown(display, events, clock), display


def picture(events: list[Event], *, width: int = 80) -> list[str]:
    """What is on the screen after ``events``, without colours."""
    _, display = on_a_terminal(events, width=width)
    console = Console(file=StringIO(), width=width)
    console.print(display._picture())
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def until(study: Study, round_: int, exchange: str) -> list[Event]:
    """The events until this exchange of this round has closed."""
    closed = [
        isinstance(event, ExchangeClosed) and (event.round, event.exchange) == (round_, exchange)
        for event in study.events
    ]
    return study.events[: closed.index(True) + 1]


def test_in_lines_every_round_is_one_line_with_all_its_facts(study: Study) -> None:
    output = in_lines(study.events)
    rounds = re.findall(r"^round.*$", output, flags=re.MULTILINE)
    assert len(rounds) == ROUNDS
    assert "●✕●●●" in rounds[1] and "site-2 dropped out before its update was in" in rounds[1]
    for line in rounds:
        assert re.search(r"perplexity \S+ +ε \d\.\d\d of \d\.\d\d  \d+ s, about .* left", line)


def test_a_round_that_the_schedule_left_unfinished_says_so_with_its_dropouts_and_what_it_spent(
    study: Study, unfinished: Study
) -> None:
    rounds = re.findall(r"^round.*$", in_lines(unfinished.events), flags=re.MULTILINE)
    assert len(rounds) == 2
    assert re.match(r"round 2/3 +not finished: all 4 attempts are used up +ε (\S+) of \1  \d+ s; ", rounds[1])
    assert rounds[1].count("site-1 dropped out") == rounds[1].count("was lost") == 3
    assert "left" not in rounds[1] and "perplexity" not in rounds[1]
    picture_after = "\n".join(picture(unfinished.events[:-1]))
    assert re.search(r"ε (\S+) spent of \1 at", picture_after)
    assert "1 of 3 in four attempts; a site dropped out six times" in " ".join(summary_of(unfinished).split())


def test_in_lines_nothing_moves_and_nothing_is_coloured(study: Study) -> None:
    assert "\x1b" not in in_lines(study.events) and "\r" not in in_lines(study.events)


def test_in_lines_every_phase_says_when_it_starts_and_how_long_it_took(study: Study) -> None:
    output = in_lines(study.events)
    assert re.search(r"^data +synthetic patients$", output, flags=re.MULTILINE)
    assert re.search(r"^data +done in 1 min 1 s$", output, flags=re.MULTILINE)


def test_the_claim_shown_first_is_rounded_up_and_covers_the_schedule(study: Study) -> None:
    assert study.epsilon is not None
    claim = re.search(
        r"^privacy +ε = (\S+) at δ = 0.001 for each patient, over at most four attempts$", in_lines(study.events), re.M
    )
    assert claim and study.epsilon <= float(claim[1]) < study.epsilon + 0.01


def test_on_a_terminal_the_lines_have_the_same_facts(study: Study) -> None:
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", on_a_terminal(study.events)[0])
    for fact in ("round 2/3", "●✕●●●", "site-2 dropped out before its update was in", "✓ training", "6 min 12 s"):
        assert fact in plain


def test_a_site_that_drops_out_is_crossed_out_and_then_absent(study: Study) -> None:
    rows = {line.split()[0]: line for line in picture(until(study, 2, "masked-input")) if line.split()}
    assert rows["keys"].count("●") == rows["shares"].count("●") == 5
    assert (rows["update"].count("●"), rows["update"].count("✕")) == (4, 1)
    assert rows["agreement"].count("◌") == rows["unmasking"].count("·") == 4
    column = rows["update"].index("✕")
    assert rows["agreement"][column : column + 1].strip() == ""


def test_the_picture_says_where_the_study_stands(study: Study) -> None:
    text = "\n".join(picture(until(study, 2, "masked-input")))
    assert "round 2 of 3 · attempt 2 of at most 4 · about " in text
    assert re.search(r"ε \d\.\d\d spent of \d\.\d\d at δ = 0.001", text)
    assert "54.2 → 1" in text  # the federation evaluates to 1


@pytest.mark.parametrize("width", [80, 160])
def test_the_picture_fits_its_width(study: Study, width: int) -> None:
    lines = picture(until(study, 2, "masked-input"), width=width)
    assert max(len(line.rstrip()) for line in lines) <= width
    assert sum(line.count("site-1") for line in lines) == 1


def test_many_sites_are_marks_without_names() -> None:
    many = Study(sites=30, noise_multiplier=None, rounds=1)
    lines = picture(until(many, 1, "shares"))
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert any("●" * 30 in line for line in lines) and not any("site-1" in line for line in lines)
    assert "30 of 30 sites" in in_lines(many.events)


def test_before_and_after_training_the_picture_is_the_phase(study: Study) -> None:
    started = picture(study.events[:2])
    assert len(started) == 1 and "synthetic patients" in started[0] and "1/2" in started[0]
    after = [*study.events, PhaseStarted(name="report", detail="claims")]
    assert len(picture(after)) == 1 and "claims" in picture(after)[0]


def test_time_left_is_that_of_the_rounds_still_to_come(study: Study) -> None:
    # Six events a round (five exchanges and its end), five seconds each; the first round also had the phase's start.
    lines = in_lines(study.events).splitlines()
    assert [line.split("about ")[1].split(" left")[0] for line in lines if line.startswith("round")][-1] == "0 s"
    first = next(line for line in lines if line.startswith("round 1"))
    assert "35 s, about 1 min 10 s left" in first


@pytest.mark.parametrize("quiet", [True, False])
def test_what_has_to_be_known_is_said_also_where_nothing_else_is(
    quiet: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    Display(Console(quiet=quiet), quiet=quiet).observe(Told(text="2 records count as zero"))
    out, err = capsys.readouterr()
    assert "2 records count as zero" in (err if quiet else out)


def test_an_error_leaves_the_terminal_as_it_was() -> None:
    console = Console(file=StringIO(), force_terminal=True)
    with pytest.raises(KeyboardInterrupt), Display(console) as display:
        display.observe(PhaseStarted(name="data"))
        raise KeyboardInterrupt
    assert isinstance(console.file, StringIO)
    output = console.file.getvalue()
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")  # the cursor is shown again
    assert not display._live.is_started


def test_without_privacy_it_says_so_in_red_at_every_turn(without_noise: Study) -> None:
    output, _ = on_a_terminal(without_noise.events)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output)
    assert plain.count("NO PRIVACY") >= 1 + ROUNDS
    assert re.search(r"\x1b\[[0-9;]*41m", output)
    assert "ε" not in plain
    lines = in_lines(without_noise.events)
    assert lines.count("NO PRIVACY") == 1 + ROUNDS and "ε" not in lines


def test_a_quiet_display_still_warns_where_there_is_no_privacy(
    study: Study, without_noise: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    for events in (study.events, without_noise.events):
        with Display(quiet=True) as display:
            for event in events:
                display.observe(event)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("NO PRIVACY") == 1


SECONDS = {"data": 61.0, "training": 372.0}


def summary_of(study: Study, *, width: int = 80, seconds: Mapping[str, float] = SECONDS) -> str:
    console = Console(file=StringIO(), width=width)
    print_summary(console, study.report, Path("a folder"), seconds)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_the_summary_has_results_times_and_paths(study: Study) -> None:
    text = summary_of(study)
    for fact in ("54.2 → 1 on held-out text", "at δ = 0.001 for each patient", "3 of 3 in three attempts", "one time"):
        assert fact in text
    assert re.search(r"in all +7 min 13 s", text)
    for name in ("adapter", "report.html", "report.json", "study.json", "ledger", "checkpoints"):
        assert f"a folder/{name}" in text
    assert "by 5 of 5 sites; verify recomputes it" in text
    assert "Time" in text and "Time" not in summary_of(study, seconds={}), "where nothing was measured"


def test_the_summary_says_where_the_adapter_is_worse_as_plainly_as_where_it_is_better(study: Study) -> None:
    text = " ".join(summary_of(study).split())
    assert "tokens 0–64 50 → 10 better tokens 64–128 114 → 74 better tokens" in text
    assert "Better than the base model over whole records, and worse at no position." in text
    harmful = copy(study)
    harmful.report = study.report_of(by_position=HARMFUL)
    text = " ".join(summary_of(harmful).split())
    assert "tokens 0–64 50 → 10 better tokens 64–128 114 → 114 worse tokens 128–256 178 → 178 worse tokens 256" in text
    assert "WORSE than the base model at tokens 64–128 and at tokens 128–256." in text


def test_a_round_that_is_not_evaluated_shows_no_perplexity() -> None:
    seldom = Study(evaluations=1)
    rounds = [line for line in in_lines(seldom.events).splitlines() if line.startswith("round")]
    assert ["perplexity" in line for line in rounds] == [False, False, True]
    assert len({line.index("ε") for line in rounds}) == 1, "the columns are those of a round that is"
    assert "54.2 → 54.2" in "\n".join(picture(until(seldom, 2, "masked-input")))
    assert "54.2 → 1 on held-out text" in summary_of(seldom)


def test_the_summary_of_a_study_without_privacy_claims_nothing(without_noise: Study) -> None:
    text = summary_of(without_noise)
    assert "NO PRIVACY" in text and "none, and no claim" in text and "ε" not in text


@pytest.mark.parametrize("width", [60, 80, 160])
def test_no_suggested_command_is_broken_across_lines(study: Study, width: int) -> None:
    lines = [line.strip() for line in summary_of(study, width=width).splitlines()]
    assert lines[-3:] == list(next_commands(study.report, Path("a folder")))


def test_the_suggested_epsilon_command_gives_the_study_s_epsilon(study: Study) -> None:
    app = typer.Typer()
    app.command()(epsilon_command)
    arguments = shlex.split(next_commands(study.report, Path("a folder"))[1])
    assert arguments[1] == "epsilon"
    result = CliRunner().invoke(app, [*arguments[2:], "--json"], catch_exceptions=False)
    assert json.loads(result.stdout)["epsilon"] == pytest.approx(study.report["epsilon"], rel=1e-3)


def test_a_path_with_spaces_is_quoted(study: Study) -> None:
    assert shlex.split(next_commands(study.report, Path("a folder"))[0])[1] == "a folder/report.html"


@given(st.lists(st.one_of(st.floats(1, 1e9), st.just(float("inf"))), max_size=40), st.integers(1, 30))
def test_a_sparkline_has_a_block_for_each_finite_value_up_to_its_width(values: list[float], width: int) -> None:
    finite = [value for value in values if value < float("inf")]
    assert len(sparkline(values, width)) == min(len(finite), width)
