"""Repositories of many files: rows grow with what changes, and a page costs as many statements whatever there is."""

from __future__ import annotations

import random

from alembic import command
from sqlalchemy import func, select, text
from tests.service.hf_calls import commit, files, make, put
from tests.service.test_statements import statements

from suture_service import operate
from suture_service.database import open_engine
from suture_service.hf import files as listing
from suture_service.hf import last_commits
from suture_service.settings import Settings
from suture_service.tables import RevisionPart, TreeFile, TreePart

MANY = 600
#: In the order of their characters' numbers: no other order, and no letter for another.
NAMES = ["B.txt", "a b", "a-b", "a/1", "a/é", "a/한", "a0", "b", "c/D/x", "c/c/x", "c/c/y", "z%", "z_", "é"]


def rows(world):
    with world.hub.database.reading() as session:
        return {
            table.__tablename__: session.scalar(select(func.count()).select_from(table))
            for table in (TreePart, RevisionPart, TreeFile)
        }


def filled(world, count):
    repo = make(world.north)
    lines = [put(f"d{index % 7}/file{index}.txt", b"%d" % index) for index in range(count)]
    assert commit(world.north, repo, *lines).status_code == 200
    return repo


def test_a_commit_adds_rows_for_what_it_changes(world):
    repo = filled(world, MANY)
    before = rows(world)
    assert before["tree_files"] == MANY
    assert commit(world.north, repo, put("d1/file1.txt", b"changed")).status_code == 200
    after = rows(world)
    added = {table: after[table] - before[table] for table in before}
    assert added["tree_parts"] == 1, "the part that the file lies in"
    assert added["revision_parts"] == before["revision_parts"]
    assert sum(added.values()) < MANY / 5
    assert commit(world.north, repo, put("d1/file1.txt", b"1")).status_code == 200, "as it was"
    assert rows(world) == after
    assert commit(world.north, repo, ("deletedFolder", {"path": "d2"})).status_code == 200
    assert len(files(world.north, repo)) == MANY - len(range(2, MANY, 7))


def test_one_part_has_only_so_many_files(world, monkeypatch):
    monkeypatch.setattr("suture_service.models.trees._MOST", 10)
    repo = filled(world, 50)
    with world.hub.database.reading() as session:
        assert max(session.scalars(select(func.count()).select_from(TreeFile).group_by(TreeFile.part_id))) <= 10
    assert len(files(world.north, repo)) == 50


def test_a_page_costs_as_many_statements_with_many_files_and_commits(world, monkeypatch):
    monkeypatch.setattr(listing, "PAGE", 50)
    costs = {False: [], True: []}
    for count, commits in ((120, 4), (MANY, 20)):
        repo = make(world.north, f"north/with{count}")
        for index in range(commits):
            lines = [put(f"d{number % 7}/{number}", b"%d" % index) for number in range(index, count, commits)]
            assert commit(world.north, repo, *lines).status_code == 200
        for expand, most in costs.items():
            url, pages = f"/api/models/{repo}/tree/main?recursive=true&expand={expand}", []
            while url:
                with statements(world) as sent:
                    answer = world.north.get(url)
                assert len(answer.json()) <= 50
                pages.append(len(sent))
                url = answer.links.get("next", {}).get("url")
            most.append(max(pages))
    for few, many in costs.values():
        assert few == many <= 8, costs


def test_a_download_asks_for_little(world):
    repo = filled(world, MANY)
    sha = world.north.get(f"/api/models/{repo}").json()["sha"]
    for method in ("HEAD", "GET"):
        with statements(world) as sent:
            assert world.north(method, f"/{repo}/resolve/{sha}/d3/file3.txt").status_code == 200
        assert len(sent) == 2, "the token, the file"


def test_names_come_in_one_order_on_either_database(world, monkeypatch):
    monkeypatch.setattr("suture_service.models.trees._MOST", 3)
    monkeypatch.setattr(listing, "PAGE", 2)
    repo = make(world.north)
    assert commit(world.north, repo, *(put(name) for name in NAMES)).status_code == 200

    def tree(folder="", **asked):
        found, answer = [], world.north.get(f"/api/models/{repo}/tree/main{folder}", params=asked)
        while True:
            found += answer.json()
            if "next" not in answer.links:
                return found
            answer = world.north.get(answer.links["next"]["url"])

    folders = {"a", "c", "c/D", "c/c"}
    assert [entry["path"] for entry in tree(recursive=True)] == sorted([*NAMES, *folders])
    assert [entry["path"] for entry in tree()] == sorted({name.partition("/")[0] for name in NAMES})
    assert [entry["path"] for entry in tree("/c/c")] == ["c/c/x", "c/c/y"], "in no other folder of nearly this name"
    whole = {entry["path"]: entry["oid"] for entry in tree(recursive=True)}
    assert {entry["path"]: entry["oid"] for entry in tree()}.items() <= whole.items()
    for name in NAMES:
        assert world.north.get(f"/{repo}/resolve/main/{name}", follow_redirects=True).status_code == 200
    asked = {"files": [{"path": name, "size": 1, "sample": ""} for name in [*NAMES, "c/c/X", "b/x"]]}
    found = world.north.post(f"/api/models/{repo}/preupload/main", asked).json()["files"]
    assert [file["path"] for file in found if file["oid"] is not None] == NAMES


def test_each_file_and_folder_names_the_commit_that_last_changed_it(world, monkeypatch):
    """Compared with what a plain replay of the same commits says."""
    monkeypatch.setattr("suture_service.models.trees._MOST", 5)
    monkeypatch.setattr(last_commits, "_AT_ONCE", 3)
    draw, repo = random.Random(4), make(world.north)
    present, changed = {}, {}
    for step in range(15):
        lines = {}
        for _ in range(draw.randrange(1, 6)):
            name = f"{draw.choice('abc')}/{draw.choice('de')}/{draw.randrange(6)}"
            if name in lines:
                continue
            if name in present and draw.random() < 0.3:
                lines[name] = ("deletedFile", {"path": name})
                del present[name], changed[name]
            else:
                content = b"%d" % draw.randrange(3)
                lines[name] = put(name, content)
                if present.get(name) != content:
                    present[name], changed[name] = content, f"step {step}"
        assert commit(world.north, repo, *lines.values(), summary=f"step {step}").status_code == 200
    shown = world.north.get(f"/api/models/{repo}/tree/main?recursive=true&expand=true").json()
    named = {entry["path"]: entry["lastCommit"]["title"] for entry in shown}
    assert {path: title for path, title in named.items() if path in present} == changed
    for folder in ("a", "b/d", "c"):
        below = [int(title[5:]) for name, title in changed.items() if name.startswith(f"{folder}/")]
        assert named.get(folder) == (f"step {max(below)}" if below else None)


def test_what_was_there_before_lies_in_parts_that_revisions_share(empty_database, tmp_path):
    settings = Settings(database_url=empty_database, store=str(tmp_path / "store"))
    config, now = operate.alembic_config(settings), "2026-01-02 03:04:05"
    command.upgrade(config, "0017")
    names = [f"{name}/{index}" for name in "aBé" for index in range(100)]
    old = [(3, name, 1, "c" * 64, None) for name in names]
    new = [(7, name, 1, ("d" if name == "B/7" else "c") * 64, "e" * 40 if name == "a/1" else None) for name in names]
    engine = open_engine(settings.database_url).execution_options(suture_write=True)
    revisions = f"(3, 1, '{'a' * 40}', '{now}', 'north'), (7, 1, '{'b' * 40}', '{now}', 'north')"
    with engine.begin() as connection:
        for statement in (
            f"INSERT INTO parties (id, name, created_at) VALUES (1, 'north', '{now}')",
            "INSERT INTO models (id, party_id, name, visibility, task, description, search_text, created_at, "
            f"updated_at) VALUES (1, 1, 'polyps', 'all', '', '', '', '{now}', '{now}')",
            f"INSERT INTO revisions (id, model_id, revision, created_at, created_by) VALUES {revisions}",
        ):
            connection.execute(text(statement))
        added = "INSERT INTO revision_files (revision_id, name, size, sha256, git_oid) VALUES (:r, :n, :s, :d, :g)"
        connection.execute(text(added), [dict(zip("rnsdg", row, strict=True)) for row in old + new])
    command.upgrade(config, "head")
    joined = (
        select(RevisionPart.revision_id, TreeFile.name, TreeFile.size, TreeFile.sha256, TreeFile.git_oid)
        .join(TreeFile, TreeFile.part_id == RevisionPart.part_id)
        .order_by(RevisionPart.revision_id, RevisionPart.last, TreeFile.name)
    )
    with engine.connect() as connection:
        assert [tuple(row) for row in connection.execute(joined)] == sorted(old) + sorted(new, key=lambda row: row[1])
        assert connection.scalar(select(func.count()).select_from(TreeFile)) < len(old + new)
        parts = connection.execute(select(TreePart.id, TreePart.digest)).all()
    engine.dispose()
    assert len({part.digest for part in parts}) == len(parts)
    command.downgrade(config, "0017")
    with engine.connect() as connection:
        asked = text("SELECT revision_id, name, size, sha256, git_oid FROM revision_files")
        assert {tuple(row) for row in connection.execute(asked)} == {*old, *new}
    engine.dispose()


def test_the_short_way_to_a_file_lets_through_nothing_that_the_long_one_refuses(world):
    repo = make(world.north, visibility="private")
    sha = commit(world.north, repo, put("a b/é.txt", b"1")).json()["commitOid"]
    path = f"/{repo}/resolve/{sha}/a%20b/%C3%A9.txt"
    assert world.north.get(path).content == b"1"
    assert world.south.get(path).headers["X-Error-Code"] == "RepoNotFound"
    assert world.client.get(path).status_code == 401
    assert world.north.get(f"/{repo}/resolve/{sha}/a%20b").headers["X-Error-Code"] == "EntryNotFound"
    assert world.north.get(f"/{repo}/resolve/{'0' * 40}/x").headers["X-Error-Code"] == "RevisionNotFound"
    assert world.north.get(f"/{repo}/resolve/{sha}/%FF").status_code == 400
    assert world.north.get(f"/{repo}/resolve/{sha}/{'x' * 4001}").status_code == 400
    settings = {"private": False, "gated": "manual"}
    assert world.north("PUT", f"/api/models/{repo}/settings", json=settings).status_code == 200
    assert world.north.get(path).content == b"1"
    assert world.south.get(path).headers["X-Error-Code"] == "GatedRepo"
    assert world.north("DELETE", "/api/repos/delete", json={"name": "repo"}).status_code == 200
    assert world.north.get(path).headers["X-Error-Code"] == "RepoNotFound"
