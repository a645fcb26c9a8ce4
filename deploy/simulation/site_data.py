"""The records of a simulation's sites, and those to evaluate on: read and tokenised before anything is computed."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...client.site.folder import SiteSettings
from ...client.site.prepared import PreparedRecords
from ...client.site.site_records import SiteRecords
from ...common.data.groups import parse_held_out, read_held_out
from ...common.data.preparation import Preparation, Prepared
from ...common.data.record import Record
from ...common.data.records import named_rows
from ...common.data.tokenisation import Tokenisation
from ...common.errors import DataError
from ...common.model.base_folder import vocabulary_size_of
from ...common.model.example import Example
from ...common.sources.identifiers import Similar, canonical
from ...common.sources.source import DataSource
from ...common.study.public_records import PublicRecords
from ...common.study.study import Study
from ..builtin.models import base_model_folder

# A file or another source, or rows as a file holds them.
Source = str | Path | DataSource
RecordSource = Source | Sequence[Mapping[str, object]]


@dataclass(frozen=True, kw_only=True)
class SiteData:
    """Each site's records, without who opted out, and the evaluation's, by the tokenizer of the model in ``base``.

    ``public`` are the units of public records of which each step has some, where the study has such.
    """

    base: Path
    sites: Mapping[str, SiteRecords]
    evaluation: Sequence[Record]
    tokenisation: Tokenisation
    public: Sequence[Sequence[Example]] | None


def read_all(
    study: Study,
    cohorts: Mapping[str, RecordSource],
    evaluation: RecordSource,
    *,
    folder: Path | None,
    public: PublicRecords | None = None,
    opted_out: Mapping[str, Path],
    similar: Similar | None,
    progress: Callable[[int], None],
) -> SiteData:
    """Read and tokenise all of it, with the tokenizer of the study's model; what files hold is kept in ``folder``.

    ``progress`` is told how many sites are done.

    Raises DataError, also where evaluation records share a patient or a text with those of a site and anything is
    claimed, ModelError and StorageError.
    """
    base = base_model_folder(study.model.name)
    tokenisation = Tokenisation.load(str(base), vocabulary_size=vocabulary_size_of(base))
    preparation = Preparation(
        tokenisation=tokenisation, max_tokens=study.data.max_tokens, overlap=study.data.overlap, similar=similar
    )
    held_out = _held_out(evaluation)

    def prepare(name: str, source: RecordSource) -> Prepared:
        if not isinstance(source, Source):
            return preparation.of_rows(name, named_rows(name, source))
        settings = SiteSettings(name=name, data=DataSource.of(source), similar_identifiers=similar, model=base)
        if folder is None:
            return preparation.of_source(settings.data)
        return PreparedRecords(folder=folder / name, settings=settings, minimiser=None).open(study.data)

    sites: dict[str, SiteRecords] = {}
    for name, source in cohorts.items():
        sites[name] = SiteRecords.of(prepare(name, source), opted_out.get(name))
        _check_learnable(study, name, sites[name])
        progress(len(sites))
    if study.privacy.noise:
        check_held_out(held_out, preparation, sites)
    return SiteData(
        base=base,
        sites=sites,
        evaluation=held_out,
        tokenisation=tokenisation,
        public=None if public is None else public.units(study, tokenisation),
    )


def check_held_out(evaluation: Sequence[Record], preparation: Preparation, sites: Mapping[str, SiteRecords]) -> None:
    """Raises DataError where an evaluation record has a patient or a text of those that sites train on.

    Perplexities are released without noise: what was trained on shows in them, and so does who.
    """
    patients = {canonical(patient) for records in sites.values() for patient in records.patients}
    texts = dict(zip(preparation.contents(evaluation), evaluation, strict=True))
    shared = [texts[found] for records in sites.values() for found in records.contents() if found in texts]
    of_whom = [record for record in evaluation if canonical(record.patient_id) in patients]
    for record in [*of_whom, *shared][:1]:
        raise DataError(
            f"{record.position}: it has {'a patient' if of_whom else 'a text'} of the sites' records",
            why="figures of the evaluation set are released without noise, and would tell who was trained on",
            fix="evaluate on public or synthetic records of nobody in the cohorts",
        )


def _held_out(evaluation: RecordSource) -> list[Record]:
    return read_held_out(evaluation) if isinstance(evaluation, Source) else parse_held_out("evaluation", evaluation)


def _check_learnable(study: Study, site: str, records: SiteRecords) -> None:
    try:
        records.check_learnable(records.units(study))
    except DataError as error:
        raise DataError(f"{site}: {error.what}", why=error.why, fix=error.fix) from error


def tell_of_budget(study: Study, cohorts: Mapping[str, RecordSource]) -> None:
    """Each time, on standard error: two runs on the same patients cost the sum of both, and nothing here adds it up."""
    declared = {site.name for site in study.sites if site.sensitivity == "synthetic"}
    real = [name for name, source in cohorts.items() if isinstance(source, Source) and name not in declared]
    if real:
        print(
            f"grandrounds: this simulation keeps no budget. The records of {', '.join(real)} are not declared "
            "synthetic, and no site's budget hears of what this run releases of their patients: each run on the same "
            'patients adds its whole ε. Declare them (sensitivity = "synthetic") if they are of nobody.',
            file=sys.stderr,
        )
