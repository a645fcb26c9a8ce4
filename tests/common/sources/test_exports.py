"""Exports whose layout is known are read without a word about their columns."""

import csv
import gzip
from collections.abc import Sequence
from pathlib import Path

import pytest

from grandrounds.common.errors import DataError
from grandrounds.common.sources.rows import Malformed
from grandrounds.common.sources.source import DataSource, read_rows

# https://physionet.org/content/mimic-iv-note/2.2/
MIMIC = ("note_id", "subject_id", "hadm_id", "note_type", "note_seq", "charttime", "storetime", "text")
NOTE = ("note_id", "person_id", "note_date", "note_type_concept_id", "note_title", "note_text")
TEXT = ' \nName:  ___\n\n"Quoted", and a comma;\r\nnée\n'


def write(path: Path, *rows: Sequence[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def texts(source: DataSource) -> list[tuple[object, object]]:
    rows = [row for _, row in read_rows(source) if not isinstance(row, Malformed)]
    return [(row["patient_id"], row["text"]) for row in rows]


def test_mimic_iv_note_is_read_as_it_is_shipped(tmp_path: Path) -> None:
    times = ("2180-05-07 00:00:00", "2180-05-09 15:26:00")
    note = tmp_path / "note"
    write(note / "discharge.csv.gz", MIMIC, ("10-DS-1", 10, 22, "DS", 1, *times, TEXT))
    write(note / "radiology.csv.gz", MIMIC, ("10-RR-1", 10, "", "RR", 1, *times, "clear"))
    for name in ("discharge", "radiology"):
        write(note / f"{name}_detail.csv.gz", ("note_id", "subject_id", "field_name"), ("10-DS-1", 10, "author"))
    shipped = DataSource(files=(note,), format="mimic-iv-note")
    assert texts(shipped) == [("10", TEXT), ("10", "clear")]
    assert texts(shipped.model_copy(update={"where": {"note_type": ("RR",)}})) == [("10", "clear")]
    for name in ("discharge", "radiology"):
        (note / f"{name}.csv.gz").unlink()
    with pytest.raises(DataError, match="details of notes alone"):
        texts(shipped)


@pytest.mark.parametrize("folder", ["export", "note"])
def test_of_an_omop_export_the_notes_alone_are_read(tmp_path: Path, folder: str) -> None:
    tables = tmp_path / folder
    source = DataSource(files=(tmp_path,), format="omop")
    write(tables / "note_nlp.csv.gz", ("note_nlp_id", "note_id"), (1, 1))
    write(tables / "note.csv.gz", NOTE, (1, 7, "2020-01-01", 32831, "", TEXT))
    assert texts(source) == [("7", TEXT)]
    (tables / "note_nlp.csv.gz").unlink()
    (tables / "note.csv.gz").rename(tables / "part-0.csv.gz")
    if folder == "note":  # as Spark writes a table
        assert texts(source) == [("7", TEXT)]
    else:
        with pytest.raises(DataError, match="no file is called note"):
            texts(source)
