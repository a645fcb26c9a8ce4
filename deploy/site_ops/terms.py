"""What joining a study would mean at this site, by its own data, policy and budget: before anybody agrees."""

from dataclasses import dataclass
from typing import Any

from ...client.budget.agreement import propose
from ...client.budget.patients import Patients
from ...client.budget.reservations import Reservations
from ...client.site.folder import SiteFolder
from ...client.site.reading import Reading
from ...client.site.site_records import told_far
from ...client.site.survey import Survey
from ...client.state.database import SiteDatabase
from ...common.study.manifest import Manifest
from .owner import done_as
from .users import worker_of


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What an operator decides on, beside what the study says of itself.

    ``budget`` says what it costs, ``data`` what it reads. ``asset`` is who pays: a new one, if it stands ``beside``
    others.
    """

    budget: str
    data: list[str]
    asset: str
    beside: list[str]

    @classmethod
    def of(cls, folder: SiteFolder, manifest: Manifest) -> "Terms":
        """Reads policy and budget first, then the records, and changes nothing.

        Raises StudyError where the policy does not allow the study, PrivacyError where the budget does not or patients
        have another, DataError and ModelError where nothing could be read of records or model, and StorageError.
        """
        return cls(**done_as(worker_of(folder.settings()), lambda: _terms(folder, manifest)))


def _terms(folder: SiteFolder, manifest: Manifest) -> dict[str, Any]:
    settings, policy = folder.settings(), folder.policy()
    database = SiteDatabase.open_existing(folder.state)
    try:
        proposal = propose(manifest, policy, name=settings.name, reservations=Reservations(database))
        folder.minimiser()  # with which nothing may be wrong when the worker starts
        survey = Survey.of(settings, policy)
        Patients(database, folder.fingerprint_key()).check(policy.data.asset, survey.patients)
    finally:
        database.close()
    data = [
        survey.counts,
        survey.read_by(Reading.of(manifest.study)),
        *told_far(len(survey.patients), survey.records, manifest, settings.name),
    ]
    asset = proposal.agreement.budget.asset.name
    return {"budget": proposal.budget, "data": data, "asset": asset, "beside": proposal.new_beside}
