"""An OMOP CDM's notes, from PostgreSQL, where it is installed, and from files of DuckDB and SQLite."""

import datetime
import os
import re
import sqlite3
import sys
import traceback
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from support.omop_notes import RADIOLOGY, note, write_notes
from support.process.postgres import PASSWORD, postgres

from grandrounds.common.data.quarantine import Quarantine
from grandrounds.common.data.record import Text
from grandrounds.common.data.records import read_records
from grandrounds.common.errors import DataError, GrandRoundsError, StudyError
from grandrounds.common.schema import validated
from grandrounds.common.sources.database import Database
from grandrounds.common.sources.files import Reading
from grandrounds.common.sources.omop import Omop
from grandrounds.common.sources.rows import Malformed
from grandrounds.common.sources.source import DataSource, read_rows

PRIVATE = "Frau Müller has dropsy"
NOTES = [
    note(3, 2, "née Ås", note_class_concept_id=RADIOLOGY, note_date=datetime.date(2021, 12, 31)),
    note(1, 10, f"{PRIVATE}; 'quoted'\n\"lines\"", note_date=datetime.date(2020, 1, 1)),
    note(2, 2, "€5", note_date=datetime.date(2021, 1, 1)),
]
DATABASES = ("duckdb", "postgresql", "sqlite")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Omop]:
    with postgres() as url:
        password_file = tmp_path_factory.mktemp("postgres") / "password"
        password_file.write_text(f"{PASSWORD}\n")
        password_file.chmod(0o600)
        write_notes(url.set(password=PASSWORD), NOTES, schema="cdm")
        yield Omop(url=str(url), schema="cdm", password_file=password_file)


@pytest.fixture(params=DATABASES)
def omop(request: pytest.FixtureRequest, tmp_path: Path) -> Omop:
    """The notes in each kind of database."""
    if request.param == "postgresql":
        return request.getfixturevalue("served")
    schema = "cdm" if request.param == "duckdb" else None
    url = sqlalchemy.URL.create(request.param, database=str(tmp_path / "cdm.v5 %3f.db"))
    write_notes(url, NOTES, schema=Database.at(str(url)).schema(schema))
    return Omop(url=str(url), schema=schema)


def rows_of(source: DataSource, reading: Reading | None = None) -> list[tuple[str, object, object]]:
    """Place, patient and text of each."""
    found = [(place, row) for place, row in read_rows(source, reading) if not isinstance(row, Malformed)]
    return [(place, row["patient_id"], row["text"]) for place, row in found]


def texts(omop: Omop) -> set[object]:
    return {text for _, _, text in rows_of(DataSource(omop=omop))}


def changed(omop: Omop, **fields: object) -> Omop:
    return Omop.model_validate({**omop.model_dump(by_alias=True), **fields})


def test_notes_are_read_with_their_patients_and_places_whatever_holds_them(omop: Omop) -> None:
    reading = Reading()
    rows = rows_of(DataSource(omop=omop), reading)
    table = rows[0][0].partition(",")[0]
    assert table.endswith("note")
    assert sorted(rows) == [
        (f"{table}, note_id {each['note_id']}", each["person_id"], each["note_text"])
        for each in sorted(NOTES, key=lambda each: each["note_id"])
    ]
    assert reading.share == 1


def test_the_days_that_are_named_say_which_notes_are_read(omop: Omop) -> None:
    days = {"first_date": datetime.date(2021, 1, 1), "last_date": datetime.date(2021, 12, 31)}
    assert texts(changed(omop, **days)) == {"née Ås", "€5"}
    assert texts(changed(omop, last_date=datetime.date(2021, 12, 30))) == {NOTES[1]["note_text"], "€5"}


def test_the_database_sends_no_more_than_the_rows_that_are_asked_for(omop: Omop) -> None:
    reading = Reading()
    concepts = DataSource(omop=omop, where={"note_class_concept_id": (str(RADIOLOGY), "7"), "person_id": ("2",)})
    assert [text for _, _, text in rows_of(concepts, reading)] == ["née Ås"]
    assert reading.total == 1
    with pytest.raises(DataError, match="where and days leave none of the notes"):
        rows_of(DataSource(omop=omop, where={"person_id": ("1",)}))


def test_nothing_can_be_written(omop: Omop) -> None:
    with pytest.raises(Exception, match=r"read-?only"), omop.database().connected() as connection:
        connection.connection.cursor().execute("CREATE TABLE other (one integer)")


def test_what_a_database_lacks_is_named_and_nothing_that_it_holds(omop: Omop) -> None:
    source = DataSource(omop=omop, text="note_words")
    with pytest.raises(DataError, match=r"it has no column note_words in the table .*note that this user may read"):
        list(read_rows(source))
    with pytest.raises(DataError, match=r"it has no table .*nowhere.*note that this user may read"):
        list(read_rows(DataSource(omop=changed(omop, schema="nowhere"))))


def test_a_password_is_no_part_of_a_setting_and_of_no_message() -> None:
    for rest in (f":{PASSWORD}@db/cdm", f"@db/cdm?password={PASSWORD}", f":{PASSWORD}@db:{PASSWORD}/cdm"):
        with pytest.raises(StudyError, match=r"omop\.url (holds a password|is no URL)") as refused:
            DataSource.model_validate({"omop": {"url": f"postgresql://reader{rest}"}})
        assert_told_is_harmless(refused.value)


@pytest.mark.parametrize(
    "url", ["", "db/cdm", "oracle://db/cdm", "postgresql://db", "sqlite://", "postgresql://db:x/c"]
)
def test_what_is_no_url_of_a_known_database_is_refused(url: str) -> None:
    with pytest.raises(StudyError, match=r"omop\.url is (no URL|of no kind)"):
        DataSource.model_validate({"omop": {"url": url}})


def test_a_password_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    file = tmp_path / "password"
    omop = Omop(url="postgresql://reader@localhost:1/cdm", password_file=file)
    with pytest.raises(DataError, match="password: the password cannot be read from it"):
        texts(omop)
    file.touch(mode=0o640)
    with pytest.raises(DataError, match="password: others than its owner may use it"):
        texts(omop)


def test_a_server_that_is_out_of_reach_is_named_and_that_a_worker_has_no_network() -> None:
    with pytest.raises(DataError, match="localhost/cdm: it cannot be reached") as refused:
        texts(Omop(url="postgresql://reader@localhost:1/cdm"))
    assert "`grandrounds client prepare`" in refused.value.fix


def test_a_server_that_refuses_a_user_says_nothing_but_that(served: Omop, tmp_path: Path) -> None:
    wrong = tmp_path / "password"
    wrong.touch(mode=0o600)
    wrong.write_text("another")
    for change, said in (
        ({"password_file": None}, "it asks for a password, and there is none"),
        ({"password_file": wrong}, "it refuses this user, password or database"),
        ({"url": served.url.replace("/postgres?", "/nowhere?")}, "it refuses this user, password or database"),
    ):
        with pytest.raises(DataError, match=said) as refused:
            texts(changed(served, **change))
        assert_told_is_harmless(refused.value)


def test_a_user_needs_no_more_than_to_read_the_columns_that_are_read(served: Omop) -> None:
    as_reader = changed(served, url=served.url.replace("owner@", "reader@"))
    as_owner(served, f"CREATE ROLE reader LOGIN PASSWORD '{PASSWORD}'", "GRANT USAGE ON SCHEMA cdm TO reader")
    as_owner(served, "GRANT SELECT (note_id, person_id) ON cdm.note TO reader")
    with pytest.raises(DataError, match=r"no column note_text .* may read \(InsufficientPrivilege\)") as refused:
        texts(as_reader)
    assert_told_is_harmless(refused.value)
    as_owner(served, "GRANT SELECT (note_text) ON cdm.note TO reader")
    assert texts(as_reader) == {each["note_text"] for each in NOTES}


def test_a_server_sends_rows_in_the_order_of_their_numbers_and_few_at_a_time(served: Omop) -> None:
    numbers = "SELECT 601 - g AS note_id, 1 AS person_id, 'well' AS note_text FROM generate_series(1, 600) g"
    as_owner(served, "CREATE SCHEMA many", f"CREATE TABLE many.note AS {numbers}")
    rows = iter(read_rows(DataSource(omop=changed(served, schema="many"))))
    assert [next(rows)[0] for _ in range(300)] == [f"many.note, note_id {number}" for number in range(1, 301)]
    (asked,) = as_owner(served, "SELECT query FROM pg_stat_activity WHERE state = 'idle in transaction'")
    assert re.match("FETCH FORWARD [0-9]{1,3} FROM", asked)
    as_owner(served, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'")
    with pytest.raises(DataError, match=r"broke off \(AdminShutdown\)"):
        list(rows)


def test_of_a_file_few_notes_are_held_at_a_time(tmp_path: Path) -> None:
    notes = [note(number, 1, f"{number} {'x' * 10_000}") for number in range(800)]
    for backend in ("sqlite", "duckdb"):
        url = sqlalchemy.URL.create(backend, database=str(tmp_path / f"notes.{backend}"))
        write_notes(url, notes)
        tracemalloc.start()
        assert sum(1 for _ in read_rows(DataSource(omop=Omop(url=str(url))))) == len(notes)
        assert tracemalloc.get_traced_memory()[1] < 5e6
        tracemalloc.stop()


def test_a_note_that_is_not_utf8_is_one_note_alone(tmp_path: Path) -> None:
    url = sqlalchemy.URL.create("sqlite", database=str(tmp_path / "notes.db"))
    write_notes(url, NOTES)
    with sqlite3.connect(tmp_path / "notes.db") as connection:
        connection.execute("UPDATE note SET note_text = CAST(X'666fff' AS TEXT) WHERE note_id = 3")
    connection.close()
    quarantine = Quarantine()
    assert len(read_records(DataSource(omop=Omop(url=str(url))), quarantine=quarantine)) == len(NOTES)
    assert [one.position for one in quarantine.set_aside] == ["note, note_id 3"]


def test_what_is_no_database_is_refused_and_none_is_made(tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text(f"{PRIVATE}\n" * 100)
    for backend in ("sqlite", "duckdb"):
        for name in ("notes.csv", "missing.db"):
            with pytest.raises(DataError, match=rf"^{name}: ") as refused:
                texts(Omop(url=f"{backend}:///{tmp_path / name}"))
            assert_told_is_harmless(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.csv"]


def test_without_its_driver_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(DataError, match="the driver of postgresql is not installed") as refused:
        texts(Omop(url="postgresql://reader@localhost:1/cdm"))
    assert "grandrounds[omop]" in refused.value.fix


def test_paths_start_from_the_folder_of_the_settings_and_a_change_of_a_file_is_seen(tmp_path: Path) -> None:
    write_notes(sqlalchemy.URL.create("sqlite", database=str(tmp_path / "notes.db")), NOTES)
    source = DataSource(omop=Omop(url="sqlite:///notes.db", password_file=Path("password"))).below(tmp_path)
    assert source.omop is not None
    assert (source.paths, source.omop.password_file) == ((tmp_path / "notes.db",), tmp_path / "password")
    assert (source.name, len(list(read_rows(source)))) == ("notes.db", 3)
    before = source.fingerprint()
    os.utime(tmp_path / "notes.db", ns=(1, 1))
    assert source.fingerprint() != before


def test_a_change_that_only_a_database_s_log_has_is_seen(tmp_path: Path) -> None:
    sqlite, duckdb = (f"{kind}:///{tmp_path / kind}" for kind in ("sqlite", "duckdb"))
    for url in (sqlite, duckdb):
        write_notes(sqlalchemy.make_url(url), NOTES)
    of_sqlite, of_duckdb = (DataSource(omop=Omop(url=url)) for url in (sqlite, duckdb))
    writer = sqlite3.connect(tmp_path / "sqlite", isolation_level=None)
    writer.execute("PRAGMA journal_mode=WAL")
    before = of_sqlite.fingerprint()
    writer.execute("UPDATE note SET person_id = 7")
    assert {str(patient) for _, patient, _ in rows_of(of_sqlite)} == {"7"}
    assert before != of_sqlite.fingerprint()
    writer.close()
    before = of_duckdb.fingerprint()
    (tmp_path / "duckdb.wal").touch()  # as one that a reader made
    assert before == of_duckdb.fingerprint()
    (tmp_path / "duckdb.wal").write_bytes(b"changes")
    assert before != of_duckdb.fingerprint()


def test_a_template_has_the_words_of_a_blob_and_sets_aside_what_is_no_text(tmp_path: Path) -> None:
    write_notes(sqlalchemy.make_url(f"sqlite:///{tmp_path / 'notes.db'}"), NOTES)
    with sqlite3.connect(tmp_path / "notes.db") as connection:
        connection.execute("UPDATE note SET note_text = X'4ac3b6' WHERE note_id < 3")
        connection.execute("UPDATE note SET note_text = X'4aff' WHERE note_id = 3")
    connection.close()
    source = DataSource(omop=Omop(url=f"sqlite:///{tmp_path / 'notes.db'}"), text="N: {note_text}")
    quarantine = Quarantine()
    records = read_records(source, quarantine=quarantine)
    said = [one.content.text for one in records if isinstance(one.content, Text)]
    assert (said, [one.position for one in quarantine.set_aside]) == (["N: Jö"] * 2, ["note, note_id 3"])


def test_a_source_is_files_or_a_database() -> None:
    omop = {"url": "sqlite:////notes.db"}
    for described in ({"omop": omop, "files": ["notes.csv"]}, {"omop": omop, "format": "csv"}, {"format": "omop"}):
        with pytest.raises(StudyError, match=r"a database|files: needs"):
            validated(DataSource, described)


def test_records_are_in_one_place_whoever_asks_for_them() -> None:
    urls = ("postgresql+psycopg://reader@db/cdm", "postgres://another@db:5432/cdm?sslmode=require")
    assert {Omop(url=url, schema="v5").place for url in urls} == {"db:5432/cdm v5"}
    assert Omop(url="postgresql:///cdm?host=/run/postgresql").place == "/run/postgresql:5432/cdm"


def test_a_server_s_fingerprint_is_known_without_a_network() -> None:
    omop = Omop(url="postgresql://reader@nowhere.invalid/cdm", schema="cdm")
    assert DataSource(omop=omop).fingerprint() == DataSource(omop=omop).fingerprint()
    assert DataSource(omop=omop).fingerprint() != DataSource(omop=changed(omop, schema="other")).fingerprint()


def as_owner(served: Omop, *statements: str) -> list[str]:
    """The first column of what the last of these gives the server's owner."""
    url = sqlalchemy.make_url(served.url).set(password=PASSWORD)
    with sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool).begin() as connection:
        for statement in statements:
            result = connection.execute(sqlalchemy.text(statement))
        return [row[0] for row in result] if result.returns_rows else []


def assert_told_is_harmless(error: GrandRoundsError) -> None:
    told = "".join(traceback.format_exception(error)) + error.diagnostics()
    assert PASSWORD not in told
    assert PRIVATE not in told
