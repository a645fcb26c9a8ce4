"""Whose records an attack reads: some of those who were trained on, some of those who were not."""

from collections.abc import Iterable
from typing import Final

import numpy as np

from ...client.site.site_records import SiteRecords
from ...common.audit.membership import FEWEST
from ...common.data.store import Unit
from ...common.errors import DataError
from ...common.study.study import Study
from ...server.report.claim import count

MOST_PATIENTS: Final = 200  # of each kind: more would make intervals narrower than anybody needs


def some_patients(records: Iterable[SiteRecords], study: Study, *, who: str) -> list[Unit]:
    """At most ``MOST_PATIENTS`` of those ``who`` have the records, evenly by identifiers, as the study reads them.

    Raises DataError where they are too few.
    """
    every = [(each.store, number) for each in records for number in each.kept.tolist()]
    few = min(len(every), MOST_PATIENTS)
    chosen = [every[number * len(every) // few] for number in range(few)]
    units = [
        store.select("patient", np.array([number]), max_tokens=study.data.max_tokens)[0] for store, number in chosen
    ]
    learnt = [unit for unit in units if any(window.has_target for window in unit)]
    if len(learnt) < FEWEST:
        raise DataError(
            f"{count(len(learnt), 'patient')} {who}, and attacks need {FEWEST} of each kind",
            why="of fewer, no figure would tell a leak from chance",
            fix="hold out more whole patients, at random, before the next study",
        )
    return learnt
