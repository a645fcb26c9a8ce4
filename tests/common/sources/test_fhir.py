import base64
import gzip
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grandrounds.common.data.records import read_records
from grandrounds.common.errors import DataError
from grandrounds.common.sources.fhir_references import one_identifier
from grandrounds.common.sources.rows import Malformed
from grandrounds.common.sources.source import DataSource, read_rows

NOTE = "Größe 1,80 m; Temp. 37.5 °C\n\tno fever"
SECRET = "Zarathustra"  # noqa: S105

LINK = r'{\field{\*\fldinst{ HYPERLINK "x" }}{\fldrslt{link}}}'


def base64_of(content: bytes, times: int = 1) -> str:
    for _ in range(times):
        content = base64.b64encode(content)
    return content.decode()


def inline(text: str = NOTE, content_type: str = "text/plain", encoding: str = "utf-8") -> dict[str, Any]:
    return {"contentType": content_type, "data": base64_of(text.encode(encoding))}


def document(*attachments: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    return {
        "resourceType": "DocumentReference",
        "status": "current",
        "subject": {"reference": "Patient/1"},
        "content": [{"attachment": attachment} for attachment in attachments or [inline()]],
        **others,
    }


def report(**others: Any) -> dict[str, Any]:
    return {
        "resourceType": "DiagnosticReport",
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "18842-5", "display": "Discharge summary"}]},
        "subject": {"reference": "https://ehr.example/fhir/Patient/2/_history/7"},
        **others,
    }


def section(title: str, text: str, *inner: object) -> dict[str, Any]:
    div = f'<div xmlns="http://www.w3.org/1999/xhtml">{text}</div>'
    return {"title": title, "text": {"status": "generated", "div": div} if text else None, "section": [*inner]}


def patient(identifier: str, *links: tuple[str, str]) -> dict[str, Any]:
    linked = [{"type": kind, "other": {"reference": other}} for kind, other in links]
    return {"resourceType": "Patient", "id": identifier, "link": linked}


def export(folder: Path, *resources: object, **fhir: Any) -> DataSource:
    folder.mkdir(exist_ok=True)
    (folder / "Notes.ndjson").write_text("\n".join(map(json.dumps, resources)), encoding="utf-8")
    return DataSource.model_validate({"files": (folder,), "format": "fhir", "fhir": fhir})


def texts(source: DataSource) -> list[tuple[object, object]]:
    return [(row["patient_id"], row["text"]) for _, row in read_rows(source) if not isinstance(row, Malformed)]


def reasons(source: DataSource) -> list[tuple[str, str]]:
    return [(place, row.what) for place, row in read_rows(source) if isinstance(row, Malformed)]


@pytest.mark.parametrize(
    ("attachment", "text"),
    [
        (inline(), NOTE),
        (inline("\ufeff" + NOTE), NOTE),
        (inline(content_type='Text/Plain; charset="ISO-8859-1"', encoding="latin-1"), NOTE),
        ({"contentType": "text/plain", "data": base64_of(NOTE.encode(), times=2)}, NOTE),
        ({"contentType": "text/plain", "data": base64.encodebytes(b"long " * 40).decode()}, "long " * 40),
        (inline("Pseudohypoparathyroidism"), "Pseudohypoparathyroidism"),  # which is base64, too, of no text
        ({"contentType": "text/plain", "url": "notes/a%20b.txt"}, NOTE),
        ({"contentType": "text/plain", "url": "notes/once.b64"}, NOTE),
        ({"contentType": "text/plain", "url": "notes/twice.b64"}, NOTE),
        (inline("<p>Größe&nbsp;1</p><ul><li>a &lt; b<li>c<br/>d</ul>", "text/html"), "Größe 1\na < b\nc\nd"),
        (inline('<meta charset="cp1252"><b>Grö</b>ße', "text/html", "cp1252"), "Größe"),
        (
            inline("<table><tr>\n <td>Na</td>\n <td>140<tr><td><td>1</table><pre>a\n  b</pre>", "text/html"),
            "Na\t140\n\t1\na\n  b",
        ),
        (inline("<title>x</title><style>y</style><div>  a\n b </div>", "application/xhtml+xml"), "a b"),
        (inline(r"{\rtf1\ansi\ansicpg1252 Gr\'f6\u223?e\par {\b fever}\par}", "application/rtf"), "Größe\nfever"),
        (inline(r"{\rtf1 \u-10179?\u-8704?}", "text/rtf"), "\N{GRINNING FACE}"),
        (inline(r"{\rtf1 a; b\par " + LINK * 1000 + "}", "text/rtf"), "a; b\n" + "link" * 1000),
        (inline("<p>" + "x" * 10_100_000, "text/html"), "x" * 10_100_000),
    ],
)
def test_an_attachment_is_its_text_inline_or_in_a_file_plain_or_marked_up(
    tmp_path: Path, attachment: dict[str, Any], text: str
) -> None:
    files = tmp_path / "export" / "notes"
    files.mkdir(parents=True)
    (files / "a b.txt").write_text(NOTE, encoding="utf-8", newline="")
    for times, name in ((1, "once.b64"), (2, "twice.b64")):
        (files / name).write_text(base64_of(NOTE.encode(), times))
    assert texts(export(tmp_path / "export", document(attachment))) == [("1", text)]


def test_an_attachment_may_be_a_binary_of_the_export_wherever_it_stands(tmp_path: Path) -> None:
    def binary(number: int, data: str) -> dict[str, str]:
        return {"resourceType": "Binary", "id": str(number), "contentType": "text/plain", "data": data}

    urls = ["Binary/1", "https://ehr.example/fhir/Binary/2/_history/1", "Binary/3", "Binary/4"]
    documents = [document({"contentType": "text/plain; charset=latin-1", "url": url}) for url in urls]
    binaries = [
        binary(2, base64_of("Größe".encode("latin-1"))),
        binary(1, base64_of(b"no fever, no pain", 2)),
        binary(3, "?"),
    ]
    source = export(tmp_path, binaries[0], *documents, *binaries[1:])
    assert texts(source) == [("1", "no fever, no pain"), ("1", "Größe")]
    assert [place_and_reason[0] for place_and_reason in reasons(source)] == [
        "Notes.ndjson, line 4",
        "Notes.ndjson, line 5",
    ]
    (tmp_path / "Notes.ndjson.gz").write_bytes(gzip.compress((tmp_path / "Notes.ndjson").read_bytes()))
    (tmp_path / "Notes.ndjson").unlink()
    assert reasons(source)[0][1] == "its attachment is a Binary in a compressed file"


def test_a_document_in_several_formats_is_one_note_of_the_best_that_can_be_read(tmp_path: Path) -> None:
    rtf, html, pdf = inline(r"{\rtf1 rtf}", "text/rtf"), inline("html", "text/html"), inline("", "application/pdf")
    broken = {"contentType": "text/plain", "data": "?"}
    source = export(
        tmp_path,
        document(pdf, rtf, html, inline("plain")),
        document(pdf, rtf, html),
        document(rtf, broken, inline(" "), pdf),
    )
    assert texts(source) == [("1", "plain"), ("1", "html"), ("1", "rtf")]


def test_what_states_no_encoding_has_that_of_the_source(tmp_path: Path) -> None:
    source = export(tmp_path, document(inline(encoding="cp1252")))
    assert texts(source.model_copy(update={"encoding": "cp1252"})) == [("1", NOTE)]
    assert reasons(source) == [("Notes.ndjson, line 1", "its attachment is not in the encoding that it says, or none")]


@pytest.mark.parametrize(
    ("resource", "reason"),
    [
        (document({"contentType": f"application/{SECRET}", "data": "eA=="}), "is of a type that is not read"),
        (document({"contentType": "application/pdf", "data": "eA=="}), "is application/pdf"),
        (document({"data": "eA=="}), "is of no type"),
        (document({"contentType": "text/plain", "data": SECRET + "?"}), "data is not base64"),
        (document(inline("<br>", "text/html")), "holds no text"),
        (document({"contentType": "text/plain"}), "neither data nor url"),
        (document(inline(SECRET, "text/rtf")), "is not the RTF"),
        (document(inline(r"{\rtf1{\fonttbl{\f0\fcharset0 " + SECRET * 9000, "text/rtf")), "is not the RTF"),
        (document(inline(r"{\rtf1{\fonttbl{\f0\fcharset" + "9" * 9000, "text/rtf")), "is not the RTF"),
        (document(inline(r"{\rtf1 \u99999999999 }" + SECRET, "text/rtf")), "is not the RTF"),
        (document(inline(content_type=f"text/plain; charset={SECRET}")), "encoding that it says"),
        (document({"contentType": "text/plain", "url": f"https://ehr.example/{SECRET}"}), "lies on a server"),
        (document({"contentType": "text/plain", "url": f"http://[{SECRET}"}), "cannot be read"),
        (document({"contentType": "text/plain", "url": f"Binary/{SECRET}"}), "is not there"),
        (document({"contentType": "text/plain", "url": "x" * 5000}), "cannot be read"),
        (document({"contentType": "text/plain", "url": "a%00b"}), "cannot be read"),
        (document({"contentType": "text/plain", "url": "loop"}), "cannot be read"),
        (document({"contentType": "text/plain", "url": "pipe"}), "is not there"),
        (document({"contentType": "text/plain", "url": "../outside.txt"}), "is outside"),
        (document({"contentType": "text/plain", "url": "link"}), "is outside"),
        (document({"contentType": "text/plain", "url": "/etc/hostname"}), "is outside"),
        (document({"contentType": "text/plain", "url": "file:///etc/hostname"}), "is outside"),
        (document(subject=None), "has no subject"),
        (document(subject={"reference": f"Group/{SECRET}"}), "no reference to a patient"),
        (document(subject={"reference": "urn:uuid:1", "type": "Group"}), "no reference to a patient"),
        (document(subject={"reference": "#1"}), "no reference to a patient"),
        (document(subject={"reference": "urn:uuid:"}), "no reference to a patient"),
        (document(subject={"reference": "Patient/"}), "no reference to a patient"),
        (document(subject={"identifier": {"value": SECRET}}), "no reference to a patient"),
        (document(subject=SECRET), "its subject is not an object"),
        (document(content=[SECRET]), "its content is not a list of objects"),
        (document(content=[]), "has no content"),
        (document(status=None), "has no status"),
        (document(status=[SECRET]), "its status is not text"),
        ([SECRET], "is not a JSON object"),
    ],
)
def test_a_resource_that_cannot_be_used_is_set_aside_with_its_line_and_the_reason_and_no_word_of_it(
    tmp_path: Path, resource: object, reason: str
) -> None:
    folder = tmp_path / "export"
    source = export(folder, document(), resource, document())
    (tmp_path / "outside.txt").write_text(SECRET)
    (folder / "link").symlink_to(tmp_path / "outside.txt")
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    assert len(texts(source)) == 2
    [(place, said)] = reasons(source)
    assert place == "Notes.ndjson, line 2"
    assert reason in said
    assert SECRET not in said


def test_documents_of_a_type_that_is_left_out_are_no_records(tmp_path: Path) -> None:
    pdf, scan = ({"contentType": kind, "data": "eA=="} for kind in ("application/pdf", "image/tiff"))
    resources = (document(pdf, scan), document(pdf, inline()), report(presentedForm=[pdf], conclusion="clear"))
    source = export(tmp_path, *resources, leave_out=["Application/PDF", "image/*"])
    assert texts(source) == [("1", NOTE), ("2", "clear")]
    assert reasons(source) == []


def test_files_of_attachments_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.txt").write_text("well")
    relative = {"files": ("export",), "fhir": {"attachments": "files"}}
    export(tmp_path / "export", document({"contentType": "text/plain", "url": "a.txt"}))
    source = DataSource.model_validate(relative).below(tmp_path)
    assert texts(source) == [("1", "well")]
    assert source.paths == (tmp_path / "export", tmp_path / "files")


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
