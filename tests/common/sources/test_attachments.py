import base64
import gzip
import os
from pathlib import Path
from typing import Any

import pytest
from support.fhir_export import NOTE, SECRET, base64_of, document, export, inline, reasons, report, texts

from grandrounds.common.sources.source import DataSource

CDATA = "a b <left> &amp; c\n]]> d"
LINK = r'{\field{\*\fldinst{ HYPERLINK "x" }}{\fldrslt{link}}}'


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
        (inline('<?xml version="1.0" encoding="utf-16"?><p>Größe</p>', "text/html"), "Größe"),
        (inline('<meta charset="UTF-32LE"><p>well</p> ', "application/xhtml+xml"), "well"),
        (inline("<p>a <![CDATA[b <left> &amp;]]> c<![CDATA[]]></p><p>]]> d <![CDATA[", "text/html"), CDATA),
        (inline("<p>well" + "<![CDATA[" * 200_000, "text/html"), "well"),
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


@pytest.mark.parametrize("other", ["text of another patient", "no fever"])
def test_a_binary_whose_id_another_one_has_is_nobody_s_text_unless_both_are_the_same(
    tmp_path: Path, other: str
) -> None:
    binaries = [{"resourceType": "Binary", "id": "1", **inline(text)} for text in ("no fever", other)]
    of_one = document({"contentType": "text/plain", "url": "https://a.example/fhir/Binary/1"})
    source = export(tmp_path, of_one, binaries[0], binaries[1], document())
    same = other == "no fever"
    assert texts(source) == [("1", "no fever")] * same + [("1", NOTE)]
    assert [what for _, what in reasons(source)] == ["its attachment is a Binary whose id another one has, too"] * (
        not same
    )


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


def test_an_attachment_s_file_that_is_too_long_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grandrounds.common.sources.attachments.LONGEST", 4)
    (tmp_path / "note.txt").write_text("well")
    source = export(tmp_path, document({"contentType": "text/plain", "url": "note.txt"}))
    assert reasons(source) == [("Notes.ndjson, line 1", "its attachment's file is too long")]
