"""Sessions on SQLite or PostgreSQL. A request is one transaction; only this module commits.

An endpoint opens its transaction itself, in the thread in which it runs: kept open by a dependency, the transaction
would still hold its connection and locks while the request waits for a thread that others, waiting for them, occupy.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from sqlalchemy import DateTime, Dialect, Engine, MetaData, create_engine, event, func, make_url, select
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.types import TypeDecorator

from suture_contract.errors import SutureError
from suture_contract.files import telling

#: For work that takes a lock all writers wait for: done last, it is held shortly, and nobody who holds it waits.
LAST = "last"
T = TypeVar("T")


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC; SQLite would forget the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Store in UTC."""
        return value.astimezone(UTC) if value is not None else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Read as UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """The base of all tables; named constraints, so that migrations can change them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: UtcDateTime}


class Database:
    """One engine, and the two kinds of transaction: `reading()` and `writing()`."""

    def __init__(self, url: str) -> None:
        self.engine = open_engine(url)
        self._reads = sessionmaker(self.engine, expire_on_commit=False)
        self._writes = sessionmaker(self.engine.execution_options(suture_write=True), expire_on_commit=False)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that changes nothing."""
        with self._reads() as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that commits at the end, or rolls back on any error.

        What lies in `session.info[LAST]` is done just before it commits.
        """
        with self._writes.begin() as session:
            yield session
            for work in session.info.pop(LAST, ()):
                work(session)

    def before_flush(self, listener: Callable[..., None]) -> None:
        """Call `listener` with the session before a writing transaction sends its rows to the database."""
        event.listen(self._writes, "before_flush", listener)

    def after_commit(self, listener: Callable[[Session], None]) -> None:
        """Call `listener` with the session when a writing transaction has committed."""
        event.listen(self._writes, "after_commit", listener)

    def moment(self) -> datetime | None:
        """Return the present moment by the clock of the database's server; None for SQLite, which has no server."""
        if self.engine.dialect.name != "postgresql":
            return None
        with self.reading() as session:
            moment: datetime = session.scalars(select(func.clock_timestamp(type_=UtcDateTime))).one()
            return moment

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def open_engine(url: str) -> Engine:
    """Return an engine for `sqlite:///path` or `postgresql://…`; raises `SutureError` for any other address."""
    try:
        address = make_url(url)
    except Exception:
        raise SutureError("hub.database", "the database URL cannot be read", where="database_url") from None
    if address.drivername in ("sqlite", "sqlite+pysqlite"):
        if address.database and address.database != ":memory:":
            _keep_to_owner(Path(address.database))
        engine = create_engine(address, pool_size=20, max_overflow=20, connect_args={"timeout": 30})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if address.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        limits = "-c statement_timeout=60000 -c lock_timeout=20000 -c idle_in_transaction_session_timeout=60000"
        return create_engine(
            address.set(drivername="postgresql+psycopg"),
            pool_size=20,
            max_overflow=20,
            pool_pre_ping=True,
            connect_args={"connect_timeout": 10, "options": limits},
        )
    raise SutureError(
        "hub.database",
        f"{address.drivername} is not supported",
        where="database_url",
        hint="use sqlite:///path or postgresql://user@host/name",
    )


def portions(values: Sequence[T], size: int = 500) -> Iterator[Sequence[T]]:
    """Yield values in portions, by default of as many as one statement may name in every database."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


@contextmanager
def telling_of_database() -> Iterator[None]:
    """Raise a `SutureError` (`hub.database`) for what the database refuses within the block, for its operator."""
    try:
        yield
    except DBAPIError as error:
        # Of a statement the text may quote values. Of a connection it says what cannot be had, without the password.
        problem = str(error.orig).strip().partition("\n")[0] if isinstance(error, OperationalError) else ""
        words = problem if error.statement is None or problem in _OF_SQLITE else type(error.orig).__name__
        raise SutureError(
            "hub.database",
            f"the database cannot do this: {words}",
            where="database_url",
            hint=_hint(problem),
        ) from None


#: What SQLite says of a disk and of a file, whatever was asked of it.
_OF_SQLITE = {
    "database or disk is full": "make room on the disk",
    "attempt to write a readonly database": "give this account the right to write the file and its folder",
    "unable to open database file": "check the path, and that this account may write to its folder",
    "database is locked": "another process holds it; try again, and keep it on a local disk",
    "locking protocol": "this file system does not lock files: put the database on a local disk",
    "disk I/O error": "check the disk; where it is a network drive, put the database on a local one",
    "database disk image is malformed": "restore a backup: suture hub restore",
}


def _hint(problem: str) -> str:
    return _OF_SQLITE.get(problem, "is it running, and do SUTURE_HUB_DATABASE_URL and the password fit?")


def _keep_to_owner(path: Path) -> None:
    """Make the file of a SQLite database, or keep the one there, for this account alone; so SQLite makes its others.

    One that is there is not opened: closed again, it would take away what locks this process has on it.
    """
    with telling(path, code="hub.database"):
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES):  # one may look into a database that one cannot change
                raise
            return
        status = path.stat()
        if status.st_mode & 0o077 and status.st_uid == os.geteuid():
            for name in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    path.with_name(path.name + name).chmod(0o600)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own transaction handling is off: `_begin_sqlite` says when and how a transaction starts.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "foreign_keys=ON", "busy_timeout=30000", "synchronous=FULL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later could not wait for another writer; one that says so at its
    # beginning does.
    write = connection.get_execution_options().get("suture_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
