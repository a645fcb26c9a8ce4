"""Several studies of one server: the first in its folder, each other in ``studies/NAME`` below it.

Each such folder is a server's whole folder, with the same key, authority and sites, and SuperLink, gate and ports of
its own. A site is one node to each SuperLink: on a shared one, its programs of two studies would take each other's
messages.
"""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Final

from ...common.crypto.identity import Name
from ...common.schema import Section, validated
from ...common.study.about import AboutSection
from ...common.system.files import make_private_folder, write_atomically, write_missing
from ...common.system.ports import cannot_listen
from ...server.run.server_folder import KEY, SETTINGS, STUDIES, ServerFolder
from ..enrolment.certificates import CA_CERTIFICATE, CA_KEY, CERTIFICATE, CERTIFICATE_KEY
from .about import with_about
from .commands import init
from .follow import audit, next_step

_SECRET: Final = frozenset({KEY, CA_KEY, CERTIFICATE_KEY})


class _Named(Section):
    name: Name


def new_study(
    folder: ServerFolder,
    name: str,
    *,
    study: Path | None = None,
    port: int | None = None,
    superlink_port: int | None = None,
) -> list[str]:
    """Make the folder of another study, with the server's keys and sites; what comes next. It may be repeated.

    Ports that are not given are the next that no study of the server has and nobody listens on. ``study`` is a file to
    begin with; without one it begins as the server's first, dated today. Raises StudyError and StorageError.
    """
    validated(_Named, {"name": name})
    folder = folder.home
    other, settings = ServerFolder(folder.path / STUDIES / name), folder.settings()
    if (other.path / SETTINGS).exists():
        there = other.settings()
        port, superlink_port = port or there.port, superlink_port or there.superlink_port
    else:
        free = _free_ports(folder)
        port, superlink_port = port or next(free), superlink_port or next(free)
        for place in (other.path.parent, other.path, other.certificates):
            make_private_folder(place)
        for source in (folder.path / KEY, *_certificates(folder)):
            copy = other.path / source.relative_to(folder.path)
            write_atomically(copy, source.read_bytes(), mode=0o600 if source.name in _SECRET else 0o644)
        other.save_sites({name: site.model_copy(update={"node_id": None}) for name, site in folder.sites().items()})
        stated = {"port": port, "superlink_port": superlink_port, "evaluation": str(settings.evaluation.absolute())}
        if settings.model is not None:
            stated["model"] = str(settings.model.absolute())
        other.write_settings(_with((folder.path / SETTINGS).read_text(encoding="utf-8"), stated))
        if study is None and folder.study_toml.exists():
            today = AboutSection(dated=datetime.now(UTC).date().isoformat())
            write_missing(other.study_toml, lambda: with_about(folder.study_toml.read_text("utf-8"), today).encode())
    return [
        f"{other.path} has the keys and sites of {folder.path}; hospitals reach its study at port {port}",
        *init(other, host=settings.host, port=port, superlink_port=superlink_port, study=study),
    ]


def list_studies(folder: ServerFolder) -> list[str]:
    """Each study of the server: its folder, address and state, and what comes next."""
    return [
        f"{study.path}  {study.settings().address}  {_state(study)}; next: {next_step(study, audit(study))}"
        for study in studies_of(folder.home)
    ]


def studies_of(folder: ServerFolder) -> list[ServerFolder]:
    """The server's first study, and those beside it by name."""
    return [folder, *(ServerFolder(path.parent) for path in sorted((folder.path / STUDIES).glob(f"*/{SETTINGS}")))]


def _state(folder: ServerFolder) -> str:
    if not folder.has_study:
        return "not fixed yet"
    return "closed" if audit(folder).closed is not None else "running" if folder.is_running else "fixed"


def _free_ports(folder: ServerFolder) -> Iterator[int]:
    settings = [study.settings() for study in studies_of(folder)]
    taken = {port for each in settings for port in (each.port, each.superlink_port)}
    return (port for port in count(min(taken)) if port not in taken and cannot_listen(("127.0.0.1", port)) is None)


def _certificates(folder: ServerFolder) -> list[Path]:
    names = (CA_CERTIFICATE, CA_KEY, CERTIFICATE, CERTIFICATE_KEY)
    return [path for path in (folder.certificates / name for name in names) if path.exists()]


def _with(text: str, stated: Mapping[str, object]) -> str:
    """The text of server.toml, which has no tables, with other values of some fields."""
    for name, value in stated.items():
        line = f"{name} = {json.dumps(value, ensure_ascii=False)}"
        found = re.search(rf"^{name}\s*=\s*(\"[^\"]*\"|\S+)", text, re.MULTILINE)
        text = f"{text[: found.start()]}{line}{text[found.end() :]}" if found else f"{text.rstrip()}\n{line}\n"
    return text
