"""What takes longer than the tests may.

Every parser is fuzzed, every byte of a study's folder flipped, a thousand federations' processes are killed, and those
of a deployment thirty times; then again and again a simulation is killed at every write, and every property test
repeated. What the kills have cost is printed, and kept in ``soak/killed-*``.

Run by ``make soak``, which puts ``tests`` on PYTHONPATH, as every program here needs it. Stop it when you like, and the
next call goes on where it stopped. Each pass of a property test has a seed of its own: one that fails is printed, and
``pytest --hypothesis-profile=soak --hypothesis-seed=SEED FILE`` shows the failure again.
An input that breaks a parser is kept in ``soak/fuzz``; ``tests/soak/fuzz.py`` says how to feed it again.
"""

import importlib.util
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from support.places import ROOT

FOLDER = ROOT / "soak"
JOURNAL = FOLDER / "passes"
PASSES = 100
FUZZ_SECONDS = 300
KILLED_STUDIES, STRIKES = 1000, 30


def property_tests() -> list[Path]:
    """The test files that use Hypothesis."""
    return sorted(path for path in (ROOT / "tests").rglob("test_*.py") if "hypothesis" in path.read_text("utf-8"))


def steps() -> Iterator[tuple[str, list[str]]]:
    """Every step: what the journal calls it, and its command."""
    from soak.fuzz_targets import TARGETS

    for name in TARGETS:
        yield f"fuzz {name}", ["-m", "soak.fuzz", name, str(FUZZ_SECONDS), str(FOLDER / "fuzz")]
    yield "flip every byte of a study's folder", ["-m", "support.study.verified_study"]
    for name, count in {"federation": KILLED_STUDIES, "deployment": STRIKES}.items():
        command = ["-m", f"soak.killed_{name}", str(count), str(FOLDER / f"killed-{name}")]
        yield f"kill the processes of a {name}", command
    yield "the tests that take long", ["-m", "pytest", "-q", "-m", "soak"]
    yield "a million notes", ["-m", "soak.million_notes"]
    yield "a deployment against the simulation", ["-m", "soak.same_as_simulated"]
    for number in range(1, PASSES + 1):
        yield f"{number} kill a simulation at every write", ["-m", "soak.killed_simulation"]
        for path in property_tests():
            search = ["--hypothesis-profile=soak", f"--hypothesis-seed={secrets.randbits(32)}"]
            yield f"{number} {path.relative_to(ROOT)}", ["-m", "pytest", "-q", "--no-header", *search, str(path)]


def main() -> int:
    """Run the steps that are left; 1 at the first failure."""
    if importlib.util.find_spec("atheris") is None:
        print("fuzzing needs atheris: `make soak` installs it", file=sys.stderr)
        return 1
    FOLDER.mkdir(exist_ok=True)
    done = set(JOURNAL.read_text("utf-8").splitlines()) if JOURNAL.exists() else set()
    for entry, command in steps():
        if entry in done:
            continue
        print(f"{entry}: {' '.join(command)}", flush=True)
        env = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
        if subprocess.run([sys.executable, *command], cwd=ROOT, env=env, check=False).returncode:
            return 1
        with JOURNAL.open("a", encoding="utf-8") as journal:
            journal.write(entry + "\n")
    print(f"all is done; remove {FOLDER} to begin again")
    return 0


if __name__ == "__main__":
    sys.exit(main())
