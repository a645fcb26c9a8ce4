"""The benchmark of a round runs a real federation, measures what it says, and leaves nothing behind."""

import json
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.network.loopback import has_ended, until
from typer.testing import CliRunner

from grandrounds.common.errors import StudyError
from grandrounds.deploy.bench.loopback import free_ports
from grandrounds.deploy.bench.round import RoundBench, RoundTimes, round_table
from grandrounds.deploy.bench.stock_nodes import StockNodes
from grandrounds.deploy.cli.main import app
from grandrounds.deploy.server_ops import commands as server_operator
from grandrounds.server.rounds.training import ExchangeClosed, RoundOutcome
from grandrounds.server.run.progress import PhaseEnded, PhaseStarted
from grandrounds.server.run.progress_file import Finished
from grandrounds.server.run.server_folder import ServerFolder

EXCHANGES = ("advert", "shares", "masked-input", "consistency", "unmask")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def figures(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(place))
        result = CliRunner().invoke(
            app, ["bench", "round", "--rounds=1", "--trips=1", "--json"], catch_exceptions=False
        )
    return json.loads(result.stdout)


def processes_of(folder):
    """The ids of those processes, wherever they hang, whose command or environment names the folder."""
    name, found = str(folder).encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if name in told and not has_ended(process.name):
            found.append(int(process.name))
    return found


@pytest.mark.soak
def test_the_figures_are_of_five_exchanges_a_round_and_of_what_they_are_compared_with(figures):
    assert figures["exchanges_per_round"] == 5
    assert tuple(figures["exchange_s"]) == EXCHANGES
    compared = ("median_round_s", "in_process_round_s", "median_exchange_s", "empty_round_trip_s", "exchange_ratio")
    assert set(figures) == {*compared, "exchange_s", "exchanges_per_round"}
    assert min(*figures["exchange_s"].values(), *(figures[name] for name in compared)) > 0
    assert figures["median_round_s"] >= sum(figures["exchange_s"].values())
    assert figures["exchange_ratio"] == figures["median_exchange_s"] / figures["empty_round_trip_s"]


@pytest.mark.soak
def test_no_process_and_no_file_is_left(figures, place):
    until(lambda: not processes_of(place), "all processes have ended")
    assert list(place.glob("grandrounds-bench-*")) == []


@pytest.mark.soak
def test_the_table_has_a_line_for_every_exchange(figures):
    lines = round_table(figures, RoundBench(sites=3, rounds=1)).splitlines()
    assert [line.split()[0] for line in lines[-6:]] == [*EXCHANGES, "any"]


def test_an_exchange_lasts_from_the_one_before_and_a_round_from_the_one_before():
    closed: dict[str, Any] = {"round": 1, "attempt": 1, "answered": frozenset()}
    committed = RoundOutcome(round=1, outcomes=(), survivors=("north",), epsilon_spent=None, perplexity=1.0)
    told: dict[float, Any] = {
        0.0: PhaseStarted(name="signing"),
        2.0: PhaseStarted(name="training"),
        3.0: ExchangeClosed(exchange="advert", **closed),
        5.0: ExchangeClosed(exchange="shares", **closed),
        9.0: committed,
        10.0: ExchangeClosed(exchange="advert", **closed),
        18.0: committed,
        20.0: PhaseEnded(name="training", seconds=18.0),
        30.0: Finished(),
    }
    start = datetime(2026, 2, 1, tzinfo=UTC)
    times = RoundTimes.of((start + timedelta(seconds=at), event) for at, event in told.items())
    assert times.rounds_s == [7.0, 9.0]
    assert times.exchanges_s == {"advert": [1.0, 1.0], "shares": [2.0]}


def test_what_flower_says_of_a_run_that_it_does_not_start_is_passed_on(tmp_path):
    server, (gate, superlink) = ServerFolder(tmp_path / "server"), free_ports(2)
    server_operator.init(server, host="localhost", port=gate, superlink_port=superlink)
    with pytest.raises(StudyError, match=r"flwr run: .*SuperLink"):
        StockNodes(server=server, path=tmp_path, count=1).trips(1)  # no server is started
