import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fhir_export import NOTE, SECRET, document, export, inline, patient, reasons, report, section, texts

from grandrounds.common.data.records import read_records
from grandrounds.common.errors import DataError
from grandrounds.common.sources.fhir_references import one_identifier
from grandrounds.common.sources.identifiers import Similar, canonical
from grandrounds.common.sources.rows import Malformed
from grandrounds.common.sources.source import DataSource, read_rows


def test_a_report_is_its_presented_form_or_else_its_conclusion_and_results_alone_are_no_note(tmp_path: Path) -> None:
    source = export(
        tmp_path, report(presentedForm=[inline()], conclusion="x"), report(conclusion="clear"), report(result=[{}])
    )
    assert texts(source) == [("2", NOTE), ("2", "clear")]
    assert reasons(source) == []


def test_a_composition_is_its_sections_with_titles_in_their_order_or_else_its_own_narrative(tmp_path: Path) -> None:
    composition = {**report(), "resourceType": "Composition", "title": "Summary"}
    outer = section("History", "", section("Past", "<p>asthma</p>"), section("Family", "none"))
    source = export(
        tmp_path,
        {**composition, "section": [section("Reason", "cough"), outer, section("Data", "")]},
        {**composition, "section": [section("Data", "")], "text": section("", "whole")["text"]},
        composition,
    )
    assert texts(source) == [("2", "Reason\ncough\n\nHistory\n\nPast\nasthma\n\nFamily\nnone"), ("2", "whole")]


@pytest.mark.parametrize(
    ("fhir", "read"),
    [
        ({}, "current final amended"),
        ({"status": ["superseded", "current"]}, "current superseded"),
        ({"status": ["current", "preliminary"]}, "current preliminary"),
        ({"resources": ["DiagnosticReport"]}, "amended"),
        ({"types": ["18842-5"]}, "amended"),
        ({"types": ["http://loinc.org|18842-5", "PROGRESS note"]}, "amended final"),
        ({"types": ["discharge summary"]}, "amended"),
    ],
)
def test_status_resources_and_types_say_which_notes_are_read(tmp_path: Path, fhir: dict[str, Any], read: str) -> None:
    def noted(status: str, doc_status: str = "", **others: Any) -> dict[str, Any]:
        return document(inline(doc_status or status), status=status, docStatus=doc_status or None, **others)

    source = export(
        tmp_path,
        noted("current"),
        noted("current", "final", category=[{"text": "Progress Note"}]),
        noted("superseded"),
        noted("current", "preliminary"),
        noted("current", "entered-in-error"),
        noted("entered-in-error"),
        report(status="amended", conclusion="amended"),
        report(status="cancelled", conclusion="cancelled"),
        {"resourceType": "Observation", "status": "final"},
        **fhir,
    )
    assert sorted(str(text) for _, text in texts(source)) == sorted(read.split())
    assert reasons(source) == []


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({"fhir": {"status": ["entered-in-error"]}}, "status"),  # of which nothing may be learnt
        ({"fhir": {}, "format": "csv"}, "format: "),
        ({"format": "fhir", "text": "note"}, "text: .*no columns"),
    ],
)
def test_settings_that_no_export_can_have_are_refused(described: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DataSource.model_validate({"files": ("export",), **described})


def test_an_export_of_which_nothing_is_asked_for_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    source = export(tmp_path / "export", {"resourceType": "Observation"}, document(status="superseded"), report())
    with pytest.raises(DataError, match="export: it holds no note that is asked for") as refused:
        read_records(source)
    for told in ("1 of another resourceType", "1 with another status", "1 without a text"):
        assert told in refused.value.what


def test_of_bundles_it_is_told_what_is_read_instead(tmp_path: Path) -> None:
    (tmp_path / "patient.json").write_text("{}")
    with pytest.raises(DataError, match="no file of a known kind") as refused:
        DataSource(files=(tmp_path,), format="fhir").found()
    assert refused.value.fix == "known are .jsonl, .ndjson"
    with pytest.raises(DataError) as refused:
        read_records(export(tmp_path, {"resourceType": "Bundle", "entry": [{"resource": document()}]}))
    assert "of a Bundle, write the resources" in refused.value.fix


def test_an_export_is_known_by_its_first_resource_or_refused_with_how_to_say_that_it_is_one(tmp_path: Path) -> None:
    export(tmp_path, document())
    (tmp_path / "README.csv").write_text("about the export")
    assert texts(DataSource(files=(tmp_path,))) == [("1", NOTE)]
    (tmp_path / "Notes.ndjson").rename(tmp_path / "notes.jsonl")
    with pytest.raises(DataError, match=r"notes.jsonl, line 1: is a resource of FHIR") as refused:
        read_records(tmp_path / "notes.jsonl")
    assert 'format = "fhir"' in refused.value.fix


@pytest.mark.parametrize("kind", ["replaced-by", "replaces", "refer", "seealso"])
@pytest.mark.parametrize("order", [1, -1])
def test_patients_who_are_linked_are_one_wherever_the_link_stands(tmp_path: Path, kind: str, order: int) -> None:
    linked = patient("1", (kind, "https://ehr.example/Patient/2"), ("refer", "RelatedPerson/3"))
    of_uuid = patient("9", ("seealso", "urn:uuid:2"))
    notes = [document(subject={"reference": f"Patient/{number}"}) for number in (1, 2, 3, 9)]
    found = texts(export(tmp_path / "export", *[linked, *notes, of_uuid][::order]))
    own = "2" if kind == "replaced-by" else "1"
    assert [identifier for identifier, _ in found] == [own, own, "3", own][::order]


def test_a_crosswalk_says_whose_the_linked_identifiers_are(tmp_path: Path) -> None:
    notes = [document(subject={"reference": f"Patient/{number}"}) for number in (1, 2, 5, 7)]
    source = export(tmp_path / "export", patient("1", ("seealso", "Patient/2")), *notes)
    (tmp_path / "crosswalk.csv").write_text("from,to\n2,0\n5,0\n")
    found = texts(source.model_copy(update={"crosswalk": tmp_path / "crosswalk.csv"}))
    assert [identifier for identifier, _ in found] == ["0", "0", "0", "7"]


@pytest.mark.parametrize(("similar", "joined"), [(None, True), ("same", True), ("different", False)])
def test_links_join_identifiers_in_any_spelling_unless_these_are_different_patients(
    tmp_path: Path, similar: Similar | None, joined: bool
) -> None:
    notes = [document(subject={"reference": f"Patient/{one}"}) for one in ("0A", "0c5f", "b7")]
    links = patient("0A", ("seealso", "urn:uuid:0C5F")), patient("B7", ("replaces", "Patient/a1"))
    records = read_records(export(tmp_path / "export", *links, *notes), similar=similar)
    found = [record.patient_id for record in records]
    assert found == (["0A", "0A", "B7"] if joined else ["0A", "0c5f", "b7"])
    assert {*map(canonical, records[2].other_ids)} == ({"b7", "a1"} if joined else set())


@given(st.lists(st.tuples(*[st.sampled_from("abcdefg")] * 2, st.sampled_from(["refer", "replaced-by"]))), st.randoms())
@settings(max_examples=50)
def test_links_join_what_is_connected_and_nothing_else_in_whatever_order(links: Any, random: Any) -> None:
    connected = {one: {one} for pair in links for one in pair[:2]}
    for _ in connected:
        for one, other, _ in links:
            connected[one] = connected[other] = connected[one] | connected[other]
    found = one_identifier(links)
    assert {one: {other for other in found if found[other] == found[one]} for one in found} == connected
    random.shuffle(links)
    assert one_identifier(links) == found


@pytest.mark.parametrize(
    "line",
    [
        '{"resourceType": "Patient", "id": "1", "link": [{"other": {"display": "Zarathustra"}}]}',
        '{"resourceType": "Patient", "link": [{"other": {"reference": "Patient/Zarathustra"}}]}',
        '{"id": "1", "resourceType": "Patient", "link": ["Zarathustra"]}',
        '{"resourceType": "Patient", "id": "1", "link": [{"other": {"reference": "Patient/Zara',
    ],
)
def test_a_link_that_does_not_say_who_is_linked_is_refused(tmp_path: Path, line: str) -> None:
    source = export(tmp_path, document())
    (tmp_path / "Patient.ndjson").write_text(line)
    with pytest.raises(DataError, match=r"Patient.ndjson, line 1: ") as refused:
        read_records(source)
    assert SECRET not in refused.value.diagnostics()
    assert refused.value.__suppress_context__


def test_a_compressed_export_is_the_same(tmp_path: Path) -> None:
    source = export(tmp_path, patient("1", ("seealso", "Patient/0")), document())
    found = texts(source)
    (tmp_path / "Notes.ndjson.gz").write_bytes(gzip.compress((tmp_path / "Notes.ndjson").read_bytes()))
    (tmp_path / "Notes.ndjson").unlink()
    assert texts(source) == found == [("0", NOTE)]


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each list or object in the value, with each index or key of it."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places_in(value[key])


WRONG = [None, True, 7, SECRET, "", f"{SECRET}/1", [SECRET], [None], {SECRET: SECRET}, [{"x": SECRET}]]
VALUES = st.sampled_from([json.dumps(value) for value in WRONG]).map(json.loads)


@given(st.data())
@settings(max_examples=40)
def test_whatever_stands_anywhere_in_a_resource_nothing_but_a_refusal_comes_of_it_and_no_word_of_it_is_told(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = {"contentType": "text/plain; charset=utf-8", "url": f"notes/{SECRET}"}
    resource = data.draw(
        st.sampled_from(
            [
                document(inline(), inline("<p>x", "text/html"), file, type={"coding": [{"code": "x"}]}, category=[{}]),
                report(presentedForm=[inline(r"{\rtf1 x}", "text/rtf")], conclusion=SECRET),
                {
                    **report(),
                    "resourceType": "Composition",
                    "section": [section("Zarathustra", "x", section("b", "y"))],
                },
                patient("1", ("seealso", "Patient/2")),
                {"resourceType": "Binary", "id": "1", **inline()},
            ]
        )
    )
    line = json.dumps(resource)
    resource = json.loads(line)
    for _ in range(data.draw(st.integers(0, 2))):
        parent, key = data.draw(st.sampled_from(list(places_in(resource))))
        parent[key] = data.draw(VALUES)
    line = json.dumps(resource)
    if data.draw(st.booleans()):
        line = line[: data.draw(st.integers(1, len(line)))] + data.draw(st.sampled_from(["", "\udcff", "}", '"}]}']))
    folder = tmp_path_factory.getbasetemp() / "mutated"
    source = export(
        folder,
        document({"contentType": "text/plain", "url": "Binary/1"}),
        types=["x", "18842-5"] if data.draw(st.booleans()) else [],
    )
    (folder / "mutated.ndjson").write_bytes(line.encode("utf-8", "surrogateescape"))
    try:
        said = [row.what + row.fix for _, row in read_rows(source) if isinstance(row, Malformed)]
    except DataError as error:
        assert error.__suppress_context__
        said = [error.diagnostics()]
    assert SECRET not in "".join(said)


def test_a_line_that_does_not_end_is_refused_before_all_of_it_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grandrounds.common.sources.fhir.LONGEST", 1 << 10)
    (tmp_path / "Notes.ndjson.gz").write_bytes(gzip.compress(json.dumps(document()).encode() + b"\n" + bytes(1 << 20)))
    with pytest.raises(DataError, match="line 2: is too long"):
        texts(DataSource.model_validate({"files": (tmp_path,), "format": "fhir"}))
