"""Garbage collection, reconciling, backup and restore: on both databases, beside commits that run."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import String, delete, func, select

from suture_contract.errors import SutureError
from suture_service.database import Base, Database
from suture_service.errors import Unavailable
from suture_service.hub import utc_now
from suture_service.maintenance import collection
from suture_service.maintenance.backup import back_up, restore
from suture_service.maintenance.collection import Collected, collect
from suture_service.maintenance.reconciling import reconcile
from suture_service.models import references
from suture_service.settings import Settings
from suture_service.tables import BlobDigest, Job, Model, ReceivedFile, Task, TaskFile, TreeFile, TreePart

HOUR = timedelta(hours=1)


def blob(world, digest):
    return Path(world.settings.store) / "sha256" / digest[:2] / digest


def age(world, *digests):
    """Let kept files be two days old; all of them without digests."""
    folder = Path(world.settings.store) / "sha256"
    for path in [blob(world, digest) for digest in digests] or folder.rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - 2 * 86400,) * 2)


def publish(world, repo="north/digits", **options):
    answer = world.north.publish(repo, **options)
    assert answer.status_code == 201, answer.text
    return {file["name"]: file["sha256"] for file in answer.json()["files"]}


def forget(world, repo="digits"):
    """Let nothing refer to a model's files any more."""
    with world.hub.database.writing() as session:
        parts = select(TreePart.id).join(Model, Model.id == TreePart.model_id).where(Model.name == repo)
        session.execute(delete(TreeFile).where(TreeFile.part_id.in_(parts)))


def test_no_column_that_may_name_a_blob_is_forgotten():
    """Every column that can hold a sha256 is either marked as naming a blob, or listed here as something else."""
    others = {"tokens.secret_sha256", "hub_keys.secret", "audit.digest", "audit.address", "audit.request_id"}
    others |= {"audit.action", "tasks.correlation_id", "jobs.error_correlation_id", "xet_xorbs.hash"}
    others |= {"party_keys.fingerprint", "tokens.login_sha256", "sent_contents.sha256", "purges.path_sha256"}
    others |= {"tree_parts.digest", "sessions.secret_sha256", "sites.version"}
    for table in Base.metadata.tables.values():
        for column in table.columns:
            if isinstance(column.type, BlobDigest):
                assert "size" in table.columns
            elif (isinstance(column.type, String) and column.type.length == 64) or "sha256" in column.name:
                assert f"{table.name}.{column.name}" in others
    names = {f"{column.table.name}.{column.name}" for column in references.blob_columns()}
    assert {"tree_files.sha256", "task_files.sha256", "received_files.sha256"} <= names


def test_only_what_nothing_refers_to_and_is_old_is_collected(world):
    kept = publish(world)
    gone = publish(world, "north/other", model=world.model(seed=7))
    forget(world, "other")
    only_gone = {*gone.values()} - {*kept.values()}
    assert only_gone
    assert collect(world.settings).blobs == []  # still young
    age(world)
    (Path(world.settings.store) / "tmp" / "left").write_bytes(b"x")
    planned = collect(world.settings, dry_run=True)
    assert {*planned.blobs} == only_gone
    assert all(blob(world, digest).exists() for digest in only_gone)
    done = collect(world.settings)
    assert (done.blobs, done.bytes, done.temporary) == (planned.blobs, planned.bytes, 1)
    assert world.blobs() == sorted(f"sha256/{digest[:2]}/{digest}" for digest in {*kept.values()})
    assert collect(world.settings).blobs == []
    assert reconcile(world.settings, deep=True).sound


def test_sent_but_never_committed(world):
    publish(world)
    content = world.model(seed=3)
    gone = publish(world, "north/other", model=content)["model.safetensors"]
    forget(world, "other")
    with world.hub.database.writing() as session:
        model = session.scalars(select(Model).where(Model.name == "digits")).one()
        session.add(ReceivedFile(model_id=model.id, sha256=gone, size=len(content), created_at=utc_now() - HOUR))
    age(world, gone)
    assert collect(world.settings).blobs == []
    done = collect(world.settings, grace=HOUR / 2)
    assert (done.blobs, done.received) == ([gone], 1)


def test_a_dry_run_tells_what_the_run_after_it_does(world):
    """Rows that a collection removes first keep nothing, also where two of them name the same content."""
    world.later(-91 * 86400)
    old = world.ask(publish_as="both").json()["id"]
    world.fit()
    world.evaluate("north")
    world.evaluate("south")
    world.compose()
    world.later(91 * 86400)
    young = world.ask().json()["id"]
    world.fit(n=413)
    sent = {seed: world.model(seed=seed) for seed in (21, 22, 23)}
    late, waiting, orphan = (publish(world, f"north/m{seed}", model=sent[seed])["model.safetensors"] for seed in sent)
    for seed in sent:
        forget(world, f"m{seed}")
    left = select(TaskFile).join(Task).where(Task.job_id == old, TaskFile.name == "candidates.json")
    with world.hub.database.writing() as session:
        model = session.scalars(select(Model).where(Model.name == "m21")).one()
        candidates = session.scalars(left).one()
        for digest, size, hours in (
            (late, len(sent[21]), 25),
            (candidates.sha256, candidates.size, 25),
            (waiting, len(sent[22]), 23),
        ):
            received_at = utc_now() - hours * HOUR
            session.add(ReceivedFile(model_id=model.id, sha256=digest, size=size, created_at=received_at))
    age(world)
    before, stored = rows(world.settings), world.blobs()
    planned = collect(world.settings, dry_run=True)
    assert (rows(world.settings), world.blobs()) == (before, stored)
    assert planned.blobs == sorted([late, orphan, candidates.sha256])
    assert planned.received == 2
    assert planned.bytes == sum(blob(world, digest).stat().st_size for digest in planned.blobs)
    done = collect(world.settings)
    assert replace(done, temporary=None) == planned
    assert {*stored} - {*world.blobs()} == {f"sha256/{digest[:2]}/{digest}" for digest in planned.blobs}
    assert world.north.get(f"/v1/jobs/{young}/files/candidates.json").is_success
    assert collect(world.settings, dry_run=True) == Collected([], 0, None, 0)
    assert reconcile(world.settings, deep=True).sound


@pytest.mark.parametrize(("days", "left"), [(89, True), (91, False)])
def test_what_the_tasks_of_a_job_left_is_garbage_long_after_its_end(world, days, left):
    world.later(-days * 86400)
    job = world.ask(publish_as="both").json()["id"]
    world.fit()
    world.evaluate("north")
    world.evaluate("south")
    world.compose()
    published = world.north.get("/v1/models/north/both/revisions/latest").json()["files"]
    world.later(days * 86400)
    age(world)
    collect(world.settings)
    assert world.north.get(f"/v1/jobs/{job}/files/candidates.json").is_success == left
    assert all(blob(world, file["sha256"]).exists() for file in published)
    with world.hub.database.reading() as session:
        assert (session.scalar(select(func.count()).select_from(TaskFile)) > 0) == left


def test_what_a_party_that_is_late_needs_is_no_garbage(world):
    world.later(-120 * 86400)
    job = world.ask(evaluate_within=100).json()["id"]
    world.fit()
    world.evaluate("north")
    world.later(200)
    world.compose()
    with world.hub.database.writing() as session:  # as under a longer `late_seconds`
        session.get_one(Job, job).answer_by = utc_now()
    world.later(120 * 86400 - 200)
    age(world)
    collect(world.settings)
    assert world.job({"id": job})["state"] == "partial"
    assert world.north.get(f"/v1/jobs/{job}/files/candidates.json").is_success


def test_a_commit_to_what_was_collected_is_refused(world):
    digest = publish(world)["model.safetensors"]
    size = blob(world, digest).stat().st_size
    blob(world, digest).unlink()
    before = count(world.hub.database)
    with world.hub.database.reading() as session:
        model = session.scalars(select(Model)).one()
    received = ReceivedFile(model_id=model.id, sha256=digest, size=size, created_at=utc_now())
    with pytest.raises(Unavailable) as error, world.hub.database.writing() as session:
        session.add(received)
    assert error.value.code == "store.missing"
    assert count(world.hub.database) == before


def count(database):
    with database.reading() as session:
        return {
            table.name: session.scalar(select(func.count()).select_from(table))
            for table in Base.metadata.tables.values()
        }


@pytest.mark.parametrize("when", ["before_the_lock", "under_the_lock"])
def test_a_collection_and_a_commit_of_the_same_content_meet(world, monkeypatch, when):
    """The content is doomed already when somebody publishes it again: the revision exists and so does its content."""
    publish(world)
    forget(world)
    age(world)
    answers = []
    publishing = threading.Thread(target=lambda: answers.append(world.north.publish("north/again")))

    def meanwhile():
        publishing.start()
        if when == "before_the_lock":
            publishing.join(60)
        else:
            time.sleep(0.5)  # it has kept its content by now, and waits for the lock or is about to

    place = "lock_out_commits" if when == "before_the_lock" else "_still_doomed"
    original = getattr(collection, place)

    def interrupted(*arguments):
        if when == "before_the_lock":
            meanwhile()
            return original(*arguments)
        result = original(*arguments)  # decided, and then the content is kept anew, before it is removed
        meanwhile()
        return result

    monkeypatch.setattr(collection, place, interrupted)
    collect(world.settings)
    publishing.join(60)
    compared = reconcile(world.settings, deep=True)
    assert compared.sound
    if answers[0].status_code == 201:
        assert compared.referred == 2
    else:  # refused, and the next try succeeds
        assert answers[0].json()["error"]["code"] == "store.missing"
        assert compared.referred == 0
        assert world.north.publish("north/again").status_code == 201
        assert reconcile(world.settings, deep=True).sound
    assert when == "under_the_lock" or answers[0].status_code == 201


def test_reconcile_finds_each_kind_of_damage(world):
    files = publish(world, card=b"# Digits")
    orphan = publish(world, "north/other", model=world.model(seed=8))["model.safetensors"]
    forget(world, "other")
    age(world)
    assert reconcile(world.settings).orphaned == [orphan]
    blob(world, files["README.md"]).unlink()
    blob(world, files["suture.json"]).write_bytes(b"short")
    model = blob(world, files["model.safetensors"])
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    found = reconcile(world.settings)
    assert (found.missing, found.wrong_size, found.damaged) == ([files["README.md"]], [files["suture.json"]], None)
    assert (found.referred, found.stored, found.orphaned_bytes) == (3, 3, blob(world, orphan).stat().st_size)
    assert not found.sound
    assert reconcile(world.settings, deep=True).damaged == [files["model.safetensors"]]


#: From each kind of database to the other. What is the same whatever the second one is needs no more.
ACROSS = pytest.mark.parametrize(
    ("database_url", "other"), [("sqlite", "postgresql"), ("postgresql", "sqlite")], indirect=True
)

#: What is settled by files, or by what commands print.
ON_SQLITE = pytest.mark.parametrize(("database_url", "other"), [("sqlite", "sqlite")], indirect=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def other(request, tmp_path):
    """A hub that nobody has used, on either database."""
    url = f"sqlite:///{tmp_path / 'other.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").empty()
    return Settings(database_url=url, store=str(tmp_path / "other-store"))


def rows(settings):
    database = Database(settings.database_url)
    try:
        with database.reading() as session:
            return {
                table.name: sorted((dict(row) for row in session.execute(select(table)).mappings()), key=repr)
                for table in Base.metadata.tables.values()
            }
    finally:
        database.close()


def test_a_backup_restored_is_the_same_hub(world, other, tmp_path):
    assert world.ask().status_code == 201
    world.fit()
    folder = tmp_path / "backup"
    first = back_up(world.settings, folder)
    assert (first.missing, first.copied) == ([], first.blobs)
    publish(world, "north/later", model=world.model(seed=11))
    second = back_up(world.settings, folder)
    assert second.copied == second.blobs - first.blobs == 1
    restored = restore(other, folder)
    assert restored.blobs == second.blobs
    assert rows(other) == rows(world.settings)
    assert reconcile(other, deep=True).sound
    with pytest.raises(SutureError) as error:
        restore(other, folder)
    assert error.value.code == "restore.not_empty"
    assert sorted(path.name for path in folder.glob("database-*"))[0].endswith(".sqlite")
    assert len(list(folder.glob("database-*"))) == 1


@ACROSS
def test_the_restored_hub_goes_on(world, other, tmp_path):
    from starlette.testclient import TestClient

    from suture_service.main import create_app

    files = publish(world)
    back_up(world.settings, tmp_path / "backup")
    restore(other, tmp_path / "backup")
    with TestClient(create_app(other)) as client:
        north = type(world.north)(client, world.north.token)
        path = "/v1/models/north/digits/revisions/latest/files/model.safetensors"
        assert north.get(path).content == blob(world, files["model.safetensors"]).read_bytes()
        assert north.publish("north/new", model=world.model(seed=5)).status_code == 201
        assert north.publish("north/digits", model=world.model(seed=6)).status_code == 201


def test_what_is_collected_during_a_backup_is_no_gap_in_it(world, tmp_path, monkeypatch):
    from suture_service.maintenance import backup

    publish(world)
    publish(world, "north/other", model=world.model(seed=9))
    age(world)
    original, times = backup._copy, []

    async def slow(*arguments):
        if not times:
            forget(world, "other")
            assert len(collect(world.settings).blobs) == 1
        times.append(1)
        return await original(*arguments)

    monkeypatch.setattr(backup, "_copy", slow)
    done = back_up(world.settings, tmp_path / "backup")
    assert (done.missing, done.blobs, len(times)) == ([], 2, 2)
    assert len(list((tmp_path / "backup").rglob("sha256/*/*"))) == 2


@ON_SQLITE
def test_a_lost_file_does_not_prevent_a_backup(world, other, tmp_path):
    lost = publish(world)["model.safetensors"]
    blob(world, lost).unlink()
    done = back_up(world.settings, tmp_path / "backup")
    assert done.missing == [lost]
    assert restore(other, tmp_path / "backup").missing == [lost]
    assert reconcile(other).missing == [lost]


@ACROSS
def test_a_damaged_backup_is_refused_and_leaves_the_hub_empty(world, other, tmp_path):
    files = publish(world)
    folder = tmp_path / "backup"
    back_up(world.settings, folder)
    model = folder / "sha256" / files["model.safetensors"][:2] / files["model.safetensors"]
    content = model.read_bytes()
    damaged = bytearray(content)
    damaged[-1] ^= 1
    for change, where in (
        (lambda: model.write_bytes(damaged), files["model.safetensors"]),
        (model.unlink, files["model.safetensors"]),
    ):
        change()
        with pytest.raises((SutureError, ExceptionGroup)):
            restore(other, folder)
        assert where
    model.write_bytes(content)
    database = next(folder.glob("database-*"))
    whole = database.read_bytes()
    database.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(SutureError) as error:
        restore(other, folder)
    assert (error.value.code, error.value.where) == ("backup.damaged", database.name)
    database.write_bytes(whole)
    assert restore(other, folder).missing == []


def test_a_folder_that_is_no_backup(world, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("")
    with pytest.raises(SutureError) as error:
        back_up(world.settings, tmp_path / "thesis")
    assert error.value.code == "backup.folder"
    (tmp_path / "thesis" / "backup.json").write_text(json.dumps({"schema": "other"}))
    with pytest.raises(SutureError) as error:
        restore(world.settings, tmp_path / "thesis")
    assert error.value.code == "backup.unknown"


def command(settings, *arguments):
    from tests import cli_json
    from typer.testing import CliRunner

    from suture.cli.app import app

    env = {"SUTURE_HUB_DATABASE_URL": settings.database_url, "SUTURE_HUB_STORE": settings.store}
    ended = CliRunner().invoke(app, ["hub", *arguments], env=env)
    if "json" in arguments and ended.stdout:
        cli_json.checked(["hub", *arguments], ended.stdout)
    return ended


@ON_SQLITE
def test_the_commands(world, other, tmp_path):
    lost = publish(world)["model.safetensors"]
    gone = publish(world, "north/other", model=world.model(seed=4))["model.safetensors"]
    forget(world, "other")
    age(world)
    folder = str(tmp_path / "backup")
    assert "would remove 1 files" in command(world.settings, "gc", "--dry-run").output
    assert json.loads(command(world.settings, "gc", "--format", "json").stdout)["blobs"] == [gone]
    assert command(world.settings, "reconcile", "--deep").exit_code == 0
    assert "2 are new" in command(world.settings, "backup", folder).output
    blob(world, lost).unlink()
    answer = command(world.settings, "reconcile", "--format", "json")
    assert (answer.exit_code, json.loads(answer.stdout)["missing"]) == (8, [lost])
    assert command(other, "restore", folder).exit_code == 0
    assert json.loads(command(other, "reconcile", "--deep", "--format", "json").stdout)["sound"]
    again = command(other, "restore", folder)
    assert (again.exit_code, "restore.not_empty" in again.output) == (5, True)
