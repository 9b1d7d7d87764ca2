"""Gated models, tokens that expire, limits and quotas."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from limits.storage import MemoryStorage

from suture_service.errors import TooMany
from suture_service.limits import RateLimits

REPO = "/v1/models/north/digits"
MODEL = f"{REPO}/revisions/latest/files/model.safetensors"


@pytest.fixture
def gated(world):
    """A hub where `north/digits` is for all to see, and its files for those whom `north` lets in."""
    world.north.publish("north/digits").raise_for_status()
    answer = world.north("PATCH", REPO, json={"gated": "manual"})
    assert answer.json()["gated"] == "manual"
    return world


def decide(world, state, party="south", **more):
    steward = world.actor("north", "steward")
    return steward("PUT", f"{REPO}/access/{party}", json={"state": state, **more})


def ask(actor):
    return actor.post(f"{REPO}/access", {"reason": "to stitch it with ours"})


def test_a_gated_model_shows_what_it_is_and_keeps_its_files(gated):
    assert gated.south.get(REPO).json()["gated"] == "manual"
    assert gated.south.get(f"{REPO}/revisions/latest/files/suture.json").status_code == 200
    refused = gated.south.get(MODEL)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "access.required")
    assert "suture access request north/digits" in refused.json()["error"]["hint"]
    assert gated.north.get(MODEL).status_code == 200


def test_access_is_asked_for_granted_for_some_days_and_over(gated):
    asked = ask(gated.south)
    assert (asked.status_code, asked.json()["state"]) == (201, "pending")
    assert ask(gated.south).json()["requested_at"] == asked.json()["requested_at"]
    assert gated.south.get(MODEL).status_code == 403
    granted = decide(gated, "accepted", days=30, answer="until the study ends").json()
    assert granted["state"] == "accepted"
    assert gated.south.get(MODEL).status_code == 200
    assert gated.south.get(f"{REPO}/access").json()["answer"] == "until the study ends"
    assert gated.east.get(MODEL).status_code == 403
    gated.later(31 * 86400)
    assert gated.south.get(MODEL).status_code == 403
    assert ask(gated.south).json()["state"] == "pending"


def test_access_can_be_taken_back(gated):
    ask(gated.south)
    decide(gated, "accepted")
    assert gated.south.get(MODEL).status_code == 200
    decide(gated, "refused", answer="the study has ended")
    assert gated.south.get(MODEL).status_code == 403


def test_where_nobody_decides_asking_is_enough(gated):
    gated.north("PATCH", REPO, json={"gated": "auto"})
    assert gated.south.get(MODEL).status_code == 403
    assert ask(gated.south).json()["state"] == "accepted"
    assert gated.south.get(MODEL).status_code == 200
    gated.north("PATCH", REPO, json={"gated": "open"})
    assert gated.east.get(MODEL).status_code == 200
    assert ask(gated.east).json()["error"]["code"] == "access.open"


def test_only_a_steward_of_the_owner_decides_and_lists(gated):
    ask(gated.south)
    ask(gated.east)
    assert gated.north("PUT", f"{REPO}/access/south", json={"state": "accepted"}).status_code == 403
    stranger = gated.actor("south", "steward", "admin")
    assert stranger("PUT", f"{REPO}/access/south", json={"state": "accepted"}).status_code == 403
    assert stranger.get("/v1/access").json()["items"] == []
    assert gated.north.get("/v1/access").status_code == 403
    steward = gated.actor("north", "steward")
    first = steward.get("/v1/access?state=pending&limit=1").json()
    assert [entry["party"] for entry in first["items"]] == ["east"]
    second = steward.get(f"/v1/access?state=pending&limit=1&cursor={first['next']}").json()
    assert [entry["party"] for entry in second["items"]] == ["south"]
    assert second["next"] is None
    assert decide(gated, "accepted", party="nobody").status_code == 404


def test_a_private_model_looks_unknown_to_those_who_ask(gated):
    gated.north("PATCH", REPO, json={"visibility": "private"})
    assert ask(gated.south).status_code == 404
    assert ask(gated.south).json() == gated.south.post("/v1/models/north/none/access", {"reason": "x"}).json()


def test_a_job_needs_access_of_all_who_work_on_it(gated):
    gated._published.add("north")
    refused = gated.ask()
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "job.access_required")
    ask(gated.south)
    decide(gated, "accepted")
    assert gated.ask().status_code == 201


def test_a_token_ends_when_its_days_are_over(world):
    admin = world.actor("north", "admin")
    made = admin.post("/v1/parties/north/tokens", {"roles": ["publisher"], "days": 2}).json()
    token = {"Authorization": f"Bearer {made['token']}"}
    assert world.client.get("/v1/whoami", headers=token).status_code == 200
    world.later(2 * 86400 + 1)
    assert world.client.get("/v1/whoami", headers=token).status_code == 401
    listed = {row["id"]: row for row in admin.get("/v1/parties/north/tokens").json()["items"]}
    assert listed[made["id"]]["expires_at"] is not None


def test_a_token_may_ask_so_often_a_minute(start):
    world = start(requests_per_minute=5)
    answers = [world.north.get("/v1/whoami") for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429]
    assert [answer.headers["ratelimit-remaining"] for answer in answers[:5]] == ["4", "3", "2", "1", "0"]
    assert answers[-1].json()["error"]["code"] == "request.too_many"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    assert answers[-1].headers["ratelimit-limit"] == "5"
    assert world.south.get("/v1/whoami").status_code == 200


def test_a_request_for_a_file_counts_as_a_tenth(start):
    """A repository of 3,000 files is 6,000 requests to the official client, and few more to any other."""
    world = start(requests_per_minute=5)
    assert world.north.publish("north/digits").status_code == 201
    files = ("/v1/models/north/digits/revisions/latest/files/suture.json", "/north/digits/resolve/main/suture.json")
    answers = [world.north.get(path) for path in files * 15]
    assert {answer.status_code for answer in answers} == {200}
    assert [answer.headers["ratelimit-remaining"] for answer in answers[::10]] == ["3", "2", "1"]
    found = [world.north.get("/v1/whoami").status_code for _ in range(3)]
    assert found == [200, 429, 429]


def test_guessing_tokens_locks_the_address_out(start):
    world = start(wrong_tokens=3)
    guess = {"Authorization": "Bearer suture_party_guess"}
    found = [world.client.get("/v1/whoami", headers=guess) for _ in range(4)]
    assert [answer.status_code for answer in found] == [401, 401, 401, 429]
    assert found[-1].json()["error"]["code"] == "auth.locked"
    assert int(found[-1].headers["retry-after"]) > 60
    assert world.client.get("/v1/whoami").status_code == 401
    assert world.north.get("/v1/whoami").status_code == 429


def test_a_caller_has_no_more_guesses_for_having_many_addresses():
    """Whoever has IPv6 has a network of 2 ** 64 of them."""
    limits = RateLimits(3000, 5, 600)
    for index in range(5):
        limits.count_wrong_token(f"2001:db8:1:2::{index:x}")
    with pytest.raises(TooMany):
        limits.check_address("2001:db8:1:2:ffff::77")
    for other in ("2001:db8:1:3::1", "192.0.2.1", "::ffff:192.0.2.1", "", "testclient"):
        limits.check_address(other)
    for _ in range(5):
        limits.count_wrong_token("::ffff:192.0.2.1")
    with pytest.raises(TooMany):
        limits.check_address("192.0.2.1")
    limits.check_address("::ffff:192.0.2.2")


def test_requests_at_once_are_counted_one_after_the_other(monkeypatch):
    """Where two threads meet in the library that counts, both start one timer, and a request fails (500)."""
    alone, met, get = threading.Lock(), list[str](), MemoryStorage.get

    def slow_get(storage, key):
        if not alone.acquire(blocking=False):
            met.append(key)
            return get(storage, key)
        time.sleep(0.02)
        alone.release()
        return get(storage, key)

    monkeypatch.setattr(MemoryStorage, "get", slow_get)
    limits = RateLimits(requests_per_minute=100, wrong_tokens=100, wrong_tokens_seconds=60)
    with ThreadPoolExecutor(6) as pool:
        for count in (limits.count, limits.count_wrong_token, limits.check_address):
            list(pool.map(count, "abcdef"))
    assert not met


def test_a_party_may_have_so_many_jobs(start):
    world = start(max_party_jobs=1)
    job = world.ask().json()
    assert world.ask().json()["error"]["code"] == "quota.jobs"
    world.north.post(f"/v1/jobs/{job['id']}/cancel")
    assert world.ask().status_code == 201
