"""What a site's operators had done, by whom and when: a file that is only appended to."""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

from ...common.crypto.identity import canonical_json
from ...common.errors import GrandRoundsError, StorageError
from ...common.system.files import append
from ...common.system.privileges import whoever_runs_this
from ..budget.policy import POLICY
from .folder import SiteFolder

FILE: Final = "site-log.jsonl"
_BEFORE: Final = "before"
_POLICY_CHANGED: Final = "policy-changed"
_CUT_SHORT: Final = {"event": "cut-short", "intact": True}


class SiteLog:
    """The log in a site's folder: a line of JSON for each event, with its time (UTC) and user; nothing of a record.

    ``before`` in each is SHA-256 of all that the file held before it, so that no line can be changed, taken out or put
    in unseen. Whoever may write the file can still cut off its end, or write all of it anew: it belongs to who
    administers the site, and to neither worker nor node where these are users of their own.
    """

    def __init__(self, folder: SiteFolder) -> None:
        self._folder = folder
        self._path = folder.path / FILE

    @property
    def has_begun(self) -> bool:
        """Whether there is one."""
        return self._path.exists()

    def note(self, event: str, **facts: Any) -> None:
        """Append an ``event``, and before it the policy if that is another than the last that was noted.

        On disk before it returns. Raises StudyError and StorageError.
        """
        site = self._folder.settings().name

        def lines(held: bytes) -> bytes:
            added = b"" if held.endswith(b"\n") or not held else b"\n"  # after a line that a crash cut short
            for name, more in (*self._policy_change(held), (event, facts)):
                added += _line(name, {"site": site, **more}, before=held + added)
            return added

        append(self._path, lines)

    def entries(self) -> Iterator[dict[str, Any]]:
        """Every entry, in order; of a line that a crash cut short, the event ``cut-short`` alone.

        ``intact`` says whether it continues what is before it. Raises StorageError where there is no log.
        """
        seen = sha256()
        for line in self._read().splitlines(keepends=True):
            entry = _parsed(line)
            yield {**entry, "intact": entry.get(_BEFORE) == seen.hexdigest()} if entry else _CUT_SHORT
            seen.update(line)

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except OSError as error:
            raise StorageError(
                f"{self._path} cannot be read ({error.strerror})",
                why="who agreed to what, and when the policy changed, stands there",
                fix="run this as who administers the site; `grandrounds client init` begins a log",
            ) from error

    def _policy_change(self, held: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
        try:
            policy = _flat(self._folder.policy().model_dump(mode="json"))
        except GrandRoundsError:  # which the command that needs it says
            return
        noted = [
            found for found in (_parsed(line).get("policy") for line in held.splitlines()) if isinstance(found, dict)
        ]
        last = noted[-1] if noted else {}
        changed = {name: [last.get(name), value] for name, value in policy.items() if last.get(name) != value}
        if changed:
            modified = _time((self._folder.path / POLICY).stat().st_mtime)
            yield _POLICY_CHANGED, {"modified": modified, "policy": policy, "changed": changed if noted else {}}


def _line(event: str, facts: Mapping[str, Any], *, before: bytes) -> bytes:
    now = _time(datetime.now(UTC).timestamp())
    entry = {"event": event, "time": now, **whoever_runs_this(), **facts, _BEFORE: sha256(before).hexdigest()}
    return canonical_json(entry) + b"\n"


def _parsed(line: bytes) -> dict[str, Any]:
    """The entry of a line; nothing of a line that is none."""
    try:
        entry: dict[str, Any] = json.loads(line)
        datetime.fromisoformat(entry["time"]), entry["event"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}
    return entry


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _flat(tables: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Tables in tables as one, its fields by dotted names.

    >>> _flat({"study": {"largest_epsilon": 1.0}})
    {'study.largest_epsilon': 1.0}
    """
    flat: dict[str, Any] = {}
    for name, value in tables.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return flat
