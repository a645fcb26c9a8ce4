"""A site's log: JSON lines on what was asked and answered, without a word of any record."""

import json
import logging
import os
import sys
import traceback
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import WatchedFileHandler
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from ...common.errors import GrandRoundsError, StorageError

_MODE: Final = 0o640
# What a line may say beside its time, level and event.
_FIELDS: Final = ("exchange", "attempt", "code")


def log_to(path: Path) -> logging.Handler:
    """Append this program's log to ``path`` from here on; the handler, to end that by. Raises StorageError.

    Only this program's: what other libraries log may quote records. The file may be renamed or cut at any time.
    """
    try:
        handler = _LogFile(path)
    except OSError as error:
        raise StorageError(
            f"the log {path} cannot be written: {error.strerror}",
            why="why this site refused something stands there and nowhere else",
            fix="make it writable for the worker's user",
        ) from error
    handler.setFormatter(JsonLines())
    program = logging.getLogger(__name__.partition(".")[0])
    program.addHandler(handler)
    program.setLevel(logging.INFO)
    return handler


def hide_texts() -> None:
    """From here on, an exception that ends this process is told by its type and places: its text could quote a record.

    Where standard error goes, to a file or a journal, others may read than who may read the records.
    """

    def told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        print(*traceback.format_tb(trace), kind.__name__, sep="", file=sys.stderr)

    sys.excepthook = told


class JsonLines(logging.Formatter):
    """A record of the log as one line of JSON: time (UTC), level, event, and where known exchange, attempt and code.

    An exception is named by its type, whose text could quote a record: all but a GrandRoundsError, which never does.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": _event(record),
        }
        fields |= {name: getattr(record, name) for name in _FIELDS if getattr(record, name, None) is not None}
        if record.exc_info and record.exc_info[0] is not None:
            fields["error"] = record.exc_info[0].__name__
        return json.dumps(fields, ensure_ascii=False)


class _LogFile(WatchedFileHandler):
    """A file that is only appended to, and opened anew where it was renamed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
        os.fchmod(descriptor, _MODE)  # whatever the umask
        return os.fdopen(descriptor, "a", encoding="utf-8")


def _event(record: logging.LogRecord) -> str:
    message = str(_safe(record.msg))
    if isinstance(record.args, tuple) and record.args:
        return message % tuple(_safe(argument) for argument in record.args)
    return message


def _safe(value: object) -> object:
    if isinstance(value, GrandRoundsError):
        return value.diagnostics()
    return type(value).__name__ if isinstance(value, BaseException) else value
