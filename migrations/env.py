"""How Alembic reaches the hub's database: through `suture_service.operate`, which passes the address."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

from suture_service import tables  # noqa: F401  - so that the metadata knows all tables
from suture_service.database import Base, open_engine

# "suture" in ASCII: one number on which all hub processes of a database wait for each other.
LOCK = 0x737574757265


def run() -> None:
    engine = open_engine(context.config.attributes["database_url"]).execution_options(suture_write=True)
    try:
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            context.configure(
                connection=connection,
                target_metadata=Base.metadata,
                compare_type=True,
                render_as_batch=engine.dialect.name == "sqlite",
                user_module_prefix="database.",
            )
            context.run_migrations()
    finally:
        engine.dispose()


run()
