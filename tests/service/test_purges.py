"""Taking away for good: the content, every revision that held it, its copies, and what a backup would bring back."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

import pytest
from sqlalchemy import select
from tests.service.hf_calls import commit, make, put, send

from suture_contract.console.terminal import Format
from suture_contract.errors import SutureError
from suture_service import operate
from suture_service.audit import chain
from suture_service.audit.chain import OPERATOR
from suture_service.database import Database
from suture_service.maintenance.backup import back_up, purge_backup, restore
from suture_service.maintenance.collection import collect
from suture_service.maintenance.reconciling import reconcile
from suture_service.purges import repository, service
from suture_service.purges.service import PurgeTarget
from suture_service.settings import Settings
from suture_service.storage import BlobStore
from suture_service.tables import AuditEntry, Commit, Purge, ReceivedFile, SentContent, TreeFile, XetXorb

ROWS = b"name,born\nsomebody,1950\n"
DIGEST = hashlib.sha256(ROWS).hexdigest()
REASON = "rows of patients"
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
across = pytest.mark.parametrize(
    ("database_url", "into"), [("sqlite", "postgresql"), ("postgresql", "sqlite")], indirect=True
)


def head(actor, repo="north/repo"):
    return actor.get(f"/api/models/{repo}").json()["sha"]


def names(actor, repo="north/repo", revision="main"):
    return [entry["path"] for entry in actor.get(f"/api/models/{repo}/tree/{revision}").json()]


def holds(world, digest=DIGEST):
    return (Path(world.settings.store) / "sha256" / digest[:2] / digest).exists()


def with_rows(world):
    """A repository whose last four commits hold rows of patients, and a tag at one of them; return the first two."""
    make(world.north)
    commit(world.north, "north/repo", put("notes.txt", b"notes"))
    clean = head(world.north)
    commit(world.north, "north/repo", put("patients.csv", ROWS), summary="Add somebody's rows")
    commit(world.north, "north/repo", put("more.txt", b"more"), put("gone.txt"))
    dirty = head(world.north)
    assert world.north.post("/api/models/north/repo/tag/main", {"tag": "v1"}).status_code == 200
    commit(world.north, "north/repo", ("deletedFile", {"path": "patients.csv"}), put("copy.csv", ROWS))
    commit(world.north, "north/repo", ("deletedFile", {"path": "gone.txt"}))
    return clean, dirty


def purge(actor, repo="north/repo", **body):
    return actor.post(f"/v1/models/{repo}/purge", {"reason": REASON, **body})


def by_operator(world, **target):
    with operate.running(world.settings) as hub:
        return service.purge(hub, PurgeTarget("north/repo", **target), "hub", by=OPERATOR, reason=REASON)


def test_a_path_goes_with_every_revision_that_held_its_content(world):
    clean, dirty = with_rows(world)
    make(world.north, "north/other")
    commit(world.north, "north/other", put("elsewhere.csv", ROWS))
    planned = purge(world.north, path="patients.csv", dry_run=True).json()
    assert (planned["id"], planned["done"], planned["digests"], len(planned["revisions"])) == (None, False, [DIGEST], 5)
    assert holds(world)
    assert names(world.north, revision=dirty) == ["gone.txt", "more.txt", "notes.txt", "patients.csv"]
    done = purge(world.north, path="patients.csv").json()
    assert (done["done"], done["revisions"]) == (True, planned["revisions"])
    assert not holds(world)
    assert names(world.north) == ["more.txt", "notes.txt"]
    assert names(world.north, "north/other") == []
    assert names(world.north, revision=clean) == ["notes.txt"]
    for revision in (dirty, dirty[:8]):
        answer = world.north.get(f"/north/repo/resolve/{revision}/patients.csv")
        assert (answer.status_code, answer.headers["X-Error-Code"]) == (404, "RevisionNotFound")
        assert REASON in answer.text
    assert world.north.get("/api/models/north/repo/refs").json()["tags"] == []
    titles = [entry["title"] for entry in world.north.get("/api/models/north/repo/commits/main").json()]
    assert titles == [service.TITLE, *["purged"] * 4, "Change", "initial commit"]
    with world.hub.database.reading() as session:
        for row in (TreeFile, ReceivedFile, SentContent):
            assert session.scalar(select(row).where(row.sha256 == DIGEST)) is None
        entries = session.scalars(select(AuditEntry).where(AuditEntry.action == "model.purge")).all()
        assert {(entry.actor, entry.what) for entry in entries} == {("north", "north/repo"), ("north", "north/other")}
        for entry in entries:
            assert (entry.detail["reason"], entry.detail["digests"]) == (REASON, [DIGEST])
        assert sum(len(entry.detail["revisions"]) for entry in entries) == 5
        chain.verify(session)
    assert purge(world.north, path="patients.csv").json() == {**done, "bytes": 0, "jobs": []}
    assert reconcile(world.settings, deep=True).sound
    assert purge(world.north, path="never.csv").status_code == 404


def test_content_sent_in_parts_and_by_lfs_goes_too(world):
    make(world.north)
    assert send(world, world.north, "north/repo", ROWS).status_code == 200
    lfs = ("lfsFile", {"path": "patients.csv", "algo": "sha256", "oid": DIGEST, "size": len(ROWS)})
    assert commit(world.north, "north/repo", lfs).status_code == 200
    epoch = world.north.get("/api/models/north/repo/xet-write-token/main").json()["casUrl"].rpartition("/")[2]
    piece = Path(world.settings.store) / "pieces" / "p1"
    piece.parent.mkdir()
    piece.write_bytes(ROWS)
    with world.hub.database.writing() as session:
        session.add(XetXorb(epoch_id=epoch, hash="a" * 64, name="p1", size=len(ROWS), layout=b""))
    assert purge(world.north, path="patients.csv").json()["done"]
    assert not holds(world)
    assert not piece.exists()
    again = commit(world.north, "north/repo", lfs)
    assert (again.status_code, "never sent" in again.text) == (400, True)


def test_an_owner_takes_away_its_own_the_operator_everybodys(world):
    with_rows(world)
    make(world.south, "south/repo")
    commit(world.south, "south/repo", put("rows.csv", ROWS))
    refused = purge(world.south, path="patients.csv")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "auth.forbidden")
    reader = world.actor("north")
    assert purge(reader, path="patients.csv").status_code == 403
    assert purge(world.north, path="patients.csv").json()["done"]
    assert holds(world)
    assert names(world.south, "south/repo") == ["rows.csv"]
    again = commit(world.north, "north/repo", put("patients.csv", ROWS))
    assert again.status_code == 200
    done = by_operator(world, path="patients.csv")
    assert {row.repo for row in done.revisions} == {"north/repo", "south/repo"}
    assert not holds(world)
    assert names(world.south, "south/repo") == []


@on_sqlite
def test_a_revision_goes_alone_with_what_no_other_one_holds(world):
    first = world.north.publish("north/digits", model=world.model(seed=1), card=b"# one\n").json()
    second = world.north.publish("north/digits", model=world.model(seed=2), card=b"# one\n").json()
    shared = {file["sha256"] for file in first["files"]} & {file["sha256"] for file in second["files"]}
    assert len(shared) == 2
    done = purge(world.north, "north/digits", revision=second["id"][:9]).json()
    assert [row["revision"] for row in done["revisions"]] == [second["id"]]
    assert {*done["digests"]} == {file["sha256"] for file in second["files"]} - shared
    assert world.north.get(f"/v1/models/north/digits/revisions/{second['id']}").status_code == 404
    latest = world.north.get("/v1/models/north/digits/revisions/latest").json()
    assert latest["id"] == first["id"]
    assert [row["id"] for row in world.north.get("/v1/models/north/digits/revisions").json()["items"]] == [first["id"]]
    back = world.north.publish("north/digits", model=world.model(seed=2), card=b"# one\n")
    assert (back.status_code, back.json()["error"]["code"]) == (409, "revision.purged")
    assert purge(world.north, "north/digits", revision=first["id"]).json()["done"]
    assert world.north.get("/v1/models/north/digits").status_code == 404  # no portable model is left in it
    assert names(world.north, "north/digits") == []
    assert purge(world.north, "north/digits", revision="0" * 40).status_code == 404


@on_sqlite
def test_what_was_made_of_it_is_flagged_and_its_jobs_end(world):
    job = world.ask().json()
    world.fit()
    for party in ("north", "south"):
        world.evaluate(party)
    world.compose()
    other = world.ask(publish_as="second").json()
    planned = purge(world.north, "north/digits", path="model.safetensors", dry_run=True).json()
    assert (len(planned["descendants"]), planned["jobs"]) == (1, [other["id"]])
    assert purge(world.north, "north/digits", path="model.safetensors").json()["done"]
    result = world.job(job)["result"]
    stitched = world.north.get(f"/v1/models/{result['repo']}/revisions/{result['revision']}").json()
    assert [(flag["kind"], flag["repo"], flag["reason"]) for flag in stitched["flags"]] == [
        ("purged", "north/digits", REASON)
    ]
    ended = world.job(other)
    assert (ended["state"], ended["error"]["code"]) == ("failed", "job.member_purged")
    assert {task["state"] for task in ended["tasks"]} <= {"cancelled"}
    again = world.north.post(f"/v1/jobs/{other['id']}/retry")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "job.member_purged")
    assert world.sites["north"].lease() is None
    assert purge(world.north, result["repo"], path="report.json").json()["done"]  # the tasks' files hold it, too
    assert world.north.get(f"/v1/jobs/{job['id']}/report").status_code == 404
    assert reconcile(world.settings, deep=True).sound


class Killed(BaseException):
    """As `kill -9` would: no handler runs, and what was not committed is not there."""


STAGES = {
    "empty": repository,
    "commit": service,
    "finish": service,
    "_empty_store": service,
    "delete": BlobStore,
    "forget_sent": repository,
    "delete_pieces": BlobStore,
    "forget_pieces": repository,
}


@on_sqlite
@pytest.mark.parametrize(("name", "how"), [*((name, "again") for name in STAGES), ("delete", "gc")])
def test_broken_off_anywhere_it_is_finished(world, monkeypatch, name, how):
    clean, dirty = with_rows(world)

    def killed(*_arguments, **_options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(STAGES[name], name, killed)
        with pytest.raises(Killed):
            by_operator(world, path="patients.csv")
    begun = name not in ("empty", "commit")
    with world.hub.database.reading() as session:
        assert [row.done_at for row in session.scalars(select(Purge))] == ([None] if begun else [])
    if how == "gc" and begun:
        collect(world.settings)
    else:
        assert by_operator(world, path="patients.csv").done
    assert not holds(world)
    assert (names(world.north), names(world.north, revision=clean)) == (["more.txt", "notes.txt"], ["notes.txt"])
    assert world.north.get(f"/north/repo/resolve/{dirty}/patients.csv").status_code == 404
    with world.hub.database.reading() as session:
        (row,) = session.scalars(select(Purge))
        assert row.done_at is not None
        assert session.scalar(select(SentContent).where(SentContent.sha256 == DIGEST)) is None
        assert len(session.scalars(select(AuditEntry).where(AuditEntry.action == "model.purge")).all()) == 1
        chain.verify(session)


@pytest.fixture
def into(request, tmp_path):
    """Return hubs that nobody has used, on the database that is asked for; of a name always the same one."""

    @cache
    def hub(name):
        url = f"sqlite:///{tmp_path / name}.db"
        if request.param == "postgresql":
            url = request.getfixturevalue("postgres").empty()
        return Settings(database_url=url, store=str(tmp_path / name))

    return hub


def shows(settings):
    """What the rows and the store of a hub still have of it."""
    database = Database(settings.database_url)
    try:
        with database.reading() as session:
            rows = session.scalars(select(TreeFile.name).where(TreeFile.sha256 == DIGEST)).all()
            titles = set(session.scalars(select(Commit.title)))
            chain.verify(session)
    finally:
        database.close()
    there = (Path(settings.store) / "sha256" / DIGEST[:2] / DIGEST).exists()
    return bool(rows), any("somebody" in title for title in titles), there


@across
def test_a_restore_does_not_bring_it_back(world, into, tmp_path):
    with_rows(world)
    told, untold = tmp_path / "told", tmp_path / "untold"
    for folder in (told, untold):
        back_up(world.settings, folder)
    by_operator(world, path="patients.csv")
    commit(world.north, "north/repo", put("later.txt", b"later"))
    with operate.reading(world.settings) as session:
        known = service.kept(session)
    restore(into("silent"), untold)
    assert shows(into("silent")) == (True, True, True)  # nobody told anything
    restore(into("named"), untold, purged=known)
    assert shows(into("named")) == (False, False, False)
    assert purge_backup(world.settings, told, known) == [known[0].id]
    assert purge_backup(world.settings, told, known) == []
    assert not [path for path in told.rglob("*") if path.is_file() and ROWS in path.read_bytes()]
    assert not [path for path in told.rglob("*") if path.is_file() and b"somebody's rows" in path.read_bytes()]
    restore(into("after"), told)
    assert shows(into("after")) == (False, False, False)
    assert reconcile(into("after"), deep=True).sound
    back_up(world.settings, untold)  # a later backup into the same folder has it no more
    assert not (untold / "sha256" / DIGEST[:2] / DIGEST).exists()


@pytest.mark.parametrize(("database_url", "into"), [("sqlite", "sqlite")], indirect=True)
def test_what_came_after_a_purge_is_not_purged_by_a_restore(world, into, tmp_path):
    with_rows(world)
    by_operator(world, path="patients.csv")
    commit(world.north, "north/repo", put("rows.csv", ROWS))
    back_up(world.settings, tmp_path / "backup")
    with operate.reading(world.settings) as session:
        known = service.kept(session)
    restore(into("new"), tmp_path / "backup", purged=known)
    assert shows(into("new")) == (True, False, True)


@across
def test_the_commands_say_first_what_goes(world, into, tmp_path, monkeypatch, capsys):
    from suture_service.commands.purges import purge as command
    from suture_service.commands.purges import purges
    from suture_service.commands.store import restore as restore_command

    for name, value in {"DATABASE_URL": world.settings.database_url, "STORE": world.settings.store}.items():
        monkeypatch.setenv(f"SUTURE_HUB_{name}", value)
    with_rows(world)
    back_up(world.settings, tmp_path / "backup")
    with pytest.raises(SutureError) as refused:
        command("north/repo", REASON, path="patients.csv")
    assert refused.value.code == "command.unconfirmed"
    assert "4 revisions go with them" in capsys.readouterr().err
    assert holds(world)
    with pytest.raises(SutureError, match="a path, or a revision"):
        command("north/repo", REASON)
    command("north/repo", REASON, path="patients.csv", yes=True)
    assert "purged 1 files and 4 revisions" in capsys.readouterr().out
    purges(format=Format.json)
    written = tmp_path / "purges.json"
    written.write_text(capsys.readouterr().out)
    assert json.loads(written.read_text())[0]["digests"] == [DIGEST]
    purges(backup=[tmp_path / "backup"])
    assert "1 purges were new to it" in capsys.readouterr().err
    monkeypatch.setenv("SUTURE_HUB_DATABASE_URL", into("new").database_url)
    monkeypatch.setenv("SUTURE_HUB_STORE", into("new").store)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(SutureError) as wrong:
        restore_command(tmp_path / "backup", purges=tmp_path / "other.json")
    assert wrong.value.code == "purges.unknown"
    restore_command(tmp_path / "backup", purges=written)
    assert shows(into("new")) == (False, False, False)
