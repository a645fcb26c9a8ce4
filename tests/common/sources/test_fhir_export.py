"""What a generator of patients exports as FHIR, beside the notes that it exported."""

import contextlib
import csv
import io
import json
import logging
import tracemalloc
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from grandrounds.common.data.records import read_records
from grandrounds.common.sources.files import Reading
from grandrounds.common.sources.identifiers import canonical
from grandrounds.common.sources.source import DataSource, read_rows


@dataclass(frozen=True)
class Generated:
    """Notes as patient and text, and the resources of their patients by type."""

    notes: list[tuple[str, str]]
    resources: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Generated:
    """Two young patients: the generator needs a second for them."""
    folder = tmp_path_factory.mktemp("synthea")
    logging.getLogger("synthea").setLevel(logging.CRITICAL)
    notes, resources = [], defaultdict(list)
    with contextlib.redirect_stdout(io.StringIO()):
        from synthea.engine.generator import Generator, GeneratorOptions
        from synthea.export.fhir import FHIRExporter
        from synthea.helpers.config import Config
        from synthea.world.notes import NOTE_ATTRIBUTE

        config = Config()
        config.set("exporter.baseDirectory", str(folder))
        ages = {"min_age": 0, "max_age": 10, "reference_date": "20260101"}
        generator = Generator(GeneratorOptions.from_args({"seed": 3, "clinician_seed": 3, **ages}), config)
        for number in (1, 2):
            person = generator.generate_person(number)
            bundle = json.loads(Path(FHIRExporter(config, folder).export(person, 0)).read_text(encoding="utf-8"))
            for entry in bundle["entry"]:
                resources[entry["resource"]["resourceType"]].append(entry["resource"])
            identifier = resources["Patient"][-1]["id"]
            texts = [getattr(encounter, NOTE_ATTRIBUTE, None) for encounter in person.record.encounters]
            notes += [(identifier, text) for text in texts if text]
    return Generated(notes, resources)


def write_ndjson(folder: Path, resources: dict[str, list[dict[str, Any]]]) -> DataSource:
    """The resources as servers export them in bulk: a file for each type."""
    folder.mkdir()
    for kind, found in resources.items():
        (folder / f"{kind}.ndjson").write_text("".join(json.dumps(one) + "\n" for one in found), encoding="utf-8")
    return DataSource(files=(folder,), format="fhir")


def read(source: DataSource) -> list[tuple[str, str]]:
    return sorted((canonical(record.patient_id), repr(record.content)) for record in read_records(source))


def test_a_generator_s_export_holds_the_notes_that_csv_and_parquet_of_the_same_hold(
    tmp_path: Path, generated: Generated
) -> None:
    csv_path, parquet_path = tmp_path / "notes.csv", tmp_path / "notes.parquet"
    with csv_path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("patient_id", "text"), *generated.notes])
    patients, texts = zip(*generated.notes, strict=True)
    pyarrow.parquet.write_table(pyarrow.table({"patient_id": patients, "text": texts}), parquet_path)
    found = read(write_ndjson(tmp_path / "export", generated.resources))
    assert len(found) == len(generated.notes) > 30
    assert found == read(DataSource.of(csv_path)) == read(DataSource.of(parquet_path))


def test_patients_whom_a_link_joins_are_one(tmp_path: Path, generated: Generated) -> None:
    old, new = generated.resources["Patient"]
    linked = {**old, "link": [{"other": {"reference": f"Patient/{new['id']}"}, "type": "replaced-by"}]}
    source = write_ndjson(tmp_path / "export", {**generated.resources, "Patient": [linked, new]})
    records = read_records(source)
    assert len(records) == len(generated.notes)
    assert {record.patient_id for record in records} == {new["id"]}


def test_reading_holds_one_resource_at_a_time_and_tells_how_far_it_is(tmp_path: Path, generated: Generated) -> None:
    documents = [{**generated.resources["DocumentReference"][0], "description": "x" * 100_000} for _ in range(40)]
    source, reading = write_ndjson(tmp_path / "export", {"DocumentReference": documents}), Reading()
    tracemalloc.start()
    try:
        shares = [reading.share for _ in read_rows(source, reading)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(shares) == 40
    assert shares == sorted(shares)
    assert (shares[0] > 0.5, shares[-1]) == (True, 1.0)
    assert peak < 1_500_000
