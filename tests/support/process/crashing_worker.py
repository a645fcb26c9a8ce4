"""A site's worker as a process of its own, which dies at a named point: ``crashing_worker.py FOLDER [POINT]``.

FOLDER holds ``manifest.json``, ``key`` and the site's state; the worker is ``site-2``. Requests and answers travel over
standard input and output, each after its length in four bytes. At POINT the process ends as if it were killed.
"""

import os
import struct
import sys
from pathlib import Path

import numpy as np

from grandrounds.client.budget.amounts import Amounts
from grandrounds.client.budget.asset import Asset
from grandrounds.client.budget.reservations import Reservations
from grandrounds.client.state.site_state import SiteState
from grandrounds.client.worker.worker import Worker
from grandrounds.common.crypto.identity import Identity
from grandrounds.common.study.manifest import Manifest

KILLED = 9


def main(folder: Path, point: str | None) -> None:
    def reach(reached: str) -> None:
        if reached == point:
            os._exit(KILLED)

    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    budget = SiteState.open(folder / "state", reach=reach)
    reservations = Reservations(budget.database)
    reservations.register(Asset.synthetic("records"))
    reservations.reserve("records", manifest.study_id, Amounts())
    worker = Worker(
        name="site-2",
        identity=Identity.from_bytes((folder / "key").read_bytes()),
        manifest=manifest,
        release=lambda adapter: np.ones(manifest.dimension, "<u4"),
        state=budget,
    )
    while size := sys.stdin.buffer.read(4):
        answer = worker.handle(sys.stdin.buffer.read(struct.unpack("<I", size)[0]))
        sys.stdout.buffer.write(struct.pack("<I", len(answer)) + answer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
