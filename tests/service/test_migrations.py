"""The schema: up, down and up again on both databases; and it is the one the code was written for."""

from __future__ import annotations

import subprocess
import sys

import pytest
from alembic import command
from sqlalchemy import inspect
from starlette.testclient import TestClient

from suture_service import operate
from suture_service.database import Base, open_engine
from suture_service.main import create_app
from suture_service.settings import Settings
from suture_stitching.errors import SutureError


@pytest.fixture
def empty(empty_database, tmp_path):
    return Settings(database_url=empty_database, store=str(tmp_path / "store"))


def tables(settings):
    engine = open_engine(settings.database_url)
    try:
        return set(inspect(engine).get_table_names()) - {"alembic_version"}
    finally:
        engine.dispose()


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
    runs = [subprocess.Popen(command_line, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for run in runs:
        _, errors = run.communicate(timeout=60)
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
