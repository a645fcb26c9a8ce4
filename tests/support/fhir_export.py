"""Resources of FHIR, an export of some, and what is read of it."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grandrounds.common.sources.rows import Malformed
from grandrounds.common.sources.source import DataSource, read_rows

NOTE = "Größe 1,80 m; Temp. 37.5 °C\n\tno fever"
SECRET = "Zarathustra"  # noqa: S105


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
