"""What a party may fill: on every way in, what was sent counts until it is collected, whatever refers to it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.service import xorbs

from suture_service.hf.xet.format import hash_text
from suture_service.hf.xet.service import sweep
from suture_service.maintenance.collection import collect
from suture_service.maintenance.reconciling import reconcile
from suture_service.tables import Party

LIMIT, SIZE = 100_000, 30_000


@pytest.fixture
def small(start):
    """A hub where a party may have `LIMIT` bytes, and `north` has an empty repository."""
    world = start(max_party_bytes=LIMIT)
    assert world.north.post("/api/repos/create", {"name": "repo"}).status_code == 200
    return world


def stored(world, folder="sha256"):
    return sum(path.stat().st_size for path in (Path(world.settings.store) / folder).rglob("*") if path.is_file())


def age(world):
    for path in (Path(world.settings.store) / "sha256").rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - 3 * 86400,) * 2)


def batch(world, *contents):
    objects = [{"oid": hashlib.sha256(content).hexdigest(), "size": len(content)} for content in contents]
    answer = world.north.post("/north/repo.git/info/lfs/objects/batch", {"operation": "upload", "objects": objects})
    assert answer.status_code == 200, answer.text
    return answer.json()["objects"]


def by_lfs(world):
    """Ask for all addresses first: there is room for each of the files, but not for all."""
    contents = [os.urandom(SIZE) for _ in range(5)]
    addresses = [batch(world, content)[0]["actions"]["upload"]["href"] for content in contents]
    return [world.client.put(address, content=content) for address, content in zip(addresses, contents, strict=True)]


def by_commit(world):
    """Commits that bring content along, and are refused."""

    def send():
        entries = [
            {"key": "header", "value": {"summary": "x"}},
            {"key": "file", "value": {"path": "a", "content": base64.b64encode(os.urandom(SIZE)).decode()}},
            {"key": "deletedFile", "value": {"path": "is not there"}},
        ]
        content = "\n".join(json.dumps(entry) for entry in entries)
        return world.north("POST", "/api/models/north/repo/commit/main", content=content)

    return [send() for _ in range(5)]


def by_xet(world):
    """Files that no commit names, small as they are sent."""
    given = world.north.get("/api/models/north/repo/xet-write-token/main").json()
    headers = {"Authorization": f"Bearer {given['accessToken']}"}
    answers = []
    for seed in range(5):
        content = bytes([seed]) * SIZE
        xorb, shard = xorbs.packed(content)
        address = f"{given['casUrl']}/v1/xorbs/default/{hash_text(xorbs.name_of(xorb))}"
        assert world.client.post(address, content=xorb, headers=headers).status_code == 200
        answers.append(world.client.post(f"{given['casUrl']}/v1/shards", content=shard, headers=headers))
    return answers


def by_task(world):
    """A site that puts the file of a task again and again; only the last of them is referred to."""
    world.ask()
    task = world.sites["north"].lease()
    return [world.sites["north"].put(task, "stitches.safetensors", os.urandom(SIZE)) for _ in range(5)]


@pytest.mark.parametrize("send", [by_lfs, by_commit, by_xet, by_task])
def test_every_way_in_ends_where_the_room_ends(small, send):
    *fitting, refused, again = send(small)
    assert {answer.status_code for answer in fitting} <= {200, 404}
    for answer in (refused, again):
        assert answer.status_code == 413, answer.text
        text = json.dumps(answer.json())
        assert f"north may have {LIMIT}" in text
        assert ("quota.bytes" in text) == (send is by_task)
        assert send is by_task or "collects it" in answer.headers["X-Error-Message"]
    assert 3 * SIZE <= stored(small) <= LIMIT


def test_a_batch_says_what_there_is_no_room_for(small):
    contents = [os.urandom(60_000), os.urandom(60_000)]
    shown = batch(small, *contents)
    errors = [entry["error"] for entry in shown if "error" in entry]
    assert [error["code"] for error in errors] == [413]
    assert "north may have 100000" in errors[0]["message"]
    assert sum("actions" in entry for entry in shown) == 1


def test_uploads_at_once_do_not_take_the_same_room(small):
    contents = [os.urandom(SIZE) for _ in range(8)]
    addresses = [batch(small, content)[0]["actions"]["upload"]["href"] for content in contents]

    def send(index):
        return small.client.put(addresses[index], content=contents[index]).status_code

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(send, range(8)))
    assert sorted(found) == [200] * 3 + [413] * 5
    assert stored(small) == 3 * SIZE
    assert [send(index) for index in range(8)] == found


def test_pieces_have_a_bound_of_their_own_for_two_days(small):
    def send(seed):
        given = small.north.get("/api/models/north/repo/xet-write-token/main").json()
        xorb = xorbs.chunk(xorbs.some_bytes(100_000, seed=seed), xorbs.RAW)
        address = f"{given['casUrl']}/v1/xorbs/default/{hash_text(xorbs.name_of(xorb))}"
        headers = {"Authorization": f"Bearer {given['accessToken']}"}
        return small.client.post(address, content=xorb, headers=headers)

    with small.hub.database.writing() as session:
        session.query(Party).filter_by(name="north").one().max_bytes = 2 * 100_100
    assert [send(seed).status_code for seed in range(3)] == [200, 200, 413]
    assert "last two days" in send(3).headers["X-Error-Message"]
    assert stored(small, "pieces") < 200_200
    small.later(3 * 86400)
    sweep(small.hub.database, small.hub.store, small.now())
    assert send(4).status_code == 200


def test_what_is_published_counts_once(start):
    world = start(max_party_bytes=3000)
    world.north.publish("north/digits").raise_for_status()
    assert world.north.publish("north/copy").status_code == 201
    large = {"model": world.model(side=32), "metadata": world.metadata(side=32)}
    for _ in range(2):
        refused = world.north.publish("north/other", **large)
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "quota.bytes")
    assert stored(world) < 3000
    with world.hub.database.writing() as session:
        session.query(Party).filter_by(name="north").one().max_bytes = 10**6
    assert world.north.publish("north/other", **large).status_code == 201
    assert world.north.publish("north/other", **large).status_code == 200


def test_what_is_deleted_makes_room_once_it_is_collected(start):
    world = start(max_party_bytes=1500)
    world.north.publish("north/digits").raise_for_status()
    other = {"model": world.model(seed=5)}
    assert world.north.publish("north/other", **other).status_code == 413
    # An hour ago, when whatever was going on with it has ended.
    world.later(-2 * 3600)
    answer = world.north("DELETE", "/api/repos/delete", json={"name": "digits", "organization": "north"})
    assert answer.status_code == 200
    world.later(2 * 3600)
    assert world.north.publish("north/other", **other).status_code == 413
    assert collect(world.settings).blobs == []
    age(world)
    assert len(collect(world.settings).blobs) == 2
    assert stored(world) == 0
    assert reconcile(world.settings, deep=True).sound
    assert world.north.publish("north/other", **other).status_code == 201


def test_what_a_job_needs_is_kept_and_counts(world):
    world.ask().raise_for_status()
    world.later(-2 * 3600)
    assert world.north("DELETE", "/api/repos/delete", json={"name": "digits"}).status_code == 200
    world.later(2 * 3600)
    age(world)
    assert collect(world.settings).blobs == []
    before = stored(world)
    job = world.north.get("/v1/jobs").json()["items"][0]["id"]
    world.north.post(f"/v1/jobs/{job}/cancel")
    assert len(collect(world.settings).blobs) == 1  # its metadata is that of another model as well
    assert stored(world) < before
