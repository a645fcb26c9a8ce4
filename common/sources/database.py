"""A hospital's database: read and never written, its password in no file of a site but one of its own."""

import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import quote

from ..errors import StudyError, reason
from .rows import refuse

if TYPE_CHECKING:
    import sqlalchemy

_DRIVERS: Final = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
    "duckdb": "duckdb",
    "sqlite": "sqlite",
}
_ROWS_HELD: Final = 256  # at a time
_READ_ONLY: Final = {"postgresql_readonly": True}
_TIMEOUT_S: Final = "10"
_DUCKDB_MEMORY: Final = "256MB"  # of pages that it keeps, beside the rows held
_PREPARE: Final = "a site's worker has no network: `grandrounds client prepare` reads the database, before it starts"


@dataclass(frozen=True, kw_only=True)
class Database:
    """Where a database is, without its password, which stands in ``password_file``, if not where PostgreSQL looks."""

    url: "sqlalchemy.URL"
    password_file: Path | None = None

    @classmethod
    def at(cls, url: str, password_file: Path | None = None) -> "Database":
        """The database at a URL as SQLAlchemy has them. Raises StudyError, which does not show it."""
        import sqlalchemy

        try:
            parsed = sqlalchemy.make_url(url)
        except (sqlalchemy.exc.ArgumentError, ValueError):
            raise _unusable("is no URL of a database") from None
        if parsed.drivername not in _DRIVERS or not parsed.database:
            raise _unusable("is of no kind that is known, or names no database")
        if parsed.password is not None or any("password" in name.lower() for name in parsed.query):
            raise _unusable(
                "holds a password",
                fix="take it out, and name a file that the worker alone may read: password_file; or use ~/.pgpass",
            )
        return cls(url=parsed.set(drivername=_DRIVERS[parsed.drivername]), password_file=password_file)

    @property
    def file(self) -> Path | None:
        """The file that it is, if it is no server's."""
        return None if self._is_served else Path(str(self.url.database))

    @property
    def log(self) -> Path | None:
        """The file of changes that its own file has not yet, if there are any: the write-ahead log."""
        if self.file is None:
            return None
        ending = "-wal" if self.url.get_backend_name() == "sqlite" else ".wal"
        log = self.file.with_name(self.file.name + ending)
        return log if log.is_file() and log.stat().st_size else None  # a reader may make an empty one

    @property
    def name(self) -> str:
        """What messages call it: host and database, or its file."""
        return f"{self.url.host or 'this machine'}/{self.url.database}" if self.file is None else self.file.name

    @property
    def _is_served(self) -> bool:
        return self.url.get_backend_name() == "postgresql"

    def schema(self, name: str | None) -> str | None:
        """A schema's whole name: DuckDB calls a catalog after its file, and refuses a schema of the same name alone."""
        if name is None or self.url.get_backend_name() != "duckdb":
            return name
        return f'"{Path(str(self.url.database)).name.partition(".")[0]}".{name}'

    def check(
        self,
        connection: "sqlalchemy.Connection",
        table: "sqlalchemy.TableClause",
        columns: Collection["sqlalchemy.ColumnClause[Any]"],
    ) -> None:
        """Raises DataError unless the table is there with these columns, and this user may read them."""
        import sqlalchemy

        parts: dict[str, sqlalchemy.ColumnElement[Any]] = {f"table {table.fullname}": sqlalchemy.literal(1)}
        parts |= {f"column {column.name} in the table {table.fullname}": column for column in columns}
        for named, part in parts.items():
            try:
                connection.execute(sqlalchemy.select(part).select_from(table).where(sqlalchemy.false())).close()
            except sqlalchemy.exc.DBAPIError as error:
                what = f"it has no {named} that this user may read ({type(error.orig).__name__})"
                refuse(self.name, what, "compare schema and names with the database; the user needs SELECT there")

    def ordered_by(self, column: "sqlalchemy.ColumnClause[Any]") -> list["sqlalchemy.ColumnClause[Any]"]:
        """What makes the order of rows one and the same.

        A server has an index for it. A file gives rows in the order in which it holds them, while what sorts them would
        hold all notes.
        """
        return [column] if self._is_served else []

    @contextmanager
    def connected(self) -> Iterator["sqlalchemy.Connection"]:
        """A connection that can write nothing, and holds few rows of a result. Raises DataError, which quotes none."""
        import sqlalchemy

        try:
            engine = sqlalchemy.create_engine(
                self._whole_url(), connect_args=self._arguments(), poolclass=sqlalchemy.NullPool, hide_parameters=True
            )
        except (ModuleNotFoundError, sqlalchemy.exc.NoSuchModuleError):
            refuse(
                self.name,
                f"the driver of {self.url.get_backend_name()} is not installed",
                "install it: pip install 'grandrounds[omop]', or a wheelhouse made with --extra omop",
            )
        if self.url.get_backend_name() == "sqlite":
            sqlalchemy.event.listen(engine, "connect", _keep_what_is_not_utf8)
        try:
            with engine.connect() as connection:
                yield connection.execution_options(yield_per=_ROWS_HELD, **(_READ_ONLY if self._is_served else {}))
        except (sqlalchemy.exc.SQLAlchemyError, UnicodeError) as error:
            self._refuse(error)

    def _whole_url(self) -> "sqlalchemy.URL":
        if self._is_served:
            url = self.url.update_query_dict({"connect_timeout": self.url.query.get("connect_timeout", _TIMEOUT_S)})
            return url if self.password_file is None else url.set(password=_password(self.password_file))
        if self.file is not None and not self.file.is_file():  # which DuckDB would make
            refuse(self.name, "no such file", "compare the URL with what is there; after // comes the whole path: ////")
        if self.url.get_backend_name() == "sqlite":
            return self.url.set(database=f"file:{quote(str(self.file))}", query={"mode": "ro", "uri": "true"})
        return self.url

    def _arguments(self) -> dict[str, Any]:
        if self.url.get_backend_name() == "duckdb":
            # Nothing is spilled: it would be notes, in a file beside its own.
            return {"read_only": True, "config": {"memory_limit": _DUCKDB_MEMORY, "temp_directory": ""}}
        return {}

    def _refuse(self, error: Exception) -> NoReturn:
        """Raise the DataError of what its driver says, by its kind alone: the words may quote a row or a password."""
        import sqlalchemy

        cause = getattr(error, "orig", None) or error
        connection = getattr(cause, "pgconn", None)
        kind = type(cause).__name__
        if getattr(connection, "needs_password", False):
            what, fix = "it asks for a password, and there is none", "name its file: password_file; or use ~/.pgpass"
        elif getattr(connection, "used_password", False):
            what, fix = "it refuses this user, password or database", "compare them with what its administrator gave"
        elif isinstance(error, sqlalchemy.exc.OperationalError):
            what = f"it cannot be reached, or broke off ({kind})"
            fix = f"check host, port and file, and that this user may connect; {_PREPARE}"
        else:
            what, fix = f"it cannot be read ({kind})", "look into the database's own log"
        refuse(self.name, what, fix)


def _unusable(
    what: str, fix: str = "give postgresql+psycopg://USER@HOST/DATABASE, duckdb:////FILE or sqlite:////FILE"
) -> StudyError:
    return StudyError(f"omop.url {what}", why="the site's notes are read from there", fix=fix)


def _password(path: Path) -> str:
    """What the file holds. Raises DataError where it cannot be read, or others than its owner can."""
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            refuse(path.name, "others than its owner may use it", f"chmod 600 {path}; its owner is the worker's user")
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        refuse(
            path.name, f"the password cannot be read from it ({reason(error)})", "see password_file, and whose it is"
        )


def _keep_what_is_not_utf8(connection: Any, _: object) -> None:
    """Bytes that are not UTF-8 become lone surrogates, which no text of a record may hold: one note is set aside."""
    connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
