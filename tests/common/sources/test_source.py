import os
import tomllib
from pathlib import Path
from typing import Any

import pytest

from grandrounds.common.data.records import read_records
from grandrounds.common.errors import DataError
from grandrounds.common.schema import as_toml
from grandrounds.common.sources.files import Reading
from grandrounds.common.sources.source import DataSource, read_rows


def folder_of_exports(path: Path) -> Path:
    """Two patients' notes in files of one name, and files that are none of a source's."""
    for folder, patient in (("b", 1), ("a", 2)):
        (path / folder).mkdir(parents=True)
        (path / folder / "notes.jsonl").write_text(f'{{"patient_id": {patient}, "text": "well"}}\n')
    for name in ("_SUCCESS.csv", ".notes.csv", "README.txt"):
        (path / name).write_text("nothing")
    return path


@pytest.mark.parametrize("named", [".", "*/*.jsonl", "**/*.jsonl", "[ab]", "b/notes.jsonl a"])
def test_files_globs_and_folders_are_read_in_the_order_of_their_paths_each_file_once(
    tmp_path: Path, named: str
) -> None:
    folder = folder_of_exports(tmp_path / "exports")
    source = DataSource(files=tuple(folder / name for name in [*named.split(), "a/notes.jsonl"]))
    assert [(record.patient_id, record.position) for record in read_records(source)] == [
        ("2", "a/notes.jsonl, line 1"),
        ("1", "b/notes.jsonl, line 1"),
    ]


def test_a_file_that_has_several_names_is_read_once(tmp_path: Path) -> None:
    folder = folder_of_exports(tmp_path / "exports")
    (folder / "c.jsonl").symlink_to(folder / "b" / "notes.jsonl")
    named = ("a/notes.jsonl", "b/../a/notes.jsonl", "c.jsonl", "b/notes.jsonl")
    assert len(read_records(DataSource(files=tuple(folder / name for name in named)))) == 2


@pytest.mark.parametrize(
    ("named", "said"),
    [("*.parquet", "no file has such a name"), ("", "no file of a known kind"), ("x", "No such file")],
)
def test_what_names_no_file_is_refused_by_its_name(tmp_path: Path, named: str, said: str) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises(DataError, match=f"{(folder / named).name.replace('*', '.')}: .*{said}"):
        read_records(folder / named)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "notes.jsonl")
    for named in (tmp_path / "notes.jsonl", tmp_path):
        with pytest.raises(DataError, match="is a pipe or a device"):
            DataSource(files=(named,)).found()


def test_how_far_the_reading_is_grows_from_nothing_to_all(tmp_path: Path) -> None:
    folder, reading = folder_of_exports(tmp_path), Reading()
    shares = [reading.share for _ in read_rows(DataSource(files=(folder,)), reading)]
    assert shares == [0.5, 1.0]
    assert Reading().share == 0


def test_a_source_has_another_fingerprint_as_soon_as_a_setting_or_a_file_is_another(tmp_path: Path) -> None:
    source = DataSource(files=(folder_of_exports(tmp_path),))
    note = tmp_path / "a" / "notes.jsonl"
    found = [source.fingerprint(), source.model_copy(update={"text": "note"}).fingerprint()]
    os.utime(note, ns=(1, 1))
    found.append(source.fingerprint())
    note.rename(note.with_name("others.jsonl"))
    found.append(source.fingerprint())
    assert len(set(found)) == 4
    assert source.fingerprint() == found[-1]


@pytest.mark.parametrize("described", [{"text": "a", "prompt": "b"}, {"messages": "a", "text": "b"}, {"files": ()}])
def test_columns_of_two_kinds_of_records_and_no_file_at_all_are_refused(described: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"name text; or|needs a file"):
        DataSource.model_validate({"files": ("notes.jsonl",), **described})


@pytest.mark.parametrize(
    "written",
    [
        {"files": ["export"], "fhir": {"types": ["34117-2"]}},
        {"files": ["export"], "fhir": {"attachments": "files"}},
        {"omop": {"url": "sqlite:///cdm.db", "schema": "main"}},
        {"files": ["notes"], "where": {"status": ["final"]}, "crosswalk": "merged.csv"},
    ],
)
def test_a_source_is_written_as_it_was_said_and_read_again_as_it_was(tmp_path: Path, written: dict[str, Any]) -> None:
    source = DataSource.model_validate(written)
    assert source.model_dump(mode="json") == written
    below = source.below(tmp_path)
    assert DataSource.model_validate(tomllib.loads(f"data = {as_toml(below.model_dump())}")["data"]) == below
