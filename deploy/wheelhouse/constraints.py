"""The one resolved set of packages with which the tests ran, and the hashes of their files, as pip reads it."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...common.errors import StudyError

CONSTRAINTS: Final = "constraints.txt"
_LINE: Final = re.compile(
    r"(?P<name>[a-z0-9]+(?:-[a-z0-9]+)*)==(?P<version>\S+)"
    r"(?: ; (?:(?P<extras>extra == '[^\\]+?)|(?P<marker>[^\\]+?)))?"
    r"(?P<hashes>(?: --hash=sha256:[0-9a-f]{64})+)"
)


@dataclass(frozen=True, kw_only=True)
class Pin:
    """A package's version, and the SHA-256 of each file of it that pip may take.

    pip passes over a pin that has ``extras`` when it reads the whole file: who wants one asks for it by its name.
    ``marker`` says on which platforms the package is needed.
    """

    name: str
    version: str
    extras: tuple[str, ...]
    marker: str | None
    sha256: tuple[str, ...]

    def exactly(self) -> str:
        """The requirement, whatever it is needed for, without hashes."""
        return f"{self.name}=={self.version}"

    def hashed(self) -> str:
        """The requirement with its hashes, wherever it is needed, as a line for pip."""
        return " ".join([self.exactly(), *(f"--hash=sha256:{each}" for each in self.sha256)])

    def listed(self) -> str:
        """As it stands in the file: a hash a line."""
        marker = " or ".join(f"extra == '{extra}'" for extra in self.extras) or self.marker
        first = self.exactly() + (f" ; {marker}" if marker else "")
        return " \\\n".join([first, *(f"    --hash=sha256:{each}" for each in self.sha256)]) + "\n"


def read_constraints(path: Path) -> dict[str, Pin]:
    """Each pin of the file by the package's name. Raises StudyError for a line without a version or a hash."""
    text = re.sub(r" \\\n +", " ", path.read_text("utf-8"))
    found = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise StudyError(
                f"{path.name} has a line that is no pin: {line[:60]}",
                why="a file is only compared with the hash that stands beside its package's version",
                fix="write `name==version`, and the hashes, as `make upgrade` does",
            )
        pin = Pin(
            name=match["name"],
            version=match["version"],
            extras=tuple(re.findall(r"'([a-z-]+)'", match["extras"] or "")),
            marker=match["marker"],
            sha256=tuple(match["hashes"].replace(" --hash=sha256:", " ").split()),
        )
        found[pin.name] = pin
    return found


def main(path: str, extra: str) -> None:
    """``python -m grandrounds.deploy.constraints FILE EXTRA``: the pins of an extra, as requirements for pip."""
    pins = [pin for pin in read_constraints(Path(path)).values() if extra in pin.extras]
    sys.stdout.write("".join(pin.hashed() + "\n" for pin in pins))


if __name__ == "__main__":
    main(*sys.argv[1:])
