"""The Hub protocol beneath the official client: what it must never give away, and what is refused without a trace."""

from __future__ import annotations

import hashlib
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode

import pytest
from tests.service.hf_calls import OID, SECRET, batch, commit, files, lfs, make, put, send

from suture_service.hf import commits
from suture_service.hf.changes import MAX_ENTRIES
from suture_service.models.service import revision_id
from suture_service.models.trees import StoredFile
from suture_service.storage import blobs
from suture_service.storage.blobs import KeptFile, Upload


def commit_model(world, repo, content):
    """Name a model that was sent by LFS, beside a fitting `suture.json`."""
    model = lfs("model.safetensors", hashlib.sha256(content).hexdigest(), size=len(content))
    return commit(world.north, repo, model, put("suture.json", json.dumps(world.metadata()).encode()))


def test_weights_are_looked_at_while_they_come_and_not_read_again(world, monkeypatch):
    """Neither when they are published nor when a commit names them; where nobody knows of them, they are read."""
    read = []

    def counted(kind):
        read_into = kind.read_into

        def count(self, offset, buffer):
            read.append(kind)
            return read_into(self, offset, buffer)

        monkeypatch.setattr(kind, "read_into", count)

    counted(KeptFile)
    counted(Upload)
    nan = bytearray(world.model())
    nan[-4:] = struct.pack("<f", float("nan"))
    repo, other = make(world.north), world.model(seed=2)
    for content in (world.model(), bytes(nan), other):
        assert send(world, world.north, repo, content).status_code == 200
    assert commit_model(world, repo, world.model()).status_code == 200
    assert world.north.publish("north/digits", model=world.model(seed=1)).status_code == 201
    assert not read
    refused = world.north.publish("north/digits", model=bytes(nan))
    assert refused.json()["error"]["code"] == "model.not_finite"
    assert set(read) == {Upload}
    for known in (True, False):  # the latter as where another process of the hub took it in
        if not known:
            world.hub.store.seen.clear()
        read.clear()
        refused = commit_model(world, repo, bytes(nan))
        assert (refused.status_code, "hold NaN" in refused.json()["error"]) == (400, True)
        assert set(read) == {KeptFile}
    read.clear()
    assert commit_model(world, repo, other).status_code == 200
    assert set(read) == {KeptFile}


def test_of_few_files_is_remembered_what_was_seen(world, monkeypatch):
    monkeypatch.setattr(blobs, "_SEEN", 3)
    for seed in range(5):
        assert world.north.publish(f"north/m{seed}", model=world.model(seed=seed)).status_code == 201
    newest = [hashlib.sha256(world.model(seed=seed)).hexdigest() for seed in (2, 3, 4)]
    assert list(world.hub.store.seen) == newest


def test_knowing_a_digest_is_not_having_the_file(world):
    north, south = make(world.north), make(world.south, "south/repo")
    assert send(world, world.north, north).status_code == 200
    assert commit(world.north, north, lfs("model.bin", size=len(SECRET))).status_code == 200
    assert "actions" not in batch(world.north, make(world.north, "north/other")), "its own content is there already"
    assert "actions" in batch(world.south, south), "a private file looks unknown"
    refused = commit(world.south, south, lfs("stolen.bin"))
    assert (refused.status_code, "never sent" in refused.json()["error"]) == (400, True)
    assert files(world.south, south) == []
    settings = f"/api/models/{north}/settings"
    assert world.north("PUT", settings, json={"private": False, "gated": "manual"}).status_code == 200
    assert "actions" in batch(world.south, south), "so does a gated one"
    assert commit(world.south, south, lfs("stolen.bin")).status_code == 400
    assert world.north("PUT", settings, json={"gated": False}).json() == {"private": False, "gated": False}
    assert "actions" not in batch(world.south, south)
    assert commit(world.south, south, lfs("copied.bin")).status_code == 200
    assert world.south.get(f"/{south}/resolve/main/copied.bin").content == SECRET


def test_an_upload_address_lets_in_one_content_for_a_while(world):
    repo = make(world.north)
    address = batch(world.north, repo)["actions"]["upload"]["href"]
    for wrong in (SECRET[:-1], SECRET + b"x", bytes(len(SECRET))):
        assert world.client.put(address, content=wrong).status_code in (400, 413)
    assert world.blobs() == []
    forged = address[:-3] + ("AAA" if not address.endswith("AAA") else "BBB")
    assert world.client.put(forged, content=SECRET).status_code == 403
    world.later(3601)
    assert world.client.put(address, content=SECRET).status_code == 403
    assert world.blobs() == []
    address = batch(world.north, repo)["actions"]["upload"]["href"]
    assert world.client.put(address, content=SECRET).status_code == 200
    assert world.client.put(address, content=SECRET).status_code == 200, "a repetition is harmless"
    assert "actions" in batch(world.south, make(world.south, "south/repo"))
    gone = batch(world.north, make(world.north, "north/gone"), OID[::-1])["actions"]["upload"]["href"]
    assert world.north("DELETE", "/api/repos/delete", json={"name": "gone"}).status_code == 200
    assert world.client.put(gone, content=SECRET).status_code == 403


def test_missing_and_private_look_the_same(world):
    make(world.north)
    commit(world.north, "north/repo", put("a.txt"))
    paths = ["", "/revision/main", "/tree/main", "/refs", "/commits/main", "/auth-check", "/auth-check/write"]
    for path in [*(f"/api/models/{{}}{path}" for path in paths), "/{}/resolve/main/a.txt"]:
        private, missing = (world.south.get(path.format(repo)) for repo in ("north/repo", "north/none"))
        assert private.status_code == missing.status_code == 404
        assert private.headers["x-error-code"] == missing.headers["x-error-code"] == "RepoNotFound"
        assert private.content == missing.content
        nobody = world.client.get(path.format("north/repo"))
        assert (nobody.status_code, nobody.headers["x-error-code"]) == (401, "RepoNotFound")
    for path, body in {
        "/api/models/north/repo/preupload/main": {"files": []},
        "/api/models/north/repo/tag/main": {"tag": "x"},
        "/api/models/north/repo/branch/x": {},
        "/north/repo.git/info/lfs/objects/batch": {"operation": "upload", "objects": []},
        "/api/repos/move": {"fromRepo": "north/repo", "toRepo": "south/repo"},
    }.items():
        assert world.south.post(path, body).headers["x-error-code"] == "RepoNotFound"
    assert commit(world.south, "north/repo", put("b.txt")).headers["x-error-code"] == "RepoNotFound"
    assert world.south("DELETE", "/api/repos/delete", json={"name": "repo", "organization": "north"}).status_code == 404
    reader = world.actor("north")
    assert commit(reader, "north/repo", put("b.txt")).status_code == 403
    assert files(world.north, "north/repo") == ["a.txt"]


def test_a_commit_is_all_or_nothing(world):
    repo = make(world.north)
    assert commit(world.north, repo, put("a/b.txt"), put("c.txt")).status_code == 200
    for lines in (
        [put("d.txt"), ("deletedFile", {"path": "none"})],
        [put("d.txt"), ("deletedFolder", {"path": "none/"})],
        [put("d.txt"), lfs("e.bin")],
        [put("d.txt"), put("a")],
        [put("d.txt"), put("c.txt/inside")],
    ):
        assert commit(world.north, repo, *lines).status_code in (400, 404)
        assert files(world.north, repo) == ["a/b.txt", "c.txt"]
    again = commit(world.north, repo, ("deletedFolder", {"path": "a/"}), put("a"))
    assert again.status_code == 200
    assert files(world.north, repo) == ["a", "c.txt"]


def test_raw_paths(world):
    repo = make(world.north)
    name = "ä b#?%.txt"
    assert commit(world.north, repo, put(name)).status_code == 200
    assert world.north.post(f"/api/models/{repo}/branch/feature%2Fx").status_code == 200
    path = "/north/repo/resolve/feature%2Fx/%C3%A4%20b%23%3F%25.txt"
    answer = world.north.get(path)
    assert (answer.status_code, answer.content) == (200, b"x")
    sha = answer.headers["x-repo-commit"]
    head = world.north("HEAD", path, follow_redirects=False)
    assert head.status_code == 307
    assert head.headers["location"] == f"/north/repo/resolve/{sha}/%C3%A4%20b%23%3F%25.txt"
    assert world.north("HEAD", head.headers["location"]).headers["content-length"] == "1"
    for tags, status in (('"a"', 412), (head.headers["etag"], 307), ("*", 307)):
        asked = world.north("HEAD", path, headers={"If-Match": tags}, follow_redirects=False)
        assert asked.status_code == status, tags
    for strange in ("%2e%2e/x", "..%2f..%2fx", "%00", "%ff", "a" * 5000, "%2F%2F"):
        assert world.north.get(f"/north/repo/resolve/main/{strange}").status_code in (400, 404)
        assert world.north.get(f"/north/repo/resolve/{strange}/a").status_code in (400, 404)
        assert world.north.get(f"/api/models/north/{strange}").status_code in (400, 404)


def test_downloads_answer_ranges_and_known_content(world):
    repo = make(world.north)
    commit(world.north, repo, put("a.txt", b"0123456789"))
    path = f"/{repo}/resolve/main/a.txt"
    tag = world.north.get(path).headers["etag"]
    assert tag == f'"{hashlib.sha1(b"blob 10" + bytes(1) + b"0123456789").hexdigest()}"'
    assert world.north.get(path, headers={"If-None-Match": tag}).status_code == 304
    part = world.north.get(path, headers={"Range": "bytes=4-"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"456789", "bytes 4-9/10")
    beyond = world.north.get(path, headers={"Range": "bytes=10-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, "bytes */10")
    missing = world.north.get(f"/{repo}/resolve/main/none")
    assert (missing.status_code, missing.headers["x-error-code"]) == (404, "EntryNotFound")
    assert len(missing.headers["x-repo-commit"]) == 40


def test_addresses_are_those_the_client_used(world):
    make(world.north)
    answer = world.north.post("/api/repos/create", {"name": "other"}, headers={"Host": "hub.example:8443"})
    assert answer.json()["url"] == "http://hub.example:8443/north/other"
    done = commit(world.north, "north/other", put("a"))
    assert done.json()["commitUrl"] == f"http://testserver/north/other/commit/{done.json()['commitOid']}"


def test_commits_that_race_all_come_to_stay(world):
    repo = make(world.north)
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda index: commit(world.north, repo, put(f"{index}.txt")), range(8)))
    assert {answer.status_code for answer in done} == {200}
    assert files(world.north, repo) == [f"{index}.txt" for index in range(8)]
    assert len(world.north.get(f"/api/models/{repo}/commits/main").json()) == 9


def test_history_comes_in_pages(world, monkeypatch):
    monkeypatch.setattr(commits, "PAGE", 3)
    repo = make(world.north)
    empty = world.north.get(f"/api/models/{repo}").json()["sha"]
    for index in range(4):
        assert commit(world.north, repo, put("a.txt", b"%d" % index)).status_code == 200
    first = world.north.get(f"/api/models/{repo}/commits/main")
    second = world.north.get(first.links["next"]["url"])
    assert (len(first.json()), len(second.json())) == (3, 2)
    assert "next" not in second.links
    assert second.json()[-1]["id"] == empty
    assert empty != world.north.get(f"/api/models/{make(world.north, 'north/other')}").json()["sha"]


def test_going_back_is_a_commit_of_the_same_content(world):
    repo = make(world.north)
    one = commit(world.north, repo, put("a.txt", b"1")).json()["commitOid"]
    commit(world.north, repo, put("a.txt", b"2"))
    back = commit(world.north, repo, put("a.txt", b"1")).json()["commitOid"]
    history = [step["id"] for step in world.north.get(f"/api/models/{repo}/commits/main").json()]
    assert (history[0], history[2], len({*history})) == (back, one, 4), "what was there before comes as another commit"
    stale = commit(world.north, repo, put("a.txt", b"3"), parentCommit=one[:10])
    assert (stale.status_code, back in stale.headers["X-Error-Message"]) == (412, True)
    same = commit(world.north, repo, put("a.txt", b"1"), parentCommit=back[:10])
    assert same.json()["commitOid"] == back
    assert len(world.north.get(f"/api/models/{repo}/commits/main").json()) == 4, "what changes nothing is no commit"
    assert commit(world.north, repo, put("a.txt", b"4"), parentCommit=back).status_code == 200
    # The id of the content, which was that of a commit before, stands for it, and stays what caches go by.
    tree = revision_id({"a.txt": StoredFile(hashlib.sha256(b"1").hexdigest(), 1)})
    for named, shown in ((tree, tree), (tree[:12], back), (one, one), (back[:12], back)):
        assert world.north.get(f"/api/models/{repo}/revision/{named}").json()["sha"] == shown
        head = world.north("HEAD", f"/{repo}/resolve/{named}/a.txt", follow_redirects=True)
        assert head.headers["X-Repo-Commit"] == shown
        assert world.north.get(f"/{repo}/resolve/{named}/a.txt").content == b"1"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_a_commit_leaves_as_it_was_is_not_read_again(world, monkeypatch):
    card, described = b"---\ntags: [first]\n---\n# Digits", json.dumps(world.metadata()).encode()
    repo, seen = "north/digits", []
    assert world.north.publish(repo, metadata=described, card=card).status_code == 201
    names = {hashlib.sha256(content).hexdigest(): name for name, content in (("model", world.model()), ("card", card))}
    names[hashlib.sha256(described).hexdigest()] = "suture.json"
    for kind in ("read", "read_into"):
        read = getattr(world.hub.store, kind)
        monkeypatch.setattr(
            world.hub.store, kind, lambda sha256, *rest, read=read: seen.append(sha256) or read(sha256, *rest)
        )

    def reads(*lines, status=200):
        seen.clear()
        answer = commit(world.north, repo, *lines)
        assert answer.status_code == status, answer.text
        shown = world.north.get(f"/api/models/{repo}").json()
        return {names.get(sha256, "new") for sha256 in seen}, shown["safetensors"]["total"], "first" in shown["tags"]

    total = world.north.get(f"/api/models/{repo}").json()["safetensors"]["total"]
    assert reads(put("notes.txt")) == (set(), total, True)
    assert reads(put("README.md", b"# Digits")) == ({"new"}, total, False)
    assert reads(put("suture.json", json.dumps(world.metadata(license="mit")).encode())) == (
        {"new", "model"},
        total,
        False,
    )
    broken = world.model()[:-4] + b"\xff" * 4  # NaN
    assert reads(put("model.safetensors", broken), status=400)[0] == {"new"}
    assert reads(put("model.safetensors", world.model(seed=5)))[0] == {"new"}


def test_a_portable_model_comes_and_goes(world):
    repo = make(world.north, private=False)
    model = [put("model.safetensors", world.model()), put("suture.json", json.dumps(world.metadata()).encode())]
    oid = commit(world.north, repo, *model, put("notes.txt")).json()["commitOid"]
    (listed,) = world.south.get("/v1/models").json()["items"]
    assert listed["id"] == repo
    tree = listed["revision"]
    assert world.south.get(f"/v1/models/{repo}/revisions/{oid}").status_code == 404, "its reader could not check it"
    broken = commit(world.north, repo, put("model.safetensors", world.model(classes=3)))
    assert (broken.status_code, "suture.json" in broken.json()["error"]) == (400, True)
    lone = commit(world.north, repo, ("deletedFile", {"path": "suture.json"}))
    assert lone.status_code == 400
    assert commit(world.north, repo, *(("deletedFile", {"path": line["path"]}) for _, line in model)).status_code == 200
    assert world.south.get("/v1/models").json()["items"] == []
    assert world.south.get(f"/v1/models/{repo}/revisions/{tree}").status_code == 200, "a revision stays"
    plain = {"__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    assert commit(world.north, repo, put("model.safetensors", world.safetensors(plain, bytes(4)))).status_code == 200


def test_what_v1_publishes_is_a_repository(world):
    card = b"---\nlicense: mit\ntags: [one, two]\n---\n# Digits\n"
    revision = world.north.publish("north/digits", card=card).json()["id"]
    info = world.south.get("/api/models/north/digits?blobs=true").json()
    assert info["cardData"]["license"] == "mit"
    assert info["sha"] == world.south.get("/api/models").json()[0]["sha"] != revision
    assert world.south.get(f"/api/models/north/digits/revision/{revision}").json()["sha"] == revision
    assert {"one", "two", "license:mit", "suture"} <= set(info["tags"])
    assert {entry["rfilename"] for entry in info["siblings"]} == {"README.md", "model.safetensors", "suture.json"}
    assert world.south.get("/north/digits/resolve/main/model.safetensors").content == world.model()


def test_a_deleted_model_stays_where_a_job_needs_it(world):
    job = world.ask().json()
    member = next(entry for entry in world.job(job)["models"] if entry["repo"] == "south/digits")
    path = f"/v1/models/south/digits/revisions/{member['revision']}/files/model.safetensors"
    assert world.south.post("/api/repos/move", {"fromRepo": "south/digits", "toRepo": "south/new"}).status_code == 409
    assert world.south("DELETE", "/api/repos/delete", json={"name": "digits"}).status_code == 200
    assert world.south.get("/v1/models/south/digits").status_code == 404
    assert world.sites["north"].get(path).status_code == 200, "the site of the fit"
    assert world.sites["east"].get(path).status_code == 404
    world.fit()
    world.evaluate("north")
    world.evaluate("south")
    task = world.compose()
    assert {member["repo"] for member in task["spec"]["members"]} == {"north/digits", "south/digits"}
    assert world.job(job)["state"] == "complete"
    assert world.north.get(path).status_code == 404, "no job needs it any more"
    make(world.south, "south/digits")  # the name is free again
    assert files(world.south, "south/digits") == []


def test_more_paths_than_a_form_has_fields_are_described(world):
    make(world.north)
    commit(world.north, "north/repo", put("a.txt"), put("b/c.txt"))
    asked = [("paths", path) for path in ("a.txt", "b/", *(f"none/{index}" for index in range(3000)))]
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    path = "/api/models/north/repo/paths-info/main"
    answer = world.north("POST", path, content=urlencode(asked), headers=headers)
    assert [entry["path"] for entry in answer.json()] == ["a.txt", "b"]
    too_many = urlencode([("paths", "a.txt")] * (MAX_ENTRIES + 2))
    for content in ("", "expand=true", f"paths={'x' * 5000}", too_many, "&" * MAX_ENTRIES * 50, "a=" + "%41" * 2**20):
        assert world.north("POST", path, content=content, headers=headers).status_code == 400, content[:20]


def test_a_squash_leaves_what_lineage_and_other_branches_need(world):
    world.ask()
    first = world.north.get("/v1/models/north/digits").json()["revision"]
    second = world.north.publish("north/digits", model=world.model(seed=5)).json()["id"]
    third = world.north.publish("north/digits", model=world.model(seed=6)).json()["id"]
    assert world.north.post("/api/models/north/digits/branch/side", {}).status_code == 200
    squash = "/api/models/north/digits/super-squash/main"
    assert world.north.post(squash, {"message": "one"}).status_code == 200
    assert len(world.north.get("/api/models/north/digits/commits/side").json()) == 3
    assert [each["title"] for each in world.north.get("/api/models/north/digits/commits/main").json()] == ["one"]
    assert world.north("DELETE", "/api/models/north/digits/branch/side").status_code == 200
    assert world.north.post(squash, {"message": "two"}).status_code == 200
    left = [row["id"] for row in world.north.get("/v1/models/north/digits/revisions").json()["items"]]
    assert left == [third, first]  # the job that runs has the first one as a member
    assert world.north.get(f"/v1/models/north/digits/revisions/{second}").status_code == 404
    assert world.north.get("/v1/models/north/digits/revisions/latest").json()["id"] == third
    for actor, path, status in (
        (world.south, squash, 403),
        (world.north, squash.replace("main", "none"), 404),
        (world.actor("north"), squash, 403),
    ):
        assert actor.post(path, {"message": "x"}).status_code == status
