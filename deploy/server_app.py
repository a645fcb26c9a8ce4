"""The ServerApp of a deployment, as Flower loads it: a study from its server's folder, to its end."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ..client.data import Tokenisation
from ..client.records import read_records
from ..common.adapter import vector_from_bytes
from ..common.audit import Audit
from ..common.errors import GrandRoundsError, StudyError
from ..common.language_model import LanguageModel
from ..server.app import POLL_INTERVAL_S, carry
from ..server.ledger import LedgerWriter
from ..server.training import ExchangeClosed, RoundClosed
from .base_model import base_model_folder
from .progress import Event, StudyReady
from .server_folder import ServerFolder
from .study_run import Sources, StudyRun

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Carry out the study from where it stands; what happens is told in its progress."""
    path = context.run_config.get("server")
    if not isinstance(path, str) or not path:
        raise StudyError(
            "the run names no server's folder",
            why="the study, its ledger and its keys are there",
            fix="start it with `grandrounds server run`",
        )
    folder = ServerFolder(Path(path))
    with folder.running():
        try:
            run = _study_run(folder)
            _wait(folder, run, grid)
            carry(run.conversations(), grid, nodes)
        except GrandRoundsError as error:
            folder.tell({"event": "stopped", "diagnosis": error.diagnostics()})
            raise
        folder.tell({"event": "finished"})


def nodes(grid: Grid) -> Mapping[str, int]:
    """The nodes that are connected, by the names under which their keys were enrolled.

    Who answers is proven by the answer's signature, and not by its node.
    """
    return {node.name: node.node_id for node in grid.get_nodes()}


def _wait(folder: ServerFolder, run: StudyRun, grid: Grid) -> None:
    """Until all sites are connected that have to sign, or enough to answer; no longer than an exchange may take."""
    names = set(run.manifest.site_keys)
    enough = run.manifest.threshold if run.ledger.audit.manifests else len(names)
    deadline = time.monotonic() + run.manifest.study.training.deadline_s
    absent: set[str] | None = None
    while time.monotonic() < deadline:
        before, absent = absent, names - set(nodes(grid))
        if absent and absent != before:
            folder.tell({"event": "Waiting", "sites": sorted(absent)})
        if len(names) - len(absent) >= enough:
            return
        time.sleep(POLL_INTERVAL_S)


def _study_run(folder: ServerFolder) -> StudyRun:
    manifest, settings = folder.study.manifest(), folder.settings()
    folder.study.tidy()
    base = base_model_folder(manifest.study.model.name)
    model = LanguageModel.load(base, manifest.study.model.lora, seed=0)  # what it draws is replaced
    model.set_frozen_adapter(vector_from_bytes(folder.frozen_adapter(), dimension=model.frozen_layout.dimension))
    tokenisation = Tokenisation.load(str(base), max_tokens=manifest.study.data.max_tokens)
    return StudyRun(
        manifest=manifest,
        identity=folder.identity(),
        ledger=LedgerWriter(
            identity=folder.identity(),
            store=folder.study.append_entry,
            audit=Audit.of(folder.study.ledger_lines()),
        ),
        folder=folder.study,
        model=model,
        base=base,
        evaluation=tokenisation.examples(read_records(settings.evaluation)),
        sources=Sources(evaluation=settings.evaluation_words),
        setting="federation",
        observe=lambda event: folder.tell(_told(event)),
    )


def _told(event: Event) -> dict[str, Any]:
    """An event as a line of the progress."""
    if isinstance(event, StudyReady):
        fields: dict[str, Any] = {
            "study": event.manifest.study_id,
            "epsilon": event.epsilon,
            "perplexity_before": event.perplexity_before,
        }
    else:
        fields = asdict(event)
    if isinstance(event, ExchangeClosed):
        fields["answered"] = sorted(event.answered)
    if isinstance(event, RoundClosed):
        fields["committed"] = event.committed
    return {"event": type(event).__name__, **fields}
