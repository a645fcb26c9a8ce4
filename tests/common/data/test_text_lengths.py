"""How long a site's texts are in tokens, whatever kind of record, however long, and however many."""

import json

import pytest
from support.study.tiny_models import tiny_tokenizer

from grandrounds.common.data import text_lengths
from grandrounds.common.data.records import parse_records
from grandrounds.common.data.text_lengths import TextSample, text_of
from grandrounds.common.data.tokenisation import Tokenisation
from grandrounds.common.errors import ModelError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)  # of bytes: a token a letter
    return folder


def lengths(model, *contents):
    sample = TextSample()
    for record in parse_records("rows", [{"patient_id": "a", **content} for content in contents]):
        sample.add(text_of(record.content))
    return sample.lengths(model)


def test_every_kind_of_record_is_counted_whole_whatever_the_tokenizer_cuts_by_itself(model, tmp_path):
    said = json.loads((model / "tokenizer.json").read_text())
    said["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(said))
    assert lengths(tmp_path, {"text": "x" * 30}).tokens == [30]
    assert lengths(model, {"prompt": "x" * 10, "completion": "y" * 20}).tokens == [31]
    turns = [{"role": "user", "content": "x" * 10}, {"role": "assistant", "content": "y" * 20}]
    assert lengths(model, {"messages": turns}).tokens == [31]


def test_of_very_many_and_very_long_records_a_part_stands_for_the_whole(model, monkeypatch):
    monkeypatch.setattr(text_lengths, "_RECORDS", 10)
    monkeypatch.setattr(text_lengths, "_CHARACTERS", 100)
    found = lengths(model, *({"text": "x" * (400 if number % 2 else 200)} for number in range(55)))
    assert len(found.tokens) == 10
    assert {*found.tokens} == {200, 400}


def test_a_tokenizer_without_a_file_of_its_own_counts_the_same():
    tokenisation = Tokenisation(tiny_tokenizer())
    assert tokenisation.counts(["x" * 30, ""]) == [30, 0]


def test_a_model_without_a_tokenizer_is_a_diagnosis(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        lengths(tmp_path, {"text": "x"})
