"""The study of a federation's folders, carried in one process: the server's run, and each site's resident worker."""

from contextlib import ExitStack, closing
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from grandrounds.client.site import assembly
from grandrounds.client.site.folder import SiteFolder
from grandrounds.client.worker.instant import at_once
from grandrounds.deploy.flower.server_app import _study_run


def carried(federation, *, sites=None, rounds=None):
    """Carry it to its end, or until so many rounds are over; the server's run. Sites that are not named are away."""
    with ExitStack() as stack:
        workers = {site: stack.enter_context(closing(opened(federation, site))) for site in sites or federation.sites}
        archive: Any = SimpleNamespace(run=SimpleNamespace(fab_hash=federation.bundle.manifest.app_sha256))
        run = _study_run(federation.folder, archive)
        for conversation in run.conversations():
            while not conversation.finished:
                if rounds is not None and len(run.ledger.verified.rounds) >= rounds:
                    return run
                for site, message in conversation.messages().items():
                    if site in workers:
                        conversation.receive(site, workers[site].answer(message))
                conversation.advance()
    return run


def opened(federation, site):
    """A site's resident worker in the federation's study, which answers at once, as a simulation's."""
    with patch.object(assembly, "AnswerInstant", lambda after_s: at_once):
        return assembly.open_site(SiteFolder(federation.home / site), federation.study_of(site))
