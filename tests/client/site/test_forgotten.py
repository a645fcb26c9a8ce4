"""Who opted out is forgotten: nothing of them is left where records are prepared, and their opt-outs still match."""

import json

import numpy as np
import pytest
from support.study.tiny_models import save_tiny_model

from grandrounds.client.budget.patients import FingerprintKey
from grandrounds.client.site.folder import SiteSettings
from grandrounds.client.site.forgotten import Forgotten, forget
from grandrounds.client.site.opt_outs import OptOuts
from grandrounds.client.site.prepared import FOUND, PreparedRecords, places, remove, rewritten
from grandrounds.client.site.site_records import SiteRecords
from grandrounds.common.errors import StorageError
from grandrounds.common.study.study import DataSection

SECRETS = {"Featherstone-17": "ate a zebra", "b": "is well", "c": "sleeps"}
READ = (DataSection(max_tokens=8), DataSection(max_tokens=16))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))  # whose tokenizer is of bytes: a token a letter


@pytest.fixture
def key(tmp_path):
    FingerprintKey.make(tmp_path / "key")
    return FingerprintKey.read(tmp_path / "key")


@pytest.fixture
def settings(model, tmp_path):
    rows = [{"patient_id": patient, "text": text} for patient, text in SECRETS.items()]
    (tmp_path / "notes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return SiteSettings(name="n", data=tmp_path / "notes.jsonl", model=model)


def records(folder, settings):
    return PreparedRecords(folder=folder, settings=settings, minimiser=None)


@pytest.fixture
def folder(settings, tmp_path):
    for data in READ:
        records(tmp_path / "prepared", settings).open(data)
    return tmp_path / "prepared"


@pytest.fixture
def opt_outs(tmp_path):
    (tmp_path / "out.txt").write_text("b\nfeatherstone-017\nnobody\n")
    return OptOuts.read(tmp_path / "out.txt")


def everything(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_nothing_of_who_opted_out_is_left_whichever_study_their_records_were_prepared_for(
    folder, settings, opt_outs, key, tmp_path
):
    stores = [records(folder, settings).open(data).store for data in READ]
    of_zebra = [next(store.contents(np.array([store.patients.index("Featherstone-17")]))) for store in stores]
    whole = [tokens[2 * len("ate a ") :] for tokens in of_zebra]
    assert all(tokens in everything(folder) for tokens in whole) and b"Featherstone-17" in everything(folder)
    (places(folder)[0] / "unordered").mkdir()
    assert forget(folder, opt_outs, key) == (2, [3])
    assert not any(tokens in everything(folder) for tokens in whole)
    assert b"eatherstone" not in everything(folder)
    for data, before in zip(READ, stores, strict=True):
        left = records(folder, settings).open(data).store
        assert left.patients == ["c"]
        assert [*left.contents(np.array([0]))] == [*before.contents(np.array([before.patients.index("c")]))]
        assert before.patients == ["b", "c", "Featherstone-17"], "and who has them mapped can still read them"
    assert len({path.stat().st_mode & 0o77 for path in folder.rglob("*")}) == 1, "for the owner alone"
    assert forget(folder, opt_outs, key) == (0, [3]), "done again, it finds nobody, and means the same"


def test_whose_records_are_forgotten_is_no_longer_said_to_match_nobody(folder, settings, opt_outs, key, tmp_path):
    forget(folder, opt_outs, key)
    found = records(folder, settings).open(READ[0])
    assert SiteRecords.of(found, tmp_path / "out.txt").unmatched == [1, 2, 3]
    assert SiteRecords.of(found, tmp_path / "out.txt", Forgotten.read(folder, key)).unmatched == [3]
    (folder / "forgotten.json").write_text("{")
    with pytest.raises(StorageError, match=r"forgotten\.json is damaged"):
        Forgotten.read(folder, key)


def test_what_an_interrupted_preparation_or_rewriting_left_is_not_kept(folder, settings, opt_outs, key):
    first, second = places(folder)
    (first / FOUND).unlink()
    rewritten(second).mkdir()
    (rewritten(second) / "tokens.npy").write_bytes(b"Featherstone-17")
    assert forget(folder, opt_outs, key) == (2, [3])
    assert places(folder) == [second] and not rewritten(second).exists()
    rewritten(first).mkdir()  # where one was interrupted between the two renames
    for place in places(folder):
        remove(place)
    assert not [path for path in folder.iterdir() if path.is_dir()]


def test_everybody_may_be_forgotten_and_what_no_study_reads_is_removed(folder, settings, key, tmp_path):
    assert records(folder, settings).remove_others(READ[:1]) == 1
    assert [records(folder, settings).has(data) for data in READ] == [True, False]
    (tmp_path / "out.txt").write_text("\n".join(SECRETS))
    assert forget(folder, OptOuts.read(tmp_path / "out.txt"), key) == (3, [])
    assert places(folder) == []
