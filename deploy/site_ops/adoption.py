"""A policy that is changed to allow a study: what its operator confirmed is written into policy.toml, and no more."""

import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ...client.budget.policy import POLICY, AllowedModel, Policy, Violation, violations
from ...client.site.folder import SiteFolder
from ...client.site.site_log import SiteLog
from ...common.crypto.identity import shown_key
from ...common.errors import StudyError
from ...common.schema import validated
from ...common.study.manifest import Manifest
from ...common.system.files import write_atomically
from .users import hand_over, operators_users

_KEYS: Final = "study.verified_peers"


def offer_policy(
    folder: SiteFolder, manifest: Manifest, *, confirmed: Callable[[str], bool], say: Callable[[str], None]
) -> None:
    """Show in which points policy.toml does not allow the study, and write what it needs if all of it is ``confirmed``.

    What is not written is refused by whoever joins; so is, without a question, what is said of the site itself. Raises
    StudyError and StorageError.
    """
    name, path = folder.settings().name, folder.path / POLICY
    points = list(violations(folder.policy(), manifest, name=name))
    if not points or any(point.of_site for point in points) or name not in manifest.site_keys:
        return
    owners = {shown_key(key): owner for owner, key in {"server": manifest.server_key, **manifest.site_keys}.items()}
    limits, keys = ([point for point in points if (point.field == _KEYS) is is_keys] for is_keys in (False, True))
    say(f"{path} does not allow this study yet:")
    for point in limits:
        say(f"  {point}")
    for key in (key for point in keys for key in point.needed):
        say(f"  {_KEYS} lacks the key of {owners[key]}: {key}")
    if limits and not confirmed("Is it to allow this?" if not keys else "Is it to allow this, but for the keys?"):
        return
    if keys and not confirmed("Was each of these keys compared with its owner, not by e-mail alone?"):
        return
    text = path.read_text(encoding="utf-8")
    changed = adopted(text, points, owners)
    if not (_but_for(points, changed) == _but_for(points, text) and _allows(changed, manifest, name)):
        raise StudyError(
            f"{path} states what is to be changed in a form that this does not know",
            why="nothing in it may change but what was shown",
            fix=f"edit it: {'; '.join(map(str, points))}",
        )
    write_atomically(path, changed.encode(), mode=path.stat().st_mode & 0o777)
    SiteLog(folder).note("policy-adopted", study=manifest.study_id, manifest=manifest.sha256)
    if (users := operators_users(folder.settings())) is not None:
        hand_over(folder, users)


def _allows(text: str, manifest: Manifest, name: str) -> bool:
    return not list(violations(validated(Policy, tomllib.loads(text)), manifest, name=name))


def _but_for(points: Sequence[Violation], text: str) -> dict[str, Any] | None:
    """What policy.toml says of all but the points; None if it is no policy."""
    try:
        fields = validated(Policy, tomllib.loads(text)).model_dump()
    except (ValueError, StudyError):
        return None
    named = {point.field.removeprefix("study.") for point in points}
    return fields | {"study": {field: value for field, value in fields["study"].items() if field not in named}}


def adopted(text: str, points: Sequence[Violation], owners: Mapping[str, str]) -> str:
    """The text of policy.toml with what the points need; all else, remarks included, stays as it was.

    ``owners`` are named beside their keys.
    """
    for point in reversed(points):  # each comes before what a list has already
        text = _with(text, point.field.removeprefix("study."), point.needed, owners)
    return text


def _with(text: str, field: str, needed: Any, owners: Mapping[str, str]) -> str:
    if field == "models":
        return "\n".join([text.rstrip(), *map(_table, needed)])
    if isinstance(needed, tuple):
        items = (f"{json.dumps(item)}," + (f"  # {owners[item]}" if item in owners else "") for item in needed)
        stated, line, end = rf"{field}\s*=\s*\[\s*", "\n  ".join([f"{field} = [", *items, ""]), "]"
    else:
        stated, line, end = rf"{field}\s*=\s*[^\s#]+", f"{field} = {json.dumps(needed)}", ""
    changed, found = re.subn(f"^{stated}", lambda _: line, text, count=1, flags=re.MULTILINE)
    if found:
        return changed.replace(f"{line}]", f"{line.rstrip(' ')}]")
    header = re.search(r"^\[study\].*\n", text, re.MULTILINE)
    if header is None:
        return f"[study]\n{line}{end}\n\n{text}"
    return f"{text[: header.end()]}{line}{end}\n{text[header.end() :]}"


def _table(model: AllowedModel) -> str:
    stated = model.model_dump(exclude_none=True)
    return "\n".join(
        [
            "",
            "[[study.models]]",
            *(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in stated.items()),
            "",
        ]
    )
