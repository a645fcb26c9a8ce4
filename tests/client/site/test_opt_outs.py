"""Patients who opted out are not read, and nothing tells who or how many they are."""

import logging

import pytest
from support.fhir_export import document, export, inline, patient
from support.study.tiny_models import tiny_tokenizer

from grandrounds.client.site import opt_outs
from grandrounds.client.site.opt_outs import OptOuts, told_unmatched, without_opted_out
from grandrounds.client.site.site_records import SiteRecords
from grandrounds.common.data.preparation import Preparation
from grandrounds.common.data.records import parse_records, read_records
from grandrounds.common.data.tokenisation import Tokenisation
from grandrounds.common.errors import DataError
from grandrounds.common.sources.identifiers import canonical
from grandrounds.common.sources.rows import OTHER_IDS
from grandrounds.common.sources.source import DataSource

PATIENT = "Wilhelmina Featherstone"


def records(*patient_ids):
    rows = [{"patient_id": patient, "text": "well"} for patient in patient_ids]
    return parse_records("records", rows, similar="different")


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
def test_a_line_means_its_patient_in_whatever_spelling(left, content):
    assert left(content, 12, "12 ", 12.0, "012", "12.0", "1", "120") == ["1", "120"]


@pytest.mark.parametrize(
    "line",
    [
        "A-17 # on 3 May", "A-17#", '"A-17"', "'A-17'", "\u201cA-17\u201d", "A-17,", "A-17;", ",A-17", "a-17",
        "A-017", "A\u201117", "A\u221217", "A-17\u200b", "\uff21-17", "- A-17", "* A-17", "\u2022 A-17", "A-17,3",
        "A-17;Featherstone", "A-17\t3 May", '"A-17","3 May"', "A-17 asked on 3 May", "3 May, A-17", "A-17.0", "A -17",
    ],
)  # fmt: skip
def test_a_remark_quotes_separators_or_another_spelling_do_not_keep_a_patient_in(left, line):
    assert left(f"B-2\n{line}\nB-3\n", "A-17", "B-1", "A-170", "A-1", "17") == ["B-1", "A-170", "A-1", "17"]


@pytest.mark.parametrize(
    ("line", "patient_id"),
    [
        ("HOSP|123  # withdrew", "HOSP|123"), ("HOSP|123;withdrew", "HOSP|123"), ('"HOSP|123","withdrew"', "HOSP|123"),
        ("3 May;HOSP|123", "HOSP|123"), ("HOSP|123 withdrew", "HOSP|123"), ('"Site,7","x"', "Site,7"),
        ("Site,7,withdrew", "Site,7"), ("A 17 withdrew", "A 17"), ("A 17\t2024", "A 17"), ("A#17 # gone", "A#17"),
        ("- HOSP|123;3 May", "HOSP|123"), ("A1 A2", "A2"), ("A1\x0bA2", "A2"), ("A1\x0cA2", "A2"), ("A1\x85A2", "A2"),
        ("A1\u2028A2", "A2"), ("A1 # gone\u2028A2", "A2"), ("# a list\x0bA2", "A2"), ("A1\x0bA2", "A1A2"),
        ("x" * 200_000 + ",A2", "A2"), ("A2;" + "x" * 200_000, "A2"),
    ],
)  # fmt: skip
def test_an_identifier_with_separators_in_it_or_beside_others_is_meant_too(left, line, patient_id):
    assert left(f"B-2\n{line}\n", patient_id, "B-1", "B", "20") == ["B-1", "B", "20"]


def test_words_of_a_remark_mean_nobody(left):
    assert left("A-17 # asked on 3 May\n", "A-17", "3", "May", "asked") == ["3", "May", "asked"]


def test_a_long_list_in_one_line_is_read_whole(left):
    everybody = [f"N-{number}x" for number in range(20_000)]
    assert left(",".join(everybody), *everybody[::100], "b") == ["b"]


def test_rather_one_too_many_is_left_out_than_one_too_few(left):
    assert left("a-7", "A-7", "a-07", "b") == ["b"], "though a site may say that these are different patients"
    assert left("12, 13", "12", "13", "14") == ["14"]


def test_whom_a_comment_names_stays_in(left):
    assert left("# 12 has changed her mind, 13\n  # 14\n15", "12", "13", "14", "15") == ["12", "13", "14"]


def test_lines_that_match_nobody_are_told_by_number_and_nothing_else(tmp_path):
    path = tmp_path / "opted-out.txt"
    path.write_text(f"patient_id\n\n# a list\n7 # asked\n{PATIENT}\n008\n9,\n")
    listed = OptOuts.read(path)
    assert (listed.count, listed.unmatched(["7", "8", "10"])) == (5, [1, 5, 7])
    (told,) = told_unmatched(listed.count, listed.unmatched(["7", "8", "10"]))
    assert "3 of the opt-outs' 5 lines match no patient of the records (line 1, 5, 7)" in told
    assert "Wilhelmina" not in told
    assert list(told_unmatched(0, [])) == []


def test_a_patient_whose_identifier_begins_with_a_hash_can_opt_out(left):
    assert left("# a comment\n#12\n", "#12", "12", "#3") == ["12", "#3"]


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


def crosswalk(tmp_path):
    """Notes of 1, 2 and 3, of whom 1 and 2 are the patient P, as is 9, of whom there is no note."""
    (tmp_path / "notes.csv").write_text("patient_id,text\n1,seen\n2,well\n3,home\n")
    (tmp_path / "walk.csv").write_text("from,to\n1,P\n2,P\n9,P\n")
    return DataSource(files=(tmp_path / "notes.csv",), crosswalk=tmp_path / "walk.csv")


def linked(tmp_path):
    """The same as an export of FHIR, in which 1 was replaced by P, and so on."""
    links = [patient(old, ("replaced-by", "Patient/P")) for old in "129"]
    said = (("1", "seen"), ("2", "well"), ("3", "home"))
    notes = [document(inline(text), subject={"reference": f"Patient/{one}"}) for one, text in said]
    return export(tmp_path / "export", *links, *notes)


def linked_beside_a_crosswalk(tmp_path):
    """The same, with a crosswalk that has a line of somebody else."""
    (tmp_path / "walk.csv").write_text("from,to\n4,5\n")
    return linked(tmp_path).model_copy(update={"crosswalk": tmp_path / "walk.csv"})


@pytest.mark.parametrize("source_of", [crosswalk, linked, linked_beside_a_crosswalk])
@pytest.mark.parametrize("line", ["1", "002", "9", "p"])
def test_who_opted_out_by_any_identifier_of_theirs_is_left_out(tmp_path, source_of, line):
    source = source_of(tmp_path)
    (tmp_path / "opted-out.txt").write_text(f"{line}\nnobody\n")
    prepared = Preparation(tokenisation=Tokenisation(tiny_tokenizer()), max_tokens=8).of_source(source)
    found = SiteRecords.of(prepared, tmp_path / "opted-out.txt")
    assert prepared.store.patients == ["3", "P"] and found.patients == ["3"]
    assert found.unmatched == [2]
    left = without_opted_out(read_records(source), tmp_path / "opted-out.txt")
    assert [record.patient_id for record in left] == ["3"]


def test_all_that_a_patient_is_known_by_belongs_to_one_budget(tmp_path):
    prepared = Preparation(tokenisation=Tokenisation(tiny_tokenizer()), max_tokens=8).of_source(crosswalk(tmp_path))
    known = set(map(canonical, SiteRecords.of(prepared, None).identifiers))
    assert known == set(map(canonical, ["1", "2", "3", "9", "P"]))


def test_what_one_spelling_of_a_patient_is_known_by_leaves_out_the_records_of_all(tmp_path):
    rows: list[dict[str, object]] = [{"patient_id": "B7", "text": "seen"}, {"patient_id": "b7", "text": "well"}]
    rows[0][OTHER_IDS] = ("A1",)
    (tmp_path / "opted-out.txt").write_text("A1\n")
    assert not without_opted_out(parse_records("records", rows, similar="same"), tmp_path / "opted-out.txt")
    left = without_opted_out(parse_records("records", rows, similar="different"), tmp_path / "opted-out.txt")
    assert [record.patient_id for record in left] == ["b7"]
