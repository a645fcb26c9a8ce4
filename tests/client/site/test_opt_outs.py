"""Patients who opted out are not read, and nothing tells who or how many they are."""

import logging

import pytest

from grandrounds.client.site import opt_outs
from grandrounds.client.site.opt_outs import without_opted_out
from grandrounds.common.data.records import parse_records
from grandrounds.common.errors import DataError

PATIENT = "Wilhelmina Featherstone"


def records(*patient_ids):
    return parse_records("records", [{"patient_id": patient, "text": "well"} for patient in patient_ids])


@pytest.fixture
def left(tmp_path):
    def patients_left(content, *patient_ids):
        path = tmp_path / "opted-out.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return [record.patient_id for record in without_opted_out(records(*patient_ids), path)]

    return patients_left


def test_every_record_of_a_named_patient_is_left_out_and_the_others_keep_their_order(left):
    assert left("b\n", "a", "b", "c", "b", "a") == ["a", "c", "a"]


@pytest.mark.parametrize(
    "content", ["12\n", " 12\t\r\n", "\ufeff12", "x\r12\ry", "\n\n12", "# of 2026\n12\n#\n", "12\n12"]
)
def test_identifiers_are_compared_without_surrounding_whitespace_as_records_are(left, content):
    assert left(content, 12, "12 ", 12.0, "012", "1", "120") == ["012", "1", "120"]


def test_comparison_is_exact(left):
    assert left("Ab\nA b\n01", "ab", "A  b", "1", "Ab c") == ["ab", "A  b", "1", "Ab c"]


def test_a_patient_whose_identifier_begins_with_a_hash_can_opt_out(left):
    assert left("# a comment\n#12\n", "#12", "12", "#") == ["12", "#"]


@pytest.mark.parametrize("content", ["", "\n", "# nobody\n", "somebody else\n"])
def test_a_list_that_matches_nobody_is_no_error(left, content):
    assert left(content, "a", "b") == ["a", "b"]


def test_everybody_may_opt_out(left):
    assert left("a\nb", "a", "b") == []


@pytest.mark.parametrize(
    "content",
    [PATIENT.encode("utf-16"), PATIENT.encode("utf-16-le"), PATIENT.encode() + b"\xff", f"{PATIENT}\n".encode() * 9],
)
def test_a_list_that_cannot_be_read_whole_stops_the_load_and_is_not_quoted(left, content, monkeypatch):
    monkeypatch.setattr(opt_outs, "MAX_BYTES", 100)
    with pytest.raises(DataError) as refusal:
        left(content, PATIENT)
    told = refusal.value.diagnostics()
    assert "Wilhelmina" not in told
    assert refusal.value.__cause__ is None


def test_a_list_that_is_not_there_stops_the_load(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read \(No such file"):
        without_opted_out(records("a"), tmp_path / "none.txt")
    with pytest.raises(DataError, match="cannot be read"):
        without_opted_out(records("a"), tmp_path)


def test_nothing_is_logged_or_printed(left, caplog, capsys):
    with caplog.at_level(logging.DEBUG):
        left("a\nb\nunmatched\n", "a", "b", "c")
    assert not caplog.records
    assert capsys.readouterr() == ("", "")
