"""What a site's folder says of the studies that reserved something: their titles, where they stand, their reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...client.budget.reservations import RECOVERED, BudgetStatement, Reservation
from ...client.site.folder import SiteFolder
from ...client.site.joined_study import JoinedStudy
from ...common.errors import GrandRoundsError, OtherProgramError
from ...common.study.artefacts import PAGE

_LOST: Final = "forgotten with a lost state; all of it counts as spent"


@dataclass(frozen=True, kw_only=True)
class KnownStudy:
    """A study as a site's privacy officer knows it; ``report`` is its page, once the study is finished."""

    title: str
    state: str
    report: Path | None = None


def known_studies(folder: SiteFolder, statements: Sequence[BudgetStatement]) -> dict[str, KnownStudy]:
    """Each study in ``statements`` by its id; of one that is no more in the folder, no more than that."""
    joined = {study.name: study for study in folder.joined()}
    return {
        reservation.study: _known(reservation, joined.get(folder.of(reservation.study).name))
        for statement in statements
        for reservation in statement.reservations
    }


def _known(reservation: Reservation, joined: JoinedStudy | None) -> KnownStudy:
    if joined is None:
        return KnownStudy(title="", state=_LOST if reservation.study == RECOVERED else "left, or not joined here")
    try:
        title = joined.manifest().study.about.title or ""
    except OtherProgramError:
        title = f"of {joined.other_program}, which alone reads it"
    except GrandRoundsError:  # damaged: what it reserved is known all the same
        title = ""
    report = joined.results / PAGE
    if report.is_file():
        return KnownStudy(title=title, state="finished", report=report)
    return KnownStudy(title=title, state="running" if reservation.attempts_begun else "joined, not begun")
