"""The same notes make the same store, bit for bit, whichever way and in whatever order they come."""

import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
from support.omop_notes import write_notes
from support.process.postgres import PASSWORD, postgres
from support.study.tiny_models import save_tiny_model, tiny_tokenizer
from support.written_notes import FORMS, Note, Parts, omop_rows

from grandrounds.client.site.folder import SiteSettings
from grandrounds.client.site.prepared import PreparedRecords
from grandrounds.common.data import preparation as module
from grandrounds.common.data.preparation import Preparation
from grandrounds.common.data.records import named_rows
from grandrounds.common.data.tokenisation import Tokenisation
from grandrounds.common.errors import DataError
from grandrounds.common.sources.omop import Omop
from grandrounds.common.sources.rows import Rows
from grandrounds.common.sources.source import DataSource, read_rows
from grandrounds.common.study.study import DataSection

PREPARATION = Preparation(tokenisation=Tokenisation(tiny_tokenizer()), max_tokens=16, overlap=4)
# Of 8 patients, with all that cp1252 has and that a table has to quote.
NOTES: list[Note] = [
    (1 + number % 8, f'{number}: "née"; Ø 5 µm,\r\n\tœdème – 3 € · „gut“\n' + "well; rested, " * (number % 5))
    for number in range(40)
]
HALVES = (NOTES[:17], NOTES[17:])
TURNED = (NOTES[:11:-1], NOTES[11::-1])


def stored(folder: Path, rows: Rows) -> dict[str, bytes]:
    folder.mkdir(exist_ok=True)
    PREPARATION.of_rows("notes", rows, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    rows = [{"patient_id": str(patient), "text": text} for patient, text in NOTES]
    return stored(tmp_path_factory.mktemp("memory"), named_rows("notes", rows))


@pytest.mark.parametrize("form", FORMS)
def test_the_same_notes_make_the_same_store_in_every_form_and_order(
    form: Callable[[Path, Parts], DataSource], expected: dict[str, bytes], tmp_path: Path
) -> None:
    for order, parts in (("as they are", HALVES), ("turned", TURNED)):
        (tmp_path / order).mkdir()
        source = form(tmp_path / order, parts)
        assert stored(tmp_path / f"store {order}", read_rows(source)) == expected


@pytest.mark.parametrize("form", FORMS)
def test_a_restart_in_the_middle_leaves_no_trace_in_any_form(
    form: Callable[[Path, Parts], DataSource],
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_SHARD", 8)
    monkeypatch.setattr(module, "_BATCH", 4)
    (tmp_path / "notes").mkdir()
    source = form(tmp_path / "notes", HALVES)

    def broken_off() -> Rows:
        yield from islice(read_rows(source), 29)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path / "store", broken_off())
    assert list((tmp_path / "store").rglob("shard.json"))
    assert stored(tmp_path / "store", read_rows(source)) == expected


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataSource]:
    with postgres() as url:
        password_file = tmp_path_factory.mktemp("postgres") / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(PASSWORD)
        for schema, parts in (("halves", HALVES), ("turned", TURNED)):
            write_notes(url.set(password=PASSWORD), omop_rows(parts), schema=schema)
        yield DataSource(omop=Omop(url=str(url), schema="halves", password_file=password_file))


def test_the_same_notes_make_the_same_store_from_a_server(
    served: DataSource, expected: dict[str, bytes], tmp_path: Path
) -> None:
    assert served.omop is not None
    turned = served.omop.model_copy(update={"cdm_schema": "turned"})
    for name, source in (("halves", served), ("turned", DataSource(omop=turned))):
        assert stored(tmp_path / name, read_rows(source)) == expected


def test_what_was_read_from_a_server_is_opened_without_asking_it_and_only_then(
    served: DataSource, tmp_path: Path
) -> None:
    assert served.omop is not None and served.omop.password_file is not None
    password_file = Path(shutil.copy(served.omop.password_file, tmp_path))
    source = DataSource(omop=served.omop.model_copy(update={"password_file": password_file}))
    settings = SiteSettings(name="north", data=source, model=save_tiny_model(tmp_path / "model"))
    records = PreparedRecords(folder=tmp_path / "prepared", settings=settings, minimiser=None)
    made = records.open(DataSection(max_tokens=16))
    password_file.unlink()
    assert records.open(DataSection(max_tokens=16)).store.patients == made.store.patients
    with pytest.raises(DataError, match="the password cannot be read"):
        records.open(DataSection(max_tokens=8))
