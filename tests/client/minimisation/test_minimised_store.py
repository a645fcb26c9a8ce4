"""Records are minimised on their way into a store, which holds what is left of those that count."""

import hmac
from functools import partial

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from grandrounds.client.minimisation.minimiser import Minimiser
from grandrounds.client.minimisation.rules import Minimisation
from grandrounds.common.data import preparation as module
from grandrounds.common.data.preparation import Preparation
from grandrounds.common.data.records import named_rows
from grandrounds.common.data.tokenisation import Tokenisation
from grandrounds.common.errors import DataError
from grandrounds.common.schema import validated


def byte_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZER = byte_tokenizer()


def prepared(pairs, folder=None, **rules):
    minimiser = Minimiser(validated(Minimisation, rules), partial(hmac.digest, b"\1" * 32, digest="sha256"))
    preparation = Preparation(
        tokenisation=Tokenisation(TOKENIZER), max_tokens=64, minimise=minimiser, keep=minimiser.keep
    )
    rows = [{"patient_id": patient, "text": text} for patient, text in pairs]
    return preparation.of_rows("notes", named_rows("notes", rows), folder)


def said(store):
    """What each patient's records say, in the store's order."""
    contents = store.contents(np.arange(len(store.patients)))
    texts = [TOKENIZER.decode(np.frombuffer(one, dtype=np.uint16)) for one in contents]
    return {
        patient: texts[store.units[number] : store.units[number + 1]] for number, patient in enumerate(store.patients)
    }


PAIRS = [("a", "MRN 123456"), ("b", "well"), ("a", "MRN 654321"), ("a", "pain"), ("c", "pain"), ("c", "fever")]


@pytest.mark.parametrize("in_folder", [False, True])
def test_a_store_holds_what_rules_leave_of_the_records_that_count(tmp_path, in_folder):
    rules = {"numbers": True, "duplicates": "once", "records_per_patient": {"least": 2}}
    store = prepared(PAIRS, tmp_path if in_folder else None, **rules).store
    assert {patient: sorted(texts) for patient, texts in said(store).items()} == {
        "a": ["MRN [NUMBER]", "pain"],
        "c": ["fever", "pain"],
    }
    assert said(prepared(PAIRS[::-1], **rules).store) == said(store)


def test_others_records_change_nothing_of_a_patient_s():
    rules = {"near_duplicates": 0.9, "records_per_patient": {"most": 2}, "shift_dates": True}
    alone = [("a", f"seen 2024-03-0{day}, and then {day}") for day in range(1, 7)]
    assert len(said(prepared(alone, **rules).store)["a"]) == 2
    assert said(prepared([*PAIRS[4:], *alone], **rules).store)["a"] == said(prepared(alone, **rules).store)["a"]


def test_near_duplicates_are_found_wherever_they_were_kept_meanwhile(tmp_path, monkeypatch):
    long = "the patient was admitted with pain, and discharged well after three days of rest and little else"
    pairs = [("a", long), ("b", long), ("a", "fever"), ("a", f"{long}."), ("b", f"{long}!"), ("c", long), ("b", "pain")]
    whole = said(prepared(pairs, near_duplicates=0.8).store)
    assert {patient: len(texts) for patient, texts in whole.items()} == {"a": 2, "b": 2, "c": 1}
    monkeypatch.setattr(module, "_SHARD", 2)
    assert said(prepared(pairs, tmp_path, near_duplicates=0.8).store) == whole


def test_a_record_that_nothing_is_left_of_keeps_its_place_and_is_listed_with_the_reason():
    rules = {"replace": [{"pattern": "gone", "with": ""}]}
    found = prepared([("b", "gone"), ("b", "well"), ("b", "well"), ("c", "well")], **rules)
    assert [(one.position, one.reason) for one in found.quarantine.set_aside] == [
        ("notes, row 1", "nothing is left of it after minimisation")
    ]
    assert said(found.store) == {"b": ["", "well", "well"], "c": ["well"]}
    once = prepared([("b", "gone"), ("b", "well"), ("b", "well")], duplicates="once", **rules)
    assert said(once.store) == {"b": ["", "well"]}


def test_rules_that_leave_nobody_are_refused():
    with pytest.raises(DataError, match="no patient has as many records as the policy asks for"):
        prepared(PAIRS, records_per_patient={"least": 4})
