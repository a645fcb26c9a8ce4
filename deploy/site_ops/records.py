"""What a site's operator does with the records of its own, beside studies: look at them, and nowhere else."""

import os
from pathlib import Path
from typing import Final

from ...client.site.data_report import DataReport
from ...client.site.folder import SiteFolder
from ...client.site.joined_study import JoinedStudy
from ...client.site.reading import Reading
from ...client.site.survey import Survey
from ...common.system.files import write_atomically
from .users import worker_of

PAGE: Final = "data.html"


def data_report(folder: SiteFolder, study: JoinedStudy | None) -> DataReport:
    """What the records come to, as a study reads them if there is one. Raises DataError, ModelError and StudyError."""
    settings = folder.settings()
    survey = Survey.of(settings, folder.policy())
    if study is None:
        return DataReport.surveyed(survey)
    manifest = study.manifest()
    reading, most_units = Reading.of(manifest.study), manifest.draw_cap(settings.name)
    return DataReport.surveyed(survey, reading, most_units=most_units, study=study.name)


def write_page(folder: SiteFolder, page: str) -> Path:
    """Write the page into the site's folder, for the worker's user alone. Raises StorageError."""
    path, worker = folder.path / PAGE, worker_of(folder.settings())
    write_atomically(path, page.encode(), mode=0o600)
    if worker is not None:
        os.chown(path, worker.uid, worker.gid, follow_symlinks=False)
    return path
