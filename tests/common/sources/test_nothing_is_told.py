import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.written_notes import FORMS, Parts, omop_duckdb

from grandrounds.common.data.quarantine import Quarantine
from grandrounds.common.data.records import read_records
from grandrounds.common.errors import GrandRoundsError
from grandrounds.common.sources.source import DataSource

NAME = "Zebedee"
NOTES: Parts = ([(1, f'{NAME}; has "gout"\n{NAME}'), (2, f"{NAME}, {NAME}")], [(1, f"of {NAME}")])
Form = Callable[[Path, Parts], DataSource]

# What readers take for something: marks of CSV, JSON and base64, bytes of no encoding, the beginnings of packed files.
FRAGMENTS = [
    b'"',
    b"\n",
    b"\r",
    b",",
    b"\t",
    b";",
    b"{",
    b"}",
    b"[",
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"1e999",
    b"=",
]
Edits = list[tuple[float, int, bytes]]
EDITS: st.SearchStrategy[Edits] = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 12), st.sampled_from(FRAGMENTS) | st.binary(max_size=4)),
    min_size=1,
    max_size=4,
)


def edited(data: bytes, edits: Edits) -> bytes:
    """The bytes, at some places of which others are put for so many."""
    for share, taken, put in edits:
        at = int(share * len(data))
        data = data[:at] + put + data[at + taken :]
    return data


def told(source: DataSource) -> Iterator[str]:
    """All that reading the source says, of what it sets aside and of what it refuses."""
    quarantine = Quarantine()
    try:
        read_records(source, quarantine=quarantine)
    except GrandRoundsError as error:
        yield error.diagnostics()
        yield "".join(traceback.format_exception(error))  # with causes and contexts that are not suppressed
    yield from quarantine.lines()


@pytest.fixture(
    scope="module", params=[form for form in FORMS if form is not omop_duckdb], ids=lambda form: form.__name__
)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[DataSource, Path]:
    """A source in one of the forms, and where its files are."""
    folder = tmp_path_factory.mktemp("written")
    form: Form = request.param
    return form(folder, NOTES), folder


@settings(max_examples=30)
@given(data=st.data())
def test_whatever_becomes_of_a_file_nothing_that_it_holds_is_told(
    written: tuple[DataSource, Path], data: st.DataObject
) -> None:
    source, folder = written
    file = data.draw(st.sampled_from(sorted(path for path in folder.rglob("*") if path.is_file())))
    whole, logged = file.read_bytes(), logging.getLogger()
    handler = _Kept()
    logged.addHandler(handler)
    try:
        file.write_bytes(edited(whole, data.draw(EDITS)))
        said = [*told(source), *handler.lines]
    finally:
        logged.removeHandler(handler)
        file.write_bytes(whole)
    assert NAME not in "\n".join(said)


class _Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


TABLE = DataSource.model_validate({"files": ["notes.csv"], "patient": "mrn", "text": "{a}: {b}"})


@settings(max_examples=100)
@given(edits=EDITS, edits_of_walk=EDITS)
def test_nor_of_a_table_that_is_put_together_nor_of_a_crosswalk(
    tmp_path_factory: pytest.TempPathFactory,
    edits: Edits,
    edits_of_walk: Edits,
) -> None:
    folder = tmp_path_factory.getbasetemp()
    notes = f'mrn,kind,a,b\n{NAME},{NAME},"{NAME}","x\ny"\n2,DS,{NAME},{NAME}\n'.encode()
    (folder / "notes.csv").write_bytes(edited(notes, edits))
    (folder / "walk.csv").write_bytes(edited(f"from,to\n2,{NAME}\n{NAME}-2,{NAME}\n".encode(), edits_of_walk))
    source = TABLE.model_copy(update={"crosswalk": Path("walk.csv")}).below(folder)
    assert NAME not in "\n".join(told(source))
