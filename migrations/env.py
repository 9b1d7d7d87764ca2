"""How Alembic reaches the hub's database: through `suture_service.operate`, which passes the address."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from alembic import context
from sqlalchemy import Connection, text

from suture_service import tables  # noqa: F401  - so that the metadata knows all tables
from suture_service.database import Base, open_engine

# "suture" in ASCII: one number on which all hub processes of a database wait for each other.
LOCK = 0x737574757265


@contextmanager
def _without_foreign_keys(connection: Connection) -> Iterator[None]:
    """On SQLite a table is changed by making it anew, and one that others refer to cannot be dropped while they count.

    Has to be said outside the transaction. All references are checked before it commits.
    """
    if connection.dialect.name != "sqlite":
        yield
        return
    driver = connection.connection.driver_connection
    assert driver is not None
    driver.execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys=ON")


def run() -> None:
    engine = open_engine(context.config.attributes["database_url"]).execution_options(suture_write=True)
    try:
        with engine.connect() as connection, _without_foreign_keys(connection), connection.begin():
            if engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            context.configure(
                connection=connection,
                target_metadata=Base.metadata,
                compare_type=True,
                include_name=lambda name, _kind, _parents: name != "ix_models_search",
                render_as_batch=engine.dialect.name == "sqlite",
                user_module_prefix="database.",
            )
            context.run_migrations()
            if engine.dialect.name == "sqlite" and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
                raise RuntimeError("the migration would leave rows that refer to nothing")
    finally:
        engine.dispose()


run()
