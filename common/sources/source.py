"""What a site's records are read from, as its operator writes it down; and the reader of it."""

from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from ..schema import Section
from .files import file_rows
from .rows import Column, Rows

Encoding = Literal["utf-8", "cp1252", "latin-1"]
Delimiter = Literal[",", ";", "|", "tab"]

_AnyPath = Annotated[Path, Field(strict=False)]
_COMPRESSED: Final = (".gz", ".bz2", ".xz", ".zst", ".zip")


class DataSource(Section):
    """A source of records; a path alone stands for one with that file.

    ``columns`` has its names of columns by those of records; where there are some, columns that no record has are left
    out. ``encoding`` is of text files, ``delimiter`` of CSV.
    """

    files: tuple[_AnyPath, ...] = Field(min_length=1, strict=False)
    columns: dict[Column, str] = Field(default_factory=dict)
    encoding: Encoding = "utf-8"
    delimiter: Delimiter = ","

    @model_validator(mode="before")
    @classmethod
    def _file(cls, given: Any) -> Any:
        return {"files": (given,)} if isinstance(given, str | Path) else given

    @classmethod
    def of(cls, source: "DataSource | Path | str") -> "DataSource":
        """A source as it is, or that of a file."""
        return source if isinstance(source, DataSource) else cls(files=(Path(source),))

    def below(self, folder: Path) -> Self:
        """The source whose paths start from ``folder``."""
        return self.model_copy(update={"files": tuple(folder / file for file in self.files)})

    @property
    def paths(self) -> tuple[Path, ...]:
        """All the files and folders that it names."""
        return self.files

    @property
    def name(self) -> str:
        """What people call it: its first file."""
        return self.files[0].name


def read_rows(source: DataSource) -> Rows:
    """The rows of a source, one after another. Raises DataError where it cannot be told whose they are."""
    separator = "\t" if source.delimiter == "tab" else source.delimiter
    for path in source.paths:
        yield from file_rows(path, columns=source.columns, encoding=source.encoding, delimiter=separator)
