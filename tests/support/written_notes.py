"""The same notes, written in each of the forms that hospitals have them in."""

import base64
import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Final

import pyarrow
import pyarrow.parquet
import sqlalchemy

from grandrounds.common.sources.omop import Omop
from grandrounds.common.sources.source import DataSource
from support.omop_notes import note, write_notes

Note = tuple[int, str]  # whose it is, and what it says
Parts = Sequence[Sequence[Note]]  # notes, by the files that they are in
_DAY: Final = "2180-05-07 00:00:00"


def fhir(folder: Path, parts: Parts) -> DataSource:
    """Bulk NDJSON with inline attachments."""
    for number, notes in enumerate(parts):
        lines = "".join(json.dumps(_document(*one)) + "\n" for one in notes)
        (folder / f"DocumentReference.{number}.ndjson").write_text(lines)
    return DataSource(files=(folder,), format="fhir")


def _document(patient: int, text: str) -> dict[str, object]:
    attachment = {"contentType": "text/plain", "data": base64.b64encode(text.encode()).decode()}
    subject = {"reference": f"Patient/{patient}"}
    content = [{"attachment": attachment}]
    return {"resourceType": "DocumentReference", "status": "current", "subject": subject, "content": content}


def omop_sqlite(folder: Path, parts: Parts) -> DataSource:
    """A file of SQLite."""
    return _omop("sqlite", folder, parts)


def omop_duckdb(folder: Path, parts: Parts) -> DataSource:
    """A file of DuckDB."""
    return _omop("duckdb", folder, parts)


def _omop(backend: str, folder: Path, parts: Parts) -> DataSource:
    url = sqlalchemy.URL.create(backend, database=str(folder / "notes.db"))
    write_notes(url, omop_rows(parts))
    return DataSource(omop=Omop(url=str(url)))


def omop_rows(parts: Parts) -> list[dict[str, object]]:
    """Rows of the table ``note``, numbered in their order."""
    numbers = count(1)
    return [note(next(numbers), *one) for notes in parts for one in notes]


def omop_export(folder: Path, parts: Parts) -> DataSource:
    """Tables of a CDM in upper case, separated by tabs."""
    for number, notes in enumerate(parts):
        (folder / f"{number}").mkdir()
        rows = [("NOTE_ID", "PERSON_ID", "NOTE_TEXT"), *((1, *one) for one in notes)]
        (folder / f"{number}" / "NOTE.csv").write_text(_table(rows, "\t"), newline="")
        (folder / f"{number}" / "PERSON.csv").write_text("PERSON_ID\tYEAR_OF_BIRTH\n1\t1930\n")
    return DataSource(files=(folder,), format="omop")


def mimic(folder: Path, parts: Parts) -> DataSource:
    """MIMIC-IV-Note as it is shipped."""
    header = ("note_id", "subject_id", "hadm_id", "note_type", "note_seq", "charttime", "storetime", "text")
    for name, notes in zip(("discharge", "radiology"), parts, strict=True):
        rows = [header, *((f"{patient}-DS-1", patient, 22, "DS", 1, _DAY, "", text) for patient, text in notes)]
        with gzip.open(folder / f"{name}.csv.gz", "wt", encoding="utf-8", newline="") as file:
            file.write(_table(rows, ","))
    return DataSource(files=(folder,), format="mimic-iv-note")


def cp1252(folder: Path, parts: Parts) -> DataSource:
    """CSV as a spreadsheet of western Europe saves it."""
    for number, notes in enumerate(parts):
        rows = [("Fall", "Befund", "Patient"), *((7, text, patient) for patient, text in notes)]
        (folder / f"{number}.csv").write_text(_table(rows, ";"), encoding="cp1252", newline="")
    return DataSource(files=(folder,), patient="Patient", text="Befund", encoding="cp1252", delimiter=";")


def parquet(folder: Path, parts: Parts) -> DataSource:
    """Parquet, patients as whole numbers."""
    for number, notes in enumerate(parts):
        pyarrow.parquet.write_table(_arrow(notes), folder / f"part-{number}.parquet")
    return DataSource(files=(folder / "*.parquet",), patient="subject", text="note")


def _arrow(notes: Sequence[Note]) -> pyarrow.Table:
    return pyarrow.table(
        {"subject": [one[0] for one in notes], "age": [70] * len(notes), "note": [one[1] for one in notes]}
    )


def jsonl_zst(folder: Path, parts: Parts) -> DataSource:
    """JSON lines under zstd."""
    for number, notes in enumerate(parts):
        lines = "".join(json.dumps({"patient_id": patient, "text": text}) + "\n" for patient, text in notes)
        with pyarrow.CompressedOutputStream(str(folder / f"{number}.jsonl.zst"), "zstd") as file:
            file.write(lines.encode())
    return DataSource(files=(folder,))


def dataset(folder: Path, parts: Parts) -> DataSource:
    """A folder of Hugging Face's `datasets`, as ``save_to_disk`` leaves it."""
    names = [f"data-{number:05d}-of-{len(parts):05d}.arrow" for number in range(len(parts))]
    for name, notes in zip(names, parts, strict=True):
        table = _arrow(notes)
        with pyarrow.ipc.new_stream(str(folder / name), table.schema) as file:
            file.write_table(table)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    return DataSource(files=(folder,), patient="subject", text="note")


def _table(rows: Iterable[Sequence[object]], delimiter: str) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows(rows)
    return text.getvalue()


# Each writes the notes of some parts into an empty folder.
FORMS: Final[Sequence[Callable[[Path, Parts], DataSource]]] = (
    fhir,
    omop_sqlite,
    omop_duckdb,
    omop_export,
    mimic,
    cp1252,
    parquet,
    jsonl_zst,
    dataset,
)
