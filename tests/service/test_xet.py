"""Large files in pieces: stored whole, found by their sender alone, forgotten in time, refused without a trace."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import func, select, update
from sqlalchemy.orm import joinedload
from tests.service import xorbs

from suture_service.hf.xet import endpoints, service
from suture_service.hf.xet.format import FILES_LIMIT, XORB_LIMIT, hash_text, parse_files
from suture_service.hf.xet.rebuild import rebuild
from suture_service.hub import REBUILDS
from suture_service.maintenance.collection import collect
from suture_service.models.service import new_model
from suture_service.parties.repository import find_party
from suture_service.tables import Model, ReceivedFile, Token, XetEpoch, XetXorb

CONTENT = xorbs.some_bytes(700_000, seed=1)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
XORB, SHARD = xorbs.packed(CONTENT)
DAY = 24 * 3600


@dataclass
class Address:
    """Where a token may send to, as `xet-write-token` said it."""

    client: Any
    url: str
    token: str

    def post(self, path: str, content: bytes, **headers: str) -> Any:
        headers = {"Authorization": f"Bearer {self.token}", **headers}
        return self.client.post(f"{self.url}{path}", content=content, headers=headers)

    def xorb(self, content: bytes, name: bytes | None = None) -> Any:
        return self.post(f"/v1/xorbs/default/{hash_text(xorbs.name_of(content) if name is None else name)}", content)

    def shard(self, content: bytes, path: str = "/v1/shards") -> Any:
        return self.post(path, content)


def address(actor, repo="north/large"):
    answer = actor.get(f"/api/models/{repo}/xet-write-token/main")
    assert answer.status_code == 200, answer.text
    return Address(actor.client, answer.json()["casUrl"], answer.json()["accessToken"])


def make_repo(world, party, name="large"):
    with world.hub.database.writing() as session:
        new_model(session, find_party(session, party), name, "private", world.now())


@pytest.fixture
def north(world):
    make_repo(world, "north")
    return address(world.north)


def received(world):
    with world.hub.database.reading() as session:
        return {row.sha256: row.size for row in session.scalars(select(ReceivedFile))}


def pieces(world):
    return [name for name in world.blobs() if name.startswith("pieces/")]


def test_a_file_is_put_together_and_stored(world, north):
    assert north.xorb(XORB).json() == {"was_inserted": True}
    assert north.xorb(XORB).json() == {"was_inserted": False}
    assert len(pieces(world)) == 1
    for path in ("/v1/shards", "/shards"):
        answer = north.shard(SHARD, path)
        assert (answer.status_code, answer.json()) == (200, {"result": 1})
    answer = north.shard(SHARD, "/v2/shards")
    assert [json.loads(line) for line in answer.text.splitlines()] == [{"type": "result"}]
    assert received(world) == {DIGEST: len(CONTENT)}
    assert world.hub.store.read(DIGEST, 0, len(CONTENT), len(CONTENT)) == CONTENT
    assert not [name for name in world.blobs() if name.startswith("tmp/")]


def test_several_files_come_in_one_shard_out_of_shared_xorbs(world, north):
    parts = [xorbs.some_bytes(50_000, seed=seed) for seed in range(6)]
    first, second = (b"".join(xorbs.chunk(part, scheme) for part in parts) for scheme in (xorbs.LZ4, xorbs.REGROUPED))
    assert north.xorb(first).status_code == north.xorb(second).status_code == 200
    contents = [b"".join(parts), b"".join(parts[3:] + parts[:2]), b""]
    files = [
        xorbs.file(contents[0], [xorbs.term(first, 300_000, 0, 6)]),
        xorbs.file(contents[1], [xorbs.term(second, 150_000, 3, 6), xorbs.term(first, 100_000, 0, 2)]),
        xorbs.file(contents[2], []),
    ]
    assert north.shard(xorbs.shard(*files)).status_code == 200
    assert received(world) == {hashlib.sha256(content).hexdigest(): len(content) for content in contents}


def test_what_the_hub_has_is_not_told(world, north):
    north.xorb(XORB)
    name = hash_text(xorbs.name_of(XORB))
    assert world.client.get(f"{north.url}/v1/chunks/default/{name}").status_code == 404
    assert north.post(f"/v1/xorb-grants/default/{name}", b"").status_code == 404
    assert world.client.post("/v1/telemetry", content=b"{}").status_code == 204


def test_the_answer_has_the_headers_that_clients_read(world, north):
    answer = world.north.get("/api/models/north/large/xet-write-token/feature%2Fx")
    body = answer.json()
    names = ("X-Xet-Cas-Url", "X-Xet-Access-Token", "X-Xet-Token-Expiration")
    assert [answer.headers[name] for name in names] == [body["casUrl"], body["accessToken"], str(body["exp"])]
    assert body["casUrl"] == north.url
    assert body["casUrl"].startswith(str(world.client.base_url).rstrip("/") + "/xet/")
    assert 3500 < body["exp"] - world.now().timestamp() < 3601


def test_only_an_owner_who_publishes_may_send(world, north):
    path = "/api/models/north/large/xet-write-token/main"
    for actor, status in (
        (world.south, 404),
        (world.sites["north"], 403),
        (world.actor("north", "reader"), 403),
    ):
        assert actor.get(path).status_code == status
    assert world.client.get(path).status_code == 401
    assert world.north.get("/api/models/north/none/xet-write-token/main").headers["X-Error-Code"] == "RepoNotFound"


def test_a_xorb_is_found_by_the_token_repository_and_day_that_sent_it(world, north):
    """Somebody who knows hashes gets nothing with them: neither another party's content nor another repository's."""
    assert north.xorb(XORB).status_code == 200
    make_repo(world, "north", "other")
    make_repo(world, "south")
    others = [
        address(world.north, "north/other"),
        address(world.actor("north", "publisher")),
        address(world.south, "south/large"),
    ]
    for other in others:
        answer = other.shard(SHARD)
        assert answer.status_code == 400
        assert "has not been sent" in answer.json()["error"]
        told = json.loads(other.shard(SHARD, "/v2/shards").text)
        assert (told["type"], told["retryable"]) == ("error", False)
    world.later(DAY)
    tomorrow = address(world.north)
    assert tomorrow.shard(SHARD).status_code == 400
    assert len({other.url for other in (north, *others, tomorrow)}) == 5
    assert received(world) == {}


def test_a_token_opens_only_its_own_epochs(world, north):
    make_repo(world, "south")
    south = address(world.south, "south/large")
    for wrong in (
        Address(world.client, north.url, south.token),
        Address(world.client, north.url, north.token[:-2] + "xx"),
        Address(world.client, north.url, world.north.token),
        Address(world.client, north.url.rpartition("/")[0] + "/" + "0" * 32, north.token),
        Address(world.client, north.url.rpartition("/")[0] + "/%00", north.token),
    ):
        assert wrong.xorb(XORB).status_code == wrong.shard(SHARD).status_code == 403
        assert wrong.shard(SHARD, "/v2/shards").status_code == 403
    assert world.client.post(f"{north.url}/v1/shards", content=SHARD).status_code == 401
    assert not pieces(world)


def test_a_poisoned_xorb_harms_nobody_else(world, north):
    """The hash is not checked: `south` may give its own content the hash of a xorb of `north`."""
    make_repo(world, "south")
    south = address(world.south, "south/large")
    name = xorbs.name_of(XORB)
    assert south.xorb(xorbs.chunk(b"poison"), name).status_code == 200
    assert north.xorb(XORB).json() == {"was_inserted": True}
    assert north.shard(SHARD).status_code == 200
    assert south.shard(SHARD).status_code == 400
    assert received(world) == {DIGEST: len(CONTENT)}


def test_a_wrong_digest_leaves_nothing(world, north):
    north.xorb(XORB)
    foreign = hashlib.sha256(b"somebody else's").digest()
    wrong = xorbs.shard(xorbs.file(CONTENT, [xorbs.term(XORB, len(CONTENT), 0, 11)], sha256=foreign))
    assert north.shard(wrong).status_code == 400
    assert json.loads(north.shard(wrong, "/v2/shards").text)["type"] == "error"
    assert received(world) == {}
    assert world.blobs() == pieces(world)


def test_an_upload_may_go_on_over_midnight_and_is_forgotten_a_day_later(world, north):
    begun = world.now().date()
    north.xorb(XORB)
    world.later(DAY + 1)  # a token's end is kept in whole seconds
    today = address(world.north)
    assert today.url != north.url
    yesterday = Address(world.client, north.url, today.token)
    assert Address(world.client, north.url, north.token).xorb(XORB).status_code == 403, "the token has ended"
    assert yesterday.shard(SHARD).status_code == 200
    service.sweep(world.hub.database, world.hub.store, world.now())
    assert yesterday.shard(SHARD).status_code == 200
    world.later(DAY)
    late = Address(world.client, north.url, address(world.north).token)
    assert late.shard(SHARD).status_code == 403
    service.sweep(world.hub.database, world.hub.store, world.now())
    with world.hub.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(XetXorb)) == 0
        assert session.scalar(select(func.min(XetEpoch.day))) > begun
    assert not pieces(world)
    assert received(world) == {DIGEST: len(CONTENT)}


def test_a_revoked_token_and_a_deleted_repository_end_it(world, north):
    own = world.actor("north", "admin", "publisher")
    other = address(own)
    tokens = own.get("/v1/parties/north/tokens").json()["items"]
    token = next(row["id"] for row in tokens if "admin" in row["roles"])
    assert own("DELETE", f"/v1/tokens/{token}").status_code == 204
    assert other.xorb(XORB).status_code == 403
    assert north.xorb(XORB).status_code == 200
    late = address(world.actor("north", "publisher"))
    with world.hub.database.writing() as session:
        session.execute(update(Token).values(expires_at=world.now() + timedelta(seconds=60)))
    assert late.xorb(XORB).status_code == 200
    world.later(61)
    assert late.xorb(XORB).status_code == 403
    with world.hub.database.writing() as session:
        session.execute(update(Token).values(expires_at=None))
    with world.hub.database.writing() as session:
        session.scalars(select(Model)).one().deleted_at = world.now()
    assert north.shard(SHARD).status_code == 403


def test_garbage_collection_sweeps_what_was_sent_as_well(world, north):
    north.xorb(XORB)
    assert collect(world.settings).temporary == 0
    (piece,) = pieces(world)
    os.utime(Path(world.settings.store) / piece, (0, 0))
    with world.hub.database.writing() as session:
        session.execute(update(XetEpoch).values(day=XetEpoch.day - timedelta(days=3)))
    assert collect(world.settings, dry_run=True).temporary is None
    assert pieces(world) == [piece]
    assert collect(world.settings).temporary == 1
    assert pieces(world) == []
    assert north.shard(SHARD).status_code == 403


def test_a_client_that_goes_away_leaves_nothing(world, north, monkeypatch):
    north.xorb(XORB)
    with world.hub.database.reading() as session:
        epoch = session.scalars(select(XetEpoch).options(joinedload(XetEpoch.model))).one()
    read = world.hub.store.read_piece
    monkeypatch.setattr(endpoints, "LINE_SECONDS", 0.01)
    gone = threading.Event()
    monkeypatch.setattr(world.hub.store, "read_piece", lambda *part: gone.wait(60) and read(*part))

    async def go_away() -> str:
        lines = endpoints._telling(world.hub, epoch, parse_files(SHARD, limit=2**20))
        first = await anext(lines)
        asyncio.get_running_loop().call_soon(gone.set)  # not before the stream is told to close
        await lines.aclose()  # type: ignore[attr-defined]
        return first

    assert json.loads(anyio.run(go_away)) == {"type": "validating", "verified": 0, "total": 1}
    assert world.blobs() == pieces(world)
    assert received(world) == {}


def test_too_much_is_refused(start):
    world = start(max_model_bytes=10_000_000)
    make_repo(world, "north")
    north = address(world.north)
    assert north.xorb(bytes(XORB_LIMIT + 1)).status_code == 413
    xorb = xorbs.chunk(bytes(100_000)) * 101
    assert north.xorb(xorb).status_code == 200
    one = xorbs.file(bytes(100 * 100_000), [xorbs.term(xorb, 10_000_000, 0, 100)])
    assert north.shard(xorbs.shard(one)).status_code == 200
    assert north.shard(xorbs.shard(one, one)).status_code == 413
    term = xorbs.term(xorb, 0, 0, 1)
    assert north.shard(xorbs.shard(xorbs.file(b"", [term] * (FILES_LIMIT // 48)))).status_code == 413
    assert len(received(world)) == 1


def test_the_same_xorb_and_shard_from_several_at_once(world, north):
    codes: list[int] = []

    def send() -> None:
        codes.append(north.xorb(XORB).status_code)
        codes.append(north.shard(SHARD).status_code)

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [200] * 12
    assert received(world) == {DIGEST: len(CONTENT)}


def test_files_of_one_party_are_put_together_a_few_at_a_time(world, north, monkeypatch):
    """A few MiB can become GiB, in the store and for its processors."""
    north.xorb(XORB)
    busy, most, too_many = [0], [0], threading.Event()

    def counted(*args):
        busy[0] += 1
        most[0] = max(most[0], busy[0])
        if busy[0] > REBUILDS:
            too_many.set()
        too_many.wait(0.3)
        yield from rebuild(*args)
        busy[0] -= 1

    monkeypatch.setattr(service, "rebuild", counted)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: north.shard(SHARD), range(6)))
    assert [answer.status_code for answer in answers] == [200] * 6
    assert most[0] == REBUILDS


def test_hostile_uploads_are_refused_and_leave_nothing(world, north):
    north.xorb(XORB)
    before = world.blobs()

    @hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**32))
    def attack(seed: int) -> None:
        choice = random.Random(seed)
        xorb, shard = bytearray(XORB), bytearray(SHARD)
        for victim in (xorb, shard):
            for _ in range(choice.randrange(1, 5)):
                at = choice.randrange(min(len(victim), choice.choice((8, 48, 200, len(victim)))))
                victim[at] = choice.choice((0, 1, 0xFF, choice.randrange(256)))
            if choice.random() < 0.2:
                del victim[choice.randrange(len(victim)) :]
        path = choice.choice(("/v1/shards", "/v2/shards"))
        answers = [north.xorb(bytes(xorb), choice.randbytes(32)), north.shard(bytes(shard), path)]
        assert all(answer.status_code in (200, 400, 413) for answer in answers)

    attack()
    # Mutants that change nothing that matters are stored like the original; no other content ever is.
    assert set(received(world)) <= {DIGEST}
    blobs = [name for name in world.blobs() if not name.startswith("pieces/")]
    assert blobs in ([], [f"sha256/{DIGEST[:2]}/{DIGEST}"])
    assert set(before) <= set(world.blobs())
