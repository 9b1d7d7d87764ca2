"""What a machine does to a hub: its database, its disk and who else may look."""

from __future__ import annotations

import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
from tests import machines
from tests.machines import suture

from suture_contract.errors import SutureError
from suture_service import operate
from suture_service.maintenance.backup import back_up
from suture_service.settings import Settings
from suture_service.storage import BlobStore


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(database_url=f"sqlite:///{tmp_path / 'hub' / 'hub.db'}", store=str(tmp_path / "hub" / "store"))


@pytest.fixture
def hub(settings: Settings, tmp_path: Path) -> Settings:
    (tmp_path / "hub").mkdir()
    operate.migrate(settings)
    return settings


def of(settings: Settings) -> dict[str, str]:
    return {"SUTURE_HUB_DATABASE_URL": settings.database_url, "SUTURE_HUB_STORE": settings.store}


def refused(settings: Settings, *arguments: str) -> str:
    ended = machines.run(suture("hub", *arguments), environment=of(settings))
    said = ended.stderr.decode()
    assert "Traceback" not in said
    assert "unforeseen" not in said
    assert ended.returncode == 5, said
    assert "\nnext:  " in said
    return said


def test_a_database_of_a_later_version(hub: Settings, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "hub" / "hub.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999_from_tomorrow'")
        database.commit()
    for command in (operate.migrate, operate.list_parties):
        with pytest.raises(SutureError) as caught:
            command(hub)
        assert caught.value.code == "hub.newer"
        assert "9999_from_tomorrow" in caught.value.message
    assert "later version" in refused(hub, "migrate")


def test_a_database_that_was_not_migrated(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    with pytest.raises(SutureError) as caught:
        operate.add_party(settings, "north")
    assert caught.value.code == "hub.not_migrated"


@pytest.mark.parametrize("arguments", [("migrate",), ("gc", "--dry-run")], ids=" ".join)
def test_a_database_that_does_not_answer(settings: Settings, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    away = settings.model_copy(update={"database_url": f"postgresql://hub:s3cret@/none?host={tmp_path}"})
    said = refused(away, *arguments)
    assert "hub.database" in said
    assert "s3cret" not in said


def test_a_folder_that_is_not_there(settings: Settings) -> None:
    with pytest.raises(SutureError) as caught:
        operate.migrate(settings)
    assert caught.value.code == "hub.database"


def test_a_file_that_is_no_database(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "hub.db").write_bytes(b"no database at all" * 1000)
    with pytest.raises(SutureError) as caught:
        operate.migrate(settings)
    assert caught.value.code == "hub.database"


def test_a_full_disk(hub: Settings, tmp_path: Path) -> None:
    ended = machines.run(suture("hub", "party", "add", "north"), environment=of(hub), largest_file=4096)
    said = ended.stderr.decode()
    assert ended.returncode == 5, said
    assert "hub.database" in said
    assert [party.name for party in operate.list_parties(hub)] == []


def test_a_disk_that_is_read_only(hub: Settings, tmp_path: Path) -> None:
    command = machines.small_disk(tmp_path / "hub", 0, suture("hub", "party", "add", "north"), read_only=True)
    ended = machines.run(command, environment=of(hub))
    assert ended.returncode == 5, ended.stderr.decode()
    assert b"Traceback" not in ended.stderr


def test_a_store_that_cannot_be_locked(hub: Settings) -> None:
    command = machines.without_locks(suture("hub", "gc", "--dry-run"))
    ended = machines.run(command, environment=of(hub))
    said = ended.stderr.decode()
    assert ended.returncode == 5, said
    assert "does not lock files" in said


def test_nobody_else_may_look(settings: Settings, tmp_path: Path) -> None:
    """Under the usual umask; also into what was open to others before."""
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "store").mkdir(mode=0o755)
    ended = machines.run(
        ["sh", "-c", 'umask 022; exec "$@"', "sh", *suture("hub", "migrate")], environment=of(settings)
    )
    assert ended.returncode == 0, ended.stderr.decode()
    database = tmp_path / "hub" / "hub.db"
    assert stat.S_IMODE(database.stat().st_mode) == 0o600
    database.chmod(0o644)
    with operate.writing(settings):
        names = sorted(path.name for path in database.parent.glob("hub.db*"))
        assert names == ["hub.db", "hub.db-shm", "hub.db-wal"]
        assert {stat.S_IMODE(path.stat().st_mode) for path in database.parent.glob("hub.db*")} == {0o600}
    back_up(settings, tmp_path / "backup")
    BlobStore(settings.store)
    for place in (tmp_path / "hub" / "store", tmp_path / "backup"):
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
    files = [path for path in (tmp_path / "backup").rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
