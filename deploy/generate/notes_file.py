"""The file of synthetic notes, beside it what they are; batch by batch, so that whoever was stopped goes on."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...common.errors import StorageError
from ...common.system.files import fsync, write_atomically
from ...common.system.locks import alone
from .sampling import Note

JSONL, PARQUET = ".jsonl", ".parquet"
_ROWS_AT_A_TIME: Final = 4096
_NOTES_SHA256: Final = "notes_sha256"


@dataclass(frozen=True, kw_only=True)
class NotesFile:
    """Notes of one origin, as JSON lines or as Parquet.

    While they are made they lie in a hidden file beside ``path``; what they are (``about``) lies in ``path`` with
    ``.about.json`` from the beginning, at the end with the hash of the notes, so that neither is taken for another's.
    """

    path: Path
    about: Mapping[str, Any]
    in_short: str  # of the claim, for each row

    @property
    def about_path(self) -> Path:
        """Where the notes' origin is written."""
        return about_path(self.path)

    @property
    def _partial(self) -> Path:
        return self.path.with_name(f".{self.path.name}.partial")

    @contextmanager
    def writing(self, batch: int) -> Iterator[int]:
        """How many notes are there already, in whole batches of ``batch``; what is left of another is cut off.

        Raises StorageError where the notes are whole, others lie in their place, or another process writes them.
        """
        if self.path.suffix not in (JSONL, PARQUET):
            raise StorageError(
                f"{self.path.name} is neither {JSONL} nor {PARQUET}",
                why="the name says in which form the notes are written",
                fix="choose such a name",
            )
        if self.path.exists() or self.path.is_symlink():
            raise StorageError(
                f"{self.path} exists", why="nothing is written over", fix="remove it, or choose another name"
            )
        if self.about_path.exists() or self._partial.exists():
            self._require_own()
        taken = StorageError(
            f"{self.path} is being written by another process",
            why="each would cut off what the other has written",
            fix="wait until it is done, or choose another name",
        )
        with alone(self._partial, taken=taken):
            try:
                write_atomically(self.about_path, _json(self.about))
                done = self._cut(batch)
            except OSError as error:
                raise self._unwritable(error) from error
            yield done

    def _require_own(self) -> None:
        try:
            found = json.loads(self.about_path.read_bytes())
            stated = {name: value for name, value in found.items() if name != _NOTES_SHA256}
        except (OSError, ValueError, AttributeError):
            stated = None
        if stated != json.loads(_json(self.about)):
            raise StorageError(
                f"{self.about_path} is of other notes, which were begun or removed",
                why="notes of two origins in one file would carry a claim that is not theirs",
                fix=f"repeat the command by which they were begun, choose another name, or remove it with "
                f"{self._partial.name}",
            )

    def _cut(self, batch: int) -> int:
        with self._partial.open("a+b") as file:
            file.seek(0)
            lines, end, place = 0, 0, 0
            for line in file:
                place += len(line)
                if not line.endswith(b"\n"):
                    break
                lines += 1
                if lines % batch == 0:
                    end = place
            file.truncate(end)
        return lines // batch * batch

    def append(self, notes: Sequence[Note], *, first: int) -> None:
        """Notes from number ``first`` on; they are on the disk when this returns. Raises StorageError."""
        rows = "".join(
            json.dumps(self._row(first + number, note), ensure_ascii=False) + "\n" for number, note in enumerate(notes)
        )
        try:
            with self._partial.open("ab") as file:
                file.write(rows.encode("utf-8", "replace"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._unwritable(error) from error

    def _row(self, number: int, note: Note) -> dict[str, Any]:
        return {
            "id": f"synthetic-{number:07d}",
            "text": note.prompt.text + note.written,
            "prompt_characters": len(note.prompt.text),
            "ended": note.ended,
            "privacy": self.in_short,
            **{f"control_{name}": value for name, value in note.prompt.controls.items()},
        }

    def finish(self) -> None:
        """Give the notes their name, all of them at once. Raises StorageError."""
        try:
            whole = self._partial
            if self.path.suffix == PARQUET:
                whole = self.path.with_name(f".{self.path.name}.whole")
                _write_parquet(self._partial, whole, _json(self.about))
            with whole.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            fsync(whole)
            whole.chmod(0o644)
            write_atomically(self.about_path, _json({**self.about, _NOTES_SHA256: found}))
            whole.rename(self.path)
            fsync(self.path.parent)
            self._partial.unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> StorageError:
        return StorageError(
            f"{self.path} cannot be written: {error.strerror}",
            why="the notes are kept there as they are made",
            fix="free space or choose another folder; what was made is kept, and the same command goes on",
        )


def about_path(notes: Path) -> Path:
    """Where the origin of a file of notes is written."""
    return notes.with_name(f"{notes.name}.about.json")


def _json(about: Mapping[str, Any]) -> bytes:
    return json.dumps(about, ensure_ascii=False, indent=2).encode() + b"\n"


def _write_parquet(lines: Path, path: Path, about: bytes) -> None:
    """The rows of JSON lines as Parquet, with their origin in the file's own metadata, some rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with lines.open("rb") as file:
        tables = (pa.Table.from_pylist(rows) for rows in _groups(file))
        first = next(tables)
        schema = first.schema.with_metadata({b"grandrounds": about})
        with pq.ParquetWriter(path, schema) as writer:
            writer.write_table(first.cast(schema))
            for table in tables:
                writer.write_table(table.cast(schema))


def _groups(lines: Iterator[bytes]) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    for line in lines:
        rows.append(json.loads(line))
        if len(rows) == _ROWS_AT_A_TIME:
            yield rows
            rows = []
    if rows:
        yield rows
