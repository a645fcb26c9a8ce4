import csv
import json
import tracemalloc
from pathlib import Path

import pytest

from grandrounds.common.data.records import read_records

# One character outside the first plane: a text that was decoded whole would take four bytes for each of its letters.
NOTE = "Seen on the ward, afebrile, chest clear. " * 40 + "\N{THUMBS UP SIGN}"
NOTES = 300


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_reading_holds_the_records_and_one_line_not_the_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"notes.{ending}"
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerows([["patient_id", "text"]] if ending == "csv" else [])
        for patient in range(NOTES):
            text = NOTE if patient == 3 else NOTE[:-1]
            if ending == "csv":
                rows.writerow([patient, text])
            else:
                file.write(json.dumps({"patient_id": patient, "text": text}, ensure_ascii=False) + "\n")
    tracemalloc.start()
    try:
        assert len(read_records(path)) == NOTES
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * path.stat().st_size
