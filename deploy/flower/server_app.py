"""The ServerApp of a study, as Flower loads it: in a deployment from its server's folder, in a simulation a new one.

Flower looks for modules in a run's archive before it looks where they are installed, and whatever an archive put there
would run first. So a study is run only for the archive that has nothing to put: the installed app's, as a deployment's
sites pinned it. One that stands in for this very file is not refused here; it has another hash, and no site answers it.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid import InMemoryGrid

from ...common.data.groups import read_held_out
from ...common.data.tokenisation import Tokenisation
from ...common.errors import GrandRoundsError, StudyError
from ...common.ledger.message_sizes import largest_answer_bytes
from ...common.ledger.replay import VerifiedLedger
from ...common.model.adapter import vector_from_bytes
from ...common.model.language_model import LanguageModel
from ...common.system.code_pin import check_code
from ...common.system.privileges import keep_memory_private
from ...server.rounds.app import POLL_INTERVAL_S, carry
from ...server.rounds.ledger_writer import LedgerWriter
from ...server.rounds.pieces import InPieces
from ...server.run.progress import phase
from ...server.run.progress_file import Finished, RunBegan, Stopped, Waiting
from ...server.run.server_folder import ServerFolder
from ...server.run.study_run import StudyRun, check_ledger_of
from ..builtin.models import base_model_folder
from .archive import app_sha256
from .concurrent_grid import ConcurrentGrid

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Carry a study to its end: in Flower's simulation one of its own, else that of the folder that the run names.

    A refusal is printed, for ``flwr log`` to show, and ends the run.
    """
    keep_memory_private()
    try:
        if isinstance(grid, InMemoryGrid):
            _simulate(grid, context)
        else:
            _carry(_folder(context), grid)
    except GrandRoundsError as error:
        print(f"grandrounds: {error.diagnostics()}", file=sys.stderr)
        raise


def _simulate(grid: Grid, context: Context) -> None:
    if context.run_config.get("server"):
        raise StudyError(
            "the run names a server's folder, and is a simulation",
            why="the sites of that server are reached through its own SuperLink",
            fix="name that SuperLink too: FLWR_HOME=DIR/flower/home flwr run APP study --run-config 'server=\"DIR\"'",
        )
    _check_archive(grid, app_sha256())
    from .simulation import simulate_in_flower  # with all that sites train with

    simulate_in_flower(grid, context.run_config)


def _carry(folder: ServerFolder, grid: Grid) -> None:
    """Go on with the folder's study from where its ledger and checkpoints stand."""
    with folder.running():
        folder.progress.tell(RunBegan(process=os.getpid()))
        try:
            run = _study_run(folder, grid)
            _wait(folder, run, grid)
            # Of a grid, nothing else is used.
            carry(
                run.conversations(), cast(Grid, ConcurrentGrid(grid)), enough_nodes(folder, run), _pieces(folder, run)
            )
        except BaseException as error:  # also when Flower stops it
            folder.progress.tell(Stopped.by(error))
            raise
        folder.progress.tell(Finished())


def _pieces(folder: ServerFolder, run: StudyRun) -> InPieces:
    """How what is too large for Flower's messages is carried."""
    return InPieces(folder=folder.flower, largest_bytes=largest_answer_bytes(run.manifest))


def _check_archive(grid: Grid, sha256: str | None) -> None:
    """Raises StudyError unless the run's archive is the one with this hash."""
    if grid.run.fab_hash != sha256:
        raise StudyError(
            f"the run's app archive is another than the study's: {grid.run.fab_hash} instead of {sha256}",
            why="what is in an archive runs before what is installed, and no site answers for another one",
            fix="give `flwr run` the installed package's folder deploy/flower/app, unchanged",
        )


def nodes(grid: Grid) -> Mapping[str, int]:
    """The nodes that are connected, by the names under which their keys were enrolled.

    Who answers is proven by the answer's signature, and not by its node.
    """
    return {node.name: node.node_id for node in grid.get_nodes()}


def enough_nodes(folder: ServerFolder, run: StudyRun) -> Callable[[Grid], Mapping[str, int]]:
    """``nodes``, which in training, while fewer than t sites are connected, waits, however long that takes.

    An attempt without them would be lost at once and count all the same, and one after the other all that the schedule
    has. At the beginning and at the end, when whoever is there signs, there is nothing to lose.
    """

    def connected(grid: Grid) -> Mapping[str, int]:
        verified = run.ledger.verified
        training = verified.is_in_force(run.manifest) and verified.closed is None
        return _connected(folder, run, grid, at_least=run.manifest.threshold if training else 0)

    return connected


def _wait(folder: ServerFolder, run: StudyRun, grid: Grid) -> None:
    """Until all sites are connected that have to sign, or enough to answer; no longer than an exchange may take."""
    signed = run.ledger.verified.is_in_force(run.manifest)
    enough = run.manifest.threshold if signed else len(run.manifest.site_keys)
    _connected(folder, run, grid, at_least=enough, longest_s=run.manifest.study.training.deadline_s)


def _connected(
    folder: ServerFolder, run: StudyRun, grid: Grid, *, at_least: int, longest_s: float = math.inf
) -> Mapping[str, int]:
    """The nodes, once ``at_least`` of the study's sites are among them; who is waited for is told."""
    deadline, absent = time.monotonic() + longest_s, None
    while True:
        found = nodes(grid)
        before, absent = absent, run.manifest.site_keys.keys() - found.keys()
        if len(run.manifest.site_keys) - len(absent) >= at_least or time.monotonic() >= deadline:
            return found
        if absent != before:
            folder.progress.tell(Waiting(sites=tuple(sorted(absent))))
        time.sleep(POLL_INTERVAL_S)


def _folder(context: Context) -> ServerFolder:
    path = context.run_config.get("server")
    if not (isinstance(path, str) and Path(path).is_absolute() and ServerFolder(Path(path)).has_study):
        raise StudyError(
            f"the run's server={path!r} is no server's folder with a study",
            why="the study, its ledger and its keys are there",
            fix="start it with `grandrounds server run DIR`, or give its absolute path: --run-config 'server=\"DIR\"'",
        )
    return ServerFolder(Path(path))


def _study_run(folder: ServerFolder, grid: Grid) -> StudyRun:
    """The study as the folder has it; all that it needs is loaded and judged before the first message."""
    observe = folder.progress.tell
    manifest, settings, identity = folder.study.manifest(), folder.settings(), folder.identity()
    check_code(version=manifest.package_version, sha256=manifest.package_sha256)
    _check_archive(grid, manifest.app_sha256)
    folder.study.tidy()
    verified = VerifiedLedger.of(folder.study.ledger_lines())
    check_ledger_of(manifest, verified)
    with phase(observe, "model", manifest.study.model.name):
        base = settings.model or base_model_folder(manifest.study.model.name)
        # What the seed draws is replaced.
        model = LanguageModel.load(
            base,
            manifest.study.model.lora,
            seed=0,
            precision=manifest.study.model.precision,
            sha256=manifest.model_sha256,
            setting="model in server.toml; without it, the study's model.name",
        )
        first = folder.study.first_adapter(manifest)
        if first is not None:
            first.put_on(model)
        model.set_frozen_adapter(vector_from_bytes(folder.frozen_adapter(), dimension=model.frozen_layout.dimension))
    with phase(observe, "records", "the evaluation set"):
        tokenisation = Tokenisation.load(str(base), vocabulary_size=model.vocabulary_size)
        records = read_held_out(settings.evaluation)
        evaluation = tokenisation.evaluation_set(records, positions=model.positions)
    return StudyRun(
        manifest=manifest,
        ledger=LedgerWriter(identity=identity, store=folder.study.append_entry, verified=verified),
        folder=folder.study,
        model=model,
        base=base,
        evaluation=evaluation,
        evaluation_source=settings.evaluation_source,
        observe=observe,
    )
