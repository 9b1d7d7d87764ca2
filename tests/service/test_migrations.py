"""The schema: up, down and up again on both databases; and it is the one the code was written for."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from starlette.testclient import TestClient

from suture_contract.errors import SutureError
from suture_service import operate
from suture_service.database import Base, open_engine
from suture_service.main import create_app
from suture_service.models.service import commit_id
from suture_service.settings import Settings


@pytest.fixture
def empty(empty_database, tmp_path):
    return Settings(database_url=empty_database, store=str(tmp_path / "store"))


def tables(settings):
    engine = open_engine(settings.database_url)
    try:
        return set(inspect(engine).get_table_names()) - {"alembic_version"}
    finally:
        engine.dispose()


def test_the_schemas_are_those_of_the_migrations_latest_first():
    scripts = ScriptDirectory(str(operate.migrations_folder()))
    assert operate._schemas() == tuple(script.revision for script in scripts.walk_revisions())


def test_up_down_up(empty):
    expected = {table.name for table in Base.metadata.sorted_tables}
    config = operate.alembic_config(empty)
    operate.migrate(empty)
    assert tables(empty) == expected
    command.check(config)  # raises when the tables in the code differ from those in the migrations
    command.downgrade(config, "base")
    assert tables(empty) == set()
    operate.migrate(empty)
    operate.migrate(empty)
    assert tables(empty) == expected
    command.check(config)


def test_several_processes_may_migrate_at_once(empty):
    # Alembic keeps its context in globals, so each run has a process of its own.
    code = (
        "import sys; from suture_service import operate; from suture_service.settings import Settings; "
        "operate.migrate(Settings(database_url=sys.argv[1]))"
    )
    command_line = [sys.executable, "-W", "error", "-c", code, empty.database_url]
    runs = [subprocess.Popen(command_line, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for run in runs:
        _, errors = run.communicate(timeout=200)
        assert run.returncode == 0, errors
    assert "parties" in tables(empty)


def test_a_hub_refuses_a_database_that_is_not_migrated(empty):
    app = create_app(empty)
    with pytest.raises(SutureError) as error, TestClient(app):
        pass
    app.state.hub.database.close()
    assert error.value.code == "hub.not_migrated"
    assert "suture hub migrate" in error.value.hint


@pytest.mark.parametrize("url", ["mysql://x/y", "nonsense", "sqlite+aiosqlite:///x"])
def test_other_databases_are_refused(url):
    with pytest.raises(SutureError) as error:
        open_engine(url)
    assert error.value.code == "hub.database"
    assert error.value.where == "database_url"


def test_what_was_published_before_has_a_history(empty):
    config = operate.alembic_config(empty)
    command.upgrade(config, "0001")
    engine = open_engine(empty.database_url).execution_options(suture_write=True)
    now = "2026-01-02 03:04:05"
    with engine.begin() as connection:
        for statement in (
            f"INSERT INTO parties (id, name, created_at) VALUES (1, 'north', '{now}')",
            "INSERT INTO models (id, party_id, name, visibility, task, description, created_at, updated_at) "
            f"VALUES (1, 1, 'polyps', 'all', 'classification', '', '{now}', '{now}')",
            "INSERT INTO revisions (id, model_id, revision, created_at, created_by, metadata) "
            f"VALUES (3, 1, '{'a' * 40}', '{now}', 'north', '{{}}'), (7, 1, '{'b' * 40}', '{now}', 'north', '{{}}')",
            f"INSERT INTO revision_files (revision_id, name, size, sha256) VALUES (3, 'README.md', 1, '{'c' * 64}')",
            "INSERT INTO model_shares (model_id, party_id) VALUES (1, 1)",
            "INSERT INTO tokens (id, party_id, secret_sha256, roles, created_at) "
            f"VALUES ('tok_1', 1, '{'d' * 64}', '[]', '{now}')",
        ):
            connection.execute(text(statement))
    command.upgrade(config, "head")
    with engine.begin() as connection:
        rows = connection.execute(text("SELECT id, parent_id, revision_id, title FROM commits ORDER BY id")).all()
        oids = connection.execute(text("SELECT oid FROM commits ORDER BY id")).scalars().all()
        moment, parent = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), None
        for oid, tree in zip(oids, ("a" * 40, "b" * 40), strict=True):
            parent = commit_id(1, parent, tree, "north", moment, "Publish", "")
            assert oid == parent, "as for a commit that is made today"
        assert [tuple(row) for row in rows] == [(3, None, 3, "Publish"), (7, 3, 7, "Publish")]
        assert connection.execute(text("SELECT kind, name, commit_id FROM refs")).one() == ("branch", "main", 7)
        added = "INSERT INTO commits (model_id, revision_id, oid, title, message, created_at, created_by) "
        connection.execute(text(f"{added} VALUES (1, 3, 'c', 'back', '', '{now}', 'north')"))
        assert connection.execute(text("SELECT MAX(id) FROM commits")).scalar_one() == 8
    engine.dispose()


def test_a_migration_that_fails_changes_nothing_and_says_what_to_do(empty):
    config = operate.alembic_config(empty)
    command.upgrade(config, "0017")
    engine = open_engine(empty.database_url).execution_options(suture_write=True)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE tree_files (somebody_elses INTEGER)"))
    before = tables(empty)
    with pytest.raises(SutureError) as error:
        operate.migrate(empty)
    assert error.value.code == "hub.migration"
    assert "0017" in error.value.message
    assert "suture hub migrate" in error.value.hint
    assert tables(empty) == before, "tree_parts, which came first, is gone again"
    with engine.begin() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "0017"
        connection.execute(text("DROP TABLE tree_files"))
    engine.dispose()
    operate.migrate(empty)


def test_a_second_engine_in_a_process_leaves_the_first_its_locks(tmp_path):
    """Else another process that ends would take away the log that the first one still writes to."""
    path = tmp_path / "hub.db"
    first = open_engine(f"sqlite:///{path}")
    alone = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('PRAGMA journal_mode=DELETE')"
    with first.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE kept (x)")
        connection.commit()
        open_engine(f"sqlite:///{path}").dispose()
        ended = subprocess.run([sys.executable, "-c", alone, str(path)], capture_output=True, text=True, check=False)
    first.dispose()
    assert "database is locked" in ended.stderr
