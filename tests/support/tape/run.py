"""All paths and all planted bugs on a fresh tape, as two tables: ``make neighbours``; ``SEED=…`` takes that tape again.

It needs the tests' libraries and no network, and reads no record that is not its own.
"""

import os
import secrets
import sys

from transformers.utils.logging import disable_progress_bar

from support.tape.neighbours import MEANING, Finding, run
from support.tape.paths import PATHS
from support.tape.planted import BUGS

_WIDTH = max(map(len, (*PATHS, *BUGS)))


def main() -> int:
    """1 where two neighbours differ in anything but the unit's integers, or a planted bug is not found."""
    disable_progress_bar()  # of the models that it makes
    seed = os.environ.get("SEED") or secrets.token_hex(8)
    print(f"SEED={seed}\n\n{'path':{_WIDTH}}  moved by  what else differs")
    differ, missed = 0, 0
    for name, path in PATHS.items():
        pair = run(path, seed=seed.encode())
        findings = pair.findings()
        differ += bool(findings)
        as_due = "nothing, but whose place is in a draw that is cut" if pair.moved > 1 else "nothing"
        print(f"{name:{_WIDTH}}  {pair.moved:6.3f} Δ  {_said(findings) or as_due}", flush=True)
    print(f"\n{'planted bug':{_WIDTH}}  what the tape finds")
    for name, bug in BUGS.items():
        findings = bug.run(seed=seed.encode()).findings()
        missed += not findings
        print(f"{name:{_WIDTH}}  {', '.join(kinds(findings)) or 'NOTHING'}", flush=True)
    print("\n" + "\n".join(f"{kind:8}  {meaning}" for kind, meaning in MEANING.items()))
    print(f"\n{len(PATHS)} paths, {differ} of them wrong; {len(BUGS)} planted bugs, {missed} of them missed")
    return 1 if differ or missed else 0


def kinds(findings: list[Finding]) -> tuple[str, ...]:
    """What is wrong, each kind once."""
    return tuple(dict.fromkeys(finding.kind for finding in findings))


def bugs_table() -> str:
    """The planted bugs, as ARCHITECTURE.md has them."""
    rows = (f"| {name} | {', '.join(bug.found)} |" for name, bug in BUGS.items())
    return "\n".join(("| planted bug | what the tape finds |", "|---|---|", *rows))


def _said(findings: list[Finding]) -> str:
    return "; ".join(f"{finding.kind.upper()}: {finding.words}" for finding in findings)


if __name__ == "__main__":
    sys.exit(main())
