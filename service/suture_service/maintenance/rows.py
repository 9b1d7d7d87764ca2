"""All rows of a hub's database, from one kind of database to another."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, func, insert, select, text

from suture_contract.errors import SutureError
from suture_service import operate
from suture_service.database import Base, open_engine
from suture_service.maintenance.progress import OnProgress
from suture_service.settings import Settings

_AT_ONCE = 1000
#: Uploads that are under way, whose pieces are in no backup, are sent again; and who was signed in signs in again.
_PASSING = {"xet_epochs", "xet_xorbs", "sessions"}


def dump(settings: Settings, path: Path, on_progress: OnProgress) -> None:
    """Write all rows, as they are at one moment, into a new SQLite database at `path`; safe while hubs run."""
    path.touch(mode=0o600)
    migrate_file(settings, path)
    source, target = open_engine(settings.database_url), open_engine(f"sqlite:///{path}")
    try:
        operate.check_migrated(source)
        # On PostgreSQL only this level shows all tables at one moment; on SQLite every reading transaction does.
        options = {"isolation_level": "REPEATABLE READ"} if source.dialect.name == "postgresql" else {}
        with source.connect().execution_options(**options) as reading, target.begin() as writing:
            _copy(reading, writing, on_progress)
    finally:
        source.dispose()
        target.dispose()


def load(path: Path, settings: Settings, on_progress: OnProgress) -> None:
    """Fill an empty database with the rows of a file that `dump` made: all of them or none."""
    source, target = open_engine(f"sqlite:///{path}"), open_engine(settings.database_url)
    try:
        with source.connect() as reading, target.execution_options(suture_write=True).begin() as writing:
            _refuse_rows(writing)
            _copy(reading, writing, on_progress)
    finally:
        source.dispose()
        target.dispose()


def compact(path: Path, target: Path) -> None:
    """Write the rows of one SQLite file into a new one, which holds nothing of rows that were deleted."""
    target.touch(mode=0o600)
    engine = open_engine(f"sqlite:///{path}")
    try:
        # Not within a transaction, which every other connection begins.
        connection = engine.raw_connection()
        try:
            connection.cursor().execute("VACUUM INTO ?", (str(target),))
        finally:
            connection.close()
    finally:
        engine.dispose()


def check_empty(settings: Settings) -> None:
    """Bring a new database to the present schema; raise `SutureError` (`restore.not_empty`) if it has rows."""
    operate.migrate(settings)
    engine = open_engine(settings.database_url)
    try:
        with engine.connect() as connection:
            _refuse_rows(connection)
    finally:
        engine.dispose()


def migrate_file(settings: Settings, path: Path) -> None:
    """Bring a SQLite file to the present schema; raise `SutureError` (`restore.newer`) if it has a later one."""
    try:
        operate.migrate(settings.model_copy(update={"database_url": f"sqlite:///{path}"}))
    except SutureError as error:
        if error.code != "hub.newer":
            raise
        raise SutureError(
            "restore.newer",
            "the backup was made by a later version of the hub",
            where=path.name,
            hint="install that version, or a later one",
        ) from None


def _refuse_rows(connection: Connection) -> None:
    for table in Base.metadata.tables.values():
        if connection.execute(select(table).limit(1)).first() is not None:
            raise SutureError(
                "restore.not_empty",
                f"the table {table.name} has rows already",
                where="database_url",
                hint="restore into a new database that no hub has used",
            )


def _copy(source: Connection, target: Connection, on_progress: OnProgress) -> None:
    tables = [table for table in Base.metadata.tables.values() if table.name not in _PASSING]
    total = sum(source.scalar(select(func.count()).select_from(table)) or 0 for table in tables)
    done = 0
    _wait_with_foreign_keys(target)
    for table in tables:
        for rows in source.execution_options(yield_per=_AT_ONCE).execute(select(table)).mappings().partitions():
            target.execute(insert(table), [dict(row) for row in rows])
            done += len(rows)
            on_progress("rows", done, total)
    _check_foreign_keys(target)


def _wait_with_foreign_keys(target: Connection) -> None:
    """Check them at the end: rows of one table, and tables of one circle, may come in any order."""
    if target.dialect.name == "sqlite":
        target.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
        return
    for table, name in _foreign_keys():
        target.execute(text(f'ALTER TABLE "{table}" ALTER CONSTRAINT "{name}" DEFERRABLE INITIALLY DEFERRED'))


def _check_foreign_keys(target: Connection) -> None:
    if target.dialect.name == "sqlite":
        return  # the commit does
    target.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
    for table, name in _foreign_keys():
        target.execute(text(f'ALTER TABLE "{table}" ALTER CONSTRAINT "{name}" NOT DEFERRABLE'))
    for filled in Base.metadata.tables.values():
        column = filled.autoincrement_column
        if column is not None:
            # The next row gets the number after the greatest; where there is no row or no sequence, nothing happens.
            greatest = select(func.max(column)).scalar_subquery()
            target.execute(select(func.setval(func.pg_get_serial_sequence(filled.name, column.name), greatest)))


def _foreign_keys() -> list[tuple[str, str]]:
    return [
        (table.name, str(key.name)) for table in Base.metadata.tables.values() for key in table.foreign_key_constraints
    ]
