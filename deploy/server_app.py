"""The ServerApp of a deployment, as Flower loads it: a study from its server's folder, to its end."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ..client.data import Tokenisation
from ..client.records import read_records
from ..common.adapter import vector_from_bytes
from ..common.audit import Audit
from ..common.errors import StudyError
from ..common.language_model import LanguageModel
from ..common.model_folder import model_folder_sha256
from ..server.app import POLL_INTERVAL_S, carry
from ..server.ledger import LedgerWriter
from .base_model import base_model_folder
from .progress import phase
from .progress_file import Finished, RunBegan, Stopped, Waiting
from .server_folder import ServerFolder
from .study_run import Sources, StudyRun, check_ledger_of

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Carry the study of the folder that the run names to its end, from where its ledger and checkpoints stand."""
    folder = _folder(context)
    with folder.running():
        folder.progress.tell(RunBegan(process=os.getpid()))
        try:
            run = _study_run(folder)
            _wait(folder, run, grid)
            carry(run.conversations(), grid, nodes)
        except BaseException as error:  # also when Flower stops it
            folder.progress.tell(Stopped.by(error))
            raise
        folder.progress.tell(Finished())


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
            folder.progress.tell(Waiting(sites=tuple(sorted(absent))))
        if len(names) - len(absent) >= enough:
            return
        time.sleep(POLL_INTERVAL_S)


def _folder(context: Context) -> ServerFolder:
    path = context.run_config.get("server")
    if not isinstance(path, str) or not Path(path).is_absolute():
        raise StudyError(
            "the run names no server's folder",
            why="the study, its ledger and its keys are there",
            fix="start it with `grandrounds server run`",
        )
    return ServerFolder(Path(path))


def _study_run(folder: ServerFolder) -> StudyRun:
    """The study as the folder has it; all that it needs is loaded and judged before the first message."""
    observe = folder.progress.tell
    manifest, settings, identity = folder.study.manifest(), folder.settings(), folder.identity()
    folder.study.tidy()
    audit = Audit.of(folder.study.ledger_lines())
    check_ledger_of(manifest, audit)
    with phase(observe, "model", manifest.study.model.name):
        base = settings.model or base_model_folder(manifest.study.model.name)
        if model_folder_sha256(base) != manifest.model_sha256:
            raise StudyError(
                f"the model in {base} is another than the study's",
                why="its perplexities and its adapter would be of a model that no site trains",
                fix="put back its files, or give the right folder as model in server.toml",
            )
        model = LanguageModel.load(base, manifest.study.model.lora, seed=0)  # what it draws is replaced
        model.set_frozen_adapter(vector_from_bytes(folder.frozen_adapter(), dimension=model.frozen_layout.dimension))
    with phase(observe, "records", "the evaluation set"):
        tokenisation = Tokenisation.load(str(base), max_tokens=manifest.study.data.max_tokens)
        evaluation = tokenisation.examples(read_records(settings.evaluation))
    return StudyRun(
        manifest=manifest,
        identity=identity,
        ledger=LedgerWriter(identity=identity, store=folder.study.append_entry, audit=audit),
        folder=folder.study,
        model=model,
        base=base,
        evaluation=evaluation,
        sources=Sources(evaluation=settings.evaluation_source),
        setting="federation",
        observe=observe,
    )
