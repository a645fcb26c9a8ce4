"""A site's records, tokenised and in their order: the same store wherever and however they were read."""

import os
import random
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.study.tiny_models import tiny_tokenizer

from grandrounds.common.data import preparation as module
from grandrounds.common.data.preparation import Preparation, Prepared
from grandrounds.common.data.record import Record, Text
from grandrounds.common.data.records import named_rows
from grandrounds.common.data.shards import Shard, Tokenised
from grandrounds.common.data.store import PrivacyUnit, Store, Units
from grandrounds.common.data.tokenisation import Tokenisation
from grandrounds.common.errors import DataError, StorageError
from grandrounds.common.model.example import NO_LOSS
from grandrounds.common.sources.rows import Rows

QUOTE = "Zebedee has gout"
TOKENISATION = Tokenisation(tiny_tokenizer())
PREPARATION = Preparation(tokenisation=TOKENISATION, max_tokens=8)
ROWS: list[dict[str, Any]] = [
    {"patient_id": patient, "text": f"note {number} of {patient}: " + "well rested and afebrile " * number}
    for number in range(4)
    for patient in ("B-7", "a", "c c")
]


def rows(given: list[dict[str, Any]] = ROWS) -> Rows:
    return named_rows("notes", given)


def prepare(given: list[dict[str, Any]] = ROWS, folder: Path | None = None, **changed: Any) -> Prepared:
    made = Preparation(**{"tokenisation": TOKENISATION, "max_tokens": 8, **changed})
    if folder is not None:
        folder.mkdir(exist_ok=True)
    return made.of_rows("notes", rows(given), folder)


def arrays(store: Store) -> dict[str, bytes]:
    names = ("tokens", "windows", "spans", "learnt", "records")
    found = {name: np.asarray(getattr(store.block, name)).tobytes() for name in names}
    return {**found, "units": np.asarray(store.units).tobytes(), "patients": "|".join(store.patients).encode()}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def units(prepared: Prepared, unit: PrivacyUnit = "patient", opted_out: frozenset[str] = frozenset()) -> Units:
    return prepared.store.select(unit, prepared.store.kept(opted_out), max_tokens=8)


def test_the_order_of_rows_changes_nothing() -> None:
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    assert shuffled != ROWS
    assert arrays(prepare(shuffled).store) == arrays(prepare().store)


def test_a_folder_holds_what_memory_would_for_its_owner_alone(tmp_path: Path) -> None:
    made = prepare(folder=tmp_path / "store")
    opened = Store.open(tmp_path / "store")
    assert arrays(made.store) == arrays(opened) == arrays(prepare().store)
    assert {path.name for path in (tmp_path / "store").iterdir() if path.is_dir()} == set()
    for path in (tmp_path / "store").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


@pytest.mark.parametrize("done", [0, 3, 7, 12])
def test_what_was_interrupted_is_gone_on_with_and_comes_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    monkeypatch.setattr(module, "_SHARD", 2)
    monkeypatch.setattr(module, "_BATCH", 1)

    def breaking() -> Rows:
        yield from list(rows())[:done]
        raise KeyboardInterrupt

    (tmp_path / "store").mkdir()
    with pytest.raises(KeyboardInterrupt):
        PREPARATION.of_rows("notes", breaking(), tmp_path / "store")
    laid_out: list[str] = []
    whole = Preparation._batch

    def noted(self: Preparation, records: Sequence[Record]) -> list[Tokenised]:
        laid_out.extend(record.position for record in records)
        return whole(self, records)

    monkeypatch.setattr(Preparation, "_batch", noted)
    made = prepare(folder=tmp_path / "store")
    again = len(laid_out)
    assert arrays(made.store) == arrays(prepare().store)
    assert again <= len(ROWS) - done + 4, "what was done is not done again"


@pytest.mark.parametrize("other", [{"patient_id": "other"}, {"text": "another text"}])
def test_what_was_interrupted_is_not_gone_on_with_where_the_source_gives_other_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, str]
) -> None:
    monkeypatch.setattr(module, "_SHARD", 2)
    monkeypatch.setattr(module, "_BATCH", 1)

    def breaking() -> Rows:
        yield from list(rows())[:9]
        raise KeyboardInterrupt

    (tmp_path / "store").mkdir()
    with pytest.raises(KeyboardInterrupt):
        PREPARATION.of_rows("notes", breaking(), tmp_path / "store")
    below = [path for path in (tmp_path / "store").rglob("*") if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in below} == {0o700}
    changed = [ROWS[0] | other, *ROWS[1:]]
    with pytest.raises(DataError, match="other records than when its preparation was interrupted") as refused:
        prepare(changed, tmp_path / "store")
    assert "B-7" not in refused.value.diagnostics()
    assert arrays(prepare(changed, tmp_path / "store").store) == arrays(prepare(changed).store)


def test_a_shard_that_is_damaged_or_open_to_others_is_none(tmp_path: Path) -> None:
    record = Record(patient_id="x", position="", content=Text(text="well"))
    Shard.of(PREPARATION._batch([record]), np.uint16).write(tmp_path)
    assert Shard.open(tmp_path) is not None
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        assert Shard.open(tmp_path) is None, path
        path.write_bytes(whole)


def test_tokens_are_written_whole_where_the_system_writes_a_part_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, place: write(file, data[:3], place))
    assert arrays(prepare(folder=tmp_path / "store").store) == arrays(prepare().store)


def test_all_records_of_a_patient_are_one_unit_or_each_a_unit_of_its_own() -> None:
    made = prepare([{"patient_id": p, "text": t} for p, t in (("b", "x"), ("a", "y z"), ("b", "x y z " * 9))])
    assert made.store.patients == ["a", "b"]
    sizes = [len(unit) for unit in units(made)]
    of_records = [len(unit) for unit in units(made, "record")]
    assert len(sizes) == 2 and len(of_records) == 3
    assert sizes[0] == 1 and sizes[1] > 2 and sizes[1] == sum(of_records[1:])


def test_who_opted_out_is_in_no_unit_and_in_no_byte_of_a_store_of_the_others(tmp_path: Path) -> None:
    made = prepare(folder=tmp_path / "store")
    kept = made.store.kept(frozenset({"b-7"}))
    assert [made.store.patients[number] for number in kept] == ["a", "c c"]
    (tmp_path / "others").mkdir()
    others = made.store.only(kept, tmp_path / "others")
    assert arrays(others) == arrays(prepare([row for row in ROWS if row["patient_id"] != "B-7"]).store)
    kinds: dict[PrivacyUnit, int] = {"patient": 2, "record": 8}
    for unit, count in kinds.items():
        assert len(units(made, unit, frozenset({"b-7"}))) == count
        assert len(others.select(unit, others.kept(()), max_tokens=8)) == count
    assert not any(b"B-7" in content for content in files(tmp_path / "others").values())


def test_what_cannot_be_read_keeps_its_place_and_is_nothing() -> None:
    given = [*ROWS, {"patient_id": "a", "text": " "}, {"patient_id": "new", "prompt": QUOTE}]
    made = prepare(given)
    assert [one.position for one in made.quarantine.set_aside] == ["notes, row 13", "notes, row 14"]
    assert made.store.patients == ["a", "B-7", "c c", "new"]
    silent = [[not (one.labels != NO_LOSS).any() for one in unit] for unit in units(made, "record")]
    assert [all(unit) for unit in silent].count(True) == 2
    assert units(made).windows - units(made).learnable == 2
    assert QUOTE not in "".join(made.quarantine.lines())


def test_a_source_of_which_most_cannot_be_laid_out_is_refused_with_the_first_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusal = DataError("notes, row 1: it cannot be", why="it", fix="mend it")
    tokenisation = Tokenisation(tiny_tokenizer())
    monkeypatch.setattr(tokenisation, "layouts", lambda records: [refusal] * len(records))
    with pytest.raises(DataError, match="notes, row 1: it cannot be, and so for most records"):
        prepare(tokenisation=tokenisation)


def test_patients_whose_identifiers_differ_in_spelling_are_one_where_that_is_said() -> None:
    given = [{"patient_id": patient, "text": "well"} for patient in ("A-7", "a-07", "A-7")]
    assert prepare(given, similar="same").store.patients == ["A-7"]
    assert prepare(given, similar="different").store.patients == ["A-7", "a-07"]
    with pytest.raises(DataError, match="differ in spelling alone"):
        prepare(given)


def test_how_many_prompts_lost_their_beginning_is_counted() -> None:
    given = [{"patient_id": "a", "prompt": "p" * size, "completion": "home"} for size in (1, 50, 60)]
    assert prepare(given).cut == 2


def test_a_record_s_contents_are_told_as_the_store_has_them() -> None:
    made = prepare()
    records = [Record(patient_id="x", position="", content=Text(text=row["text"])) for row in ROWS]
    assert sorted(PREPARATION.contents(records)) == sorted(made.store.contents(made.store.kept(())))


def test_a_store_whose_parts_do_not_fit_together_is_damaged_and_no_source_of_noise(tmp_path: Path) -> None:
    prepare(folder=tmp_path / "store")
    for name in ("windows", "spans", "learnt", "records", "units"):
        path = tmp_path / "store" / f"{name}.npy"
        whole = np.load(path)
        lost = [] if name == "spans" else [np.zeros_like(whole), whole[::-1], whole[:-1]]
        for damaged in (whole + 1, *lost):
            np.save(path, damaged)
            with pytest.raises(StorageError, match="damaged or cannot be read"):
                Store.open(tmp_path / "store")
        np.save(path, whole)
    Store.open(tmp_path / "store")


@pytest.mark.parametrize("name", ["tokens.npy", "windows.npy", "units.npy", "patients.json"])
def test_a_store_that_lacks_a_part_or_has_half_of_it_is_damaged(tmp_path: Path, name: str) -> None:
    prepare(folder=tmp_path / "store")
    path = tmp_path / "store" / name
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StorageError, match="damaged or cannot be read"):
        Store.open(tmp_path / "store")
    path.unlink()
    with pytest.raises(StorageError, match="damaged or cannot be read"):
        Store.open(tmp_path / "store")
