"""What ``make coverage`` has measured, by branch: of each room, and of all of them."""

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path, PurePath

from coverage import Coverage


def main() -> int:
    """Print a line for each room: how many of its statements and branches were taken."""
    measured, taken, there = Coverage(), Counter[str](), Counter[str]()
    measured.load()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "coverage.json"
        measured.json_report(outfile=str(report))
        files = json.loads(report.read_text())["files"]
    for path, file in files.items():
        found = file["summary"]
        for room in (PurePath(path).parent.as_posix(), "in total"):
            taken[room] += found["covered_lines"] + found["covered_branches"]
            there[room] += found["num_statements"] + found["num_branches"]
    for room in (*sorted(there.keys() - {"in total"}), "in total"):
        if there[room]:
            print(f"{100 * taken[room] / there[room]:5.0f} %  {room}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
