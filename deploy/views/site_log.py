"""A site's log as other programs take it: JSON lines, and ArcSight's Common Event Format (CEF, version 0)."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from ...common.printable import printable
from ...common.version import __version__

# What a security officer reads of an event, and how serious it is of 10.
_EVENTS: Final = {
    "initialised": ("The site's folder was made", 3),
    "policy-changed": ("The site's policy is a new one, or was changed", 6),
    "policy-adopted": ("The policy was changed as a study needs it", 6),
    "agreed": ("The site agreed to a study", 5),
    "asset-added": ("A second budget was made, for other patients", 7),
    "left": ("The site left a study", 4),
    "recovered": ("The site's state was lost, and all counts as spent", 8),
    "paused": ("The site takes part in nothing new", 3),
    "unpaused": ("The site takes part again", 3),
    "forgot": ("Who opted out was taken out of the prepared records", 4),
    "prepared-records-removed": ("All prepared records were removed", 4),
    "started": ("Worker and node of studies were started", 2),
    "cut-short": ("An entry was cut short when the machine stopped", 6),
}
_TAMPERED: Final = ("The log was changed before this entry", 10)
# Fields that CEF has names for; all others are in the message.
_NAMED: Final = {"login": "suser", "user": "duser", "site": "deviceExternalId", "study": "externalId"}


def as_json_line(entry: Mapping[str, Any]) -> str:
    """An entry as one line of ASCII."""
    return json.dumps(entry, sort_keys=True)


def as_cef(entry: Mapping[str, Any]) -> str:
    r"""An entry as one line of CEF, in which no value can begin another field or line.

    >>> entry = {"event": "paused", "time": "2026-01-01T00:00:00+00:00", "user": "a=b\nc", "intact": True}
    >>> as_cef(entry).partition("paused")[2]
    '|The site takes part in nothing new|3|rt=1767225600000 suser=a\\=b�c duser=a\\=b�c'
    """
    event = str(entry.get("event"))
    title, severity = _EVENTS.get(event, (event, 3)) if entry.get("intact") else _TAMPERED
    head = "|".join(_escaped(str(each), "|") for each in (__version__, event, title, severity))
    rest = {name: value for name, value in entry.items() if name not in (*_NAMED, "event", "time", "intact")}
    fields = {
        "rt": round(datetime.fromisoformat(entry["time"]).timestamp() * 1000) if "time" in entry else None,
        **{name: entry.get(field) for field, name in _NAMED.items()},
        "suser": entry.get("login", entry.get("user")),
        "msg": json.dumps(rest, sort_keys=True, ensure_ascii=False) if rest else None,
    }
    extension = " ".join(f"{name}={_escaped(str(value), '=')}" for name, value in fields.items() if value is not None)
    return f"CEF:0|Grand Rounds|client|{head}|{extension}"


def _escaped(value: str, separator: str) -> str:
    return printable(value.replace("\\", "\\\\").replace(separator, f"\\{separator}"))
