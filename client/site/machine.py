"""How a site's machine computes a study, as ``client check`` found it last: for that site alone."""

from pathlib import Path
from typing import Self

from ...common.schema import Section
from ...common.system.files import write_atomically


class MachineReport(Section):
    """What was found, in lines, and when."""

    found: str
    lines: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The report in a file; None where there is none that can be read."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            return None

    def write(self, path: Path) -> None:
        """Replace what was found before. Raises StorageError."""
        write_atomically(path, self.model_dump_json().encode(), mode=0o600)
