"""Fine-tune on your own data: python own_data.py [FOLDER]; the study's results are left in FOLDER/study."""

import json
import sys
import tempfile
from pathlib import Path

from grandrounds import Study, simulate

SITES = ("north", "south", "west")


def write_notes(path: Path, patients: int, said: str = "Patient {} feels better.") -> None:
    """Stands in for your own files: a record a line, with the patient it is of and its text (or CSV, or Parquet)."""
    records = [{"patient_id": f"{path.stem}-{number}", "text": said.format(number)} for number in range(patients)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def run(folder: Path) -> Path:
    """From files to a finished study: the ten lines."""
    study = Study.model_validate(
        {
            "model": {"name": "tiny"},  # or "builtin", or the path of your model
            "data": {"evaluation": "public"},  # what public.jsonl is: nobody's records of care
            "privacy": {"target_epsilon": 2.0},
            # A public or coarsely rounded figure of each site's patients, never counted in the records:
            "sites": [{"name": site, "nominal_units": 60} for site in SITES],
        }
    )
    files = {site: folder / f"{site}.jsonl" for site in SITES}
    simulate(study, files, evaluation=folder / "public.jsonl", output=folder / "study")
    return folder / "study"


if __name__ == "__main__":
    chosen = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    for name in SITES:
        write_notes(chosen / f"{name}.jsonl", patients=60)
    write_notes(chosen / "public.jsonl", patients=8, said="Example {} is nobody's.")
    print("open", run(chosen) / "report.html")
