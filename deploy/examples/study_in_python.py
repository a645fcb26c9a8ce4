"""A study from Python, with a site that drops out: python study_in_python.py [NEW_FOLDER], which gets its results."""

import sys
import tempfile
from pathlib import Path

from grandrounds import Dropout, Result, Study, simulate
from grandrounds.server.report.rounding import up

SITES = ("north", "east", "south", "west", "coast")


def run(folder: Path) -> Result:
    """Five sites, of which four must answer; in round 2 one of them does not."""
    study = Study.model_validate(
        {
            "model": {"name": "tiny", "rank": 2},
            "data": {"max_tokens": 32, "evaluation": "synthetic"},
            "privacy": {"target_epsilon": 2.0, "sampling_probability": 0.2},
            "training": {"rounds": 4, "learning_rate": 0.1},
            "sites": [{"name": site, "nominal_units": 40, "sensitivity": "synthetic"} for site in SITES],
        }
    )
    notes = [{"patient_id": number, "text": f"Visit {number}: no complaints."} for number in range(40)]
    held_out = [{"patient_id": f"nobody-{number}", "text": f"Call {number}: well rested."} for number in range(8)]
    west_is_lost = Dropout(site="west", round=2)
    # Perplexity is released as it is, so that what it is measured on must be public or synthetic.
    return simulate(study, dict.fromkeys(SITES, notes), evaluation=held_out, output=folder, dropouts=[west_is_lost])


def finished() -> Path:
    """The folder that the command line names or, without one, that of a study which runs now."""
    return Path(sys.argv[1]) if len(sys.argv) > 1 else run(Path(tempfile.mkdtemp())).folder or Path()


if __name__ == "__main__":
    result = run(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
    for row in result.report["utility"]["rounds"]:
        print(f"round {row['round']}: ε {up(row['epsilon_spent'])}, the sum of {', '.join(row['survivors'])}")
    print(result.report["claim"])
