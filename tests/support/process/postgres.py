"""A PostgreSQL server of a test's own: at a socket in a folder of its own, and on no port of the machine."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy

from grandrounds.common.errors import StudyError
from grandrounds.common.system.privileges import User

OWNER, PASSWORD = "owner", "hunter2-of-the-owner"
_INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))  # Debian's, which are on no PATH
_CONFIGURED = {
    "listen_addresses": "''",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "shared_buffers": "1MB",
    "max_connections": "8",
}


@contextmanager
def postgres() -> Iterator[sqlalchemy.URL]:
    """The URL of its database, whose OWNER has this PASSWORD; without the password. Skips where there is no server."""
    programs = _programs()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "password").write_text(PASSWORD)
        user = _user()
        if user is not None:
            os.chown(folder, user.uid, user.gid)
        start = f"-k {folder} {' '.join(f'-c {name}={value}' for name, value in _CONFIGURED.items())}"
        control: list[str | Path] = [programs / "pg_ctl", "-D", folder / "data", "-s", "-w"]
        made = f"--no-sync --no-instructions --no-locale --encoding=UTF8 --username={OWNER} --auth=scram-sha-256"
        _run([programs / "initdb", "-D", folder / "data", *made.split(), f"--pwfile={folder}/password"], user)
        _run([*control, "-l", folder / "log", "-o", start, "start"], user)
        try:
            yield sqlalchemy.URL.create(
                "postgresql+psycopg", username=OWNER, database="postgres", query={"host": str(folder)}
            )
        finally:
            _run([*control, "-m", "immediate", "stop"], user)


def _programs() -> Path:
    found = shutil.which("postgres") or (str(_INSTALLED[-1]) if _INSTALLED else None)
    if found is None:
        pytest.skip("no PostgreSQL is installed here, and nothing was read from one: apt-get install postgresql")
    return Path(found).parent


def _user() -> User | None:
    """Whom it runs as: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    try:
        return User.named("postgres")
    except StudyError:
        return User.named("nobody")


def _run(command: Sequence[str | Path], user: User | None) -> None:
    subprocess.run(
        command,
        user=None if user is None else user.uid,
        group=None if user is None else user.gid,
        extra_groups=None if user is None else [],
        cwd="/",
        env={"PATH": os.defpath, "LC_ALL": "C"},
        check=True,
        stdout=subprocess.DEVNULL,
    )
