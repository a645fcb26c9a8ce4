"""Compares what constraints.txt pins with the published vulnerabilities: run by ``make audit``.

pip-audit asks the index for what is known of each package. An index that knows nothing of vulnerabilities, or that
cannot be reached, leaves nothing to compare with: that is said, and is no failure; 1 where a package has one.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from support.places import ROOT

from grandrounds.deploy.wheelhouse.constraints import CONSTRAINTS, read_constraints

UNREACHABLE = re.compile(r"requests\.exceptions\.|network may be blocking")


def asked(requirements: str) -> list[dict[str, Any]] | None:
    """What is known of each package; nothing where nobody could be asked. Exits where pip-audit fails otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "requirements.txt")
        wanted.write_text(requirements)
        options = ["--disable-pip", "--require-hashes", "--progress-spinner", "off", "--format", "json"]
        command: list[str | Path] = [sys.executable, "-m", "pip_audit", *options, "--requirement", wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.stdout.strip():
        return list(json.loads(done.stdout)["dependencies"])
    if UNREACHABLE.search(done.stderr):
        return None
    sys.exit(f"pip-audit failed:\n{done.stderr[-2000:]}")


def verdict(found: list[dict[str, Any]] | None) -> tuple[int, str]:
    """The exit status, and what it means in words."""
    if found is None:
        return 0, "Nothing was compared: the published vulnerabilities cannot be reached from here."
    known = [each for each in found if "skip_reason" not in each]
    unknown = [each["name"] for each in found if "skip_reason" in each]
    if not known:
        return 0, f"Nothing was compared: where pip-audit asks, nothing is known of any of the {len(found)} packages."
    vulnerable = [each for each in known if each["vulns"]]
    lines = [
        f"{each['name']} {each['version']}: {vulnerability['id']}, mended in "
        + (", ".join(vulnerability["fix_versions"]) or "no version yet")
        for each in vulnerable
        for vulnerability in each["vulns"]
    ]
    if unknown:
        lines.append(f"Nothing is known of {', '.join(unknown)}.")
    lines.append(f"{len(vulnerable)} of {len(known)} packages have a published vulnerability.")
    return int(bool(vulnerable)), "\n".join(lines)


def main() -> int:
    """Print what is known."""
    pins = read_constraints(ROOT / CONSTRAINTS).values()
    status, text = verdict(asked("".join(pin.hashed() + "\n" for pin in pins)))
    print(text)
    return status


if __name__ == "__main__":
    sys.exit(main())
