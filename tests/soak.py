"""What takes longer than the tests may: every property test again and again, each pass with a seed of its own.

Run by ``make soak``; stop it when you like, and the next call goes on where it stopped. A seed that fails is printed:
``pytest --hypothesis-seed=SEED FILE`` shows the failure again.
"""

import secrets
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
JOURNAL = ROOT / "soak" / "passes"
PASSES = 100


def property_tests() -> list[Path]:
    """The test files that use Hypothesis."""
    return sorted(path for path in (ROOT / "tests").rglob("test_*.py") if "hypothesis" in path.read_text("utf-8"))


def main() -> int:
    """Run what is left of the passes; 1 at the first failure."""
    JOURNAL.parent.mkdir(exist_ok=True)
    done = set(JOURNAL.read_text("utf-8").splitlines()) if JOURNAL.exists() else set()
    for number in range(1, PASSES + 1):
        for path in property_tests():
            entry = f"{number} {path.relative_to(ROOT)}"
            if entry in done:
                continue
            seed = secrets.randbits(32)
            print(f"pass {entry}, seed {seed}", flush=True)
            command = [sys.executable, "-m", "pytest", "-q", "--no-header", f"--hypothesis-seed={seed}", str(path)]
            if subprocess.run(command, cwd=ROOT, check=False).returncode:
                return 1
            with JOURNAL.open("a", encoding="utf-8") as journal:
                journal.write(entry + "\n")
    print(f"all {PASSES} passes are done; remove {JOURNAL.parent} to begin again")
    return 0


if __name__ == "__main__":
    sys.exit(main())
